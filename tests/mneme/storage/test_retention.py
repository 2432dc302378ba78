"""The newest checkpoints, the best one and those at every so many steps are kept, and no other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mneme.callbacks import Callback, Progress
from mneme.configuration.config import load_config
from mneme.distributed.runners import LocalRunner
from mneme.rollout_workers import Evaluation
from mneme.storage.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint, step_of
from mneme.storage.retention import Best, superseded
from mneme.training import resume, train


@pytest.mark.parametrize(
    ("keep", "keep_every", "best", "kept"),
    [
        (1, None, None, {110}),
        (3, None, None, {70, 90, 110}),
        (100, None, None, {10, 30, 50, 70, 90, 110}),
        (1, None, 30, {30, 110}),
        (1, None, 110, {110}),
        (1, None, 31, {110}),  # whose checkpoint could not be written
        (1, 50, None, {50, 110}),  # 110 is the first at or after 100
        (1, 40, None, {50, 90, 110}),
        (1, 1000, None, {110}),
        (2, 50, 10, {10, 50, 90, 110}),
    ],
)
def test_of_these_checkpoints_those_are_kept(
    keep: int, keep_every: int | None, best: int | None, kept: set[int]
) -> None:
    steps = [90, 10, 30, 110, 50, 70]
    assert set(steps) - superseded(steps, keep, keep_every, best) == kept


def test_what_is_kept_for_ever_is_kept_as_one_checkpoint_after_another_comes(tmp_path: Path) -> None:
    for step in range(30, 1000, 30):
        save_checkpoint(tmp_path, step, {}, {"learner": {}}, 2, 200, 120)
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [120, 210, 420, 600, 810, 960, 990]


def evaluation(mean_return: float, success: float | None = None) -> Evaluation:
    successes = np.array([]) if success is None else np.arange(10) < 10 * success
    return Evaluation(np.full(10, mean_return), np.ones(10, int), successes, np.arange(10, dtype=np.uint64))


def test_the_best_is_that_of_most_success_and_then_of_the_highest_return() -> None:
    best = None
    for step, (mean_return, success, expected) in enumerate(
        [(1.0, 0.1, 0), (2.0, 0.1, 1), (2.0, 0.1, 1), (0.0, 0.2, 3), (9.0, 0.1, 3), (np.nan, 1.0, 3), (0.0, 1.0, 6)]
    ):
        best = Best.of(step, evaluation(mean_return, success), best)
        assert best is not None and best.step == expected and Best.fits(best._asdict())


class Scripted(Callback):
    """Lets evaluations have the returns of a list, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, returns: list[float]) -> None:
        given: Iterator[float] = iter(returns)
        monkeypatch.setattr(LocalRunner, "evaluate", lambda *_: evaluation(next(given)))
        self.saved: list[int] = []

    def on_checkpoint(self, progress: Progress, path: Path) -> None:
        self.saved.append(progress.steps)


@pytest.mark.usefixtures("undrawn")
def test_the_best_of_a_run_and_of_its_continuation_is_saved_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [
        f"checkpoint.root={tmp_path}", "tracking.enabled=false", "rollout.num_envs=4", "rollout.unroll_length=8",
        "learner.num_minibatches=1", "learner.num_epochs=1", "learner.num_threads=1", "env.kwargs.horizon=6",
        "policy.controller.hidden_size=8", "policy.controller.backend=torch", "train.total_timesteps=192",
        "train.evaluate_every=32", "checkpoint.every=64", "checkpoint.keep=1", "name=a",
    ]  # fmt: skip
    told = Scripted(monkeypatch, [1.0, 0.5, 3.0, 2.0, 2.5, 9.0])  # at 32, 64, ... and 160; then the result
    run = train(load_config(None, settings), local=True, callbacks=[told], progress=False)
    assert told.saved == [32, 64, 96, 128, 192]

    def kept() -> list[int]:
        return [step_of(path) for path in list_checkpoints(run.folder / "checkpoints")]

    assert kept() == [96, 192]
    told = Scripted(monkeypatch, [2.75, 3.5, 9.0])  # at 224 and 256, and the result
    resume(run.folder, "train.total_timesteps=288", local=True, callbacks=[told], progress=False)
    assert kept() == [256, 288]
    newest: dict[str, Any] = load_checkpoint(list_checkpoints(run.folder / "checkpoints")[-1]).run
    assert newest["best"] == {"step": 256, "score": [0.0, 3.5]}
