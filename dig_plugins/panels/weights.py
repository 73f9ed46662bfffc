"""What weights and a chain of proposals say: how much each counts, whether that has converged, runs of rejections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dig_core.montecarlo.analysis import (
    effective_sample_size,
    largest_weight_share,
    longest_rejection_run,
    normalised_weights,
)

from .canvas import BLUE, GREY, ORANGE, percent, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ess_convergence", "rejection_runs", "trace_acceptance", "weight_histogram"]


def weight_histogram(ax: Axes, log_weights: np.ndarray, colour: str = BLUE) -> None:
    """Histogram of ln(w / mean w) of (K,) proposals, with the heaviest one's share and the number without weight."""
    weights = normalised_weights(log_weights)
    relative = np.log(weights[weights > 0]) + np.log(len(weights))
    # Proposals of no consequence reach far to the left: what lies beyond the axis is counted in its first bin.
    left = min(max(relative.min(), -15.0), relative.max() - 0.1)
    ax.hist(relative.clip(left), bins=np.linspace(left, relative.max(), 41).tolist(), color=colour)
    ax.axvline(0.0, ymax=0.76, color=GREY, linestyle="--", linewidth=1.2)
    text = f"heaviest: {100 * largest_weight_share(log_weights):.3g} % of all weight"
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
    percent(ax)
    ax.legend(loc="upper right", fontsize="small", framealpha=0.9)


def rejection_runs(ax: Axes, accepted: np.ndarray, colour: str = BLUE) -> None:
    """How many runs of rejections of each length (M,) moves have, and what a chain of one acceptance for all would have."""
    moves = np.asarray(accepted, dtype=bool)
    stops = np.flatnonzero(np.concatenate([[True], moves, [True]]))
    runs = np.diff(stops) - 1
    lengths = np.arange(1, max(int(runs.max()), 1) + 1)
    found = np.bincount(runs, minlength=len(lengths) + 1)[1 : len(lengths) + 1]
    seen = found > 0
    if not seen.any():
        say(ax, "no proposal was rejected")
        return
    ax.set(xlabel="rejections in a row", ylabel="number of runs", xscale="log", yscale="log")
    ax.plot(lengths[seen], found[seen], "o", color=colour, ms=4, label="this chain")
    share = float(moves.mean())
    # Were every proposal accepted with the same probability, runs would be geometric.
    even = len(moves) * share**2 * (1 - share) ** lengths
    if share:
        ax.plot(lengths, even, "--", color=GREY, label="if all structures were equally easy to leave")
    ax.set(ylim=(0.5, 3 * max(found.max(initial=1), even.max(initial=1))), xlim=(0.9, max(2.0, 1.3 * lengths[-1])))
    ax.legend(loc="upper right", fontsize="small", framealpha=0.9)


def ess_convergence(ax: Axes, log_weights: np.ndarray, colour: str = BLUE) -> None:
    """Raw effective sample size of the first n of (K,) proposals against n; a late fall betrays a missed region."""
    log_w = np.asarray(log_weights, dtype=np.float64)
    sizes = np.unique(np.geomspace(min(10, len(log_w)), len(log_w), 80).astype(int))
    sizes = sizes[[bool(np.isfinite(log_w[:n]).any()) for n in sizes]]
    ess = [effective_sample_size(log_w[:n]) for n in sizes]
    ax.semilogx(sizes, ess, color=colour, marker="o" if len(sizes) < 10 else "", label=f"all {len(log_w)}: {100 * ess[-1]:.1f} %")
    ax.axhline(ess[-1], color=GREY, linestyle="--", linewidth=1.0)
    ax.set(xlabel="proposals", ylabel="raw effective sample size", ylim=(0.0, 1.0))
    percent(ax)
    ax.legend(loc="upper right", fontsize="small", framealpha=0.9)
