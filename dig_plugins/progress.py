"""The early picture of a training: how the annealing went, and the torsions of the frames so far. Knows no engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dig_core.files import write_atomically
from dig_core.training.fit import Progress

from .panels import BLUE, annealing, new_figure, say, to_png

__all__ = ["pictures", "training_picture"]

_COLUMNS = 4
_MOST = 12


def training_picture(history: Sequence[Mapping], torsions: np.ndarray) -> bytes:
    """PNG bytes. ``history`` as of ``dig_core.training.fit``; ``torsions`` (F, T) rad, the first twelve are drawn."""
    rungs = [rung for stage in history for rung in stage.get("rungs", [])]
    shown = min(torsions.shape[1] if torsions.ndim == 2 else 0, _MOST)
    rows = math.ceil(shown / _COLUMNS)
    figure = new_figure(10, 3 + 1.6 * rows)
    grid = figure.add_gridspec(1 + rows, _COLUMNS, height_ratios=[2, *[1] * rows])
    _annealing(figure.add_subplot(grid[0, :2]), rungs)
    _stages(figure.add_subplot(grid[0, 2:]), history)
    for column in range(shown):
        axes = figure.add_subplot(grid[1 + column // _COLUMNS, column % _COLUMNS])
        axes.hist(np.degrees(torsions[:, column]), bins=np.linspace(-180, 180, 73), density=True, color=BLUE)
        axes.set(title=f"torsion {column}", xlim=(-180, 180), xticks=[-180, -90, 0, 90, 180], yticks=[])
        axes.title.set_fontsize(8)
        axes.tick_params(labelsize=7)
    return to_png(figure, dpi=110)


def pictures(out: Path | None) -> Callable[[Progress], None]:
    """What a training calls to draw ``progress.png``, where there is a directory and matplotlib."""

    def watch(progress: Progress) -> None:
        if out is None:
            return
        frames = progress.frames
        torsions = np.zeros((0, 0)) if frames is None else frames.state["torsion"].numpy()
        try:
            write_atomically(out / "progress.png", training_picture(progress.history, torsions))
        except ImportError:  # no matplotlib: training goes on without pictures
            return

    return watch


def _annealing(axes, rungs: Sequence[Mapping]) -> None:
    axes.set_title("Annealing: from the prior (0) to the energy (1)")
    if rungs:
        annealing(axes, rungs)
    else:
        say(axes, "no annealing")


def _stages(axes, history: Sequence[Mapping]) -> None:
    """Raw effective sample size that each stage began with, where it is known."""
    axes.axis("off")
    lines = []
    for stage in history:
        numbers = {key: value for key, value in stage.items() if isinstance(value, (int, float))}
        told = [f"{key} {value:,}" if isinstance(value, int) else f"{key} {value:.3g}" for key, value in numbers.items()]
        told += [f"raw ESS {', '.join(f'{share:.0%}' for share in stage['ess'])}"] if "ess" in stage else []
        lines.append(f"{stage.get('stage', '?')}: {', '.join(told)}")
    axes.text(0, 1, "\n".join(lines) or "no stage has finished yet", va="top", fontsize=8, transform=axes.transAxes, wrap=True)
