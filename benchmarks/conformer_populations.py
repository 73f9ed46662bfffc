"""Exact conformer populations of withheld molecules, a model each, against parallel tempering. Hours of one core; not part of make bench.

Needs ../shared/data/conformer (DIG_CONFORMER names another place). What a molecule gave is kept in runs/conformers-populations, one file
each, and such files can be made side by side: python benchmarks/conformer_populations.py --molecule NAME.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time

from common import HERE, Figure, Findings, Options, Table, command_line

import numpy as np  # isort: skip
import torch
from conformers import DATA, graph
from rdkit import Chem

from dig_core.dig import DiG
from dig_core.files import write_atomically
from dig_core.training.basins import langevin_step
from dig_core.training.draws import target_law
from dig_core.training.frames import frames_of
from dig_plugins.rdkit import (
    MMFFEnergy,
    fit_molecule,
    reference_structure,
    sample_conformers,
    to_geometry,
    torsion_states,
    torsions_of,
    with_conformers,
)
from dig_plugins.rdkit.basins import transferable_coordinates
from dig_plugins.rdkit.minima import minimised
from dig_plugins.rdkit.reference import read_conformer_set, withheld

KEPT = HERE.parent / "runs" / "conformers-populations"
MOLECULES, LARGEST = 8, 45
BUDGET, TEMPERING = 300.0, 1800.0
"""Seconds for a model and for its reference. Two minutes of tempering are no reference: its chains still know where they began."""
RUNGS, LADDERS, HOTTEST = 14, 24, 4.0
FEW = 0.02
"""Populations below are not compared: neither method says how wrong it is about what it saw a few times."""


def chosen() -> dict[str, Chem.Mol]:
    """Withheld molecules of no more than so many atoms, the first in the order of a hash of their names."""
    found = [r for r in read_conformer_set(DATA / "conformer_benchmark") if withheld(r.mol) and r.mol.GetNumAtoms() <= LARGEST]
    found.sort(key=lambda r: hashlib.sha256(r.name.encode()).digest())
    return {r.name: graph(r.mol) for r in found[:MOLECULES]}


def tempered(mol: Chem.Mol, seconds: float, seed: int) -> tuple[np.ndarray, int]:
    """States (ladder, visit, torsion) at 300 K by parallel tempering of Langevin chains, and the energies that it took.

    Chains start at minimised distance geometry; the last two thirds of each of the independent ladders.
    """
    coordinates, descriptor, rough = transferable_coordinates(mol)
    energy, rng = MMFFEnergy(mol, 300.0), torch.Generator().manual_seed(seed)
    low, _ = minimised(rough)
    frames = frames_of(coordinates, descriptor, to_geometry(low))
    frames = frames.take(coordinates.valid(frames.state, descriptor).nonzero()[:, 0])
    dig = DiG(_process_of(coordinates), coordinates, descriptor)
    start = torch.randint(len(frames), (LADDERS * RUNGS,), generator=rng)
    state = {name: x.double() for name, x in frames.take(start).state.items()}
    beta = torch.logspace(0, -math.log10(HOTTEST), RUNGS, dtype=torch.float64).repeat(LADDERS)
    size = torch.full((LADDERS * RUNGS,), 0.1, dtype=torch.float64)

    def law(points):
        log_target, force = target_law(dig, energy, points)
        log_target = torch.where(coordinates.valid(points, descriptor), log_target, -math.inf)
        return beta * log_target, {n: beta[:, None] * f for n, f in force.items()}, log_target

    held, visits, began, step = law(state), [], time.monotonic(), 0
    while time.monotonic() - began < seconds:
        scale = {n: size[:, None] / (f.abs().median(0).values / 0.6745).clamp_min(1.0) for n, f in held[1].items()}
        state, held, accept = langevin_step(dig.process, state, held, law, scale, rng)
        size = size * torch.exp(0.05 * (accept.double() - 0.57))
        step += 1
        if step % 4 == 0:
            order = _swapped(held[2], beta, step // 4 % 2, rng)
            state, target = {n: x[order] for n, x in state.items()}, held[2][order]
            slope = {n: f[order] / beta[order, None] * beta[:, None] for n, f in held[1].items()}
            held = (beta * target, slope, target)
            here = {n: x[::RUNGS] for n, x in state.items()}
            positions = coordinates.decode(here, descriptor)
            visits.append(torsion_states(with_conformers(mol, positions), torsions_of(mol)))
    return np.stack(visits[len(visits) // 3 :], 1), energy.n_evaluations


def _process_of(coordinates):
    from dig_core.training.molecule import internal_model

    return internal_model(coordinates, width=8, blocks=1)


def _swapped(log_target: torch.Tensor, beta: torch.Tensor, odd: int, rng: torch.Generator) -> torch.Tensor:
    """Who stands where after neighbours on each ladder were offered to change places."""
    order = torch.arange(len(beta)).view(LADDERS, RUNGS)
    for low in range(odd, RUNGS - 1, 2):
        a, b = order[:, low].clone(), order[:, low + 1].clone()
        gain = (beta[low] - beta[low + 1]) * (log_target[b] - log_target[a])
        swap = torch.rand(LADDERS, generator=rng, dtype=torch.float64).log() < gain
        order[:, low], order[:, low + 1] = torch.where(swap, b, a), torch.where(swap, a, b)
    return order.flatten()


def one(name: str, mol: Chem.Mol, options: Options) -> dict:
    """Fit, sample, temper, compare; kept."""
    place, seconds = KEPT / f"{name}.json", (options.size(int(BUDGET), 5), options.size(int(TEMPERING), 5))
    if place.exists() and not options.quick:
        return json.loads(place.read_text())
    ready = reference_structure(mol, seed=options.seed)
    out = None if options.quick else KEPT / name
    fitted = fit_molecule(ready, budget=seconds[0], out=out, seed=options.seed, progress=False, name=name)
    ensemble = sample_conformers(ready, options.size(20_000, 200), model=fitted.dig, seed=options.seed + 1)
    visited, spent = tempered(mol, seconds[1], options.seed)
    rows = []
    states = torsion_states(ensemble.mol, torsions_of(ready))
    for column, atoms in enumerate(torsions_of(ready)):
        for third in (-1, 0, 1):
            mine = ensemble.average((states[:, column] == third).astype(float))
            each = (visited[:, :, column] == third).mean(1)
            theirs, error = float(each.mean()), float(each.std(ddof=1) / math.sqrt(len(each)))
            if FEW < theirs < 1 - FEW or FEW < mine.value < 1 - FEW:
                z = (mine.value - theirs) / math.hypot(mine.stderr, error, 1e-9)
                numbers = {"model": mine.value, "stderr": mine.stderr, "tempered": theirs, "error": error, "z": z}
                rows.append({"torsion": list(atoms), "third": third, **{key: float(x) for key, x in numbers.items()}})
    record = {
        "name": name, "atoms": mol.GetNumAtoms(), "torsions": len(torsions_of(ready)), "acceptance": ensemble.acceptance,
        "ess": ensemble.effective_sample_size() / len(ensemble), "seconds": fitted.seconds, "evaluations": fitted.evaluations,
        "tempering": {"evaluations": spent, "visits": visited.shape[1]}, "populations": rows,
    }  # fmt: skip
    if not options.quick:
        write_atomically(place, json.dumps(record, indent=1).encode())
    return record


def measure(options: Options) -> Findings:
    """Every molecule in turn."""
    found = [one(name, mol, options) for name, mol in list(chosen().items())[: options.size(MOLECULES, 1)]]
    rows = []
    for r in found:
        worst = max((abs(p["z"]) for p in r["populations"]), default=0.0)
        cost = [round(r["seconds"]), r["evaluations"], r["tempering"]["evaluations"]]
        rows.append([r["name"], r["atoms"], r["torsions"], r["acceptance"], r["ess"], len(r["populations"]), worst, *cost])
    header = ["molecule", "atoms", "torsions", "acceptance", "raw ESS", "populations", "largest |z|", "seconds", "energies", "of tempering"]
    middle = float(np.median([r["acceptance"] for r in found]))
    figures = [
        Figure("exact conformer populations, median raw acceptance", middle, floor=0.1, aim=0.4),
        Figure("exact conformer populations, molecules with all |z| < 3", float(np.mean([row[6] < 3 for row in rows])), floor=1.0),
    ]
    notes = [
        f"Withheld molecules of at most {LARGEST} atoms, the first {MOLECULES} by a hash of their names; MMFF94s, 300 K; a model of each "
        f"is trained in {BUDGET:.0f} s (half more if annealing takes long). Raw: 20,000 proposals, nothing clipped.",
        f"Reference: {LADDERS} independent ladders of {RUNGS} Langevin chains from 300 to {300 * HOTTEST:.0f} K for {TEMPERING:.0f} s, "
        "errors between ladders; populations of thirds of a turn of every torsion, those between 2 % and 98 %.",
    ]
    return Findings(figures, [Table("A model a molecule, from MMFF94s alone", header, rows)], notes)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--molecule":
        KEPT.mkdir(parents=True, exist_ok=True)
        one(sys.argv[2], chosen()[sys.argv[2]], Options())
    else:
        command_line(__doc__, "conformer_populations", measure)
