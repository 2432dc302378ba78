"""Measure what processes beside the learner bring over threads in it.

    python -m benchmarks.shards

Updates of delayed cue, 4 epochs of 4 minibatches, which are one shard, or as many as there are cores (at least two),
those by one thread in turn, by as many threads, or by one thread and processes. The figures are milliseconds of an
update, medians of the turns.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from unittest.mock import patch

import pyarrow as pa
import torch

from mneme.controllers import ControllerSettings, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.experiments.machine import describe_machine, versions
from mneme.learner import Learner, LearnerSettings, default_num_threads, shards
from mneme.rollout_workers import Collector, policy_spec

RESULTS = Path(__file__).parent / "results"
SIZES = {"64 x 9": (64, 9, 64), "256 x 65": (256, 65, 128), "64 x 1025": (64, 1025, 128)}
"""Sequences, steps of each, and hidden units."""
WAYS = "one shard", "in turn", "threads", "processes"


@dataclass(frozen=True)
class Row:
    """One kind at one size."""

    kind: str
    size: str
    milliseconds: dict[str, float]  # of an update, by way


def updates_of(kind: str, size: str, threads: int) -> dict[str, Callable[[], object]]:
    """An update by each way, all of the same fragment."""
    sequences, steps, hidden = SIZES[size]
    env = make_vector_env(EnvSettings(id="mneme/DelayedCue-v0", kwargs={"horizon": steps - 1}), sequences)
    settings = PolicySettings(controller=ControllerSettings(kind=kind, hidden_size=hidden))
    policies = {way: build_policy(policy_spec(env), settings, steps - 1, seed=0) for way in WAYS}
    fragment, _ = Collector(env, policies[WAYS[0]], steps, steps, seed=0).collect()
    batch, ways = fragment.to_arrow(), {}
    for way, policy in policies.items():
        chosen = LearnerSettings(num_threads=1 if way == "one shard" else threads)
        learner = Learner(policy, chosen, seed=0, total_timesteps=10**9)
        ways[way] = _updating(learner, batch, "in turn" if way == "one shard" else way)
    return ways


def _updating(learner: Learner, batch: pa.RecordBatch, way: str) -> Callable[[], object]:
    """An update that shares minibatches out in this way; processes have started."""
    worth = 0.0 if way == "processes" else float("inf")
    gone = {"_way": lambda _, __, by_processes: way if by_processes or way != "processes" else "threads"}

    def update() -> object:
        with patch.object(shards, "_WORTH_IT", worth), patch.multiple(shards.Shards, **gone):
            return learner.update([batch])

    update()
    while worth == 0 and learner._optimizer._shards._state != "trusted":
        update()
    return update


def measure(kind: str, size: str, threads: int, rounds: int, seconds: float) -> Row:
    """Update in turn by each way, for so many seconds a turn."""
    ways = updates_of(kind, size, threads)
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, update in ways.items():
            update()
            count, began = 0, perf_counter()
            while perf_counter() < began + seconds:
                update()
                count += 1
            taken[way].append(1000 * (perf_counter() - began) / count)
    return Row(kind, size, {way: median(turns) for way, turns in taken.items()})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["gru", "lstm", "mamba2", "transformer"])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=[*SIZES])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--output", type=Path, default=RESULTS / "shards.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    threads, machine = max(2, default_num_threads()), describe_machine()
    rows = []
    print(f"milliseconds of an update, as {', '.join(WAYS)}; shards: {threads}")
    for kind, size in product(options.kinds, options.sizes):
        rows.append(measure(kind, size, threads, options.rounds, options.seconds))
        print(kind, size, *(f"{rows[-1].milliseconds[way]:.1f}" for way in WAYS), flush=True)
    document = {"threads": threads, "rows": [asdict(row) for row in rows], "machine": machine}
    options.output.write_text(json.dumps(document | {"versions": versions("torch", "numba", "numpy")}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
