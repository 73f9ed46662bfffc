"""Peptides against parallel tempering: reweighted averages of the models trained from force fields alone. Half an hour a molecule.

Not part of ``make bench`` for its length. Frames of the reference are kept in runs/tempered and used again.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import HERE, Findings, Options, Table, command_line
from exactness import digits, figure
from openmm import app
from reference import heavy_simulation

from dig_core.montecarlo.analysis import block_average, effective_sample_size
from dig_core.montecarlo.chain import Pool
from dig_plugins import models
from dig_plugins.openmm.convert import reduced_unit
from dig_plugins.openmm.energy import OpenMMEnergy
from dig_plugins.openmm.observables import peptide_observables
from dig_plugins.openmm.recipes.force_field import MOLECULES
from dig_plugins.openmm.systems import ModelSystem
from dig_plugins.openmm.tempering import parallel_tempering

STEPS, SEED = 500, 3


class Ladder(NamedTuple):
    """Temperatures in K and iterations of STEPS steps of 2 fs, a tenth of which is not counted."""

    temperatures: np.ndarray
    iterations: int
    proposals: int


# Prolines turn from trans to cis over 20 kcal/mol: their ladder must reach where that happens.
LADDERS = {
    "alanine-tetrapeptide": Ladder(np.geomspace(300, 1000, 8), 1500, 16_384),
    "proline-dipeptide": Ladder(np.geomspace(300, 1500, 10), 3000, 16_384),
}


def measure(options: Options) -> Findings:
    """Every peptide that is shipped."""
    figures, tables, notes = [], [], []
    for name in [n for n in LADDERS if n in models.index()][: options.size(99, 1)]:
        ladder = LADDERS[name]._replace(iterations=options.size(LADDERS[name].iterations, 40))
        frames = reference(name, ladder, options)
        seen = {"energy": frames["energies"], **peptide_observables(system_of(name).topology, frames["positions"])}
        wanted = {k: x for k, x in seen.items() if np.ptp(x) > 0}  # what never happened has no error to be judged by
        found, ess = reweighted(name, list(wanted), options)
        rows, scores = [], []
        for observable, values in wanted.items():
            mean, error = float(values.mean()), cautious_error(values)
            here, its_error = found[observable]
            scores.append((here - mean) / float(np.hypot(error, its_error)))
            rows.append([observable, digits(mean, error), digits(here, its_error), f"{scores[-1]:.2f}"])
        figures.append(figure(f"reweighted proposals of {name}", scores, options.size(ladder.proposals, 256)))
        tables.append(Table(f"{name}, against parallel tempering", ["observable", "parallel tempering", "model", "z"], rows))
        total = ladder.iterations * STEPS * len(ladder.temperatures) * 2e-6
        notes.append(
            f"{name}: {total:.1f} ns over {len(ladder.temperatures)} temperatures up to {ladder.temperatures[-1]:.0f} K, "
            f"neighbours exchanged at a rate of {float(frames['swap_rate']):.2f}; raw ESS of the proposals with four paths {ess:.3f}."
        )
    return Findings(figures, tables, notes + _NOTES)


_NOTES = [
    "Errors of the reference: the largest of those from 40, 20 and 10 blocks of its frames. States that it enters a few times only have "
    "larger ones than any such number says.",
    "Errors of the reweighted averages: jackknife over 40 blocks of proposals. Lengths in nm, angles in radians, energies in kJ/mol.",
]


def system_of(name: str) -> ModelSystem:
    """The system of the recipe, whether its model is shipped or not."""
    molecule = MOLECULES[name]
    pdb = app.PDBFile(str(Path(models.__file__).with_name(molecule.structure)))
    system = app.ForceField(*molecule.force_field).createSystem(pdb.topology, nonbondedMethod=app.NoCutoff, constraints=None)
    return ModelSystem(pdb.topology, system, np.asarray(pdb.getPositions(asNumpy=True)._value), molecule.temperature)


def reference(name: str, ladder: Ladder, options: Options) -> dict[str, np.ndarray]:
    """Frames (nm), energies (kJ/mol) and the rate of exchanges, made without the model."""
    held = HERE.parent / "runs/tempered" / f"{name}.npz"
    if held.exists() and not options.quick:
        with np.load(held) as found:
            return dict(found)
    simulation = heavy_simulation(system_of(name), SEED)
    simulation.minimizeEnergy()
    count = ladder.iterations // 10
    frames = parallel_tempering(
        simulation, ladder.temperatures, ladder.iterations - count, steps=options.size(STEPS, 5), seed=SEED, discard=count
    )
    found = {"positions": frames.positions.astype(np.float32), "energies": frames.energies, "swap_rate": np.array(frames.swap_rate)}
    if not options.quick:
        held.parent.mkdir(parents=True, exist_ok=True)
        np.savez(held, **found)
    return found


def cautious_error(values: np.ndarray) -> float:
    """Standard error: the largest of three lengths of blocks."""
    return max(block_average(values, blocks).stderr for blocks in (40, 20, 10))


def reweighted(name: str, wanted: list[str], options: Options) -> tuple[dict[str, tuple[float, float]], float]:
    """Means and errors by the proposals' own weights, with four paths a structure, and their raw effective fraction."""
    system, n = system_of(name), options.size(LADDERS[name].proposals, 256)
    energy = OpenMMEnergy(system.system, system.temperature)
    pool = Pool(models.load(name).proposal(paths=4), energy, seed=options.seed, batch=512)
    weights, values = [], {observable: [] for observable in wanted}
    for _ in range(0, n, min(n, 4096)):
        found = pool.take(min(n, 4096))
        possible = np.isfinite(found.log_weight)
        weights.append(found.log_weight[possible])
        seen = peptide_observables(system.topology, found.positions[possible] / 10)
        seen["energy"] = found.u[possible] * reduced_unit(system.temperature)
        for observable in wanted:
            values[observable].append(seen[observable])
    log_weight = np.concatenate(weights)
    weight = np.exp(log_weight - log_weight.max())
    return {k: jackknife(np.concatenate(x), weight) for k, x in values.items()}, effective_sample_size(log_weight)


def jackknife(values: np.ndarray, weight: np.ndarray, blocks: int = 40) -> tuple[float, float]:
    """Weighted mean and its error from leaving out a block at a time."""
    parts = [(x * w).sum() for x, w in zip(np.array_split(values, blocks), np.array_split(weight, blocks), strict=True)]
    shares = [w.sum() for w in np.array_split(weight, blocks)]
    left = (sum(parts) - np.array(parts)) / (sum(shares) - np.array(shares))
    return float(sum(parts) / sum(shares)), float(np.sqrt((blocks - 1) * left.var()))


if __name__ == "__main__":
    command_line(__doc__, "tempered", measure)
