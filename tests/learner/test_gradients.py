"""Activation checkpointing and gradient accumulation: the same gradients from less memory."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mneme.controllers import CONTROLLERS
from mneme.learner import LearnerSettings
from mneme.learner.batch import SequenceBatch
from mneme.learner.gradients import ShardResult, kl_sum, shard_gradients
from mneme.learner.returns import Returns
from mneme.rollout_workers import Collector

MODES: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "windows of twenty-one": {"mode": "truncated", "bptt_length": 21},
    "windows of nine": {"mode": "truncated", "bptt_length": 9},
    "cached": {"mode": "cached"},
}


def work(collector: Collector, settings: LearnerSettings, seed: int = 0) -> tuple[ShardResult, float]:
    """The gradients of a batch with made-up advantages, and its KL."""
    batch = SequenceBatch.from_fragments([collector.collect()[0]], torch.device("cpu"))
    noise = torch.randn(2, *batch.rewards.shape, generator=torch.Generator().manual_seed(seed))
    returns = Returns(noise[0], noise[1], torch.ones_like(noise[0]))
    batch = replace(batch, log_probs=batch.log_probs + 0.1 * noise[1])
    rows = torch.arange(batch.sequences)
    found = shard_gradients(collector.policy, settings, batch, returns, rows, int(batch.valid.sum()))
    return found, kl_sum(collector.policy, settings, batch, rows)


def assert_alike(found: ShardResult, expected: ShardResult) -> None:
    assert found.sums == pytest.approx(expected.sums, rel=1e-5, abs=1e-5)
    assert found.ratio_error == pytest.approx(expected.ratio_error, rel=1e-5)
    for a, b in zip(found.gradients, expected.gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            scale = float(b.abs().max())
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * scale + 1e-9)


@pytest.mark.parametrize("kind", list(CONTROLLERS))
@pytest.mark.parametrize("mode", list(MODES))
def test_gradients_in_chunks_are_those_of_the_whole(
    counting_collector: Callable[..., Collector], kind: str, mode: str
) -> None:
    settings = LearnerSettings(**MODES[mode])

    def found(**changes: Any) -> tuple[ShardResult, float]:
        collector = counting_collector(settings, kind=kind, initial_carry="learned", length=23)
        collector.collect()
        return work(collector, replace(settings, **changes))

    (whole, kl), (chunked, chunked_kl) = found(), found(activation_checkpointing=True)
    assert_alike(chunked, whole)
    assert chunked_kl == pytest.approx(kl, rel=1e-4)
    parts, _ = found(gradient_accumulation=4)
    assert_alike(parts, whole)


@pytest.mark.parametrize("mode", list(MODES))
def test_a_chunk_is_four_times_the_root_of_the_length_and_ends_at_a_cut(mode: str) -> None:
    plan = LearnerSettings(**MODES[mode], activation_checkpointing=True).plan(100)
    assert (plan.window, plan.chunk) == (100, {"windows of twenty-one": 21, "windows of nine": 36}.get(mode, 40))
    assert plan.cut_every == 100 or plan.chunk % plan.cut_every == 0
    long = LearnerSettings(mode="truncated", bptt_length=64, activation_checkpointing=True).plan(100)
    assert (long.cut_every, long.chunk) == (64, 64)
    assert LearnerSettings(activation_checkpointing=True).plan(12).chunk == 12


def test_activations_of_one_chunk_are_kept_at_a_time(counting_collector: Callable[..., Collector]) -> None:
    """Counted by what autograd saves, at its peak."""
    held: dict[int, int] = {}
    peak = 0

    class Held:
        def __init__(self, x: Tensor) -> None:
            nonlocal peak
            self.x = x
            held[id(self)] = x.numel()
            peak = max(peak, sum(held.values()))

        def __del__(self) -> None:
            held.pop(id(self), None)

    peaks = []
    for checkpointing in (False, True):
        settings = LearnerSettings(mode="full", activation_checkpointing=checkpointing)
        collector = counting_collector(settings, length=4096, lanes=2)
        peak = 0
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda kept: kept.x):
            work(collector, settings)
        peaks.append(peak)
    assert peaks[1] < peaks[0] / 8
