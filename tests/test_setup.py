"""What `.venv` holds is what the lock files say, and nothing else names versions of it."""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path
from sysconfig import get_path

import pytest

ROOT = Path(__file__).parents[1]
PIPS_OWN = {"pip", "wheel", "mneme-rl"}
OF_CUDA = ("nvidia-", "cuda-")  # what torch brings on a machine that has it

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the lists are of Linux")


def locked(name: str) -> dict[str, str]:
    lines = (line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#"))
    return {canonical(package): version for package, version in (line.split("==") for line in lines)}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@on_linux
def test_the_environment_is_what_the_lock_files_list() -> None:
    lists = locked("requirements.lock") | locked("requirements-linux.lock")
    site = get_path("purelib")  # not what Ray carries along
    held = {canonical(found.name): found.version.partition("+")[0] for found in distributions(path=[site])}
    if not any(name.startswith(OF_CUDA) for name in held):
        held.setdefault("mamba-ssm", lists["mamba-ssm"])  # it may be missing: it could not be built
        lists = {name: version for name, version in lists.items() if name not in PIPS_OWN}
        assert {name: version for name, version in held.items() if name not in PIPS_OWN} == lists


def test_versions_stand_in_the_lock_files_alone() -> None:
    for name in ("Makefile", "cluster.yaml"):
        assert "==" not in re.sub(r"'\^\$\(1\)=='", "", (ROOT / name).read_text()), name
    assert not locked("requirements.lock").keys() & locked("requirements-linux.lock").keys()
