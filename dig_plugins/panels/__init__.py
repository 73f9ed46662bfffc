"""Panels: one picture each, drawn from data into the matplotlib ``Axes`` that it is given. Know no engine; need matplotlib.

Nothing here touches pyplot or any other global state. Reports, pages and benchmarks put the same panels together.
"""

from .canvas import BLUE, COLOURS, GREEN, GREY, MAX_KT, ORANGE, new_figure, percent, say, to_png
from .energies import along, calibration, histogram, histograms, running
from .structures import overlay
from .surfaces import profile, ramachandran, turns
from .trainings import annealing, losses
from .weights import ess_convergence, rejection_runs, trace_acceptance, weight_histogram

__all__ = [
    "BLUE",
    "COLOURS",
    "GREEN",
    "GREY",
    "MAX_KT",
    "ORANGE",
    "along",
    "annealing",
    "calibration",
    "ess_convergence",
    "histogram",
    "histograms",
    "losses",
    "new_figure",
    "overlay",
    "percent",
    "profile",
    "ramachandran",
    "rejection_runs",
    "running",
    "say",
    "to_png",
    "trace_acceptance",
    "turns",
    "weight_histogram",
]
