"""Structures of a molecule in files: PDB, XTC, DCD, HDF5 and what Ensemble.save writes, positions in nm, atoms in the topology's order."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from openmm import app, unit

from dig_core.errors import IncompatibleError, StateError
from dig_core.files import finished, read_arrays

from ..lazy import check_hdf5

__all__ = ["TRAJECTORIES", "Trajectory", "read_frames", "read_pdb", "writable", "write_arrays", "write_frames", "write_models"]

TRAJECTORIES = (".xtc", ".dcd", ".h5")
"""XTC (1e-4 nm), DCD, and HDF5 as MDTraj has it, which holds the topology; both of single precision."""


def read_pdb(path: str | Path) -> app.PDBFile:
    """A PDB file. IncompatibleError where there is none, or it cannot be read."""
    if not Path(path).is_file():
        raise IncompatibleError(f"there is no structure {path}: expected a PDB file with all hydrogens.")
    try:
        found = app.PDBFile(str(path))
    except Exception as error:  # OpenMM's reader asserts, besides whatever its parts raise
        raise IncompatibleError(f"{path} cannot be read as a PDB file: {type(error).__name__}: {error}.") from error
    if not found.topology.getNumAtoms():
        raise IncompatibleError(f"{path} holds no atoms: expected a PDB file with all hydrogens.")
    return found


def read_frames(path: str | Path, topology: app.Topology) -> np.ndarray:
    """(F, N, 3) nm of every structure in a ``.pdb``, or a ``.npz`` with ``positions`` in nm.

    Atoms must stand in the topology's order. Raises IncompatibleError for a file that is not there, cannot be read, or holds others.
    """
    path = Path(path)
    if not path.is_file():
        raise IncompatibleError(f"there is no file {path}: expected structures as .pdb or .npz.")
    if path.suffix == ".npz":
        frames = _positions(path)
    elif path.suffix == ".pdb":
        pdb = read_pdb(path)
        _same_atoms(path, pdb.topology, topology)
        models = [pdb.getPositions(asNumpy=True, frame=i).value_in_unit(unit.nanometer) for i in range(pdb.getNumFrames())]
        frames = np.stack(models)
    else:
        raise IncompatibleError(f"expected structures as .pdb or .npz, got {path.name!r}; dig_plugins.mdtraj reads trajectories.")
    wanted = topology.getNumAtoms()
    if frames.ndim != 3 or frames.shape[1:] != (wanted, 3) or not len(frames):
        raise IncompatibleError(f"expected structures of {wanted} atoms in {path}, got an array of shape {frames.shape}.")
    return np.asarray(frames, dtype=np.float64)


def write_frames(path: Path, topology: app.Topology, frames: np.ndarray) -> None:
    """(F, N, 3) nm as the models of a ``.pdb``, or as one of :data:`TRAJECTORIES`."""
    if path.suffix == ".pdb":
        write_models(path, topology, frames, len(frames))
        return
    with Trajectory(path, topology) as trajectory:
        trajectory.write(frames)


def write_models(path: Path, topology: app.Topology, frames: Iterable[np.ndarray], count: int) -> None:
    """``count`` structures (N, 3) nm, as they come, as the models of a ``.pdb``."""
    with finished(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as text:
        app.PDBFile.writeHeader(topology, text)
        for number, frame in enumerate(frames, start=1):
            app.PDBFile.writeModel(topology, frame * 10, text, modelIndex=number if count > 1 else None, keepIds=True)
        app.PDBFile.writeFooter(topology, text)


def write_arrays(path: Path, positions: Iterable[np.ndarray] = (), shape: tuple[int, ...] = (), **arrays: np.ndarray | int) -> None:
    """A ``.npz`` of ``arrays`` and, where they have a ``shape`` (F, N, 3), float32 ``positions`` as they come."""
    with finished(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
        if not shape:
            return
        with archive.open("positions.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for part in positions:
                stream.write(part.astype("<f4").tobytes())


class Trajectory:
    """One of :data:`TRAJECTORIES` to write frames to, and the first of them as a ``.pdb`` beside those that hold no topology; all of it is
    there at the end, or none.

    Used as a context::

        with Trajectory(path, topology) as trajectory:
            trajectory.write(frames)        # (F, N, 3) nm, as often as there are some
    """

    def __init__(self, path: Path, topology: app.Topology):
        self._path, self._topology, self._first = path, topology, None
        self._stack = ExitStack()

    def __enter__(self) -> Trajectory:
        temporary = self._stack.enter_context(finished(self._path))
        self._append = _WRITERS[self._path.suffix](temporary, self._topology, self._stack)
        return self

    def write(self, frames: np.ndarray) -> None:
        """Append (F, N, 3) nm. Raises StateError for positions that are not finite."""
        if not np.isfinite(frames).all():
            raise StateError(f"expected finite positions to write to {self._path.name}, got NaN or infinity: leave such structures out.")
        if len(frames):
            self._append(frames)
            self._first = frames[:1] if self._first is None else self._first

    def __exit__(self, *error) -> None:
        if error[0] is None and self._first is not None and self._path.suffix != ".h5":
            write_models(self._path.with_suffix(".pdb"), self._topology, self._first, 1)
        self._stack.__exit__(*error)


def _xtc(path: Path, topology: app.Topology, stack: ExitStack) -> Callable[[np.ndarray], None]:
    return _one_by_one(app.XTCFile(str(path), topology, 1.0 * unit.femtosecond, interval=1).writeModel)


def _dcd(path: Path, topology: app.Topology, stack: ExitStack) -> Callable[[np.ndarray], None]:
    return _one_by_one(app.DCDFile(stack.enter_context(open(path, "w+b")), topology, 1.0 * unit.femtosecond).writeModel)


def _hdf5(path: Path, topology: app.Topology, stack: ExitStack) -> Callable[[np.ndarray], None]:
    import mdtraj

    file = stack.enter_context(mdtraj.formats.HDF5TrajectoryFile(str(path), "w"))
    file.topology = mdtraj.Topology.from_openmm(topology)
    return lambda frames: file.write(frames.astype(np.float32))


def _one_by_one(write: Callable[[np.ndarray], None]) -> Callable[[np.ndarray], None]:
    def append(frames: np.ndarray) -> None:
        for frame in frames:
            write(frame)

    return append


_WRITERS = {".xtc": _xtc, ".dcd": _dcd, ".h5": _hdf5}


def writable(path: str | Path) -> Path:
    """``path`` if structures can be written there: ask before drawing. Raises IncompatibleError, and ImportError where HDF5 lacks its
    packages."""
    path = Path(path)
    known = (*TRAJECTORIES, ".pdb", ".npz")
    if path.suffix not in known:
        raise IncompatibleError(f"expected a file name ending in {', '.join(known)}, got {path.name!r}.")
    if path.suffix == ".h5":
        check_hdf5()
    if not path.parent.is_dir():
        raise IncompatibleError(f"there is no directory {path.parent} to write {path.name} in: make it, or choose another.")
    return path


def _positions(path: Path) -> np.ndarray:
    try:
        return np.asarray(read_arrays(path)["positions"], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise IncompatibleError(f"{path} holds no array named positions (F, N, 3) in nm: {error}.") from error


def _same_atoms(path: Path, found: app.Topology, wanted: app.Topology) -> None:
    pairs = enumerate(zip(found.atoms(), wanted.atoms(), strict=False))
    odd = next((i for i, (a, b) in pairs if a.element is not b.element), None)
    if found.getNumAtoms() != wanted.getNumAtoms() or odd is not None:
        why = f"atom {odd} is another element" if odd is not None else f"it has {found.getNumAtoms()}, not {wanted.getNumAtoms()}"
        raise IncompatibleError(f"{path} holds other atoms than the model, or in another order: {why}.")
