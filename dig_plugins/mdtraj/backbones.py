"""Backbones out of files: PDB, mmCIF and the trajectories that MDTraj reads become a descriptor and its frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dig_core.errors import IncompatibleError
from dig_core.system.descriptor import Descriptor
from dig_core.system.protein import NAMES, RESIDUES, protein, residues
from dig_core.types import Geometry

from .atoms import CIF, PDB, kind_of, named_atoms, one_location, read_models
from .convert import of_memory, read_frames, structure_atoms
from .pick import Picked, listed, pick
from .repair import break_notes, check, count_on, peptides, rebuild, whole

__all__ = ["Backbones", "match", "of_trajectory", "read_backbones"]

_STRUCTURES = (".psf", ".prmtop", ".parm7", ".prm7")
_ALONE = (".h5", ".hdf5", ".lh5", ".gro", ".arc", ".gsd", ".mol2", ".hoomdxml")
"""Files without positions, and trajectories that bring their own structure."""


class Backbones(NamedTuple):
    """Structures of one protein: ``descriptor`` of :func:`~dig_core.system.protein.protein`, whose reference is the first of them;
    ``geometry`` (F, A, 3) Angstrom of N, CA, C, O, CB in its order; ``notes``, sentences on what was left out or mended;
    ``labels`` (N,), chain and number of each residue in the file, such as ``A:60B``."""

    descriptor: Descriptor
    geometry: Geometry
    notes: tuple[str, ...]
    labels: tuple[str, ...] = ()


def read_backbones(
    path: str | Path, structure=None, *, chain: str | int | None = None, replace: Mapping[str, str | None] | None = None,
    stride: int = 1,
) -> Backbones:  # fmt: skip
    """The backbones in a file: PDB and mmCIF, all models, or any trajectory that MDTraj reads.

    Parameters
    ----------
    path: ``.pdb``, ``.ent``, ``.cif``, ``.mmcif`` (with ``.gz`` as well), or a trajectory.
    structure: what the atoms of a trajectory are: PDB, mmCIF, PSF, prmtop, GRO, ..., or an mdtraj.Topology.
    chain: letter (of a file without them the segment) or index, from 0, of the chain to read; all if not given.
    replace: names of residues -> the standard ones they are read as, or None to leave them out; on top of
        :data:`~dig_plugins.mdtraj.names.REPLACED`, protonation states and MSE.
    stride: every which model or frame is read.

    Residue numbers are the file's, missing residues are numbers left out; insertion codes are counted on. Of a trajectory
    in a periodic box, chains that it cuts are put together.

    Raises
    ------
    UnsupportedError: a residue that is not known, a D-amino acid, a kind of file that is not read.
    IncompatibleError: a file that is not there or cannot be read, has no N, CA and C, no such chain, models of different residues,
        or another number of atoms than its structure.
    StateError: positions that are not finite.
    """
    if not isinstance(stride, int | np.integer) or stride < 1:
        raise IncompatibleError(f"expected stride to be an integer from 1 on, got {stride!r}.")
    kind, source = kind_of(path), Path(path).name
    if kind in PDB + CIF and structure is None:
        return _of_models(path, source, chain, replace, stride)
    if kind in _STRUCTURES:
        raise IncompatibleError(f"{source} holds no positions: give it as structure= of a trajectory.")
    if structure is None and kind not in _ALONE:
        beside = Path(path).with_suffix(".pdb")
        proposed = repr(str(beside)) if beside.is_file() else "a PDB, mmCIF, PSF or prmtop file"
        raise IncompatibleError(f"{source} does not say which atoms it holds: give structure={proposed}.")
    structure = path if structure is None else structure
    model, several = structure_atoms(structure)
    picked = pick(model.atoms, _name(structure, source), chain=chain, replace=replace, alternates=several)
    chosen = np.unique(picked.index[picked.index >= 0])
    if kind in PDB + CIF:
        positions, cell = _of_pdb_frames(path, len(model.atoms), stride)[:, chosen], None
    else:
        positions, cell = read_frames(path, len(model.atoms), chosen, stride)
    place = np.where(picked.index >= 0, np.searchsorted(chosen, picked.index), -1)
    return _assemble(picked, _gather(positions, place), picked.index[None] < 0, cell, source)


def of_trajectory(trajectory, *, chain: str | int | None = None, replace: Mapping[str, str | None] | None = None) -> Backbones:
    """The backbones of an mdtraj.Trajectory in memory; arguments, laws and errors as of :func:`read_backbones`."""
    source = "the trajectory"
    picked = pick(named_atoms(trajectory.topology), source, chain=chain, replace=replace)
    positions, cell = of_memory(trajectory)
    return _assemble(picked, _gather(positions, picked.index), picked.index[None] < 0, cell, source)


def match(backbones: Backbones, descriptor: Descriptor, *, leave: bool = False) -> Backbones:
    """The same structures as frames of ``descriptor``, which must name the same residues, in whatever order: several files, one model.

    ``leave``: residues that the descriptor has not are left out, with a note, instead of refused. Raises IncompatibleError that names
    the first residue that differs.
    """
    have, want = residues(backbones.descriptor), residues(descriptor)
    place = {key: r for r, key in enumerate(zip(have.chain.tolist(), have.number.tolist(), strict=True))}
    rows = []
    for kind, number, chain in zip(want.kind.tolist(), want.number.tolist(), want.chain.tolist(), strict=True):
        expected, r = f"{NAMES[RESIDUES[kind]]} {number} of chain {chain}", place.get((chain, number))
        if r is None:
            raise IncompatibleError(
                f"expected {expected}, which the frames have not: they go from {_first_last(have)}. Build the descriptor of the residues "
                "that all files have, with crop()."
            )
        if int(have.kind[r]) != kind:
            got = NAMES[RESIDUES[int(have.kind[r])]]
            raise IncompatibleError(f"expected {expected}, got {got}: the sequence or the numbering is another.")
        rows.append(r)
    extra = [f"{NAMES[RESIDUES[int(have.kind[r])]]} {n} of chain {c}" for (c, n), r in place.items() if r not in set(rows)]
    if extra and not leave:
        raise IncompatibleError(f"the frames have {listed(extra)}, which the descriptor has not: leave=True leaves such residues out.")
    atoms = have.atoms[rows].flatten()
    geometry = Geometry(backbones.geometry.positions[:, atoms[atoms >= 0]], backbones.geometry.cell)
    notes = (f"{listed(extra)} left out: the descriptor has them not.",) if extra else ()
    return Backbones(descriptor, geometry, backbones.notes + notes, tuple(backbones.labels[r] for r in rows if backbones.labels))


def _of_models(path, source: str, chain, replace, stride: int) -> Backbones:
    """Models of a PDB or mmCIF file; atoms may differ between them, residues may not."""
    first, last, found, missing = None, None, [], []
    for count, model in list(enumerate(read_models(path), 1))[::stride]:
        if last is None or model.atoms != last[0]:
            kept, several = one_location(model.atoms)
            picked = pick([model.atoms[i] for i in kept], source, chain=chain, replace=replace, alternates=several)
            last = model.atoms, kept, picked
        _, kept, picked = last
        first = first or picked
        _same(first, picked, source, count)
        found.append(_gather(model.positions[kept][None], picked.index))
        missing.append(picked.index < 0)
        check(found[-1], picked, source)
    return _assemble(first, np.concatenate(found), np.stack(missing), None, source)


def _same(first: Picked, other: Picked, source: str, count: int) -> None:
    if (first.letters, first.labels) == (other.letters, other.labels):
        return
    pairs = zip(first.names, other.names, strict=False)
    one, two = next(((a, b) for a, b in pairs if a != b), (f"{len(first.names)} residues", f"{len(other.names)}"))
    raise IncompatibleError(
        f"{source}: model 1 has {one} and model {count} has {two}. Models must hold the same residues; write them to files of their own."
    )


def _of_pdb_frames(path, n_atoms: int, stride: int) -> np.ndarray:
    """(F, n_atoms, 3) of a PDB or mmCIF file that is read as a trajectory of another structure."""
    found = []
    for model in read_models(path)[::stride]:
        kept, _ = one_location(model.atoms)
        if len(kept) != n_atoms:
            raise IncompatibleError(f"{Path(path).name} has {len(kept)} atoms and its structure {n_atoms}: leave structure= out.")
        found.append(model.positions[kept])
    return np.stack(found)


def _gather(positions: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(F, N, 5, 3), NaN where the index is -1."""
    return np.where((index >= 0)[:, :, None], positions[:, index], np.nan)


def _assemble(picked: Picked, positions: np.ndarray, missing: np.ndarray, cell: np.ndarray | None, source: str) -> Backbones:
    """Frames (F, N, 5, 3), with ``missing`` (1 or F, N, 5), as a descriptor and its geometry."""
    if not len(positions):
        raise IncompatibleError(f"{source} has no frames.")
    positions, cut = whole(positions, cell, picked)
    if len(missing) == 1:
        check(positions, picked, source)
    gaps = peptides(positions)
    numbers, counted = count_on(picked, gaps[0])
    descriptor = protein(picked.letters, numbers=numbers, chains=list(picked.chains))
    known = residues(descriptor).atoms >= 0
    positions, built = rebuild(positions, missing & known.numpy(), picked, descriptor)
    flat = torch.from_numpy(positions)[:, known]
    descriptor = protein(picked.letters, numbers=numbers, chains=list(picked.chains), positions=flat[0])
    notes = picked.notes + cut + counted + break_notes(picked, numbers, gaps) + built
    return Backbones(descriptor, Geometry(flat), notes, picked.labels)


def _name(structure, source: str) -> str:
    return Path(structure).name if isinstance(structure, str | Path) else source


def _first_last(known) -> str:
    return f"{int(known.number[0])} of chain {int(known.chain[0])} to {int(known.number[-1])} of chain {int(known.chain[-1])}"
