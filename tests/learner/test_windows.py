"""The window engine: cutting, the carries that windows start from, and how far a gradient reaches."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mneme.learner.batch import SequenceBatch
from mneme.learner.carries import StoredCarries
from mneme.learner.settings import LearnerSettings, WindowPlan
from mneme.learner.windows import Piece, cut, pieces, stored_carries, window_carries, windows_of
from mneme.rollout_workers import Collector

CPU = torch.device("cpu")


def join(x_KW: torch.Tensor, length: int) -> torch.Tensor:
    """The inverse of `cut`: [K, W, ...] to [N, T, ...]."""
    K, W = x_KW.shape[:2]
    C = -(-length // K)
    return x_KW.transpose(0, 1).reshape(W // C, C * K, *x_KW.shape[2:])[:, :length]


@pytest.mark.parametrize("window", [1, 4, 5, 10])
def test_cut_numbers_every_step_once_and_join_undoes_it(window: int) -> None:
    N, T = 3, 10
    steps = torch.arange(N * T).reshape(N, T)
    x, mask = cut(steps, window), cut(torch.ones(N, T, dtype=torch.bool), window)
    C = -(-T // window)
    assert x.shape == (window, N * C)
    for n in range(N):
        for t in range(T):
            assert x[t % window, n * C + t // window] == n * T + t
    assert int(mask.sum()) == N * T
    assert torch.equal(x[mask].sort().values, torch.arange(N * T))
    assert torch.equal(join(x, T), steps)


def test_modes_are_windows_of_the_same_engine() -> None:
    def plan(mode: Any, source: Any, length: int = 32, burn_in: int = 0) -> WindowPlan:
        settings = LearnerSettings(mode=mode, bptt_length=length, burn_in=burn_in, carry_source=source)
        return settings.plan(65)

    assert {plan("full", source) for source in ("fresh", "stored")} == {WindowPlan(65, 65, 0, 65, 65)}
    assert plan("cached", "fresh") == WindowPlan(65, 1, 0, 65, 65)
    assert plan("cached", "stored") == WindowPlan(1, 1, 0, 1, 1)
    assert plan("truncated", "fresh", 16) == WindowPlan(65, 16, 0, 65, 65)
    assert plan("truncated", "zero", 16) == WindowPlan(16, 16, 0, 65, 16, from_zero=True)
    assert plan("truncated", "stored", 16) == WindowPlan(16, 16, 0, 16, 16)
    assert plan("truncated", "stored", 16, burn_in=4) == WindowPlan(16, 16, 4, 4, 16)
    assert plan("truncated", "stored", 100, burn_in=4) == WindowPlan(65, 65, 0, 65, 65)


def whole_of(batch: SequenceBatch, plan: WindowPlan) -> Piece:
    """All windows of all sequences."""
    return Piece(torch.arange(batch.sequences), range(-(-batch.length // plan.window)))


def test_a_missing_carry_is_an_error_not_zeros(counting_collector: Callable[..., Collector]) -> None:
    collector = counting_collector(LearnerSettings(mode="truncated", bptt_length=8, carry_source="stored"), length=20)
    batch = SequenceBatch.from_fragments([collector.collect()[0]], CPU)
    with pytest.raises(ValueError, match="set rollout.carry_stride to a divisor of 4"):
        window_carries(collector.policy, WindowPlan(4, 4, 0, 4, 4), batch, whole_of(batch, WindowPlan(4, 4, 0, 4, 4)))


def test_stored_carries_are_those_of_the_steps_where_windows_start(
    counting_collector: Callable[..., Collector],
) -> None:
    collector = counting_collector(LearnerSettings(mode="truncated", bptt_length=2, carry_source="stored"), length=20)
    batch = SequenceBatch.from_fragments([collector.collect()[0]], CPU)
    rows = torch.tensor([4, 1])
    assert torch.equal(stored_carries(batch, rows, range(6, 18, 6))["h"], batch.carries["h"][rows][:, [3, 6]])
    assert torch.equal(stored_carries(batch, rows, range(0, 20, 20))["h"], batch.carries["h"][rows][:, :1])


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize(("window", "burn_in"), [(6, 0), (6, 3), (6, 6), (1, 0), (23, 0)])
def test_windows_join_to_one_pass(
    counting_collector: Callable[..., Collector], kind: str, window: int, burn_in: int
) -> None:
    """Windows that start from carries stored under the same weights give what one scan over all gives."""
    settings = LearnerSettings(mode="truncated", bptt_length=window, burn_in=burn_in, carry_source="stored")
    collector = counting_collector(settings, kind=kind)
    collector.collect()
    batch = SequenceBatch.from_fragments([collector.collect()[0]], CPU)
    T, plan, policy = batch.length, settings.plan(batch.length), collector.policy
    observations = {name: x[:, :T] for name, x in batch.observations.items()}
    resets = batch.resets[:, :T]
    first = {name: c[:, 0] for name, c in batch.carries.items()}
    whole = policy.scan({name: x.transpose(0, 1) for name, x in observations.items()}, resets.transpose(0, 1), first)
    cut_up = windows_of(policy, plan, batch, whole_of(batch, plan))
    windows = policy.scan(cut_up.observations, cut_up.resets, cut_up.carry)
    torch.testing.assert_close(join(windows.value_TB, T), whole.value_TB.t(), atol=1e-5, rtol=0)
    torch.testing.assert_close(join(windows.parameters_TBA, T), whole.parameters_TBA.transpose(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("source", "burn_in"), [("stored", 0), ("stored", 4), ("fresh", 0), ("zero", 0)])
def test_gradient_reaches_back_to_the_windows_start_and_no_further(
    counting_collector: Callable[..., Collector], source: Any, burn_in: int
) -> None:
    K, length = 8, 24
    settings = LearnerSettings(mode="truncated", bptt_length=K, burn_in=burn_in, carry_source=source)
    collector = counting_collector(settings, length=length, lanes=1)
    batch = SequenceBatch.from_fragments([collector.collect()[0]], CPU)
    plan = settings.plan(length)
    observation = batch.observations["observation"].clone().requires_grad_()
    resets = torch.zeros_like(batch.resets)  # nothing but the window may stop the gradient
    batch = replace(batch, observations={"observation": observation}, resets=resets)
    windows = windows_of(collector.policy, plan, batch, whole_of(batch, plan))
    out = collector.policy.scan(windows.observations, windows.resets, windows.carry, windows.cuts)
    values = join(out.value_TB, length)
    (gradient,) = torch.autograd.grad(values[0, 2 * K - 1], observation)  # the last step of the second window
    reached = gradient[0].abs().sum(-1) > 0
    assert reached[K : 2 * K].all()
    assert not reached[:K].any()
    assert not reached[2 * K :].any()


def test_stale_carries_are_refreshed_by_burn_in(counting_collector: Callable[..., Collector]) -> None:
    """Garbage stored inside an episode that began within the burn-in cannot reach the window."""
    settings = LearnerSettings(mode="truncated", bptt_length=8, burn_in=8, carry_source="stored")
    collector = counting_collector(settings, length=24, lanes=1)  # lane 0: episodes of 3 steps
    batch = SequenceBatch.from_fragments([collector.collect()[0]], CPU)
    plan = settings.plan(24)
    clean = window_carries(collector.policy, plan, batch, whole_of(batch, plan))
    garbage = {name: carry.clone() for name, carry in batch.carries.items()}
    for carry in garbage.values():
        carry[:, 1:] += 100.0
    burnt = window_carries(
        collector.policy, plan, replace(batch, stored=StoredCarries.of(garbage, CPU)), whole_of(batch, plan)
    )
    for name in clean:
        assert torch.equal(clean[name][:2], burnt[name][:2])  # windows 0 and 1: burnt in from the true first carry
        torch.testing.assert_close(clean[name], burnt[name])


@pytest.mark.parametrize("kind", ["mlp", "gru", "transformer"])
@pytest.mark.parametrize("sequences", [1, 5])
@pytest.mark.parametrize(("window", "burn_in"), [(1, 0), (4, 0), (5, 5), (23, 0)])
def test_pieces_hold_every_window_once_and_carries_of_at_most_twice_as_many_numbers_as_outputs(
    counting_collector: Callable[..., Collector], kind: str, sequences: int, window: int, burn_in: int
) -> None:
    policy, T, C = counting_collector(kind=kind).policy, 23, -(-23 // window)
    rows = torch.arange(10, 10 + sequences)
    groups = pieces(policy, WindowPlan(window, window, burn_in, 1, window), rows, T)
    seen = [(int(row), c) for group in groups for piece in group for row in piece.rows for c in piece.windows]
    assert sorted(seen) == [(row, c) for row in range(10, 10 + sequences) for c in range(C)]
    for group in groups:
        assert [c for piece in group for c in piece.windows] == list(range(C))
        assert all(torch.equal(piece.rows, group[0].rows) for piece in group)
        for piece in group:
            many = len(piece.rows) * len(piece.windows)
            numbers = many * sum(x.numel() for x in policy.controller.initial().values())
            assert window == T or many == 1 or numbers <= 2 * sequences * T * policy.controller.output_size
