"""Time training with each implementation of the scans: `python -m benchmarks.backends`. It needs no Ray.

For each kind of controller two things are measured. *End to end*: collecting and learning, an update of the preset for
delayed cue (`benchmarks.ours.configuration`). *Alone*: a scan of T = 65 steps in 64 environments forward and backward,
and one step without gradients. The backend "torch_slots" is "auto" but for the slot memory of pseudo_mamba, which is in
PyTorch. With `--against` the same code of another checkout is measured beside it, by which a change of a kernel is
judged.

Every contestant is a process of its own. They take turns of a few seconds, and ratios are of medians.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table
from torch import Generator

from benchmarks import measurement as m
from benchmarks.ours import configuration
from mneme.controllers import CONTROLLERS, ControllerSettings, build_controller, pseudo_mamba
from mneme.distributed.blueprint import make_blueprint
from mneme.envs import make_vector_env
from mneme.experiments.machine import describe_machine, versions
from mneme.learner import Learner
from mneme.rollout_workers import Collector

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
COMPILED = [kind for kind, made in CONTROLLERS.items() if "numba" in getattr(made, "backends", ())]
STEPS, LANES, RESETS = 65, 64, 0.02


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds."""

    end_to_end: float  # an update: collect and learn
    collect: float  # of that
    scan: float  # forward and backward, one thread
    step: float  # of acting


def main() -> int:
    """Measure in turn, print and store; or, as a contestant, measure whenever a line comes in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(CONTROLLERS), default=COMPILED)
    parser.add_argument("--backends", nargs="+", default=["auto", "torch"], help="the first is the one that is judged")
    parser.add_argument("--against", type=Path, help="another checkout, whose first backend is measured as well")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--name", help="of the JSON file under benchmarks/results/; without one nothing is stored")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        _contest(*arguments.contestant.split("/"))
        return 0
    contestants = {backend: (backend, ROOT) for backend in arguments.backends}
    if arguments.against:
        contestants["before"] = (arguments.backends[0], arguments.against)
    console, results = Console(), {}
    for kind in arguments.kinds:
        with console.status(kind):
            results[kind] = _in_turn(kind, contestants, arguments.rounds)
        console.print(_table(kind, results[kind]))
    if arguments.name:
        document = {"machine": describe_machine(), "versions": versions("torch", "numba", "numpy"), "results": results}
        path = RESULTS / f"{arguments.name}.json"
        path.write_text(json.dumps(document, indent=2) + "\n")
        console.print(f"Stored in {path}")
    return 0


def _in_turn(kind: str, contestants: dict[str, tuple[str, Path]], rounds: int) -> dict[str, dict[str, float]]:
    """The medians of each contestant."""
    with ExitStack() as stack:
        processes = {}
        for name, (backend, root) in contestants.items():
            command = [sys.executable, "-P", __file__, "--contestant", f"{kind}/{backend}"]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env=os.environ | {"PYTHONPATH": str(root.resolve())},
            )  # fmt: skip
            processes[name] = stack.enter_context(process)
        turns = [  # the first to warm up
            {name: _turn(process) for name, process in processes.items()} for _ in range(rounds + 1)
        ]
        for process in processes.values():
            process.stdin.close()  # type: ignore[union-attr]
    return {
        name: {key: median(turn[name][key] for turn in turns[1:]) for key in turns[0][name]} for name in contestants
    }


def _turn(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    times: dict[str, float] = json.loads(process.stdout.readline())
    return times


def _contest(kind: str, backend: str) -> None:
    torch.set_num_threads(1)
    if backend == "torch_slots":
        backend, scan = "auto", pseudo_mamba.slots_scan
        vars(pseudo_mamba)["slots_scan"] = lambda *arguments: scan(*arguments[:-1], "torch")
    with tempfile.TemporaryDirectory() as folder:
        updates, alone = _updates(kind, backend, folder), _alone(kind, backend)
        for _ in sys.stdin:
            collect, total = next(updates)
            scan, step = next(alone)
            print(json.dumps(asdict(Times(end_to_end=total, collect=collect, scan=scan, step=step))), flush=True)


def _updates(kind: str, backend: str, folder: str) -> Iterator[tuple[float, float]]:
    """Seconds of collecting, and of collecting and learning, of one update after the other."""
    config = configuration(100 * m.SHORT.batch, 0, kind, "sync", folder, [f"policy.controller.backend={backend}"])
    blueprint = make_blueprint(config)
    acting, config = blueprint.policy(), blueprint.config
    env = make_vector_env(config.env, m.SHORT.lanes)
    collector = Collector(env, acting, blueprint.length, blueprint.carry_stride, seed=0)
    learner = Learner(blueprint.policy(), config.learner, seed=0, total_timesteps=100 * m.SHORT.batch)
    while True:
        started = perf_counter()
        learner.weights().load_into(acting)
        fragment, _ = collector.collect(learner.version)
        collected = perf_counter()
        learner.update([fragment.to_arrow()])
        yield collected - started, perf_counter() - started


def _alone(kind: str, backend: str) -> Iterator[tuple[float, float]]:
    """Seconds of a scan forward and backward, and of a step."""
    settings = ControllerSettings(kind=kind, hidden_size=m.HIDDEN, backend=backend)
    controller = build_controller(settings, m.HIDDEN, m.SHORT.horizon, Generator().manual_seed(0))
    generator = Generator().manual_seed(1)
    x_TBD = torch.randn(STEPS, LANES, m.HIDDEN, generator=generator)
    reset_TB = torch.rand(STEPS, LANES, generator=generator) < RESETS
    carry, parameters = controller.initial_carry(LANES), list(controller.parameters())

    def scan() -> None:
        y_TBH, _ = controller.scan(x_TBD, reset_TB, carry)
        torch.autograd.grad(y_TBH.sum(), parameters, allow_unused=True)

    @torch.no_grad()
    def steps() -> None:
        after = carry
        for x_BD, reset_B in zip(x_TBD, reset_TB, strict=True):
            _, after = controller.step(x_BD, reset_B, after)

    while True:
        yield _seconds(scan), _seconds(steps) / STEPS


def _seconds(run: Callable[[], None], times: int = 5) -> float:
    found = []
    for _ in range(times):
        started = perf_counter()
        run()
        found.append(perf_counter() - started)
    return median(found)


def _table(kind: str, found: dict[str, dict[str, float]]) -> Table:
    """A table of how many times as fast the first is as each of the others."""
    table = Table()
    for heading in (kind, "end to end", "collect", "scan", "step"):
        table.add_column(heading, justify="right")
    (name, first), *others = found.items()
    for other, times in others:
        table.add_row(f"{name} over {other}", *(f"{times[key] / value:.2f}" for key, value in first.items()))
    return table


if __name__ == "__main__":
    sys.exit(main())
