"""Conformers at rest: MMFF94 minima, and the distinct ones among them, lowest first."""

from __future__ import annotations

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers as forcefields

from .check import check_parameters
from .compare import conformer_rmsd
from .convert import to_geometry, with_conformers

__all__ = ["distinct_minima", "lowest_apart", "minimised"]

_STEPS = 2000


def minimised(mol: Chem.Mol, variant: str = "MMFF94s") -> tuple[Chem.Mol, np.ndarray]:
    """A copy with every conformer at its minimum, and the energies (n,) in kcal/mol. UnsupportedError without MMFF parameters."""
    check_parameters(mol)
    copy = Chem.Mol(mol)
    found = forcefields.MMFFOptimizeMoleculeConfs(copy, mmffVariant=variant, maxIters=_STEPS)
    # Of the copy the positions alone: RDKit leaves MMFF's idea of aromatic bonds on it.
    return with_conformers(mol, to_geometry(copy)), np.array([energy for _, energy in found])


def distinct_minima(mol: Chem.Mol, n: int | None = None, *, apart: float = 0.25, variant: str = "MMFF94s") -> Chem.Mol:
    """A copy with the minima that its conformers lead to, lowest first, at most ``n``; each has its ``energy``, kcal/mol, as a property.

    Of minima whose heavy atoms are within ``apart`` Angstrom of each other (:func:`.compare.conformer_rmsd`) the lowest stands for all.
    """
    low, energy = minimised(mol, variant)
    kept = lowest_apart(low, energy, apart)[:n]
    return with_conformers(mol, to_geometry(low).positions.numpy()[kept], energy=energy[kept])


def lowest_apart(mol: Chem.Mol, energy: np.ndarray, apart: float) -> list[int]:
    """Which conformers are lower than all that are within ``apart`` Angstrom of them and are kept themselves, lowest first."""
    distance = conformer_rmsd(mol, mol)
    kept: list[int] = []
    for i in np.argsort(energy):
        if not kept or distance[i, kept].min() > apart:
            kept.append(int(i))
    return kept
