"""Panels: Ramachandran plots, free-energy profiles, weights, acceptance. Knows no engine; needs matplotlib.

Every panel draws into a matplotlib ``Axes`` that it is given; nothing here touches pyplot or any other global state.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from dig_core.montecarlo.analysis import (
    Profile,
    effective_sample_size,
    largest_weight_share,
    longest_rejection_run,
    normalised_weights,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GREY",
    "MAX_KT",
    "ORANGE",
    "ess_convergence",
    "new_figure",
    "profile",
    "ramachandran",
    "to_png",
    "trace_acceptance",
    "weight_histogram",
]

# Okabe and Ito's palette, told apart by colour-blind readers and in grey.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#4D4D4D"
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


def ramachandran(
    ax: Axes, phi: np.ndarray, psi: np.ndarray, weights: np.ndarray | None = None, label: str = "", bins: int = 60
) -> Any:
    """Free energy in kT over (phi, psi), (F,) rad, relative to the lowest bin; returns the mesh, for a colour bar.

    Bins never visited stay grey. The colour scale is the same in every panel, 0 to :data:`MAX_KT`.
    """
    edges = np.linspace(-180.0, 180.0, bins + 1)
    wrapped = [(np.degrees(np.asarray(angle)) + 180.0) % 360.0 - 180.0 for angle in (phi, psi)]
    counts = np.histogram2d(wrapped[0], wrapped[1], bins=edges, weights=weights)[0].T
    free_energy = -np.ma.log(np.ma.masked_equal(counts, 0.0))
    ax.set_facecolor("#E4E4E4")
    mesh = ax.pcolormesh(edges, edges, free_energy - free_energy.min(), cmap="viridis", vmin=0.0, vmax=MAX_KT)
    mesh.set_rasterized(True)
    ax.set(xlabel="φ (degrees)", ylabel="ψ (degrees)", aspect="equal")
    ax.set(xticks=range(-180, 181, 90), yticks=range(-180, 181, 90), xlim=(-180, 180), ylim=(-180, 180))
    ax.set_title(label, loc="left")
    return mesh


def profile(ax: Axes, found: Profile, label: str = "", colour: str = BLUE, style: str = "-") -> None:
    """A free energy (kT) with a band of two standard errors either side; bins never visited leave a gap."""
    seen = np.isfinite(found.free_energy)
    height = np.where(seen, found.free_energy, np.nan)
    error = np.where(seen, 2.0 * found.stderr, np.nan)
    ax.fill_between(found.centres, height - error, height + error, color=colour, alpha=0.22, linewidth=0)
    # A bin whose neighbours were not visited would vanish from a line alone.
    ax.plot(found.centres, height, style, color=colour, label=label, linewidth=1.6, marker="o", markersize=2.6)
    ax.set(ylabel="free energy (kT)")


def weight_histogram(ax: Axes, log_weights: np.ndarray, colour: str = BLUE) -> None:
    """Histogram of ln(w / mean w) of (K,) proposals, with the heaviest one's share and the number without weight."""
    weights = normalised_weights(log_weights)
    relative = np.log(weights[weights > 0]) + np.log(len(weights))
    # Proposals of no consequence reach far to the left: what lies beyond the axis is counted in its first bin.
    left = max(relative.min(), -15.0)
    ax.hist(relative.clip(left), bins=np.linspace(left, relative.max(), 41).tolist(), color=colour)
    ax.axvline(0.0, ymax=0.76, color=GREY, linestyle="--", linewidth=1.2)
    text = f"heaviest: {100 * largest_weight_share(log_weights):.2g} % of all weight"
    text += f"\nzero weight: {int((weights == 0).sum())} of {len(weights)}"
    text += f"\nfirst bin: all below {left:.0f}" if relative.min() < left else ""
    top = ax.get_ylim()[1]
    ax.set(xlabel="ln(weight / mean weight)", ylabel="proposals", ylim=(0.0, 1.35 * top))
    ax.text(0.03, 0.97, text, transform=ax.transAxes, va="top", fontsize="small")


def trace_acceptance(ax: Axes, accepted: np.ndarray, colour: str = BLUE) -> None:
    """Running acceptance along the chain, (M,) bool, with the longest run of rejections shaded."""
    moves = np.asarray(accepted, dtype=bool)
    count = np.arange(1, len(moves) + 1)
    running = np.cumsum(moves) / count
    shown = np.unique(np.linspace(0, len(moves) - 1, 2000).astype(int))
    stops = np.flatnonzero(np.concatenate([[True], moves, [True]]))
    start, run = stops[np.argmax(np.diff(stops))], longest_rejection_run(moves)
    if run:
        ax.axvspan(start, start + run, color=ORANGE, alpha=0.45, label=f"longest run of rejections: {run}")
    ax.plot(count[shown], running[shown], color=colour, label=f"all so far (end: {100 * running[-1]:.0f} %)")
    ax.set(xlabel="proposals in the chain", ylabel="accepted", ylim=(0.0, 1.0), xlim=(0, len(moves)))
    ax.yaxis.set_major_formatter("{x:.0%}")
    ax.legend(loc="upper right", fontsize="small", framealpha=0.9)


def ess_convergence(ax: Axes, log_weights: np.ndarray, colour: str = BLUE) -> None:
    """Raw effective sample size of the first n of (K,) proposals against n; a late fall betrays a missed region."""
    log_w = np.asarray(log_weights, dtype=np.float64)
    sizes = np.unique(np.geomspace(min(10, len(log_w)), len(log_w), 80).astype(int))
    sizes = sizes[[bool(np.isfinite(log_w[:n]).any()) for n in sizes]]
    ess = [effective_sample_size(log_w[:n]) for n in sizes]
    ax.semilogx(sizes, ess, color=colour, label=f"all {len(log_w)}: {100 * ess[-1]:.1f} %")
    ax.axhline(ess[-1], color=GREY, linestyle="--", linewidth=1.0)
    ax.set(xlabel="proposals", ylabel="raw effective sample size", ylim=(0.0, 1.0))
    ax.yaxis.set_major_formatter("{x:.0%}")
    ax.legend(loc="upper right", fontsize="small", framealpha=0.9)
