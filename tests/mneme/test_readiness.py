"""What is said, and what is refused, before a run starts."""

import re
from pathlib import Path

import pytest
from torch import Generator, Tensor

from mneme.configuration.config import load_config
from mneme.controllers import Controller, ControllerSettings
from mneme.controllers.controller import Carry
from mneme.controllers.given import kind_of
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.config import ConfigError
from mneme.readiness import checked_blueprint, reach_warned_of_once, short_reach


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
        ["learner.mode=truncated", "learner.bptt_length=8", "curriculum.start=6"],
        ["learner.mode=traces", "policy.controller.kind=lru", "rollout.unroll_length=8"],
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
        (
            ["learner.mode=truncated", "learner.bptt_length=6", "curriculum.start=6"],
            "go back 6 steps, and .*DelayedCue-v0 asks to remember 6 in its first stage: nothing .*length of 24, ",
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


def test_of_many_runs_that_are_compared_the_first_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = [f"checkpoint.root={tmp_path}", "policy.controller.hidden_size=8", "learner.mode=truncated"]
    with reach_warned_of_once():
        for length in (4, 8, 16):
            checked_blueprint(load_config(None, [*overrides, f"learner.bptt_length={length}"]), local=True)
    (said,) = [record.message for record in caplog.records if "asks to remember 64" in record.message]
    assert said.startswith("gradients go back 4 steps")
    assert said.endswith("; of further runs this is not said")
    caplog.clear()
    for _ in range(2):
        checked_blueprint(load_config(None, [*overrides, "learner.bptt_length=4"]), local=True)
    assert len([record for record in caplog.records if "asks to remember 64" in record.message]) == 2


class Framed(Controller):
    """Its carry has a part of the name that stacked frames have."""

    def __init__(self, input_size: int, settings: ControllerSettings, horizon: int, generator: Generator) -> None:
        super().__init__(input_size, input_size, {"frames": (input_size,)}, learn_initial=False)

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return x_BD + carry["frames"], {"frames": x_BD}


def test_a_carry_with_a_part_of_the_name_that_stacked_frames_have_is_refused(tmp_path: Path) -> None:
    overrides = [f"checkpoint.root={tmp_path}", f"policy.controller.kind={kind_of(Framed)}"]
    checked_blueprint(load_config(None, overrides), local=True)
    with pytest.raises(ConfigError, match=r"Framed', whose carry has a part 'frames', .*; rename that part, or set sp"):
        checked_blueprint(load_config(None, [*overrides, "spaces.stack=2"]), local=True)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([], "the units of gru do not go each by itself, .* choose lru, mingru or nbrc .*, or learner.mode=full"),
        (["policy.controller.kind=lru", "service.mode=async"], "service.mode=async does not keep .* service.mode=sync"),
        (
            ["policy.controller.kind=lru", "rollout.batching=episodes"],
            "rollout.batching=episodes does not keep them in order; use rollout.batching=sequences",
        ),
    ],
)
def test_traces_are_refused_where_there_can_be_none(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        said("learner.mode=traces", *overrides)
