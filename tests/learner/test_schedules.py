"""Schedules against plain formulas, and an update under them against one whose settings are what they then are."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mneme.learner import Learner, LearnerSettings
from mneme.learner.schedules import Schedules
from mneme.rollout_workers import Collector

ALL: dict[str, Any] = {"lr_schedule": "cosine", "lr_warmup": 0.3, "clip_schedule": "linear", "ent_schedule": "cosine"}
SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


def make_learner(collector: Collector, settings: LearnerSettings, total_timesteps: int = 1000) -> Learner:
    return Learner(deepcopy(collector.policy), settings, seed=3, total_timesteps=total_timesteps)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("warmup", [0.0, 0.25, 1.0])
def test_what_is_scheduled_follows_its_formula(shape: Any, warmup: float) -> None:
    settings = LearnerSettings(
        learning_rate=0.5, lr_schedule=shape, lr_warmup=warmup, clip_schedule=shape, ent_schedule=shape
    )
    schedules = Schedules(settings, 800)
    for steps in range(0, 800, 50):
        schedules.advance(steps, steps + 50)
        rest = 1 - warmup
        share = SHAPES[shape](max(0.0, steps / 800 - warmup) / rest) if rest else 1.0
        rising = min(1.0, (steps + 50) / (800 * warmup)) if warmup else 1.0
        assert schedules.learning_rate == pytest.approx(0.5 * share * rising)
        assert schedules.settings.clip_range == pytest.approx(0.2 * SHAPES[shape](steps / 800))
        assert schedules.settings.ent_coef == pytest.approx(0.01 * SHAPES[shape](steps / 800))


def test_nothing_is_left_at_the_end_nor_beyond_it() -> None:
    schedules = Schedules(LearnerSettings(**ALL), 800)
    for steps in (800, 900):
        schedules.advance(steps, steps + 50)
        assert schedules.learning_rate == schedules.settings.ent_coef == 0
        assert schedules.settings.clip_range < 1e-9


def test_an_update_is_that_of_the_settings_as_they_then_are(counting_collector: Callable[..., Collector]) -> None:
    """To the bit, weights and Adam's moments, which are averages of gradients."""
    settings = LearnerSettings(num_epochs=2, num_minibatches=2, num_threads=2, **ALL)
    collector = counting_collector(settings)
    fragment = collector.collect()[0].to_arrow()
    scheduled = make_learner(collector, settings)
    for _ in range(4):  # of 138 steps, so that the warm-up ends in the third
        now = scheduled._optimizer.schedules
        before = scheduled.state()
        metrics = scheduled.update([fragment]).metrics
        assert metrics["learning_rate"] == now.learning_rate
        assert (metrics["clip_range"], metrics["ent_coef"]) == (now.settings.clip_range, now.settings.ent_coef)
        plain = replace(
            now.settings, learning_rate=now.learning_rate, lr_schedule="constant", lr_warmup=0.0,
            clip_schedule="constant", ent_schedule="constant",
        )  # fmt: skip
        reference = make_learner(collector, plain)
        reference.set_state({name: array for name, array in before.items() if not name.startswith(("anneal", "warm"))})
        reference.update([fragment])
        found = scheduled.state()
        for name, array in reference.state().items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_a_state_continues_every_schedule_to_the_bit(counting_collector: Callable[..., Collector]) -> None:
    settings = LearnerSettings(num_epochs=1, num_minibatches=2, num_threads=1, core_lr_scale=0.3, **ALL)
    collector = counting_collector(settings)
    fragment = collector.collect()[0].to_arrow()
    straight = make_learner(collector, settings)
    straight.update([fragment])
    assert straight.state().keys() == straight.expected_state().keys()
    resumed = make_learner(collector, settings)
    resumed.set_state(straight.state())
    for _ in range(3):
        a, b = straight.update([fragment]).metrics, resumed.update([fragment]).metrics
        assert [a[name] for name in ("learning_rate", "clip_range", "ent_coef")] == [
            b[name] for name in ("learning_rate", "clip_range", "ent_coef")
        ]
    a, b = straight.state(), resumed.state()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_an_extended_run_neither_warms_up_again_nor_rises() -> None:
    short = Schedules(LearnerSettings(**ALL), 800)
    for steps in range(0, 800, 50):
        short.advance(steps, steps + 50)
    longer = Schedules(LearnerSettings(**ALL), 1600)
    longer.set_state(short.state(), 800)
    before = (short.learning_rate, short.settings.clip_range, short.settings.ent_coef)
    for steps in range(800, 1600, 50):
        longer.advance(steps, steps + 50)
        after = (longer.learning_rate, longer.settings.clip_range, longer.settings.ent_coef)
        assert all(0 < a <= b for a, b in zip(after, before, strict=True))
        before = after


def test_a_warm_up_that_is_under_way_goes_on_as_it_was_when_the_end_is_moved() -> None:
    short, longer = (Schedules(LearnerSettings(**ALL), end) for end in (800, 1600))
    short.advance(0, 50)
    longer.set_state(short.state(), 50)
    for steps in range(50, 200, 50):
        short.advance(steps, steps + 50)
        longer.advance(steps, steps + 50)
        assert longer.learning_rate == short.learning_rate


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0])
def test_the_controller_moves_by_its_share(counting_collector: Callable[..., Collector], scale: float) -> None:
    """Adam's step is the learning rate times what does not depend on it."""
    settings = LearnerSettings(num_epochs=1, num_minibatches=1, core_lr_scale=1.0)
    collector = counting_collector(settings, initial_carry="learned")
    fragment = collector.collect()[0].to_arrow()
    learners = [make_learner(collector, replace(settings, core_lr_scale=s)) for s in (1.0, scale)]
    before = learners[0].weights().arrays
    whole, scaled = (
        {n: a - before[n] for n, a in each.weights().arrays.items()} for each in _updated(learners, fragment)
    )
    for name, moved in whole.items():
        share = scale if name.startswith("controller.") else 1.0
        np.testing.assert_allclose(scaled[name], share * moved, rtol=1e-3, atol=1e-7, err_msg=name)
    assert any(name.startswith("controller.") and np.abs(moved).max() > 1e-4 for name, moved in whole.items())


def _updated(learners: list[Learner], fragment: Any) -> list[Learner]:
    for learner in learners:
        learner.update([fragment])
    return learners


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lr_schedule": "step"}, "learner.lr_schedule is 'step'; use 'constant', 'linear' or 'cosine'"),
        ({"lr_warmup": 1.5}, "learner.lr_warmup is 1.5; it must lie between 0 and 1"),
        ({"core_lr_scale": -0.1}, "learner.core_lr_scale is -0.1; it must be at least 0"),
    ],
)
def test_settings_refuse_what_cannot_work(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LearnerSettings(**changes)
