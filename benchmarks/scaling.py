"""What the service itself costs, without the work of its parts: `python -m benchmarks.scaling`.

The real fleet, replay, loops and meter, with actors that answer at once (`benchmarks/stand_ins.py`): fragments and
bytes per second, processor time of the driver and of Ray for each fragment, the time of a broadcast, and whether the
driver's memory grows. docs/scaling.md reckons with the figures.
"""

import argparse
import json
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import ray
from rich.console import Console

from benchmarks.report import RESULTS
from benchmarks.stand_ins import SIZES, ReadyLearner, ReadyWorker, Sent, Setting, StandInWeights
from mneme.configuration.config import Config, load_config
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.fleet import RolloutFleet
from mneme.distributed.ray_runner import RayRunner
from mneme.distributed.replay import Replay
from mneme.distributed.runners import LocalRunner
from mneme.distributed.service import Update, asynchronous, synchronous
from mneme.experiments.machine import describe_machine, versions
from mneme.reporting.meter import Meter

WEIGHTS = (100_000, 1_000_000, 10_000_000, 100_000_000)  # bytes
WARM_UP = 1.0  # seconds before each measurement
PROCESSES = 8  # that share the requests of a fleet of any size, where one is measured that does not fit
PAUSE = 0.08  # seconds that each of them takes for a request, so that deliveries come one at a time
RAYS = ("raylet", "gcs_server")  # Ray's own processes on a head; each further node has a raylet
Row = dict[str, Any]


def main() -> int:
    """Measure, print, store."""
    arguments = _arguments()
    console, machine = Console(), describe_machine()
    sent = _answers()
    flow: list[Row] = []
    broadcast: list[Row] = []
    for actors in arguments.actors:
        with _service(actors, sent) as runner:
            for mode in ("async", "sync"):
                for level in range(len(SIZES)):
                    flow.append({"actors": actors, "mode": mode} | _flow(runner, mode, level, arguments.seconds))
                    console.print(flow[-1])
            broadcast += [{"actors": actors} | row for row in _broadcasts(runner, arguments.rounds)]
            console.print(broadcast[-len(WEIGHTS) :])
    alone: list[Row] = []
    for workers in arguments.workers:
        with _service(workers, sent | {"pause": PAUSE}, SharingFleet) as runner:
            alone.append({"workers": workers, "processes": PROCESSES, "pause": PAUSE})
            alone[-1] |= _flow(runner, "async", 0, arguments.seconds)
            console.print(alone[-1])
    with _service(arguments.memory_actors, sent) as runner:
        memory = _memory(runner, arguments.updates)
    console.print(memory)
    document = {
        "machine": machine | {"load_after": os.getloadavg()[0]},
        "versions": versions("ray", "numpy", "pyarrow"),
        "flow": flow,
        "one_at_a_time": alone,
        "broadcast": broadcast,
        "memory": {"actors": arguments.memory_actors} | memory,
    }
    path = arguments.results / f"{arguments.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
    console.print(f"Stored in {path}")
    return 0


def _config(*overrides: str) -> Config:
    return load_config(None, ["service.replay_bytes=2000000000", *overrides])


class SharingFleet(RolloutFleet):
    """A fleet whose workers share `PROCESSES` actors: to the driver as many requests, without as many processes."""

    def _spawn(self, worker: int) -> Any:
        if worker == 0:
            self._own: list[Any] = []
        if worker < PROCESSES:
            self._own.append(super()._spawn(worker))
            return self._own[-1]
        actor = self._own[worker % PROCESSES]
        self._expect(worker, actor)
        return actor


def _answers() -> Sent:
    """A real delivery and a real report, of one update of the preset task, for the stand-ins to answer with."""
    few = ["rollout.num_workers=1", "rollout.num_envs=16", "learner.num_minibatches=1", "learner.num_epochs=1"]
    runner = LocalRunner(make_blueprint(_config(*few)))
    arrivals = runner.collect()
    report = runner.learn([arrival.fragment for arrival in arrivals])
    runner.close()
    return {"delivery": pickle.dumps(arrivals[0].delivery), "report": pickle.dumps(report), "pause": 0.0}


@contextmanager
def _service(actors: int, sent: Sent, fleet: type[RolloutFleet] = RolloutFleet) -> Iterator[RayRunner]:
    """The real driver's side of a service of so many actors."""
    config = _config(f"rollout.num_workers={actors}", f"rollout.num_envs={actors}", "service.worker_cpus=0.01")
    setting: Any = Setting(config, sent)
    with (
        patch("mneme.distributed.fleet.RolloutWorker", ReadyWorker),
        patch("mneme.distributed.learners.LearnerReplica", ReadyLearner),
        patch("mneme.distributed.ray_runner.RolloutFleet", fleet),
    ):
        runner = RayRunner(setting)
        try:
            runner.start()
            yield runner
        finally:
            runner.close()


def _updates(runner: RayRunner, mode: str) -> Iterator[Update]:
    """The loop's updates, each metered as in a run."""
    max_bytes, meter = 2_000_000_000, Meter(runner.workers)
    loop = (
        asynchronous(runner, Replay(max_bytes, 1)) if mode == "async" else synchronous(runner, Replay(max_bytes, 0), 5)
    )
    for update in loop:
        meter.row(update, [])
        yield update


def _flow(runner: RayRunner, mode: str, level: int, seconds: float) -> Row:
    """Fragments through the service, for so many seconds."""
    runner.level = level
    updates = _updates(runner, mode)
    _spend(updates, WARM_UP)
    system = _ray_seconds()
    began, worked = perf_counter(), process_time()
    fragments, turns = _spend(updates, seconds)
    elapsed, worked = perf_counter() - began, process_time() - worked
    updates.close()
    while runner.fleet.busy:
        runner.fleet.wait()
    return {
        "fragment_bytes": SIZES[level],
        "fragments_per_second": fragments / elapsed,
        "bytes_per_second": fragments * SIZES[level] / elapsed,
        "updates_per_second": turns / elapsed,
        "driver_seconds_per_fragment": worked / fragments,
        "driver_share": worked / elapsed,
        **{
            f"{name}_seconds_per_fragment": (later - system[name]) / fragments for name, later in _ray_seconds().items()
        },
    }


def _spend(updates: Iterator[Update], seconds: float) -> tuple[int, int]:
    """Fragments and updates in that time."""
    fragments, turns, until = 0, 0, perf_counter() + seconds
    while perf_counter() < until:
        fragments += len(next(updates).deliveries)
        turns += 1
    return fragments, turns


def _ray_seconds() -> dict[str, float]:
    """Processor time that Ray's processes have used."""
    found = dict.fromkeys(RAYS, 0.0)
    for process in psutil.Process().children(recursive=True):
        if process.name() in found:
            found[process.name()] += sum(process.cpu_times()[:2])
    return found


def _broadcasts(runner: RayRunner, rounds: int) -> list[Row]:
    """Seconds from weights in this process until every actor holds a copy and has answered with the smallest fragment:
    the least of some rounds, as whatever else runs can only add to it."""
    rows, version = [], 1_000_000_000
    for size in WEIGHTS:
        payload, puts, alls = np.zeros(size, np.uint8), list[float](), list[float]()
        for _ in range(rounds):
            version += 1
            began = perf_counter()
            weights = ray.put(StandInWeights(version, payload))
            puts.append(perf_counter() - began)
            for worker in runner.fleet.idle:
                runner.fleet.request(worker, weights, 0)
            while runner.fleet.busy:
                runner.fleet.wait()
            alls.append(perf_counter() - began)
        rows.append({"weights_bytes": size, "put_seconds": min(puts), "seconds": min(alls)})
    return rows


def _memory(runner: RayRunner, count: int) -> Row:
    """Resident memory of the driver and the references that it knows, over many updates, without the first fifth."""
    process, updates = psutil.Process(), _updates(runner, "async")
    at, resident, references = [], [], []
    runner.level = 0
    for number in range(1, count + 1):
        next(updates)
        if number % max(1, count // 100) == 0 and number > count // 5:
            at.append(number)
            resident.append(process.memory_info().rss)
            references.append(len(ray._private.worker.global_worker.core_worker.get_all_reference_counts()))
    slope, error = _slope(np.array(at, float), np.array(resident, float))
    return {
        "updates": count,
        "resident_bytes": resident[-1],
        "bytes_per_update": slope,
        "bytes_per_update_interval": [slope - 1.96 * error, slope + 1.96 * error],
        "references_first": references[0],
        "references_last": references[-1],
        "references_most": max(references),
    }


def _slope(x: np.ndarray, y: np.ndarray, blocks: int = 8) -> tuple[float, float]:
    """The least-squares slope, and its standard error by a jackknife over blocks, as neighbours resemble each other."""
    whole = float(np.polyfit(x, y, 1)[0])
    parts = np.array_split(np.arange(len(x)), blocks)
    without = np.array([np.polyfit(np.delete(x, part), np.delete(y, part), 1)[0] for part in parts])
    return whole, float(np.sqrt((blocks - 1) / blocks * ((without - without.mean()) ** 2).sum()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 1000], help="with deliveries one at a time")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of fragments")
    parser.add_argument("--rounds", type=int, default=5, help="of each broadcast")
    parser.add_argument("--updates", type=int, default=5000, help="over which memory is watched")
    parser.add_argument("--memory-actors", type=int, default=4)
    parser.add_argument("--name", default="scaling", help="of the JSON file in benchmarks/results")
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
