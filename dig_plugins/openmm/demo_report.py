"""The report of the demonstration: DiG moves within MD beside plain MD given the same wall time."""

from __future__ import annotations

import numpy as np

from dig_core.montecarlo.analysis import Profile

from ..panels import BLUE, GREY, ORANGE, turns
from ..report import Panel, Report, Table, fact
from ..weighing import acceptance_panels, weight_panels
from .observables import Backbone
from .pictures import phi_profile, structures, surface
from .systems import ModelSystem

__all__ = ["demo_report"]

_MIXED, _ALONE = "MD + DiG", "MD alone"


def demo_report(
    system: ModelSystem, backbone: Backbone, positions: np.ndarray, alone: np.ndarray, accepted: np.ndarray, log_weights: np.ndarray,
    reference: Profile | None, record: dict,
) -> Report:  # fmt: skip
    """``positions`` (M, N, 3) nm after each of the M tests, ``alone`` (F, N, 3) nm of MD; ``log_weights`` (M,) of the proposals."""
    (phi, psi), (phi_alone, psi_alone) = ([x[:, 0] for x in backbone.measure(each)] for each in (positions, alone))
    profiles = {
        _ALONE: (phi_profile(phi_alone, block=max(1, len(phi_alone) // 50)), ORANGE, "-"),
        _MIXED: (phi_profile(phi, block=max(1, len(phi) // 50)), BLUE, "-"),
    }
    if reference is not None:
        profiles = {"long parallel tempering": (reference, GREY, "--"), **profiles}
    along = (
        "Bands are two standard errors either side; gaps were never visited. The basin at φ > 0 is behind a barrier that plain dynamics "
        "rarely crosses."
    )
    panels = [
        surface(_MIXED, phi, psi, None, "Where the backbone dihedrals were found."),
        surface(_ALONE, phi_alone, psi_alone, None, "The same of plain dynamics given the same wall time."),
        Panel("Free energy along φ", lambda ax: turns(ax, profiles), along, wide=True),
        *acceptance_panels(accepted),
        *weight_panels(log_weights),
    ]
    shown = np.flatnonzero(accepted)[:12] if accepted.any() else np.arange(min(12, len(positions)))
    labels = [f"after proposal {i + 1}" for i in shown]
    scene = structures(system.topology, positions[shown], labels, "Accepted proposals, one after the other.")
    return Report(f"{_MIXED} against {_ALONE}", panels, scenes=[scene], tables={"Same wall time, side by side": _side_by_side(record)})


def _side_by_side(record: dict) -> Table:
    rows = [
        ("wall time, s", fact(record, "seconds", "{:.0f}"), fact(record, "plain_md.seconds", "{:.0f}")),
        ("independent visits to φ > 0", fact(record, "visits_to_positive_phi"), fact(record, "plain_md.visits_to_positive_phi")),
        ("dynamics, ps", fact(record, "picoseconds", "{:.1f}"), fact(record, "plain_md.picoseconds", "{:.1f}")),
        ("frames with φ > 0", fact(record, "share_of_positive_phi", "{:.2%}"), fact(record, "plain_md.share_of_positive_phi", "{:.2%}")),
    ]
    return Table(("", _MIXED, _ALONE), rows)
