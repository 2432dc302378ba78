"""The schedule of modes that goes by returns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mneme.configuration.config import load_config
from mneme.distributed.config import ConfigError
from mneme.learner import LearnerSettings
from mneme.mode_schedule import ModeSchedule
from mneme.storage.checkpoint import list_checkpoints, load_checkpoint
from mneme.storage.run_folder import RunFolder
from mneme.training import resume, train

SMALL = (
    "rollout.num_envs=8", "rollout.num_workers=2", "env.kwargs.horizon=6", "policy.controller.hidden_size=8",
    "learner.num_epochs=1", "learner.num_minibatches=1", "learner.num_threads=1", "train.evaluation_episodes=16",
    "tracking.enabled=false", "train.stop_success=null",
)  # fmt: skip


def schedule(kind: Any = "plateau", patience: int = 3, **settings: Any) -> ModeSchedule:
    return ModeSchedule(LearnerSettings(mode_schedule=kind, mode_patience=patience, **settings))


def switches(watched: ModeSchedule, returns: list[float]) -> list[int]:
    return [i for i, value in enumerate(returns) if watched.trained(value)]


def test_a_return_that_stands_still_brings_the_next_mode_twice_and_no_more() -> None:
    watched = schedule()
    assert watched.mode == "cached"
    assert switches(watched, [0.5] * 20) == [5, 11]
    assert watched.mode == "full"


def test_a_return_that_rises_keeps_the_mode() -> None:
    assert switches(schedule(), [0.1 * i for i in range(20)]) == []


def test_noise_is_no_rise() -> None:
    noise = np.random.default_rng(0).normal(size=40)
    assert switches(schedule(patience=20), list(noise)) == [39]
    assert switches(schedule(patience=20), list(noise + np.repeat([0.0, 5.0], 20))) == []


def test_what_was_before_a_new_level_does_not_count() -> None:
    watched = schedule()
    assert switches(watched, [1.0] * 5) == []
    watched.forget()
    assert switches(watched, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == []


def test_updates_without_episodes_and_returns_of_the_other_kind_say_nothing() -> None:
    watched = schedule()
    assert switches(watched, [0.5, float("nan")] * 5 + [0.5]) == [10]
    assert not any(watched.evaluated(0.5) for _ in range(20))
    assert not any(schedule("steps").trained(0.5) for _ in range(20))
    assert not any(schedule("constant").trained(0.5) for _ in range(20))


def test_a_state_goes_on_and_is_judged() -> None:
    straight, resumed = schedule(), schedule()
    switches(straight, [0.5] * 8)
    assert resumed.fits(straight.state())
    resumed.set_state(straight.state())
    assert switches(straight, [0.5] * 9) == switches(resumed, [0.5] * 9) == [3]
    for wrong in ({"stage": 3}, {"stage": True}, {"returns": [1]}, {"returns": [0.0] * 7}, {"returns": [np.inf]}):
        assert not resumed.fits(straight.state() | wrong)
    assert not resumed.fits(None)


def test_what_cannot_be_evaluated_is_refused() -> None:
    config = load_config(None, [*SMALL, "learner.mode_schedule=evaluation_plateau"])
    with pytest.raises(ConfigError, match=r"no regular evaluations; set train.evaluate_every, or use plateau"):
        train(config, local=True)


@pytest.mark.parametrize(
    "settings",
    [
        ("learner.mode_schedule=steps", "learner.mode_switches=[0.2, 0.6]"),
        ("learner.mode_schedule=plateau", "learner.mode_patience=1"),
        ("learner.mode_schedule=evaluation_plateau", "learner.mode_patience=1", "train.evaluate_every=112"),
        ("learner.mode=truncated", "learner.bptt_length=2", "learner.max_bptt_length=4"),
        ("learner.mode_schedule=steps", "learner.bptt_length=2", "learner.max_bptt_length=4"),
    ],
    ids=["steps", "plateau", "evaluation", "adaptive", "both"],
)
def test_a_run_that_is_resumed_inside_its_schedule_is_the_one_that_was_not_stopped(
    tmp_path: Path, settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    every = ("train.total_timesteps=900", "checkpoint.every=112", "checkpoint.keep=20", *settings)
    run = train(load_config(None, [*SMALL, *every, f"checkpoint.root={tmp_path}", "name=run"]), local=True)
    rows = RunFolder(run.folder).history()
    reaches = [row["bptt_length"] for row in rows if "bptt_length" in row]
    assert len(set(reaches)) > 1
    assert "gradients now go back" in capsys.readouterr().out
    checkpoints = list_checkpoints(run.folder / "checkpoints")
    last = load_checkpoint(checkpoints[-1])
    for path in checkpoints[-2::-3]:
        resume(path, local=True)
        again = load_checkpoint(list_checkpoints(run.folder / "checkpoints")[-1])
        for part, arrays in last.arrays.items():
            for name, array in arrays.items():
                np.testing.assert_array_equal(again.arrays[part][name], array, err_msg=f"{path}: {part} {name}")
        assert again.run["mode_schedule"] == last.run["mode_schedule"]
        said = [row.get("bptt_length") for row in RunFolder(run.folder).history()]
        assert said == [row.get("bptt_length") for row in rows]
