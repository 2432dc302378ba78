"""`mneme suite`: every controller on every task for several seeds, kept in one file that an interrupted suite goes on
with.

runs/suites/<name>/results.json  table.md  log.txt  and the folders of the runs
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import IO, Any, NamedTuple

import yaml
from rich.console import Console

from mneme.configuration.config import Config, load_config
from mneme.configuration.presets import PRESETS, find_preset
from mneme.configuration.records import to_json
from mneme.controllers import CONTROLLERS
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.config import ConfigError
from mneme.envs import TaskFacts
from mneme.experiments.machine import describe_machine
from mneme.experiments.seeds import DEFAULT_TARGET, provenance, run_seed
from mneme.experiments.suite_table import as_markdown
from mneme.reporting.display import NOTHING, Display, clock
from mneme.rollout_workers import EvaluationError
from mneme.storage.paths import checked_name

TASKS = ("delayed_cue", "copy_memory", "associative_recall", "tmaze")
"""Presets under configs/, the suite unless others are named."""

ROOT = Path("runs/suites")
_OWN = {
    "policy.controller.kind": "name kinds with --controllers",
    "env.id": "name presets with --tasks",
    "seed": "give the number of seeds with --seeds",
    "name": "name the suite with --name",
    "checkpoint.root": "name the suite with --name, and begin it in the folder where runs/ shall be",
}  # settings that tell the runs of a suite apart, and where they come from
_OF_NO_CONSEQUENCE = ("seed", "name", "checkpoint", "tracking")  # what may differ between runs that are compared


class Job(NamedTuple):
    """One run of the suite."""

    task: str
    controller: str
    config: Config  # seed included
    facts: TaskFacts | None  # about the task
    settings: str  # fingerprint of all that decides the outcome but the seed

    @property
    def key(self) -> tuple[str, str, int]:
        """The key that distinguishes it from the other jobs."""
        return self.task, self.controller, self.config.seed


class Results:
    """The suite's file: written anew, whole or not at all, after every run.

    Args:
        folder: of the suite.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._markdown = folder / "results.json", folder / "table.md"
        self.document: dict[str, Any] = {"tasks": {}, "runs": []}
        if self._path.exists():
            self.document = json.loads(self._path.read_text())

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that have not been done.

        Raises:
            ConfigError: one was done with other settings.
        """
        done = {(run["task"], run["controller"], run["seed"]): run["settings"] for run in self.document["runs"]}
        for job in jobs:
            if done.get(job.key, job.settings) != job.settings:
                raise ConfigError(
                    f"{self._path} holds {job.task} with {job.controller} under other settings; choose another --name"
                )
        return [job for job in jobs if job.key not in done]

    def refuse_others(self, overrides: Sequence[str]) -> None:
        """One table compares runs under the same overrides.

        Raises:
            ConfigError: what has been done was done under others.
        """
        given = sorted(word for word in overrides if not word.startswith(_OF_NO_CONSEQUENCE))
        before = self.document.get("overrides", given)
        if self.document["runs"] and before != given:
            raise ConfigError(
                f"{self._path} was made with {' '.join(before) or 'no settings besides the presets'}; give the same, "
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
        }

    def add(self, run: dict[str, Any]) -> None:
        self.document["runs"].append(run)
        for path, text in (
            (self._path, json.dumps(self.document, indent=2) + "\n"),
            (self._markdown, as_markdown(self.document)),
        ):
            part = path.with_suffix(".part")
            part.write_text(text)
            os.replace(part, path)

    def seconds_left(self, jobs: Sequence[Job]) -> float:
        """Estimated from the runs so far, those of the same task where there are any; NaN without any run."""
        runs = self.document["runs"]
        of_task = {job.task: [run["seconds"] for run in runs if run["task"] == job.task] for job in jobs}
        every = [run["seconds"] for run in runs] or [math.nan]
        return sum(mean(of_task[job.task] or every) for job in jobs)

    def show(self, console: Console) -> None:
        """Print the table, as it stands in the file."""
        console.print(as_markdown(self.document), end="", soft_wrap=True)
        console.print(f"kept in {self._path} and {self._markdown}", soft_wrap=True)


def run_suite(
    tasks: Sequence[str], controllers: Sequence[str], seeds: int, *,
    name: str, local: bool, overrides: Sequence[str] = (), console: Console | None = None,
) -> bool:  # fmt: skip
    """Do what of the suite has not been done yet, then print its table; whether it was completed.

    Args:
        tasks: presets under configs/; none stands for `TASKS`.
        controllers: kinds, or one's own as module:Class; none stands for all that are registered.
        seeds: runs of each controller on each task, with seeds from 0.
        name: of the suite; the same name goes on with it.
        local: train in this process, without Ray.
        overrides: `key=value` settings for every run, which is not tracked unless one of them is about tracking.

    Raises:
        ConfigError: a setting is wrong, in any of the runs; nothing has been started then.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}; it must be at least 1")
    console = console or Console(highlight=False)
    folder = _folder(name)
    jobs = list(_jobs(tasks or TASKS, controllers or tuple(CONTROLLERS), range(seeds), folder, overrides))
    results = Results(folder)
    missing = results.missing(jobs)
    results.refuse_others(overrides)
    for job in {job.task: job for job in jobs}.values():
        results.declare(job)
    results.document |= provenance()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        log = stack.enter_context((folder / "log.txt").open("a"))
        if missing and not local:
            from mneme.distributed.ray_runner import start_ray  # once for all runs

            start_ray(missing[0].config.service, max(job.config.rollout.num_workers for job in missing))
        for number, job in enumerate(missing):
            title = f"[{len(jobs) - len(missing) + number + 1} of {len(jobs)}] {job.task}, {job.controller}"
            with console.status(title):
                run = _run(job, local, log)
            if run is None:
                console.print(f"interrupted; the same command goes on with {folder}", soft_wrap=True)
                return False
            results.add(run)
            left = results.seconds_left(missing[number + 1 :])
            eta = NOTHING if math.isnan(left) else clock(left)
            console.print(f"{title}, seed {job.config.seed}: {_outcome(run)}  eta {eta}", markup=False, soft_wrap=True)
    results.show(console)
    return True


def show_suite(name: str, console: Console | None = None) -> None:
    """Print the table of what has been done.

    Raises:
        ConfigError: nothing has.
    """
    results = Results(_folder(name))
    if not results.document["runs"]:
        raise ConfigError(f"{_folder(name)} holds no results; run mneme suite --name {name}")
    results.show(console or Console(highlight=False))


def _folder(name: str) -> Path:
    try:
        return ROOT / checked_name("--name", name)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _jobs(
    tasks: Sequence[str], controllers: Sequence[str], seeds: range, folder: Path, overrides: Sequence[str]
) -> Iterator[Job]:
    """Seed after seed, so that a suite that is stopped early has compared everything."""
    given = list(_settings_in(overrides))
    for key in given:
        if key in _OWN:
            raise ConfigError(f"{key} is what a suite sets by itself; {_OWN[key]}")
    untracked = [] if any(key.startswith("tracking.") for key in given) else ["tracking.enabled=false"]
    found = {}
    for task, controller in product(tasks, controllers):
        shipped = (PRESETS / f"{task}_{controller}.yaml", PRESETS / f"{task}.yaml")
        preset = next(filter(Path.exists, shipped), None) or find_preset(task)
        fixed = [f"policy.controller.kind={controller}", f"checkpoint.root={folder}", *untracked]
        config = load_config(preset, [*overrides, *fixed])
        facts = make_blueprint(config).facts
        if facts is None and config.env.success_return is None:
            raise ConfigError(f"{preset} does not say what success is; set env.success_return in it")
        found[task, controller] = config, facts
    for seed, ((task, controller), (config, facts)) in product(seeds, found.items()):
        config = config.model_copy(update={"seed": seed})
        tree = {key: value for key, value in config.to_dict().items() if key not in _OF_NO_CONSEQUENCE}
        fingerprint = hashlib.sha256(json.dumps(to_json(tree), sort_keys=True).encode()).hexdigest()[:16]
        yield Job(task, controller, config, facts, fingerprint)


def _settings_in(overrides: Sequence[str]) -> Iterator[str]:
    """The dotted name of every setting that is given, be it alone or within a section."""

    def leaves(key: str, value: object) -> Iterator[str]:
        if isinstance(value, dict) and value:
            for inner, child in value.items():
                yield from leaves(f"{key}.{inner}", child)
        else:
            yield key

    for override in overrides:
        key, _, text = override.partition("=")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:  # whatever it is, it is no section
            value = text
        yield from leaves(key.strip(), value)


def _run(job: Job, local: bool, log: IO[str]) -> dict[str, Any] | None:
    """Run one job and return its result, or None if it was interrupted; training that diverges is a result too."""
    started = perf_counter()
    run: dict[str, Any] = {
        "task": job.task, "controller": job.controller, "settings": job.settings, "cpu": describe_machine()["cpu"],
    }  # fmt: skip
    try:
        outcome = run_seed(job.config, local=local, callbacks=[Display(Console(file=log))], progress=False)
    except (FloatingPointError, EvaluationError) as error:
        seconds = round(perf_counter() - started, 1)
        return run | {"seed": job.config.seed, "seconds": seconds, "solved": False, "failure": str(error)}
    if outcome is None:
        return None
    target = job.config.train.stop_success or DEFAULT_TARGET
    return run | outcome._asdict() | {"solved": outcome.success >= target}


def _outcome(run: dict[str, Any]) -> str:
    if "failure" in run:
        return f"failed: {run['failure']}"
    verdict = "solved after" if run["solved"] else "not solved in"
    return f"{verdict} {run['steps']:,} steps, {run['seconds']:.0f} s, success {run['success']:.1%}"
