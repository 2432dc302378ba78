"""The import contract: who may import whom, read off the syntax trees and off a running interpreter."""

import ast
import os
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "envs": set(),
    "controllers": set(),
    "rollout_workers": {"envs", "controllers"},
    "learner": {"controllers", "rollout_workers.fragment", "rollout_workers.state", "rollout_workers.stopwatch"},
    "distributed": {"envs", "controllers", "rollout_workers", "learner"},
}
"""Rooms of the house, and what each may import besides itself; the rest of `mneme/` may import all of them."""


@cache
def modules() -> dict[str, Path]:
    """Every module of ours by its import name; of a package that loads what it offers on demand, the stub."""
    folders = [ROOT / "mneme", *(ROOT / "mneme" / room for room in ALLOWED)]
    found = {}
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        stub = path.with_suffix(".pyi")
        found[".".join(parts).removesuffix(".__init__")] = stub if stub.exists() else path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """Names that a module imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def room_of(module: str) -> str | None:
    """The room of the house that a name of ours belongs to; none for the application."""
    parts = module.split(".")
    return parts[1] if parts[0] == "mneme" and len(parts) > 1 and parts[1] in ALLOWED else None


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_the_design_allows(room: str) -> None:
    allowed = tuple(f"mneme.{name}." for name in {room, *ALLOWED[room]})
    for module in modules():
        if room_of(module) == room:
            for name in imports(module):
                assert not name.startswith("mneme") or name.startswith(allowed), f"{module} imports {name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: _targets(module) - {module} for module in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def _targets(module: str) -> set[str]:
    """Modules whose code an import reaches: packages stand for what they import themselves."""
    return {name if name in modules() else name.rpartition(".")[0] for name in imports(module)} & modules().keys()


@pytest.mark.parametrize(
    ("library", "where"),
    [
        ("ray", {"mneme.distributed", "mneme.rllib"}),
        ("mlflow", {"mneme.reporting"}),
        ("pydantic", {"mneme.distributed", "mneme.configuration"}),
    ],
)
def test_libraries_stay_in_their_rooms(library: str, where: set[str]) -> None:
    importers = {m for m in modules() if any(f"{name}.".startswith(f"{library}.") for name in imports(m))}
    assert {".".join(module.split(".")[:2]) for module in importers} <= where


def test_envs_need_no_torch() -> None:
    for module in modules():
        if room_of(module) == "envs":
            assert not any(name.startswith("torch") for name in imports(module)), module


def test_everything_but_distributed_runs_without_ray() -> None:
    code = (
        "import sys; sys.modules['ray'] = sys.modules['mlflow'] = sys.modules['pydantic'] = None;"
        "from mneme.envs import *; from mneme.controllers import *;"
        "from mneme.rollout_workers import *; from mneme.learner import *"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_local_training_never_imports_ray() -> None:
    code = "import sys, mneme.training; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_commands_that_train_nothing_never_import_torch(tmp_path: Path) -> None:
    (tmp_path / "runs" / "old" / "checkpoints").mkdir(parents=True)
    commands = (
        "--help", "--version", "train --help", "sweep --help", "runs", "status runs/old", "train learner.lr=1",
        "train nosuch", "train seed 3", "train --lcoal", "train learner.bptt_length=0", "train --resume runs/nosuch",
        "evaluate runs/nosuch", "diagnose runs/nosuch", "replay nosuch.parquet", "dashboard --port 0",
    )  # fmt: skip
    code = (
        "import sys; from contextlib import suppress; from mneme.cli import main\n"
        "for command in sys.argv[1:]:\n"
        "    with suppress(SystemExit):\n"
        "        main(command.split())\n"
        "    assert 'torch' not in sys.modules, command\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, *commands], check=True, cwd=tmp_path, env=environment)
