"""How a training went: losses, and the way of an annealing from the prior to the energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .canvas import BLUE, COLOURS, GREY, ORANGE, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["annealing", "losses"]

_LINES = {
    "beta": ("how far", "--", GREY),
    "ess": ("raw ESS for that law", "o-", BLUE),
    "ess_target": ("raw ESS at the energy itself", "s-", ORANGE),
    "acceptance": ("moves accepted", "o-", BLUE),
    "families": ("families left", "s-", ORANGE),
}


def losses(ax: Axes, logs: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Training losses, and those of held-out frames dashed where there are some; ``logs``: stage -> columns step, training, validation.

    Stages follow each other along the axis, a line between two.
    """
    begin = 0.0
    for k, (stage, log) in enumerate(logs.items()):
        step, colour = begin + log["step"], COLOURS[k % len(COLOURS)]
        ax.plot(step, log["training"], "-", marker="o", ms=3, color=colour, label=f"{stage}, training")
        if np.isfinite(log["validation"]).any():
            ax.plot(step, log["validation"], "--", marker="s", ms=3, color=colour, label=f"{stage}, held out")
        if k:
            ax.axvline(begin, color=GREY, linewidth=0.8)
        begin = float(step[-1])
    ax.set(xlabel="step", ylabel="loss")
    values = np.concatenate([log[name] for log in logs.values() for name in ("training", "validation")])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 10 * values.min():
        ax.set_yscale("log")
    ax.legend(loc="upper right", fontsize="small", framealpha=0.9)


def annealing(ax: Axes, rungs: Sequence[Mapping]) -> None:
    """What each rung of a ladder from the prior (0) to the energy (1) had to say."""
    ax.set(xlabel="rung", ylim=(0, 1.02))
    percent(ax)
    numbers = [rung["rung"] for rung in rungs]
    for key, (label, style, colour) in _LINES.items():
        if rungs and key in rungs[0]:
            ax.plot(numbers, [rung[key] for rung in rungs], style, ms=3, color=colour, label=label)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(fontsize="small", framealpha=0.9)
