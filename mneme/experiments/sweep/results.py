"""The file that keeps what a sweep's trials came to, and configurations in order of it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from mneme.configuration.passwords import passwordless
from mneme.configuration.records import from_json, to_json
from mneme.distributed.config import ConfigError
from mneme.distributed.search_space import Report, Trial
from mneme.experiments.suite.results import replace_file
from mneme.experiments.sweep.plan import Plan, run_name
from mneme.experiments.sweep.settings import SweepSettings

FILE = "results.json"
_MAY_GROW = ("trials", "seeds", "max_concurrent")
"""Settings of a sweep that goes on which may differ from those that it began with."""

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What came of one configuration, over its seeds."""

    number: int
    point: Mapping[str, Any]
    trials: Sequence[Mapping[str, Any]]  # those that have ended, by seed

    @property
    def whole(self) -> Sequence[Mapping[str, Any]]:
        """Trials that trained to their end."""
        return [trial for trial in self.trials if trial["outcome"] == "complete"]

    def values(self, metric: str) -> list[float]:
        """The metric of each seed that has one, those that were given up early included."""
        return [trial[metric] for trial in self.trials if trial.get(metric) is not None]

    def value(self, metric: str) -> float:
        """The mean of the metric; NaN where no seed has it."""
        values = self.values(metric)
        return mean(values) if values else math.nan

    @property
    def steps(self) -> float:
        """The median of the steps that the seeds trained for."""
        return median(trial["steps"] for trial in self.trials)


class SweepResults:
    """A sweep's file: written anew, whole or not at all, after every trial.

    Args:
        folder: of the sweep.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.document: Document = {"trials": [], "begun": []}
        if self.path.exists():
            self.document = from_json(json.loads(self.path.read_text()))

    @property
    def metric(self) -> str:
        """By which configurations are compared."""
        return str(self.document["sweep"]["metric"])

    @property
    def configurations(self) -> list[Configuration]:
        """Those with a trial that has ended, in the order of their numbers."""
        by_number: dict[int, list[Mapping[str, Any]]] = {}
        for trial in sorted(self.document["trials"], key=lambda trial: (trial["number"], trial["seed"])):
            by_number.setdefault(trial["number"], []).append(trial)
        return [
            Configuration(number=number, point=trials[0]["point"], trials=trials)
            for number, trials in by_number.items()
        ]

    @property
    def best(self) -> Configuration | None:
        """The configuration of the best mean; of several the one of fewest steps. Those that trained to their end with
        every seed that they began with come first; without a value, none."""
        sign = 1 if self.document["sweep"]["goal"] == "min" else -1
        known = [found for found in self.configurations if math.isfinite(found.value(self.metric))]
        return min(
            known,
            key=lambda found: (
                len(found.whole) < len(found.trials), sign * found.value(self.metric), found.steps,
            ),
            default=None,
        )  # fmt: skip

    def declare(self, plan: Plan, about: Mapping[str, Any]) -> None:
        """Note what is searched, and what the figures belong to.

        Raises:
            ConfigError: something else was, under this name.
        """
        sweep = {name: getattr(plan.sweep, name) for name in vars(plan.sweep)}
        now = {"sweep": sweep, "settings": _kept(plan.tree)}
        known = vars(SweepSettings()) | self.document.get("sweep", {})  # a later version may have more settings
        before = {"sweep": known, "settings": _kept(self.document.get("settings", {}))}
        if self.document["trials"] or self.document["begun"]:
            for name in now:
                one, other = _fixed(before[name]), _fixed(now[name])
                if one != other:
                    key = next(key for key in {**one, **other} if one.get(key) != other.get(key))
                    raise ConfigError(
                        f"{self.path} is of another sweep, with other {key}; give the same, or choose another --name"
                    )
        self.document |= now | {"starts": dict(plan.starts)} | dict(about)

    def begin(self, trial: Trial) -> None:
        """Note that a trial has a process."""
        entry = trial._asdict()
        if entry not in self.document["begun"]:
            self.document["begun"].append(entry)
            self.save()

    def end(self, trial: Trial, curve: Sequence[tuple[int, float]], report: Report) -> None:
        """Keep what came of a trial; numbers that are not finite are left out."""
        finite = {
            key: value for key, value in report.items() if not (type(value) is float and not math.isfinite(value))
        }
        self.document["trials"].append(
            {**trial._asdict(), "run": run_name(trial), **finite, "curve": [list(point) for point in curve]}
        )
        self.save()

    def missing(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those of which it is not known what came of them."""
        ended = {(row["number"], row["seed"]) for row in self.document["trials"]}
        return [trial for trial in trials if (trial.number, trial.seed) not in ended]

    @property
    def begun(self) -> list[Trial]:
        """Trials that have begun and not ended."""
        return self.missing([self.trial(row) for row in self.document["begun"]])

    @property
    def next_number(self) -> int:
        """Number of the next configuration that a search chooses."""
        return 1 + max((row["number"] for row in self.document["begun"]), default=-1)

    @staticmethod
    def trial(row: Mapping[str, Any]) -> Trial:
        """The trial that an entry is about."""
        return Trial(row["number"], row["seed"], row["point"])

    def save(self) -> None:
        """Write what is known."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, json.dumps(to_json(self.document), indent=2) + "\n")


def _kept(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a sweep, without a password."""
    tracking = tree.get("tracking")
    if not isinstance(tracking, Mapping) or not isinstance(uri := tracking.get("uri"), str):
        return dict(tree)
    return {**tree, "tracking": {**tracking, "uri": passwordless(uri)}}


def _fixed(settings: Any) -> dict[str, Any]:
    return {key: value for key, value in to_json(settings).items() if key not in _MAY_GROW}
