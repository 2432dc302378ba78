"""What an update costs in memory: no mode more than full, for any controller."""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from benchmarks.memory import MIB, MODES
from mneme.controllers import CONTROLLERS, ControllerSettings, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.experiments.update_cost import peak_bytes, update_costs
from mneme.learner import LearnerSettings
from mneme.learner.memory import update_memory
from mneme.rollout_workers import policy_spec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system does not say what a process held at most")

NOISE = 2 * MIB  # of what the system says a process holds


def test_the_peak_is_of_the_work_alone() -> None:
    held = np.ones(2**25, np.uint8)
    peak = peak_bytes(lambda: int(np.ones(2**24, np.uint8)[0]))
    assert abs(peak - 2**24) < NOISE
    assert held.all()


@pytest.mark.parametrize("kind", ["mlp", "gru", "mamba2"])
def test_an_update_is_estimated_before_there_is_any_data(kind: str) -> None:
    variants = {
        "full": LearnerSettings(num_epochs=1, num_threads=1),
        "checkpointing": LearnerSettings(num_epochs=1, num_threads=1, activation_checkpointing=True),
        "in parts": LearnerSettings(num_epochs=1, num_threads=1, gradient_accumulation=4),
    }
    T, B, H = 512, 32, 128
    # In a process of its own: what one that has done much else keeps for itself would hide some of a peak.
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        costs = fresh.submit(update_costs, kind, variants, length=T, lanes=B, hidden=H).result()
    env = make_vector_env(EnvSettings(id="mneme/DelayedCue-v0", kwargs={"horizon": T - 1}), 1)
    policy_settings = PolicySettings(controller=ControllerSettings(kind=kind, hidden_size=H))
    policy = build_policy(policy_spec(env), policy_settings, T - 1, seed=0)
    for name, settings in variants.items():
        fragment = costs[name].fragment
        found = update_memory(policy, settings, length=T, sequences=B, batch_bytes=fragment, threads=1)
        peak = costs[name].peak + fragment  # which was there before
        assert 0.6 * peak - 4 * NOISE < found.total < 1.5 * peak + NOISE, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(CONTROLLERS))
@pytest.mark.parametrize("lanes", [8, 32])  # two sequences in a minibatch, and eight
def test_no_mode_takes_more_memory_than_full(kind: str, lanes: int) -> None:
    """Beyond the fragment itself, which holds the carries; but for traces, which are kept beside it."""
    modes = {name: mode for name, mode in MODES.items() if name != "traces"}
    variants = {name: LearnerSettings(**mode, num_epochs=1, num_threads=1) for name, mode in modes.items()}
    costs = update_costs(kind, variants, length=8192 // lanes, lanes=lanes, hidden=128)
    peaks = {name: cost.peak for name, cost in costs.items()}
    full = peaks.pop("full")
    assert {name: peak for name, peak in peaks.items() if peak > full + NOISE} == {}
