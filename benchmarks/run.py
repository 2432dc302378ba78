"""Measure Mneme beside its peers, on this machine, in one run: `make bench`, or `python -m benchmarks.run`.

The contestants take turns, round after round, so that a busy or throttled minute hits all of them; the figures are
medians over the rounds, with the extremes beside them.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime

from rich.console import Console

from benchmarks import measurement as m
from benchmarks.contestants import CONTESTANTS, Contestant, ContestantError
from benchmarks.report import RESULTS, show, store, summarise
from mneme.experiments.machine import describe_machine

_BUSY = 0.5  # load a core above which timings are not to be trusted


def main() -> int:
    """Measure, print, store; 1 if a contestant could not be measured."""
    args = _arguments()
    console = Console()
    chosen = [contestant for contestant in CONTESTANTS if not args.only or contestant.key in args.only]
    machine = describe_machine()
    if machine["load_before"] > _BUSY * machine["cores"]:
        console.print(f"[yellow]The machine is busy (load {machine['load_before']:.1f}): timings will be noisy.[/]")
    rounds, failed = measure_in_turn(chosen, args.rounds, args.steps, console)
    if summaries := summarise(rounds):
        show(summaries, console)
        path = RESULTS / f"{args.name}.json"
        store(summaries, path, machine, {"rounds": args.rounds, "steps": args.steps})
        console.print(f"Stored in {path}")
    return 1 if failed else 0


def measure_in_turn(
    chosen: Sequence[Contestant], rounds: int, steps: int, console: Console
) -> tuple[dict[Contestant, list[m.Measurement]], set[Contestant]]:
    """The measurements of each contestant, and those that failed and so have missed rounds."""
    results: dict[Contestant, list[m.Measurement]] = {contestant: [] for contestant in chosen}
    failed: set[Contestant] = set()
    for number in range(rounds):
        for contestant in chosen:
            if contestant in failed:
                continue
            with console.status(f"round {number + 1} of {rounds}: {contestant.name}"):
                try:
                    result = contestant.measure(steps, seed=number)
                except ContestantError as error:
                    console.print(f"[red]{error}[/]")
                    failed.add(contestant)
                    continue
            results[contestant].append(result)
            console.print(
                f"round {number + 1}/{rounds}  {contestant.name}: {result.speed:,.0f} steps/s, "
                f"{result.thrift:,.0f} per CPU s"
            )
    return results, failed


def _arguments() -> argparse.Namespace:
    keys = [contestant.key for contestant in CONTESTANTS]
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=_positive, default=3, help="turns that each contestant gets (default 3)")
    parser.add_argument(
        "--steps", type=_positive, default=100_000,
        help="environment steps timed in a peer's turn (default 100000); we, being faster, are timed on a multiple",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one round of few steps: does everything run?")
    parser.add_argument("--only", nargs="+", choices=keys, metavar="NAME", help=f"some of {', '.join(keys)}")
    parser.add_argument(
        "--name",
        default=f"{datetime.now():%Y%m%d-%H%M%S}",
        help="of the JSON file in benchmarks/results (default: now)",
    )
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.steps = 1, 2 * m.SHORT.batch
    return args


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is given; it must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
