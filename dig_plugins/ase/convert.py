"""Border between ASE and dig_core: Atoms <-> Geometry, descriptors of free molecules, kT, what is fixed, what fits a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import torch
from ase import Atoms, units
from ase.constraints import ExternalForce, FixAtoms, Hookean
from ase.data import chemical_symbols, covalent_radii

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError, StateError, UnsupportedError
from dig_core.files import understood
from dig_core.system.descriptor import Descriptor, molecule
from dig_core.types import Geometry

from ..xyz import check_counts

__all__ = [
    "check_atoms",
    "check_held",
    "describe",
    "held_atoms",
    "kT",
    "model_temperature",
    "read",
    "to_atoms",
    "to_geometry",
    "write",
]

_BONDED = 1.2  # times the sum of covalent radii: longer bonds are none
_BROKEN = 2.0  # times the same sum or the model's own length: the atoms cannot be those that it bonds
_PLACE = 1e-5  # Angstrom, what file formats round off


def to_geometry(images: Atoms | Sequence[Atoms]) -> Geometry:
    """(B, N, 3) float64 Angstrom of one or several Atoms; ``cell`` (B, 3, 3) where any direction is periodic, else None.

    Raises IncompatibleError for no image at all, or images of different numbers of atoms or different periodicity.
    """
    images = [images] if isinstance(images, Atoms) else list(images)
    kinds = {(len(image), tuple(image.pbc.tolist())) for image in images}
    if len(kinds) != 1:
        raise IncompatibleError(f"expected images of one length and periodicity, at least one, got {sorted(kinds)}: split the list.")
    positions = torch.from_numpy(np.array([image.positions for image in images], dtype=np.float64))
    if not images[0].pbc.any():
        return Geometry(positions)
    return Geometry(positions, torch.from_numpy(np.array([image.cell.array for image in images], dtype=np.float64)))


def to_atoms(geometry: Geometry, template: Atoms) -> list[Atoms]:
    """Each structure as a copy of ``template``: its cell (unless the geometry has one), pbc, constraints, tags, arrays, info.

    Momenta and the calculator stay behind: they belong to another structure.
    """
    positions = geometry.positions.detach().to("cpu", torch.float64).numpy()
    _check_count(positions.shape[1], len(template), "geometry", "template")
    cells = None if geometry.cell is None else geometry.cell.detach().to("cpu", torch.float64).numpy()
    images = []
    for number, place in enumerate(positions):
        image = template.copy()
        image.arrays.pop("momenta", None)
        image.set_positions(place, apply_constraint=False)
        if cells is not None:
            image.set_cell(cells[number])
        images.append(image)
    return images


def describe(atoms: Atoms, bonds=None) -> Descriptor:
    """Descriptor of a free molecule or cluster, with ``atoms`` as the reference that fixes its handedness.

    Parameters
    ----------
    atoms: elements in the order to keep, positions in Angstrom.
    bonds: (M, 2) pairs of indices. If None, atoms closer than 1.2 times the sum of their covalent radii (Cordero et al.,
        doi:10.1039/b801115j, as ``ase.data`` has them) are bonded: right near equilibrium, a guess elsewhere. An empty list
        makes a cluster without bonds.

    Raises
    ------
    UnsupportedError: periodic or fixed atoms. IncompatibleError: a bond between atoms that are not there.
    """
    if atoms.pbc.any():
        raise UnsupportedError(f"expected a free molecule, got pbc = {atoms.pbc.tolist()}: set atoms.pbc = False, or describe the slab.")
    if held_atoms(atoms).any():
        raise UnsupportedError("expected a free molecule, got atoms held by FixAtoms: it moves as a whole. Remove the constraint.")
    if bonds is None:
        limits = _BONDED * _radii(atoms.numbers)
        pairs = np.argwhere(np.triu(atoms.get_all_distances() < limits[:, None] + limits, k=1))
    else:
        pairs = np.asarray(bonds, dtype=np.int64).reshape(-1, 2)
    return molecule(atoms.numbers, pairs, positions=atoms.positions)


def kT(temperature: float) -> float:
    """kT in eV at ``temperature`` in K. Raises IncompatibleError unless that is finite and positive."""
    value = float(temperature)
    if not (math.isfinite(value) and value > 0):
        raise IncompatibleError(f"expected a positive temperature in K, got {value}.")
    return units.kB * value


def model_temperature(dig: DiG, given: float | None, allow_mismatch: bool = False) -> float:
    """``given`` in K, or the model's own for None; IncompatibleError if they differ, unless allowed, or if there is neither."""
    own = dig.card.temperature
    if given is None and own is None:
        raise IncompatibleError(f"the model {dig.card.name!r} has no temperature in its card: pass temperature= in K.")
    temperature = float(own if given is None else given)
    kT(temperature)
    if own is not None and abs(temperature - own) > 0.1 and not allow_mismatch:
        raise IncompatibleError(
            f"got temperature = {temperature:g} K, the model {dig.card.name!r} was trained at {own:g} K. Its chain would stay exact "
            f"but few proposals would be accepted. Use {own:g} K, or pass allow_temperature_mismatch=True."
        )
    return temperature


def held_atoms(atoms: Atoms) -> np.ndarray:
    """(N,) bool, True for atoms that FixAtoms holds.

    Hookean and ExternalForce are part of the energy and hold nobody. Any other constraint makes the law another one than
    exp(-E/kT) of the free atoms and is refused with an UnsupportedError.
    """
    held = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            held[constraint.get_indices()] = True
        elif not isinstance(constraint, Hookean | ExternalForce):
            raise UnsupportedError(
                f"{type(constraint).__name__}: expected FixAtoms, Hookean or ExternalForce among the constraints. Samples do not obey "
                "others, and beside them exp(-E/kT) is not the law. Remove it (FixCom: a free molecule keeps its centroid anyway)."
            )
    return held


def check_atoms(atoms: Atoms, dig: DiG) -> None:
    """Raise unless ``atoms`` are the model's, in its order: IncompatibleError by number and element, StateError for a torn bond."""
    descriptor, name = dig.descriptor, dig.card.name
    _check_count(len(atoms), descriptor.n_atoms, "Atoms object", f"model {name!r}")
    wanted = descriptor.numbers.numpy()
    for i in np.flatnonzero(atoms.numbers != wanted)[:1]:
        raise IncompatibleError(
            f"atom {i}: expected {chemical_symbols[wanted[i]]}, found {atoms.symbols[i]}. Atoms must come in the order that the model "
            f"{name!r} was trained with: {_formula(wanted)}."
        )
    if len(descriptor.bonds) and not descriptor.pbc.any():
        _check_bonds(atoms, descriptor, name)


def check_held(atoms: Atoms, dig: DiG) -> None:
    """Raise IncompatibleError unless FixAtoms holds just the atoms that the model does not move, where its reference has them."""
    held, mobile = held_atoms(atoms), dig.descriptor.mobile.numpy()
    for i in np.flatnonzero(held & mobile)[:1]:
        raise IncompatibleError(
            f"atom {i} ({atoms.symbols[i]}) is held by FixAtoms, and the model {dig.card.name!r} moves it. Remove the constraint, or "
            "take a model in which this atom is fixed."
        )
    for i in np.flatnonzero(~held & ~mobile)[:1]:
        raise IncompatibleError(
            f"atom {i} ({atoms.symbols[i]}) is fixed in the model {dig.card.name!r} and free here: proposals would undo its moves. "
            "Hold it with FixAtoms, or take a model that moves it."
        )
    reference = dig.descriptor.reference
    if reference is None or "translation" in dig.coordinates.gauge:
        return
    away = np.linalg.norm(atoms.positions - reference.positions[0].numpy(), axis=1) * held
    if held.any() and away.max() > _PLACE:
        raise IncompatibleError(
            f"the fixed atom {int(away.argmax())} is {away.max():.4f} Angstrom from where the model {dig.card.name!r} has it: expected "
            "the structure that the model was made for. Move the atoms onto the reference, or make a model of this structure."
        )


def write(path: str | Path, images: Sequence[Atoms]) -> None:
    """Any format that ``ase.io.write`` knows; in an ASE database (.db, .json) the numbers and strings of ``info`` become its keys.

    ``ase.io.write`` itself drops ``info`` there. Extended XYZ and .traj keep it as it is, so that no format of our own is needed.
    """
    if Path(path).suffix not in (".db", ".json"):
        ase.io.write(path, images)
        return
    with ase.db.connect(path, append=False) as rows:
        for image in images:
            rows.write(image, key_value_pairs={k: v for k, v in image.info.items() if isinstance(v, int | float | str)})


def read(path: str | Path) -> list[Atoms]:
    """All images of a file that :func:`write` or ``ase.io.write`` made, ``info`` included. Raises CheckpointError for another file."""
    with understood(path, "cannot be read by ASE", "it is damaged, or of another kind than its name says"):
        if Path(path).suffix in (".xyz", ".extxyz"):
            check_counts(Path(path).read_bytes())
        if Path(path).suffix not in (".db", ".json"):
            return ase.io.read(path, index=":")
        images = []
        for row in ase.db.connect(path).select():
            image = row.toatoms()
            image.info.update(row.key_value_pairs)
            images.append(image)
        return images


def _check_bonds(atoms: Atoms, descriptor: Descriptor, name: str) -> None:
    pairs = descriptor.bonds.numpy()
    length, usual = _lengths(atoms.positions, pairs), _radii(atoms.numbers)[pairs].sum(1)
    if descriptor.reference is not None:
        usual = np.maximum(usual, _lengths(descriptor.reference.positions[0].numpy(), pairs))
    excess = length / usual
    if not np.isfinite(excess).all():
        raise StateError("the positions are not finite: the run has blown up. Relax first, or shorten the time step.")
    if excess.max() > _BROKEN:
        i, j = pairs[excess.argmax()]
        raise StateError(
            f"the model {name!r} has a bond between atoms {i} ({atoms.symbols[i]}) and {j} ({atoms.symbols[j]}), which are "
            f"{length[excess.argmax()]:.2f} Angstrom apart here. Either the atoms come in another order, or the molecule is split "
            "by a periodic boundary, or it broke: reorder, make it whole, or shorten the time step."
        )


def _lengths(positions: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    return np.linalg.norm(positions[pairs[:, 0]] - positions[pairs[:, 1]], axis=1)


def _radii(numbers: np.ndarray) -> np.ndarray:
    return covalent_radii[numbers]


def _check_count(found: int, expected: int, what: str, whose: str) -> None:
    if found != expected:
        raise IncompatibleError(f"the {what} has {found} atoms, the {whose} {expected}: expected the same atoms in the same order.")


def _formula(numbers: np.ndarray) -> str:
    symbols = [chemical_symbols[z] for z in numbers[:12]]
    return " ".join(symbols) + (" ..." if len(numbers) > 12 else "")
