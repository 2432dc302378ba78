"""`mneme suite`: every controller on every task for several seeds, kept in one file that an interrupted suite goes on
with; and `mneme suite modes`, which compares modes of backpropagation besides.

runs/suites/<name>/results.json  table.md  log.txt  and the folders of the runs
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import IO, Any

import yaml
from rich.console import Console

from mneme.configuration.config import load_config
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.config import ConfigError
from mneme.experiments.machine import describe_machine
from mneme.experiments.seeds import DEFAULT_TARGET, provenance, run_seed
from mneme.experiments.suite.contest import CONTROLLERS_CONTEST, Contest, Measurement
from mneme.experiments.suite.results import Job, Results, fingerprint
from mneme.readiness import reach_warned_of_once
from mneme.reporting.display import NOTHING, Display, clock
from mneme.rollout_workers import EvaluationError
from mneme.storage.paths import checked_name
from mneme.storage.starting import start_of, with_known

ROOT = Path("runs/suites")
_OWN = {
    "policy.controller.kind": "name kinds with --controllers",
    "env.id": "name presets with --tasks",
    "seed": "give the number of seeds with --seeds",
    "name": "name the suite with --name",
    "checkpoint.root": "name the suite with --name, and begin it in the folder where runs/ shall be",
}  # settings that tell the runs of a suite apart, and where they come from


def run_suite(
    tasks: Sequence[str], controllers: Sequence[str], seeds: int, *,
    name: str, local: bool, overrides: Sequence[str] = (), console: Console | None = None,
    contest: Contest = CONTROLLERS_CONTEST,
) -> bool:  # fmt: skip
    """Do what of the suite has not been done yet, then print its table; whether it was completed.

    Args:
        tasks: of the contest, or presets; none stands for all of the contest's.
        controllers: kinds, or one's own as module:Class; none stands for all of the contest's.
        seeds: runs of each controller on each task, with seeds from 0.
        name: of the suite; the same name goes on with it.
        local: train in this process, without Ray.
        overrides: `key=value` settings for every run, which is not tracked unless one of them is about tracking.
        contest: what is compared.

    Raises:
        ConfigError: a setting is wrong, in any of the runs; nothing has been started then.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}; it must be at least 1")
    console = console or Console(highlight=False)
    folder = _folder(name)
    kinds = controllers or contest.controllers
    jobs = list(_jobs(contest, tasks or tuple(contest.tasks), kinds, range(seeds), folder, overrides))
    results = Results(folder, contest.report)
    missing = results.missing(jobs)
    results.refuse_others(overrides)
    missing = _started(missing, results.starts)
    for job in jobs:
        results.declare(job)
    results.document |= provenance()
    results.save()
    if missing and not contest.prepare(results.document, kinds, console):
        return _interrupted(folder, console)
    with ExitStack() as stack:
        log = stack.enter_context((folder / "log.txt").open("a"))
        stack.enter_context(reach_warned_of_once())
        if missing and not local:
            from mneme.distributed.ray_runner import start_ray  # once for all runs

            start_ray(missing[0].config.service, max(job.config.rollout.num_workers for job in missing))
        for number, job in enumerate(missing):
            title = f"[{len(jobs) - len(missing) + number + 1} of {len(jobs)}] {job.title}"
            with console.status(title):
                run = _run(job, local, log, contest.measurement())
            if run is None:
                return _interrupted(folder, console)
            results.add(run)
            left = results.seconds_left(missing[number + 1 :])
            eta = NOTHING if math.isnan(left) else clock(left)
            console.print(f"{title}, seed {job.config.seed}: {_outcome(run)}  eta {eta}", markup=False, soft_wrap=True)
    _show(results, contest, console)
    return True


def show_suite(name: str, console: Console | None = None, contest: Contest = CONTROLLERS_CONTEST) -> None:
    """Print the table of what has been done.

    Raises:
        ConfigError: nothing has.
    """
    results = Results(_folder(name), contest.report)
    if not results.document["runs"]:
        raise ConfigError(f"{_folder(name)} holds no results; run mneme suite --name {name}")
    _show(results, contest, console or Console(highlight=False))


def _show(results: Results, contest: Contest, console: Console) -> None:
    console.print(contest.as_markdown(results.document), end="", soft_wrap=True)
    console.print(f"kept in {results.path} and {results.path.with_name('table.md')}", soft_wrap=True)


def _interrupted(folder: Path, console: Console) -> bool:
    console.print(f"interrupted; the same command goes on with {folder}", soft_wrap=True)
    return False


def _folder(name: str) -> Path:
    try:
        return ROOT / checked_name("--name", name)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _jobs(
    contest: Contest, tasks: Sequence[str], controllers: Sequence[str], seeds: range, folder: Path,
    overrides: Sequence[str],
) -> Iterator[Job]:  # fmt: skip
    """Seed after seed, so that a suite that is stopped early has compared everything."""
    given = list(_settings_in(overrides))
    for key in given:
        if key in _OWN:
            raise ConfigError(f"{key} is what a suite sets by itself; {_OWN[key]}")
    untracked = [] if any(key.startswith("tracking.") for key in given) else ["tracking.enabled=false"]
    found = {}
    for task, controller, variant in product(tasks, controllers, contest.variants):
        preset = contest.preset(task, controller)
        of_contest = (*contest.settings, *contest.tasks.get(task, ()))
        fixed = [f"policy.controller.kind={controller}", f"checkpoint.root={folder}", *untracked]
        config = load_config(preset, [*of_contest, *overrides, *contest.variants[variant], *fixed])
        config = config.changed("tracking", parent=config.tracking.parent or folder.name)
        facts = make_blueprint(config).facts
        if facts is None and config.env.success_return is None:
            raise ConfigError(f"{preset} does not say what success is; set env.success_return in it")
        found[task, controller, variant] = config, facts
    for seed, ((task, controller, variant), (config, facts)) in product(seeds, found.items()):
        config = config.model_copy(update={"seed": seed})
        yield Job(task, controller, variant, config, facts, fingerprint(config))


def _started(jobs: Sequence[Job], starts: dict[str, str]) -> list[Job]:
    """The jobs, with the very checkpoints that they start from, which are added to those that are known.

    Raises:
        ConfigError: one is not there, or does not fit.
    """
    for job in {(job.task, job.controller, job.variant): job for job in jobs}.values():
        if (given := job.config.train.start_from) is None:
            continue
        try:
            start = start_of(make_blueprint(with_known(job.config, starts)))
        except ConfigError as error:
            raise ConfigError(f"with {job.title}: {error}") from None
        if start is not None:
            starts[given] = start.named
    return [job._replace(config=with_known(job.config, starts)) for job in jobs]


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


def _run(job: Job, local: bool, log: IO[str], measurement: Measurement) -> dict[str, Any] | None:
    """Run one job and return its result, or None if it was interrupted; training that diverges is a result too."""
    started = perf_counter()
    run: dict[str, Any] = {
        "task": job.task, "controller": job.controller, "variant": job.variant, "settings": job.settings,
        "cpu": describe_machine()["cpu"],
    }  # fmt: skip
    try:
        outcome = run_seed(job.config, local=local, callbacks=[Display(Console(file=log)), measurement], progress=False)
    except (FloatingPointError, EvaluationError) as error:
        seconds = round(perf_counter() - started, 1)
        return run | {"seed": job.config.seed, "seconds": seconds, "solved": False, "failure": str(error)}
    if outcome is None:
        return None
    target = job.config.train.stop_success or DEFAULT_TARGET
    return run | outcome._asdict() | {"solved": outcome.success >= target} | measurement.result()


def _outcome(run: dict[str, Any]) -> str:
    if "failure" in run:
        return f"failed: {run['failure']}"
    verdict = "solved after" if run["solved"] else "not solved in"
    return f"{verdict} {run['steps']:,} steps, {run['seconds']:.0f} s, success {run['success']:.1%}"
