"""The molecular descriptor D: what is given, and nothing that diffuses."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..types import Geometry
from .graph import shortest_paths

__all__ = ["SCHEMA", "Descriptor", "molecule"]

SCHEMA = "molecule/1"
"""Columns of ``node``: atomic number, number of bonds, formal charge + 8. Columns of ``pair``: bonds apart (capped), bond order."""

MAX_PATH = 15


@dataclass(frozen=True)
class Descriptor:
    """A system as the network sees it. Frozen; tensors are not to be written to.

    ``numbers`` (N,) atomic numbers, 0 is padding; ``node`` (N, Fv) and ``pair`` (N, N, Fp) integer categories whose
    meaning ``schema`` names; ``bonds`` (M, 2) atom indices; ``mobile`` (N,) bool, atoms that belong to the state;
    ``reference`` one structure (1, N, 3) that fixes stereochemistry, or None; ``pbc`` (3,) bool; ``conditions`` (C,)
    numbers besides the structure that the law depends on, such as a temperature's logarithm. Of proteins besides: ``single`` (R, Cs)
    and ``couple`` (R, R, Cp), embeddings of the R residues and of their pairs, or None. Of slabs: ``single``, (N, 3) the d band of metals
    that are no element, or (N, 5) by how much atoms depart from :func:`.elements.properties`.
    """

    numbers: Tensor
    node: Tensor
    pair: Tensor
    bonds: Tensor
    mobile: Tensor
    reference: Geometry | None
    pbc: Tensor
    schema: str = SCHEMA
    conditions: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    single: Tensor | None = None
    couple: Tensor | None = None

    @property
    def n_atoms(self) -> int:
        return len(self.numbers)


def molecule(numbers, bonds, *, positions=None, charges=None, orders=None) -> Descriptor:
    """Descriptor of a free molecule from its elements and bonds.

    Parameters
    ----------
    numbers: (N,) atomic numbers.
    bonds: (M, 2) pairs of atom indices.
    positions: (N, 3) Angstrom, a reference structure; it fixes the handedness of stereocentres.
    charges: (N,) formal charges, zero if not given.
    orders: (M,) bond orders as integers, 1 if not given.

    Raises
    ------
    IncompatibleError: an index out of range, or arrays of different lengths.
    """
    numbers = torch.as_tensor(numbers, dtype=torch.long)
    n = len(numbers)
    bonds = torch.as_tensor(bonds, dtype=torch.long).reshape(-1, 2)
    if len(bonds) and not (0 <= int(bonds.min()) and int(bonds.max()) < n):
        raise IncompatibleError(f"bonds must name atoms 0..{n - 1}, got an index between {int(bonds.min())} and {int(bonds.max())}.")
    charges = torch.zeros(n, dtype=torch.long) if charges is None else torch.as_tensor(charges, dtype=torch.long)
    orders = torch.ones(len(bonds), dtype=torch.long) if orders is None else torch.as_tensor(orders, dtype=torch.long)
    if len(charges) != n or len(orders) != len(bonds):
        raise IncompatibleError(f"expected {n} charges and {len(bonds)} bond orders, got {len(charges)} and {len(orders)}.")
    order = torch.zeros(n, n, dtype=torch.long)
    order[bonds[:, 0], bonds[:, 1]] = orders
    order = torch.maximum(order, order.T)
    degree = (order > 0).sum(1)
    reference = None
    if positions is not None:
        positions = torch.as_tensor(positions, dtype=torch.float64).reshape(1, -1, 3)
        if positions.shape[1] != n:
            raise IncompatibleError(f"expected {n} reference positions, got {positions.shape[1]}.")
        reference = Geometry(positions)
    return Descriptor(
        numbers=numbers,
        node=torch.stack([numbers, degree, charges + 8], dim=1),
        pair=torch.stack([shortest_paths(n, bonds).clamp(max=MAX_PATH), order], dim=2),
        bonds=bonds,
        mobile=torch.ones(n, dtype=torch.bool),
        reference=reference,
        pbc=torch.zeros(3, dtype=torch.bool),
    )
