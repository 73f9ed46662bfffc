"""Structures of a file for pictures: every k-th of them, so that memory stays flat however many there are."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dig_core.errors import IncompatibleError

__all__ = ["MOST", "Thinned", "thinned"]

MOST = 20_000
"""Structures that a picture is drawn from."""
_CHUNK = 4096


class Thinned(NamedTuple):
    """``positions`` (F, N, 3) Angstrom and ``log_weights`` (F,) of them, None where they are of equal weight; every k-th."""

    positions: np.ndarray
    log_weights: np.ndarray | None
    every: int = 1


def thinned(path: Path, log_weights: np.ndarray, most: int = MOST) -> Thinned | None:
    """Of what :func:`dig_plugins.openmm.write_samples` has written to ``path``; None for a trajectory without MDTraj to read it."""
    every = max(1, -(-len(log_weights) // most))
    if path.suffix == ".npz":
        return Thinned(10 * _arrays(path, every), log_weights[::every], every)
    if path.suffix == ".pdb":  # already resampled to equal weight
        from ..openmm.files import read_frames, read_pdb

        return Thinned(10 * read_frames(path, read_pdb(path).topology)[:most], None)
    try:
        import mdtraj
    except ImportError:
        return None
    parts = [part.xyz for part in mdtraj.iterload(str(path), top=str(path.with_suffix(".pdb")), stride=every, chunk=_CHUNK)]
    return Thinned(10 * np.concatenate(parts).astype(np.float64), log_weights[::every], every)


def _arrays(path: Path, every: int) -> np.ndarray:
    """``positions`` of an ``.npz``, every k-th, read a piece at a time."""
    with zipfile.ZipFile(path) as archive, archive.open("positions.npy") as stream:
        np.lib.format.read_magic(stream)
        (count, atoms, three), fortran, kind = np.lib.format.read_array_header_1_0(stream)
        if fortran or three != 3:
            raise IncompatibleError(f"expected positions (F, N, 3) in {path}, got ({count}, {atoms}, {three}).")
        step, size, kept = _CHUNK - _CHUNK % every or every, atoms * 3 * kind.itemsize, []
        for low in range(0, count, step):
            piece = np.frombuffer(stream.read(min(step, count - low) * size), kind).reshape(-1, atoms, 3)
            kept.append(piece[::every].astype(np.float64))
    return np.concatenate(kept)
