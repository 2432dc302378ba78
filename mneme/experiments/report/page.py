"""A report as one HTML page that holds everything it shows, pictures included, and asks the network for nothing."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from mneme.experiments.report.tables import Table

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22262b; max-width: 1100px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2.2em }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }
th, td { text-align: left; padding: .25em .9em .25em 0; border-bottom: 1px solid #e6e8eb; vertical-align: top }
th { color: #6a7078; font-weight: 600 } td { font-variant-numeric: tabular-nums }
img { max-width: 100% } p.note { color: #6a7078; font-size: 13px; max-width: 80ch }
"""


class Section(NamedTuple):
    """A part of the page."""

    title: str
    note: str  # below the title
    picture: Path | None = None  # a PNG
    table: Table | None = None


def write_page(title: str, note: str, sections: Sequence[Section], path: Path) -> None:
    """Write the page.

    Raises:
        OSError: it cannot be written, or a picture cannot be read.
    """
    body = "".join(_section(section) for section in sections)
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head>\n'
        f'<body><h1>{escape(title)}</h1>\n<p class="note">{escape(note)}</p>\n{body}</body></html>\n'
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>\n", f'<p class="note">{escape(section.note)}</p>\n']
    if section.picture is not None:
        data = b64encode(section.picture.read_bytes()).decode()
        parts.append(f'<img alt="{escape(section.title)}" src="data:image/png;base64,{data}">\n')
    if section.table is not None:
        heading, *rows = section.table
        parts.append(f"<table><tr>{_cells('th', heading)}</tr>\n")
        parts += [f"<tr>{_cells('td', row)}</tr>\n" for row in rows]
        parts.append("</table>\n")
    return "".join(parts)


def _cells(tag: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)
