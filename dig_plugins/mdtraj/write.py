"""Backbones into files that MDTraj, PyMOL and ChimeraX open: PDB, HDF5, and XTC or DCD with a PDB beside them."""

from __future__ import annotations

from pathlib import Path

from dig_core.errors import IncompatibleError, StateError, UnsupportedError
from dig_core.files import finished
from dig_core.system.descriptor import Descriptor
from dig_core.system.protein import BACKBONE
from dig_core.types import Geometry

from ..lazy import check_hdf5
from .convert import ascii_name, named, to_trajectory

__all__ = ["KINDS", "write_backbones"]

KINDS = (".xtc", ".dcd", ".h5", ".pdb")

_MARK = "REMARK   1 BACKBONE N CA C O CB BY DIG-PLUGINS\n"
"""First line of each PDB file written here: only such files are replaced unasked."""


def write_backbones(path: str | Path, geometry: Geometry, descriptor: Descriptor) -> None:
    """Structures (F, A, 3) Angstrom as ``.pdb`` (a model each, to 0.001 Angstrom), ``.xtc`` (0.01), ``.dcd`` or ``.h5`` (single
    precision; needs PyTables).

    An XTC or DCD file comes with a ``.pdb`` of the same name, the first structure, which says what its atoms are. Files are complete or
    not there; an existing one is replaced, but a ``.pdb`` beside a trajectory only if it was written here.

    Raises UnsupportedError for another ending, chains or numbers that PDB cannot hold; IncompatibleError for another number of atoms, no
    structure, or a foreign ``.pdb`` in the way; StateError for positions that are not finite.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise UnsupportedError(f"expected a name ending in {', '.join(KINDS)}, got {path.name!r}; to_trajectory().save() writes others.")
    _check(geometry, descriptor)
    if kind == ".pdb":
        _write_pdb(path, geometry, descriptor)
        return
    if kind == ".h5":
        check_hdf5()
        with finished(path) as temporary:
            to_trajectory(geometry, descriptor).save_hdf5(str(temporary))
        return
    beside = path.with_suffix(".pdb")
    if beside.exists() and not beside.read_text(encoding="utf-8", errors="replace").startswith(_MARK):
        raise IncompatibleError(f"{beside} is in the way and is another structure: write {path.name} under another name.")
    trajectory = to_trajectory(geometry, descriptor)
    with finished(path) as temporary:
        with ascii_name(temporary) as name:
            (trajectory.save_xtc if kind == ".xtc" else trajectory.save_dcd)(name)
        _write_pdb(beside, Geometry(geometry.positions[:1]), descriptor)


def _check(geometry: Geometry, descriptor: Descriptor) -> None:
    positions = geometry.positions
    if positions.dim() != 3 or not len(positions) or positions.shape[1:] != (descriptor.n_atoms, 3):
        raise IncompatibleError(f"expected positions (F, {descriptor.n_atoms}, 3) of at least one structure, got {tuple(positions.shape)}.")
    finite = positions.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        raise StateError(f"structure {int((~finite).nonzero()[0])} has positions that are not finite: leave it out.")
    numbers = [number for _, number, _, _ in named(descriptor)]
    if min(numbers) < -999 or max(numbers) > 9999:
        raise UnsupportedError(f"PDB holds residue numbers from -999 to 9999, got {min(numbers)} to {max(numbers)}: number them anew.")
    if float(positions.max()) > 9999.9 or float(positions.min()) < -999.9:
        raise UnsupportedError("PDB holds coordinates from -999.9 to 9999.9 Angstrom: move the structures to the origin.")


def _write_pdb(path: Path, geometry: Geometry, descriptor: Descriptor) -> None:
    """Written here, since MDTraj's writer turns negative residue numbers into others."""
    rows = _rows(descriptor)
    several = len(geometry.positions) > 1
    with finished(path) as temporary, open(temporary, "w", encoding="ascii") as stream:
        stream.write(_MARK)
        for model, places in enumerate(geometry.positions.detach().cpu().double().tolist(), 1):
            # Ten thousand and more have no room in their columns.
            stream.write(f"MODEL     {model % 10000:4d}\n" if several else "")
            for index, text in rows:
                if index is None:
                    stream.write(text)
                else:
                    x, y, z = places[index]
                    stream.write(f"{text}{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {text[13]:>2s}  \n")
            stream.write("ENDMDL\n" if several else "")
        stream.write("END\n")


def _rows(descriptor: Descriptor) -> list[tuple[int | None, str]]:
    """Index and the columns before the coordinates of each atom; lines that end a chain, with None."""
    rows: list[tuple[int | None, str]] = []
    known = named(descriptor)
    serial = 0
    for place, (residue, number, chain, atoms) in enumerate(known):
        for name, index in zip(BACKBONE, atoms, strict=True):
            if index >= 0:
                serial += 1
                rows.append((index, f"ATOM  {serial % 100000:5d}  {name:<3s} {residue:>3s} {chain}{number:4d}    "))
        if place + 1 == len(known) or known[place + 1][2] != chain:
            serial += 1
            rows.append((None, f"TER   {serial % 100000:5d}      {residue:>3s} {chain}{number:4d}\n"))
    return rows
