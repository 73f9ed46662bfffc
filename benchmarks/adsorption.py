"""Adsorption: populations against the DFT table on metals never trained on, raw, corrected and in a chain; cost. Half an hour.

``runs/fcc111-METAL/adsorb-fcc111.safetensors``, where there is one, is a model that never saw METAL (recipe of dig_plugins.ase,
``--without METAL``): only such models count for what is held out. Sites on other surfaces: adsorption_sites.py.
"""

from __future__ import annotations

import dataclasses
import math
import time

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
    fit_adsorption,
    grid_search,
    sample_adsorption,
)
from dig_plugins.ase.recipes.adsorption import METALS

TEMPERATURE = 300.0
SEEDS = 3
GUESTS = ("H", "C", "N", "O")
FOLDS = HERE.parent / "runs"


def _slab(metal: str, guest: str) -> tuple[Atoms, SiteSurface]:
    surface = SiteSurface.from_table(metal, guest)
    slab = fcc111(metal, (2, 2, 4), a=float(np.linalg.norm(surface.vectors[0])) * math.sqrt(2), vacuum=8)
    return slab, surface.on(slab)


def _without_a_model(metal: str, guest: str) -> float:
    """Total variation of the mean over the other metals' maps, fraction by fraction of their cells: the answer that needs no model."""
    maps = {m: SiteSurface.from_table(m, guest).map((24, 24), TEMPERATURE).probability for m in METALS}
    others = np.mean([p for m, p in maps.items() if m != metal], axis=0)
    return float(0.5 * np.abs(others - maps[metal]).sum())


def _folds() -> dict[str, DiG]:
    """Metal -> the model that never saw it, where there is one."""
    files = {metal: FOLDS / f"fcc111-{metal}" / "adsorb-fcc111.safetensors" for metal in METALS}
    return {metal: DiG.load(file) for metal, file in files.items() if file.exists()}


def populations(options: Options) -> tuple[list[Figure], list[Table]]:
    """Held-out metals: raw, and reweighted by the energy."""
    rows, raw, exact, simple = [], [], [], []
    folds, n = _folds(), options.size(6000, 100)
    for metal, dig in folds.items():
        for guest in GUESTS:
            slab, surface = _slab(metal, guest)
            found = sample_adsorption(slab, guest, dig, n=n, seed=options.seed, energy=surface.calculator(), unseen=True)
            maps, weighted, true = _maps(found, surface)
            tv, slope = [m.total_variation(true) for m in maps], maps[1].slope(true, TEMPERATURE)
            simple.append(_without_a_model(metal, guest))
            rows.append([f"{guest}/{metal}(111)", *(round(x, 3) for x in (*tv, slope, weighted.effective_sample_size() / n, simple[-1]))])
            raw.append(tv[0])
            exact.append(tv[1])
    if not raw:
        return [], []
    note = f"{len(folds)} of 7 metals left out one at a time, H, C, N, O on each; 24 x 24 grid, {n} samples."
    low, high = interval([float(np.mean(raw[k : k + 4])) for k in range(0, len(raw), 4)])
    figures = [
        Figure("total variation to the Boltzmann map, metal never trained on, raw", float(np.mean(raw)), floor=0.20, aim=0.10,
               higher=False, compared=f"mean over the other metals: {np.mean(simple):.2f}",
               note=f"{note} Worst {max(raw):.2f}; 95 % of bootstraps over metals {low:.2f} to {high:.2f}."),
        Figure("the same, reweighted by the energy", float(np.mean(exact)), floor=0.03, aim=0.01, higher=False,
               note="Its effective sample size, in the table, is small: few samples carry the weight. Trained on the energy: below."),
    ]  # fmt: skip
    header = ["system", "TV raw", "TV reweighted", "slope", "raw ESS", "TV of the other metals' mean"]
    return figures, [Table("Held-out metals, 300 K", header, rows)]


def _maps(found: AdsorptionEnsemble, surface: SiteSurface) -> tuple[list[SurfaceMap], AdsorptionEnsemble, SurfaceMap]:
    """Maps of the raw and the reweighted ensemble, that ensemble, and the exact map."""
    weighted = dataclasses.replace(found, correction="reweight")
    maps = [e.density(symmetrize=True) for e in (found, weighted)]
    return maps, weighted, surface.map((24, 24), TEMPERATURE, lattice=maps[0].lattice)


def guard(options: Options) -> tuple[list[Figure], list[Table]]:
    """Sites of flat surfaces of metals never trained on, against the minima of the table's surfaces: a guard and no claim."""
    at_k, precision, rmsd = [], [], []
    for metal, dig in _folds().items():
        for guest in GUESTS:
            slab, surface = _slab(metal, guest)
            reference = grid_search(slab, guest, surface.calculator(), spacing=0.6)
            found = find_sites(slab, guest, dig, n=options.size(200, 20), seed=options.seed, unseen=True)
            report = found.compare(reference, tol=0.5, baselines=())
            at_k.append(report.coverage_at_k)
            precision.append(report.precision)
            rmsd.append(report.rmsd)
    if not at_k:
        return [], []
    what = "flat fcc(111), metal never trained on"
    return [
        Figure(f"coverage at K sites, {what}", float(np.mean(at_k)), floor=0.97, aim=1.0, compared='always "fcc and hcp": 0.97',
               note=f"{len(at_k)} systems of the table; worst {min(at_k):.2f}."),
        Figure(f"precision of sites, {what}", float(np.mean(precision)), floor=1.0, aim=1.0, compared='always "fcc and hcp": 1.00',
               note=f"Distance to the minima {np.nanmean(rmsd):.2f} Angstrom; worst precision {min(precision):.2f}."),
    ], []  # fmt: skip


def corrected(options: Options) -> tuple[list[Figure], list[Table]]:
    """H, which is in several sites at once, on metals never trained on: the model trained on with the energy alone."""
    rows, seeds = [], range(1, options.size(SEEDS, 1) + 1)
    for metal, dig in _folds().items():
        slab, surface = _slab(metal, "H")
        for seed in seeds if metal == "Pt" else [options.seed]:
            fitted = fit_adsorption(
                slab, "H", surface.calculator(), dig, temperature=TEMPERATURE, evaluations=options.size(12_000, 400),
                steps=options.size(1500, 20), seed=seed, progress=False,
            )  # fmt: skip
            n = options.size(20_000, 100)
            found = sample_adsorption(slab, "H", fitted.dig, n=n, seed=seed + 100, energy=surface.calculator(), unseen=True)
            maps, weighted, true = _maps(found, surface)
            ess = weighted.effective_sample_size()
            # What a histogram of as many independent samples, each counted at its symmetric places, would be off by itself.
            floor = true.noise(ess * len(found.operations))
            tv, slope = [m.total_variation(true) for m in maps], maps[0].slope(true, TEMPERATURE)
            rows.append([f"H/{metal}(111), seed {seed}", *(round(x, 3) for x in (*tv, floor, slope, ess / n)), fitted.evaluations])
    if not rows:
        return [], []
    values = np.array([row[1:5] for row in rows], dtype=float)
    note = f"{len(rows)} trainings of held-out models on H, {rows[0][-1]} energy evaluations each; Pt with {len(seeds)} seeds."
    figures = [
        Figure("total variation, metal never trained on, trained on with its energy and reweighted", float(values[:, 1].mean()), floor=0.03,
               aim=0.01, higher=False, compared=f"exact samples, as many: {values[:, 2].mean():.3f}",
               note=f"{note} Worst {values[:, 1].max():.3f}; raw {values[:, 0].mean():.3f}."),
        Figure("slope of -kT log p(x, y) against E, the same, its largest distance from 1", float(np.abs(values[:, 3] - 1).max()),
               floor=0.1, aim=0.03, higher=False, note=f"Mean slope {values[:, 3].mean():.3f}."),
    ]  # fmt: skip
    header = ["system", "TV raw", "TV reweighted", "TV of exact samples", "slope", "raw ESS", "energy evaluations"]
    return figures, [Table("Held-out metals, 300 K, trained on with the energy", header, rows)]


def monte_carlo(options: Options) -> tuple[list[Figure], list[Table]]:
    """H/Pt(111) from the energy alone: populations of the four sites by a chain, and the density's slope."""
    slab, surface = _slab("Pt", "H")
    fitted = fit_adsorption(
        slab, "H", surface.calculator(), temperature=TEMPERATURE, evaluations=options.size(40_000, 400),
        steps=options.size(1200, 5), seed=options.seed, progress=False,
    )  # fmt: skip
    n = options.size(10_000, 100)
    chain = sample_adsorption(slab, "H", fitted.dig, n=n, seed=options.seed, energy=surface.calculator(), correct="mc", unseen=True)
    site = surface.nearest_site(surface.fractions(chain.positions[:, chain.adsorbate[0]]))
    rows, worst = [], 0.0
    for k, (name, true) in enumerate(surface.populations(TEMPERATURE).items()):
        blocks = (site == k)[: n // 50 * 50].reshape(50, -1).mean(1)
        mean, error = float(blocks.mean()), float(blocks.std(ddof=1) / math.sqrt(50))
        z = (mean - true) / max(error, 1e-9)
        worst = max(worst, abs(z))
        rows.append([name, round(true, 4), f"{mean:.4f} ± {error:.4f}", round(z, 2)])
    moved = float((np.abs(np.diff(chain.positions[:, chain.adsorbate[0]], axis=0)).max(1) > 1e-9).mean())
    n = options.size(20_000, 100)
    free = sample_adsorption(slab, "H", fitted.dig, n=n, seed=options.seed + 1, energy=surface.calculator(), unseen=True)
    ours = free.density(symmetrize=True)
    true = surface.map((24, 24), TEMPERATURE, lattice=ours.lattice)
    tv = [m.total_variation(true) for m in (ours, dataclasses.replace(free, correction="reweight").density(symmetrize=True))]
    slope = ours.slope(true, TEMPERATURE)
    figures = [
        Figure("largest |z| of four site populations, H/Pt(111), Monte Carlo against quadrature", worst, floor=3.0, higher=False,
               note=f"A chain of {len(chain)} from a model trained from the energy alone; errors from 50 blocks."),
        Figure("raw acceptance, the same", moved, floor=0.30, aim=0.70, note=str(fitted)),
        Figure("total variation, H/Pt(111), model trained from the energy alone, raw", tv[0], floor=0.03, aim=0.01, higher=False,
               note=f"{n} samples, symmetry used; {tv[1]:.4f} reweighted."),
        Figure("slope of -kT log p(x, y) against E, its distance from 1, the same", abs(slope - 1), floor=0.1, aim=0.03, higher=False,
               note=f"The slope is {slope:.3f}."),
    ]  # fmt: skip
    return figures, [Table("H/Pt(111), 300 K", ["site", "quadrature", "chain", "z"], rows)]


def cost(options: Options) -> list[Figure]:
    """1,000 samples with their log-densities on a slab not seen before."""
    slab = fcc111("Ir", (3, 3, 4), vacuum=8)
    wall, cpu = time.perf_counter(), time.process_time()
    sample_adsorption(slab, "O", "adsorb-general", n=options.size(1000, 20), seed=options.seed, unseen=True)
    return [Figure("1,000 samples with log q, new system", time.process_time() - cpu, "s", floor=20, aim=5, higher=False,
                   note=f"one core; wall {time.perf_counter() - wall:.1f} s; 36 slab atoms")]  # fmt: skip


def measure(options: Options) -> Findings:
    """Everything in turn."""
    figures, tables = populations(options)
    for part in (guard, corrected, monte_carlo):
        more, rows = part(options)
        figures += more
        tables += rows
    return Findings([*figures, *cost(options)], tables)


if __name__ == "__main__":
    command_line(__doc__, "adsorption", measure)
