"""Runs over Ray as their tests see them: started runners, the processes of actors, and the rows of updates."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray

from mneme.configuration.config import Config
from mneme.distributed.accounts import StepCounts
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.ray_runner import RayRunner


@contextmanager
def started(config: Config) -> Iterator[RayRunner]:
    """A runner whose actors are there, in the test's Ray, and that leaves none of them there."""
    runner = RayRunner(make_blueprint(config))
    runner.start()
    try:
        yield runner
    finally:
        for actor in runner.fleet._actors:
            ray.kill(actor)
        runner.close()


def actors(kind: str) -> list[psutil.Process]:
    """The processes of this one's Ray that are actors of a class, those that are stopped left out."""
    return [process for process in psutil.Process().children(recursive=True) if _is_a(kind, process)]


def _is_a(kind: str, process: psutil.Process) -> bool:
    try:
        return f"ray::{kind}" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def updates(folder: Path) -> list[dict[str, float]]:
    """The metrics of a run's updates, oldest first."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "policy_loss" in row]


def assert_accounted(row: Mapping[str, float]) -> None:
    """Every step that was collected is counted once."""
    collected, *where = (row[f"steps/{name}"] for name in StepCounts._fields)
    assert collected == sum(where)
