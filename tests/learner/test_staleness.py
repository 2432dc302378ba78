"""Staleness against a loop that knows the truth: part by part, the first carry included."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from mneme.controllers import Policy
from mneme.learner import Learner, LearnerSettings
from mneme.learner.anchor import Anchor, anchor_pass
from mneme.learner.batch import SequenceBatch
from mneme.learner.carries import StoredCarries
from mneme.learner.staleness import Staleness, measure_staleness
from mneme.rollout_workers import Collector, Fragment
from tests.learner.test_anchor import batch_of, counting, moved


def measured(policy: Policy, batch: SequenceBatch) -> Staleness:
    return measure_staleness(policy, batch, anchor_pass(policy, batch))


@torch.no_grad()
def truth(policy: Policy, fragments: list[Fragment]) -> Staleness:
    """Of the last fragment's carries, by a loop from the lanes' first steps on."""
    before = [f for f in fragments[:-1] for _ in range(f.length)]
    last, T = fragments[-1], fragments[-1].length
    distances: dict[str, list[float]] = {name: [] for name in last.carries}
    alone: dict[str, list[float]] = {name: [] for name in last.carries}
    together: list[float] = []
    for b in range(last.num_envs):
        carry = policy.initial_carry(1)
        for step in range(len(before) + T):
            f, t = fragments[step // T], step % T
            observed = {name: torch.from_numpy(part[b, t].copy())[None, None] for name, part in f.observations.items()}
            reset = torch.tensor([[bool(f.resets[b, t])]])
            if f is last and t % f.carry_stride == 0 and not f.resets[b, t]:
                stored = {name: torch.from_numpy(c[b : b + 1, t // f.carry_stride]) for name, c in f.carries.items()}
                fresh = policy.scan(observed, reset, carry).parameters_TBA
                for name in distances:
                    size = carry[name].norm()
                    distances[name].append(float((stored[name] - carry[name]).norm() / size) if size else 0.0)
                    kl = policy.action_distribution.kl(
                        fresh, policy.scan(observed, reset, {**carry, name: stored[name]}).parameters_TBA
                    )
                    alone[name].append(float(kl))
                together.append(
                    float(policy.action_distribution.kl(fresh, policy.scan(observed, reset, stored).parameters_TBA))
                )
            carry = policy.scan(observed, reset, carry).carry
    sizes = {name: c[0, 0].size for name, c in last.carries.items()}
    means = {name: float(np.mean(d)) for name, d in distances.items()}
    return Staleness(
        len(together),
        sum(sizes[name] * means[name] for name in sizes) / sum(sizes.values()),
        float(np.mean(together)),
        means,
        {name: float(np.mean(kls)) for name, kls in alone.items()},
    )


@pytest.mark.parametrize("kind", ["gru", "lstm", "mamba2", "transformer"])
@pytest.mark.parametrize("shortest", [60, 4])
def test_with_the_whole_past_staleness_is_the_truth(kind: str, shortest: int) -> None:
    collector = counting(kind, length=11, stride=3, warm_up=25, shortest=shortest)
    fragments = [collector.collect()[0] for _ in range(3)]
    policy = moved(collector.policy)
    expected, shown = truth(policy, fragments), measured(policy, batch_of(fragments[-1]))
    assert shown.carries == expected.carries
    if shortest > 50:
        assert shown.carries == 3 * 4  # the first of each sequence among them
    for name, value in expected.metrics().items():
        assert shown.metrics()[name] == pytest.approx(value, abs=1e-5, rel=1e-3), name
    assert shown.distance > 0.01
    assert shown.kl > 1e-9


def test_without_a_past_the_first_carry_is_not_counted_as_right() -> None:
    collector = counting("gru", length=11, stride=3)
    fragments = [collector.collect()[0] for _ in range(3)]
    policy = moved(collector.policy)
    shown = measured(policy, batch_of(fragments[-1]))
    assert shown.carries == 3 * 3
    assert shown.distance < truth(policy, fragments).distance  # the renewed ones start from the error of the first


def test_a_counter_does_not_hide_how_stale_a_memory_is() -> None:
    """The transformer's position is the same under any weights, and far larger than its keys and values."""
    collector = counting("transformer", length=11, stride=11, warm_up=40)
    for _ in range(3):
        fragment, _ = collector.collect()
    past = fragment.carries["past"] + 1000
    fragment = replace(fragment, carries={**fragment.carries, "past": past})
    batch = batch_of(fragment)
    policy = moved(collector.policy)
    anchor = anchor_pass(policy, batch)
    anchor = anchor._replace(carries={**anchor.carries, "past": torch.from_numpy(past)})
    shown = measure_staleness(policy, batch, anchor)
    memory = shown.part_distance["memory"]
    assert shown.part_distance == {"memory": memory, "past": 0.0}
    assert memory > 0.05
    assert shown.distance == pytest.approx(memory, rel=0.03)  # one number of 45 is the counter


def test_where_there_should_be_nothing_what_there_is_counts_as_one() -> None:
    collector = counting("gru", length=11, stride=3, warm_up=40)
    collector.collect()
    batch = batch_of(collector.collect()[0])
    nothing = {name: torch.zeros_like(c) for name, c in batch.carries.items()}
    anchor = anchor_pass(collector.policy, batch)
    assert measure_staleness(collector.policy, batch, anchor._replace(carries=nothing)).distance == 1.0
    empty = replace(batch, stored=StoredCarries.of(nothing, torch.device("cpu")))
    assert measure_staleness(collector.policy, empty, anchor._replace(carries=nothing)).distance == 0.0


def test_parts_of_a_batch_join_to_the_whole(counting_collector: Callable[..., Collector]) -> None:
    collector = counting_collector(LearnerSettings(mode="truncated", bptt_length=5, carry_source="stored"), kind="lstm")
    batch, policy = batch_of(collector.collect()[0]), moved(collector.policy)
    parts = [batch.rows(rows) for rows in torch.arange(6).tensor_split(4)]
    whole, joined = measured(policy, batch), Staleness.joined([measured(policy, part) for part in parts])
    for name, value in whole.metrics().items():
        assert joined.metrics()[name] == pytest.approx(value, rel=1e-2)
    anchors = Anchor.joined([anchor_pass(policy, part) for part in parts])
    torch.testing.assert_close(anchors.final_values, anchor_pass(policy, batch).final_values)


def test_the_learner_shows_it_and_starts_from_the_renewed_carry() -> None:
    collector = counting("lstm", length=11, stride=11, warm_up=25)
    fragments = [collector.collect()[0] for _ in range(3)]
    policy = moved(collector.policy)
    expected = truth(policy, fragments)
    learner = Learner(
        policy, LearnerSettings(num_minibatches=1, num_threads=2), seed=0, total_timesteps=1, asynchronous=True
    )
    metrics = learner.update([fragments[-1].to_arrow()]).metrics
    for name, value in expected.metrics().items():
        assert metrics[name] == pytest.approx(value, abs=1e-5, rel=1e-3), name
    assert {"staleness", "staleness/h", "staleness/c", "staleness_kl/c"} <= metrics.keys()
    assert metrics["ratio_error"] < 1e-5
