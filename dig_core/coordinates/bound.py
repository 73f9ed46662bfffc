"""A ligand in a pocket: where it stands, how it is turned, its internal coordinates; the pocket stays, and fixes frame and handedness."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..diffusion.rotations import rotation_matrix, rotation_vector
from ..random import Streams
from ..system.descriptor import Descriptor
from ..types import Geometry, State
from .complex import complex_of
from .internal import Internal
from .measure import frame

__all__ = ["Bound"]


class Bound(nn.Module):
    """Rigid placement of a ligand times its internal coordinates.

    ``place`` (B, 3): of the atom in the ligand's middle, the z-matrix's second, from the pocket's centre in units of ``width`` Angstrom;
    ``turn`` (B, 3): rotation vector from the orientation that :meth:`Internal.decode` gives; ``shape`` and ``torsion`` as of
    :class:`Internal`, which the descriptor holds (:class:`.complex.Complex`). Centres and double bonds keep their configuration. A
    ligand without torsions has no ``torsion``.

    Forgotten are the labels of equivalent end atoms alone. The measure is Lebesgue for the ligand's atoms, Angstrom; the pocket has none.
    """

    gauge = frozenset({"equivalent atoms"})
    curved = frozenset({"turn"})

    def __init__(self, width: float = 3.0):
        super().__init__()
        self.width = float(width)
        self.config = {"width": self.width}

    @classmethod
    def from_config(cls, **config) -> Bound:
        return cls(**config)

    def encode(self, geometry: Geometry, descriptor: Descriptor) -> tuple[State, Tensor]:
        """State of (B, N, 3) Angstrom, ligand first, and log|d state / d geometry| (B,). The pocket's atoms are not read."""
        system = complex_of(descriptor)
        internal, ligand = system.internal, geometry.positions.double()[:, : system.n_ligand]
        ligand = internal._relabel(ligand)
        inner, _ = internal.encode(Geometry(ligand), descriptor)
        template = internal.decode(inner, descriptor).positions
        turn = rotation_vector(_axes(ligand, internal).transpose(1, 2) @ _axes(template, internal))
        place = (ligand[:, middle(internal)] - system.centre) / self.width
        state = {"place": place, "turn": turn, **inner}
        if not len(internal.torsion_atoms):
            del state["torsion"]
        return state, -self.log_volume(state, descriptor)

    def decode(self, state: State, descriptor: Descriptor) -> Geometry:
        """(B, N, 3) Angstrom, float64, the pocket where the reference has it. Differentiable."""
        system = complex_of(descriptor)
        ligand = self.ligand(state, descriptor)
        pocket = system.pocket_positions.to(ligand).expand(len(ligand), -1, -1)
        return Geometry(torch.cat([ligand, pocket], 1))

    def ligand(self, state: State, descriptor: Descriptor) -> Tensor:
        """(B, L, 3) Angstrom, float64: the ligand's atoms alone."""
        system = complex_of(descriptor)
        template = system.internal.decode(_inner(state), descriptor).positions
        root = middle(system.internal)
        turned = (template - template[:, root, None]) @ rotation_matrix(state["turn"].double()).transpose(1, 2)
        return turned + (self.width * state["place"].double() + system.centre.to(turned))[:, None]

    def log_volume(self, state: State, descriptor: Descriptor) -> Tensor:
        """(B,) log|d geometry / d state|. Differentiable."""
        system = complex_of(descriptor)
        # That of the internal coordinates holds the rotation, and measures the centroid as the zero-centroid subspace does.
        placed = 3 * math.log(self.width) + 1.5 * math.log(system.n_ligand)
        return system.internal.log_volume(_inner(state), descriptor) + placed

    def valid(self, state: State, descriptor: Descriptor) -> Tensor:
        """(B,) bool: as of :class:`Internal`."""
        return complex_of(descriptor).internal.valid(_inner(state), descriptor)

    def pose(self, geometry: Geometry, rng: Streams) -> Geometry:
        """As it is: where the ligand stands is part of the state. Labels of end atoms are drawn by :meth:`labelled`."""
        return geometry

    def labelled(self, geometry: Geometry, descriptor: Descriptor, rng: Streams) -> Geometry:
        """``geometry`` with the labels of the ligand's equivalent end atoms drawn anew."""
        rotors, positions = complex_of(descriptor).internal.zmatrix.rotors, geometry.positions
        order = torch.arange(positions.shape[1]).repeat(len(positions), 1)
        choice = (rng.uniform(max(1, len(rotors))) * 3).long()
        for column, rotor in enumerate(rotors):
            atoms = torch.tensor(rotor.atoms)
            order[:, atoms] = atoms[(torch.arange(3) + choice[:, column, None]) % 3]
        return Geometry(positions.gather(1, order[..., None].expand(-1, -1, 3)))


def middle(internal: Internal) -> int:
    """The atom that the placement is about."""
    return internal.zmatrix.rows[1][0]


def _inner(state: State) -> State:
    shape = state["shape"]
    return {"shape": shape, "torsion": state.get("torsion", shape.new_zeros(len(shape), 0))}


def _axes(positions: Tensor, internal: Internal) -> Tensor:
    """(B, 3, 3) orthonormal rows that turn with the ligand: its first three placed atoms."""
    third, root, other, _ = internal.zmatrix.rows[2]
    atoms = positions[:, [third, root, other]]
    return torch.stack(frame(atoms[:, 0, None], atoms[:, 1, None], atoms[:, 2, None]), -2)[:, 0]
