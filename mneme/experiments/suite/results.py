"""A suite's jobs, and the file that keeps what came of them."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from mneme.configuration.config import Config, difference, insert, parse_config
from mneme.configuration.records import from_json, same, to_json
from mneme.distributed.config import ConfigError
from mneme.envs import TaskFacts
from mneme.experiments.seeds import DEFAULT_TARGET

OF_NO_CONSEQUENCE = ("seed", "name", "checkpoint", "tracking")
"""Sections of the configuration that may differ between runs that are compared."""

Document = dict[str, Any]


class Job(NamedTuple):
    """One run of a suite."""

    task: str
    controller: str
    variant: str  # of the settings that are compared; empty where a suite compares controllers alone
    config: Config  # seed included
    facts: TaskFacts | None  # about the task
    settings: str  # fingerprint of all that decides the outcome but the seed

    @property
    def key(self) -> tuple[str, str, str, int]:
        """The key that distinguishes it from the other jobs."""
        return self.task, self.controller, self.variant, self.config.seed

    @property
    def title(self) -> str:
        """The task, the controller and what else is compared, in words."""
        return ", ".join(filter(None, (self.task, self.controller, self.variant)))


def fingerprint(config: Config) -> str:
    """A few letters that stand for all settings that decide an outcome but the seed."""
    tree = {key: value for key, value in config.to_dict().items() if key not in OF_NO_CONSEQUENCE}
    return hashlib.sha256(json.dumps(to_json(tree), sort_keys=True).encode()).hexdigest()[:16]


def replace_file(path: Path, text: str) -> None:
    """Write a file anew, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text)
    os.replace(part, path)


class Results:
    """The suite's file: written anew, whole or not at all, after every run.

    Args:
        folder: of the suite.
        report: writes beside it what people read, after every run.
    """

    def __init__(self, folder: Path, report: Callable[[Document, Path], None]) -> None:
        self.path, self._folder, self._report = folder / "results.json", folder, report
        self.document: Document = {"tasks": {}, "runs": []}
        if self.path.exists():
            self.document = json.loads(self.path.read_text())

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that have not been done.

        Raises:
            ConfigError: one was done with other settings.
        """
        done = {
            (run["task"], run["controller"], run.get("variant", ""), run["seed"]): run["settings"]
            for run in self.document["runs"]
        }
        for job in jobs:
            before = done.get(job.key, job.settings)
            if before == job.settings or not (other := self._other(job.config, before)):
                continue
            variant = f", {job.variant}," if job.variant else ""
            raise ConfigError(
                f"{self.path} holds {job.task} with {job.controller}{variant} under other settings ({other}); choose "
                f"another --name"
            )
        return [job for job in jobs if job.key not in done]

    def _other(self, config: Config, before: str) -> str | None:
        """What a fingerprint stands for that a configuration has otherwise; None if nothing, as where this version
        has settings, at their defaults, that another did not have."""
        kept = from_json(self.document.get("settings", {}))
        if before not in kept:
            return "it does not say which"
        tree: dict[str, Any] = {}
        for key, value in {**next(iter(kept.values())), **kept[before]}.items():
            insert(tree, key, value)
        try:
            then = parse_config(tree)
        except ConfigError as error:
            return str(error)
        alike = {name: getattr(config, name) for name in OF_NO_CONSEQUENCE}
        return difference(config, then.model_copy(update=alike))

    @property
    def starts(self) -> dict[str, str]:
        """Very checkpoints that runs start from, by what `train.start_from` names."""
        starts: dict[str, str] = self.document.setdefault("starts", {})
        return starts

    def refuse_others(self, overrides: Sequence[str]) -> None:
        """One table compares runs under the same overrides.

        Raises:
            ConfigError: what has been done was done under others.
        """
        given = sorted(word for word in overrides if not word.startswith(OF_NO_CONSEQUENCE))
        before = self.document.get("overrides", given)
        if self.document["runs"] and before != given:
            raise ConfigError(
                f"{self.path} was made with {' '.join(before) or 'no settings besides the presets'}; give the same, "
                f"or choose another --name"
            )
        self.document["overrides"] = given

    def declare(self, job: Job) -> None:
        """Note what is known about the job's task beforehand, and its settings: of the first all, of others those that
        it has otherwise."""
        kept = self.document.setdefault("settings", {})
        if job.settings not in kept:
            first = from_json(next(iter(kept.values()), {}))
            kept[job.settings] = {
                f"{section}.{name}": to_json(value)
                for section, values in job.config.to_dict().items()
                if section not in OF_NO_CONSEQUENCE
                for name, value in values.items()
                if f"{section}.{name}" not in first or not same(value, first[f"{section}.{name}"])
            }
        self.document["tasks"][job.task] = {
            "id": job.config.env.id,
            "kwargs": to_json(job.config.env.kwargs),
            "target": job.config.train.stop_success or DEFAULT_TARGET,
            "memoryless_return": job.facts.memoryless_return if job.facts else None,
            "optimal_return": job.facts.optimal_return if job.facts else None,
        }

    def add(self, run: dict[str, Any]) -> None:
        """Keep what came of a job."""
        self.document["runs"].append(run)
        self.save()

    def save(self) -> None:
        """Write what is known."""
        self._folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, json.dumps(self.document, indent=2) + "\n")
        self._report(self.document, self._folder)

    def seconds_left(self, jobs: Sequence[Job]) -> float:
        """Estimated from the runs so far, those of the same task and controller where there are any; NaN without any
        run."""
        runs = self.document["runs"]
        every = [run["seconds"] for run in runs] or [math.nan]

        def alike(job: Job) -> list[float]:
            task = [run for run in runs if run["task"] == job.task]
            both = [run for run in task if run["controller"] == job.controller]
            return [run["seconds"] for run in both or task] or every

        known = {key: mean(alike(job)) for job in jobs if (key := (job.task, job.controller))}
        return sum(known[job.task, job.controller] for job in jobs)
