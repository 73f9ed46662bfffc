"""The report of a run: one figure, one page. Draws with panels.py, writes with page.py, knows no engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dig_core.montecarlo.analysis import (
    Profile,
    effective_sample_size,
    largest_weight_share,
    longest_rejection_run,
    metropolis_acceptance,
)
from dig_plugins.page import Picture, Table, write_report
from dig_plugins.panels import (
    BLUE,
    GREY,
    ORANGE,
    ess_convergence,
    new_figure,
    profile,
    ramachandran,
    to_png,
    trace_acceptance,
    weight_histogram,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "DemoResult",
    "Picture",
    "Run",
    "Table",
    "demo_figure",
    "demo_report",
    "ess_convergence",
    "new_figure",
    "profile",
    "ramachandran",
    "to_png",
    "trace_acceptance",
    "weight_histogram",
    "write_report",
]


@dataclass(frozen=True)
class Run:
    """One simulation: backbone dihedrals (F,) rad, the free energy along phi (centres in rad), and what it cost.

    ``visits`` counts independent visits to phi > 0, by the caller's own definition; ``wall_time`` is in seconds.
    """

    name: str
    phi: np.ndarray
    psi: np.ndarray
    profile: Profile
    wall_time: float
    visits: int


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration measured: DiG moves within MD against plain MD given the same wall time.

    ``accepted`` (M,) bool, one entry a proposal in the chain's order; ``log_weights`` (K,) of the proposals, with -inf
    for failed ones; ``reference`` a long run's free energy along phi (centres in rad), if there is one; ``system`` one
    line on molecule, force field and temperature; ``versions`` package names to versions.
    """

    system: str
    dig: Run
    md: Run
    accepted: np.ndarray
    log_weights: np.ndarray
    proposals_per_second: float
    seed: int
    versions: Mapping[str, str]
    reference: Profile | None = None
    reference_name: str = "long parallel tempering"
    notes: Sequence[str] = ()



def demo_figure(result: DemoResult) -> Figure:
    """Six panels: both Ramachandran plots, the profiles, weights, acceptance, effective sample size."""
    figure = new_figure(10.0, 11.4)
    rows: Any = figure.subfigures(3, 1, height_ratios=[1.32, 0.95, 0.85])
    maps, middle, bottom = rows
    panels = [*maps.subplots(1, 2), middle.subplots(), *bottom.subplots(1, 3)]
    for ax, run in zip(panels, (result.dig, result.md), strict=False):
        visits = "1 visit" if run.visits == 1 else f"{run.visits} visits"
        mesh = ramachandran(ax, run.phi, run.psi, label=f"{run.name}, {_seconds(run.wall_time)}, {visits} to φ > 0")
    maps.colorbar(mesh, ax=panels[:2], shrink=0.8, extend="max", label="free energy (kT)")
    _profiles(panels[2], result)
    weight_histogram(panels[3], result.log_weights)
    trace_acceptance(panels[4], result.accepted)
    ess_convergence(panels[5], result.log_weights)
    titles = ("Weights of the proposals", "Acceptance", "Effective sample size")
    for ax, title in zip(panels[3:], titles, strict=True):
        ax.set_title(title, loc="left")
    for letter, ax in zip("abcdef", panels, strict=True):
        title = f"{letter}  {ax.get_title(loc='left')}"
        ax.set_title(title, loc="left", fontsize="medium", fontweight="bold")
        ax.spines[["top", "right"]].set_visible(letter in "ab")
    return figure


def _profiles(ax: Axes, result: DemoResult) -> None:
    if result.reference is not None:
        profile(ax, _in_degrees(result.reference), result.reference_name, GREY, "--")
    profile(ax, _in_degrees(result.md.profile), result.md.name, ORANGE)
    profile(ax, _in_degrees(result.dig.profile), result.dig.name, BLUE)
    ax.set(xlabel="φ (degrees)", xlim=(-180, 180), xticks=range(-180, 181, 60))
    ax.set_ylim(-0.5, 1.22 * ax.get_ylim()[1])
    ax.set_title("Free energy along φ; bands: two standard errors", loc="left")
    ax.legend(loc="upper right", fontsize="small", ncols=3, framealpha=0.9)


def demo_report(directory: str | Path, result: DemoResult) -> Path:
    """Write ``report.html`` and ``report.png`` of a demonstration into ``directory``; returns the page's path."""
    ess, acceptance = effective_sample_size(result.log_weights), float(np.mean(result.accepted))
    highlights = {
        f"visits to φ > 0, {result.dig.name}": str(result.dig.visits),
        f"visits to φ > 0, {result.md.name}": str(result.md.visits),
        "acceptance": f"{100 * acceptance:.1f} %",
        "raw effective sample size": f"{100 * ess:.1f} %",
        "proposals a second": f"{result.proposals_per_second:.0f}",
    }
    runs = Table(
        ("", result.dig.name, result.md.name),
        [
            ("wall time", _seconds(result.dig.wall_time), _seconds(result.md.wall_time)),
            ("frames", str(len(result.dig.phi)), str(len(result.md.phi))),
            ("independent visits to φ > 0", str(result.dig.visits), str(result.md.visits)),
            ("frames with φ > 0", _share(result.dig.phi), _share(result.md.phi)),
        ],
    )
    origin = Table(("", "version or value"), [("seed", result.seed), *result.versions.items()])
    picture = Picture(to_png(demo_figure(result)), _alt(result), _caption(result))
    tables = {
        "Same wall time, side by side": runs,
        "Can these numbers be trusted?": _quality(result),
        "How to repeat it": origin,
    }
    title = f"{result.dig.name} against {result.md.name}"
    return write_report(directory, title, [picture], tables, result.notes, lead=result.system, highlights=highlights)


def _quality(result: DemoResult) -> Table:
    log_w, accepted = result.log_weights, result.accepted
    rows = [
        (
            "acceptance of the chain",
            f"{100 * float(np.mean(accepted)):.1f} %",
            "share of proposals that became the next structure",
        ),
        (
            "acceptance expected from the weights",
            f"{100 * metropolis_acceptance(log_w):.1f} %",
            "should agree with the line above",
        ),
        (
            "raw effective sample size",
            f"{100 * effective_sample_size(log_w):.1f} %",
            "share of proposals that count after reweighting; nothing is clipped",
        ),
        (
            "longest run of rejections",
            f"{longest_rejection_run(accepted)} of {len(accepted)}",
            "a long one means a structure that the model proposes too rarely",
        ),
        (
            "heaviest proposal",
            f"{100 * largest_weight_share(log_w):.2g} % of all weight",
            "small is good: no single structure decides the averages",
        ),
        ("proposals", f"{len(log_w)}", f"{result.proposals_per_second:.0f} a second, energies included"),
    ]
    return Table(("", "this run", "what it says"), rows)


def _caption(result: DemoResult) -> str:
    against = f" and with {result.reference_name} (grey, dashed)" if result.reference is not None else ""
    return (
        "(a, b) Where the backbone dihedrals φ and ψ were found: dark is most probable, yellow is rare, grey was never "
        "visited. Both runs had the same wall time. "
        f"(c) The free energy along φ, {result.dig.name} (blue) compared with {result.md.name} (orange){against}; bands "
        "are two standard errors either side, gaps were never visited. The basin at φ > 0 is behind a barrier that plain "
        "dynamics rarely crosses. "
        "(d) How much each proposal counts: the weight is the Boltzmann factor over the model's own probability, and a "
        "perfect model has every weight at 0 on this axis. "
        "(e) Share of accepted proposals along the chain; shaded is the longest stretch without one. "
        "(f) Effective sample size as proposals come in: flat is good, a sudden fall means that a rare, heavy structure "
        "has just been found."
    )


def _alt(result: DemoResult) -> str:
    return (
        f"Six panels. Ramachandran plots of {result.dig.name} ({result.dig.visits} visits to positive phi) and "
        f"{result.md.name} ({result.md.visits} visits); free energy along phi; histogram of weights; running "
        f"acceptance, ending at {100 * float(np.mean(result.accepted)):.0f} percent; effective sample size, ending at "
        f"{100 * effective_sample_size(result.log_weights):.0f} percent."
    )


def _in_degrees(found: Profile) -> Profile:
    return found._replace(centres=np.degrees(found.centres))


def _share(phi: np.ndarray) -> str:
    return f"{100 * float(np.mean(np.sin(phi) > 0)):.2f} %"


def _seconds(wall_time: float) -> str:
    return f"{wall_time:.0f} s" if wall_time < 600 else f"{wall_time / 60:.0f} min"
