"""A run's checkpoints are whole in an object store or not there, whatever befalls the store, the run or its machine."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mneme.callbacks import Callback, Progress
from mneme.configuration.config import Config, load_config
from mneme.distributed.config import ConfigError
from mneme.storage import mirror, store
from mneme.storage.checkpoint import CheckpointError, find_checkpoint, list_checkpoints, load_checkpoint, step_of
from mneme.storage.mirror import whole_checkpoints
from mneme.storage.run_folder import RunFolder
from mneme.storage.store import open_store
from mneme.storage.uri import below
from mneme.training import resume, train
from tests.mneme.storage.s3_server import S3Server

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).parents[3]


def small(root: Path, mirror: str | None, *overrides: str) -> Config:
    """Four updates of 32 steps, each with a checkpoint, of which two are kept."""
    settings = [
        f"checkpoint.root={root}", "name=a", "tracking.enabled=false", "rollout.num_envs=4", "rollout.num_workers=1",
        "rollout.unroll_length=8", "learner.num_minibatches=1", "learner.num_epochs=1", "learner.num_threads=1",
        "env.kwargs.horizon=6", "policy.controller.hidden_size=8", "policy.controller.backend=torch",
        "train.total_timesteps=128", "train.evaluation_episodes=4", "checkpoint.every=32", "checkpoint.keep=2",
        *overrides,
    ]  # fmt: skip
    return load_config(None, [*settings, *([] if mirror is None else [f"checkpoint.mirror={mirror}"])])


def arrays(folder: Path) -> dict[str, np.ndarray]:
    parts = find_checkpoint(folder)[1].arrays
    return {f"{part}/{name}": array for part, named in parts.items() for name, array in named.items()}


def assert_same(one: Path, other: Path) -> None:
    first, second = arrays(one), arrays(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


class Updates(Callback):
    """Calls something after the update at so many steps."""

    def __init__(self, calls: Mapping[int, Any]) -> None:
        self._calls = calls

    def on_update(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        if progress.steps in self._calls:
            self._calls[progress.steps]()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a store that is out of order."""
    monkeypatch.setattr(mirror, "PAUSES", ())
    monkeypatch.setattr(store, "_ATTEMPTS", 1)


@pytest.mark.parametrize("kind", ["s3", "file"])
def test_a_store_holds_what_the_folder_holds_each_manifest_last(
    tmp_path: Path, server: S3Server, bucket: str, kind: str
) -> None:
    written: list[str] = []
    server.hook = lambda method, path: written.append(path) if method in ("PUT", "DELETE") else None
    there = {"s3": f"s3://{bucket}/some/runs{server.options}", "file": f"file://{tmp_path}/shared"}[kind]
    run = train(small(tmp_path / "runs", there), local=True, progress=False)
    _, files = open_store(below(there, "a"), writing=False)
    mine = {str(file.relative_to(run.folder)): file.stat().st_size for file in run.folder.rglob("*") if file.is_file()}
    assert files == {name: size for name, size in mine.items() if name not in (".lock", "state.json", "log.jsonl")}
    assert sorted(whole_checkpoints(files)) == [96, 128]
    if kind == "s3":
        last = [path for path in written if "step-000000000128/" in path and not path.endswith("/")]
        assert len(last) >= 4 and last[-1].endswith("manifest.json")
        first = [path for path in written if "step-000000000032/" in path]
        assert not first or [path for path in first if path.endswith("json")][-1].endswith("manifest.json")


@pytest.mark.parametrize("kind", ["s3", "file"])
def test_a_run_goes_on_from_the_store_on_another_machine_as_if_nothing_had_happened(
    tmp_path: Path, server: S3Server, bucket: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"s3": f"s3://{bucket}/runs{server.options}", "file": f"file://{tmp_path}/shared"}[kind]
    whole = train(small(tmp_path / "whole", None), local=True, progress=False)
    train(small(tmp_path / "runs", there, "train.total_timesteps=64"), local=True, progress=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = resume(
        Path(below(there, "a")), "train.total_timesteps=128", local=True, progress=False
    )  # whose mirror needs no trust
    assert run.folder == tmp_path / "elsewhere" / "runs" / "a"
    assert run.folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in run.folder.parent.iterdir()] == ["a"]
    assert_same(run.folder, whole.folder)
    assert [row["step"] for row in run.history().to_pylist() if row["kl"] is not None] == [32, 64, 96, 128]
    _, files = open_store(below(there, "a"), writing=False)
    assert sorted(whole_checkpoints(files)) == [96, 128]


def test_an_upload_that_is_cut_off_costs_a_sentence_and_the_one_before_is_found(
    tmp_path: Path, server: S3Server, bucket: str, hurried: None, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = f"s3://{bucket}/runs{server.options}"

    before = threading.Event()

    def cut(method: str, path: str) -> bool:
        if method == "PUT" and path.endswith("manifest.json"):
            before.set()
        return method == "PUT" and "step-000000000128/run.json" in path

    server.hook = cut
    updates = Updates({96: lambda: before.wait(60)})
    run = train(small(tmp_path / "runs", there, "checkpoint.keep=9"), local=True, progress=False, callbacks=updates)
    assert run.steps == 128
    lacks = [note for note in notes if "lacks the last checkpoint (" in note]
    assert len(lacks) == 1 and str(run.folder) in lacks[0]
    server.hook = lambda method, path: False
    _, files = open_store(below(there, "a"), writing=False)
    assert any("step-000000000128/learner" in name for name in files)
    assert 128 not in whole_checkpoints(files)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").rename(tmp_path / "lost")
    went_on = resume(Path(below(there, "a")), local=True, progress=False)
    assert_same(went_on.folder, tmp_path / "lost" / "a")


def test_an_outage_costs_one_sentence_and_everything_is_there_in_the_end(
    tmp_path: Path, server: S3Server, bucket: str, hurried: None, notes: list[str]
) -> None:
    there = f"s3://{bucket}/runs{server.options}"
    seen: list[int] = []

    def out() -> None:
        server.hook = lambda method, path: True

    def back() -> None:
        while not any("could not be copied" in note for note in notes):
            pass
        seen.append(len(notes))
        server.hook = lambda method, path: False

    updates = Updates({64: out, 160: back})
    config = small(tmp_path / "runs", there, "train.total_timesteps=192")
    run = train(config, local=True, progress=False, callbacks=[updates])
    assert seen
    assert len([note for note in notes if "could not be copied" in note]) == 1
    assert not any("lacks the last checkpoint" in note for note in notes)
    _, files = open_store(below(there, "a"), writing=False)
    assert sorted(whole_checkpoints(files)) == [step_of(path) for path in list_checkpoints(run.folder / "checkpoints")]


def test_one_that_is_whole_before_it_is_told_of_is_copied_and_one_that_is_gone_is_none_to_copy(tmp_path: Path) -> None:
    run = train(small(tmp_path / "runs", None), local=True, progress=False)
    copying = mirror.Mirror(small(tmp_path, f"file://{tmp_path}/there"), RunFolder(run.folder), None)
    older, newer = list_checkpoints(run.folder / "checkpoints")
    copying._newest = older
    assert copying._attempt() == ""
    there = tmp_path / "there" / "a" / "checkpoints"
    assert [path.name for path in list_checkpoints(there)] == [older.name, newer.name]
    shutil.rmtree(older)
    assert copying._attempt() == ""


def test_one_that_is_superseded_while_it_is_copied_becomes_whole_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a store that is slower than the run would never have any."""
    run = train(small(tmp_path / "runs", None, "train.total_timesteps=32"), local=True, progress=False)
    copying = mirror.Mirror(small(tmp_path, f"file://{tmp_path}/there"), RunFolder(run.folder), None)
    (only,) = list_checkpoints(run.folder / "checkpoints")
    put = store.Store.put

    def slow(self: store.Store, name: str, source: Any) -> None:
        if "learner" in name:
            shutil.rmtree(only)
        put(self, name, source)

    monkeypatch.setattr(store.Store, "put", slow)
    copying._newest = only
    assert copying._attempt() == ""
    load_checkpoint(tmp_path / "there" / "a" / "checkpoints" / only.name)


def test_the_end_of_a_run_waits_for_a_store_only_while_bytes_move(
    tmp_path: Path, server: S3Server, bucket: str, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "_PATIENCE", 0.2)
    let_go = threading.Event()
    server.hook = lambda method, path: "step-000000000032/" in path and let_go.wait(60)
    try:
        run = train(
            small(tmp_path / "runs", f"s3://{bucket}/runs{server.options}", "train.total_timesteps=32"),
            local=True, progress=False,
        )  # fmt: skip
        assert run.steps == 32
        assert [note for note in notes if "lacks the last checkpoint (nothing has moved for" in note]
    finally:
        let_go.set()
        for thread in threading.enumerate():  # whose requests are none of the next test's
            if thread.name == "mneme-mirror":
                thread.join()


KILLED = """
import sys, time
from pathlib import Path
from tests.mneme.storage.test_mirror import Updates, small
from mneme.training import train
slow = Updates({steps: lambda: time.sleep(1) for steps in range(32, 1600, 32)})
train(small(Path(sys.argv[1]), sys.argv[2], "train.total_timesteps=1600"), local=True, progress=False, callbacks=slow)
"""


def test_a_run_that_is_killed_while_it_uploads_goes_on_from_the_store(
    tmp_path: Path, server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = f"s3://{bucket}/runs{server.options}"
    started = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "runs"), there], cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )  # fmt: skip
    whole: list[str] = []

    def kill(method: str, path: str) -> None:
        if method != "PUT" or "/step-" not in path or path.endswith("/"):
            return
        if path.endswith("manifest.json"):
            whole.append(path)
        elif whole and whole[0].rpartition("/")[0] not in path and path.endswith("run.json"):
            started.kill()

    server.hook = kill
    assert started.wait(120) == -signal.SIGKILL
    server.hook = lambda method, path: False
    (tmp_path / "runs").rename(tmp_path / "lost")
    monkeypatch.chdir(tmp_path)
    went_on = resume(Path(below(there, "a")), local=True, progress=False)
    uninterrupted = train(small(tmp_path / "whole", None, "train.total_timesteps=1600"), local=True, progress=False)
    assert_same(went_on.folder, uninterrupted.folder)


@pytest.mark.parametrize(
    ("there", "why"),
    [
        ("s3://{bucket}-not-there/runs{options}", "cannot be used .*not found"),
        ("s3://{bucket}/runs?endpoint_override=127.0.0.1:9&scheme=http", "cannot be used .*Could not connect"),
        ("nothing://there/runs", "cannot be used .*Unrecognized filesystem"),
        ("file:///proc/runs", "cannot be used .*Cannot create directory"),
    ],
)
def test_a_mirror_that_cannot_be_used_is_refused_before_anything_starts(
    tmp_path: Path, server: S3Server, bucket: str, hurried: None, there: str, why: str
) -> None:
    there = there.format(bucket=bucket, options=server.options)
    with pytest.raises(ConfigError, match=f"checkpoint.mirror: {there.partition('?')[0]}.*{why}.*; mend that") as error:
        train(small(tmp_path / "runs", there), local=True, progress=False)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    if not there.startswith("file"):
        with pytest.raises(CheckpointError, match="cannot be used|holds no checkpoint that is whole"):
            resume(Path(below(there, "a")), local=True, progress=False)


def test_a_store_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_ANSWER", 0.01)
    monkeypatch.setattr(store, "_open", lambda uri: signal.pause())
    with pytest.raises(ConfigError, match="no answer within"):
        train(small(tmp_path / "runs", f"s3://{bucket}/runs{server.options}"), local=True, progress=False)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (
            "checkpoint.root=s3://b/runs",
            "checkpoint.root is s3://b/runs, no folder of this machine; .*checkpoint.mirror=",
        ),
        ("checkpoint.mirror=runs", "checkpoint.mirror is runs; write a URI such as s3://BUCKET/runs"),
        ("checkpoint.mirror=s3://key:secret@b/runs", r"checkpoint.mirror is s3://\*\*\*@b/runs; it holds a password"),
        ("checkpoint.mirror=hdfs://h/runs?token=secret", r"mirror is hdfs://h/runs\?token=\*\*\*; it holds a password"),
        ("checkpoint.mirror=s3://b/runs?regoin=x", "regoin is no option of it; those are region, scheme, endpoint_ov"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as error:
        load_config(None, [setting])
    assert "secret" not in str(error.value)


def test_a_mirror_keeps_runs_apart(tmp_path: Path, server: S3Server, bucket: str) -> None:
    there = f"s3://{bucket}/runs{server.options}"
    run = train(small(tmp_path / "one", there, "train.total_timesteps=64"), local=True, progress=False)
    with pytest.raises(ConfigError, match="runs/a.* exists already; choose another name"):
        train(small(tmp_path / "two", there), local=True, progress=False)
    key = find_checkpoint(run.folder)[1].run["tracking_run"]

    def opened(key: str, steps: int) -> None:
        mirror.Mirror(small(tmp_path, there), RunFolder(run.folder), {"tracking_run": key, "steps": steps})

    opened(key, 64)
    opened(key, 32)  # as the folder knows of what comes after
    with pytest.raises(ConfigError, match="runs/a.* holds another run; move that"):
        opened("another", 64)
    shutil.rmtree(list_checkpoints(run.folder / "checkpoints")[-1])
    with pytest.raises(ConfigError, match="goes on to step 64, which .*one/a does not hold; go on with that: --"):
        opened(key, 32)


def test_what_a_run_has_abandoned_is_gone_from_the_store(tmp_path: Path, server: S3Server, bucket: str) -> None:
    there = f"s3://{bucket}/runs{server.options}"
    run = train(small(tmp_path / "runs", there, "checkpoint.keep=9"), local=True, progress=False)
    second = list_checkpoints(run.folder / "checkpoints")[1]
    resume(second, "train.total_timesteps=96", local=True, progress=False, trust=True)
    _, files = open_store(below(there, "a"), writing=False)
    assert sorted(whole_checkpoints(files)) == [32, 64, 96]
    for path in list_checkpoints(run.folder / "checkpoints"):  # the third of them written anew
        store_, _ = open_store(below(there, "a"), writing=False)
        assert store_.read(f"checkpoints/{path.name}/manifest.json", 9999) == (path / "manifest.json").read_bytes()
