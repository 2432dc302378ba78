"""What the site has besides the pages in docs/: README.md as its first one, notebooks, and files that pages lead to.

MkDocs runs this; see mkdocs.yml. On disk pages link to files of the repository, so that they are right there too.
"""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
BESIDE = {"README.md": "index.md", **{name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")}}
"""Files of the repository's root that are pages, and their names as such."""

_LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the repository's own pages, a page for each notebook, and pictures of results that pages show."""
    for source, page in BESIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for notebook in (ROOT / "docs").glob("*.ipynb"):
        files.append(File.generated(config, f"{notebook.stem}.md", content=_as_page(notebook)))
    for picture in (ROOT / "benchmarks" / "results").glob("*.png"):
        files.append(File.generated(config, f"results/{picture.name}", abs_src_path=str(picture)))
    return files


def _as_page(notebook: Path) -> str:
    """A notebook's text and code, and where to get it."""
    cells = json.loads(notebook.read_text())["cells"]
    fences = {"markdown": "{}\n", "code": "```python\n{}\n```\n"}
    page = "\n".join(fences[cell["cell_type"]].format("".join(cell["source"])) for cell in cells)
    return f'{page}\n<a href="../{notebook.name}" download>This page as a notebook</a>\n'


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make links from file to file links from page to page."""
    folder = ROOT if page.file.src_uri in BESIDE.values() else ROOT / "docs"
    return _LINK.sub(lambda link: _on_site(folder, link[1]), markdown)


def _on_site(folder: Path, link: str) -> str:
    """A link of a file in a folder, as one from any page: all of them lie beside each other."""
    path = (folder / link).resolve()
    if not path.is_relative_to(ROOT):
        return link
    place = path.relative_to(ROOT).as_posix()
    if place in BESIDE:
        return BESIDE[place]
    return place.removeprefix("docs/").replace("benchmarks/results/", "results/", 1).replace(".ipynb", ".md")
