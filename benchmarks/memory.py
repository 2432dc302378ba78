"""Measure what one update costs in memory, in every mode: `python -m benchmarks.memory`.

One thread, one epoch, one minibatch in four, from the second update on, when code is compiled and Adam has its moments.
"""

import argparse
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from mneme.controllers import CONTROLLERS
from mneme.experiments.update_cost import update_costs
from mneme.learner import LearnerSettings

MODES: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "truncated 16": {"mode": "truncated", "bptt_length": 16},
    "cached": {"mode": "cached"},
    "full, checkpointing": {"mode": "full", "activation_checkpointing": True},
    "truncated 16, stored": {"mode": "truncated", "bptt_length": 16, "carry_source": "stored"},
    "truncated 16, burn-in 16": {"mode": "truncated", "bptt_length": 16, "burn_in": 16, "carry_source": "stored"},
    "cached, stored": {"mode": "cached", "carry_source": "stored"},
    "traces": {"mode": "traces"},
}
TRACED = ("lru", "mingru")  # of the kinds as they are by default
MIB = 2**20


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
    table = Table(title="Peak memory of one update, MiB, and its seconds")
    table.add_column("kind")
    for name in arguments.modes:
        table.add_column(name, justify="right")
        table.add_column("fragment", justify="right")
    for kind in arguments.kinds:
        variants = {name: LearnerSettings(**MODES[name], num_epochs=1, num_threads=1) for name in arguments.modes}
        if kind not in TRACED:
            variants.pop("traces", None)
        costs = update_costs(
            kind, variants, length=arguments.length, lanes=arguments.num_envs, hidden=arguments.hidden,
            rounds=arguments.repeats,
        )  # fmt: skip
        cells = []
        for name in arguments.modes:
            cost = costs.get(name)
            shown = ("–", "–")
            if cost is not None:
                shown = f"{cost.peak / MIB:,.0f}, {cost.seconds:.3f} s", f"{cost.fragment / MIB:,.0f}"
            cells += shown
            print(kind, name, *shown, file=sys.stderr)
        table.add_row(kind, *cells)
    Console(width=180).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
