"""The documentation is true where a machine can tell: paths, links, targets, settings, commands, quoted messages."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from mneme.arguments import make_parser
from mneme.configuration.config import Config, load_config, settings
from mneme.configuration.presets import find_preset
from tests.test_house import COMMANDS
from tests.third_party.test_environments import TASKS as THIRD_PARTY_TASKS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
PACKAGES = ("envs", "controllers", "rollout_workers", "learner", "distributed")
PRODUCTS = ("benchmarks/results/",)  # what commands write
SECTIONS = "|".join(name for name in Config.model_fields if name not in ("seed", "name"))

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def anchors(document: Path) -> set[str]:
    """Fragment identifiers of a document's headings, as hosting sites derive them."""
    titles = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def prose(document: Path) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), f"{document.name} links to {target}"
        if anchor:
            assert anchor in anchors(linked), f"{document.name} links to {target}"


@every_document
def test_paths_exist(document: Path) -> None:
    folders = "|".join((*PACKAGES, "configs", "benchmarks", "docs", "tests"))
    named = re.findall(rf"(?<![\w./-])((?:{folders})/[\w./-]*)", document.read_text())
    named += re.findall(
        r"(?<![\w./-])(Makefile|LICENSE|[A-Z]+\.md|cluster\.yaml|cluster-local\.yaml|Dockerfile|requirements\.lock|pyproject\.toml)\b",
        document.read_text(),
    )
    for name in named:
        path = name.rstrip(".")
        assert path in PRODUCTS or (ROOT / path).exists(), f"{document.name} names {path}"


@every_document
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", document.read_text(), re.MULTILINE))
    assert named <= targets, f"{document.name} names {named - targets}"


@every_document
def test_settings_exist(document: Path) -> None:
    keys = {setting.key for setting in settings()}
    known = keys | {key.rpartition(".")[0] for key in keys}  # sections too
    text = re.sub(r"^```python\n.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)  # what runs
    for key in re.findall(rf"(?<![\w./-])((?:{SECTIONS})\.[a-z_]+(?:\.[a-z_]+)*)\b(?!\()", text):
        assert key in known or key.startswith(("env.kwargs.", "policy.controller.kwargs.")), (
            f"{document.name} names {key}"
        )


def commands(document: Path) -> Iterator[list[str]]:
    """The words of every `mneme` command in a document, however it is started."""
    found = re.findall(r"^```(sh|console)\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    typed = re.compile(r"^\$ (?:.*\\\n)*.*$", re.MULTILINE)
    blocks = ["\n".join(typed.findall(text)) if kind == "console" else text for kind, text in found]
    inline = re.findall(r"`((?:mneme|python -m mneme|make train) [^`…]+)`", prose(document))
    for line in [*"\n".join(blocks).replace("\\\n", " ").splitlines(), *inline]:
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words[:2] == ["make", "train"]:
            given = dict(word.split("=", 1) for word in words[2:])
            yield ["train", given.get("CONFIG", "configs/delayed_cue.yaml"), *shlex.split(given.get("ARGS", ""))]
            continue
        if words[:3] == ["ray", "job", "submit"]:
            words = words[words.index("--") + 1 :]
        if words[1:3] == ["-m", "mneme"] and words[0] in ("python", ".venv/bin/python"):
            yield words[3:]
        elif words and words[0] in ("mneme", ".venv/bin/mneme"):
            yield words[1:]


@every_document
def test_commands_parse(document: Path) -> None:
    for words in commands(document):
        if len(words) == 1 or "--help" in words:  # the mere name of a command, or what every parser knows
            assert words[0] in COMMANDS
            continue
        options, rest = make_parser().parse_known_args(words)
        assert not any(word.startswith("-") for word in rest), f"{document.name}: {words}"
        if words[0] != "train":
            settings = words[0] == "suite" and all("=" in word for word in rest)  # argparse leaves them, as of train
            assert settings or not rest, f"{document.name}: {words}"
            continue
        given = [word for word in (options.preset, *options.settings, *rest) if word is not None]
        presets = [word for word in given if "=" not in word]
        assert not (presets and options.resume), f"{document.name}: {words}"
        load_config(find_preset(presets[0]) if presets else None, [word for word in given if "=" in word])


def test_commands_are_found() -> None:
    """Guards the tests above against a change of notation that hides every command from them."""
    assert sum(1 for _ in commands(ROOT / "README.md")) >= 10
    assert any("service.learner_resource=learner" in words for words in commands(ROOT / "docs" / "cluster.md"))


def test_other_peoples_environments_that_are_named_as_tried_are_tested() -> None:
    tried = [word for words in commands(ROOT / "docs" / "environments.md") if "--local" in words for word in words]
    assert {word.removeprefix("env.id=") for word in tried if word.startswith("env.id=")} == set(THIRD_PARTY_TASKS)


def messages() -> list[str]:
    """Every string that our code can form, with … where a value goes."""
    found = []
    for package in ("mneme", *PACKAGES):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(re.sub(r"%\w", "…", node.value))
                elif isinstance(node, ast.JoinedStr):
                    found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
    return found


def test_quoted_messages_are_ours() -> None:
    quoted = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) >= 20
    known = messages()
    for message in quoted:
        pattern = re.compile(".*".join(re.escape(part) for part in message.split("…")), re.DOTALL)
        assert any(pattern.search(text) for text in known), f"no code says: {message}"


@pytest.mark.parametrize("document", ["README.md", "docs/benchmarks.md"])
def test_results_have_their_place(document: str) -> None:
    text = (ROOT / document).read_text()
    assert text.count("<!-- results -->") == text.count("<!-- /results -->") == 1
    assert text.index("<!-- results -->") < text.index("<!-- /results -->")
