"""Checkpoints are written while training goes on, one after the other, of the state at their step."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mneme import active_run
from mneme.callbacks import Callback, Progress
from mneme.configuration.config import Config, load_config
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.runners import LocalRunner
from mneme.storage.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint, step_of
from mneme.training import resume, train

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "name=a", "tracking.enabled=false", "rollout.num_envs=4", "rollout.num_workers=1", "rollout.unroll_length=8",
    "learner.num_minibatches=1", "learner.num_epochs=1", "learner.num_threads=1", "env.kwargs.horizon=6",
    "policy.controller.hidden_size=8", "policy.controller.backend=torch", "train.total_timesteps=128",
    "checkpoint.every=32", "checkpoint.keep=100", "train.evaluation_episodes=4",
]  # fmt: skip


def small(root: Path, *overrides: str) -> Config:
    return load_config(None, [*SETTINGS, f"checkpoint.root={root}", *overrides])


class Diary(Callback):
    def __init__(self, on_update: Callable[[int], object] = lambda steps: None) -> None:
        self.events: list[str] = []
        self._on_update = on_update

    def on_update(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        self.events.append(f"update {progress.steps}")
        self._on_update(progress.steps)

    def on_checkpoint(self, progress: Progress, path: Path) -> None:
        assert threading.current_thread() is threading.main_thread()
        load_checkpoint(path)
        self.events.append(f"checkpoint {progress.steps} {step_of(path)}")


@pytest.mark.parametrize("more", [[], ["rollout.batching=episodes", "env.id=mneme/Counting-v0", "env.kwargs={}"]])
def test_training_goes_on_while_one_is_written_and_it_holds_what_was_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    run = train(small(tmp_path, *more), local=True, progress=False)
    go = threading.Event()

    def slow(root: Path, step: int, *arguments: Any) -> Path:
        assert step != 32 or go.wait(60), "training waits for a checkpoint"
        return save_checkpoint(root, step, *arguments)

    monkeypatch.setattr(active_run, "save_checkpoint", slow)
    diary = Diary(lambda steps: go.set() if steps >= 64 else None)
    again = train(small(tmp_path, "name=b", *more), local=True, callbacks=[diary], progress=False)
    if not more:
        assert diary.events == [
            "update 32", "update 64", "checkpoint 32 32", "update 96", "checkpoint 64 64", "update 128",
            "checkpoint 96 96", "checkpoint 128 128",
        ]  # fmt: skip
    pairs = zip(*(list_checkpoints(folder / "checkpoints") for folder in (run.folder, again.folder)), strict=True)
    for one, other in pairs:
        assert_same(load_checkpoint(one).arrays, load_checkpoint(other).arrays)


def assert_same(one: dict[str, dict[str, np.ndarray]], other: dict[str, dict[str, np.ndarray]]) -> None:
    assert one.keys() == other.keys()
    for part, arrays in one.items():
        assert arrays.keys() == other[part].keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, other[part][name], err_msg=f"{part}/{name}")


def test_a_state_that_was_taken_does_not_change_as_training_goes_on(tmp_path: Path) -> None:
    packed = ["rollout.batching=episodes", "env.id=mneme/Counting-v0", "env.kwargs={}"]
    for more in ([], packed, ["learner.normalize_rewards=true", "policy.normalize_observations=true"]):
        runner = LocalRunner(make_blueprint(small(tmp_path, *more)))
        runner.start()

        def update(runner: LocalRunner = runner) -> None:
            while not (fragments := [a.fragment for a in runner.collect() if a.fragment is not None]):
                pass
            runner.learn(fragments)

        update()
        state = runner.state()
        parts = [state.learner, *(worker for worker in state.workers if worker is not None)]
        before = [{name: array.copy() for name, array in part.items()} for part in parts]
        update()
        for part, copies in zip(parts, before, strict=True):
            for name, array in part.items():
                np.testing.assert_array_equal(array, copies[name], err_msg=name)
        runner.close()


KILLED = """
import os, sys
from itertools import count
from mneme.storage import checkpoint
from tests.mneme.test_active_run import small
from mneme.training import train
calls = count(1)
flush = checkpoint._flush

def hanging(path):
    if next(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), 9)
    flush(path)

checkpoint._flush = hanging
train(small(sys.argv[1]), local=True, progress=False)
"""


@pytest.mark.parametrize(("moment", "newest"), [(7, 32), (9, 32), (11, 32), (12, 64)])
def test_a_kill_while_one_is_written_leaves_the_one_before_to_go_on_from(
    tmp_path: Path, moment: int, newest: int
) -> None:
    """Each flushes four files, their folder and, once it is renamed, that above; the second is killed on its way."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(moment)], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    path, _ = find_checkpoint(tmp_path / "a")
    assert step_of(path) == newest
    whole = train(small(tmp_path, "name=b"), local=True, progress=False)
    went_on = resume(tmp_path / "a", local=True, progress=False)
    assert_same(find_checkpoint(went_on.folder)[1].arrays, find_checkpoint(whole.folder)[1].arrays)
