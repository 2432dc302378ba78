"""`mneme sweep`: run what is missing, keep what comes of it, and write the table, the picture and the best preset."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from rich.console import Console
from rich.status import Status

from mneme.configuration.config import Config
from mneme.configuration.passwords import without_password
from mneme.controllers.given import pickled
from mneme.distributed.config import ConfigError
from mneme.distributed.search_space import Report, Trial
from mneme.envs import registered_here
from mneme.experiments.seeds import provenance
from mneme.experiments.suite.results import replace_file
from mneme.experiments.sweep.best import write_preset
from mneme.experiments.sweep.picture import draw
from mneme.experiments.sweep.plan import (
    Plan,
    check_plan,
    described,
    find_sweep,
    make_plan,
    run_name,
    stand_ins,
    trials_of,
)
from mneme.experiments.sweep.results import FILE, SweepResults
from mneme.experiments.sweep.table import as_csv, as_markdown
from mneme.experiments.sweep.trial import Code, begin
from mneme.interruption import stopping_on_signals
from mneme.storage.paths import checked_name

_log = logging.getLogger(__name__)

ROOT = Path("runs/sweeps")
_GRACE = 10  # one part in so many of the longest trial is left to every one
_KEPT = ("evaluation/", "steps", "seconds", "failure", "outcome")  # of what a trial reports


class Sweep(NamedTuple):
    """A sweep that has ended, or was interrupted."""

    folder: Path
    best: Path | None  # a preset; None if no trial came to a value
    interrupted: bool

    def trials(self) -> pa.Table:
        """Its trials: a row for each that has ended, with its settings, its outcome, and the evaluation it came to."""
        rows = SweepResults(self.folder).document["trials"]
        flat = [{**row["point"], **{key: row[key] for key in row if key not in ("point", "curve")}} for row in rows]
        columns = list(dict.fromkeys(name for row in flat for name in row))
        return pa.table({name: [row.get(name) for row in flat] for name in columns})


def run_sweep(
    file: str | Path | None, overrides: Sequence[str], *,
    search: Mapping[str, Any] | None = None, name: str | None = None, console: Console | None = None,
) -> Sweep:  # fmt: skip
    """Do what of the sweep has not been done yet, then show what came of it.

    Args:
        file: a sweep's file, or the name of one that comes with Mneme, or a preset; none for the defaults.
        overrides: `key=value` settings, those of the section `sweep` included.
        search: settings of that section which count more.
        name: of the sweep; that of the file, if there is one. The same name goes on with it.

    Raises:
        ConfigError, EnvironmentFailure, ServiceError: nothing has been started; one sentence.
    """
    console = console or Console(highlight=False)
    path = None if file is None else find_sweep(str(file))
    folder = _folder(name or (path.stem if path is not None else "sweep"))
    results = SweepResults(folder)
    plan = make_plan(path, overrides, search or {}, folder)
    plan = check_plan(replace(plan, starts=results.document.get("starts", {})))
    results.declare(plan, provenance())
    trials = trials_of(plan)
    missing = results.missing(trials) if trials else results.begun
    total = len(trials) or plan.sweep.trials
    left = len(missing) if trials else total - len(results.document["trials"])
    with stopping_on_signals() as stop:
        if left > 0:
            results.save()
            with console.status("") as status:
                _run(plan, missing, left, results, _Watch(results, plan, console, status, total), lambda: stop.made)
        interrupted = stop.made
    best = _write(results, plan)
    if left > 0:
        _record(results, plan)
    if interrupted:
        console.print(f"interrupted; the same command goes on with {folder}", soft_wrap=True)
    else:
        console.print(as_markdown(results), end="", soft_wrap=True, markup=False)
        told = f"; the best as a preset: mneme train {_here(best)}" if best else ""
        console.print(f"kept in {_here(folder / FILE)}, table.md, table.csv and sweep.png{told}", soft_wrap=True)
    return Sweep(folder, best, interrupted)


def show_sweep(file: str | Path | None, name: str | None = None, console: Console | None = None) -> None:
    """Print the table of what has been done.

    Raises:
        ConfigError: nothing has.
    """
    folder = _folder(name or Path(file or "sweep").stem)
    results = SweepResults(folder)
    if not results.document["trials"]:
        raise ConfigError(f"{_here(folder)} holds no results; run the sweep first, or name it with --name")
    (console or Console(highlight=False)).print(as_markdown(results), end="", soft_wrap=True, markup=False)


def _folder(name: str) -> Path:
    try:
        return (ROOT / checked_name("--name", name)).absolute()
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _here(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _run(
    plan: Plan, missing: Sequence[Trial], left: int, results: SweepResults, watch: "_Watch", stop: Callable[[], bool]
) -> None:
    """Run what is missing: these trials, and where the search chooses by itself so many as are `left`, these
    included."""
    from mneme.distributed.tuning import EarlyStopping, Past, Study, ray_for, run_trials

    configs = [plan.config(trial) for trial in stand_ins(plan)]
    longest = max(config.train.total_timesteps for config in configs)
    controllers = {k: code for config in configs for k, code in pickled(config.policy.controller.kind).items()}
    code = Code(registered_here(), controllers)
    searches = plan.sweep.search == "optuna"
    with ray_for(configs[0].service, map(demand_of, configs)):
        run_trials(
            partial(begin, plan, code),
            watch,
            stop,
            trials=missing,
            study=Study(plan.space, left, results.next_number, plan.seed) if searches else None,
            demand=lambda trial: demand_of(plan.config(trial)),
            metric=plan.sweep.metric,
            goal=plan.sweep.goal,
            stopping=EarlyStopping(
                rule=plan.sweep.early_stopping,
                grace=plan.sweep.grace or max(1, longest // _GRACE),
                longest=longest,
                reduction_factor=plan.sweep.reduction_factor,
            ),
            past=[Past(results.trial(row), row["curve"]) for row in results.document["trials"]],
            concurrent=plan.sweep.max_concurrent,
        )


def demand_of(config: Config) -> dict[str, float]:
    """Ray's resources that a trial takes: the threads that learn, and a GPU if it learns on one and Ray has any."""
    from mneme.distributed.tuning import gpus

    service, device = config.service, config.learner.device
    demand = {"CPU": float(config.learner.num_threads or 1)}
    if device.startswith("cuda") or (device == "auto" and gpus()):
        demand["GPU"] = 1.0 if service.learner_gpus is None else service.learner_gpus
    if service.learner_resource:
        demand[service.learner_resource] = 1.0
    return demand


class _Watch:
    """Keeps what trials come to, and says it; see `Listener`."""

    def __init__(self, results: SweepResults, plan: Plan, console: Console, status: Status, total: int) -> None:
        self._results, self._plan, self._console, self._status, self._total = results, plan, console, status, total
        self._curves: dict[str, dict[int, float]] = {}  # of those that run, by name: steps and metric
        self._say()

    def started(self, trial: Trial) -> None:
        self._results.begin(trial)
        self._curves.setdefault(run_name(trial), {})
        self._say()

    def reported(self, trial: Trial, report: Report) -> None:
        if math.isfinite(value := report[self._plan.sweep.metric]):
            self._curves[run_name(trial)][report["steps"]] = value

    def ended(self, trial: Trial, report: Report, reason: str | None) -> None:
        curve = sorted(self._curves.pop(run_name(trial), {}).items())
        figures = {key: value for key, value in report.items() if key.startswith(_KEPT)}
        figures.setdefault("steps", 0)  # where its process was lost before it told of anything
        if reason is not None:
            figures["failure"] = f"its process was lost, again and again: {reason}"
        outcome = "failed" if "failure" in figures else figures.get("outcome", "stopped early")
        self._results.end(trial, curve, figures | {"outcome": outcome})
        try:
            _write(self._results, self._plan)
        except OSError as error:
            self._console.print(f"tables and picture cannot be written ({error}); the sweep goes on", markup=False)
        done = len(self._results.document["trials"])
        seed = f", seed {trial.seed}" if self._plan.sweep.seeds > 1 else ""
        self._console.print(
            f"[{done} of {self._total}] {described(trial.point)}{seed}: {self._outcome(figures, outcome)}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        self._say()

    def _outcome(self, figures: Mapping[str, Any], outcome: str) -> str:
        if outcome == "failed":
            return f"failed: {figures['failure']}"
        metric, seconds = self._plan.sweep.metric, figures.get("seconds", math.nan)
        return f"{metric} {figures[metric]:.3f}, {outcome} at step {figures['steps']:,}, {seconds:.0f} s"

    def _say(self) -> None:
        running = ", ".join(self._curves) or "starting Ray"
        self._status.update(f"{len(self._results.document['trials'])} of {self._total} done; {running}")


def _record(results: SweepResults, plan: Plan) -> None:
    """Add the results to the run that gathers the trials in MLflow; a store that fails costs no more than that."""
    found, folder = results.best, results.path.parent
    if found is None:
        return
    from mneme.reporting.tracking.parents import add_to_parent  # MLflow takes seconds to import

    settings = plan.config(results.trial(found.trials[0])).tracking
    files = [folder / name for name in ("sweep.png", "table.md", "table.csv", "best.yaml")]
    try:
        add_to_parent(settings, {results.metric: found.value(results.metric)}, files)
    except Exception as error:
        _log.warning(f"MLflow at {without_password(settings.uri)} did not take the sweep's results: {error}")


def _write(results: SweepResults, plan: Plan) -> Path | None:
    """Write beside the results what people read; the best configuration's preset, if there is one."""
    folder = results.path.parent
    if not results.document["trials"]:
        return None
    replace_file(folder / "table.md", as_markdown(results))
    replace_file(folder / "table.csv", as_csv(results))
    draw(results, folder / "sweep.png", folder.name)
    best, path = results.best, folder / "best.yaml"
    if best is None:
        return None
    of_seeds = f", the mean of {len(best.trials)} seeds" if len(best.trials) > 1 else ""
    comment = (
        f"The best of {len(results.configurations)} configurations: {results.metric} {best.value(results.metric):.4g}"
    )
    write_preset(plan.config(results.trial(best.trials[0])), path, f"{comment}{of_seeds}. {described(best.point)}.")
    return path
