"""Runs as their folders have them, for comparison. Nothing of theirs is run or imported."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from mneme.configuration.records import from_json, read_yaml, to_json
from mneme.distributed.config import ConfigError
from mneme.envs import EnvironmentFailure, EnvSettings, horizon_of, make_vector_env
from mneme.experiments.horizons import kept_horizons
from mneme.experiments.seeds import DEFAULT_TARGET
from mneme.experiments.sweep.trial import evaluations_in, seconds_of
from mneme.reporting.tracking.names import flatten
from mneme.storage.files import read_text
from mneme.storage.paths import CHECKPOINTS
from mneme.storage.run_folder import Row, RunFolder

FILE = "report.json"  # which may stand for the runs that it was made of
_OF_ONE_RUN = ("seed", "name", "checkpoint.", "tracking.")
"""Settings that say nothing about what is learned."""
_POINTS = 200  # of a learning curve that are kept
_EVALUATION = "evaluation/"
_KWARGS = "env.kwargs."

Curve = list[tuple[int, float]]  # environment steps, and a value


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run, and what came of it."""

    name: str
    seed: int
    environment: str  # its id
    horizon: int | None  # of the task, if it is one of ours that has one
    horizons: Sequence[tuple[int, float]] = ()  # that it was evaluated at besides, with its success
    settings: Mapping[str, str]  # by dotted keys, as text; those of one run alone left out
    steps: int  # that it trained on
    seconds: float  # of training, evaluations left out
    result: Mapping[str, float]  # of its last evaluation, without the prefix; empty if there was none
    evaluations: Mapping[str, Curve]  # by metric
    training: Mapping[str, Curve]  # return and success of training episodes, thinned by means
    target: float  # success that counts as solved
    solved: tuple[int, float] | None  # steps and seconds of the first evaluation that reached it

    @property
    def task(self) -> str:
        """The task with its arguments, in words."""
        kwargs = {key: value for key, value in self.settings.items() if key.startswith(_KWARGS)}
        words = ", ".join(f"{key.removeprefix(_KWARGS)}={value}" for key, value in kwargs.items())
        id = self.environment.rpartition("/")[2]
        return f"{id} ({words})" if words else id


def read_records(paths: Iterable[Path]) -> list[Record]:
    """The runs that paths mean: a run's folder, one that holds runs' folders (a suite, a sweep), or a report's.

    Raises:
        ConfigError: one of them means none.
    """
    found: dict[Path, Record] = {}
    for path in paths:
        records = dict(_records(path))
        if not records:
            raise ConfigError(
                f"there is no run with metrics at {path}; name a run's folder, one that holds runs, as "
                f"runs/suites/NAME or runs/sweeps/NAME, or a report's"
            )
        found |= records
    return list(found.values())


def write_records(records: Sequence[Record], path: Path) -> None:
    """Keep what a report was made of, as JSON."""
    path.write_text(json.dumps(to_json([asdict(record) for record in records])) + "\n")


def _records(path: Path) -> Iterator[tuple[Path, Record]]:
    file = path / FILE if path.is_dir() else path
    if file.is_file() and file.suffix == ".json":
        try:
            for number, entry in enumerate(from_json(json.loads(file.read_text()))):
                entry["solved"] = None if entry["solved"] is None else tuple(entry["solved"])
                yield file / str(number), Record(**entry)
        except (ValueError, TypeError, KeyError, yaml.YAMLError):
            raise ConfigError(f"{file} is not what a report keeps; give the {FILE} of one, or its folder") from None
        return
    if not path.is_dir():
        return
    for folder in [path] if (path / "config.yaml").exists() else sorted(filter(Path.is_dir, path.iterdir())):
        if (record := _record(RunFolder(folder))) is not None:
            yield folder.resolve(), record


def _record(folder: RunFolder) -> Record | None:
    if folder.path.name == CHECKPOINTS or not folder.config.exists() or not (history := folder.history()):
        return None
    try:
        tree = read_yaml(read_text(folder.config))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    if not isinstance(tree, dict):
        return None
    settings = {key: value for key, value in flatten(tree).items() if not key.startswith(_OF_ONE_RUN)}
    train = tree.get("train")
    target = train.get("stop_success") if isinstance(train, dict) else None
    target = float(target) if isinstance(target, float | int) else DEFAULT_TARGET
    evaluations = evaluations_in(history)
    results = [{key.removeprefix(_EVALUATION): value for key, value in row.items()} for row in evaluations]
    names = dict.fromkeys(key for row in results for key in row if key != "steps")
    return Record(
        name=folder.path.name,
        seed=tree["seed"] if isinstance(tree.get("seed"), int) else 0,
        environment=settings.get("env.id", ""),
        horizon=_horizon(tree),
        horizons=kept_horizons(folder.path),
        settings=settings,
        steps=int(history[-1]["step"]),
        seconds=seconds_of(history),
        result={key: value for key, value in (results[-1] if results else {}).items() if key != "steps"},
        evaluations={name: [(row["steps"], row[name]) for row in results if name in row] for name in names},
        training={key: _thinned(history, key) for key in ("return", "success") if any(key in row for row in history)},
        target=target,
        solved=_solved(history, target),
    )


def _horizon(tree: Mapping[str, Any]) -> int | None:
    env = tree.get("env")
    if not isinstance(env, dict) or not str(env.get("id")).startswith("mneme/"):  # whose code is ours
        return None
    kwargs = env.get("kwargs") or {}
    try:
        with closing(make_vector_env(EnvSettings(id=env["id"], kwargs=kwargs), 1)) as made:
            found = horizon_of(made, kwargs)
    except (EnvironmentFailure, ValueError, TypeError):
        return None
    return None if found is None else found[1]


def _solved(history: Sequence[Row], target: float) -> tuple[int, float] | None:
    for number, row in enumerate(history):
        if row.get(f"{_EVALUATION}success", -math.inf) >= target:
            return int(row["step"]), seconds_of(history[: number + 1])
    return None


def _thinned(history: Sequence[Row], key: str) -> Curve:
    rows = [row for row in history if key in row]
    size = -(-len(rows) // _POINTS)
    parts = [rows[start : start + size] for start in range(0, len(rows), max(1, size))]
    return [(int(part[-1]["step"]), round(sum(row[key] for row in part) / len(part), 5)) for part in parts]
