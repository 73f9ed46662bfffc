"""Points of a surface plane modulo a lattice: reduction, wrapping, shortest differences. Two-dimensional, Angstrom."""

from __future__ import annotations

import numpy as np

__all__ = ["nearest", "reduce", "shortest", "wrap"]

_NEIGHBOURS = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])


def reduce(lattice: np.ndarray) -> np.ndarray:
    """(2, 2) the two shortest vectors, rows, that span the same lattice: right-handed, 60 to 90 degrees apart (Lagrange)."""
    a, b = sorted(np.array(lattice, dtype=float), key=np.linalg.norm)
    while True:
        b = b - np.round(b @ a / (a @ a)) * a
        if b @ b >= a @ a * (1 - 1e-12):
            break
        a, b = b, a
    if a[0] < -1e-9 or (abs(a[0]) < 1e-9 and a[1] < 0):
        a = -a
    b = -b if a @ b < -1e-9 else b
    if np.linalg.det([a, b]) > 0:
        return np.array([a, b])
    return np.array([b, a]) if a @ b > 1e-9 else np.array([a, -b])


def wrap(points: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """(..., 2) the same points inside the cell of ``lattice`` (2, 2), whose rows are its vectors."""
    fractions = points @ np.linalg.inv(lattice)
    # Rounding first keeps a point that lies on the edge, but for its last digit, at zero.
    return (fractions - np.floor(fractions + 1e-9)) @ lattice


def shortest(difference: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """(..., 2) the shortest vector that differs from ``difference`` by a lattice vector."""
    basis = reduce(lattice)
    difference = difference - np.round(difference @ np.linalg.inv(basis)) @ basis
    best = difference
    for step in _NEIGHBOURS @ basis:
        trial = difference + step
        closer = (trial**2).sum(-1) < (best**2).sum(-1) - 1e-12
        best = np.where(closer[..., None], trial, best)
    return best


def nearest(points: np.ndarray, targets: np.ndarray, lattice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For ``points`` (n, 2) the index (n,) of the nearest of ``targets`` (m, 2), and the distance (n,) to it."""
    distance = np.linalg.norm(shortest(points[:, None] - targets[None], lattice), axis=-1)
    index = distance.argmin(1)
    return index, distance[np.arange(len(points)), index]
