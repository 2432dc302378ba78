"""A run whose last state is not in its folder has failed, and its state is elsewhere, if anywhere."""

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mneme.configuration.config import Config, load_config
from mneme.evaluation import evaluate_checkpoint
from mneme.interruption import StopRequest
from mneme.storage import checkpoint, saving
from mneme.storage.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from mneme.storage.run_folder import RunFolder
from mneme.training import resume, train

PARTS = {"learner": {}}


def small(tmp_path: Path, *overrides: str) -> Config:
    return load_config(
        None,
        [f"checkpoint.root={tmp_path}/runs", f"checkpoint.fallback={tmp_path}/spare", "name=a",
         "tracking.enabled=false", "rollout.num_envs=4", "rollout.unroll_length=8", "learner.num_minibatches=1",
         "learner.num_epochs=1",
         "env.kwargs.horizon=6", "policy.controller.hidden_size=8", "policy.controller.backend=torch",
         "train.total_timesteps=32", "train.evaluation_episodes=4", "learner.num_threads=1", *overrides],
    )  # fmt: skip


def refusing(monkeypatch: pytest.MonkeyPatch, *roots: Path, times: int = 1000) -> None:
    """Let no checkpoint be written below `roots`, the first `times` tries."""
    left = iter(range(times))

    def save(root: Path, *arguments: Any) -> Path:
        if any(refused in root.parents for refused in roots) and next(left, None) is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save_checkpoint(root, *arguments)

    monkeypatch.setattr("mneme.active_run.save_checkpoint", save)
    monkeypatch.setattr(saving, "sleep", lambda _: None)


def test_a_run_that_cannot_save_its_end_fails_and_goes_on_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(monkeypatch, tmp_path / "runs")
    with pytest.raises(OSError, match="No space left.*; it is whole in .*spare/mneme-a-.*--resume") as failure:
        train(small(tmp_path), local=True)
    (spare,) = (tmp_path / "spare").iterdir()
    assert str(spare) in str(failure.value)
    assert spare.stat().st_mode & 0o077 == 0
    assert evaluate_checkpoint(spare, episodes=4, num_envs=4, seed=0).lengths.size == 4
    monkeypatch.undo()
    resumed = resume(spare, "train.total_timesteps=64", local=True)
    assert (resumed.folder, resumed.steps) == (spare, 64)
    assert [row["step"] for row in RunFolder(spare).history() if "kl" in row] == [32, 64]


def test_what_was_rescued_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In containers and notebooks a later run of this name may have the same process id."""
    monkeypatch.setattr(saving, "sleep", lambda _: None)
    folder, config = RunFolder(tmp_path / "runs" / "a"), small(tmp_path)

    def rescue(step: int) -> Path | None:
        def write(root: Path) -> Path:
            if root == folder.checkpoints:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return save_checkpoint(root, step, {}, PARTS, 1)

        return saving.save_last(write, folder, config, StopRequest())[0]

    for path in (rescue(1), rescue(2)):
        assert path is not None
        load_checkpoint(path)


def test_room_made_in_time_makes_the_run_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, tmp_path, times=4)
    result = train(small(tmp_path), local=True)
    assert [path.name for path in list_checkpoints(result.folder / "checkpoints")] == ["step-000000000032"]
    assert not (tmp_path / "spare").exists() or not list((tmp_path / "spare").iterdir())


def test_a_state_that_can_be_written_nowhere_is_said_to_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refusing(monkeypatch, tmp_path)
    with pytest.raises(OSError, match="neither to .*runs/a.* nor to .*spare.*is lost"):
        train(small(tmp_path), local=True)
    assert "make room: trying again in 1 s" in capsys.readouterr().out


def test_at_a_terminal_it_waits_until_it_is_asked_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, slept = StopRequest(), iter(range(200))

    def sleep(_: float) -> None:
        stop.made = next(slept) >= 100

    monkeypatch.setattr(saving, "sleep", sleep)
    for stream in ("sys.stdin", "sys.stdout"):
        monkeypatch.setattr(f"{stream}.isatty", lambda: True, raising=False)

    def full(_: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path, fault = saving.save_last(full, RunFolder(tmp_path / "a"), small(tmp_path), stop)
    assert path is None
    assert fault is not None
    assert next(slept) == 101  # well beyond the tries of a run that nobody watches


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_does_not_flush_is_noted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def unsupported(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", unsupported)
    monkeypatch.setattr(checkpoint, "_unflushed", [])
    for step in (1, 2):
        load_checkpoint(save_checkpoint(tmp_path, step, {}, PARTS, keep=2))
    assert len([record for record in caplog.records if "does not flush" in record.message]) == 1


def test_a_disk_that_fails_to_flush_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        save_checkpoint(tmp_path, 1, {}, PARTS, keep=2)
    assert list_checkpoints(tmp_path) == []


def test_where_folders_cannot_be_renamed_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(Path, "rename", unsupported)
    for _ in range(2):
        load_checkpoint(save_checkpoint(tmp_path, 1, {}, PARTS, keep=2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000001"]


def test_a_tiny_disk_really_fills(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", str(runs)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with pytest.raises(OSError, match="could not be written to .*; it is whole in"):
            train(small(tmp_path, "policy.controller.hidden_size=64"), local=True)
        (spare,) = (tmp_path / "spare").iterdir()
        assert len(list_checkpoints(spare / "checkpoints")) == 1
    finally:
        subprocess.run(["umount", str(runs)], check=True)


def test_an_annealed_run_that_is_extended_never_learns_faster_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(small(tmp_path, "learner.lr_schedule=linear", "train.total_timesteps=128"), local=True)
    resume(run.folder, "train.total_timesteps=256", local=True)
    assert "under learner.lr_schedule the value of the last update falls to zero at step 256" in capsys.readouterr().out
    rates = [row["learning_rate"] for row in RunFolder(run.folder).history() if "learning_rate" in row]
    assert len(rates) == 8
    assert rates == sorted(rates, reverse=True)
    assert rates[3] == rates[4] == pytest.approx(rates[0] / 4)
