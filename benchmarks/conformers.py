"""Conformers of drug-like molecules that no model was trained on: coverage of DFT conformers, precision, exact populations.

Needs ../shared/data/conformer (DIG_CONFORMER names another place). Conformers are kept in runs/conformers-bench.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from common import HERE, Figure, Findings, Options, Table, command_line

import numpy as np  # isort: skip
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers as forcefields

from dig_plugins.rdkit import embed, with_conformers
from dig_plugins.rdkit.compare import conformer_rmsd
from dig_plugins.rdkit.reference import Reference, read_conformer_set, withheld

DATA = Path(os.environ.get("DIG_CONFORMER", HERE.parent.parent / "shared" / "data" / "conformer"))
KEPT = HERE.parent / "runs" / "conformers-bench"
WINDOW, NEAR = 3.0, 0.5
"""kcal/mol above the lowest of a molecule's DFT conformers, which are to be found within so many Angstrom."""
SIZES = (10, 25, 50)


def held_out(options: Options) -> list[Reference]:
    """Molecules that were never trained on, with their DFT conformers within the window."""
    found = [r for r in read_conformer_set(DATA / "conformer_benchmark") if withheld(r.mol)]
    return [_low(r) for r in found[: options.size(len(found), 4)]]


def _low(reference: Reference) -> Reference:
    mol = Chem.Mol(reference.mol)
    for conformer, energy in zip(list(reference.mol.GetConformers()), reference.energy, strict=True):
        if energy >= WINDOW:
            mol.RemoveConformer(conformer.GetId())
    return reference._replace(mol=mol, energy=reference.energy[reference.energy < WINDOW])


def graph(mol: Chem.Mol) -> Chem.Mol:
    """The molecule without a structure: nothing of the reference but its stereochemistry."""
    bare = Chem.Mol(mol)
    bare.RemoveAllConformers()
    return bare


def etkdg(mol: Chem.Mol, n: int, seed: int) -> Chem.Mol:
    """The peer: distance geometry."""
    return embed(graph(mol), n, seed=seed)


def minimised(mol: Chem.Mol) -> Chem.Mol:
    """Every conformer at its MMFF94s minimum."""
    copy = Chem.Mol(mol)
    forcefields.MMFFOptimizeMoleculeConfs(copy, mmffVariant="MMFF94s", maxIters=2000)
    return copy


def kept(kind: str, reference: Reference, options: Options, make: Callable[[Chem.Mol, int, int], Chem.Mol], relax: bool) -> Chem.Mol:
    """Conformers by ``make``, in the order in which they came, minimised or not; made once."""
    place, n = KEPT / kind / f"{reference.name}.npy", options.size(max(SIZES), 5)
    if options.quick or not place.exists():
        found = make(reference.mol, n, options.seed)
        found = minimised(found) if relax else found
        if options.quick:
            return found
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, np.stack([c.GetPositions() for c in found.GetConformers()]))
    return with_conformers(reference.mol, np.load(place))


def coverage(references: list[Reference], conformers: list[Chem.Mol], options: Options) -> tuple[list[list], dict[int, np.ndarray]]:
    """Rows of a table, one a number of conformers, and the share of its DFT conformers that each molecule covers."""
    distances = [conformer_rmsd(r.mol, c) for r, c in zip(references, conformers, strict=True)]
    rows, shares = [], {}
    for n in SIZES if not options.quick else (5,):
        shares[n] = np.array([(d[:, :n].min(1) < NEAR).mean() for d in distances])
        precision = np.mean([(d[:, :n].min(0) < NEAR).mean() for d in distances])
        closest = np.mean([d[:, :n].min(1).mean() for d in distances])
        rows.append([n, shares[n].mean(), shares[n].std() / len(shares[n]) ** 0.5, precision, closest])
    return rows, shares


def measure(options: Options) -> Findings:
    """Every part."""
    references = held_out(options)
    rows = []
    for name, make, relax in (("ETKDG", etkdg, False), ("ETKDG + MMFF", etkdg, True)):
        found = [kept(name.replace(" + ", "-").lower(), r, options, make, relax) for r in references]
        table, _ = coverage(references, found, options)
        rows += [[name, *row] for row in table]
    header = ["", "conformers", "coverage", "its error", "precision", "mean distance to the closest"]
    title = f"{len(references)} molecules never trained on: DFT conformers below {WINDOW:g} kcal/mol, within {NEAR:g} Angstrom"
    return Findings([Figure("coverage", rows[-1][2])], [Table(title, header, rows)])


if __name__ == "__main__":
    command_line(__doc__, "conformers", measure)
