"""Conformers at rest: MMFF94 minima, a search for more of them by turning bonds, and the distinct ones, lowest first."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers as forcefields
from rdkit.Chem import rdMolTransforms as transforms

from dig_core.errors import IncompatibleError, StateError

from .check import check_parameters
from .compare import conformer_rmsd
from .convert import check_structure, embed, to_geometry, with_conformers

__all__ = ["distinct_minima", "lowest_apart", "minimised", "searched"]

_STEPS = 2000
_SAME, _ALIKE = 0.02, 0.01  # kcal/mol; of the radii of gyration: minima that agree within both are one but for symmetry
_ROUNDS, _QUIET = 4, 2


def minimised(mol: Chem.Mol, variant: str = "MMFF94s") -> tuple[Chem.Mol, np.ndarray]:
    """A copy with every conformer at its minimum, and the energies (n,) in kcal/mol. UnsupportedError without MMFF parameters."""
    check_parameters(mol)
    copy = Chem.Mol(mol)
    found = forcefields.MMFFOptimizeMoleculeConfs(copy, mmffVariant=variant, maxIters=_STEPS)
    # Of the copy the positions alone: RDKit leaves MMFF's idea of aromatic bonds on it.
    return with_conformers(mol, to_geometry(copy)), np.array([energy for _, energy in found])


def searched(rough: Chem.Mol, variant: str = "MMFF94s", *, window: float = 6.0, seed: int = 0) -> tuple[Chem.Mol, np.ndarray]:
    """Minima that the conformers of ``rough`` lead to, and those found beyond them, with energies (n,) in kcal/mol; not all distinct.

    Distance geometry follows the torsions that crystals prefer, and MMFF94 may not: a cis amide that it prefers is never made. So a
    quarter as many conformers come from distance geometry without preferences, and rounds of turns follow: one or two single bonds
    of a low minimum are set to any angle, and the structure is minimised. It ends after two rounds in a row, each of an eighth of the
    conformers, that find nothing new in the lower half of ``window`` kcal/mol, or after four. Only the stereoisomer of ``rough`` counts.
    """
    n, rng, start = rough.GetNumConformers(), np.random.default_rng(seed), [to_geometry(rough).positions.numpy()]
    with suppress(StateError):
        start.append(to_geometry(embed(rough, max(1, n // 4), seed=seed + 1, preferences=False)).positions.numpy())
    low, energy = minimised(with_conformers(rough, np.concatenate(start)), variant)
    bonds, quiet = _turning(rough), 0
    for _ in range(_ROUNDS if bonds else 0):
        more, found = minimised(_turned(low, energy, bonds, max(4, n // 8), window, rng), variant)
        fresh = _fresh(low, energy, more, found, window)
        positions = np.concatenate([to_geometry(low).positions.numpy(), to_geometry(more).positions.numpy()[fresh]])
        low, energy = with_conformers(rough, positions), np.concatenate([energy, found[fresh]])
        quiet = 0 if bool((found[fresh] < energy.min() + 0.5 * window).any()) else quiet + 1
        if quiet == _QUIET:
            break
    return low, energy


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


def _turning(mol: Chem.Mol) -> list[tuple[int, int, int, int]]:
    """A torsion for each single bond outside of rings whose turn gives another structure: amides and hydroxyls too, no methyl."""

    def side(atom: Chem.Atom, other: Chem.Atom) -> int | None:
        around = [a for a in atom.GetNeighbors() if a.GetIdx() != other.GetIdx()]
        top = len(around) == 3 and all(a.GetAtomicNum() == 1 for a in around)
        straight = atom.GetHybridization() == Chem.HybridizationType.SP
        return None if not around or top or straight else around[0].GetIdx()

    found = []
    for bond in mol.GetBonds():
        if bond.GetBondType() == Chem.BondType.SINGLE and not bond.IsInRing():
            one, other = bond.GetBeginAtom(), bond.GetEndAtom()
            first, last = side(one, other), side(other, one)
            if first is not None and last is not None:
                found.append((first, one.GetIdx(), other.GetIdx(), last))
    return found


def _turned(mol: Chem.Mol, energy: np.ndarray, bonds: list, n: int, window: float, rng: np.random.Generator) -> Chem.Mol:
    """``n`` minima, the lower the oftener, each with one or two bonds at any angle."""
    weight = np.exp(-3 * (energy - energy.min()) / window)
    chosen = rng.choice(len(energy), n, p=weight / weight.sum())
    copy = with_conformers(mol, to_geometry(mol).positions.numpy()[chosen])
    for conformer in copy.GetConformers():
        for k in rng.choice(len(bonds), min(len(bonds), int(rng.integers(1, 3))), replace=False):
            transforms.SetDihedralDeg(conformer, *bonds[k], float(rng.uniform(-180, 180)))
    return copy


def _fresh(known: Chem.Mol, energy: np.ndarray, found: Chem.Mol, energies: np.ndarray, window: float) -> list[int]:
    """Which of the minima ``found`` are within the window, of the stereoisomer that the molecule is, and unlike all that are known."""
    radii, seen, fresh = _radii(found), [(e, r) for e, r in zip(energy, _radii(known), strict=True)], []
    for i in np.argsort(energies):
        if energies[i] > min(energy.min(), energies.min()) + window:
            break
        if any(abs(energies[i] - e) < _SAME and np.allclose(radii[i], r, rtol=_ALIKE) for e, r in seen):
            continue
        with suppress(IncompatibleError):
            check_structure(found, found.GetConformers()[int(i)].GetId())
            fresh.append(int(i))
            seen.append((energies[i], radii[i]))
    return fresh


def _radii(mol: Chem.Mol) -> np.ndarray:
    """(n, 3) principal radii of gyration, Angstrom, all atoms alike: the same for mirror images and equivalent atoms exchanged."""
    positions = to_geometry(mol).positions.numpy()
    positions = positions - positions.mean(1, keepdims=True)
    return np.sqrt(np.linalg.eigvalsh(positions.transpose(0, 2, 1) @ positions / positions.shape[1]).clip(1e-4))
