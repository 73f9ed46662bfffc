"""Energies: as histograms beside a reference, against log q, along a path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .canvas import BLUE, COLOURS, GREY, ORANGE, most_of, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["along", "calibration", "histogram", "histograms", "running"]


def histograms(
    ax: Axes, sets: dict[str, tuple[np.ndarray, np.ndarray | None]], unit: str = "kT", name: str = "energy"
) -> None:
    """Shares of (n,) values, one outline a set: label -> values and their weights, None for equal ones.

    The first set is filled, the second dashed and grey, others have colours of their own. The axis ends where hardly anything of the first
    set is beyond, and little of the others; what is beyond is in the last bin. Values that are not finite are left out.
    """
    most = max(len(x) for x, _ in sets.values())
    ends = [most_of(x, w, 0.9 if k else 0.995) for k, (x, w) in enumerate(sets.values())]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    low, high = (low, high) if high > low else (low - 0.5, low + 0.5)
    edges = np.linspace(low, high, 1 + int(np.clip(2 * most**0.5, 8, 50)))
    styles = [(BLUE, "-"), (GREY, "--"), *((colour, "-") for colour in COLOURS[1:])]
    for k, (label, (values, weights)) in enumerate(sets.items()):
        colour, style = styles[k % len(styles)]
        seen = np.isfinite(values)
        w = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
        share = np.histogram(values[seen].clip(edges[0], edges[-1]), edges, weights=w[seen])[0] / max(w[seen].sum(), 1e-300)
        if k == 0:
            ax.stairs(share, edges, color=colour, fill=True, alpha=0.25)
        ax.stairs(share, edges, color=colour, linestyle=style, linewidth=1.6, label=label)
    ax.set(xlabel=f"{name} ({unit})" if unit else name, ylabel="share of structures", xlim=(edges[0], edges[-1]))
    ax.set_ylim(0, (1.12 + 0.13 * len(sets)) * ax.dataLim.y1)
    percent(ax)
    ax.legend(loc="upper right", fontsize="small", framealpha=0.9)


def histogram(ax: Axes, values: np.ndarray, name: str, unit: str = "", label: str = "", weights: np.ndarray | None = None) -> None:
    """Of one set of (n,) values."""
    histograms(ax, {label or _counted(int(np.isfinite(values).sum())): (np.asarray(values, dtype=float), weights)}, unit, name)


def calibration(ax: Axes, energies: np.ndarray, log_q: np.ndarray) -> None:
    """-log q against u = E/kT, (n,) each, and the line of slope 1 on which a perfect model has all structures.

    The few of far higher energy than the others are beyond the axis, and counted.
    """
    seen = np.isfinite(energies) & np.isfinite(log_q)
    u, cost = energies[seen], -log_q[seen]
    middle = np.quantile(u, [0.25, 0.75]) if len(u) else np.zeros(2)
    shown = u <= middle[1] + 5 * max(np.ptp(middle), 1.0)
    label = _counted(len(u)) + (f", {int((~shown).sum())} of them beyond" if not shown.all() else "")
    ax.scatter(
        u[shown], cost[shown], s=14 if len(u) < 500 else 5, color=BLUE, alpha=0.6, linewidths=0, rasterized=True, label=label
    )  # fmt: skip
    if shown.any():
        ends = np.array([u[shown].min(), u[shown].max()])
        ax.plot(ends, ends + np.median((cost - u)[shown]), "--", color=GREY, label="perfect model: slope 1")
    ax.set(xlabel="energy u (kT)", ylabel="-log q (nats)")
    ax.legend(loc="upper left", fontsize="small", framealpha=0.9)


def along(ax: Axes, lines: dict[str, np.ndarray], ylabel: str, broken: np.ndarray | None = None) -> None:
    """Values (n,) a frame of a path, one line each; frames in the mask ``broken`` are crossed out."""
    markers = "osD^"
    for k, (label, values) in enumerate(lines.items()):
        n = len(values)
        ax.plot(np.arange(n), values, "-", marker=markers[k % 4], ms=3.5, color=COLOURS[k], label=label)
    if broken is not None and broken.any():
        ax.plot(np.flatnonzero(broken), np.zeros(int(broken.sum())), "x", color=GREY, label="broken or clashing")
    ax.set(xlabel="frame", ylabel=ylabel, xlim=(-0.3, n - 0.7))
    ax.margins(y=0.12)
    ax.xaxis.get_major_locator().set_params(integer=True)
    if len(lines) > 1 or broken is not None:
        ax.legend(fontsize="small", framealpha=0.9)


def running(ax: Axes, at: np.ndarray, values: np.ndarray, accepted: np.ndarray, name: str = "energy u (kT)") -> None:
    """A value (K,) after the tests ``at`` (K,) of a chain; those are marked in which a proposal was ``accepted`` (K,)."""
    moved = np.asarray(accepted, dtype=bool)
    ax.plot(at, values, "-", color=GREY, linewidth=0.7, alpha=0.8)
    ax.plot(at[moved], values[moved], ".", color=ORANGE, ms=3, label="accepted proposal")
    ax.set(xlabel="proposals in the chain", ylabel=name, xlim=(0, max(1, int(at[-1]))))
    ax.legend(loc="upper right", fontsize="small", framealpha=0.9)


def _counted(n: int) -> str:
    return "1 structure" if n == 1 else f"{n} structures"
