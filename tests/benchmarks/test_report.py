"""The report's ratios are of rounds in turn, by the clock and by the processor."""

import pytest
from rich.console import Console

from benchmarks.contestants import Contestant
from benchmarks.measurement import LONG, Measurement
from benchmarks.report import show, summarise

OURS = Contestant(key="ray-gru", name="ours", module="none")
FAST = Contestant(key="fast", name="fast peer", module="none", peer=True)
THRIFTY = Contestant(key="thrifty", name="thrifty peer", module="none", peer=True)


def measured(seconds: float, of_processor: float) -> Measurement:
    return Measurement(
        steps=1000, seconds=seconds, processor_seconds=of_processor, mean_return=0.25, configuration={}, versions={}
    )


def test_each_ratio_is_to_the_peer_that_is_better_at_it() -> None:
    rounds = {
        FAST: [measured(1, 10), measured(2, 20), measured(4, 40)],
        THRIFTY: [measured(5, 5), measured(5, 5), measured(5, 5)],
        OURS: [measured(0.5, 1), measured(1, 1), measured(4, 1)],
    }
    summaries = {summary.key: summary for summary in summarise(rounds)}
    ours = summaries["ray-gru"]
    assert ours.ratio_to_better_peer == pytest.approx(2)  # the median of 2, 2 and 1
    assert ours.thrift_ratio_to_better_peer == pytest.approx(5)
    assert (ours.speed, ours.thrift) == pytest.approx((1000, 1000))
    assert summaries["fast"].thrift_ratio_to_better_peer == pytest.approx(0.25)


def test_the_ratio_is_of_rounds_and_not_of_medians() -> None:
    rounds = {
        FAST: [measured(1, 1), measured(2, 1), measured(4, 1)],
        OURS: [measured(2, 1), measured(4, 1), measured(2, 1)],
    }
    assert summarise(rounds)[1].ratio_to_better_peer == pytest.approx(0.5)


def test_peers_are_those_of_the_same_work() -> None:
    other = Contestant(key="long", name="long episodes", module="none", peer=True, work=LONG)
    ours = Contestant(key="ours-long", name="long episodes, ours", module="none", work=LONG)
    rounds = {FAST: [measured(1, 1)], other: [measured(8, 8)], OURS: [measured(2, 2)], ours: [measured(4, 4)]}
    ratios = {summary.key: summary.ratio_to_better_peer for summary in summarise(rounds)}
    assert ratios == {"fast": 1, "long": 1, "ray-gru": 0.5, "ours-long": 2}


def test_without_a_peer_there_is_no_ratio() -> None:
    console = Console(record=True, width=200)
    summaries = summarise({OURS: [measured(1, 2)], FAST: []})
    show(summaries, console)
    assert summaries[0].ratio_to_better_peer is None
    assert "500" in console.export_text()
