"""Several learners on one batch: what comes of it does not depend on how many they are."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mneme.controllers import ControllerSettings, Policy, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.learner import Group, GroupError, Learner, LearnerSettings, NonfiniteGradient, UpdateReport
from mneme.learner.batch import SequenceBatch
from mneme.learner.carries import StoredCarries
from mneme.learner.group import TorchGroup, join_store, open_store
from mneme.rollout_workers import Collector, Fragment, FragmentError, policy_spec

HOST = "127.0.0.1"
LENGTH, LANES = 13, (3, 1, 4, 2)  # of the fragments of an update
Batches = Sequence[pa.RecordBatch]


@pytest.fixture(autouse=True)
def single_precision_afterwards() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


class Doubled(torch.nn.Module):
    """An encoder: what is observed, in double precision."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.double()


def together(size: int, work: Callable[[Group], Any], timeout: float = 20.0) -> list[Any]:
    """What `work` gives on every rank of a group, a thread each; an exception in the place of a result."""
    store, port = open_store(HOST)

    def run(rank: int) -> Any:
        torch.set_num_threads(1)
        own = store if rank == 0 else join_store(HOST, port, timeout)
        group = TorchGroup(
            own, rank, size, backend="gloo", device=torch.device("cpu"), address=HOST, timeout=timeout
        )  # fmt: skip
        try:
            return work(group)
        except (RuntimeError, ValueError, FloatingPointError) as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


def test_a_group_says_the_same_to_all_its_members() -> None:
    def work(group: Group) -> Any:
        gradients = [None, torch.full((2, 3), group.rank + 1.0), torch.ones(2) if group.rank == 1 else None]
        like = [torch.zeros(4), torch.zeros(2, 3), torch.zeros(2)]
        return (
            group.sum(torch.tensor([1.5, group.rank])),
            group.gather(["ä" * group.rank, float("inf"), None]),
            group.stack(torch.tensor(group.rank > 0)),
            group.sum_gradients(gradients, like),
        )

    for total, told, stacked, gradients in together(3, work):
        assert total.tolist() == [4.5, 3.0]
        assert told == [["", np.inf, None], ["ä", np.inf, None], ["ää", np.inf, None]]
        assert stacked.tolist() == [False, True, True]
        assert gradients[0] is None
        assert torch.equal(gradients[1], torch.full((2, 3), 6.0))
        assert torch.equal(gradients[2], torch.ones(2))


def test_who_waits_in_vain_says_so() -> None:
    def work(group: Group) -> Any:
        return group.sum(torch.ones(2)) if group.rank else None

    errors = together(3, work, timeout=0.5)[1:]
    assert all(isinstance(error, GroupError) for error in errors)
    assert "learner replica 1 of 3 lost touch with the others" in str(errors[0])


def made_policy(kind: str, normalize: bool) -> Policy:
    env = make_vector_env(EnvSettings(id="mneme/Counting-v0"), 1)
    controller = ControllerSettings(kind=kind, hidden_size=8, backend="torch")
    settings = PolicySettings(controller=controller, normalize_observations=normalize)
    return build_policy(policy_spec(env), settings, LENGTH, seed=0)


def collected(policy: Policy, updates: int, settings: LearnerSettings, lanes: Sequence[int] = LANES) -> list[Batches]:
    """As many fragments an update as there are `lanes`, of so many sequences each."""
    stride = settings.plan(LENGTH).carry_stride
    collectors, first = [], 0
    for worker, num_envs in enumerate(lanes):
        env = make_vector_env(EnvSettings(id="mneme/Counting-v0"), num_envs)
        collectors.append(Collector(env, policy, LENGTH, stride, seed=worker, worker=worker, first_lane=first))
        first += num_envs
    return [[c.collect(version)[0].to_arrow() for c in collectors] for version in range(updates)]


def share(batches: Batches, group: Group) -> Batches:
    return batches[len(batches) * group.rank // group.size : len(batches) * (group.rank + 1) // group.size]


def trained(
    policy: Policy, settings: LearnerSettings, updates: Sequence[Batches], size: int, **options: Any
) -> list[tuple[Learner, list[UpdateReport]]]:
    """The learner of every rank after these updates, and what it reported."""

    def work(group: Group) -> tuple[Learner, list[UpdateReport]]:
        learner = Learner(deepcopy(policy), settings, seed=5, total_timesteps=1000, group=group, **options)
        return learner, [learner.update(share(batches, group)) for batches in updates]

    if size == 1:
        return [work(Group())]
    found = together(size, work)
    for result in found:
        if isinstance(result, Exception):
            raise result
    return found


def assert_alike(found: Learner, expected: Learner, tolerance: float) -> None:
    a, b = found.state(), expected.state()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_allclose(a[name], b[name], rtol=tolerance, atol=tolerance, err_msg=name)


made = SequenceBatch.from_fragments


def doubled(fragments: Any, device: torch.device, **options: Any) -> SequenceBatch:
    batch = made(fragments, device, **options)
    floats = {name: getattr(batch, name).double() for name in ("log_probs", "values", "final_values", "rewards")}
    carries = {name: carry.double() for name, carry in batch.carries.items()}
    return replace(batch, stored=StoredCarries.of(carries, device), **floats)


OPTIONS: dict[str, dict[str, Any]] = {
    "by batch": {},
    "by minibatch": {"normalize_advantages": "minibatch", "normalize_rewards": True, "fidelity_every": 2},
    "not": {"normalize_advantages": "none", "target_kl": 1e-5, "anchor": "always"},
    "observations": {"normalize_rewards": True, "lr_schedule": "linear"},
}


@pytest.mark.parametrize("kind", ["gru", "mamba2"])
@pytest.mark.parametrize("mode", ["full", "truncated"])
@pytest.mark.parametrize("normalized", list(OPTIONS))
def test_one_two_and_three_learners_come_to_the_same_weights(
    monkeypatch: pytest.MonkeyPatch, kind: str, mode: Any, normalized: str
) -> None:
    """In double precision."""
    settings = LearnerSettings(
        mode=mode, bptt_length=5, num_threads=1, num_epochs=2, num_minibatches=4, **OPTIONS[normalized]
    )
    policy = made_policy(kind, normalized == "observations")
    updates = collected(policy, 3, settings)
    monkeypatch.setattr(SequenceBatch, "from_fragments", doubled)
    monkeypatch.setattr("mneme.learner.arrival._require_fit", lambda *_: None)
    torch.set_default_dtype(torch.float64)
    policy.double().encoder = Doubled()
    ((expected, reports),) = trained(policy, settings, updates, 1)
    for size in (2, 3):
        found = trained(policy, settings, updates, size)
        assert len({learner.weights().digest() for learner, _ in found}) == 1
        for learner, of_rank in found:
            assert_alike(learner, expected, 1e-9)
            for report, other in zip(of_rank, reports, strict=True):
                assert report.steps == other.steps
                assert report.metrics.keys() == other.metrics.keys()
                assert report.metrics == pytest.approx(other.metrics, rel=1e-6, abs=1e-8, nan_ok=True)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_single_precision_differs_by_its_rounding_alone(asynchronous: bool) -> None:
    settings = LearnerSettings(num_threads=1, num_epochs=2, num_minibatches=2)
    policy = made_policy("gru", normalize=False)
    updates = collected(policy, 2, settings)
    ((expected, (*_, report)),) = trained(policy, settings, updates, 1, asynchronous=asynchronous)
    for learner, (*_, own) in trained(policy, settings, updates, 2, asynchronous=asynchronous):
        assert_alike(learner, expected, 1e-4)
        assert own.metrics == pytest.approx(report.metrics, rel=1e-3, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("lanes", [(3,), (2, 5)])
def test_a_learner_without_fragments_takes_part_in_every_step(lanes: tuple[int, ...]) -> None:
    settings = LearnerSettings(
        num_threads=1, num_epochs=2, num_minibatches=2, normalize_rewards=True, anchor="always", fidelity_every=1
    )
    policy = made_policy("gru", normalize=True)
    updates = collected(policy, 2, settings, lanes)
    ((expected, reports),) = trained(policy, settings, updates, 1)
    for learner, of_rank in trained(policy, settings, updates, 3):
        assert_alike(learner, expected, 1e-4)
        assert of_rank[-1].metrics == pytest.approx(reports[-1].metrics, rel=1e-2, abs=1e-3, nan_ok=True)


def spoilt(batch: pa.RecordBatch, value: float) -> pa.RecordBatch:
    fragment = Fragment.from_arrow(batch)
    rewards = fragment.rewards.copy()
    rewards[0, 5] = value
    return replace(fragment, rewards=rewards).to_arrow()


def test_a_refused_fragment_is_refused_by_all_of_them() -> None:
    settings = LearnerSettings(num_threads=1, num_epochs=1, num_minibatches=2)
    policy = made_policy("gru", normalize=False)
    (batches,) = collected(policy, 1, settings)
    longer = Collector(make_vector_env(EnvSettings(id="mneme/Counting-v0"), 2), policy, 2 * LENGTH, 2 * LENGTH, seed=9)
    mixed = [spoilt(batches[0], np.nan), batches[1], longer.collect()[0].to_arrow(), batches[2]]
    ((expected, (alone,)),) = trained(policy, settings, [mixed], 1)
    for learner, (report,) in trained(policy, settings, [mixed], 2):
        assert_alike(learner, expected, 1e-5)
        assert report.steps == alone.steps
        assert report.refused == alone.refused
        assert len(report.refused) == 2
        assert "rewards" in report.refused[0]
        assert "others have 13 steps" in report.refused[1]


def test_none_but_refused_fragments_are_the_same_error_on_all_of_them() -> None:
    policy = made_policy("gru", normalize=False)
    (batches,) = collected(policy, 1, LearnerSettings())
    bad = [spoilt(batch, np.nan) for batch in batches[:2]]

    def work(group: Group) -> Any:
        return Learner(deepcopy(policy), LearnerSettings(), seed=5, total_timesteps=9, group=group).update(
            share(bad, group)
        )

    with pytest.raises(FragmentError) as alone:
        work(Group())
    errors = together(2, work)
    assert [type(error) for error in errors] == [FragmentError] * 2
    assert {str(error) for error in errors} == {str(alone.value)}


def test_a_gradient_that_is_not_finite_is_skipped_and_ends_the_run_on_all_alike() -> None:
    settings = LearnerSettings(
        num_threads=1, num_epochs=2, num_minibatches=4, normalize_advantages="none", max_nonfinite=1
    )
    policy = made_policy("gru", normalize=False)
    (batches,) = collected(policy, 1, settings)
    one_bad = [*batches[:3], spoilt(batches[3], 3e38)]
    ((expected, (alone,)),) = trained(policy, settings, [one_bad], 1)
    assert alone.metrics["nonfinite_steps"] == 2
    for learner, (report,) in trained(policy, settings, [one_bad], 2):
        assert report.metrics["nonfinite_steps"] == 2
        assert_alike(learner, expected, 1e-4)

    def work(group: Group) -> Any:
        learner = Learner(deepcopy(policy), settings, seed=5, total_timesteps=1000, group=group)
        return learner.update(share([spoilt(batch, 3e38) for batch in batches], group))

    with pytest.raises(NonfiniteGradient) as error:
        work(Group())
    assert {str(found) for found in together(2, work)} == {str(error.value)}


def test_weights_that_differ_end_the_update_with_a_sentence() -> None:
    settings = LearnerSettings(num_threads=1, num_epochs=1, num_minibatches=1)
    policy = made_policy("gru", normalize=False)
    (batches,) = collected(policy, 1, settings)

    def work(group: Group) -> Any:
        learner = Learner(deepcopy(policy), settings, seed=5, total_timesteps=1000, group=group)
        if group.rank:
            with torch.no_grad():
                next(learner.policy.parameters()).view(-1)[0] += 1e-6
        return learner.update(share(batches, group))

    for error in together(2, work):
        assert isinstance(error, GroupError)
        assert "the weights of learner replica 1 differ from those of replica 0 at version 1" in str(error)


def test_two_learners_come_to_the_same_bits_again_resumed_or_not() -> None:
    settings = LearnerSettings(num_threads=1, num_epochs=2, num_minibatches=3, normalize_rewards=True)
    policy = made_policy("gru", normalize=True)
    updates = collected(policy, 3, settings)
    straight = trained(policy, settings, updates, 2)[0][0].weights().digest()
    assert trained(policy, settings, updates, 2)[0][0].weights().digest() == straight
    state = trained(policy, settings, updates[:2], 2)[0][0].state()

    def work(group: Group) -> str:
        learner = Learner(deepcopy(policy), settings, seed=5, total_timesteps=1000, group=group)
        learner.set_state(state)
        learner.update(share(updates[2], group))
        return learner.weights().digest()

    assert together(2, work) == [straight] * 2


def test_a_state_is_that_of_one_learner_and_goes_to_any_number() -> None:
    settings = LearnerSettings(num_threads=1, num_epochs=1, num_minibatches=2, normalize_rewards=True)
    policy = made_policy("gru", normalize=True)
    first, second = collected(policy, 2, settings)
    ((straight, _),) = trained(policy, settings, [first, second], 1)
    for before, after in ((2, 1), (1, 3)):
        state = trained(policy, settings, [first], before)[0][0].state()

        def work(group: Group, state: Any = state) -> Learner:
            learner = Learner(deepcopy(policy), settings, seed=5, total_timesteps=1000, group=group)
            learner.set_state(state)
            learner.update(share(second, group))
            return learner

        for learner in [work(Group())] if after == 1 else together(after, work):
            assert_alike(learner, straight, 1e-4)
