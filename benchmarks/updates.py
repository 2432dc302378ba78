"""Time an update of the learner under each precision: `python -m benchmarks.updates`. It needs no Ray.

A batch of 64 sequences of 64 steps of delayed cue, a layer of as many features as the controller has before it, four
epochs of one minibatch, one thread, and in bf16 the anchor pass, which that needs. Seconds are of the processor. The
precisions take turns, update after update, and ratios are of medians.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from itertools import product
from statistics import median
from time import process_time

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.report import RESULTS
from mneme.controllers import CONTROLLERS, ControllerSettings, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.experiments.machine import describe_machine, versions
from mneme.learner import Learner, LearnerSettings
from mneme.rollout_workers import Collector, policy_spec

STEPS, SEQUENCES, EPOCHS = 64, 64, 4
PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Updates of one kind of controller."""

    kind: str
    hidden: int
    seconds: dict[str, float]  # of the processor, of an update in each precision
    ratio: float  # bf16 over float32
    spread: tuple[float, float]  # least and most of the turns' own


def main() -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(CONTROLLERS), default=list(CONTROLLERS))
    parser.add_argument("--hidden", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", help="of the JSON file under benchmarks/results/; without one nothing is stored")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, rows = Console(), []
    for hidden, kind in product(arguments.hidden, arguments.kinds):
        with console.status(f"{kind}, {hidden}"):
            rows.append(_row(kind, hidden, arguments.rounds))
    console.print(_table(rows))
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


def _row(kind: str, hidden: int, rounds: int) -> Row:
    env = make_vector_env(EnvSettings(id="mneme/DelayedCue-v0", kwargs={"horizon": STEPS - 1}), SEQUENCES)
    settings = PolicySettings(encoder=(hidden,), controller=ControllerSettings(kind=kind, hidden_size=hidden))
    learners = {}
    for precision in PRECISIONS:
        chosen = LearnerSettings(num_epochs=EPOCHS, num_minibatches=1, num_threads=1, precision=precision)
        policy = build_policy(policy_spec(env), settings, STEPS - 1, seed=0)
        learners[precision] = Learner(policy, chosen, seed=0, total_timesteps=10**9)
    acting = build_policy(policy_spec(env), settings, STEPS - 1, seed=0)
    batch = Collector(env, acting, STEPS, STEPS, seed=0).collect()[0].to_arrow()
    turns = []
    for _ in range(rounds + 1):  # the first to warm up
        turn = {}
        for precision, learner in learners.items():
            started = process_time()
            learner.update([batch])
            turn[precision] = process_time() - started
        turns.append(turn)
    seconds = {precision: median(turn[precision] for turn in turns[1:]) for precision in PRECISIONS}
    ratios = [turn["bf16"] / turn["float32"] for turn in turns[1:]]
    return Row(
        kind=kind,
        hidden=hidden,
        seconds=seconds,
        ratio=seconds["bf16"] / seconds["float32"],
        spread=(min(ratios), max(ratios)),
    )


def _table(rows: list[Row]) -> Table:
    table = Table(title="An update in bf16 over one in float32")
    for heading in ("kind", "hidden", "float32, s", "bf16, s", "ratio", "turns"):
        table.add_column(heading, justify="right")
    for row in rows:
        seconds = (f"{row.seconds[precision]:.2f}" for precision in PRECISIONS)
        least, most = row.spread
        table.add_row(row.kind, str(row.hidden), *seconds, f"{row.ratio:.2f}", f"{least:.2f} to {most:.2f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
