"""Adsorption sites on steps, open surfaces and alloys never trained on, against grid searches with CHGNet r2SCAN. Twenty minutes.

References: adsorption_reference.py. Energy calls are counted where chgnet is installed. A model that learned from flat facets alone is
measured on steps if runs/flat/adsorb-general.safetensors is there: ``--first 48 --facets fcc111 fcc100 hcp0001 bcc110 --steps 3000
--decay 0 --blur 0`` of the recipe with three seeds, then ``--members``.
"""

from __future__ import annotations

import time

import numpy as np
from ase.build import fcc111
from common import HERE, Figure, Findings, Options, Table, command_line, interval

from dig_core.dig import DiG
from dig_plugins import models
from dig_plugins.ase.adsorption import SiteSet, calculator_named, find_sites, sample_adsorption
from dig_plugins.ase.recipes.slabs import adsorbate

SEEDS = 3
FLAT = HERE.parent / "runs" / "flat" / "adsorb-general.safetensors"


def sites(options: Options) -> tuple[list[Figure], list[Table]]:
    """Sites on stepped, open and alloy surfaces against grid searches with the same energy."""
    scores = _scores(options, models.load("adsorb-general"), "", ("random", "geometric", "pymatgen", "acat"))
    if not scores:
        return [], []
    alone = [[r for _, tol, _, r in _scores(options, dig, "", (), 1) if tol == 0.5] for dig in models.load("adsorb-general").members()]
    flat = _scores(options, DiG.load(FLAT), "fcc211", ()) if FLAT.exists() else []
    names = ", ".join(sorted({name for name, *_ in scores}))
    atoms, molecules = ([s for s in scores if (len(s[2].numbers) > 1) == many] for many in (False, True))
    low, high = interval([r.coverage_at_k for _, tol, _, r in scores if tol == 0.5])
    figures = [
        Figure("coverage at K true sites, steps, open surfaces and alloys never trained on, 0.5 Angstrom",
               _mean(scores, "coverage_at_k", 0.5),
               floor=0.85, aim=0.95, compared="random, geometric, pymatgen, ACAT: table",
               note=f"{names}; {SEEDS} seeds; 95 % of bootstraps {low:.2f} to {high:.2f}; "
                    f"{np.mean([r.n_proposed for _, tol, _, r in scores if tol == 0.5]):.1f} sites on average. "
                    "Temperatures and the order of sites were chosen on other slabs; the barrier, which makes no difference there, "
                    "the width of the noise and the least share on these."),
        Figure("precision, the same", _mean(scores, "precision", 0.5), floor=0.75, aim=0.90),
        Figure("coverage at K, the same, mean of the committee's members, each alone",
               float(np.mean([r.coverage_at_k for found in alone for r in found])),
               note="One seed each: " + "; ".join(f"{np.mean([r.coverage_at_k for r in found]):.2f}, precision "
                                                  f"{np.mean([r.precision for r in found]):.2f}" for found in alone) + "."),
        Figure("coverage of steps of metals never trained on, 0.3 Angstrom", _mean(scores, "coverage", 0.3, "fcc211"),
               compared="geometric, pymatgen, ACAT: table", note=f"precision {_mean(scores, 'precision', 0.3, 'fcc211'):.2f}"),
        Figure("distance of covered sites before any relaxation, atoms", _mean(atoms, "rmsd", 0.5), "Angstrom",
               floor=0.2, aim=0.1, higher=False),
        Figure("distance of covered sites before any relaxation, CO", _mean(molecules, "rmsd", 0.8), "Angstrom",
               floor=0.5, aim=0.3, higher=False,
               note=f"rms over its atoms, of those within 0.8 Angstrom; coverage there {_mean(molecules, 'coverage', 0.8):.2f}."),
    ]  # fmt: skip
    if flat:
        figures.append(
            Figure("coverage of steps at 0.3 Angstrom, by a model trained on flat surfaces only", _mean(flat, "coverage", 0.3),
                   floor=0.80, aim=0.95, compared="geometric, pymatgen, ACAT: table",
                   note=f"precision {_mean(flat, 'precision', 0.3):.2f}, at least 0.5 asked; at 0.5 Angstrom coverage "
                        f"{_mean(flat, 'coverage', 0.5):.2f}, precision {_mean(flat, 'precision', 0.5):.2f}")
        )  # fmt: skip
    header = ["system", "tolerance", "minima", "sites", "coverage", "coverage@K", "precision", "rmsd"]
    rows = [row for name, tol, _, report in scores for row in _rows(name, tol, report)]
    return figures, [Table("Sites against grid searches with CHGNet r2SCAN, last seed of each", header, rows)]


def _scores(options: Options, dig: DiG, kind: str, baselines: tuple[str, ...], count: int = SEEDS) -> list[tuple]:
    """(name, tolerance, reference, report) of every reference of this kind and of ``count`` seeds; baselines beside the last."""
    scores = []
    seeds = range(1, options.size(count, 1) + 1)
    for place in sorted((HERE / "results" / "adsorption").glob("*.json")):
        if kind not in place.stem:
            continue
        reference, guest = SiteSet.read(place), place.stem.split("-")[-1]
        for seed in seeds:
            found = find_sites(reference.slab, adsorbate(guest), dig, n=options.size(400, 30), seed=seed, unseen=True)
            for tol in (0.5, 0.3, 0.8):
                beside = baselines if seed == seeds[-1] and tol < 0.8 else ()
                scores.append((place.stem, tol, reference, found.compare(reference, tol=tol, baselines=beside)))
    return scores


def _mean(scores: list[tuple], what: str, tol: float, kind: str = "") -> float:
    return float(np.nanmean([getattr(r, what) for name, t, _, r in scores if t == tol and kind in name]))


def _rows(name: str, tol: float, report) -> list[list]:
    """Of the table, with the baselines below; none for runs without them."""
    mine = (report.coverage, report.coverage_at_k, report.precision, report.rmsd)
    rows = [[name, tol, report.n_reference, report.n_proposed, *(round(x, 2) for x in mine)]]
    for other in report.baselines:
        scored = (other.coverage, other.coverage_at_k, other.precision)
        rows.append([f"  {other.name}", tol, report.n_reference, other.number, *(round(x, 2) for x in scored), ""])
    return rows if report.baselines else []


def calls(options: Options) -> tuple[list[Figure], list[Table]]:
    """Energy calls to own the minima: sites found without any, then relaxed, beside the grid search of the reference."""
    try:
        calculator = calculator_named("chgnet")
    except ImportError:
        return [], []
    rows, ratios, wide, narrow = [], [], [], []
    for place in sorted((HERE / "results" / "adsorption").glob("*.json"))[: options.size(100, 1)]:
        reference, guest = SiteSet.read(place), place.stem.split("-")[-1]
        found = find_sites(
            reference.slab, adsorbate(guest), "adsorb-general", n=options.size(400, 30), seed=options.seed, unseen=True
        )
        relaxed = found.relax(calculator, fmax=0.03, steps=80)
        near, close = (relaxed.compare(reference, tol=tol, baselines=()) for tol in (0.5, 0.3))
        lowest = min(site.energy for site in relaxed) - min(site.energy for site in reference)
        ratios.append(reference.n_calls / relaxed.n_calls)
        wide.append(near)
        narrow.append(close.coverage)
        scored = (ratios[-1], near.coverage, close.coverage, near.precision, lowest)
        rows.append([place.stem, reference.n_calls, relaxed.n_calls, *(round(x, 3) for x in scored)])
    figures = [
        Figure("energy calls of a grid search over those of found sites, relaxed", float(np.exp(np.mean(np.log(ratios)))), "x",
               floor=10, aim=30,
               compared="grid search with the same calculator",
               note=f"Geometric mean; least {min(ratios):.1f}. Their relaxations carry on with the "
                    "curvature that was learned before, those of the search are ASE's BFGS. "
                    f"They cover {np.mean(narrow):.2f} of its minima at 0.3 Angstrom."),
        Figure("coverage at K true sites, the same relaxed sites, 0.5 Angstrom", float(np.mean([r.coverage_at_k for r in wide])),
               floor=0.85, aim=0.95, note=f"One seed; coverage {np.mean([r.coverage for r in wide]):.2f}."),
        Figure("precision, the same relaxed sites", float(np.mean([r.precision for r in wide])), floor=0.75, aim=0.90),
    ]  # fmt: skip
    header = [
        "system", "calls, grid search", "calls, found and relaxed", "ratio", "coverage at 0.5", "at 0.3", "precision at 0.5",
        "lowest, eV above the search's",
    ]  # fmt: skip
    return figures, [Table("Energy calls, CHGNet r2SCAN", header, rows)]


def cost(options: Options) -> list[Figure]:
    """1,000 samples with their log-densities on a slab not seen before."""
    slab = fcc111("Ir", (3, 3, 4), vacuum=8)
    wall, cpu = time.perf_counter(), time.process_time()
    sample_adsorption(slab, "O", "adsorb-general", n=options.size(1000, 20), seed=options.seed, unseen=True)
    return [Figure("1,000 samples with log q, new system", time.process_time() - cpu, "s", floor=20, aim=5, higher=False,
                   note=f"one core; wall {time.perf_counter() - wall:.1f} s; 36 slab atoms")]  # fmt: skip


def measure(options: Options) -> Findings:
    """Sites, then the calls that own them, then what samples cost."""
    figures, tables = sites(options)
    more, rows = calls(options)
    return Findings([*figures, *more, *cost(options)], [*tables, *rows])


if __name__ == "__main__":
    command_line(__doc__, "adsorption_sites", measure, "adsorb-general")
