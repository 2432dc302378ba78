"""A gradient that is not finite is skipped and counted; too many in a row end the run."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mneme.learner import Learner, LearnerSettings, NonfiniteGradient
from mneme.learner import learner as learner_module
from mneme.learner.device import on_host
from mneme.learner.optimizer import Step
from mneme.rollout_workers import Collector, Fragment

WORST = 3e38  # a reward that overflows


def spoilt(fragment: Fragment, lanes: Any = slice(None)) -> pa.RecordBatch:
    rewards = fragment.rewards.copy()
    rewards[lanes] = WORST
    return replace(fragment, rewards=rewards).to_arrow()


def make_learner(collector: Collector, settings: LearnerSettings) -> Learner:
    return Learner(deepcopy(collector.policy), settings, seed=3, total_timesteps=10_000)


def test_a_skipped_step_is_as_if_it_had_never_been_made(counting_collector: Callable[..., Collector]) -> None:
    """One sequence a minibatch, one of them bad, against a learner whose bad steps do nothing at all."""
    settings = LearnerSettings(num_epochs=3, num_minibatches=6, normalize_advantages="none", num_threads=2)
    collector = counting_collector(settings)
    batch = spoilt(collector.collect()[0], 2)
    found, expected = make_learner(collector, settings), make_learner(collector, settings)
    step = expected._optimizer.step

    def without_the_bad(batch: Any, returns: Any, rows: Any, *others: Any) -> Step:
        return Step({}, 0.0, math.nan) if 2 in rows else step(batch, returns, rows, *others)

    expected._optimizer.step = without_the_bad  # type: ignore[method-assign]
    metrics, reference = found.update([batch]).metrics, expected.update([batch]).metrics
    assert metrics["nonfinite_steps"] == 3
    a, b = found.state(), expected.state()
    assert a.keys() == b.keys()
    for name in a.keys() - {"nonfinite_in_a_row"}:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    for name in ("policy_loss", "value_loss", "entropy", "kl", "kl_minibatches", "grad_norm", "epochs"):
        assert metrics[name] == reference[name], name
        assert math.isfinite(metrics[name]), name


def test_an_update_without_any_finite_step_changes_no_weights(counting_collector: Callable[..., Collector]) -> None:
    settings = LearnerSettings(num_epochs=2, num_minibatches=2, normalize_advantages="none", target_kl=0.1)
    collector = counting_collector(settings)
    fragment, _ = collector.collect()
    learner = make_learner(collector, settings)
    learner.update([fragment.to_arrow()])
    before = learner.state()
    metrics = learner.update([spoilt(fragment)]).metrics
    assert metrics["nonfinite_steps"] == 4
    assert math.isnan(metrics["grad_norm"])
    after = learner.state()
    for name in before:
        if name.startswith(("policy.", "adam.")):
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_as_many_in_a_row_as_are_let_pass_and_one_more_end_the_run_also_after_a_resume(
    counting_collector: Callable[..., Collector],
) -> None:
    settings = LearnerSettings(num_epochs=4, num_minibatches=1, normalize_advantages="none", max_nonfinite=5)
    collector = counting_collector(settings)
    fragment, _ = collector.collect()
    good, bad = fragment.to_arrow(), spoilt(fragment)
    learner = make_learner(collector, settings)
    for _ in range(2):  # a step that is finite begins the count anew
        assert learner.update([bad]).metrics["nonfinite_steps"] == 4
        assert learner.update([good]).metrics["nonfinite_steps"] == 0
    learner.update([bad])
    resumed = make_learner(collector, settings)
    resumed.set_state(learner.state())
    for each in (learner, resumed):
        with pytest.raises(FloatingPointError, match="version 5: rewards reach 3e.38; scale them"):
            each.update([bad])
        assert each.state()["nonfinite_in_a_row"] == 6


def test_none_are_let_pass_if_none_may_be(counting_collector: Callable[..., Collector]) -> None:
    settings = LearnerSettings(num_minibatches=1, normalize_advantages="none", max_nonfinite=0)
    collector = counting_collector(settings)
    with pytest.raises(FloatingPointError, match="version 0: rewards reach 3e.38; scale them"):
        make_learner(collector, settings).update([spoilt(collector.collect()[0])])


def test_what_an_update_began_with_leaves_the_device_only_if_it_fails(
    counting_collector: Callable[..., Collector], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []
    monkeypatch.setattr(learner_module, "on_host", lambda x: moved.append(x) or on_host(x))
    settings = LearnerSettings(num_epochs=2, num_minibatches=2, normalize_advantages="none", max_nonfinite=0)
    collector = counting_collector(settings)
    fragment, _ = collector.collect()
    learner = make_learner(collector, settings)
    learner.update([fragment.to_arrow()])
    assert not moved
    before = learner.state()
    moved.clear()
    with pytest.raises(NonfiniteGradient) as failed:
        learner.update([spoilt(fragment, 2)])  # of which the other minibatch may have changed the weights
    assert moved
    assert failed.value.update is not None
    assert failed.value.update.state.keys() == before.keys()
    for name, array in failed.value.update.state.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
