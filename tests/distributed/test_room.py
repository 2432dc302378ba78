"""What a network has no room for is named before it is made."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mneme.configuration.config import load_config
from mneme.controllers import Categorical, OneHot, PolicySpec, Vector
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.config import ConfigError
from mneme.distributed.room import check_room, check_update
from mneme.training import train

GIB = 2**30
HIDDEN, STEPS = 64, 128 // 4 * 100  # of a minibatch: a quarter of 128 lanes, 100 steps long
SETTINGS = [f"policy.controller.hidden_size={HIDDEN}", "rollout.num_envs=128", "learner.num_minibatches=4"]


def check(spec: PolicySpec, available: int, *settings: str) -> None:
    check_room(load_config(None, [*SETTINGS, *settings]), spec, 100, available)


@pytest.mark.parametrize(
    ("seen", "actions", "what", "per_step"),
    [(1_000_000, 2, "the observation's part 'day'", 9), (2, 1_000_000, "the action", 16)],
)
def test_a_minibatch_that_does_not_fit_beside_its_weights_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, seen: int, actions: int, what: str, per_step: int
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    spec = PolicySpec({"x": Vector(3), "day": OneHot((seen,))}, Categorical(actions))
    weights, batch = 1_000_000 * HIDDEN * 16, 1_000_000 * STEPS * per_step
    check(spec, weights + batch)
    with pytest.raises(
        ValueError, match=f"^{what} needs .* GiB and more for 1,000,000 numbers, .*raise learner.num_mini"
    ):
        check(spec, weights + batch - 1)
    with pytest.raises(ValueError, match=what):
        check(spec, weights + batch, "rollout.num_envs=256")
    check(spec, weights + batch, "rollout.num_envs=256", "learner.num_minibatches=8")


def test_where_learning_runs_elsewhere_only_the_weights_must_fit_here() -> None:
    spec = PolicySpec({"day": OneHot((1_000_000,))}, Categorical(2))
    check(spec, 1_000_000 * HIDDEN * 16, "service.address=ray://elsewhere:10001")
    with pytest.raises(ValueError, match="'day' needs 1 GiB"):
        check(spec, 1_000_000 * HIDDEN * 16 - 1, "service.address=ray://elsewhere:10001")
    check(spec, 1_000_000 * 8 * 16, "service.address=ray://elsewhere:10001", "policy.encoder=[8]")


LONG = ("env.kwargs.horizon=2047", "rollout.num_envs=64", "rollout.num_workers=1", "policy.controller.hidden_size=32")


@pytest.mark.parametrize(
    ("share", "settings", "named"),
    [
        (0.9, (), {"gradient_accumulation"}),
        (0.4, (), {"gradient_accumulation"}),
        (0.9, ("learner.num_minibatches=64",), {"activation_checkpointing"}),
        (0.63, ("learner.num_minibatches=16",), {"activation_checkpointing", "gradient_accumulation"}),
        (0.001, (), set()),
    ],
)
def test_an_update_that_does_not_fit_is_refused_with_the_setting_that_helps(
    share: float, settings: tuple[str, ...], named: set[str]
) -> None:
    blueprint = make_blueprint(load_config(None, [*LONG, *settings]))
    policy = blueprint.policy()
    nbytes = blueprint.fragment_bytes(policy)

    def check(available: int, **changes: Any) -> None:
        check_update(blueprint.config.changed("learner", **changes), policy, blueprint.length, nbytes, available)

    with pytest.raises(ValueError, match=r"^an update needs about .* of activations, .*; lower rollout.num_envs or"):
        check(0)
    low, high = 0, 2**32
    while high - low > 2**16:
        middle = (low + high) // 2
        try:
            check(middle)
        except ValueError:
            low = middle
        else:
            high = middle
    with pytest.raises(ValueError, match="^an update needs about") as refused:
        check(int(share * high))
    remedy = re.findall(r"learner\.(\w+)=(\w+)", str(refused.value))
    assert {name for name, _ in remedy} == named
    if named:
        check(int(share * high), **{name: True if value == "true" else int(value) for name, value in remedy})
    else:
        assert str(refused.value).endswith("lower rollout.num_envs or rollout.unroll_length")


def test_a_run_that_does_not_fit_says_so_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mneme.readiness.device_memory", lambda device: 2**10)
    with pytest.raises(ConfigError, match="an update needs about"):
        train(load_config(None, [f"checkpoint.root={tmp_path / 'runs'}"]), local=True)
    assert not (tmp_path / "runs").exists()


def test_a_schedule_needs_what_its_largest_stage_needs() -> None:
    """With checkpointing, truncated mode keeps a whole window of K steps, which full mode has no need of."""
    settings = ("env.kwargs.horizon=1023", "rollout.num_envs=64", "learner.activation_checkpointing=true")
    truncated = load_config(None, [*settings, "learner.mode=truncated", "learner.bptt_length=512"]).learner
    scheduled = load_config(
        None, [*settings, "learner.mode_schedule=steps", "learner.bptt_length=8", "learner.max_bptt_length=512"]
    ).learner
    assert truncated in [replace(stage, mode="truncated") for stage in scheduled.stages()]
    assert [(stage.mode, stage.bptt_length) for stage in scheduled.stages()] == [
        (mode, length) for mode in ("cached", "truncated", "full") for length in (8, 512)
    ]
