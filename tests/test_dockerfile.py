"""The Dockerfile holds what cluster nodes have, made by the same steps, and no more. No container is built here."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORDS = ("FROM", "RUN", "USER", "WORKDIR", "COPY", "ENV", "CMD")


def instructions() -> list[tuple[str, str]]:
    """Each instruction and its arguments, comments left out and lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    pairs = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(word, " ".join(rest.split())) for word, rest in pairs]


def arguments(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def copied() -> list[str]:
    """What is copied from the repository."""
    sources = []
    for rest in arguments("COPY"):
        *some, target = [word for word in rest.split() if not word.startswith("--")]
        sources += some
        assert target == "./" or [target] == some, "everything keeps its place"
    return sources


def test_it_is_made_of_instructions_that_are_known_and_of_a_pinned_base() -> None:
    assert {name for name, _ in instructions()} == set(WORDS)
    (base,) = arguments("FROM")
    assert re.fullmatch(r"python:3\.1[12]\.\d+-slim-\w+", base), "a version that does not move, which Mneme supports"
    (command,) = arguments("CMD")
    assert json.loads(command)[0] == "mneme"


def test_what_is_copied_exists_and_is_what_cluster_nodes_get() -> None:
    for source in copied():
        assert (ROOT / source).exists(), source
    mounts = yaml.safe_load((ROOT / "cluster.yaml").read_text())["file_mounts"].values()
    assert set(copied()) == {local.removeprefix("./") for local in mounts if local.startswith("./")}


def test_the_context_is_what_is_copied_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines[1:] if line.startswith("!")} == set(copied())
    assert [line for line in lines[1:] if not line.startswith("!")] == ["**/__pycache__"]


def test_packages_come_from_the_lock_files_by_make_alone() -> None:
    steps = [step for rest in arguments("RUN") for step in rest.split(" && ")]
    assert [step for step in steps if "setup" in step] == ["PIP_NO_CACHE_DIR=1 make setup PYTHON=python3.12"]
    assert not any("pip install" in step or "curl" in step or "wget" in step for step in steps)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "setup" in targets


def test_it_runs_as_a_user_who_owns_what_he_needs_and_holds_no_secret() -> None:
    names = [name for name, _ in instructions()]
    assert arguments("USER") == ["mneme"], "from there on never as root"
    assert names.index("USER") < names.index("COPY")
    assert all("--chown=mneme:mneme" in rest for rest in arguments("COPY"))
    settings = dict(word.split("=", 1) for rest in arguments("ENV") for word in shlex.split(rest))
    assert settings["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in settings
    assert not {name for name, _ in instructions()} & {"ARG", "EXPOSE", "ADD"}


@pytest.mark.parametrize("document", ["docs/cluster.md", "Dockerfile"])
def test_the_image_has_one_name(document: str) -> None:
    assert "docker build --tag mneme ." in (ROOT / document).read_text()
