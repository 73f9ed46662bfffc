"""Internal coordinates of an RDKit molecule: MMFF's widths, rings and double bonds that bend but do not turn, nitrogens that invert."""

from __future__ import annotations

from dataclasses import replace

import torch
from rdkit import Chem
from torch import Tensor

from dig_core.coordinates import Internal
from dig_core.coordinates.internal import NARROW, SIBLING
from dig_core.coordinates.measure import dihedral
from dig_core.diffusion.spaces import wrap
from dig_core.types import Geometry

from .convert import describe
from .energy import thermal_widths
from .facts import inverting_nitrogens, ring_bonds

__all__ = ["internal_coordinates"]

_LEAST = 0.1  # rad: of a ring that is nearly rigid in every conformer


def internal_coordinates(mol: Chem.Mol, conformers: Geometry, temperature: float, variant: str = "MMFF94s") -> Internal:
    """Coordinates for a molecule (its first conformer is the reference) from the graph and from rough ``conformers`` (B, N, 3).

    Bonds and angles are as wide as MMFF says. Torsions about bonds of rings and about double bonds that turn by less than
    ``NARROW`` in all conformers, puckering included, get their middle and spread there and leave the torus; the others turn freely, and
    so do the substituents of nitrogens that invert.
    """
    plain = Internal.from_reference(describe(mol), thermal_widths(mol, temperature, variant))
    zmatrix, stiff = plain.zmatrix, ring_bonds(mol) | _double_bonds(mol)
    inverting = set(inverting_nitrogens(mol))
    narrow, free = {}, []
    for row, turns in zip(zmatrix.rows, zmatrix.free, strict=True):
        about = frozenset(row[1:3])
        if turns and about in stiff:
            found = _narrow(dihedral(conformers.positions.double(), [row])[:, 0])
            if found is not None:
                narrow[row] = found
        free.append(row not in narrow if turns else row[1] in inverting and min(row) >= 0)
    # Behind a straight angle the three columns of an atom are of the same atoms: told apart by what they are of, in their order.
    known: dict[tuple, list] = {(SIBLING, row): [found] for row, found in narrow.items()}
    for kind, atoms, centre, width in zip(plain.kinds, plain.shape_atoms, plain.centre.tolist(), plain.width.tolist(), strict=True):
        known.setdefault((kind, atoms), []).append((centre, width))
    zmatrix = replace(zmatrix, free=tuple(free))
    size = 3 * len(zmatrix.rows) - 6 - sum(free)
    fresh = Internal(zmatrix, torch.zeros(size), torch.ones(size))
    standards = [known[column].pop(0) for column in zip(fresh.kinds, fresh.shape_atoms, strict=True)]
    return Internal(zmatrix, *torch.tensor(standards, dtype=torch.float64).unbind(1))


def _narrow(torsion: Tensor) -> tuple[float, float] | None:
    """Middle and spread of angles (B,) that stay within ``NARROW`` of their mean; None of others.

    The middle of their range, not the mean: a ring's pucker and its mirror image then lie equally far out, however often either came.
    """
    mean = torch.atan2(torsion.sin().mean(), torsion.cos().mean())
    gap = wrap(torsion - mean)
    middle = 0.5 * (gap.min() + gap.max())
    if float(gap.abs().max()) >= NARROW:
        return None
    return float(wrap(mean + middle)), max(_LEAST, float((gap - middle).square().mean().sqrt()))


def _double_bonds(mol: Chem.Mol) -> set[frozenset[int]]:
    doubles = (Chem.BondType.DOUBLE, Chem.BondType.AROMATIC)
    return {frozenset((b.GetBeginAtomIdx(), b.GetEndAtomIdx())) for b in mol.GetBonds() if b.GetBondType() in doubles}
