"""A trial: an ordinary run in the background, which tells of its evaluations, and stops and goes on when asked."""

import math
from pathlib import Path
from typing import Any

import pytest

import mneme.experiments.sweep.trial as module
from mneme.callbacks import Look
from mneme.configuration.config import Config, load_config
from mneme.distributed.runners import LocalRunner
from mneme.distributed.search_space import Report
from mneme.experiments.sweep.trial import RunningTrial, seconds_of
from mneme.rollout_workers import Evaluation, EvaluationError
from mneme.storage.checkpoint import list_checkpoints

METRIC = "evaluation/return"
pytestmark = pytest.mark.usefixtures("undrawn")


def small(tmp_path: Path, *overrides: str) -> Config:
    return load_config(None, [
        "env={id: mneme/Counting-v0}", f"checkpoint.root={tmp_path}", "name=run", "rollout.num_envs=4",
        "rollout.num_workers=1", "rollout.unroll_length=10", "train.total_timesteps=120", "train.evaluate_every=40",
        "train.evaluation_episodes=4", "learner.num_minibatches=1", "learner.num_threads=1",
        "policy.controller.hidden_size=4", "tracking.enabled=false", *overrides,
    ])  # fmt: skip


def reports(trial: RunningTrial) -> list[Report]:
    """All that it tells until it is done."""
    told: list[Report] = []
    while not told or not told[-1].get("done"):
        if METRIC in (news := trial.report(20.0)):
            told.append(news)
    return told


def test_it_tells_of_every_evaluation_and_of_its_result(tmp_path: Path) -> None:
    trial = RunningTrial(small(tmp_path), METRIC)
    told = reports(trial)
    trial.stop()
    assert [report["steps"] for report in told] == [40, 80, 120]
    assert (told[-1]["outcome"], told[-1]["seconds"] > 0) == ("complete", True)
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")][-1] == "step-000000000120"


def test_stopped_it_keeps_a_checkpoint_and_another_process_goes_on_and_tells_of_what_was_before(tmp_path: Path) -> None:
    trial = RunningTrial(small(tmp_path, "train.total_timesteps=4000000"), METRIC)
    assert METRIC in trial.report(20.0)
    trial.stop()
    (kept,) = list_checkpoints(tmp_path / "run" / "checkpoints")[-1:]
    steps = int(kept.name.removeprefix("step-"))
    assert steps >= 40
    again = RunningTrial(small(tmp_path, "train.total_timesteps=4000000"), METRIC)
    assert again.report(20.0)["steps"] == 40
    while again.report(0.1)["steps"] <= steps:
        pass
    again.stop()


def test_nothing_new_is_told_with_the_steps_so_far(tmp_path: Path) -> None:
    trial = RunningTrial(small(tmp_path, "train.total_timesteps=4000000", "train.evaluate_every=4000000"), METRIC)
    while not trial.report(0.05)["steps"]:
        pass
    assert trial.report(0.0).keys() == {"steps"}
    trial.stop()


def test_a_run_that_fails_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverges(*_: Any, **__: Any) -> None:
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr(module, "train", diverges)
    report = RunningTrial(small(tmp_path), METRIC).report(20.0)
    assert (report["failure"], report["done"]) == ("the loss is nan", True)
    assert math.isnan(report[METRIC])


def test_without_a_result_an_evaluation_on_the_way_does_not_stand_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = LocalRunner.evaluate

    def no_result(runner: LocalRunner, episodes: int, seed: int) -> Evaluation:
        if seed == Look.RESULT.seed(0, 120):
            raise EvaluationError("the licence is taken")
        return evaluate(runner, episodes, seed)

    monkeypatch.setattr(LocalRunner, "evaluate", no_result)
    told = reports(RunningTrial(small(tmp_path), METRIC))
    assert [report["steps"] for report in told] == [40, 80, 120]
    assert told[-1]["failure"] == f"the evaluation at the end came to no result with {METRIC}"


def test_seconds_are_those_of_training() -> None:
    rows = [
        {"step": 100.0, "steps_per_second": 50.0},
        {"step": 100.0, "evaluation/return": 1.0},
        {"step": 300.0, "steps_per_second": 100.0},
    ]
    assert seconds_of(rows) == 4.0
