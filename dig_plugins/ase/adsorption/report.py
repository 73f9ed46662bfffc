"""The report of a run with an adsorbate: map, sites with their errors, energies and weights, structures to turn."""

from __future__ import annotations

import numpy as np

from ...panels import BLUE, percent
from ...report import Panel, Report, Scene, Table, fact
from ...scene import Shot
from ...weighing import calibration_panel, energy_panel, weight_panels
from ..convert import kT
from .ensemble import AdsorptionEnsemble
from .sites import SiteSet

__all__ = ["adsorption_report", "structures"]

_MOST, _RADIUS = 12, 7.0  # samples; Angstrom of the surface about each


def adsorption_report(found: AdsorptionEnsemble, sites: SiteSet, record: dict) -> Report:
    """``record`` with the ``site_table`` of the sites."""
    panels = [
        Panel(
            "Where it adsorbs", lambda ax: _map(ax, found),
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
        if found.log_q is not None and found.correction != "mc":
            panels.append(calibration_panel(energies[used] / kT(found.temperature), found.log_q[used]))
        panels += energy_panel(sets, f"Above the lowest that was found, of {found.energy_name}.", "eV")
    return Report(
        f"{found.template[list(found.adsorbate)].symbols} on {found.slab.symbols}", panels, scenes=[structures(found)],
        tables={"Sites": _table(sites, record)}, notes=[f"Kept out: {found.kept_out()}."], lead=f"{found.source}; {found.temperature:g} K",
    )  # fmt: skip


def structures(found: AdsorptionEnsemble) -> Scene:
    """The samples that weigh most, on a piece of the surface about them."""
    order = np.argsort(-found.weights, kind="stable")[:_MOST]
    frames = tuple(_frame(found, int(i)) for i in order)
    return Scene("Samples", frames, "Samples that weigh most, on a piece of the surface.", "balls")


def _frame(found: AdsorptionEnsemble, i: int) -> Shot:
    """The adsorbate, and the slab's atoms within some Angstrom beside it, whichever cells they are in; the normal is up."""
    frame, guest = found.frame, np.array(found.adsorbate)
    slab = np.setdiff1d(np.arange(len(found.template)), guest)
    anchor, lattice = found.positions[i][guest[0]], frame.lattice
    home = np.floor(frame.xy(anchor) @ np.linalg.inv(lattice))
    reach = np.ceil(_RADIUS * np.linalg.norm(np.linalg.inv(lattice), axis=0)).astype(int) + 1
    cells = home + np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach)), -1).reshape(-1, 2)
    shifts = cells @ np.delete(np.asarray(found.template.cell), frame.axis, 0)
    around = (found.positions[i][slab] + shifts[:, None]).reshape(-1, 3)
    near = np.linalg.norm(frame.xy(around - anchor), axis=1) < _RADIUS
    numbers = np.concatenate([np.tile(found.template.numbers[slab], len(shifts))[near], found.template.numbers[guest]])
    positions = np.concatenate([around[near], found.positions[i][guest]]) - anchor
    return Shot(numbers, positions @ frame.turn, np.zeros((0, 2), dtype=int), f"sample {i}")


def _map(ax, found: AdsorptionEnsemble) -> None:
    found.plot(ax, colour_bar=False)
    ax.figure.colorbar(ax.images[-1], ax=ax, extend="max", shrink=0.8, label=f"free energy at {found.temperature:g} K (eV)")


def _probabilities(ax, sites: SiteSet) -> None:
    numbers = np.arange(1, len(sites) + 1)
    height = np.array([np.nan if site.probability is None else site.probability for site in sites])
    error = np.array([np.nan if site.stderr is None else site.stderr for site in sites])
    ax.bar(numbers, height, yerr=2 * np.nan_to_num(error), color=BLUE, capsize=3, width=0.7)
    ax.set_xticks(numbers, [f"{k}\n{site.label}" for k, site in zip(numbers, sites, strict=True)], fontsize="small")
    ax.set(ylabel="probability", xlabel="site")
    ax.set(xlim=(0.4, max(len(sites), 4) + 0.6))
    ax.set_ylim(bottom=0)
    percent(ax)


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
