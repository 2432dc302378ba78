"""The cost of one update in memory and processor time, for settings of the learner side by side.

The peak is what the process held at most during an update beyond what it held before, the fragment included: numbers of
the operating system, so that every library's memory counts. Linux only.
"""

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import process_time
from typing import NamedTuple

import pyarrow as pa
import torch

from mneme.controllers import ControllerSettings, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.learner import Learner, LearnerSettings
from mneme.rollout_workers import Collector, policy_spec

_MMAP_THRESHOLD = -3  # of mallopt


class Cost(NamedTuple):
    """The cost of one update."""

    peak: int  # bytes
    seconds: float  # of the processor
    collecting: float  # seconds of the processor that the update's steps took to collect
    fragment: int  # bytes


class Trial(NamedTuple):
    """A learner, and a batch of delayed cue for it."""

    learner: Learner
    batch: pa.RecordBatch
    collecting: float  # seconds of the processor that the batch took

    def update(self) -> None:
        """Train on it."""
        self.learner.update([self.batch])


def update_costs(
    kind: str, variants: Mapping[str, LearnerSettings], *, length: int, lanes: int, hidden: int, rounds: int = 1
) -> dict[str, Cost]:
    """The cost of an update under each of some settings: median seconds of the rounds, in which they take turns, and
    the highest peak. Memory is given back at once from now on, which slows the process down.

    Args:
        kind: of the controller.
        variants: the settings, by name.
        length: steps in a sequence.
        lanes: sequences.
        hidden: units.
        rounds: of one update of each.
    """
    torch.set_num_threads(1)
    _give_back_at_once()
    trials = {name: make_trial(kind, settings, length, lanes, hidden) for name, settings in variants.items()}
    for trial in trials.values():  # code is compiled, and Adam has its moments
        trial.update()
    peaks: dict[str, list[int]] = {name: [] for name in trials}
    seconds: dict[str, list[float]] = {name: [] for name in trials}
    for _ in range(rounds):
        for name, trial in trials.items():
            clock = process_time()
            peaks[name].append(peak_bytes(trial.update))
            seconds[name].append(process_time() - clock)
    return {
        name: Cost(max(peaks[name]), median(seconds[name]), trial.collecting, trial.batch.nbytes)
        for name, trial in trials.items()
    }


def make_trial(kind: str, settings: LearnerSettings, length: int, lanes: int, hidden: int) -> Trial:
    """A learner of `hidden` units, and a batch of `lanes` sequences of `length` steps, an episode each."""
    env = make_vector_env(EnvSettings(id="mneme/DelayedCue-v0", kwargs={"horizon": length - 1}), lanes)
    controller = ControllerSettings(kind=kind, hidden_size=hidden)
    policy = build_policy(policy_spec(env), PolicySettings(controller=controller), length - 1, seed=0)
    collector = Collector(env, policy, length, settings.plan(length).carry_stride, seed=0)
    collector.collect()
    clock = process_time()
    fragment, _ = collector.collect()
    collecting = process_time() - clock
    return Trial(Learner(policy, settings, seed=0, total_timesteps=10**9), fragment.to_arrow(), collecting)


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that the process held during the work, in bytes, beyond what it held before.

    Raises:
        OSError: this system does not say.
    """
    _give_back_at_once()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is held now
    before = _held("VmRSS")
    work()
    return _held("VmHWM") - before


def _give_back_at_once() -> None:
    """From now on what is large goes back to the system when it is let go, and not into heaps where it hides."""
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**16)


def _held(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
