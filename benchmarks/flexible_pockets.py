"""Chains of a ligand with the side chains about it, a withheld ligand of each target: how far pockets move, what they cost. Five minutes.

Needs ../shared/data/ligand (DIG_LIGAND names another place) and the extra openff: Sage and ff14SB on every target, MMFF94, which takes
several times as long, on one. Not part of ``make bench``.
"""

from __future__ import annotations

import time

import numpy as np
from common import Figure, Findings, Options, Table, command_line
from poses import DATA

from dig_plugins.openff import complex_system
from dig_plugins.openmm import OpenMMEnergy
from dig_plugins.rdkit import pose_rmsd, read_pocket, sample_poses
from dig_plugins.rdkit.pockets import side_chains
from dig_plugins.rdkit.recipes.pockets import TARGETS, ligands, withheld

RADIUS, LIMIT, TEMPERATURE = 4.0, 1.0, 300.0
HEADER = [
    "target", "energy", "atoms of the ligand", "flexible atoms", "pocket RMSD, A", "largest", "farthest atom, A",
    "ligand RMSD to the data, A", "pass all checks", "proposals accepted", "seconds a state",
]  # fmt: skip


def one(target: str, energy: str, options: Options) -> dict:
    """A chain of one ligand; which residues move is told by the ligand's own pose, where it starts is not."""
    mols = ligands(DATA, target)
    mol = mols[withheld(len(mols), target)[0]]
    pocket = read_pocket(DATA / target / "protein.pdb", mol, cutoff=8.0, ions="leave")
    moving, known = side_chains(pocket, mol, radius=RADIUS, limit=LIMIT), None
    if energy == "Sage, ff14SB":
        known = OpenMMEnergy(complex_system(mol, pocket.mol), TEMPERATURE, platform="CPU", threads=1)
    began = time.process_time()
    found = sample_poses(
        pocket, mol, options.size(24, 2), model=options.model, flexible=moving, correct="mc", energy=known, seed=options.seed,
        batch=options.size(32, 2), steps=4 if options.quick else None,
    )  # fmt: skip
    seconds = (time.process_time() - began) / len(found)
    apart = np.linalg.norm(found.pockets - pocket.positions, axis=2)[:, moving.atoms]
    away, moved = pose_rmsd(found.mol, mol)[:, 0], found.pocket_rmsd
    row = [
        target, energy, mol.GetNumAtoms(), len(moving.atoms), float(moved.mean()), float(moved.max()), float(apart.max()),
        float(np.median(away)), float(found.checks().ok.mean()), found.acceptance, seconds,
    ]  # fmt: skip
    print(*row, flush=True)
    return dict(zip(HEADER, row, strict=True))


def measure(options: Options) -> Findings:
    """Every target with the one energy, one of them with the other."""
    energies, targets = ["Sage, ff14SB", "MMFF94s"], TARGETS[: options.size(len(TARGETS), 1)]
    rows = [one(target, energies[0], options) for target in targets] + [one("tyk2", energies[1], options)]
    figures = []
    for energy in energies:
        mine = [row for row in rows if row["energy"] == energy]
        figures += [
            Figure(f"pocket RMSD from its input structure, sampled with the ligand, {energy}, largest", max(r["largest"] for r in mine),
                   "Angstrom", floor=1.0, aim=1.0, higher=False, note="heavy atoms that may move"),
            Figure(f"poses sampled with their pocket that pass all checks, {energy}", float(np.mean([r["pass all checks"] for r in mine]))),
        ]  # fmt: skip
    notes = [
        f"Side chains with an atom within {RADIUS:g} Angstrom of the ligand's pose in the data move, tethered beyond {LIMIT:g} Angstrom an "
        "atom; the first withheld ligand of each target. Chains of 24 states, local moves before every fourth; start and warming are "
        "part of the seconds. 300 K, vacuum.",
    ]
    return Findings(figures, [Table("Ligands in flexible pockets", HEADER, [list(row.values()) for row in rows])], notes)


if __name__ == "__main__":
    command_line(__doc__, "flexible_pockets", measure, model="pockets")
