"""Positions from trajectory files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dig_core.errors import IncompatibleError

__all__ = ["read_positions"]


def read_positions(trajectory: str | Path, structure: str | Path) -> np.ndarray:
    """(F, N, 3) nm of every frame in ``trajectory`` (XTC, DCD, HDF5, ... as MDTraj reads them), atoms as in ``structure``.

    Raises IncompatibleError for a file that cannot be read or has another number of atoms.
    """
    try:
        import mdtraj
    except ImportError as error:
        raise ImportError("reading trajectories needs MDTraj: pip install 'dig-plugins[mdtraj]'") from error
    for path in (trajectory, structure):
        if not Path(path).is_file():
            raise IncompatibleError(f"there is no file {path}: expected a trajectory and the structure of its atoms.")
    try:
        return np.asarray(mdtraj.load(str(trajectory), top=str(structure)).xyz)
    except (ValueError, OSError, RuntimeError) as error:
        raise IncompatibleError(f"{trajectory} cannot be read with the atoms of {structure}: {error}") from error
