"""Training frames in a model's coordinates, with the forces of an energy pulled through them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..coordinates import Coordinates
from ..energy import Energy
from ..errors import IncompatibleError
from ..system.descriptor import Descriptor
from ..types import Geometry, State, Tangent
from .losses import Frames

__all__ = ["frames_of"]


def frames_of(
    coordinates: Coordinates, descriptor: Descriptor, geometry: Geometry, energy: Energy | None = None, *, batch: int = 4096
) -> Frames:
    """Structures (F, N, 3) Angstrom as float32 Frames; with ``energy``, with the forces grad(-u + log volume) of the state's density.

    Frames whose energy is not finite are refused by number: training on them would be silently wrong.
    """
    states, forces = [], []
    for low in range(0, len(geometry.positions), batch):
        state, _ = coordinates.encode(Geometry(geometry.positions[low : low + batch].double()), descriptor)
        states.append(state)
        if energy is not None:
            forces.append(_force(coordinates, descriptor, state, energy, low))
    return Frames(_join(states), _join(forces) if energy is not None else None)


def _force(coordinates: Coordinates, descriptor: Descriptor, state: State, energy: Energy, first: int) -> Tangent:
    state = {name: x.detach().requires_grad_() for name, x in state.items()}
    u = energy(coordinates.decode(state, descriptor))
    if not bool(torch.isfinite(u).all()):
        bad = first + int((~torch.isfinite(u)).nonzero()[0])
        raise IncompatibleError(f"frame {bad} has no finite energy: remove or minimise it before training.")
    total = (coordinates.log_volume(state, descriptor) - u).sum()
    # A molecule without free torsions has an empty component, which no energy depends on.
    return dict(zip(state, torch.autograd.grad(total, list(state.values()), materialize_grads=True), strict=True))


def _join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name].detach() for part in parts]).float() for name in parts[0]}
