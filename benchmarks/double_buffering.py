"""Measure what double-buffered collecting brings where environments step slowly in processes of their own.

    python -m benchmarks.double_buffering

An environment sleeps, as one that waits for a simulator does, or keeps its core busy, for so many milliseconds a step.
It shows a few numbers, read by a GRU of 128 units, or an image, read by convolutions too. Its lanes are those of one
process that acts, or shared out among two, as among two rollout actors. Each process has the lanes twice, and collects
fragments with halves that take turns and without, in turn; the figures are the ratios of the wall clock, a round each.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import gymnasium as gym
import numpy as np

STEPS = 32
SHOWN = {"numbers": (4,), "image": (64, 64, 3)}
RESULTS = Path(__file__).parent / "results"


class Slow(gym.Env[np.ndarray, np.int64]):
    """Takes its time for every step.

    Args:
        milliseconds: of a step.
        busy: whether it keeps a core busy, or sleeps.
        shown: what it shows, of `SHOWN`.
    """

    def __init__(self, milliseconds: float, busy: bool, shown: str) -> None:
        image = shown == "image"
        self.observation_space = gym.spaces.Box(0, 255 if image else 1, SHOWN[shown], np.uint8 if image else np.float32)
        self.action_space = gym.spaces.Discrete(4)
        self._seconds, self._busy = milliseconds / 1000, busy

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        over = perf_counter() + self._seconds
        if not self._busy:
            sleep(self._seconds)
        while perf_counter() < over:
            pass
        return self.observation_space.sample(), 0.0, False, False, {}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is collected, and by how many."""

    milliseconds: float
    busy: bool
    shown: str
    processes: int
    lanes: int  # of all processes


@dataclass(frozen=True, kw_only=True)
class Row:
    """Collecting in one of the cases."""

    case: Case
    inference: float  # milliseconds of a step that all lanes of a process are acted for in, without halves
    speed: float  # steps per second without halves, all processes together, the median of the rounds
    ratios: list[float]  # of the speeds, with halves over without, a round each


def serve(case: Case, first_lane: int, calls: Connection) -> None:
    """Collect a fragment for each answer to be given, with halves if it is asked so; answers are the milliseconds of
    a step that went into inference."""
    import torch

    from mneme.controllers import ControllerSettings, PolicySettings, build_policy
    from mneme.envs import EnvSettings, Place, make_vector_env
    from mneme.rollout_workers import Collector, DoubleBuffered, policy_spec

    torch.set_num_threads(1)
    gym.register("Slow-v0", entry_point="benchmarks.double_buffering:Slow")
    kwargs = {"milliseconds": case.milliseconds, "busy": case.busy, "shown": case.shown}
    settings = EnvSettings(id="Slow-v0", kwargs=kwargs, vectorization_mode="async")
    lanes = case.lanes // case.processes
    with ExitStack() as opened:
        envs = [
            opened.enter_context(closing(make_vector_env(settings, number, place=Place(first))))
            for number, first in ((lanes, first_lane), (lanes // 2, first_lane), (lanes // 2, first_lane + lanes // 2))
        ]
        policy = build_policy(policy_spec(envs[0]), PolicySettings(controller=ControllerSettings(kind="gru")), 64, 0)
        whole, *halves = (Collector(env, policy, STEPS, STEPS, seed=0) for env in envs)
        ways = {False: whole, True: DoubleBuffered(*halves)}
        for way in ways.values():
            way.collect()
        calls.send(0.0)
        while (halved := calls.recv()) is not None:
            _, stats = ways[halved].collect()
            calls.send(1000 * stats.seconds["inference"] / STEPS)


def measure(case: Case, rounds: int) -> Row:
    """Collect in turn with halves and without."""
    context = multiprocessing.get_context("spawn")
    share, pipes = case.lanes // case.processes, [context.Pipe() for _ in range(case.processes)]
    served = [context.Process(target=serve, args=(case, i * share, theirs)) for i, (_, theirs) in enumerate(pipes)]
    for process, (_, theirs) in zip(served, pipes, strict=True):
        process.start()
        theirs.close()  # or nobody would notice that it has died
    ours = [own for own, _ in pipes]
    for own in ours:
        own.recv()

    def collected(halved: bool) -> tuple[float, float]:
        """Steps per second, and milliseconds of a step that go into inference."""
        start = perf_counter()
        for own in ours:
            own.send(halved)
        inference = [own.recv() for own in ours]
        return case.lanes * STEPS / (perf_counter() - start), median(inference)

    pairs = [(collected(False), collected(True)) for _ in range(rounds)]
    for own, process in zip(ours, served, strict=True):
        own.send(None)
        process.join()
    return Row(
        case=case,
        inference=median(inference for (_, inference), _ in pairs),
        speed=median(speed for (speed, _), _ in pairs),
        ratios=[halved / whole for (whole, _), (halved, _) in pairs],
    )


def _told(row: Row) -> str:
    case, ratios = row.case, sorted(row.ratios)
    return (
        f"| {case.milliseconds:g} ms, {'busy' if case.busy else 'asleep'} | {case.shown}, {row.inference:.1f} ms "
        f"| {case.processes} | {case.lanes} | {row.speed:,.0f} | {median(ratios):.2f} "
        f"[{ratios[0]:.2f}, {ratios[-1]:.2f}] |"
    )


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--milliseconds", nargs="+", type=float, default=[1.0, 5.0])
    parser.add_argument("--busy", nargs="+", choices=("asleep", "busy"), default=["asleep", "busy"])
    parser.add_argument("--lanes", nargs="+", type=int, default=[16], help="multiples of 4")
    parser.add_argument("--shown", nargs="+", choices=list(SHOWN), default=list(SHOWN))
    parser.add_argument("--processes", nargs="+", type=int, choices=(1, 2), default=[1, 2])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--name", default="double_buffering", help="of the JSON file under benchmarks/results/")
    arguments = parser.parse_args(words)
    from mneme.experiments.machine import describe_machine, versions

    rows = []
    cases = product(arguments.shown, arguments.milliseconds, arguments.busy, arguments.processes, arguments.lanes)
    for shown, ms, busy, processes, lanes in cases:
        case = Case(milliseconds=ms, busy=busy == "busy", shown=shown, processes=processes, lanes=lanes)
        rows.append(measure(case, arguments.rounds))
        print(_told(rows[-1]), file=sys.stderr)
    document = {
        "machine": describe_machine(), "versions": versions("torch", "numba", "numpy", "gymnasium"),
        "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
