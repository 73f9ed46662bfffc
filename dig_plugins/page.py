"""A report as one self-contained HTML page: pictures embedded, tables, notes, no external resource, no script."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from dig_core.files import write_atomically

__all__ = ["Picture", "Table", "write_report"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2127; --soft: #57606a; --paper: #ffffff; --tint: #f3f5f7; --line: #d5dae0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a5adb8; --paper: #16191d; --tint: #22262c; --line: #3a4048; }
}
body { margin: 0 auto; padding: 2rem 1.25rem 3rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", Arial, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.25; }
h2 { margin: 2.2rem 0 .6rem; font-size: 1.15rem; }
.lead, figcaption, dt { color: var(--soft); }
.lead { margin: .3rem 0 1.4rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin: 0 0 1.6rem; }
dl div { display: flex; flex-direction: column; justify-content: space-between;
  padding: .7rem .9rem; border-radius: .5rem; background: var(--tint); }
dt { font-size: .85rem; }
dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; border-radius: .5rem; background: #ffffff; }
figcaption { margin-top: .6rem; font-size: .92rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; font-size: .88rem; }
tbody th { font-weight: 400; }
"""


class Picture(NamedTuple):
    """A PNG, the text that stands for it where it cannot be seen, and its caption."""

    png: bytes
    alt: str
    caption: str


class Table(NamedTuple):
    """Column headings and rows of cells; the first cell of a row names it."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


def write_report(
    directory: str | os.PathLike[str],
    title: str,
    pictures: Sequence[Picture],
    tables: Mapping[str, Table],
    notes: Sequence[str] = (),
    *,
    lead: str = "",
    highlights: Mapping[str, str] | None = None,
) -> Path:
    """Write ``report.html`` and its pictures ``report.png``, ``report-2.png``, ... to ``directory``; return the page.

    ``tables`` maps headings of sections to their tables, ``highlights`` names to the few figures shown on top. Text is
    escaped. A file appears under its name only when it is complete; one from an earlier report is replaced.
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures, 1):
        write_atomically(target / ("report.png" if number == 1 else f"report-{number}.png"), picture.png)
    body = [f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(lead)}</p>' if lead else ""]
    if highlights:
        tiles = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in highlights.items())
        body.append(f"<dl>{''.join(tiles)}</dl>")
    body += [_figure(picture) for picture in pictures]
    body += [_section(heading, table) for heading, table in tables.items()]
    if notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        body.append(f"<section><h2>Notes</h2><ul>{items}</ul></section>")
    page = target / "report.html"
    write_atomically(page, _document(title, "\n".join(filter(None, body))).encode())
    return page


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(picture.alt)}">'
    return f"<figure>{image}<figcaption>{escape(picture.caption)}</figcaption></figure>"


def _section(heading: str, table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = []
    for first, *others in table.rows:
        cells = "".join(f"<td>{escape(str(cell))}</td>" for cell in others)
        rows.append(f'<tr><th scope="row">{escape(str(first))}</th>{cells}</tr>')
    grid = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<section><h2>{escape(heading)}</h2><div class="scroll">{grid}</div></section>'
