"""Measure the tasks alone, on one core: `make bench`, or `python -m benchmarks.environments`.

Each task's own vector form at several numbers of lanes, and Gymnasium's SyncVectorEnv over its single form beside it;
they take turns, and the best of their rounds counts, as nothing makes a program faster than it is. Then what the
environment takes of collecting with a small policy.
"""

import json
import sys
from dataclasses import asdict, dataclass
from itertools import product
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rich.console import Console
from rich.table import Table

from benchmarks.report import RESULTS
from mneme.controllers import PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.experiments.machine import describe_machine, versions
from mneme.rollout_workers import Collector, policy_spec

TASKS: dict[str, dict[str, Any]] = {
    "DelayedCue": {},
    "DelayedCue, distractors and noise": {"distractors": 0.1, "noise": 0.3, "shortest_horizon": 32},
    "CopyMemory": {"symbols": 8, "length": 10, "delay": 50},
    "AssociativeRecall": {"keys": 16, "values": 16, "pairs": 8, "delay": 50},
    "TMaze": {"length": 50},
    "TMaze, active": {"length": 50, "active": True},
    "RepeatPreviousEasy": {},
    "RepeatPreviousHard": {},
    "MemoryLen": {"length": 50},
    "MemorySize": {"bits": 17},
}
LANES = (1, 64, 1024)
COLLECTING_LANES = 64
ROUNDS, SECONDS = 5, 0.1  # turns of each contestant, and about how long each lasts


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The speed of one task on one core."""

    task: str
    microseconds: dict[int, float]  # lanes -> one step of all of them
    steps_per_second: dict[int, float]  # lanes -> steps of single lanes
    times_sync: float  # steps per second at most lanes, in multiples of SyncVectorEnv's over the single form
    share_of_collection: float  # time in the environment while collecting with a GRU of 128


def main() -> int:
    """Measure, print, store."""
    torch.set_num_threads(1)
    console = Console()
    machine = describe_machine()
    speeds = []
    for task, kwargs in TASKS.items():
        with console.status(task):
            speeds.append(_measure(task, f"mneme/{task.partition(',')[0]}-v0", kwargs))
    console.print(_table(speeds))
    document = {
        "machine": machine,
        "versions": versions("gymnasium", "numpy", "torch"),
        "results": [asdict(speed) for speed in speeds],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "environments.json"
    path.write_text(json.dumps(document, indent=2) + "\n")
    console.print(f"Stored in {path}")
    return 0


def _measure(task: str, id: str, kwargs: dict[str, Any]) -> Speed:
    def single() -> gym.Env[Any, Any]:
        return gym.make(id, disable_env_checker=True, **kwargs)

    ours = {lanes: make_vector_env(EnvSettings(id=id, kwargs=kwargs), lanes) for lanes in LANES}
    sync = SyncVectorEnv([single] * max(LANES), autoreset_mode=AutoresetMode.SAME_STEP)
    best = dict.fromkeys(LANES, np.inf)
    best_sync = np.inf
    for env in (*ours.values(), sync):
        env.reset(seed=0)
    for _, (lanes, env) in product(range(ROUNDS), ours.items()):
        best[lanes] = min(best[lanes], _seconds_a_step(env))
        if lanes == max(LANES):
            best_sync = min(best_sync, _seconds_a_step(sync))
    return Speed(
        task=task,
        microseconds={lanes: 1e6 * seconds for lanes, seconds in best.items()},
        steps_per_second={lanes: lanes / seconds for lanes, seconds in best.items()},
        times_sync=best_sync / best[max(LANES)],
        share_of_collection=_share_of_collection(id, kwargs),
    )


def _seconds_a_step(env: gym.vector.VectorEnv[Any, Any, Any]) -> float:
    """The mean over about SECONDS, resets at the ends of episodes included."""
    rng = np.random.default_rng(0)
    actions = rng.integers(int(env.single_action_space.n), size=(64, env.num_envs))
    steps, started = 0, perf_counter()
    while (elapsed := perf_counter() - started) < SECONDS:
        env.step(actions[steps % 64])
        steps += 1
    return elapsed / steps


def _share_of_collection(id: str, kwargs: dict[str, Any]) -> float:
    env = make_vector_env(EnvSettings(id=id, kwargs=kwargs), COLLECTING_LANES)
    policy = build_policy(policy_spec(env), PolicySettings(), horizon=64, seed=0)
    collector = Collector(env, policy, 128, 128, seed=0)
    collector.collect()
    shares = []
    for _ in range(ROUNDS):
        seconds = collector.collect()[1].seconds
        shares.append(seconds["env"] / sum(seconds.values()))
    return float(np.median(shares))


def _table(speeds: list[Speed]) -> Table:
    table = Table(title="Environment steps per second on one core")
    table.add_column("task")
    for lanes in LANES:
        table.add_column(f"{lanes:,} lane{'s' * (lanes > 1)}", justify="right")
    table.add_column(f"µs a step, {max(LANES):,}", justify="right")
    table.add_column("× SyncVectorEnv", justify="right")
    table.add_column(f"% of collecting, {COLLECTING_LANES}", justify="right")
    for s in speeds:
        table.add_row(
            s.task,
            *(f"{s.steps_per_second[lanes]:,.0f}" for lanes in LANES),
            f"{s.microseconds[max(LANES)]:.1f}",
            f"{s.times_sync:.0f}",
            f"{100 * s.share_of_collection:.1f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
