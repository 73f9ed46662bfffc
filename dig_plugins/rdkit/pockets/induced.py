"""Poses and pockets that give way to each other: MMFF94 minima in which the pocket's atoms stay near where the file has them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from rdkit import Chem

from dig_core.errors import IncompatibleError

from ..convert import to_geometry, with_conformers
from .pocket import Pocket
from .whole import combined, field_of

__all__ = ["Induced", "induced_fit"]

_WALL = 100.0  # kcal/mol/Angstrom^2 beyond the limit


class Induced(NamedTuple):
    """``positions`` (L, 3) Angstrom of the ligand; the ``pocket`` as it stands then; ``energy`` kcal/mol of both, MMFF94 in vacuum;
    ``moved`` Angstrom, RMSD of the pocket's heavy atoms from where they were; ``finished`` whether the minimum was reached."""

    positions: np.ndarray
    pocket: Pocket
    energy: float
    moved: float
    finished: bool


def induced_fit(
    ligand: Chem.Mol, pocket: Pocket, *, radius: float = 5.0, limit: float = 1.0, steps: int = 300, variant: str = "MMFF94s"
) -> list[Induced]:
    """Minimise every pose (conformer) of ``ligand`` with the residues that have an atom within ``radius`` Angstrom of it.

    Each of their atoms is free up to ``limit`` Angstrom from where the file has it, and held by a wall beyond; all others stay. Raises
    IncompatibleError for a radius or limit that is not positive, UnsupportedError where MMFF94 has no parameters.
    """
    if radius <= 0 or limit <= 0:
        raise IncompatibleError(f"expected a positive radius and limit, got {radius} and {limit}.")
    both = combined(ligand, pocket)
    return [_one(pose, both, variant, pocket, radius, limit, steps) for pose in to_geometry(ligand).positions.numpy()]


def _one(pose: np.ndarray, both: Chem.Mol, variant: str, pocket: Pocket, radius: float, limit: float, steps: int) -> Induced:
    place = with_conformers(both, np.concatenate([pose, pocket.positions])[None])
    field = field_of(place, variant)
    field.Initialize()
    near = np.linalg.norm(pocket.positions[:, None] - pose, axis=2).min(1) < radius
    free = np.isin(pocket.residue, np.unique(pocket.residue[near]))
    for atom, gives in enumerate(free.tolist(), start=len(pose)):
        if gives:
            field.MMFFAddPositionConstraint(atom, limit, _WALL)
        else:
            field.AddFixedPoint(atom)
    left = field.Minimize(maxIts=steps)
    found = np.array(field.Positions()).reshape(-1, 3)
    walls = with_conformers(pocket.mol, found[None, len(pose) :])
    shift = (found[len(pose) :] - pocket.positions)[pocket.heavy]
    moved = float(np.sqrt((shift**2).sum(1).mean()))
    return Induced(found[: len(pose)], dataclasses.replace(pocket, mol=walls), float(field.CalcEnergy()), moved, left == 0)
