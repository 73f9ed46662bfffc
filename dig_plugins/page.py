"""A report as one self-contained HTML page: pictures, structures to turn, tables, notes; the browser is told to load nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from .scene import SCRIPT, Scene

__all__ = ["Fact", "Picture", "Table", "document", "fact", "standalone"]

_STYLE = Path(__file__).with_name("page.css")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_UNSEEN = "<noscript><p>The structures below need JavaScript; everything else does not.</p></noscript>"


class Fact(NamedTuple):
    """A number or a word of the record, as the page shows it; ``key``: where it stands there, "plain_md.seconds" for example."""

    key: str
    text: str


class Picture(NamedTuple):
    """A PNG, the text that stands for it where it cannot be seen, its caption, and whether it takes the page's whole width."""

    png: bytes
    alt: str
    caption: str
    wide: bool = False


class Table(NamedTuple):
    """Column headings and rows of cells, text or :class:`Fact`; the first cell of a row names it."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


def fact(record: Any, key: str, form: str = "{}") -> Fact:
    """What stands at ``key`` of a record, formatted; "-" for what is not known. KeyError where there is no such key."""
    value = record
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list | tuple) else value[part]
    return Fact(key, "-" if value is None or value != value else form.format(value))


def document(
    title: str, *, lead: str = "", verdict: tuple[bool, str] | None = None, tiles: Mapping[str, Fact] | None = None,
    pictures: Sequence[Picture] = (), scenes: Sequence[Scene] = (), tables: Mapping[str, Table] | None = None, notes: Sequence[str] = (),
    details: Mapping[str, Table] | None = None,
) -> str:  # fmt: skip
    """The page. Text is escaped. ``verdict``: whether it is a good one, and its words; ``tiles``: the few figures shown on top;
    ``details``: tables that are folded up."""
    body = [f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(lead)}</p>' if lead else ""]
    if verdict is not None:
        mark, name = ("✓", "good") if verdict[0] else ("✗", "bad")
        body.append(f'<p class="verdict {name}"><span aria-hidden="true">{mark}</span> {escape(verdict[1])}</p>')
    if tiles:
        shown = (f"<div><dt>{escape(name)}</dt><dd{_key(one)}>{escape(one.text)}</dd></div>" for name, one in tiles.items())
        body.append(f"<dl>{''.join(shown)}</dl>")
    if pictures:
        body.append(f'<div class="panels">{"".join(_figure(picture) for picture in pictures)}</div>')
    body += [f"<section><h2>{escape(heading)}</h2>{_table(table)}</section>" for heading, table in (tables or {}).items()]
    if scenes:
        body += [_UNSEEN, *(_scene(scene) for scene in scenes)]
    if notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        body.append(f"<section><h2>Notes</h2><ul>{items}</ul></section>")
    for heading, table in (details or {}).items():
        body.append(f"<details><summary>{escape(heading)}</summary>{_table(table)}</details>")
    return _page(title, "\n".join(filter(None, body)), bool(scenes))


def standalone(scene: Scene) -> str:
    """A page of one scene and nothing else."""
    return _page(scene.title, _scene(scene), True)


def _page(title: str, body: str, script: bool) -> str:
    viewer = f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>\n" if script else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n{viewer}</body>\n</html>\n"
    )


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(picture.alt)}">'
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    return f'<figure class="{"wide" if picture.wide else "half"}">{image}{caption}</figure>'


def _scene(scene: Scene) -> str:
    name = escape(scene.title)
    heard = f"{name}: {len(scene.frames)} structures to turn with the pointer or the arrow keys"
    return (
        f'<section><h2>{name}</h2><figure class="scene" hidden>'
        f'<canvas tabindex="0" role="img" aria-label="{heard}"></canvas>'
        '<div class="leaf"><button type="button">Play</button>'
        '<input type="range" min="0" value="0" aria-label="which structure"><output></output></div>'
        f"<figcaption>{escape(scene.caption)} Drag to turn; click, then scroll, to zoom.</figcaption>"
        f'<script type="application/json">{scene.data()}</script></figure></section>'
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = []
    for first, *others in table.rows:
        cells = "".join(f"<td{_key(cell)}>{escape(_text(cell))}</td>" for cell in others)
        rows.append(f'<tr><th scope="row"{_key(first)}>{escape(_text(first))}</th>{cells}</tr>')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _text(cell: object) -> str:
    return cell.text if isinstance(cell, Fact) else str(cell)


def _key(cell: object) -> str:
    return f' data-key="{escape(cell.key)}"' if isinstance(cell, Fact) else ""
