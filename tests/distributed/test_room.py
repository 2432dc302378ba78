"""What a network has no room for is named before it is made."""

import pytest

from mneme.configuration.config import load_config
from mneme.controllers import Categorical, OneHot, PolicySpec, Vector
from mneme.distributed.room import check_room

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
