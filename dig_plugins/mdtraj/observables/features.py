"""Features of structures for maps: distances, positions after superposition, sines and cosines of torsions."""

from __future__ import annotations

import numpy as np
import torch

from dig_core.coordinates.measure import dihedral
from dig_core.errors import IncompatibleError

from .inputs import Vector, as_frames
from .superposition import superpose

__all__ = ["aligned", "apart", "backbone_torsions", "distances", "torsions"]


def apart(n: int, least: int = 3, every: int = 1) -> np.ndarray:
    """(P, 2) pairs i < j of ``n`` residues with j - i of at least ``least``, of every ``every``-th residue."""
    first, second = np.triu_indices(len(range(0, n, every)), 1)
    pairs = np.stack([first, second], 1) * every
    return pairs[pairs[:, 1] - pairs[:, 0] >= least]


def distances(frames: Vector, pairs: Vector | None = None) -> np.ndarray:
    """(F, P) Angstrom, distances of ``pairs`` (P, 2) of atoms in ``frames`` (F, N, 3); of :func:`apart` (N) if None."""
    x = as_frames(frames)
    chosen = _atoms(apart(x.shape[1]) if pairs is None else pairs, 2, x.shape[1])
    # One coordinate at a time is ten times faster than rows of three.
    steps = (axis.take(chosen[:, 0], 1) - axis.take(chosen[:, 1], 1) for axis in np.ascontiguousarray(x.transpose(2, 0, 1)))
    return np.sqrt(sum(np.square(step) for step in steps))


def aligned(frames: Vector, target: Vector, *, on: Vector | None = None) -> np.ndarray:
    """(F, 3 N) Angstrom, the positions of ``frames`` superposed on ``target`` (N, 3) by the atoms ``on``, all if None."""
    moved = superpose(frames, target, on=on)
    return moved.reshape(len(moved), -1)


def torsions(frames: Vector, quadruples: Vector) -> np.ndarray:
    """(F, 2 Q) cosines, then sines, of the torsions of ``quadruples`` (Q, 4) of atoms in ``frames`` (F, N, 3)."""
    x = as_frames(frames)
    angles = dihedral(torch.from_numpy(x), torch.from_numpy(_atoms(quadruples, 4, x.shape[1]))).numpy()
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def backbone_torsions(atoms: Vector, follows: Vector) -> np.ndarray:
    """(Q, 4) quadruples of phi (C, N, CA, C), then psi (N, CA, C, N), wherever a residue follows the one before it.

    ``atoms`` (N, 3 or more): the indices of N, CA, C of each residue; ``follows`` (N - 1,): whether residue i + 1 is bonded to
    residue i: ``dig_core.system.protein.residues`` gives both.
    """
    index, bonded = np.asarray(atoms), np.asarray(follows).astype(bool)
    if index.ndim != 2 or index.shape[1] < 3 or bonded.shape != (len(index) - 1,):
        raise IncompatibleError(f"expected atoms (residues, 3) and follows (residues - 1,), got {index.shape} and {bonded.shape}.")
    n, ca, c = index[:, 0], index[:, 1], index[:, 2]
    phi = np.stack([c[:-1], n[1:], ca[1:], c[1:]], 1)[bonded]
    psi = np.stack([n[:-1], ca[:-1], c[:-1], n[1:]], 1)[bonded]
    return np.concatenate([phi, psi])


def _atoms(index: Vector, columns: int, n: int) -> np.ndarray:
    found = np.asarray(index)
    right = found.ndim == 2 and found.shape[1] == columns and len(found) and found.dtype.kind in "iu"
    if not right or found.min() < 0 or found.max() >= n:
        raise IncompatibleError(f"expected indices of atoms (M, {columns}) from 0 to {n - 1}, at least one row, got {found.shape}.")
    return found.astype(np.int64)
