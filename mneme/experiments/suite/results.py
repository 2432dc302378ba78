"""A suite's jobs, and the file that keeps what came of them."""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from mneme.configuration.config import Config
from mneme.configuration.records import to_json
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
            if done.get(job.key, job.settings) != job.settings:
                variant = f", {job.variant}," if job.variant else ""
                raise ConfigError(
                    f"{self.path} holds {job.task} with {job.controller}{variant} under other settings; choose another "
                    f"--name"
                )
        return [job for job in jobs if job.key not in done]

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
        """Note what is known about the job's task beforehand."""
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
