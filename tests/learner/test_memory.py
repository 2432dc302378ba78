"""What an update costs in memory: no mode more than full, for any controller."""

import sys

import numpy as np
import pytest

from benchmarks.memory import MIB, MODES
from mneme.controllers import CONTROLLERS
from mneme.experiments.update_cost import peak_bytes, update_costs
from mneme.learner import LearnerSettings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system does not say what a process held at most")

NOISE = 2 * MIB  # of what the system says a process holds


def test_the_peak_is_of_the_work_alone() -> None:
    held = np.ones(2**25, np.uint8)
    peak = peak_bytes(lambda: int(np.ones(2**24, np.uint8)[0]))
    assert abs(peak - 2**24) < NOISE
    assert held.all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(CONTROLLERS))
@pytest.mark.parametrize("lanes", [8, 32])  # two sequences in a minibatch, and eight
def test_no_mode_takes_more_memory_than_full(kind: str, lanes: int) -> None:
    """Beyond the fragment itself, which holds the carries."""
    variants = {name: LearnerSettings(**mode, num_epochs=1, num_threads=1) for name, mode in MODES.items()}
    costs = update_costs(kind, variants, length=8192 // lanes, lanes=lanes, hidden=128)
    peaks = {name: cost.peak for name, cost in costs.items()}
    full = peaks.pop("full")
    assert {name: peak for name, peak in peaks.items() if peak > full + NOISE} == {}
