"""An adsorbate on a slab: its descriptor, and the frame that the slab gives (which way is up, how the surface repeats)."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import IncompatibleError, UnsupportedError
from ..types import Geometry
from .descriptor import Descriptor

__all__ = ["ADSORBATE", "FREE", "FROZEN", "SURFACE_SCHEMA", "Frame", "frame_of", "guest_of", "role_of", "surface"]

SURFACE_SCHEMA = "surface/1"
"""Columns of ``node``: atomic number, role, place in the adsorbate (1 for the atom that binds; 0 for the slab). ``pair`` has none."""

FROZEN, FREE, ADSORBATE = 0, 1, 2


class Frame(NamedTuple):
    """What positions are measured against; float64.

    ``axes`` (2, 3) orthonormal, in the surface plane; ``normal`` (3,) points from the slab to the adsorbate; ``vectors``
    (2, 2) Angstrom, the periodic cell vectors in the axes; ``top`` Angstrom, height of the outermost slab atom along the normal.
    """

    axes: Tensor
    normal: Tensor
    vectors: Tensor
    top: float

    def home(self, place: Tensor) -> Tensor:
        """In-plane places (..., 2) Angstrom less whole cell vectors: fractions in [-1/2, 1/2)."""
        vectors = self.vectors.to(place)
        return place - torch.floor(place.detach() @ torch.linalg.inv(vectors) + 0.5) @ vectors

    def whole(self, guest: Tensor) -> Tensor:
        """Adsorbates (B, A, 3) Angstrom in one piece: an atom far from all those before it is brought to where an image is near one."""
        placed, every = guest[:, :1], torch.arange(len(guest), device=guest.device)
        near = torch.cartesian_prod(*[torch.arange(-1.0, 2.0)] * 2).to(guest) @ self.vectors @ self.axes
        for k in range(1, guest.shape[1]):
            gap = guest[:, k : k + 1] - placed
            along = gap @ self.axes.T
            folded = gap + (self.home(along) - along) @ self.axes
            images = torch.cat([gap[:, :, None], folded[:, :, None] + near], 2)
            distance = images.detach().norm(dim=-1)
            # In a narrow cell images are as near as bonds: an atom stays where it is unless another place is much better.
            distance[:, :, 0] *= 2 / 3
            nearest = distance.flatten(1).argmin(1)
            found = (placed[:, :, None] + images).flatten(1, 2)[every, nearest]
            placed = torch.cat([placed, found[:, None]], 1)
        return placed


def surface(numbers, positions, cell, adsorbate, *, free=(), vacuum: int = 2, conditions=()) -> Descriptor:
    """Descriptor of an adsorbate on one side of a slab.

    Parameters
    ----------
    numbers: (N,) atomic numbers; positions: (N, 3) Angstrom, the reference structure; cell: (3, 3) Angstrom, rows.
    adsorbate: indices of the adsorbate's atoms, the one that binds before the others; they move as one rigid body, and
        are brought together if they were wrapped into the cell.
    free: indices of slab atoms that may relax; all other slab atoms stay where they are.
    vacuum: which cell vector crosses the vacuum; the other two are periodic.
    conditions: (C,) numbers besides the structure that the law depends on, such as a reduced temperature's logarithm.

    Raises
    ------
    IncompatibleError: arrays that do not fit each other, indices out of range or named twice, no slab, an adsorbate that stands
    inside the slab.
    """
    numbers = torch.as_tensor(numbers, dtype=torch.long)
    positions, cell = (torch.as_tensor(x, dtype=torch.float64) for x in (positions, cell))
    n = len(numbers)
    if positions.shape != (n, 3) or cell.shape != (3, 3):
        raise IncompatibleError(f"expected positions ({n}, 3) and a cell (3, 3), got {tuple(positions.shape)} and {tuple(cell.shape)}.")
    if vacuum not in (0, 1, 2):
        raise IncompatibleError(f"vacuum must name a cell vector, 0, 1 or 2, got {vacuum}.")
    free, adsorbate = (_checked(name, x, n) for name, x in (("free", free), ("adsorbate", adsorbate)))
    if not 0 < len(adsorbate) < n:
        raise IncompatibleError(f"expected an adsorbate and a slab, got {len(adsorbate)} adsorbate atoms of {n}.")
    role, place = torch.full((n,), FROZEN), torch.zeros(n, dtype=torch.long)
    role[free] = FREE
    if bool((role[adsorbate] == FREE).any()):
        raise IncompatibleError(f"an atom is named both as free and as adsorbate: {adsorbate[role[adsorbate] == FREE].tolist()}.")
    role[adsorbate], place[adsorbate] = ADSORBATE, torch.arange(1, len(adsorbate) + 1)
    pbc = torch.arange(3) != vacuum
    descriptor = Descriptor(
        numbers=numbers, node=torch.stack([numbers, role, place], 1), pair=torch.zeros(n, n, 0, dtype=torch.long),
        bonds=torch.zeros(0, 2, dtype=torch.long), mobile=role != FROZEN, reference=Geometry(positions[None], cell[None]), pbc=pbc,
        schema=SURFACE_SCHEMA, conditions=torch.as_tensor(conditions, dtype=torch.float64).reshape(-1),
    )  # fmt: skip
    positions = positions.clone()
    positions[adsorbate] = frame_of(descriptor).whole(positions[None, adsorbate])[0]
    return replace(descriptor, reference=Geometry(positions[None], cell[None]))


def _checked(name: str, indices, n: int) -> Tensor:
    indices = torch.as_tensor(indices, dtype=torch.long).reshape(-1)
    if bool(((indices < 0) | (indices >= n)).any()):
        raise IncompatibleError(f"{name} must name atoms 0..{n - 1}, got {indices.tolist()}.")
    if len(indices.unique()) != len(indices):
        raise IncompatibleError(f"{name} names an atom twice: {indices.tolist()}.")
    return indices


def role_of(descriptor: Descriptor) -> Tensor:
    """(N,) FROZEN, FREE or ADSORBATE; raises UnsupportedError for a descriptor of something else."""
    if descriptor.schema != SURFACE_SCHEMA:
        raise UnsupportedError(
            f"expected the descriptor of an adsorbate on a slab ({SURFACE_SCHEMA}), got {descriptor.schema}: use surface()."
        )
    return descriptor.node[:, 1]


def guest_of(descriptor: Descriptor) -> Tensor:
    """(A,) indices of the adsorbate's atoms, the one that binds first."""
    place = torch.where(role_of(descriptor) == ADSORBATE, descriptor.node[:, 2], 0)
    return place.argsort()[len(place) - int((place > 0).sum()) :]


def frame_of(descriptor: Descriptor) -> Frame:
    """The frame that the reference structure gives. Raises IncompatibleError if the adsorbate stands inside the slab."""
    role = role_of(descriptor)
    reference = descriptor.reference
    if reference is None or reference.cell is None:
        raise IncompatibleError("an adsorbate's descriptor needs reference positions and a cell: use surface().")
    positions, cell = reference.positions[0].double(), reference.cell[0].double()
    a, b = cell[descriptor.pbc]
    normal = torch.linalg.cross(a, b)
    if not float(normal.norm()) > 1e-6:
        raise IncompatibleError(f"the periodic cell vectors {a.tolist()} and {b.tolist()} do not span a plane.")
    normal = normal / normal.norm()
    height = positions @ normal
    slab, guest = height[role != ADSORBATE], height[role == ADSORBATE]
    if float(guest.mean()) < float(slab.mean()):
        normal, slab, guest = -normal, -slab, -guest
    if float(guest.max()) < 0.5 * float(slab.max() + slab.mean()):
        raise IncompatibleError(
            f"the adsorbate stands inside the slab, {float(slab.max() - guest.max()):.1f} Angstrom below its surface: place it on one side."
        )
    first = a / a.norm()
    axes = torch.stack([first, torch.linalg.cross(normal, first)])
    return Frame(axes, normal, torch.stack([axes @ a, axes @ b]), float(slab.max()))
