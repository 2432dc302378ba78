"""Time an update of the learner in bf16, or with torch.compile, beside a plain one: `python -m benchmarks.updates`.

A batch of 64 sequences of 64 steps of delayed cue, a layer of as many features as the controller has before it, four
epochs of one minibatch, one thread, and in bf16 the anchor pass, which that needs. Seconds are of the processor. The
contestants take turns, update after update; the first is what the others are held against, and ratios are of medians.

`plain` has heads and losses in PyTorch, `compiled` these and encoders by torch.compile, `torch` the scans in PyTorch
too, and `torch-compiled` all of it compiled, scans included. Needs no Ray; compiling needs a C++ compiler, and takes
minutes.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from statistics import median
from time import process_time
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.report import RESULTS
from mneme.controllers import CONTROLLERS, ControllerSettings, Policy, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.experiments.machine import describe_machine, versions
from mneme.learner import Learner, LearnerSettings, ppo
from mneme.learner.objective import plain, plain_objective
from mneme.rollout_workers import Collector, policy_spec

STEPS, SEQUENCES, EPOCHS = 64, 64, 4
CONTESTANTS = ("float32", "bf16", "plain", "compiled", "torch", "torch-compiled")
LOSSES = ("clipped_policy_loss", "value_loss")  # of the plain objective


@dataclass(frozen=True, kw_only=True)
class Row:
    """Updates of one kind of controller."""

    kind: str
    hidden: int
    seconds: dict[str, float]  # of the processor, the median of each contestant's updates
    ratios: dict[str, float]  # of these, to the first contestant's
    turns: dict[str, tuple[float, float]]  # least and most of the turns' own ratios


def main() -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(CONTROLLERS), default=list(CONTROLLERS))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=["float32", "bf16"])
    parser.add_argument("--hidden", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", help="of the JSON file under benchmarks/results/; without one nothing is stored")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, rows = Console(), []
    for hidden, kind in product(arguments.hidden, arguments.kinds):
        with console.status(f"{kind}, {hidden}"):
            rows.append(_row(kind, hidden, arguments.contestants, arguments.rounds))
    console.print(_table(rows, arguments.contestants))
    if arguments.name:
        document = {
            "machine": describe_machine(),
            "versions": versions("torch", "numba", "numpy"),
            "results": [asdict(row) for row in rows],
        }
        path = RESULTS / f"{arguments.name}.json"
        path.write_text(json.dumps(document, indent=2) + "\n")
        console.print(f"Stored in {path}")
    return 0


def _row(kind: str, hidden: int, contestants: list[str], rounds: int) -> Row:
    batch = Collector(_env(), _policy(kind, hidden, "auto"), STEPS, STEPS, seed=0).collect()[0].to_arrow()
    updates = {name: _update_of(name, kind, hidden, batch) for name in contestants}
    turns = [{name: _seconds(update) for name, update in updates.items()} for _ in range(rounds + 1)]
    first, *others = contestants
    seconds = {name: median(turn[name] for turn in turns[1:]) for name in contestants}  # the first is to warm up
    ratios = {name: [turn[name] / turn[first] for turn in turns[1:]] for name in others}
    return Row(
        kind=kind,
        hidden=hidden,
        seconds=seconds,
        ratios={name: seconds[name] / seconds[first] for name in others},
        turns={name: (min(found), max(found)) for name, found in ratios.items()},
    )


def _seconds(update: Callable[[], None]) -> float:
    started = process_time()
    update()
    return process_time() - started


def _update_of(name: str, kind: str, hidden: int, batch: pa.RecordBatch) -> Callable[[], None]:
    settings = LearnerSettings(
        num_epochs=EPOCHS, num_minibatches=1, num_threads=1, precision="bf16" if name == "bf16" else "float32"
    )
    policy = _policy(kind, hidden, "torch" if name.startswith("torch") else "auto")
    learner = Learner(policy, settings, seed=0, total_timesteps=10**9)
    in_use = ppo.objective if name in ("float32", "bf16") else plain_objective
    losses = {loss: getattr(plain, loss) for loss in LOSSES}
    if name.endswith("compiled"):
        losses = {loss: _compiled(function) for loss, function in losses.items()}
        vars(policy).update(_encoded=_compiled(policy._encoded), heads=_compiled(policy.heads))
        if name == "torch-compiled":
            vars(policy.controller).update(fast_scan=_compiled(policy.controller.fast_scan))

    def update() -> None:
        with patch.multiple(plain, **losses), patch.object(ppo, "objective", in_use):
            learner.update([batch])

    return update


def _compiled(function: Callable[..., Any]) -> Any:
    return torch.compile(function, dynamic=False)


def _env() -> Any:
    return make_vector_env(EnvSettings(id="mneme/DelayedCue-v0", kwargs={"horizon": STEPS - 1}), SEQUENCES)


def _policy(kind: str, hidden: int, backend: str) -> Policy:
    controller = ControllerSettings(kind=kind, hidden_size=hidden, backend=backend)
    return build_policy(
        policy_spec(_env()), PolicySettings(encoder=(hidden,), controller=controller), STEPS - 1, seed=0
    )


def _table(rows: list[Row], contestants: list[str]) -> Table:
    first, *others = contestants
    table = Table(title=f"An update of {first}, and of the others over that: median (least to most of the turns)")
    for heading in ("kind", "hidden", *contestants):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = (f"{row.ratios[name]:.2f} ({row.turns[name][0]:.2f} to {row.turns[name][1]:.2f})" for name in others)
        table.add_row(row.kind, str(row.hidden), f"{row.seconds[first]:.2f} s", *cells)
    return table


if __name__ == "__main__":
    sys.exit(main())
