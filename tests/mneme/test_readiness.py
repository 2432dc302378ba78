"""What is said before a run starts of how far its gradients go back."""

import re
from pathlib import Path

import pytest

from mneme.configuration.config import load_config
from mneme.distributed.blueprint import make_blueprint
from mneme.readiness import checked_blueprint, short_reach


def said(*overrides: str) -> str | None:
    base = ["env.kwargs.horizon=12", "rollout.num_envs=8", "policy.controller.hidden_size=8"]
    return short_reach(make_blueprint(load_config(None, [*base, *overrides])))


@pytest.mark.parametrize(
    "overrides",
    [
        ["learner.mode=full"],
        ["learner.mode=truncated", "learner.bptt_length=13"],
        ["learner.mode=truncated", "learner.bptt_length=4", "learner.max_bptt_length=16"],
        ["learner.mode=cached", "policy.controller.kind=mlp"],
        ["learner.mode_schedule=plateau"],
        ["learner.mode=cached", "env.id=mneme/Counting-v0", "env.kwargs={}"],
        ["learner.mode=cached", "env.id=CartPole-v1", "env.kwargs={}"],
    ],
)
def test_nothing_is_said_where_gradients_reach_or_nobody_knows_how_far_they_should(overrides: list[str]) -> None:
    assert said(*overrides) is None


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["learner.mode=cached"],
            "gradients go back 1 step, and .*DelayedCue-v0 asks .* 12: .* use learner.mode=full, u",
        ),
        (
            ["learner.mode=truncated", "learner.bptt_length=12"],
            "gradients go back 12 steps, .* use learner.mode=full or a learner.bptt_length of 48, unless it is",
        ),
        (
            ["rollout.unroll_length=8"],
            "go back 8 steps, .*use a rollout.unroll_length above 12, with learner.mode=full",
        ),
    ],
)
def test_a_reach_below_the_horizon_is_warned_of(overrides: list[str], sentence: str) -> None:
    found = said(*overrides)
    assert found is not None
    assert "\n" not in found
    assert re.search(sentence, found)


def test_the_warning_comes_before_a_run_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    overrides = [f"checkpoint.root={tmp_path}", "learner.mode=cached", "policy.controller.hidden_size=8"]
    checked_blueprint(load_config(None, overrides), local=True)
    assert [record.levelname for record in caplog.records if "asks to remember 64" in record.message] == ["WARNING"]
