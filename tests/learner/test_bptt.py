"""Backpropagation through time over a run: the schedule's modes, a K that adapts, and what it goes by."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mneme.controllers import CONTROLLERS
from mneme.learner import Learner, LearnerSettings
from mneme.learner.batch import SequenceBatch
from mneme.learner.bptt import Bptt, carry_gradient_ratio
from mneme.learner.group import Group
from mneme.learner.ppo import loss_of, steps_of
from mneme.learner.returns import Returns, gae
from mneme.learner.whole_batch import WholeBatch
from mneme.learner.windows import Piece
from mneme.rollout_workers import Collector

ADAPTIVE: dict[str, Any] = {"mode": "truncated", "bptt_length": 2, "max_bptt_length": 8}


def modes_at(settings: LearnerSettings, steps: list[int], total: int = 100) -> list[str]:
    bptt, modes = Bptt(settings, total), []
    for step in steps:
        bptt.advance(step)
        modes.append(bptt.settings.mode)
    return modes


def test_a_schedule_by_steps_goes_through_the_modes() -> None:
    settings = LearnerSettings(mode_schedule="steps", mode_switches=(0.2, 0.5))
    assert modes_at(settings, [0, 19, 20, 49, 50, 99]) == ["cached"] * 2 + ["truncated"] * 2 + ["full"] * 2
    assert modes_at(LearnerSettings(mode_schedule="steps"), [33, 34, 66, 67]) == [
        "cached", "truncated", "truncated", "full",
    ]  # fmt: skip
    assert modes_at(LearnerSettings(mode="truncated", mode_schedule="steps"), [49, 50]) == ["cached", "truncated"]
    assert modes_at(LearnerSettings(mode="cached"), [0, 99]) == ["cached"] * 2


def test_a_run_that_is_extended_does_not_go_back() -> None:
    short = Bptt(LearnerSettings(mode_schedule="steps"), 100)
    short.advance(90)
    longer = Bptt(LearnerSettings(mode_schedule="steps"), 1000)
    longer.set_state(short.state())
    longer.advance(95)
    assert longer.settings.mode == "full"


def test_the_next_mode_is_entered_when_asked_for_and_the_last_stays() -> None:
    bptt, seen = Bptt(LearnerSettings(mode_schedule="plateau"), 100), []
    for _ in range(4):
        seen.append(bptt.settings.mode)
        bptt.next_mode()
        bptt.advance(99)  # steps have no say
    assert seen == ["cached", "truncated", "full", "full"]


@pytest.mark.parametrize(
    ("ratio", "lengths"), [(0.6, [2, 4, 8, 8]), (0.3, [2, 2, 2, 2]), (0.0, [2, 2, 2, 2]), (5.0, [2, 4, 8, 8])]
)
def test_k_grows_within_its_bounds_while_the_gradient_reaches_the_start(ratio: float, lengths: list[int]) -> None:
    bptt, seen = Bptt(LearnerSettings(**ADAPTIVE), 100), []
    for _ in range(4):
        seen.append(bptt.settings.bptt_length)
        for _look in range(4):
            bptt.look(ratio)
    assert seen == lengths


def test_k_shrinks_where_the_gradient_has_faded_and_not_from_what_it_grew_by() -> None:
    """A gradient that fades by half a window to r fades by a whole one to r * r: 0.51 grows K, and 0.26 keeps it."""
    bptt = Bptt(LearnerSettings(**ADAPTIVE), 100)
    for ratio, length in [(0.51, 4), (0.51**2, 4), (0.51**2, 4), (0.05, 2), (0.05, 2)]:
        for _ in range(4):
            bptt.look(ratio)
        assert bptt.settings.bptt_length == length


def test_the_mean_of_several_looks_decides() -> None:
    bptt = Bptt(LearnerSettings(**ADAPTIVE), 100)
    for ratio in (0.9, 0.9, 0.9, 0.01):  # geometric mean 0.29
        bptt.look(ratio)
    assert bptt.settings.bptt_length == 2


def batch_of(collector: Collector) -> tuple[SequenceBatch, Returns]:
    batch = SequenceBatch.from_fragments([collector.collect()[0]], torch.device("cpu"))
    ends = (batch.final_values, batch.terminated, batch.truncated, batch.valid)
    return batch, gae(batch.rewards, batch.values, *ends, gamma=0.9, lam=0.8)


@pytest.mark.parametrize("kind", list(CONTROLLERS))
def test_the_ratio_is_that_of_two_gradients_by_hand(counting_collector: Callable[..., Collector], kind: str) -> None:
    """One window at the end of the sequence: the gradient in its first carry, and in the carry in its middle, of the
    lanes that go on through its first half."""
    T, K = 7, 4
    collector = counting_collector(kind=kind, length=T, lanes=5)
    for _ in range(3):  # so that some lanes do not begin an episode there
        batch, returns = batch_of(collector)
    policy, s = collector.policy, LearnerSettings(mode="truncated", bptt_length=K)
    found = carry_gradient_ratio(policy, s, batch, returns, WholeBatch.of(Group(), batch))
    plan = LearnerSettings(mode="full").plan(T)
    steps, carry = steps_of(policy, plan, batch, returns, Piece(torch.arange(5), range(1)))
    goes_on = ~steps.resets[T - K : T - K // 2].any(0)
    assert goes_on.any()
    assert not goes_on.all()

    def norm(start: int) -> float:
        with torch.no_grad():
            before = steps.between(slice(0, start))
            leaves = policy.scan(before.observations, before.resets, carry).carry
        leaves = {name: x.detach().requires_grad_(x.is_floating_point()) for name, x in leaves.items()}
        total = loss_of(policy, s, steps.between(slice(start, T)), leaves, 5, None).total
        wanted = [x for x in leaves.values() if x.requires_grad]
        found = [g for g in torch.autograd.grad(total, wanted, allow_unused=True) if g is not None] if wanted else []
        return float(torch.cat([g.flatten(1) for g in found], 1).norm(dim=1)[goes_on].sum()) if found else 0.0

    if kind == "mlp":
        assert found is None
    else:
        assert found == pytest.approx(norm(T - K) / norm(T - K // 2), rel=1e-4)
        assert found > 0


def test_nothing_is_said_of_what_is_not_cut_or_begins_anew(counting_collector: Callable[..., Collector]) -> None:
    batch, returns = batch_of(counting_collector(length=6))
    whole = WholeBatch.of(Group(), batch)
    policy = counting_collector().policy
    for K in (1, 6, 7):
        assert carry_gradient_ratio(policy, LearnerSettings(bptt_length=K), batch, returns, whole) is None
    begun = replace(batch, resets=torch.ones_like(batch.resets))
    assert carry_gradient_ratio(policy, LearnerSettings(bptt_length=3), begun, returns, whole) is None
    bptt = Bptt(LearnerSettings(**ADAPTIVE), 100)
    for _ in range(8):
        bptt.look(None)
    assert bptt.state() == Bptt(LearnerSettings(**ADAPTIVE), 100).state()


@pytest.mark.parametrize("kind", ["gru", "mamba2", "transformer"])
@pytest.mark.parametrize("length", [7, 16])
def test_looking_changes_nothing(counting_collector: Callable[..., Collector], kind: str, length: int) -> None:
    collector = counting_collector(kind=kind, length=length)
    batch, returns = batch_of(collector)
    policy = collector.policy
    before = [parameter.clone() for parameter in policy.parameters()]
    s = LearnerSettings(mode="truncated", bptt_length=4, max_bptt_length=8)
    first, second = (carry_gradient_ratio(policy, s, batch, returns, WholeBatch.of(Group(), batch)) for _ in range(2))
    assert first == second
    assert first is not None
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in policy.parameters())


@pytest.mark.parametrize("schedule", ["steps", "plateau"])
def test_a_state_continues_schedule_and_adaptation_to_the_bit(
    counting_collector: Callable[..., Collector], schedule: Any
) -> None:
    settings = LearnerSettings(
        num_epochs=1, num_minibatches=2, num_threads=1, mode="full", mode_schedule=schedule, bptt_length=2,
        max_bptt_length=8,
    )  # fmt: skip
    collector = counting_collector(settings)
    fragments = [collector.collect()[0].to_arrow() for _ in range(12)]
    total = 12 * fragments[0].num_rows * collector.length

    def learner() -> Learner:
        return Learner(counting_collector(settings).policy, settings, seed=0, total_timesteps=total)

    straight, resumed, reaches = learner(), learner(), []
    for i, fragment in enumerate(fragments):
        if schedule == "plateau" and i in (2, 9):
            straight.next_mode()
        if i == 6:
            resumed.set_state(straight.state())
            assert straight.state().keys() == straight.expected_state().keys()
        metrics = straight.update([fragment]).metrics
        reaches.append(metrics["bptt_length"])
        assert ("carry_gradient" in metrics) == (reaches[-1] not in (1, collector.length))
        if i >= 6:
            if schedule == "plateau" and i == 9:
                resumed.next_mode()
            assert resumed.update([fragment]).metrics["bptt_length"] == reaches[-1]
    assert reaches[0] == 1
    assert reaches[-1] == collector.length
    assert len(set(reaches)) >= 3
    a, b = straight.state(), resumed.state()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize(
    ("state", "sentence"),
    [({"bptt.stage": 3}, "bptt.stage is 3; there are 3 modes"), ({"bptt.length": 9}, "is 9; it must be from 2 to 8")],
)
def test_a_state_that_cannot_be_is_refused(state: dict[str, int], sentence: str) -> None:
    bptt = Bptt(LearnerSettings(**ADAPTIVE | {"mode": "full", "mode_schedule": "steps"}), 100)
    with pytest.raises(ValueError, match=sentence):
        bptt.set_state(bptt.state() | {name: np.array(value) for name, value in state.items()})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mode_schedule": "steps", "mode": "cached"}, "mode=cached has no mode before it; set mode=truncated or"),
        ({"mode_schedule": "steps", "carry_source": "stored"}, "mode_schedule is 'steps'; it needs carry_source=fresh"),
        (ADAPTIVE | {"carry_source": "stored"}, "max_bptt_length is 8; it needs carry_source=fresh"),
        (ADAPTIVE | {"mode": "full"}, "mode=full has no K; set mode=truncated, or mode_schedule"),
        (ADAPTIVE | {"bptt_length": 9}, "max_bptt_length is 8; K starts at bptt_length=9: from 2, not above it"),
        (ADAPTIVE | {"bptt_length": 1}, "max_bptt_length is 8; K starts at bptt_length=1: from 2, not above it"),
        ({"mode_switches": (0.1, 0.2)}, "they belong to mode_schedule=steps; set that, or leave them out"),
        (
            {"mode_schedule": "steps", "mode_switches": (0.1,)},
            "give 2 from 0 to 1, rising: cached -> truncated",
        ),
        ({"mode_schedule": "steps", "mode_switches": (0.5, 0.2)}, "give 2 from 0 to 1, rising"),
        ({"mode_patience": 0}, "learner.mode_patience is 0; it must be at least 1"),
    ],
)
def test_settings_refuse_what_cannot_work(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LearnerSettings(**changes)
