"""The report of a run: a page and a picture beside its record, of the panels, structures and tables that the task says it has."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dig_core.files import write_atomically

from .page import Fact, Picture, Table, document, fact
from .panels import new_figure
from .record import plain, record_of
from .scene import Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Fact", "Panel", "Report", "Scene", "Table", "fact", "page_of", "write_report"]

_DPI, _WIDTH, _HEIGHT = 140, 10.0, 3.5  # inches: of the whole picture, and of a row of panels
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_TILES = {
    "visits_to_positive_phi": ("visits to φ > 0", "{:d}"),
    "plain_md.visits_to_positive_phi": ("visits by MD alone", "{:d}"),
    "designs": ("crystals", "{:d}"),
    "samples": ("structures", "{:d}"),
    "n": ("structures", "{:d}"),
    "frames": ("frames", "{:d}"),
    "proposals_made": ("proposals", "{:d}"),
    "sites": ("sites", "{:d}"),
    "effective_sample_size": ("effective sample size", "{:.1f}"),
    "raw_ess": ("raw effective sample size", "{:.1%}"),
    "acceptance": ("acceptance", "{:.1%}"),
    "largest_weight_share": ("heaviest weight of all", "{:.2%}"),
    "longest_rejection_run": ("longest run of rejections", "{:d}"),
    "spread_log_weight": ("spread of log weights", "{:.2f}"),
    "whole": ("whole structures", "{:d}"),
    "evaluations": ("energy evaluations", "{:,d}"),
    "proposals_per_second": ("proposals a second", "{:.0f}"),
    "temperature_K": ("temperature", "{:g} K"),
    "seconds": ("wall time", "{:.1f} s"),
}
"""Figures of a record that tell most, the first six of which are shown on top: name and form."""
_MOST_TILES = 6
_LONGEST = 200  # characters of a record's value that the page shows


@dataclass(frozen=True)
class Panel:
    """``draw`` makes the picture in the Axes that it is given; ``caption``: what it shows, how it is read; ``wide``: a row of its own."""

    title: str
    draw: Callable[[Axes], Any]
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Report:
    """What a run has to show. ``verdict``: whether it is a good one, and its words. Numbers come from the record, by :func:`fact`."""

    title: str
    panels: Sequence[Panel] = ()
    lead: str = ""
    verdict: tuple[bool, str] | None = None
    scenes: Sequence[Scene] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    notes: Sequence[str] = ()


def page_of(out: str | Path) -> Path:
    """Where the report of ``out`` is: ``report.html`` in a directory; beside a file, which has a suffix, the same name in ``.html``."""
    out = Path(out)
    return out.with_suffix(".html") if out.suffix else out / "report.html"


def write_report(out: str | Path, report: Report, record: Mapping[str, Any]) -> Path:
    """Write the page that :func:`page_of` names, and beside it all panels as one ``.png``; return the page.

    Without matplotlib the page has no pictures, and says so. A file appears under its name only when it is complete.
    """
    place, notes, held = page_of(out), list(report.notes), plain(record)
    place.parent.mkdir(parents=True, exist_ok=True)
    pictures: list[Picture] = []
    if report.panels:
        try:
            whole, pictures = _drawn(report.panels)
            write_atomically(place.with_suffix(".png"), whole)
        except ImportError as error:
            notes.append(f"Pictures are missing here: {error}.")
    page = document(
        report.title, lead=report.lead or _lead(held), verdict=report.verdict, tiles=_tiles(held), pictures=pictures, scenes=report.scenes,
        tables=report.tables, notes=notes, details={"How to repeat it": _table(held, record_of(out).name)},
    )  # fmt: skip
    write_atomically(place, page.encode())
    return place


def _drawn(panels: Sequence[Panel]) -> tuple[bytes, list[Picture]]:
    """All panels as one PNG, and each cut out of it."""
    rows = _rows(panels)
    figure = new_figure(_WIDTH, _HEIGHT * len(rows))
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas, parts = FigureCanvasAgg(figure), []
    figure.set_dpi(_DPI)
    figure.set_layout_engine("constrained", w_pad=0.07, h_pad=0.07)
    for row, strip in zip(rows, figure.subfigures(len(rows), 1, squeeze=False).ravel(), strict=True):
        for panel, part in zip(row, strip.subfigures(1, len(row), squeeze=False).ravel(), strict=True):
            ax = part.subplots()
            panel.draw(ax)
            letter = f"{_LETTERS[len(parts) % 26]}  " if len(panels) > 1 else ""
            # Of what takes more than one Axes the drawing has made its own.
            part.suptitle(f"{letter}{panel.title}", x=0.02, ha="left", fontsize="medium", fontweight="bold")
            for one in part.axes:
                one.spines[["top", "right"]].set_visible(one.get_aspect() != "auto" and one.spines["top"].get_visible())
            parts.append((panel, part, len(row) == 1))
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    pictures = []
    for panel, part, wide in parts:
        (left, bottom), (right, top) = np.rint(part.bbox.get_points()).astype(int)
        cut = pixels[len(pixels) - top : len(pixels) - bottom, left:right]
        pictures.append(Picture(_png(cut), panel.title, panel.caption, wide))
    return _png(pixels), pictures


def _rows(panels: Sequence[Panel]) -> list[list[Panel]]:
    """Two a row, wide ones alone."""
    rows: list[list[Panel]] = []
    for panel in panels:
        if not panel.wide and rows and len(rows[-1]) == 1 and not rows[-1][0].wide:
            rows[-1].append(panel)
        else:
            rows.append([panel])
    return rows


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def _lead(record: Mapping[str, Any]) -> str:
    parts = [str(record[key]) for key in ("model", "system", "energy") if record.get(key)]
    return "; ".join([*parts, *([f"{record['temperature_K']:g} K"] if record.get("temperature_K") else [])])


def _tiles(record: Mapping[str, Any]) -> dict[str, Fact]:
    found: dict[str, Fact] = {}
    for key, (name, form) in _TILES.items():
        try:
            shown = fact(record, key, form)
        except (KeyError, TypeError, ValueError):  # the record has none, or something else of that name
            continue
        if shown.text != "-" and name not in found and len(found) < _MOST_TILES:
            found[name] = shown
    return found


def _table(record: Mapping[str, Any], name: str) -> Table:
    """Everything that the record holds, what is long by its length alone."""
    rows: list[tuple[str, object]] = []

    def add(key: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for inner, item in value.items():
                add(f"{key}.{inner}" if key else inner, item)
            return
        short = len(str(value)) <= _LONGEST
        rows.append((key, Fact(key, str(value)) if short else f"{len(value)} entries, in {name}"))

    add("", dict(record))
    return Table(("", name), rows)
