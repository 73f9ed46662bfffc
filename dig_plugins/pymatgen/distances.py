"""Distances in a crystal over all of its images, and the vector of their averages by which alike structures are found."""

from __future__ import annotations

import numpy as np
from pymatgen.core import Lattice, Structure

__all__ = ["closest", "fingerprint", "neighbour_distances", "within"]

NEIGHBOURS = 96
_MANY = 1000


def neighbour_distances(structure: Structure, k: int) -> np.ndarray:
    """(N, k) Angstrom, from each atom to its ``k`` nearest, images included, the nearest first."""
    fractions, cell, n = structure.frac_coords, structure.lattice.matrix, len(structure)
    # A ball that holds k + 1 atoms on average; where the farthest of the k is beyond it, once more with that radius.
    radius = 1.15 * (3 * (k + 1) * structure.volume / (4 * np.pi * n)) ** (1 / 3)
    while True:
        square = np.partition(_squares(fractions, cell, radius, k + 1), k, axis=1)[:, : k + 1]
        farthest = np.sqrt(square.max())
        if farthest <= radius:
            return np.sqrt(np.sort(square, axis=1)[:, 1:])
        radius = farthest * (1 + 1e-9)


def within(structure: Structure, cutoff: float) -> np.ndarray:
    """(N,) number of atoms, images included, nearer than ``cutoff`` Angstrom to each atom."""
    return (_squares(structure.frac_coords, structure.lattice.matrix, cutoff, 0) < cutoff**2).sum(1) - 1


def closest(structure: Structure, radii: np.ndarray) -> tuple[float, float]:
    """The shortest distance between atoms, images included, in Angstrom, and the least over the sum of their ``radii`` (N,)."""
    n = len(structure)
    square = _squares(structure.frac_coords, structure.lattice.matrix, max(4.0, 2 * radii.max()), 2 * n).reshape(
        n, n, -1
    )
    # Each atom is its own nearest image.
    diagonal = np.arange(n)
    square[diagonal, diagonal, square[diagonal, diagonal].argmin(1)] = np.inf
    distance = np.sqrt(square.min(2))
    return float(distance.min()), float((distance / (radii[:, None] + radii)).min())


def fingerprint(structure: Structure, k: int = NEIGHBOURS) -> np.ndarray:
    """Average distance to the 1st, 2nd, ..., k-th neighbour, (elements * k,), one stretch an element, over (volume per atom)^(1/3).

    Invariant under every choice of cell, supercell, origin, pose and order of atoms, and continuous in positions and cell:
    average minimum distances (Widdowson et al., doi:10.46793/match.87-3.529W).
    """
    scale = (len(structure) / structure.volume) ** (1 / 3)
    distances = neighbour_distances(structure, k) * scale
    numbers = np.array([site.specie.Z for site in structure])
    return np.concatenate([distances[numbers == z].mean(0) for z in np.unique(numbers)])


def _squares(fractions: np.ndarray, cell: np.ndarray, radius: float, least: int) -> np.ndarray:
    """(N, M) squared distances from each atom to every atom's images, all that are within ``radius`` among them, itself too.

    At least ``least`` a row.
    """
    reach = _reach(cell, radius)
    if np.prod(2 * reach + 1) > _MANY:
        # A skew basis: a short one of the same lattice has fewer images in the ball.
        short = Lattice(cell).get_lll_reduced_lattice().matrix
        fractions, cell = fractions @ cell @ np.linalg.inv(short), short
        reach = _reach(cell, radius)
    gap = fractions - fractions[:, None]
    gap = gap - np.floor(gap + 0.5)
    while len(fractions) * np.prod(2 * reach + 1) < least:
        reach = reach + 1
    images = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), -1).reshape(-1, 3)
    vectors = (gap @ cell)[:, :, None] + images @ cell
    return np.einsum("ijkx,ijkx->ijk", vectors, vectors).reshape(len(fractions), -1)


def _reach(cell: np.ndarray, radius: float) -> np.ndarray:
    """(3,) how many cells either way a ball reaches, for gaps that are up to half a cell themselves."""
    return np.ceil(radius * np.linalg.norm(np.linalg.inv(cell), axis=0) + 0.5 - 1e-12).astype(int)
