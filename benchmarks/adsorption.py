"""Adsorption: populations against the DFT table, sites on surfaces never trained on, cost. About fifteen minutes.

``runs/fcc111-METAL/adsorb-fcc111.safetensors``, where there is one, is a model that never saw METAL (recipe of dig_plugins.ase,
``--without METAL``): only such models count for what is held out. References of sites: adsorption_reference.py.
"""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
from ase import Atoms
from ase.build import fcc111
from common import HERE, Figure, Findings, Options, Table, command_line

from dig_core.dig import DiG
from dig_plugins import models
from dig_plugins.ase.adsorption import SiteSet, SiteSurface, fit_adsorption, sample_adsorption
from dig_plugins.ase.recipes.adsorption import METALS
from dig_plugins.ase.recipes.slabs import adsorbate

TEMPERATURE, SEARCHING = 300.0, 1000.0
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


def populations(options: Options) -> tuple[list[Figure], list[Table]]:
    """Held-out metals: raw, and reweighted by the energy."""
    rows, raw, exact, simple = [], [], [], []
    for metal in METALS:
        file = FOLDS / f"fcc111-{metal}" / "adsorb-fcc111.safetensors"
        if not file.exists():
            continue
        dig = DiG.load(file)
        for guest in ("H", "C", "N", "O"):
            slab, surface = _slab(metal, guest)
            n = options.size(3000, 100)
            found = sample_adsorption(slab, guest, dig, n=n, seed=options.seed, energy=surface.calculator(), unseen=True)
            ours, weighted = found.density(symmetrize=True), dataclasses.replace(found, correction="reweight")
            true = surface.map((24, 24), TEMPERATURE, lattice=ours.lattice)
            tv = [m.total_variation(true) for m in (ours, weighted.density(symmetrize=True))]
            slope = weighted.density(symmetrize=True).slope(true, TEMPERATURE)
            ess = weighted.effective_sample_size() / n
            simple.append(_without_a_model(metal, guest))
            rows.append([f"{guest}/{metal}(111)", *(round(x, 3) for x in (*tv, slope, ess, simple[-1]))])
            raw.append(tv[0])
            exact.append(tv[1])
    if not raw:
        return [], []
    metals = len(raw) // 4
    note = f"{metals} of 7 metals left out one at a time, H, C, N, O on each; 24 x 24 grid, {options.size(3000, 100)} samples."
    figures = [
        Figure("total variation to the Boltzmann map, metal never trained on, raw", float(np.mean(raw)), floor=0.20, aim=0.10,
               higher=False, compared=f"mean over the other metals: {np.mean(simple):.2f}", note=f"{note} Worst {max(raw):.2f}."),
        Figure("the same, reweighted by the energy", float(np.mean(exact)), floor=0.03, aim=0.01, higher=False,
               note="Its effective sample size, in the table, is a few per cent and less: few samples carry the weight."),
    ]  # fmt: skip
    header = ["system", "TV raw", "TV reweighted", "slope", "raw ESS", "TV of the other metals' mean"]
    return figures, [Table("Held-out metals, 300 K", header, rows)]


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


def sites(options: Options) -> tuple[list[Figure], list[Table]]:
    """Sites on stepped, open and alloy surfaces against grid searches with the same energy."""
    dig = models.load("adsorb-general")
    rows, scores = [], []
    for place in sorted((HERE / "results" / "adsorption").glob("*.json")):
        reference, guest = SiteSet.read(place), place.stem.split("-")[-1]
        found = sample_adsorption(
            reference.slab, adsorbate(guest), dig, n=options.size(1000, 50), temperature=SEARCHING, seed=options.seed, unseen=True
        ).sites(min_weight=0.02)
        for tol in (0.5, 0.3):
            report = found.compare(reference, tol=tol, baselines=("random", "geometric", "pymatgen"))
            rows.append([place.stem, tol, report.n_reference, report.n_proposed, round(report.coverage, 2), round(report.coverage_at_k, 2),
                         round(report.precision, 2), round(report.rmsd, 2)])  # fmt: skip
            for other in report.baselines:
                scored = (other.coverage, other.coverage_at_k, other.precision)
                rows.append([f"  {other.name}", tol, report.n_reference, other.number, *(round(x, 2) for x in scored), ""])
            scores.append((place.stem, tol, report))
    if not scores:
        return [], []

    def mean(what: str, tol: float, kind: str = "") -> float:
        return float(np.nanmean([getattr(r, what) for name, t, r in scores if t == tol and kind in name]))

    names = ", ".join(sorted({name for name, _, _ in scores}))
    figures = [
        Figure("coverage at K true sites, steps, open surfaces and alloys never trained on, 0.5 Angstrom", mean("coverage_at_k", 0.5),
               floor=0.85, aim=0.95, compared="random, geometric, pymatgen", note=names),
        Figure("precision, the same", mean("precision", 0.5), floor=0.75, aim=0.90),
        Figure("coverage of steps at 0.3 Angstrom", mean("coverage", 0.3, "fcc211"), floor=0.80, aim=0.95,
               note=f"precision {mean('precision', 0.3, 'fcc211'):.2f}; other metals' steps were trained on"),
        Figure("distance of covered sites before any relaxation", mean("rmsd", 0.5), "Angstrom", floor=0.2, aim=0.1, higher=False),
    ]  # fmt: skip
    header = ["system", "tolerance", "minima", "sites", "coverage", "coverage@K", "precision", "rmsd"]
    return figures, [Table("Sites at 1000 K against grid searches with CHGNet r2SCAN", header, rows)]


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
    for part in (monte_carlo, sites):
        more, rows = part(options)
        figures += more
        tables += rows
    return Findings([*figures, *cost(options)], tables)


if __name__ == "__main__":
    command_line(__doc__, "adsorption", measure)
