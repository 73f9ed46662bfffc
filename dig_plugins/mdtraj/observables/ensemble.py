"""Averages over an ensemble: contacts, the mean structure, fluctuations about it, radius of gyration."""

from __future__ import annotations

import numpy as np

from dig_core.errors import IncompatibleError

from .inputs import Vector, as_frames, as_weights
from .superposition import superpose

__all__ = ["contact_map", "correlation", "mean_structure", "radius_of_gyration", "rmsf"]

_ENTRIES = 4_000_000
_CHANGE, _ROUNDS = 1e-6, 100


def contact_map(frames: Vector, cutoff: float = 8.0, *, weights: Vector | None = None) -> np.ndarray:
    """(N, N) probability that two atoms of ``frames`` (F, N, 3) are nearer than ``cutoff`` Angstrom, 1 on the diagonal.

    ``weights`` (F,) of the frames. 8 Angstrom is usual for C-alphas.
    """
    x = as_frames(frames)
    share, n = as_weights(weights, len(x)), x.shape[1]
    x = x - x.mean(1, keepdims=True)
    found, rows = np.zeros((n, n)), max(1, _ENTRIES // n**2)
    for start in range(0, len(x), rows):
        part, square = x[start : start + rows], np.square(x[start : start + rows]).sum(-1)
        gap = square[:, :, None] + square[:, None] - 2 * part @ part.swapaxes(1, 2)
        found += np.tensordot(share[start : start + rows], (gap < cutoff**2).astype(np.float64), 1)
    return found


def mean_structure(frames: Vector, *, on: Vector | None = None, weights: Vector | None = None) -> np.ndarray:
    """(N, 3) Angstrom, the mean of ``frames`` (F, N, 3) after superposing them on that mean by the atoms ``on``, all if None.

    Found by iteration from the heaviest frame, or the first of equal ones, until no atom moves by 1e-6 Angstrom.
    """
    x = as_frames(frames)
    share = as_weights(weights, len(x))
    mean = x[share.argmax()]
    for _ in range(_ROUNDS):
        before, mean = mean, np.tensordot(share, superpose(x, mean, on=on), 1)
        if np.abs(mean - before).max() < _CHANGE:
            break
    return mean


def rmsf(frames: Vector, *, on: Vector | None = None, weights: Vector | None = None) -> np.ndarray:
    """(N,) Angstrom, root mean square fluctuation of each atom about :func:`mean_structure`, frames superposed on it."""
    x = as_frames(frames)
    share, mean = as_weights(weights, len(x)), mean_structure(x, on=on, weights=weights)
    return np.sqrt(share @ np.square(superpose(x, mean, on=on) - mean).sum(-1))


def correlation(first: Vector, second: Vector) -> float:
    """Pearson's correlation of two profiles (N,), such as the fluctuations of two ensembles. IncompatibleError for a flat one."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (first, second))
    if a.ndim != 1 or a.shape != b.shape or not np.ptp(a) > 0 or not np.ptp(b) > 0:
        raise IncompatibleError(f"expected two profiles of one length that are not flat, got shapes {a.shape} and {b.shape}.")
    return float(np.corrcoef(a, b)[0, 1])


def radius_of_gyration(frames: Vector, *, masses: Vector | None = None) -> np.ndarray:
    """(F,) Angstrom, root mean square distance of the atoms of ``frames`` (F, N, 3) from their centre, weighted by ``masses`` (N,)."""
    x = as_frames(frames)
    mass = as_weights(masses, x.shape[1])
    return np.sqrt(np.square(x - (mass @ x)[:, None]).sum(-1) @ mass)
