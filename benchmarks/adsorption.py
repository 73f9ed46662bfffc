"""Adsorption: populations and sites against the DFT table on metals never trained on, without an energy. Half an hour.

``runs/fcc111-METAL/adsorb-fcc111.safetensors``, where there is one, is a model that never saw METAL (recipe of dig_plugins.ase,
``--without METAL``): only such models count for what is held out. With the energy: adsorption_energy.py; on other surfaces:
adsorption_sites.py.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from ase import Atoms
from ase.build import fcc111
from common import HERE, Figure, Findings, Options, Table, command_line, interval

from dig_core.dig import DiG
from dig_plugins.ase.adsorption import (
    AdsorptionEnsemble,
    SiteSurface,
    SurfaceMap,
    find_sites,
    grid_search,
    sample_adsorption,
)
from dig_plugins.ase.recipes.adsorption import METALS

TEMPERATURE = 300.0
GUESTS = ("H", "C", "N", "O")
FOLDS = HERE.parent / "runs"


def slab_of(metal: str, guest: str) -> tuple[Atoms, SiteSurface]:
    surface = SiteSurface.from_table(metal, guest)
    slab = fcc111(metal, (2, 2, 4), a=float(np.linalg.norm(surface.vectors[0])) * math.sqrt(2), vacuum=8)
    return slab, surface.on(slab)


def _without_a_model(metal: str, guest: str) -> float:
    """Total variation of the mean over the other metals' maps, fraction by fraction of their cells: the answer that needs no model."""
    maps = {m: SiteSurface.from_table(m, guest).map((24, 24), TEMPERATURE).probability for m in METALS}
    others = np.mean([p for m, p in maps.items() if m != metal], axis=0)
    return float(0.5 * np.abs(others - maps[metal]).sum())


def folds() -> dict[str, DiG]:
    """Metal -> the model that never saw it, where there is one."""
    files = {metal: FOLDS / f"fcc111-{metal}" / "adsorb-fcc111.safetensors" for metal in METALS}
    return {metal: DiG.load(file) for metal, file in files.items() if file.exists()}


def populations(options: Options) -> tuple[list[Figure], list[Table]]:
    """Held-out metals: raw, and reweighted by the energy."""
    rows, raw, exact, simple = [], [], [], []
    known, n = folds(), options.size(6000, 100)
    for metal, dig in known.items():
        for guest in GUESTS:
            slab, surface = slab_of(metal, guest)
            found = sample_adsorption(slab, guest, dig, n=n, seed=options.seed, energy=surface.calculator(), unseen=True)
            maps, weighted, true = maps_of(found, surface)
            tv, slope = [m.total_variation(true) for m in maps], maps[1].slope(true, TEMPERATURE)
            simple.append(_without_a_model(metal, guest))
            rows.append([f"{guest}/{metal}(111)", *(round(x, 3) for x in (*tv, slope, weighted.effective_sample_size() / n, simple[-1]))])
            raw.append(tv[0])
            exact.append(tv[1])
    if not raw:
        return [], []
    note = f"{len(known)} of 7 metals left out one at a time, H, C, N, O on each; 24 x 24 grid, {n} samples."
    low, high = interval([float(np.mean(raw[k : k + 4])) for k in range(0, len(raw), 4)])
    figures = [
        Figure("total variation to the Boltzmann map, metal never trained on, raw", float(np.mean(raw)), floor=0.20, aim=0.10,
               higher=False, compared=f"mean over the other metals: {np.mean(simple):.2f}",
               note=f"{note} Worst {max(raw):.2f}; 95 % of bootstraps over metals {low:.2f} to {high:.2f}."),
        Figure("the same, reweighted by the energy", float(np.mean(exact)), floor=0.03, aim=0.01, higher=False,
               note="Its effective sample size, in the table, is small. Trained on the energy: adsorption_energy.py."),
    ]  # fmt: skip
    header = ["system", "TV raw", "TV reweighted", "slope", "raw ESS", "TV of the other metals' mean"]
    return figures, [Table("Held-out metals, 300 K", header, rows)]


def maps_of(found: AdsorptionEnsemble, surface: SiteSurface) -> tuple[list[SurfaceMap], AdsorptionEnsemble, SurfaceMap]:
    """Maps of the raw and the reweighted ensemble, that ensemble, and the exact map."""
    weighted = dataclasses.replace(found, correction="reweight")
    maps = [e.density(symmetrize=True) for e in (found, weighted)]
    return maps, weighted, surface.map((24, 24), TEMPERATURE, lattice=maps[0].lattice)


def guard(options: Options) -> list[Figure]:
    """Sites of flat surfaces of metals never trained on, against the minima of the table's surfaces: a guard and no claim."""
    at_k, precision, rmsd = [], [], []
    for metal, dig in folds().items():
        for guest in GUESTS:
            slab, surface = slab_of(metal, guest)
            reference = grid_search(slab, guest, surface.calculator(), spacing=0.6)
            # One network alone, not the committee that the default barrier is for.
            found = find_sites(slab, guest, dig, n=options.size(200, 20), seed=options.seed, unseen=True, barrier=0.05)
            report = found.compare(reference, tol=0.5, baselines=())
            at_k.append(report.coverage_at_k)
            precision.append(report.precision)
            rmsd.append(report.rmsd)
    if not at_k:
        return []
    what = "flat fcc(111), metal never trained on"
    return [
        Figure(f"coverage at K sites, {what}", float(np.mean(at_k)), floor=0.97, aim=1.0, compared='always "fcc and hcp": 0.97',
               note=f"{len(at_k)} systems of the table; worst {min(at_k):.2f}."),
        Figure(f"precision of sites, {what}", float(np.mean(precision)), floor=1.0, aim=1.0, compared='always "fcc and hcp": 1.00',
               note=f"Distance to the minima {np.nanmean(rmsd):.2f} Angstrom; worst precision {min(precision):.2f}."),
    ]  # fmt: skip


def measure(options: Options) -> Findings:
    """Everything in turn."""
    figures, tables = populations(options)
    return Findings([*figures, *guard(options)], tables)


if __name__ == "__main__":
    command_line(__doc__, "adsorption", measure)
