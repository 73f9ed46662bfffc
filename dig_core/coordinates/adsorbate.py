"""An adsorbate over a slab: where it stands in the surface plane, how high, how it is turned, and how the surface gives way."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..diffusion.rotations import compose, quaternion, rotation_matrix, rotation_vector, vector_of
from ..errors import IncompatibleError
from ..random import Streams
from ..system.descriptor import Descriptor
from ..system.surface import FREE, frame_of, guest_of, role_of
from ..types import Geometry, State

__all__ = ["Adsorbate"]

_RIGID = 0.2  # Angstrom, by how much an adsorbate's shape may differ from the reference's and still be read as it


class Adsorbate(nn.Module):
    """A rigid adsorbate on one side of a slab.

    ``plane`` (B, 2) Angstrom: in-plane place of its first atom, on the torus of the periodic cell; ``height`` (B, 1): of that
    atom over ``height`` above the outermost slab atom, in units of ``width``; ``turn`` (B, 3): rotation vector from the
    reference orientation, for adsorbates of several atoms; ``surface`` (B, 3 F): displacements of the F free slab atoms in units of
    ``relaxation``, if there are any. Frozen atoms stay. A straight adsorbate's rotation about itself is drawn by no one and
    felt by no one: it is part of the state and not of the density.

    All numbers are Angstrom. The measure is Lebesgue for the first atom and for free slab atoms, the solid angle for the
    axis of a straight adsorbate, 8 pi^2 for the rotations of any other.
    """

    gauge: frozenset[str] = frozenset()
    curved = frozenset({"turn"})

    def __init__(self, height: float = 1.2, width: float = 1.0, relaxation: float = 0.15):
        super().__init__()
        self.height, self.width, self.relaxation = float(height), float(width), float(relaxation)
        self.config = {"height": self.height, "width": self.width, "relaxation": self.relaxation}

    @classmethod
    def from_config(cls, **config) -> Adsorbate:
        return cls(**config)

    def encode(self, geometry: Geometry, descriptor: Descriptor) -> tuple[State, Tensor]:
        """State of (B, N, 3) Angstrom and log|d state / d geometry| (B,); atoms may be wrapped into the cell. Differentiable once.

        Raises IncompatibleError for an adsorbate whose shape is not the reference's.
        """
        frame, role = frame_of(descriptor), role_of(descriptor)
        guest = geometry.positions.double()[:, guest_of(descriptor)]
        first = guest[:, 0]
        state = {
            "plane": frame.home(first @ frame.axes.T),
            "height": (first @ frame.normal - frame.top - self.height)[:, None] / self.width,
        }
        if guest.shape[1] > 1:
            state["turn"] = _turn(frame.whole(guest) - guest[:, :1], self.template(descriptor))
        if bool((role == FREE).any()):
            shift = geometry.positions.double()[:, role == FREE] - _reference(descriptor)[role == FREE]
            state["surface"] = shift.flatten(1) / self.relaxation
        return state, -self.log_volume(state, descriptor)

    def decode(self, state: State, descriptor: Descriptor) -> Geometry:
        """(B, N, 3) Angstrom, float64, in the reference's cell. Differentiable."""
        frame, role = frame_of(descriptor), role_of(descriptor)
        plane, height = state["plane"].double(), state["height"].double()
        first = plane @ frame.axes + (frame.top + self.height + self.width * height) * frame.normal
        offsets = self.template(descriptor).expand(len(first), -1, -1)
        if "turn" in state:
            offsets = offsets @ rotation_matrix(state["turn"].double()).transpose(1, 2)
        positions = _reference(descriptor).expand(len(first), -1, -1)
        if "surface" in state:
            shift = self.relaxation * state["surface"].double().view(len(first), -1, 3)
            positions = positions.index_add(1, (role == FREE).nonzero()[:, 0], shift)
        positions = positions.index_copy(1, guest_of(descriptor), first[:, None] + offsets)
        cell = descriptor.reference.cell  # type: ignore[union-attr]
        return Geometry(positions, cell.double().expand(len(first), -1, -1))  # type: ignore[union-attr]

    def log_volume(self, state: State, descriptor: Descriptor) -> Tensor:
        """(B,) log|d geometry / d state|, a constant."""
        frame = frame_of(descriptor)
        value = math.log(abs(float(torch.linalg.det(frame.vectors)))) + math.log(self.width)
        if "turn" in state:
            value += math.log(4 * math.pi if _straight(self.template(descriptor)) else 8 * math.pi**2)
        if "surface" in state:
            value += state["surface"].shape[1] * math.log(self.relaxation)
        return state["height"].new_full((len(state["height"]),), value, dtype=torch.float64)

    def template(self, descriptor: Descriptor) -> Tensor:
        """(A, 3) Angstrom from the adsorbate's first atom, in the reference orientation."""
        guest = _reference(descriptor)[guest_of(descriptor)]
        return guest - guest[:1]

    def valid(self, state: State, descriptor: Descriptor) -> Tensor:
        """(B,) all True: every state is a structure."""
        return torch.ones(len(state["height"]), dtype=torch.bool, device=state["height"].device)

    def pose(self, geometry: Geometry, rng: Streams) -> Geometry:
        """Nothing to draw: the slab fixes the frame."""
        return geometry


def _reference(descriptor: Descriptor) -> Tensor:
    return descriptor.reference.positions[0].double()  # type: ignore[union-attr]


def _straight(template: Tensor) -> bool:
    widths = torch.linalg.svdvals(template)
    return len(template) < 3 or float(widths[1]) < 1e-3 * float(widths[0])


def _turn(offsets: Tensor, template: Tensor) -> Tensor:
    """(B, 3) rotation vectors that best map the template onto the offsets (Kabsch, doi:10.1107/S0567739476001873)."""
    fixed = offsets.detach()
    u, _, v = torch.linalg.svd(fixed.transpose(1, 2) @ template)
    hand = torch.ones_like(u[..., 0])
    hand[:, 2] = torch.linalg.det(u @ v)
    matrix = (u * hand[:, None]) @ v
    turned = template @ matrix.transpose(1, 2)
    misfit = (turned - fixed).norm(dim=-1).amax(1)
    if bool((misfit > _RIGID).any()):
        worst = int(misfit.argmax())
        raise IncompatibleError(
            f"structure {worst}: the adsorbate's atoms stand up to {float(misfit[worst]):.2f} Angstrom from where the rigid reference "
            "adsorbate has them. Relax it, give a reference of its shape, or leave it out (it may have dissociated)."
        )
    turn = rotation_vector(matrix)
    if not offsets.requires_grad:
        return turn
    # A straight adsorbate has no derivative of the decomposition; that of the rotation is its angular velocity.
    square = turned.square().sum((1, 2))[:, None, None] * torch.eye(3).to(turned)
    inertia = square - turned.transpose(1, 2) @ turned
    moment = torch.linalg.cross(turned, offsets - fixed).sum(1)
    velocity = (torch.linalg.pinv(inertia, hermitian=True, rtol=1e-6) @ moment[..., None])[..., 0]
    return vector_of(compose(quaternion(velocity), quaternion(turn)))
