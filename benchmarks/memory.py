"""Measure what one update costs in memory, in every mode: `python -m benchmarks.memory`.

The peak is what the process held at most during an update beyond what it held before, the fragment included: numbers of
the operating system, so that every library's memory counts. Linux only. One thread, one minibatch in four, the second
update, when code is compiled and Adam has its moments.
"""

import argparse
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from mneme.controllers import CONTROLLERS, ControllerSettings, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.learner import Learner, LearnerSettings
from mneme.rollout_workers import Collector, policy_spec

MODES: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "truncated 16": {"mode": "truncated", "bptt_length": 16},
    "cached": {"mode": "cached"},
    "full, checkpointing": {"mode": "full", "activation_checkpointing": True},
    "truncated 16, stored": {"mode": "truncated", "bptt_length": 16, "carry_source": "stored"},
    "truncated 16, burn-in 16": {"mode": "truncated", "bptt_length": 16, "burn_in": 16, "carry_source": "stored"},
    "cached, stored": {"mode": "cached", "carry_source": "stored"},
}
MIB = 2**20


class Cost(NamedTuple):
    """The cost of one update."""

    peak: int  # bytes
    seconds: float  # of the processor
    fragment: int  # bytes


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(CONTROLLERS), default=list(CONTROLLERS))
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--length", type=int, default=512, help="steps in a sequence")
    parser.add_argument("--num-envs", type=int, default=64, help="sequences")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title="Peak memory of one update, MiB, and its seconds")
    table.add_column("kind")
    for name in arguments.modes:
        table.add_column(name, justify="right")
        table.add_column("fragment", justify="right")
    for kind in arguments.kinds:
        cells = []
        for name in arguments.modes:
            cost = update_cost(
                kind, MODES[name], arguments.length, arguments.num_envs, arguments.hidden, arguments.repeats
            )
            cells += [f"{cost.peak / MIB:,.0f}, {cost.seconds:.2f} s", f"{cost.fragment / MIB:,.0f}"]
            print(kind, name, *cells[-2:], file=sys.stderr)
        table.add_row(kind, *cells)
    Console(width=180).print(table)
    return 0


def update_cost(kind: str, mode: dict[str, Any], length: int, lanes: int, hidden: int, repeats: int = 1) -> Cost:
    """The cost of an update in this mode: the median of the repeats' seconds, the highest of their peaks."""
    _give_back_at_once()
    settings = LearnerSettings(**mode, num_epochs=1, num_threads=1)
    env = make_vector_env(EnvSettings(id="mneme/DelayedCue-v0", kwargs={"horizon": length - 1}), lanes)
    controller = ControllerSettings(kind=kind, hidden_size=hidden)
    policy = build_policy(policy_spec(env), PolicySettings(controller=controller), length - 1, seed=0)
    collector = Collector(env, policy, length, settings.plan(length).carry_stride, seed=0)
    batch = collector.collect()[0].to_arrow()
    learner = Learner(policy, settings, seed=0, total_timesteps=10**9)

    def update() -> None:
        learner.update([batch])

    update()
    peaks, seconds = [], []
    for _ in range(repeats):
        clock = process_time()
        peaks.append(peak_bytes(update))
        seconds.append(process_time() - clock)
    return Cost(max(peaks), median(seconds), batch.nbytes)


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
    ctypes.CDLL(None).mallopt(-3, 2**16)  # M_MMAP_THRESHOLD


def _held(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    sys.exit(main())
