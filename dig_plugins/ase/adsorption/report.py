"""The report of a run with an adsorbate: map, sites with their errors, energies and weights, structures to turn."""

from __future__ import annotations

import numpy as np

from ...panels import BLUE
from ...report import Panel, Report, Scene, Table, fact
from ...scene import Frame, bonds_of
from ...weighing import energy_panel, weight_panels
from .ensemble import AdsorptionEnsemble
from .sites import SiteSet

__all__ = ["adsorption_report", "structures"]

_MOST = 12


def adsorption_report(found: AdsorptionEnsemble, sites: SiteSet, record: dict) -> Report:
    """``record`` with the ``site_table`` of the sites."""
    panels = [
        Panel(
            "Where it adsorbs", found.plot,
            "Free energy of the place of the anchor over the surface's atoms, seen from above; numbers are the sites of the table.",
        ),
        Panel("Sites", lambda ax: _probabilities(ax, sites), "Probability of each site; bars are two standard errors either side."),
    ]  # fmt: skip
    if found.log_weight is not None and found.correction != "mc":
        panels += weight_panels(np.where(found.used, found.log_weight, -np.inf))
    if found.energies is not None and found.used.any():
        used, weights = found.used, found.weights
        energies = found.energies - np.nanmin(found.energies[used])
        sets = {"this run": (energies[used], weights[used])}
        if found.correction == "reweight":
            sets["as proposed"] = (energies[used], None)
        panels += energy_panel(sets, f"Above the lowest that was found, of {found.energy_name}.", "eV")
    return Report(
        f"{found.template[list(found.adsorbate)].symbols} on {found.slab.symbols}", panels, scenes=[structures(found)],
        tables={"Sites": _table(sites, record)}, notes=[f"Kept out: {found.kept_out()}."], lead=f"{found.source}; {found.temperature:g} K",
    )  # fmt: skip


def structures(found: AdsorptionEnsemble) -> Scene:
    """The samples that weigh most, with all atoms of the cell."""
    order = np.argsort(-found.weights, kind="stable")[:_MOST]
    numbers, cell = found.template.numbers, np.asarray(found.template.cell)
    bonds = bonds_of(numbers, found.positions[order[0]])
    frames = tuple(Frame(numbers, found.positions[i], bonds, f"sample {i}", cell) for i in order)
    return Scene("Samples", frames, "Samples that weigh most; lines are the edges of the cell.", "balls")


def _probabilities(ax, sites: SiteSet) -> None:
    numbers = np.arange(1, len(sites) + 1)
    height = np.array([np.nan if site.probability is None else site.probability for site in sites])
    error = np.array([np.nan if site.stderr is None else site.stderr for site in sites])
    ax.bar(numbers, height, yerr=2 * np.nan_to_num(error), color=BLUE, capsize=3, width=0.7)
    ax.set_xticks(numbers, [f"{k}\n{site.label}" for k, site in zip(numbers, sites, strict=True)], fontsize="small")
    ax.set(ylabel="probability", xlabel="site")
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter("{x:.0%}")


def _table(sites: SiteSet, record: dict) -> Table:
    columns = {
        "label": ("kind", "{}"), "coordination": ("neighbours", "{}"), "x": ("x (Å)", "{:.2f}"), "y": ("y (Å)", "{:.2f}"),
        "height": ("height (Å)", "{:.2f}"), "probability": ("probability", "{:.2%}"), "stderr": ("standard error", "{:.2%}"),
        "dE": ("energy above the lowest (eV)", "{:.3f}"), "multiplicity": ("copies", "{}"), "count": ("samples", "{}"),
    }  # fmt: skip
    held = record["site_table"]
    shown = {key: one for key, one in columns.items() if any(row[key] is not None for row in held)}
    rows = [(str(k + 1), *(fact(record, f"site_table.{k}.{key}", form) for key, (_, form) in shown.items())) for k in range(len(sites))]
    return Table(("site", *(name for name, _ in shown.values())), rows)
