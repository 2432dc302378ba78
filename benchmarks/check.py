"""Hold our speed against that of before: `make bench-check`, or `python -m benchmarks.check`.

What is compared are ratios to a reference that is measured in the same rounds and runs none of our code: the matrix
products alone, or the JAX peer. So a busy or another machine matters less, though only ratios of one machine are to be
trusted. `--keep` stores this run's ratios, which later runs are held against; they use the reference that it had.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import measurement as m
from benchmarks.contestants import CONTESTANTS, Contestant
from benchmarks.report import RESULTS, ratio_in_turn
from benchmarks.run import measure_in_turn
from mneme.experiments.machine import describe_machine

STORED = RESULTS / "check.json"
WATCHED = ("bare-gru", "bare-lstm", "ray-gru")
REFERENCES = ("floor-gru", "jax-gru")
BY = {"by the clock": "speed", "by the seconds of the processor": "thrift"}
Ratios = dict[str, dict[str, float]]  # by contestant, and as in BY


def main() -> int:
    """Measure, then compare or store; 1 if something got slower, or could not be measured or compared."""
    parser = argparse.ArgumentParser(prog="make bench-check", description=__doc__)
    parser.add_argument("--tolerance", type=float, default=0.1, help="share of a ratio that may be lost (default 0.1)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100_000, help="environment steps, as of make bench")
    parser.add_argument("--keep", action="store_true", help="store the ratios instead of comparing them")
    parser.add_argument("--reference", choices=REFERENCES, default=REFERENCES[0], help="with --keep")
    args = parser.parse_args()
    console = Console()
    if not args.keep and not STORED.exists():
        console.print(f'{STORED.name} is missing, so there is nothing to compare with; make it with ARGS="--keep"')
        return 1
    before: dict[str, Any] = {} if args.keep else json.loads(STORED.read_text())
    reference = args.reference if args.keep else before["reference"]
    chosen = [contestant for contestant in CONTESTANTS if contestant.key in (reference, *WATCHED)]
    rounds, failed = measure_in_turn(chosen, args.rounds, args.steps, console)
    if failed:
        return 1
    now = ratios(rounds, reference)
    if args.keep:
        store(STORED, reference, now)
        console.print(f"Stored in {STORED}")
        return 0
    losses = slower(now, before["ratios"], args.tolerance)
    for loss in losses:
        console.print(f"[red]{loss}[/]")
    if not losses:
        console.print(f"Nothing lost more than {args.tolerance:.0%} of its speed over {reference}.")
    return 1 if losses else 0


def ratios(rounds: Mapping[Contestant, Sequence[m.Measurement]], reference: str) -> Ratios:
    """Each contestant's speeds over the reference's in the same round; medians."""
    by_key = {contestant.key: results for contestant, results in rounds.items()}
    beside = by_key.pop(reference)
    return {
        key: {
            by: ratio_in_turn([getattr(r, what) for r in results], [getattr(r, what) for r in beside])
            for by, what in BY.items()
        }
        for key, results in by_key.items()
    }


def slower(now: Ratios, before: Ratios, tolerance: float) -> list[str]:
    """A sentence for each ratio that has lost more than that share; what is in only one of them is not compared."""
    return [
        f"{key} runs at {now[key][by] / value:.2f} of its speed before, {by}"
        for key, found in before.items()
        for by, value in found.items()
        if key in now and now[key][by] < (1 - tolerance) * value
    ]


def store(path: Path, reference: str, found: Ratios) -> None:
    """Write the ratios as JSON."""
    document = {"machine": describe_machine(), "reference": reference, "ratios": found}
    path.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
