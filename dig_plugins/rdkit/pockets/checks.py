"""Whether poses are chemically and physically possible: the tests of PoseBusters (Buttenschoen et al., doi:10.1039/D3SC04185A)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from ..convert import to_geometry
from .pocket import Pocket

__all__ = ["PoseChecks", "check_poses"]

_BOUNDS = 0.25  # relative departure of bonds and angles from the bounds of distance geometry
_INNER = 0.3  # how much nearer atoms that are not bonded may be than those bounds
_FLAT = 0.25  # Angstrom out of the plane of an aromatic ring or a double bond
_NEAR = 0.75  # of the sum of van der Waals radii, between ligand and pocket
_SHRUNK, _OVERLAP = 0.8, 0.075  # of radii, and the share of the ligand's volume that the pocket may fill
_GRID = 0.4  # Angstrom
_PLANES = ("[a]1[a][a][a][a][a]1", "[a]1[a][a][a][a]1", "[C;X3;^2](*)(*)=[C;X3;^2](*)(*)")


@dataclass(frozen=True)
class PoseChecks:
    """(n,) bool for each test, True where a pose passes."""

    bonds: np.ndarray
    angles: np.ndarray
    inner: np.ndarray
    flat: np.ndarray
    distance: np.ndarray
    overlap: np.ndarray

    @property
    def ok(self) -> np.ndarray:
        """(n,) bool: all of them."""
        return self.bonds & self.angles & self.inner & self.flat & self.distance & self.overlap

    def shares(self) -> dict[str, float]:
        """Test -> share of poses that pass it, all of them last."""
        names = ("bonds", "angles", "inner", "flat", "distance", "overlap", "ok")
        return {name: float(getattr(self, name).mean()) for name in names}


def check_poses(mol: Chem.Mol, pocket: Pocket) -> PoseChecks:
    """Test every conformer of ``mol``, a ligand in the pocket's frame.

    Bond lengths and angles within 25 % of distance geometry's bounds; no two atoms further along nearer than 70 % of theirs; aromatic
    rings of five and six atoms and double bonds flat to 0.25 Angstrom; heavy atoms of ligand and pocket no nearer than 75 % of their van
    der Waals radii, and the pocket in no more than 7.5 % of the ligand's volume, both of radii times 0.8. Stereochemistry cannot differ.
    """
    positions = to_geometry(mol).positions.numpy()
    bonds, angles, inner = _bounds(mol, positions)
    distance, overlap = _clashes(mol, positions, pocket)
    return PoseChecks(bonds, angles, inner, _flat(mol, positions), distance, overlap)


def _bounds(mol: Chem.Mol, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    limits = rdDistGeom.GetMoleculeBoundsMatrix(mol)
    upper, lower = np.triu(limits, 1), np.tril(limits, -1).T
    paths = Chem.GetDistanceMatrix(mol)
    first, second = np.triu_indices(mol.GetNumAtoms(), 1)
    r = np.linalg.norm(positions[:, first] - positions[:, second], axis=2)
    low, high, apart = lower[first, second], upper[first, second], paths[first, second]
    inside = (r > (1 - _BOUNDS) * low) & (r < (1 + _BOUNDS) * high)
    loose = r > (1 - _INNER) * low
    heavy = np.array([a.GetAtomicNum() > 1 for a in mol.GetAtoms()])
    both = heavy[first] & heavy[second]
    return inside[:, apart == 1].all(1), inside[:, apart == 2].all(1), loose[:, (apart > 2) & both].all(1)


def _flat(mol: Chem.Mol, positions: np.ndarray) -> np.ndarray:
    good = np.ones(len(positions), dtype=bool)
    for smarts in _PLANES:
        for match in mol.GetSubstructMatches(Chem.MolFromSmarts(smarts)):
            x = positions[:, list(match)]
            x = x - x.mean(1, keepdims=True)
            normal = np.linalg.svd(x)[2][:, 2]
            good &= np.abs(np.einsum("nix,nx->ni", x, normal)).max(1) < _FLAT
    return good


def _clashes(mol: Chem.Mol, positions: np.ndarray, pocket: Pocket) -> tuple[np.ndarray, np.ndarray]:
    table = Chem.GetPeriodicTable()
    heavy = [a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() > 1]
    mine = np.array([table.GetRvdw(mol.GetAtomWithIdx(i).GetAtomicNum()) for i in heavy])
    others = np.flatnonzero(pocket.heavy)
    theirs = np.array([table.GetRvdw(pocket.mol.GetAtomWithIdx(int(i)).GetAtomicNum()) for i in others])
    wall, distance, overlap = pocket.positions[others], [], []
    for x in positions[:, heavy]:
        gap = np.linalg.norm(x[:, None] - wall, axis=2)
        distance.append(bool((gap > _NEAR * (mine[:, None] + theirs)).all()))
        overlap.append(_shared(x, _SHRUNK * mine, wall, _SHRUNK * theirs) < _OVERLAP)
    return np.array(distance), np.array(overlap)


def _shared(x: np.ndarray, radii: np.ndarray, wall: np.ndarray, others: np.ndarray) -> float:
    """Share of the volume of spheres at ``x`` that spheres at ``wall`` fill, on a grid."""
    low, high = x.min(0) - radii.max(), x.max(0) + radii.max()
    near = ((wall > low - others.max()) & (wall < high + others.max())).all(1)
    axes = [np.arange(a, b + _GRID, _GRID) for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    points = points[_within(points, x, radii)]
    return float(_within(points, wall[near], others[near]).mean()) if near.any() and len(points) else 0.0


def _within(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """(G,) bool: in any of the spheres."""
    square = (points**2).sum(1)[:, None] + (centres**2).sum(1) - 2 * points @ centres.T
    return (square < radii**2).any(1)
