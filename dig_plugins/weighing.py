"""Panels that every run with weights or a chain has, and how they are read. Knows no engine."""

from __future__ import annotations

import numpy as np

from .panels import calibration, ess_convergence, histograms, rejection_runs, trace_acceptance, weight_histogram
from .report import Panel

__all__ = ["acceptance_panels", "calibration_panel", "energy_panel", "weight_panels"]


_EXACT = "the Boltzmann factor over the model's own probability"


def weight_panels(log_weights: np.ndarray, what: str = _EXACT) -> list[Panel]:
    """Of (K,) log weights of proposals in the order in which they were drawn, ``what`` they are in words; none where all weigh the same."""
    finite = np.isfinite(log_weights)
    if not finite.any() or (finite.all() and not np.ptp(log_weights)):
        return []
    return [
        Panel(
            "Weights of the proposals", lambda ax: weight_histogram(ax, log_weights),
            f"How much each proposal counts: {what}. A perfect model has every weight at 0 on this axis; a long tail to the right means "
            "that few structures speak for all.",
        ),
        Panel(
            "Effective sample size", lambda ax: ess_convergence(ax, log_weights),
            "Raw, as proposals come in: flat is good, a sudden fall means that a rare, heavy structure has just been found.",
        ),
    ]  # fmt: skip


def acceptance_panels(accepted: np.ndarray) -> list[Panel]:
    """Of (M,) proposals in the order of a chain."""
    return [
        Panel(
            "Acceptance", lambda ax: trace_acceptance(ax, accepted),
            "Share of accepted proposals along the chain; shaded is the longest stretch without one.",
        ),
        Panel(
            "Runs of rejections", lambda ax: rejection_runs(ax, accepted),
            "How often the chain sat on a structure for so many proposals. Points far to the right of the dashed line are structures that "
            "the model proposes too rarely.",
        ),
    ]  # fmt: skip


def calibration_panel(energies: np.ndarray, log_q: np.ndarray) -> Panel:
    """Of (n,) u = E/kT and log q."""
    said = "A perfect model has all structures on a line of slope 1; those far above it the model proposes too rarely."
    return Panel("Density against energy", lambda ax: calibration(ax, energies, log_q), said)


def energy_panel(sets: dict[str, tuple[np.ndarray, np.ndarray | None]], said: str = "", unit: str = "kT") -> list[Panel]:
    """Histograms of energies, see :func:`~dig_plugins.panels.histograms`; none where there are no energies."""
    known = {name: one for name, one in sets.items() if np.isfinite(one[0]).any()}
    if not known:
        return []
    caption = f"{said} The few that are higher than the axis are in the last bar.".strip()
    return [Panel("Energies", lambda ax: histograms(ax, known, unit), caption)]
