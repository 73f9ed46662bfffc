"""Border between MDTraj and dig_core: nm <-> Angstrom, trajectories of backbones, positions from trajectory files."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.system.descriptor import Descriptor
from dig_core.system.protein import BACKBONE, NAMES, RESIDUES, residues
from dig_core.types import Geometry

from .atoms import CIF, PDB, Model, kind_of, named_atoms, one_location, read_models

__all__ = [
    "CHAINS",
    "Frames",
    "ascii_name",
    "engine",
    "named",
    "of_memory",
    "read_frames",
    "read_positions",
    "structure_atoms",
    "to_trajectory",
    "topology",
]

CHAINS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
"""Letters of the chains 0, 1, ..."""

_HEADER = struct.Struct(">3i10f1if3i3i2i")
"""Of a frame in XTC: 1995, atoms, step; time, cell; atoms, precision, least and greatest integers, their coding, bytes to come."""

_TROUBLE = (ValueError, OSError, RuntimeError, TypeError, LookupError, AttributeError, ImportError, EOFError)
"""What MDTraj's readers raise on files that they cannot read."""


class Frames(NamedTuple):
    """``positions`` (F, M, 3) Angstrom, float64, and ``cell`` (F, 3, 3) Angstrom, rows are lattice vectors, or None."""

    positions: np.ndarray
    cell: np.ndarray | None


def engine():
    """The module mdtraj. Raises ImportError that says how to get it."""
    try:
        import mdtraj
    except ImportError as error:
        raise ImportError("reading trajectories needs MDTraj: pip install 'dig-plugins[mdtraj]'") from error
    return mdtraj


def read_positions(trajectory: str | Path, structure: str | Path) -> np.ndarray:
    """(F, N, 3) nm of every frame in ``trajectory`` (XTC, DCD, HDF5, ... as MDTraj reads them), atoms as in ``structure``.

    Raises IncompatibleError for a file that cannot be read or has another number of atoms.
    """
    mdtraj = engine()
    for path in (trajectory, structure):
        if not Path(path).is_file():
            raise IncompatibleError(f"there is no file {path}: expected a trajectory and the structure of its atoms.")
    _check_headers(Path(trajectory))
    try:
        with ascii_name(Path(trajectory)) as name:
            return np.asarray(mdtraj.load(name, top=str(structure)).xyz)
    except Exception as error:  # MDTraj's readers raise errors of their own besides Python's
        raise IncompatibleError(f"{trajectory} cannot be read with the atoms of {structure}: {error}") from error


def structure_atoms(structure) -> tuple[Model, set[tuple]]:
    """What a trajectory's atoms are, from a PDB or mmCIF file, any other that MDTraj reads as a topology, or its Topology itself.

    Besides, the places that had alternate locations. Of files other than PDB and mmCIF, Model has no positions (0, 3).
    """
    if not hasattr(structure, "atoms"):
        if not Path(structure).exists():
            raise IncompatibleError(f"there is no file {structure}: expected the structure of the trajectory's atoms.")
        if kind_of(structure) in PDB + CIF:
            model = read_models(structure)[0]
            kept, several = one_location(model.atoms)
            return Model(tuple(model.atoms[i] for i in kept), model.positions[kept]), several
        try:
            structure = engine().load_topology(str(structure))
        except _TROUBLE as error:
            raise IncompatibleError(f"{structure} cannot be read as a structure: {error}. Use PDB, mmCIF, PSF, prmtop or GRO.") from error
    return Model(named_atoms(structure), np.zeros((0, 3))), set()


def read_frames(path: str | Path, n_atoms: int, chosen: np.ndarray, stride: int) -> Frames:
    """The atoms ``chosen`` (M,), rising indices below ``n_atoms``, in every ``stride``-th frame of a trajectory as MDTraj reads it.

    Raises UnsupportedError for another kind of file, IncompatibleError for one that has another number of atoms or cannot be read.
    """
    mdtraj, path = engine(), Path(path)
    if not path.exists():
        raise IncompatibleError(f"there is no file {path}: expected a trajectory.")
    if kind_of(path) not in mdtraj.formats.registry.FormatRegistry.loaders:
        known = ", ".join(sorted(mdtraj.formats.registry.FormatRegistry.loaders))
        raise UnsupportedError(f"{path.name} is no trajectory that MDTraj reads; it reads {known}.")
    _check_headers(path)
    # Counts are all that MDTraj takes from it: insertion codes and chains come from the structure.
    blank = mdtraj.Topology()
    residue = blank.add_residue("UNK", blank.add_chain())
    for index in range(n_atoms):
        blank.add_atom(f"X{index}", mdtraj.element.virtual, residue)
    found = _count(path)
    if found in (None, n_atoms):
        # Where the count is not known, all atoms are read, which are counted then. Of TRR files, MDTraj 1.11 writes beyond its
        # memory when it is asked for some frames and some atoms.
        strided = stride > 1 and not (found and kind_of(path) == ".trr")
        options = {**({"stride": stride} if strided else {}), **({"atom_indices": chosen} if found else {})}
        options |= {} if kind_of(path) in (".h5", ".hdf5", ".lh5") else {"top": blank}  # the others know their own atoms
        try:
            with ascii_name(path) as name:
                trajectory = mdtraj.load(name, **options)
        except _TROUBLE as error:
            raise IncompatibleError(f"{path.name} cannot be read as a trajectory of {n_atoms} atoms: {error}") from error
        found = found or trajectory.n_atoms
        if found == n_atoms:
            return of_memory(trajectory if strided else trajectory[::stride], None if "atom_indices" in options else chosen)
    raise IncompatibleError(
        f"{path.name} has {found} atoms in a frame and its structure {n_atoms}: give the structure that the trajectory was written "
        "with (waters, hydrogens and all), or write one with these atoms only."
    )


def of_memory(trajectory, chosen: np.ndarray | None = None) -> Frames:
    """Positions and cells of a trajectory in memory, of the atoms ``chosen`` if not of all."""
    xyz = trajectory.xyz if chosen is None else trajectory.xyz[:, chosen]
    cell = trajectory.unitcell_vectors
    return Frames(xyz.astype(np.float64) * _angstrom(), None if cell is None else cell.astype(np.float64) * _angstrom())


def topology(descriptor: Descriptor):
    """mdtraj.Topology of a backbone: names, numbers, chains A, B, ... and bonds.

    Raises UnsupportedError for the descriptor of something else.
    """
    mdtraj = engine()
    built = mdtraj.Topology()
    atoms, last = [], None
    for kind, number, chain, places in named(descriptor):
        if chain != last:
            added, last = built.add_chain(chain), chain
        residue = built.add_residue(kind, added, number)
        for name, index in zip(BACKBONE, places, strict=True):
            if index >= 0:
                atoms.append(built.add_atom(name, mdtraj.element.get_by_symbol(name[0]), residue))
    for one, other in descriptor.bonds.tolist():
        built.add_bond(atoms[one], atoms[other])
    return built


def named(descriptor: Descriptor) -> list[tuple[str, int, str, list[int]]]:
    """Residue by residue: its name, number, the letter of its chain, and its atoms as BACKBONE, -1 for none."""
    known = residues(descriptor)
    if int(known.chain.max()) >= len(CHAINS) or int(known.chain.min()) < 0:
        raise UnsupportedError(f"expected chains 0 to {len(CHAINS) - 1}, which have letters, got {int(known.chain.max())}.")
    return [
        (NAMES[RESIDUES[kind]], number, CHAINS[chain], places)
        for kind, number, chain, places in zip(*(part.tolist() for part in known), strict=True)
    ]


def to_trajectory(geometry: Geometry, descriptor: Descriptor):
    """mdtraj.Trajectory of (F, A, 3) Angstrom; MDTraj holds nm in single precision.

    Raises IncompatibleError for another number of atoms.
    """
    mdtraj, built = engine(), topology(descriptor)
    positions = geometry.positions.detach().cpu().double().numpy()
    if positions.ndim != 3 or positions.shape[1:] != (built.n_atoms, 3):
        raise IncompatibleError(f"expected positions (F, {built.n_atoms}, 3) of this sequence, got {tuple(geometry.positions.shape)}.")
    trajectory = mdtraj.Trajectory(positions / _angstrom(), built)
    if geometry.cell is not None:
        trajectory.unitcell_vectors = geometry.cell.detach().cpu().numpy() / _angstrom()
    return trajectory


def _angstrom() -> float:
    """Angstrom in one nm."""
    from mdtraj.utils import in_units_of

    return in_units_of(1.0, "nanometers", "angstroms")


@contextmanager
def ascii_name(path: Path) -> Iterator[str]:
    """``path`` by a name that MDTraj's readers and writers in C take: where it is not ASCII, that of a link to it."""
    if str(path).isascii():
        yield str(path)
        return
    with TemporaryDirectory() as place:
        link = Path(place) / f"file{kind_of(path)}"
        link.symlink_to(path.resolve())
        yield str(link)


def _check_headers(path: Path) -> None:
    """Of an XTC file, frame after frame: MDTraj's reader in C takes the process with it where they make no sense.

    Raises IncompatibleError. What is within a compressed frame is not looked at.
    """
    if kind_of(path) != ".xtc":
        return
    end, at, first = path.stat().st_size, 0, None
    with open(path, "rb") as stream:
        while at < end:
            stream.seek(at)
            head = stream.read(_HEADER.size)
            if len(head) < _HEADER.size:
                break  # of a few atoms, which are not compressed, or cut off: MDTraj finds the end
            magic, atoms, *_, again, precision, a, b, c, x, y, z, index, size = _HEADER.unpack(head)
            first = first or atoms
            whole = atoms <= 9 or (precision > 0 and a <= x and b <= y and c <= z and 9 <= index <= 72 and size > 0)
            if magic != 1995 or not atoms == again == first or atoms < 1 or not whole:
                raise IncompatibleError(f"{path.name} cannot be read as a trajectory: there is no frame at byte {at}, it is damaged.")
            at += 56 + 12 * atoms if atoms <= 9 else _HEADER.size + -(-size // 4) * 4
    if at > end:
        raise IncompatibleError(f"{path.name} cannot be read as a trajectory: its last frame is cut off, or damaged.")


def _count(path: Path) -> int | None:
    """Atoms in a frame of a trajectory, None where its reader does not tell without a structure."""
    try:
        with ascii_name(path) as name, engine().open(name) as stream:
            read = stream.read(n_frames=1)
        return int(np.shape(read[0] if isinstance(read, tuple) else read)[1])
    except _TROUBLE:
        return None
