"""The surface's own symmetry: in-plane translations, rotations and mirrors that map a slab onto itself, without a library."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase import Atoms

from .frame import SlabFrame
from .plane import reduce, shortest

__all__ = ["Operation", "operations", "primitive_lattice"]


class Operation(NamedTuple):
    """xy -> ``matrix`` (2, 2) @ xy + ``shift`` (2,) Angstrom, in the axes of the slab's frame."""

    matrix: np.ndarray
    shift: np.ndarray

    def __call__(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2) -> (..., 2)."""
        return xy @ self.matrix.T + self.shift


def primitive_lattice(slab: Atoms, frame: SlabFrame, tol: float = 0.3) -> np.ndarray:
    """(2, 2) Angstrom, the shortest vectors by which the slab's atoms repeat within ``tol``, in the frame's axes."""
    shifts = [shift for shift in _shifts(slab, frame, np.eye(2), tol) if np.linalg.norm(shift) > tol]
    return _span([*frame.lattice, *shifts], abs(np.linalg.det(frame.lattice)) / (1 + len(shifts)))


def operations(slab: Atoms, frame: SlabFrame, tol: float = 0.3, lattice: np.ndarray | None = None) -> list[Operation]:
    """Rotations and mirrors of the plane, with their shifts, that map every atom onto one of its element within ``tol`` Angstrom.

    One shift a matrix: the others differ by a vector of ``lattice``, the primitive one of the slab if not given. The identity is first.
    """
    lattice = primitive_lattice(slab, frame, tol) if lattice is None else lattice
    found = []
    for matrix in _point_group(lattice):
        shifts = _shifts(slab, frame, matrix, tol)
        if len(shifts):
            found.append(Operation(matrix, shortest(shifts[0], lattice)))
    return found


def _point_group(lattice: np.ndarray) -> list[np.ndarray]:
    """Orthogonal matrices that map the lattice onto itself, to 2 %."""
    basis = reduce(lattice)
    steps = np.array([(i, j) for i in range(-2, 3) for j in range(-2, 3) if (i, j) != (0, 0)]) @ basis
    scale = np.linalg.norm(basis[0])
    matrices = [np.eye(2)]
    for a in steps:
        for b in steps:
            matrix = np.linalg.solve(basis, np.array([a, b])).T
            if np.abs(matrix @ matrix.T - np.eye(2)).max() > 0.02 or np.linalg.norm(matrix - np.eye(2)) < 0.02 * scale:
                continue
            left, _, right = np.linalg.svd(matrix)
            matrices.append(left @ right)
    return matrices


def _shifts(slab: Atoms, frame: SlabFrame, matrix: np.ndarray, tol: float) -> np.ndarray:
    """(k, 2) shifts, refined by least squares, that with ``matrix`` map the slab onto itself; modulo the cell."""
    xy, height = frame.xy(slab.positions), frame.height(slab.positions)
    turned = xy @ matrix.T
    kinds = _rarest(slab.numbers, height, tol)
    found: list[np.ndarray] = []
    for target in kinds:
        shift = shortest(xy[target] - turned[kinds[0]], frame.lattice)
        for _ in range(2):
            image, rest = _match(turned + shift, xy, height, slab.numbers, frame.lattice)
            shift = shift + rest.mean(0)
        away = np.hypot(np.linalg.norm(rest - rest.mean(0), axis=1), height[image] - height)
        if away.max() < tol and len(np.unique(image)) == len(image):
            if all(np.linalg.norm(shortest(shift - other, frame.lattice)) > tol for other in found):
                found.append(shift)
    return np.array(found).reshape(-1, 2)


def _rarest(numbers: np.ndarray, height: np.ndarray, tol: float) -> np.ndarray:
    """Indices of the smallest set of like atoms at like height: each operation maps the first onto one of these."""
    alike = [np.flatnonzero((numbers == n) & (np.abs(height - h) < tol)) for n, h in zip(numbers, height, strict=True)]
    return min(alike, key=len)


def _match(points, xy, height, numbers, lattice) -> tuple[np.ndarray, np.ndarray]:
    """For every moved atom the nearest like atom of its height, and the in-plane vector (n, 2) that leads there."""
    rest = shortest(xy[None] - points[:, None], lattice)
    distance = np.hypot(np.linalg.norm(rest, axis=-1), height[None] - height[:, None])
    distance = np.where(numbers[None] == numbers[:, None], distance, np.inf)
    image = distance.argmin(1)
    return image, rest[np.arange(len(points)), image]


def _span(vectors: list[np.ndarray], area: float) -> np.ndarray:
    """A basis of the lattice that ``vectors`` generate: the two of them, or of their images, whose cell has that area."""
    cell = np.array(vectors[:2])
    steps = [np.array(v) + np.array([i, j]) @ cell for v in vectors for i in (-1, 0, 1) for j in (-1, 0, 1)]
    steps = sorted((s for s in steps if np.linalg.norm(s) > 1e-6), key=np.linalg.norm)
    for k, b in enumerate(steps):
        for a in steps[:k]:
            if abs(abs(np.linalg.det([a, b])) / area - 1) < 0.1:
                return reduce(_commensurate(np.array([a, b]), cell))
    return reduce(cell)


def _commensurate(basis: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """The basis with its cell's vectors exact: what positions left uncertain is taken from the cell."""
    return np.linalg.solve(np.round(cell @ np.linalg.inv(basis)), cell)
