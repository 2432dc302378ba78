"""The results of the measurements: medians, ratios and shares, as tables for people and as JSON."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import measurement as m
from benchmarks.contestants import Contestant

RESULTS = Path(__file__).parent / "results"
ACTIVITIES = (
    "env", "inference", "recording", "transport", "broadcast", "batch", "anchor", "returns", "windows", "forward",
    "backward", "between", "synchronize", "optimizer",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One contestant over all rounds."""

    key: str
    name: str
    peer: bool
    speeds: list[float]  # trained environment steps per second, one for each round
    speed: float  # their median
    ratio_to_better_peer: float | None  # at the same work in the same round, their median
    thrifts: list[float]  # trained environment steps per second of the processor, one for each round
    thrift: float  # their median
    thrift_ratio_to_better_peer: float | None  # the same, to the thriftiest peer
    mean_return: float | None  # of the rounds in which episodes ended
    shares: dict[str, float]  # of the measured time, by activity; they add up to 1
    processes: dict[str, float]  # shares of the processor's seconds, by process; they add up to 1
    steps: int  # timed in each round
    configuration: dict[str, Any]
    versions: dict[str, str]


def summarise(rounds: Mapping[Contestant, Sequence[m.Measurement]]) -> list[Summary]:
    """The contestants that were measured at least once, in their order."""
    measured = {contestant: results for contestant, results in rounds.items() if results}
    speeds = {contestant: [result.speed for result in results] for contestant, results in measured.items()}
    thrifts = {contestant: [result.thrift for result in results] for contestant, results in measured.items()}
    fastest, thriftiest = ({work: _better_peer(found, work) for work in m.WORKS} for found in (speeds, thrifts))
    return [
        Summary(
            key=contestant.key,
            name=contestant.name,
            peer=contestant.peer,
            speeds=speeds[contestant],
            speed=median(speeds[contestant]),
            ratio_to_better_peer=_in_turn(speeds[contestant], fastest[contestant.work]),
            thrifts=thrifts[contestant],
            thrift=median(thrifts[contestant]),
            thrift_ratio_to_better_peer=_in_turn(thrifts[contestant], thriftiest[contestant.work]),
            mean_return=_mean([result.mean_return for result in results]),
            shares=_shares([result.spent for result in results]),
            processes=_shares([result.processes for result in results]),
            steps=results[0].steps,
            configuration=results[0].configuration,
            versions=results[0].versions,
        )
        for contestant, results in measured.items()
    ]


def _better_peer(found: Mapping[Contestant, list[float]], work: m.Work) -> list[float] | None:
    """The figures, by round, of the peer whose median is highest at this work."""
    peers = (values for contestant, values in found.items() if contestant.peer and contestant.work == work)
    return max(peers, key=median, default=None)


def _in_turn(mine: Sequence[float], peer: Sequence[float] | None) -> float | None:
    return ratio_in_turn(mine, peer) if peer else None


def ratio_in_turn(mine: Sequence[float], others: Sequence[float]) -> float:
    """The median of the rounds' ratios; a round that only one of the two finished does not count."""
    return median(a / b for a, b in zip(mine, others, strict=False))


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


def _shares(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    spent = sum((Counter(each) for each in rounds), Counter[str]())
    return {key: seconds / spent.total() for key, seconds in spent.items()}


def service_to_bare_loop(summaries: Sequence[Summary]) -> dict[str, float]:
    """Speed of the synchronous service in multiples of the bare loop's, by controller."""
    speeds = {summary.key: summary.speed for summary in summaries}
    return {
        kind: speeds[f"ray-{kind}"] / speeds[f"bare-{kind}"]
        for kind in ("gru", "lstm")
        if f"ray-{kind}" in speeds and f"bare-{kind}" in speeds
    }


def show(summaries: Sequence[Summary], console: Console) -> None:
    """Print the speeds, then where our own time goes."""
    console.print(_speed_table(summaries))
    speeds = {summary.key: summary.speed for summary in summaries}
    for peer in (summary for summary in summaries if summary.peer and "ray-gru" in speeds):
        console.print(f"mneme (Ray, GRU) is {speeds['ray-gru'] / peer.speed:.1f} times {peer.name}.")
    for kind, ratio in service_to_bare_loop(summaries).items():
        console.print(f"The Ray service runs at {ratio:.2f} of the bare loop ({kind}).")
    if any(summary.shares for summary in summaries):
        console.print(_share_table([summary for summary in summaries if summary.shares]))
    if any(len(summary.processes) > 1 for summary in summaries):
        console.print(_process_table([summary for summary in summaries if len(summary.processes) > 1]))


def _speed_table(summaries: Sequence[Summary]) -> Table:
    table = Table(
        title=f"Trained environment steps per second: delayed cue of {m.SHORT.horizon} steps in {m.SHORT.lanes} lanes, "
        f"or T = {m.LONG.episode:,} in {m.LONG.lanes}; hidden size {m.HIDDEN}, {m.EPOCHS} epochs of {m.MINIBATCHES} "
        "minibatches",
        caption="× better peer: in the same round, the median; one peer by the clock, and one by the seconds of the "
        f"processor. Return: of the episodes seen; {m.CHANCE} is chance, 1 is solved.",
    )
    table.add_column("")
    for heading in ("median", "min", "max", "× better peer", "per CPU s", "× better peer", "return"):
        table.add_column(heading, justify="right")
    for s in summaries:
        table.add_row(
            s.name, f"{s.speed:,.0f}", f"{min(s.speeds):,.0f}", f"{max(s.speeds):,.0f}",
            _two_digits(s.ratio_to_better_peer), f"{s.thrift:,.0f}", _two_digits(s.thrift_ratio_to_better_peer),
            _two_digits(s.mean_return), style=None if s.peer else "bold",
        )  # fmt: skip
    return table


def _two_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _share_table(summaries: Sequence[Summary]) -> Table:
    table = Table(
        title="Where the time goes, % of what was measured",
        caption="Broadcast is exporting and loading weights. Transport is what is left of an update's wall clock: "
        "object store, messages, waiting for the slower of two. "
        "The asynchronous service collects while it learns, so its parts overlap.",
    )
    table.add_column("")
    for summary in summaries:
        table.add_column(summary.key, justify="right")
    for activity in ACTIVITIES:
        shares = [summary.shares.get(activity, 0.0) for summary in summaries]
        if any(shares):
            table.add_row(activity, *(f"{100 * share:.1f}" for share in shares))
    return table


def _process_table(summaries: Sequence[Summary]) -> Table:
    table = Table(title="Which process uses the processor, %", caption="Itself: over Ray, the driver.")
    table.add_column("")
    for summary in summaries:
        table.add_column(summary.key, justify="right")
    for name in dict.fromkeys(name for summary in summaries for name in summary.processes):
        table.add_row(name, *(f"{100 * summary.processes.get(name, 0.0):.1f}" for summary in summaries))
    return table


def store(summaries: Sequence[Summary], path: Path, machine: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write everything as JSON; the folder is made if missing."""
    document = {
        "machine": dict(machine),
        "settings": dict(settings),
        "service_to_bare_loop": service_to_bare_loop(summaries),
        "results": [asdict(summary) for summary in summaries],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
