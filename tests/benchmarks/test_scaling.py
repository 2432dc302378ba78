"""The scaling benchmark: its stand-ins answer in the real form, and it counts what it says."""

import pickle
from typing import Any

import numpy as np
import pytest

from benchmarks.scaling import PROCESSES, SharingFleet, _answers, _broadcasts, _flow, _memory, _service, _slope
from benchmarks.stand_ins import SIZES, Pickled, ReadyWorker, Setting, StandInWeights
from mneme.distributed.workers import Delivery


def sent_and_received(what: Any) -> Any:
    return pickle.loads(pickle.dumps(what))


def test_an_actor_gets_what_is_sent_and_not_the_configuration() -> None:
    sent = {"pause": 0.5}
    assert sent_and_received(Setting(lambda: "cannot be pickled", sent)) == sent


def test_a_stand_in_delivers_what_a_worker_would() -> None:
    real = Delivery(0, 0, 100, 8, 0, 0, None)
    worker = ReadyWorker({"delivery": pickle.dumps(real), "pause": 0.0}, worker=3, incarnation=2)
    delivery, fragment = worker.collect(StandInWeights(7, np.zeros(4, np.uint8)), level=1)
    assert isinstance(delivery, Pickled)
    assert fragment.nbytes == SIZES[1]
    assert sent_and_received(delivery) == Delivery(3, 7, 100, SIZES[1], 2, 1, None)


def test_the_slope_and_its_error() -> None:
    x = np.arange(100.0)
    slope, error = _slope(x, 3 * x + 5)
    assert slope == pytest.approx(3)
    assert error < 1e-9
    slopes = [_slope(x, np.random.default_rng(seed).normal(size=100)) for seed in range(200)]
    hit = np.mean([abs(slope) < 1.96 * error for slope, error in slopes])
    assert 0.85 < hit < 0.99


@pytest.mark.ray
@pytest.mark.slow
def test_the_service_runs_with_stand_ins() -> None:
    sent = _answers()
    with _service(PROCESSES + 1, sent, SharingFleet) as runner:
        for mode in ("sync", "async"):
            row = _flow(runner, mode, level=1, seconds=0.2)
            assert row["fragments_per_second"] == pytest.approx((PROCESSES + 1) * row["updates_per_second"], rel=0.5)
            assert row["bytes_per_second"] == pytest.approx(SIZES[1] * row["fragments_per_second"])
            assert row["driver_seconds_per_fragment"] > 0
            assert not runner.fleet.busy
        assert all(0 < row["put_seconds"] < row["seconds"] for row in _broadcasts(runner, rounds=1))
        assert _memory(runner, 200)["references_most"] < 10 * (PROCESSES + 1)
