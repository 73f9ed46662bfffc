"""A ligand and its pocket as one descriptor that holds the ligand's internal coordinates, so that one network serves them all."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..system.descriptor import Descriptor
from ..types import Geometry
from .internal import Internal
from .zmatrix import build_zmatrix

if TYPE_CHECKING:
    from .scene import Scene

__all__ = ["COMPLEX_SCHEMA", "Complex", "PocketAtoms", "bind", "complex_of"]

COMPLEX_SCHEMA = "complex/1"
"""Columns of ``node``: atomic number, bonds, formal charge + 8, role (0 ligand, 1 pocket), size of the smallest ring (0 none, 8 at most),
aromatic, kind of residue (0 the ligand), number of the residue in the pocket, whether the torsion of the ligand's z-matrix row turns.
``pair`` (L, L, 2) is of the ligand's L atoms alone, which come first; ``couple`` (S, S + 2): centre, width and whitening of its
:class:`Internal`; ``conditions`` (3,) the pocket's centre, Angstrom."""

ROLE, RING, AROMATIC, KIND, RESIDUE, TURNS = range(3, 9)


@dataclass(frozen=True)
class PocketAtoms:
    """What a descriptor needs of a pocket: (P,) atomic numbers, formal charges, ``kind`` (1 upwards) and number of each atom's residue;
    (P, 3) positions and (3,) centre, Angstrom."""

    numbers: Tensor
    charges: Tensor
    kind: Tensor
    residue: Tensor
    positions: Tensor
    centre: Tensor


@dataclass(frozen=True)
class Complex(Descriptor):
    """A descriptor of schema ``COMPLEX_SCHEMA`` that has its internal coordinates at hand."""

    @cached_property
    def n_ligand(self) -> int:
        return int(self.mobile.sum())

    @cached_property
    def internal(self) -> Internal:
        """Of the ligand; float64, on the CPU."""
        n = self.n_ligand
        sub = replace(_plain(self), numbers=self.numbers[:n].cpu(), bonds=self.bonds.cpu(), reference=Geometry(self._placed[:, :n].cpu()))
        zmatrix = build_zmatrix(sub)
        turns = self.node[:n, TURNS].bool().tolist()
        zmatrix = replace(zmatrix, free=tuple(turns[row[0]] for row in zmatrix.rows))
        table = self.couple.double().cpu()  # type: ignore[union-attr]
        return Internal(zmatrix, table[:, 0], table[:, 1], table[:, 2:])

    @cached_property
    def scene(self) -> Scene:
        """What a network sees of it, on the CPU."""
        from .scene import Scene

        return Scene.of([self])

    @property
    def centre(self) -> Tensor:
        """(3,) Angstrom, float64."""
        return self.conditions.double()

    @property
    def pocket_positions(self) -> Tensor:
        """(P, 3) Angstrom, float64."""
        return self._placed[0, self.n_ligand :].double()

    @property
    def _placed(self) -> Tensor:
        return self.reference.positions  # type: ignore[union-attr]


def complex_of(descriptor: Descriptor) -> Complex:
    """The descriptor as a Complex. Raises IncompatibleError for one of anything else."""
    if isinstance(descriptor, Complex):
        return descriptor
    if descriptor.schema != COMPLEX_SCHEMA or descriptor.reference is None or descriptor.couple is None:
        raise IncompatibleError(f"expected a ligand in a pocket ({COMPLEX_SCHEMA}), got a descriptor of schema {descriptor.schema!r}.")
    return Complex(**{f.name: getattr(descriptor, f.name) for f in fields(Descriptor)})


def bind(ligand: Descriptor, internal: Internal, pocket: PocketAtoms, rings: Tensor, aromatic: Tensor) -> Complex:
    """The descriptor of ``ligand``, whose reference and z-matrix ``internal`` was made from, in ``pocket``.

    ``rings`` (L,) size of the smallest ring that an atom is in, 0 for none; ``aromatic`` (L,) bool. Raises IncompatibleError for a ligand
    without a reference, or coordinates of another one.
    """
    if ligand.reference is None or internal.zmatrix.n_atoms != ligand.n_atoms:
        raise IncompatibleError("expected a ligand with a reference structure and the internal coordinates made from it.")
    n, p = ligand.n_atoms, len(pocket.numbers)
    turns = torch.zeros(n, dtype=torch.long)
    turns[[row[0] for row in internal.zmatrix.rows]] = torch.tensor([int(f) for f in internal.zmatrix.free])
    zero, one = torch.zeros(p, dtype=torch.long), torch.zeros(n, dtype=torch.long)
    mine = [*ligand.node.T, one, rings.long().clamp(max=8), aromatic.long(), one, one, turns]
    theirs = [pocket.numbers, zero, pocket.charges + 8, zero + 1, zero, zero, pocket.kind, pocket.residue, zero]
    reference = ligand.reference.positions[0] - ligand.reference.positions[0].mean(0) + pocket.centre
    return Complex(
        numbers=torch.cat([ligand.numbers, pocket.numbers]),
        node=torch.cat([torch.stack(mine, 1), torch.stack(theirs, 1)]),
        pair=ligand.pair,
        bonds=ligand.bonds,
        mobile=torch.cat([torch.ones(n, dtype=torch.bool), torch.zeros(p, dtype=torch.bool)]),
        reference=Geometry(torch.cat([reference, pocket.positions])[None]),
        pbc=torch.zeros(3, dtype=torch.bool),
        schema=COMPLEX_SCHEMA,
        conditions=pocket.centre.double(),
        couple=torch.cat([internal.centre[:, None], internal.width[:, None], internal.whitening], 1),
    )


def _plain(system: Complex) -> Descriptor:
    return Descriptor(**{f.name: getattr(system, f.name) for f in fields(Descriptor)})
