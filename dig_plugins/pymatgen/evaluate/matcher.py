"""One pair of structures: the distance that pymatgen's StructureMatcher finds, for structures that are reduced once and met often."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from pymatgen.core import Lattice, Structure
from pymatgen.util.coord_cython import is_coord_subset_pbc, pbc_shortest_vectors
from scipy.optimize import linear_sum_assignment

__all__ = ["NOTHING", "TOLERANCES", "Reduced", "Tolerance", "reduce", "rms_distance"]


class Tolerance(NamedTuple):
    """Of StructureMatcher: ``ltol`` relative lengths, ``stol`` distance over (volume per atom)^(1/3), ``angle_tol`` degrees."""

    ltol: float
    stol: float
    angle_tol: float

    def __str__(self) -> str:
        return f"{self.ltol:g}/{self.stol:g}/{self.angle_tol:g}"


TOLERANCES = {
    "loose": Tolerance(0.3, 0.5, 10.0),
    "default": Tolerance(0.2, 0.3, 5.0),
    "tight": Tolerance(0.1, 0.1, 2.0),
}
"""What the field reports, which random coordinates pass nine times in ten; pymatgen's default; one that means the same minimum."""


class Reduced(NamedTuple):
    """A structure as it is matched: Niggli cell, of one unit of volume per atom.

    ``species`` (N,) atomic numbers, ``fractions`` (N, 3), ``lattice`` (3, 3) rows, ``lengths`` (3,), ``angles`` (3,) degrees.
    """

    species: np.ndarray
    fractions: np.ndarray
    lattice: np.ndarray
    lengths: np.ndarray
    angles: np.ndarray

    def __len__(self) -> int:
        return len(self.species)


NOTHING = Reduced(*(np.zeros(shape) for shape in (0, (0, 3), (3, 3), 3, 3)))
"""Matches nothing, itself neither."""


def reduce(structure: Structure, primitive_cell: bool = True) -> Reduced:
    """``structure`` in its Niggli cell, after that the primitive one if wanted, as StructureMatcher does it."""
    found = structure.get_reduced_structure(reduction_algo="niggli")
    if primitive_cell:
        found = found.get_primitive_structure()
    lattice = Lattice(found.lattice.matrix * (len(found) / found.volume) ** (1 / 3))
    species = np.array([site.specie.Z for site in found])
    return Reduced(
        species, np.array(found.frac_coords), lattice.matrix, np.array(lattice.abc), np.array(lattice.angles)
    )


def rms_distance(first: Reduced, second: Reduced, tolerance: Tolerance) -> float:
    """Root mean square distance of paired atoms over (volume per atom)^(1/3), the least over all mappings; NaN for no match.

    That of ``StructureMatcher(ltol, stol, angle_tol).get_rms_dist`` with its scaling of volumes, on which peers' match rates stand:
    a pair matches where this is below ``stol``, even if one atom is farther off.
    """
    rare = _rarest(first.species, second.species)
    if rare is None:
        return math.nan
    forbidden = (second.species[:, None] != first.species).astype(np.int64)
    anchors, anchor = np.flatnonzero(first.species == rare), int(np.flatnonzero(second.species == rare)[0])
    cartesian, best = first.fractions @ first.lattice, math.inf
    for basis in _mappings(first, second, tolerance):
        fractions = cartesian @ np.linalg.inv(basis)
        fractions -= np.floor(fractions)
        average = _Average(basis, second, tolerance.stol)
        for i in anchors:
            moved = second.fractions + (fractions[i] - second.fractions[anchor])
            if is_coord_subset_pbc(moved, fractions, average.reach, forbidden):
                best = min(best, average.distance(fractions, moved, forbidden))
                if best < 1e-5:
                    return best
    return best if best < tolerance.stol else math.nan


class _Average:
    """The cell of mean lengths and angles, in which distances are measured.

    ``reach`` (3,): fractions of it, ``stol`` times the unit of length either way, with which atoms may be apart.
    """

    def __init__(self, basis: np.ndarray, second: Reduced, stol: float):
        lengths = np.sqrt((basis**2).sum(1))
        cosines = np.array([basis[j] @ basis[k] / (lengths[j] * lengths[k]) for j, k in ((1, 2), (0, 2), (0, 1))])
        self.lengths = (lengths + second.lengths) / 2
        self.angles = (np.degrees(np.arccos(np.clip(cosines, -1, 1))) + second.angles) / 2
        cosines, sines = np.cos(np.radians(self.angles)), np.sin(np.radians(self.angles))
        volume = self.lengths.prod() * math.sqrt(max(1 - (cosines**2).sum() + 2 * cosines.prod(), 1e-12))
        self.unit = (volume / len(second)) ** (1 / 3)
        self.span = 2 * stol * self.unit
        self.reach = self.span * self.lengths.prod() / self.lengths * sines / volume
        self._lattice: Lattice | None = None

    def distance(self, fractions: np.ndarray, moved: np.ndarray, forbidden: np.ndarray) -> float:
        """Root mean square distance in units of (volume per atom)^(1/3), of the best pairing after the best shift."""
        if self._lattice is None:
            self._lattice = Lattice.from_parameters(*self.lengths, *self.angles)
            short = self._lattice.get_lll_reduced_lattice().matrix
            self._limit = self.span * np.sqrt((np.linalg.inv(short) ** 2).sum(0))
        vectors, squares = pbc_shortest_vectors(
            self._lattice, moved, fractions, forbidden, return_d2=True, lll_frac_tol=self._limit
        )
        _, partner = linear_sum_assignment(squares)
        gap = vectors[np.arange(len(partner)), partner]
        return float(np.sqrt(((gap - gap.mean(0)) ** 2).sum(1).mean())) / self.unit


def _rarest(first: np.ndarray, second: np.ndarray) -> int | None:
    """The element with the fewest atoms, None if the two structures do not hold the same atoms."""
    kinds, counts = np.unique(first, return_counts=True)
    others, their = np.unique(second, return_counts=True)
    same = len(first) == len(second) > 0 and np.array_equal(kinds, others) and np.array_equal(counts, their)
    return int(kinds[counts.argmin()]) if same else None


def _mappings(first: Reduced, second: Reduced, tolerance: Tolerance) -> Iterator[np.ndarray]:
    """Bases (3, 3) of the first lattice, each of one cell, whose lengths and angles are the second's within the tolerance."""
    points = _points(first.lattice, second.lengths.max() * (1 + tolerance.ltol))
    norms = np.sqrt((points**2).sum(1))
    ratio = norms[:, None] / second.lengths
    a, b, c = (
        np.flatnonzero((column > 1 / (1 + tolerance.ltol)) & (column < 1 + tolerance.ltol)) for column in ratio.T
    )
    if not (len(a) and len(b) and len(c)):
        return
    units = points / norms[:, None]
    alpha, beta, gamma = second.angles

    def near(p: np.ndarray, q: np.ndarray, angle: float) -> np.ndarray:
        return np.abs(np.degrees(np.arccos(np.clip(units[p] @ units[q].T, -1, 1))) - angle) <= tolerance.angle_tol

    triples = near(a, b, gamma)[:, :, None] & near(a, c, beta)[:, None, :] & near(b, c, alpha)[None]
    for i, j, k in np.argwhere(triples):
        basis = points[[a[i], b[j], c[k]]]
        # The first lattice has the volume of one cell, len(first): other multiples are supercells or flat.
        if 0.5 < abs(np.linalg.det(basis)) / len(first) < 1.5:
            yield basis


def _points(lattice: np.ndarray, radius: float) -> np.ndarray:
    """(M, 3) lattice points within ``radius`` of the origin, without it."""
    reach = np.floor(radius * np.sqrt((np.linalg.inv(lattice) ** 2).sum(0)) + 1e-8).astype(int)
    counts = np.stack(np.meshgrid(*[np.arange(-n, n + 1) for n in reach], indexing="ij"), -1).reshape(-1, 3)
    points = counts @ lattice
    square = (points**2).sum(1)
    return points[(square <= radius**2) & (square > 1e-12)]
