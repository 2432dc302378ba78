"""Episodes end to end in one row: losses, gradients and returns are those of each episode alone in a padded row."""

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from mneme.controllers import CONTROLLERS, ControllerSettings, Policy, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.learner import Group, Learner, LearnerSettings
from mneme.learner.anchor import anchor_pass
from mneme.learner.arrival import arrivals
from mneme.learner.batch import SequenceBatch
from mneme.learner.gradients import ShardResult, kl_sum, shard_gradients
from mneme.learner.returns import Returns, gae, vtrace
from mneme.learner.reward_scale import RewardScale
from mneme.rollout_workers import Collector, Fragment, Packer, policy_spec, stride_to_collect
from tests.learner.test_replicas import share, together

MODES: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "truncated": {"mode": "truncated", "bptt_length": 4},
    "cached": {"mode": "cached"},
}
STORED: dict[str, dict[str, Any]] = {
    "truncated, stored": {"mode": "truncated", "bptt_length": 6, "burn_in": 3, "carry_source": "stored"},
    "cached, stored": {"mode": "cached", "carry_source": "stored"},
}
CPU = torch.device("cpu")


class Source:
    """A collector and a packer on the counting environment; lanes differ in how long their episodes are."""

    def __init__(
        self, kind: str, settings: LearnerSettings, *, T: int = 23, lanes: int = 9, shortest: int = 2, spread: int = 9
    ) -> None:
        env = make_vector_env(
            EnvSettings(id="mneme/Counting-v0", kwargs={"shortest": shortest, "spread": spread}), lanes
        )
        controller = ControllerSettings(kind=kind, hidden_size=8, initial_carry="learned")
        self.policy = build_policy(policy_spec(env), PolicySettings(controller=controller), T, seed=0)
        stride = settings.plan(T).carry_stride
        self.collector = Collector(env, self.policy, T, stride_to_collect(T, stride), seed=0)
        self._packer = Packer(self.collector.blank(), stride)
        self.version = 0

    def next(self) -> Fragment:
        """The next fragment of two rows and more."""
        while True:
            packed = self._packer.add(self.collector.collect(self.version)[0])
            if packed is not None and packed.num_envs >= 2:
                packed.validate()
                return packed


def padded(packed: Fragment) -> Fragment:
    """Each episode, or part of one, in a row of its own; in the order in which they lie in the packed rows."""
    parts = []
    for row in range(packed.num_envs):
        starts = [0, *(np.flatnonzero(packed.resets[row, 1 : packed.length]) + 1).tolist(), packed.length]
        parts += [(row, start, stop) for start, stop in pairwise(starts) if packed.valid[row, start:stop].any()]
    longest = max(stop - start for _, start, stop in parts)

    def apart(x: np.ndarray, extra: int = 0) -> np.ndarray:
        rows = np.zeros((len(parts), longest + extra, *x.shape[2:]), x.dtype)
        for n, (row, start, stop) in enumerate(parts):
            rows[n, : stop - start + extra] = x[row, start : stop + extra]
        return rows

    steps = ("actions", "log_probs", "final_values", "rewards", "terminated", "truncated", "valid")
    changes: dict[str, Any] = {name: apart(getattr(packed, name)) for name in steps}
    resets = apart(packed.resets, 1)
    resets[:, 1:] = changes["terminated"] | changes["truncated"] | ~changes["valid"]
    rows, begins = [row for row, _, _ in parts], np.array([start == 0 for _, start, _ in parts])
    carries = {}
    for name, carry in packed.carries.items():
        first = carry[rows, :1].copy()
        first[~begins] = 7.0  # a reset follows: it must not matter
        carries[name] = first
    provenance = ("worker", "lane", "first_step", "weights_version", "seed")
    return replace(
        packed,
        **changes,
        **{name: getattr(packed, name)[rows] for name in provenance},
        values=apart(packed.values, 1),
        resets=resets,
        observations={name: apart(x, 1) for name, x in packed.observations.items()},
        carries=carries,
        carry_stride=longest,
    )


def both(packed: Fragment) -> tuple[SequenceBatch, SequenceBatch]:
    """A packed fragment and its padded form as batches, acted on by a policy that was another one by a little."""
    alone = padded(packed)
    alone.validate()
    noise = np.random.default_rng(0).normal(0, 0.1, packed.steps).astype(np.float32)
    for fragment in (packed, alone):
        fragment.log_probs[fragment.valid] += noise
    return (
        SequenceBatch.from_fragments([packed], CPU, packed=True),
        SequenceBatch.from_fragments([alone], CPU),
    )


def estimated(batch: SequenceBatch) -> Returns:
    ends = (batch.final_values, batch.terminated, batch.truncated, batch.valid)
    return gae(batch.rewards, batch.values, *ends, gamma=0.9, lam=0.8)


def gradients(policy: Policy, settings: LearnerSettings, batch: SequenceBatch) -> tuple[ShardResult, float]:
    rows = torch.arange(batch.sequences)
    found = shard_gradients(policy, settings, batch, estimated(batch), rows, int(batch.valid.sum()))
    return found, kl_sum(policy, settings, batch, rows)


def assert_alike(found: tuple[ShardResult, float], expected: tuple[ShardResult, float]) -> None:
    assert found[0].sums == pytest.approx(expected[0].sums, rel=1e-5, abs=1e-5)
    assert found[0].ratio_error == pytest.approx(expected[0].ratio_error, rel=1e-4)
    assert found[1] == pytest.approx(expected[1], rel=1e-4)
    assert any(b is not None and b.abs().max() > 1e-3 for b in expected[0].gradients)
    for a, b in zip(found[0].gradients, expected[0].gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()) + 1e-8)


@pytest.mark.parametrize("spread", [9, 40], ids=["whole", "cut"])
@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("kind", list(CONTROLLERS))
def test_losses_and_gradients_are_those_of_padded_episodes(kind: str, mode: str, spread: int) -> None:
    settings = LearnerSettings(**MODES[mode])
    source = Source(kind, settings, spread=spread)
    source.next()
    packed, alone = both(source.next())
    assert packed.valid.float().mean() > 0.9 > 0.6 > alone.valid.float().mean()
    expected = gradients(source.policy, settings, alone)
    assert_alike(gradients(source.policy, settings, packed), expected)
    assert_alike(gradients(source.policy, replace(settings, activation_checkpointing=True), packed), expected)


@pytest.mark.parametrize("kind", ["gru", "pseudo_mamba"])
def test_the_comparison_can_fail(kind: str) -> None:
    """Cuts counted from a row's beginning, or an auxiliary loss of rows, are not those of padded episodes."""
    settings = LearnerSettings(**MODES["truncated"])
    source = Source(kind, settings)
    packed, alone = both(source.next())
    with pytest.raises(AssertionError):
        assert_alike(
            gradients(source.policy, settings, replace(packed, packed=False)),
            gradients(source.policy, settings, alone),
        )


@pytest.mark.parametrize("spread", [9, 40], ids=["whole", "cut"])
def test_values_and_returns_are_those_of_padded_episodes(spread: int) -> None:
    source = Source("gru", LearnerSettings(), spread=spread)
    source.next()
    found = []
    for batch in both(source.next()):
        anchor = anchor_pass(source.policy, batch)
        ends = (anchor.final_values, batch.terminated, batch.truncated, batch.valid)
        returns = vtrace(
            anchor.log_probs - batch.log_probs, batch.rewards, anchor.values, *ends, gamma=0.9, lam=0.8, rho_clip=1.0,
            c_clip=1.0,
        )  # fmt: skip
        columns = (*estimated(batch), *returns, anchor.log_probs, anchor.final_values)
        found.append(torch.stack([column[batch.valid] for column in columns]))
    assert (found[0][3] - found[0][0]).abs().max() > 0.01  # V-trace has something to correct
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", [*MODES, *STORED])
@pytest.mark.parametrize("kind", list(CONTROLLERS))
def test_what_acted_is_what_is_learned_on(kind: str, mode: str) -> None:
    """While the weights stay, stored log-probabilities are the learner's: without an anchor the first ratio is 1."""
    settings = LearnerSettings(**(MODES | STORED)[mode], anchor="never", num_epochs=1, num_minibatches=1)
    source = Source(kind, settings, spread=40)
    source.next()
    learner = Learner(source.policy, replace(settings, num_threads=2), seed=0, total_timesteps=1000, packed=True)
    assert learner.update([source.next().to_arrow()]).metrics["ratio_error"] < 1e-5


@pytest.mark.parametrize("mode", [*MODES, *STORED])
def test_packed_fragments_are_anchored_and_the_first_ratio_is_one(mode: str) -> None:
    settings = LearnerSettings(**(MODES | STORED)[mode], num_epochs=2, num_minibatches=4, num_threads=2)
    source = Source("gru", settings, spread=40)
    learner = Learner(deepcopy(source.policy), settings, seed=0, total_timesteps=1000, packed=True)
    sequences = set()
    for _ in range(4):
        packed = source.next()
        report = learner.update([packed.to_arrow()])
        assert report.steps == packed.steps
        assert report.metrics["ratio_error"] < 1e-5
        assert report.metrics["padding"] < 0.05
        sequences.add(packed.num_envs)
        learner.weights().load_into(source.policy)
        source.version = learner.version
    assert report.metrics["lag_max"] >= 1
    assert len(sequences) > 1


def test_a_batch_of_fewer_rows_than_minibatches_is_split_into_what_there_is() -> None:
    settings = LearnerSettings(num_epochs=1, num_minibatches=4, num_threads=2)
    source = Source("gru", settings, lanes=2)
    packed = source.next()
    assert packed.num_envs < 4
    report = Learner(source.policy, settings, seed=0, total_timesteps=1000, packed=True).update([packed.to_arrow()])
    assert report.steps == packed.steps
    assert np.isfinite(report.metrics["grad_norm"])


def test_what_no_row_fills_is_cut_off() -> None:
    source = Source("gru", LearnerSettings(), T=64, lanes=4, shortest=40, spread=1)
    packed = source.next()
    assert packed.length == 64
    batch = arrivals([packed.to_arrow()], source.policy, 0, Group(), CPU, packed=True).batch
    assert batch.length == 40
    assert batch.valid.all()
    assert batch.values.shape[1] == batch.resets.shape[1] == batch.observations["observation"].shape[1] == 41


@pytest.mark.parametrize("kind", ["gru", "mamba2"])
def test_rows_of_ten_thousand_steps(kind: str) -> None:
    settings = LearnerSettings(activation_checkpointing=True)
    source = Source(kind, settings, T=10_000, lanes=16, shortest=1_100, spread=2)
    source.collector.length = 1_150  # at a time
    packed, alone = both(source.next())
    assert packed.length > 9_500
    assert alone.length < 1_200
    assert_alike(gradients(source.policy, settings, packed), gradients(source.policy, settings, alone))


def test_the_reward_scale_is_that_of_episodes_alone() -> None:
    packed, alone = both(Source("gru", LearnerSettings()).next())
    scales = [RewardScale(0.9, packed=True), RewardScale(0.9, packed=True)]
    for _ in range(2):
        assert scales[0].scaled(packed)[packed.valid].tolist() == pytest.approx(
            scales[1].scaled(alone)[alone.valid].tolist()
        )
    assert scales[0].divisor == pytest.approx(scales[1].divisor)
    assert scales[0].divisor > 1


def test_learners_that_share_packed_fragments_come_to_the_weights_of_one() -> None:
    """Their rows are filled to different lengths, one of them has two fragments, and one may have none."""
    settings = LearnerSettings(num_epochs=2, num_minibatches=2, num_threads=1, normalize_rewards=True)
    sources = [Source("pseudo_mamba", settings, T=40, shortest=shortest, spread=1) for shortest in (21, 30, 35)]
    batches = [source.next().to_arrow() for source in sources]

    def work(group: Group) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        policy = deepcopy(sources[0].policy)
        learner = Learner(policy, settings, seed=0, total_timesteps=1000, packed=True, group=group)
        for update in (batches, batches[:1]):
            report = learner.update(share(update, group))
        return report.metrics, learner.weights().arrays

    (alone, expected) = work(Group())
    for metrics, weights in together(2, work):
        assert metrics["padding"] == alone["padding"]
        assert metrics["policy_loss"] == pytest.approx(alone["policy_loss"], rel=1e-3, abs=1e-5)
        for name, array in weights.items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)
