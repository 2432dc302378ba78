"""Training statistics: episodes are counted in the order in which they began, so that short ones are not favoured."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from mneme.curriculum import Curriculum
from mneme.distributed.settings import CurriculumSettings
from mneme.distributed.workers import Delivery
from mneme.episodes import PATIENCE, EpisodeOrder
from mneme.rollout_workers.episodes import EpisodeCounter

LANES, FRAGMENT = 64, 8


def deliveries(seed: int = 0, worker: int = 0, success: int = 40, failure: int = 2) -> Iterator[Delivery]:
    """A worker whose episodes succeed half of the time, in which case they are long."""
    generator, counter = np.random.default_rng(seed), EpisodeCounter(LANES)
    wins = generator.random(LANES) < 0.5
    while True:
        for _ in range(FRAGMENT):
            done = counter.step_B + 1 == np.where(wins, success, failure)
            counter.count(np.where(done & wins, 1.0, 0.0), done, done)
            wins = np.where(done, generator.random(LANES) < 0.5, wins)
        yield Delivery(worker, 0, FRAGMENT * LANES, 0, 0, 0, counter.stats(1.0, (), {}))


def test_the_first_figures_are_not_those_of_short_episodes() -> None:
    order, counted, ended = EpisodeOrder(), [], []
    source = deliveries()
    for update in range(30):
        delivery = next(source)
        assert delivery.stats is not None
        if update < 40 // FRAGMENT:  # when the first successes end
            ended += delivery.stats.successes.tolist()
        counted += [success for played in order.release([delivery]) for success in played.successes.tolist()]
    assert np.mean(ended) < 0.35  # by the order of their ends
    assert len(counted) > 400
    assert abs(np.mean(counted) - 0.5) < 0.075  # three standard errors of 400


def test_in_the_long_run_every_episode_is_counted_once() -> None:
    order, source = EpisodeOrder(), deliveries()
    ended = counted = 0
    for _ in range(100):
        delivery = next(source)
        assert delivery.stats is not None
        ended += len(delivery.stats.returns)
        counted += sum(len(played.returns) for played in order.release([delivery]))
    waiting = sum(len(entry["waiting"]) for entry in order.state())
    assert counted + waiting == ended
    assert counted > 0.9 * ended


def test_a_curriculum_does_not_wait_for_long_failures_to_be_told_from_short_successes() -> None:
    """Successes are quick, failures run into the limit: at a true half, the level is not mastered at 0.8."""
    order, curriculum = EpisodeOrder(), Curriculum(CurriculumSettings(stages=({"a": 1},), success=0.8, episodes=64))
    source = deliveries(success=2, failure=40)
    assert not any(curriculum.advance(order.release([next(source)])) for _ in range(60))


def test_an_episode_that_never_ends_does_not_hold_the_others_for_ever() -> None:
    order, counter, counted = EpisodeOrder(), EpisodeCounter(2), 0
    for step in range(PATIENCE + 20):
        ends = np.array([False, step % 4 == 3])
        counter.count(np.zeros(2), ends, ends)
        counted += sum(len(p.returns) for p in order.release([Delivery(0, 0, 2, 0, 0, 0, counter.stats(None, (), {}))]))
        if step < PATIENCE:
            assert counted == 0
    assert counted == 5


def test_a_worker_that_starts_anew_takes_what_waited_with_it() -> None:
    order, source = EpisodeOrder(), deliveries()
    order.release([next(source)])
    assert order.state()[0]["waiting"]
    anew = next(deliveries(seed=1))._replace(incarnation=1)
    order.release([anew])
    assert anew.stats is not None
    assert len(order.state()[0]["waiting"]) == len(anew.stats.returns)


@pytest.mark.parametrize("updates", [1, 7])
def test_its_state_survives_json(updates: int) -> None:
    order, source = EpisodeOrder(), deliveries()
    for _ in range(updates):
        order.release([next(source)])
    again = EpisodeOrder()
    again.set_state(json.loads(json.dumps(order.state())))
    for _ in range(5):
        delivery = next(source)
        for a, b in zip(order.release([delivery]), again.release([delivery]), strict=True):
            np.testing.assert_array_equal(a.returns, b.returns)
            np.testing.assert_array_equal(a.successes, b.successes)
            np.testing.assert_array_equal(a.lengths, b.lengths)
