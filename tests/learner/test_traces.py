"""Traces in the learner: with them fragments have the gradient of the whole episode, whatever is cut."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mneme.controllers import ControllerSettings, Policy, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.learner import Learner, LearnerSettings
from mneme.learner.batch import SequenceBatch
from mneme.learner.gradients import shard_gradients
from mneme.learner.returns import Returns
from mneme.learner.traces import LaneTraces
from mneme.rollout_workers import Collector, policy_spec

KINDS: dict[str, dict[str, Any]] = {"nbrc": {"cellular": True}, "mingru": {}, "lru": {}}
TRACED = {
    "nbrc": ("weight_ih", "weight_hh", "bias"),
    "mingru": ("gates.weight", "gates.bias"),
    "lru": ("log_decay", "log_phase", "log_gamma", "weight_in"),
}
SETTINGS = LearnerSettings(mode="traces", num_minibatches=2, num_threads=2)
LANES, LENGTH, PARTS = 6, 5, 8
CPU = torch.device("cpu")


def collector(kind: str, length: int = LENGTH, **settings: Any) -> Collector:
    """Episodes of 19 steps, longer than any fragment but not than the whole."""
    env = make_vector_env(EnvSettings(id="mneme/DelayedCue-v0", kwargs={"horizon": 18}), LANES)
    controller = ControllerSettings(kind=kind, hidden_size=16, **KINDS[kind], **settings)
    policy = build_policy(policy_spec(env), PolicySettings(controller=controller), 18, seed=0)
    return Collector(env, policy, length, length, seed=0)


def with_returns(batch: SequenceBatch, first_step: int) -> tuple[SequenceBatch, Returns]:
    """Advantages and log-probabilities that depend on the step of the lane alone."""
    noise = torch.randn(2, LANES, PARTS * LENGTH, generator=torch.Generator().manual_seed(1))
    own = noise[:, :, first_step : first_step + batch.length]
    return replace(batch, log_probs=batch.log_probs + 0.1 * own[1]), Returns(own[0], own[1], torch.ones_like(own[0]))


def gradients(policy: Policy, batch: SequenceBatch, settings: LearnerSettings = SETTINGS) -> dict[str, Tensor]:
    batch, returns = with_returns(batch, int(batch.first_step[0]))
    found = shard_gradients(policy, settings, batch, returns, torch.arange(LANES), LANES * PARTS * LENGTH).gradients
    return {name: g for (name, _), g in zip(policy.named_parameters(), found, strict=True) if g is not None}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("start", ["zero", "learned"])
def test_the_fragments_gradients_add_up_to_the_whole_episodes(kind: str, checkpointing: bool, start: str) -> None:
    """On frozen weights: the cosine with full backpropagation is 1, where that of fragments alone is not."""
    whole, parts = collector(kind, PARTS * LENGTH, initial_carry=start), collector(kind, initial_carry=start)
    policy = parts.policy
    expected = gradients(policy, SequenceBatch.from_fragments([whole.collect()[0]], CPU))
    traces = LaneTraces(policy)
    settings = replace(SETTINGS, activation_checkpointing=checkpointing)
    with_traces, alone = ({name: torch.zeros_like(g) for name, g in expected.items()} for _ in range(2))
    for _ in range(PARTS):
        batch = SequenceBatch.from_fragments([parts.collect()[0]], CPU)
        traced, missing = traces.through(batch)
        assert missing == 0
        for sums, each in ((with_traces, traced), (alone, batch)):
            for name, g in gradients(policy, each, settings).items():
                sums[name] += g
    names = [f"controller.{name}" for name in TRACED[kind]]
    names += ["controller.initial_h"] * (start == "learned")
    for name in names:
        torch.testing.assert_close(
            with_traces[name], expected[name], rtol=1e-4, atol=1e-4 * float(expected[name].abs().max())
        )
        assert torch.cosine_similarity(with_traces[name].flatten(), expected[name].flatten(), 0) > 0.9999
        assert torch.cosine_similarity(alone[name].flatten(), expected[name].flatten(), 0) < 0.999


def test_a_fragment_that_was_missed_leaves_traces_missing_until_the_next_episode() -> None:
    parts = collector("mingru")
    traces = LaneTraces(parts.policy)
    said = []
    for number in range(6):
        batch = SequenceBatch.from_fragments([parts.collect()[0]], CPU)
        if number != 1:
            traced, missing = traces.through(batch)
            said.append(missing)
            assert traced.traces is not None
            if missing:
                assert not any(trace.any() for trace in traced.traces.values())
    assert said == [0, 1, 0, 0, 0]


def test_the_learner_goes_on_with_them_bit_for_bit() -> None:
    def updated(learner: Learner, at: Collector) -> dict[str, float]:
        report = learner.update([at.collect(learner.version)[0].to_arrow()])
        learner.weights().load_into(at.policy)
        return report.metrics

    def made(at: Collector) -> Learner:
        return Learner(deepcopy(at.policy), SETTINGS, seed=3, total_timesteps=10_000)

    straight_at = collector("nbrc")
    straight = made(straight_at)
    for _ in range(2):
        metrics = updated(straight, straight_at)
        assert metrics["ratio_error"] < 1e-5
        assert metrics["traces_missing"] == 0
    resumed_at = collector("nbrc")
    resumed = made(resumed_at)
    resumed.set_state(straight.state())
    assert straight.state().keys() == resumed.expected_state().keys()
    state = straight_at.state()
    assert state is not None
    resumed_at.set_state(state)
    straight.weights().load_into(resumed_at.policy)
    assert updated(resumed, resumed_at) == updated(straight, straight_at)
    for name, array in straight.state().items():
        np.testing.assert_array_equal(array, resumed.state()[name], err_msg=name)
    broken = straight.state()
    broken["traces.expected"] = broken["traces.expected"][:3]
    with pytest.raises(ValueError, match="another number of lanes"):
        resumed.set_state(broken)


def test_fidelity_says_what_comes_from_before_the_sequence() -> None:
    parts = collector("mingru")
    learner = Learner(parts.policy, replace(SETTINGS, fidelity_every=1), seed=0, total_timesteps=100)
    found = []
    for _ in range(2):
        found.append(learner.update([parts.collect(learner.version)[0].to_arrow()]).metrics["fidelity/core_cosine"])
        learner.weights().load_into(parts.policy)
    assert found[0] == pytest.approx(1, abs=1e-6)
    assert found[1] < 0.999


def test_what_traces_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="mode=traces goes on from the carries that it has traces of; use fresh"):
        LearnerSettings(mode="traces", carry_source="stored")
    with pytest.raises(ValueError, match="mode=traces keeps every lane's traces in one learner; use 1"):
        LearnerSettings(mode="traces", replicas=2)
    with pytest.raises(ValueError, match="mode=traces has no mode before it"):
        LearnerSettings(mode="traces", mode_schedule="steps")
