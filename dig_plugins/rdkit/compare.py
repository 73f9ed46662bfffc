"""How far conformers are from each other: RMSD of heavy atoms after superposition, the least over the symmetries of the graph."""

from __future__ import annotations

import numpy as np
from rdkit import Chem

from dig_core.errors import IncompatibleError

from .convert import to_geometry

__all__ = ["conformer_rmsd", "heavy_symmetries"]

_MOST = 1000  # symmetries: three trifluoromethyl groups and a phenyl ring have 432
_ROWS = 200_000


def heavy_symmetries(mol: Chem.Mol, most: int = _MOST) -> np.ndarray:
    """(S, M) indices of heavy atoms, the order of the molecule first, then every other that its graph does not tell from it.

    Bond orders and charges are left out, so that the oxygens of a carboxylate or nitro group are alike; numbers of hydrogens are not.
    No more than ``most``, which then is an upper bound of the RMSD's minimum.
    """
    heavy = [a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() > 1]
    place = {atom: number for number, atom in enumerate(heavy)}
    flat = Chem.RWMol()
    for atom in heavy:
        known = mol.GetAtomWithIdx(atom)
        plain = Chem.Atom(known.GetAtomicNum())
        plain.SetNoImplicit(True)
        # As an isotope, which matching compares.
        plain.SetIsotope(1 + known.GetTotalNumHs(includeNeighbors=True))
        flat.AddAtom(plain)
    for bond in mol.GetBonds():
        ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if all(end in place for end in ends):
            flat.AddBond(place[ends[0]], place[ends[1]], Chem.BondType.SINGLE)
    found = flat.GetSubstructMatches(flat, uniquify=False, maxMatches=most)
    own = tuple(range(len(heavy)))
    return np.array(heavy)[np.array([own, *(match for match in found if match != own)])]


def conformer_rmsd(a: Chem.Mol, b: Chem.Mol) -> np.ndarray:
    """(n, m) Angstrom between the n conformers of ``a`` and the m of ``b``, a molecule with the same order of atoms.

    Superposition by Kabsch, doi:10.1107/S0567739476001873. IncompatibleError for molecules with other elements.
    """
    if [x.GetAtomicNum() for x in a.GetAtoms()] != [x.GetAtomicNum() for x in b.GetAtoms()]:
        raise IncompatibleError("expected two molecules with the same atoms in the same order: take the conformers of one.")
    symmetries = heavy_symmetries(a)
    fixed, moved = to_geometry(a).positions.numpy()[:, symmetries[0]], to_geometry(b).positions.numpy()[:, symmetries]
    fixed, moved = (x - x.mean(-2, keepdims=True) for x in (fixed, moved))
    least = np.empty((len(fixed), len(moved)))
    step = max(1, _ROWS // (len(moved) * len(symmetries)))
    for low in range(0, len(fixed), step):
        some = fixed[low : low + step]
        cross = np.einsum("aix,bsiy->absxy", some, moved, optimize=True)
        singular = np.linalg.svd(cross, compute_uv=False)
        singular[..., 2] *= np.sign(np.linalg.det(cross))
        size = (some**2).sum((1, 2))[:, None, None] + (moved**2).sum((2, 3))
        least[low : low + step] = (size - 2 * singular.sum(-1)).min(-1).clip(0) / len(symmetries[0])
    return np.sqrt(least)
