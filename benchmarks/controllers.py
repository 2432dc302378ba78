"""Measure every controller on a CPU, one thread: `make bench-controllers`, or `python -m benchmarks.controllers`.

Four things: its scan with the backward pass beside a `torch.nn.GRU` of as many parameters; what resets cost; how many
times as fast as the loop over its cell a long scan is; and how fast an actor collects with it, beside sb3-contrib's
RecurrentPPO, on the same batched task and as its documentation sets it up. What is compared takes turns, and the best
of its turns counts, as whatever else the machine does only adds time.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor

from benchmarks import measurement as m
from benchmarks.contestants import Contestant, ContestantError
from benchmarks.report import RESULTS
from mneme.controllers import (
    CONTROLLERS,
    Controller,
    ControllerSettings,
    PolicySettings,
    build_controller,
    build_policy,
)
from mneme.controllers.contract.figures import best_seconds, measure
from mneme.envs import EnvSettings, make_vector_env
from mneme.experiments.machine import describe_machine, versions
from mneme.rollout_workers import Collector, policy_spec

STEPS, LANES = 1024, (1, 64)  # of the long scan
COLLECTING_LANES, ROUNDS = 64, 3
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in CONTROLLERS},
    "gru, layer_norm": ("gru", {"layer_norm": True}),
    "lstm, layer_norm": ("lstm", {"layer_norm": True}),
    "nbrc, cellular": ("nbrc", {"cellular": True}),
    "pseudo_mamba, query=state": ("pseudo_mamba", {"query": "state"}),
}


def _sb3(key: str, what: str, *arguments: str) -> Contestant:
    """sb3-contrib's RecurrentPPO, an LSTM of as many units."""
    return Contestant(
        key=key,
        name=f"sb3-contrib RecurrentPPO, {what}",
        module="benchmarks.peers.sb3_recurrent_ppo",
        arguments=("--num-envs", str(COLLECTING_LANES), "--one-thread", *arguments),
        peer=True,
    )


PEERS = (_sb3("sb3", "on our batched task"), _sb3("sb3_stock", "as documented", "--stock"))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One controller of 128 units at its defaults; times are of one thread."""

    kind: str
    backend: str
    parameters: int
    carry_bytes: int  # of one lane
    scan_steps: float  # a second, forward and backward, T = 128, B = 64
    scan_ratio: float  # over that of a GRU with as many parameters
    single_steps: float  # a second, one step at a time without gradient, B = 64
    reset_cost: float  # share of the scan's time that resets at 2 % of the steps add
    times_loop: dict[int, float]  # lanes -> forward, T = 1024
    times_loop_both: float  # forward and backward, T = 1024, one lane
    collecting: float = 0.0  # environment steps a second, 64 lanes


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--name", default="controllers", help="of the JSON file under benchmarks/results/")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, machine = Console(), describe_machine()
    rows = []
    for kind in arguments.kinds:
        with console.status(f"{kind}: scans"):
            rows.append(_row(kind))
    speeds: dict[str, list[float]] = {kind: [] for kind in arguments.kinds}
    peers: dict[str, list[float]] = {peer.key: [] for peer in PEERS}
    for number in range(ROUNDS):
        with console.status(f"collecting, round {number + 1} of {ROUNDS}"):
            for peer in PEERS:
                try:
                    done = peer.measure(4 * COLLECTING_LANES * m.SHORT.episode, seed=number)
                    peers[peer.key].append(done.steps / done.spent["collect"])
                except ContestantError as error:
                    console.print(f"[red]{error}[/]")
            for kind in arguments.kinds:
                speeds[kind].append(_collecting(kind))
    rows = [replace(row, collecting=max(speeds[row.kind])) for row in rows]
    console.print(_table(rows, [max(rounds, default=None) for rounds in peers.values()]))
    document = {
        "machine": machine,
        "versions": versions("torch", "numba", "numpy"),
        "collecting": peers,
        "results": [asdict(row) for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{arguments.name}.json"
    path.write_text(json.dumps(document, indent=2) + "\n")
    console.print(f"Stored in {path}")
    return 0


def _settings(variant: str) -> ControllerSettings:
    kind, kwargs = VARIANTS[variant]
    return ControllerSettings(kind=kind, hidden_size=m.HIDDEN, **kwargs)


def _row(kind: str) -> Row:
    def build(input_size: int, generator: Generator) -> Controller:
        return build_controller(_settings(kind), input_size, m.SHORT.horizon, generator)

    figures = measure(build, m.HIDDEN)
    controller = build(m.HIDDEN, Generator().manual_seed(0))
    return Row(
        kind=kind,
        backend=controller.backend_on(torch.device("cpu")),
        parameters=figures.parameters,
        carry_bytes=figures.carry_bytes,
        scan_steps=figures.scan_speed,
        scan_ratio=figures.scan_ratio,
        single_steps=figures.step_speed,
        reset_cost=figures.reset_cost,
        times_loop={lanes: _times_loop(controller, lanes, gradients=False) for lanes in LANES},
        times_loop_both=_times_loop(controller, 1, gradients=True),
    )


def _times_loop(controller: Controller, lanes: int, gradients: bool) -> float:
    generator = Generator().manual_seed(0)
    x_TBD = torch.randn(STEPS, lanes, m.HIDDEN, generator=generator)
    reset_TB = torch.rand(STEPS, lanes, generator=generator) < 0.02

    def run(scan: Callable[..., tuple[Tensor, object]]) -> None:
        with torch.set_grad_enabled(gradients):
            y_TBH, _ = scan(x_TBD, reset_TB, controller.initial_carry(lanes))
        if gradients:
            torch.autograd.grad(y_TBH.sum(), list(controller.parameters()), allow_unused=True)

    fast, loop = best_seconds(partial(run, controller.scan), partial(run, controller.reference_scan))
    return loop / fast


def _collecting(kind: str) -> float:
    """Over four fragments of one episode a lane, after one to warm up."""
    env = make_vector_env(
        EnvSettings(id=m.ENV_ID, kwargs={"cues": m.CUES, "horizon": m.SHORT.horizon}), COLLECTING_LANES
    )
    policy = build_policy(policy_spec(env), PolicySettings(controller=_settings(kind)), horizon=m.SHORT.horizon, seed=0)
    collector = Collector(env, policy, m.SHORT.episode, m.SHORT.episode, seed=0)
    collector.collect()
    started = perf_counter()
    for _ in range(4):
        collector.collect()
    return 4 * COLLECTING_LANES * m.SHORT.episode / (perf_counter() - started)


def _table(rows: list[Row], peers: list[float | None]) -> Table:
    table = Table(title="One thread")
    for heading in ("kind", "backend"):
        table.add_column(heading)
    for heading in (
        "× GRU",
        "steps/s",
        "resets",
        *(f"× loop, B = {lanes}" for lanes in LANES),
        "× loop, both",
        *(f"× {peer.key}" for peer in PEERS),
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*_cells(row, peers))
    return table


def _cells(row: Row, peers: list[float | None]) -> Iterator[str]:
    yield from (row.kind, row.backend, f"{row.scan_ratio:.2f}", f"{row.scan_steps:,.0f}", f"{row.reset_cost:+.1%}")
    yield from (f"{times:.1f}" for times in (*row.times_loop.values(), row.times_loop_both))
    yield from (f"{row.collecting / peer:.2f}" if peer else "–" for peer in peers)


if __name__ == "__main__":
    sys.exit(main())
