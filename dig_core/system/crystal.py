"""A crystal: its descriptor, which is its composition alone, and which basis of its lattice to describe it in."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ..errors import IncompatibleError, UnsupportedError
from .descriptor import Descriptor
from .elements import covalent_radii

__all__ = ["CRYSTAL_SCHEMA", "compact", "contact_volume", "crystal"]

CRYSTAL_SCHEMA = "crystal/1"
"""Column of ``node``: atomic number. ``pair`` has none, and there is no reference: every crystal of the composition is one."""


def crystal(numbers, *, conditions=()) -> Descriptor:
    """Descriptor of the crystals with these atoms in the cell.

    Parameters
    ----------
    numbers: (N,) atomic numbers, 1 to 94, in the order that structures will have.
    conditions: (C,) numbers besides the composition that the law depends on, such as a reduced pressure.

    Raises
    ------
    IncompatibleError: no atoms, or numbers that are no list. UnsupportedError: an element beyond plutonium, or padding.
    """
    numbers = torch.as_tensor(numbers, dtype=torch.long)
    n = numbers.numel()
    if numbers.dim() != 1 or not n:
        raise IncompatibleError(f"expected atomic numbers (N,), at least one, got shape {tuple(numbers.shape)}.")
    if bool((numbers < 1).any()):
        raise UnsupportedError(f"expected atomic numbers of 1 or more, got {int(numbers.min())}.")
    covalent_radii(numbers)
    return Descriptor(
        numbers=numbers, node=numbers[:, None], pair=torch.zeros(n, n, 0, dtype=torch.long), bonds=torch.zeros(0, 2, dtype=torch.long),
        mobile=torch.ones(n, dtype=torch.bool), reference=None, pbc=torch.ones(3, dtype=torch.bool), schema=CRYSTAL_SCHEMA,
        conditions=torch.as_tensor(conditions, dtype=torch.float64).reshape(-1),
    )  # fmt: skip


def contact_volume(descriptor: Descriptor) -> float:
    """Angstrom^3 of a cell in which every atom has a cube as wide as two of its covalent radii: what volumes are measured by.

    Raises UnsupportedError for a descriptor of something else.
    """
    if descriptor.schema != CRYSTAL_SCHEMA:
        raise UnsupportedError(f"expected the descriptor of a crystal ({CRYSTAL_SCHEMA}), got {descriptor.schema}: use crystal().")
    return float((2 * covalent_radii(descriptor.numbers)).pow(3).sum())


def compact(cell) -> Tensor:
    """Integer matrices M, det M = +1: of all bases ``M @ cell`` of the lattice near the given one, the most like a cube.

    ``cell`` (3, 3) or (B, 3, 3), rows are lattice vectors -> the same shape, long. Shears by one vector at a time as long as
    log(cell cell^T) less its trace gets smaller. Fractions go over by ``fractions @ inverse(M)``. A law of crystals is simplest
    in bases chosen by one rule, and noise on fractions is most even in these.
    """
    cell = torch.as_tensor(cell, dtype=torch.float64)
    vectors = cell.reshape(-1, 3, 3)
    total = torch.eye(3, dtype=torch.float64).repeat(len(vectors), 1, 1)
    shears = torch.eye(3, dtype=torch.float64).repeat(12, 1, 1)
    for k, ((i, j), sign) in enumerate(itertools.product(itertools.permutations(range(3), 2), (1.0, -1.0))):
        shears[k, i, j] = sign
    best = _departure(vectors)
    while True:
        trials = _departure(shears @ vectors[:, None])
        value, which = trials.min(1)
        better = value < best - 1e-9
        if not bool(better.any()):
            return total.round().long().reshape(cell.shape)
        step = torch.where(better[:, None, None], shears[which], torch.eye(3, dtype=torch.float64))
        vectors, total, best = step @ vectors, step @ total, torch.where(better, value, best)


def _departure(vectors: Tensor) -> Tensor:
    """(...) how far cells are from a cube: the spread of the logarithms of their metric's eigenvalues."""
    logs = torch.linalg.eigvalsh(vectors @ vectors.transpose(-1, -2)).clamp_min(1e-12).log()
    return (logs - logs.mean(-1, keepdim=True)).norm(dim=-1)
