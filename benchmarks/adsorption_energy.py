"""Adsorption with the energy: models of metals never trained on, trained on by it, and one from it alone; a chain. An hour.

On the DFT table. ``runs/fcc111-METAL/adsorb-fcc111.safetensors``: models that never saw METAL, see adsorption.py. Finished trainings
are kept in runs/adsorption-energy.json, for that model alone.
"""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
from adsorption import FOLDS, TEMPERATURE, folds, maps_of, slab_of
from common import Figure, Findings, Options, Table, command_line

from dig_core.files import write_atomically
from dig_plugins.ase.adsorption import fit_adsorption, sample_adsorption
from dig_plugins.models import sha256

SEEDS = 3
KEPT = FOLDS / "adsorption-energy.json"


def corrected(options: Options) -> tuple[list[Figure], list[Table]]:
    """H, which is in several sites at once, on metals never trained on: the model trained on with the energy alone."""
    rows, seeds = [], range(1, options.size(SEEDS, 1) + 1)
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() and not options.quick else {}
    for metal, dig in folds().items():
        slab, surface = slab_of(metal, "H")
        model = sha256(FOLDS / f"fcc111-{metal}" / "adsorb-fcc111.safetensors")[:12]
        for seed in seeds if metal == "Pt" else [options.seed]:
            name = f"H/{metal}(111), seed {seed}, {model}"
            if name in kept:
                rows.append(kept[name])
                continue
            fitted = fit_adsorption(
                slab, "H", surface.calculator(), dig, temperature=TEMPERATURE, evaluations=options.size(12_000, 400),
                steps=options.size(1500, 20), seed=seed, progress=False,
            )  # fmt: skip
            n = options.size(20_000, 100)
            found = sample_adsorption(slab, "H", fitted.dig, n=n, seed=seed + 100, energy=surface.calculator(), unseen=True)
            maps, weighted, true = maps_of(found, surface)
            ess = weighted.effective_sample_size()
            # What a histogram of as many independent samples, each counted at its symmetric places, would be off by itself.
            floor = true.noise(ess * len(found.operations))
            tv, slope = [m.total_variation(true) for m in maps], maps[0].slope(true, TEMPERATURE)
            rows.append([f"H/{metal}(111), seed {seed}", *(round(x, 3) for x in (*tv, floor, slope, ess / n)), fitted.evaluations])
            if not options.quick:
                write_atomically(KEPT, json.dumps(kept := kept | {name: rows[-1]}, indent=1).encode())
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
    slab, surface = slab_of("Pt", "H")
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


def measure(options: Options) -> Findings:
    """Both in turn."""
    figures, tables = corrected(options)
    more, rows = monte_carlo(options)
    return Findings([*figures, *more], [*tables, *rows])


if __name__ == "__main__":
    command_line(__doc__, "adsorption_energy", measure)
