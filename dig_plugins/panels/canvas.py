"""What every picture is drawn on: figures without pyplot, colours that colour-blind readers tell apart, PNG bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BLUE", "COLOURS", "GREEN", "GREY", "MAX_KT", "ORANGE", "histogram_range", "new_figure", "say", "to_png"]

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


def say(ax: Axes, text: str) -> None:
    """A sentence where a picture would be: what is missing for it."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", wrap=True, color=GREY)
    ax.set(xticks=[], yticks=[])


def histogram_range(*values: np.ndarray, share: float = 0.995) -> tuple[float, float]:
    """From the least of all to the largest of which a few (1 - ``share``) are beyond, in any of them; never empty."""
    finite = [x[np.isfinite(x)] for x in values]
    finite = [x for x in finite if len(x)]
    if not finite:
        return 0.0, 1.0
    low, high = min(float(x.min()) for x in finite), max(float(np.quantile(x, share)) for x in finite)
    return (low, high) if high > low else (low - 0.5, low + 0.5)
