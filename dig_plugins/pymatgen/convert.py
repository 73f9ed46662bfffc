"""Border between pymatgen and dig_core: Structure <-> Geometry and descriptor, ASE, and what is no crystal that a model can take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from pymatgen.core import Composition, DummySpecies, Element, Lattice, Structure
from torch import Tensor

from dig_core.errors import IncompatibleError, StateError, UnsupportedError
from dig_core.system.crystal import compact, crystal
from dig_core.system.descriptor import Descriptor
from dig_core.types import Geometry

from .distances import neighbour_distances

__all__ = [
    "Group",
    "atomic_numbers",
    "check_structure",
    "from_atoms",
    "grouped",
    "name_of",
    "to_atoms",
    "to_geometry",
    "to_structures",
    "whole",
]

_NAMES = ("name", "uid", "material_id", "dig_index")
_PLUTONIUM = 94
_MANY = 10_000  # atoms: nobody means a cell of more
_FLAT = 1e-6  # of the product of its lengths: a cell with less volume has none


class Group(NamedTuple):
    """Structures of one composition: ``index`` where they stood in the list, atoms in the order of ``descriptor``."""

    descriptor: Descriptor
    geometry: Geometry
    index: tuple[int, ...]


def atomic_numbers(composition: str | Mapping[str, float] | Composition) -> list[int]:
    """What is in a cell, rising: of a formula such as "C8", of ``{"C": 8}`` or a Composition.

    Raises IncompatibleError for another string, and for other than whole numbers of atoms, 10,000 at most.
    """
    try:
        amounts = [(Element(symbol).Z, amount) for symbol, amount in Composition(composition).get_el_amt_dict().items()]
    except Exception as error:  # formulas are taken apart without regard for what is none
        raise IncompatibleError(f"expected a composition such as 'C8', got {composition!r}: {error}") from error
    counts = [amount for _, amount in amounts]
    if not counts or any(count <= 0 or count % 1 for count in counts) or sum(counts) > _MANY:
        raise IncompatibleError(f"expected whole numbers of atoms, such as 'C8', at most {_MANY}, got {composition!r}.")
    return sorted(number for number, amount in amounts for _ in range(int(amount)))


def to_geometry(structures: Structure | Sequence[Structure]) -> Geometry:
    """(B, N, 3) and cells (B, 3, 3) float64 Angstrom; atoms sorted by atomic number, otherwise in their order.

    Raises IncompatibleError for no structure, or structures of different compositions: see :func:`grouped`. What
    :func:`check_structure` refuses is refused, except atoms that overlap.
    """
    structures = _listed(structures)
    numbers = [_numbers(s, i) for i, s in enumerate(structures)]
    if len({tuple(z) for z in numbers}) != 1:
        kinds = sorted({s.composition.formula for s in structures})
        raise IncompatibleError(
            f"expected structures of one composition, at least one, got {kinds}: grouped() sorts them."
        )
    orders = [np.argsort([site.specie.Z for site in s], kind="stable") for s in structures]
    positions = np.array([s.cart_coords[order] for s, order in zip(structures, orders, strict=True)], dtype=np.float64)
    return Geometry(
        torch.from_numpy(positions),
        torch.from_numpy(np.array([s.lattice.matrix for s in structures], dtype=np.float64)),
    )


def grouped(structures: Sequence[Structure], *, shortest: float = 0.5) -> list[Group]:
    """Structures sorted by composition, as models are trained on them, in the compact basis of each lattice.

    Raises what :func:`check_structure` raises, of the first structure that it refuses.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    for i, structure in enumerate(_listed(structures)):
        check_structure(structure, i, shortest=shortest)
        members.setdefault(tuple(_numbers(structure, i)), []).append(i)
    groups = []
    for numbers, index in members.items():
        positions, cell = to_geometry([structures[i] for i in index])
        groups.append(Group(crystal(numbers), Geometry(positions, compact(cell).to(cell) @ cell), tuple(index)))
    return groups


def to_structures(geometry: Geometry, numbers: Descriptor | Tensor | Sequence[int]) -> list[Structure]:
    """Each structure of (B, N, 3) and cells (B, 3, 3) Angstrom, in pymatgen's own pose, atoms wrapped into the cell.

    Raises StateError, by its place, for one that is not finite or has no volume.
    """
    numbers = numbers.numbers if isinstance(numbers, Descriptor) else torch.as_tensor(numbers)
    species = [int(z) for z in numbers]
    if geometry.cell is None or geometry.positions.shape[1] != len(species):
        raise IncompatibleError(
            f"expected positions (B, {len(species)}, 3) with cells, got {tuple(geometry.positions.shape)}."
        )
    good = whole(geometry)
    if not bool(good.all()):
        raise StateError(
            f"structure {int((~good).nonzero()[0])} is not finite or its cell has no volume: leave it out, see whole()."
        )
    positions, cells = (x.detach().to("cpu", torch.float64).numpy() for x in (geometry.positions, geometry.cell))
    structures = []
    for place, cell in zip(positions, cells, strict=True):
        # Left-handed vectors the other way round, and from lengths and angles: CIF files know neither pose nor hand.
        cell = cell * np.sign(np.linalg.det(cell))
        fractions = place @ np.linalg.inv(cell)
        lattice = Lattice.from_parameters(*Lattice(cell).parameters)
        structures.append(Structure(lattice, species, fractions - np.floor(fractions)))
    return structures


def whole(geometry: Geometry) -> Tensor:
    """(B,) bool: which structures are finite, in a cell with a volume."""
    positions, cell = geometry.positions, geometry.cell
    spans = torch.linalg.det(cell).abs() > _FLAT * cell.norm(dim=2).prod(1)
    return positions.isfinite().flatten(1).all(1) & cell.isfinite().flatten(1).all(1) & spans


def from_atoms(atoms) -> Structure:
    """A Structure of ASE's Atoms, whose ``info`` of numbers and strings becomes ``properties``; arrays, calculator and pbc stay behind."""
    structure = Structure(Lattice(atoms.cell.array), atoms.numbers, atoms.positions, coords_are_cartesian=True)
    kept = int | float | str | bool | np.generic
    structure.properties = {key: plain(value) for key, value in atoms.info.items() if isinstance(value, kept)}
    return structure


def to_atoms(structure: Structure):
    """ASE's Atoms, periodic, with ``properties`` as ``info``; needs ASE."""
    from pymatgen.io.ase import AseAtomsAdaptor

    bare = structure.copy()
    bare.properties = {}
    atoms = AseAtomsAdaptor.get_atoms(bare, msonable=False)
    atoms.info = {key: plain(value) for key, value in structure.properties.items() if value is not None}
    return atoms


def plain(value):
    """numpy's scalars as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def name_of(structure: Structure, index: int | None = None) -> str:
    """What messages call a structure: its place in the list, its formula, its name if it has one."""
    known = next((f", {key} {structure.properties[key]}" for key in _NAMES if key in structure.properties), "")
    return f"structure{'' if index is None else f' {index}'} ({structure.composition.formula.replace(' ', '')}{known})"


def check_structure(structure: Structure, index: int | None = None, *, shortest: float = 0.5) -> None:
    """Raise unless the structure is an ordered crystal with room for its atoms, its name in the message.

    UnsupportedError: partial occupancy, dummy species, elements beyond plutonium. IncompatibleError: no atoms, a cell without
    volume, numbers that are not finite, atoms (images included) nearer than ``shortest`` Angstrom. Oxidation states are ignored.
    """
    _numbers(structure, index)
    name = name_of(structure, index)
    if not _spans(structure.lattice.matrix):
        raise IncompatibleError(
            f"{name}: expected a finite cell with a volume, got lattice vectors {structure.lattice.matrix.tolist()}."
        )
    if not np.isfinite(structure.frac_coords).all():
        raise IncompatibleError(f"{name}: its coordinates are not finite: leave it out.")
    nearest = neighbour_distances(structure, 1)[:, 0]
    if nearest.min() < shortest:
        raise IncompatibleError(
            f"{name}: atom {int(nearest.argmin())} is {nearest.min():.3f} Angstrom from its nearest neighbour, expected at least "
            f"{shortest:g}: merge duplicate sites (merge_sites), or leave the structure out."
        )


def _numbers(structure: Structure, index: int | None) -> list[int]:
    """Sorted atomic numbers; refuses what has none."""
    if not len(structure):
        raise IncompatibleError(f"{name_of(structure, index)}: expected at least one atom.")
    for number, site in enumerate(structure):
        if not site.is_ordered:
            raise UnsupportedError(
                f"{name_of(structure, index)}: site {number} is {site.species_string}, partly occupied or shared: "
                "order it first (OrderDisorderedStructureTransformation), or leave the structure out."
            )
        if isinstance(site.specie, DummySpecies) or not 1 <= site.specie.Z <= _PLUTONIUM:
            raise UnsupportedError(
                f"{name_of(structure, index)}: site {number} is {site.species_string}, expected an element from hydrogen to plutonium."
            )
    return sorted(site.specie.Z for site in structure)


def _spans(cell: np.ndarray) -> bool:
    if not np.isfinite(cell).all():
        return False
    return bool(abs(np.linalg.det(cell)) > _FLAT * np.prod(np.linalg.norm(cell, axis=1)))


def _listed(structures: Structure | Sequence[Structure]) -> list[Structure]:
    return [structures] if isinstance(structures, Structure) else list(structures)
