"""The tutorials do what they say."""

import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOK = DOCS / "tutorial_first_agent.ipynb"


def _cells(kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def _blocks(page: str) -> list[str]:
    if page == NOTEBOOK.name:
        return _cells("code")
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", [NOTEBOOK.name, "tutorial_own_task.md"])
def test_every_block_of_a_tutorial_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = _blocks(page)
    assert len(blocks) >= 3
    names: dict[str, object] = {"__name__": "tutorial"}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def test_the_notebook_leads_on_and_keeps_no_outputs() -> None:
    links = re.findall(r"\]\(([^)#\s]+)", "\n".join(_cells("markdown")))
    assert links
    assert [link for link in links if not (DOCS / link).exists()] == []
    assert not any(cell.get("outputs") for cell in json.loads(NOTEBOOK.read_text())["cells"])
