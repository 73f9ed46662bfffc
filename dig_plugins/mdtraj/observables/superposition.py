"""Superposition of structures, and the root mean square deviation that is left: Kabsch, doi:10.1107/S0567739478001680."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dig_core.errors import IncompatibleError

from .inputs import Vector, as_frames, as_target, as_weights

__all__ = ["Motion", "best_motion", "pairwise_rmsd", "rmsd", "rotations", "superpose"]

_PAIRS = 250_000


class Motion(NamedTuple):
    """Rigid motions of F frames: ``rotation`` (F, 3, 3), determinant +1, then ``shift`` (F, 3) in Angstrom."""

    rotation: np.ndarray
    shift: np.ndarray

    def __call__(self, frames: Vector) -> np.ndarray:
        """``frames`` (F, N, 3) moved, Angstrom."""
        return as_frames(frames) @ self.rotation.swapaxes(1, 2) + self.shift[:, None]


def rotations(covariance: np.ndarray) -> np.ndarray:
    """The rotations R (..., 3, 3) with the largest trace of R^T C for C = sum of y x^T: they turn x onto y. Never a reflection."""
    left, _, right = np.linalg.svd(covariance)
    left[..., 2] *= np.sign(np.linalg.det(left @ right))[..., None]
    return left @ right


def best_motion(frames: Vector, target: Vector, *, on: Vector | None = None, masses: Vector | None = None) -> Motion:
    """The motion of each of ``frames`` (F, N, 3) with the least square deviation from ``target``, (N, 3) or (F, N, 3).

    ``on``: indices of the atoms that count, all if None; ``masses`` (N,): how much each counts, equally if None.
    IncompatibleError for shapes that do not fit.
    """
    x = as_frames(frames)
    y, chosen = as_target(target, x), _indices(on, x.shape[1])
    mass = as_weights(as_weights(masses, x.shape[1])[chosen], len(chosen))
    x, y = x[:, chosen], y[:, chosen]
    x_mean, y_mean = mass @ x, mass @ y
    turn = rotations(((y - y_mean[:, None]) * mass[:, None]).swapaxes(1, 2) @ (x - x_mean[:, None]))
    return Motion(turn, y_mean - np.einsum("fij,fj->fi", turn, x_mean))


def superpose(frames: Vector, target: Vector, *, on: Vector | None = None, masses: Vector | None = None) -> np.ndarray:
    """``frames`` (F, N, 3) moved by :func:`best_motion` onto ``target``, Angstrom."""
    return best_motion(frames, target, on=on, masses=masses)(frames)


def rmsd(frames: Vector, target: Vector, *, on: Vector | None = None, over: Vector | None = None) -> np.ndarray:
    """(F,) Angstrom, root mean square deviation of ``frames`` (F, N, 3) from ``target``, (N, 3) or (F, N, 3).

    ``on``: indices of the atoms that are superposed, all if None; ``over``: those that are measured, the same as ``on`` if None.
    Two domains: superpose on one, measure over the other.
    """
    x = as_frames(frames)
    y = as_target(target, x)
    measured = _indices(on if over is None else over, x.shape[1])
    gap = (superpose(x, y, on=on) - y)[:, measured]
    return np.sqrt(np.square(gap).sum(2).mean(1))


def pairwise_rmsd(frames: Vector, others: Vector | None = None) -> np.ndarray:
    """(F, G) Angstrom, each of ``frames`` (F, N, 3) superposed on each of ``others`` (G, N, 3), on ``frames`` themselves if None.

    From inner products and singular values alone, no atom is moved: good to some 1e-6 Angstrom.
    """
    x = as_frames(frames)
    y = x if others is None else as_frames(others, "the others")
    n = x.shape[1]
    if y.shape[1] != n:
        raise IncompatibleError(f"expected the {n} atoms of the frames, got {y.shape[1]}; choose the atoms that both have.")
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    size = np.square(x).sum((1, 2))[:, None] + np.square(y).sum((1, 2))
    columns = y.transpose(1, 0, 2).reshape(n, -1)
    found, rows = np.empty((len(x), len(y))), max(1, _PAIRS // len(y))
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        covariance = part.transpose(0, 2, 1).reshape(-1, n) @ columns
        covariance = covariance.reshape(len(part), 3, len(y), 3).transpose(0, 2, 1, 3)
        values = np.linalg.svd(covariance, compute_uv=False)
        values[..., 2] *= np.sign(np.linalg.det(covariance))
        found[start : start + rows] = size[start : start + rows] - 2 * values.sum(-1)
    found = np.sqrt(np.maximum(found, 0) / n)
    if others is None:
        np.fill_diagonal(found, 0)
    return found


def _indices(chosen: Vector | None, n: int) -> np.ndarray:
    """Indices of atoms, from indices or from a mask (N,)."""
    if chosen is None:
        return np.arange(n)
    found = np.asarray(chosen)
    found = np.flatnonzero(found) if found.dtype == bool and found.shape == (n,) else found
    if found.ndim != 1 or not len(found) or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= n:
        raise IncompatibleError(f"expected indices of atoms from 0 to {n - 1}, or a mask of {n}, at least one, got {chosen!r}.")
    return found
