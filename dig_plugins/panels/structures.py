"""Structures as flat drawings: sticks of molecules, one on the other, the farther the paler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .canvas import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from ..scene import Shot

__all__ = ["overlay"]

_ATOMS = {1: "#B9C0C7", 6: "#4D4D4D", 7: BLUE, 8: ORANGE, 9: "#009E73", 15: "#E69F00", 16: "#C9A800", 17: "#009E73"}


def overlay(ax: Axes, frames: Sequence[Shot], trace: bool = False) -> None:
    """Frames on each other, seen along the shortest of their principal axes; bonds in the colours of their atoms.

    ``trace``: a line through all atoms, coloured from blue at its beginning to orange at its end.
    """
    from matplotlib.collections import LineCollection

    every = np.concatenate([frame.positions for frame in frames])
    centre = every.mean(0)
    axes = np.linalg.svd(every - centre, full_matrices=False)[2]
    turned = [(frame.positions - centre) @ axes.T for frame in frames]
    x, y, depth = np.concatenate(turned).T
    low, span = depth.min(), max(np.ptp(depth), 1e-9)
    alpha = max(0.25, 1 / len(frames) ** 0.5)
    for frame, flat in zip(frames, turned, strict=True):
        first, second = frame.bonds.T if len(frame.bonds) else (np.zeros(0, int), np.zeros(0, int))
        middle = (flat[first] + flat[second]) / 2
        near = ((flat[:, 2] - low) / span)[:, None]
        colours = _pale(_along(len(flat)) if trace else _elements(frame.numbers), near)
        for end in (first, second):
            halves = np.stack([flat[end, :2], middle[:, :2]], 1)
            ax.add_collection(LineCollection(list(halves), colors=colours[end], linewidths=2.2, alpha=alpha, capstyle="round"))
    reach = 0.5 * max(np.ptp(x), np.ptp(y), 2.0) * 1.08
    ax.set(xlim=(x.min() - 0.5, x.max() + 0.5), ylim=(y.min() - 0.5, y.max() + 0.5), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    bar = 10.0 if reach > 25 else 5.0 if reach > 10 else 1.0
    ax.plot([x.min(), x.min() + bar], [y.min() - 0.3] * 2, color=GREY, linewidth=2)
    ax.text(x.min() + bar + 0.15, y.min() - 0.3, f"{bar:g} Å", va="center", fontsize="small", color=GREY)


def _elements(numbers: np.ndarray) -> np.ndarray:
    from matplotlib.colors import to_rgb

    return np.array([to_rgb(_ATOMS.get(int(z), "#8E6C8A")) for z in numbers])


def _along(n: int) -> np.ndarray:
    from matplotlib.colors import to_rgb

    t = np.linspace(0, 1, n)[:, None]
    return (1 - t) * np.array(to_rgb(BLUE)) + t * np.array(to_rgb(ORANGE))


def _pale(colours: np.ndarray, near: np.ndarray) -> np.ndarray:
    return colours + (1 - colours) * 0.6 * (1 - near)
