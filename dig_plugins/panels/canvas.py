"""What every picture is drawn on: figures without pyplot, colours that colour-blind readers tell apart, PNG bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BLUE", "COLOURS", "GREEN", "GREY", "MAX_KT", "ORANGE", "most_of", "new_figure", "percent", "say", "to_png"]

# Okabe and Ito's palette, told apart by colour-blind readers and in grey.
BLUE, ORANGE, GREY, GREEN = "#0072B2", "#D55E00", "#4D4D4D", "#009E73"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
"""In an order in which neighbours differ in lightness too."""
MAX_KT = 8.0
"""Upper end of every free-energy colour scale, so that panels and reports can be compared."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of ``width`` by ``height`` inches; ImportError, naming the extra, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'dig-plugins[viz]'") from error
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def to_png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def percent(ax: Axes) -> None:
    """Shares on the upward axis, as percentages; none above 100 however high the axis is."""
    low, high = ax.get_ylim()
    ticks = [tick for tick in ax.get_yticks() if low <= tick <= min(high, 1.0) + 1e-9]
    ax.set_yticks(ticks)
    ax.set_ylim(low, high)
    whole = all(abs(100 * tick - round(100 * tick)) < 1e-6 for tick in ticks)
    ax.yaxis.set_major_formatter("{x:.0%}" if whole else "{x:.1%}")


def say(ax: Axes, text: str) -> None:
    """A sentence where a picture would be: what is missing for it."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", wrap=True, color=GREY)
    ax.set(xticks=[], yticks=[])


def most_of(values: np.ndarray, weights: np.ndarray | None, share: float) -> tuple[float, float]:
    """From the least of the finite values to the one that ``share`` of the weight is not beyond; (0, 0) if none is finite."""
    seen = np.isfinite(values) if weights is None else np.isfinite(values) & (weights > 0)
    if not seen.any():
        return 0.0, 0.0
    order = np.sort(values[seen])
    if weights is None:
        return float(order[0]), float(np.quantile(order, share))
    heavy = np.cumsum(weights[seen][np.argsort(values[seen])])
    return float(order[0]), float(order[min(np.searchsorted(heavy, share * heavy[-1]), len(order) - 1)])
