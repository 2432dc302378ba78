"""The update that ends a run because its gradients are not finite is kept, and fails again in the same words."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mneme.cli import main
from mneme.configuration.config import load_config
from mneme.distributed.runners import LocalRunner
from mneme.learner import FailedUpdate, Learner, NonfiniteGradient
from mneme.learner.optimizer import Optimizer
from mneme.rollout_workers import Fragment
from mneme.storage.checkpoint import CheckpointError, load_checkpoint
from mneme.storage.failed_update import find_failed_update, save_failed_update
from mneme.training import train

SMALL = [
    "name=run", "rollout.num_envs=8", "rollout.num_workers=2", "env.kwargs.horizon=6", "tracking.enabled=false",
    "policy.controller.hidden_size=8", "policy.controller.backend=torch", "learner.num_threads=1",
    "learner.normalize_advantages=none", "learner.max_nonfinite=6", "learner.num_minibatches=2",
    "learner.num_epochs=2", "policy.normalize_observations=true", "learner.normalize_rewards=true",
]  # fmt: skip


@pytest.fixture
def failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None) -> tuple[Path, str, list[pa.RecordBatch]]:
    """A run whose values overflow from its third update on; its folder, its last words, and its last fragments."""
    learn, last = LocalRunner.learn, []

    def spoilt(self: LocalRunner, fragments: Any) -> Any:
        if self.version >= 2:
            fragments = [_overflowing(batch) for batch in fragments]
        last[:] = fragments
        return learn(self, fragments)

    monkeypatch.setattr(LocalRunner, "learn", spoilt)
    with pytest.raises(FloatingPointError) as ended:
        train(load_config(None, [*SMALL, f"checkpoint.root={tmp_path}"]), local=True, progress=False)
    return tmp_path / "run", str(ended.value), last


def _overflowing(batch: pa.RecordBatch) -> pa.RecordBatch:
    fragment = Fragment.from_arrow(batch)
    return replace(fragment, values=np.full_like(fragment.values, 3e38)).to_arrow()


def test_the_update_is_kept_whole_and_one_command_reproduces_it(
    failed: tuple[Path, str, list[pa.RecordBatch]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, words, last = failed
    sentence, _, remedy = words.partition("; the update is kept in ")
    assert "weights version 3" in sentence  # four skipped in the third update, and the seventh in the fourth
    assert remedy.endswith(f": see it again with: mneme reproduce {folder}")
    path, batches = find_failed_update(folder)
    assert path.parent == folder / "nonfinite"
    assert all(a.equals(b) for a, b in zip(batches, last, strict=True))
    for given in (folder, folder / "nonfinite", path):
        capsys.readouterr()
        assert main(["reproduce", str(given)]) == 0
        assert capsys.readouterr().out == f"{sentence}\n"


def test_it_is_said_if_the_update_does_not_fail_here(
    failed: tuple[Path, str, list[pa.RecordBatch]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Optimizer, "_apply", lambda self: 1.0)
    assert main(["reproduce", str(failed[0])]) == 1
    assert "every gradient of this update is finite here" in capsys.readouterr().err


def test_a_disk_that_is_full_costs_the_update_not_the_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    def fail(self: Learner, batches: Any) -> Any:
        error = NonfiniteGradient("the gradient norm is nan")
        error.update = FailedUpdate(self.state(), tuple(batches))
        raise error

    def full(*_: Any, **__: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Learner, "update", fail)
    monkeypatch.setattr("mneme.storage.failed_update.save_checkpoint", full)
    with pytest.raises(
        FloatingPointError, match="^the gradient norm is nan; the update could not be kept: .*disk is full"
    ):
        train(load_config(None, [*SMALL, f"checkpoint.root={tmp_path}"]), local=True, progress=False)


def test_the_last_to_end_the_run_is_kept_though_it_may_be_of_an_earlier_step(
    failed: tuple[Path, str, list[pa.RecordBatch]],
) -> None:
    folder, _, last = failed
    path, _ = find_failed_update(folder)
    saved = load_checkpoint(path)
    run = {name: value for name, value in saved.run.items() if name != "format"}
    for step in (3, 7, 7):
        kept = save_failed_update(folder, step, run, FailedUpdate(saved.arrays["learner"], tuple(last[:1])))
        assert list((folder / "nonfinite").iterdir()) == [kept]
        assert len(find_failed_update(folder)[1]) == 1


def test_what_is_no_such_update_is_refused(
    failed: tuple[Path, str, list[pa.RecordBatch]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, _ = failed
    path, _ = find_failed_update(folder)
    (path / "fragment-1.arrow").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="the fragments in .* are damaged"):
        find_failed_update(folder)
    for file in path.glob("*.arrow"):
        file.unlink()
    with pytest.raises(CheckpointError, match="holds no fragments"):
        find_failed_update(path)
    shutil.rmtree(folder / "nonfinite")
    assert main(["reproduce", str(folder)]) == 2
    assert "no update of" in capsys.readouterr().err


def test_the_exception_carries_the_update_from_one_process_to_another() -> None:
    error = NonfiniteGradient("the gradient norm is nan")
    error.update = FailedUpdate({"a": np.arange(3)}, (pa.record_batch({"x": [1, 2]}),))
    received = pickle.loads(pickle.dumps(error))
    assert str(received) == "the gradient norm is nan"
    assert received.update.batches[0].equals(error.update.batches[0])
    np.testing.assert_array_equal(received.update.state["a"], np.arange(3))
