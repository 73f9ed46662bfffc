"""Training frames in a model's coordinates, with the forces of an energy pulled through them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..coordinates import Coordinates
from ..diffusion.processes import Joint
from ..energy import Energy
from ..errors import IncompatibleError
from ..files import understood
from ..system.descriptor import Descriptor
from ..tensors import read_tensors, write_tensors
from ..types import Geometry, State, Tangent
from .losses import Frames

__all__ = ["frames_of", "join_frames", "read_frames", "with_forces", "write_frames"]


def frames_of(
    coordinates: Coordinates,
    descriptor: Descriptor,
    geometry: Geometry,
    energy: Energy | None = None,
    *,
    process: Joint | None = None,
    batch: int = 4096,
) -> Frames:
    """Structures (F, N, 3) Angstrom as float32 Frames; with ``energy``, with the forces grad(-u + log volume) of the state's density.

    ``process`` gives the spaces that forces are taken along; it may be left out where all of them are flat, and is asked for where
    the coordinates say that one is ``curved``. Frames whose energy is not finite are refused by number: training on them would be
    silently wrong.
    """
    states, forces = [], []
    for low in range(0, len(geometry.positions), batch):
        cell = None if geometry.cell is None else geometry.cell[low : low + batch].double()
        state, _ = coordinates.encode(Geometry(geometry.positions[low : low + batch].double(), cell), descriptor)
        states.append(state)
        if energy is not None:
            forces.append(_force(coordinates, descriptor, state, energy, low, process))
    return Frames(_join(states), _join(forces) if energy is not None else None)


def with_forces(
    coordinates: Coordinates,
    descriptor: Descriptor,
    frames: Frames,
    energy: Energy,
    *,
    process: Joint | None = None,
    batch: int = 4096,
) -> Frames:
    """``frames`` with the forces of ``energy``, one evaluation each; ``process`` and errors as in :func:`frames_of`."""
    forces = []
    for low in range(0, len(frames), batch):
        state = {name: x[low : low + batch].double() for name, x in frames.state.items()}
        forces.append(_force(coordinates, descriptor, state, energy, low, process))
    return Frames(frames.state, _join(forces), frames.weight)


def join_frames(parts: list[Frames]) -> Frames:
    """One after the other; all with forces or all without; weights if all have them."""
    state = {name: torch.cat([part.state[name] for part in parts]) for name in parts[0].state}
    weights = [part.weight for part in parts if part.weight is not None]
    weight = torch.cat(weights) if len(weights) == len(parts) else None
    forces = [part.force for part in parts if part.force is not None]
    if not forces:
        return Frames(state, None, weight)
    if len(forces) < len(parts):
        raise IncompatibleError(f"expected forces in all of {len(parts)} sets of frames or in none, got them in {len(forces)}.")
    return Frames(state, {name: torch.cat([force[name] for force in forces]) for name in forces[0]}, weight)


def write_frames(path: Path, frames: Frames) -> None:
    """One safetensors file, complete or not there."""
    tensors = {f"state.{name}": x for name, x in frames.state.items()}
    tensors |= {f"force.{name}": x for name, x in (frames.force or {}).items()}
    if frames.weight is not None:
        tensors["weight."] = frames.weight
    write_tensors(path, tensors)


def read_frames(path: Path) -> Frames:
    """What :func:`write_frames` wrote. Raises CheckpointError for other and for damaged files."""
    with understood(path, "holds no frames", "delete it to have them made again"):
        tensors, _ = read_tensors(path)
        state, force = ({key[6:]: x for key, x in tensors.items() if key.startswith(kind)} for kind in ("state.", "force."))
        if not state or len({len(x) for x in tensors.values()}) > 1 or any(f.shape != state[name].shape for name, f in force.items()):
            raise ValueError("expected one row a frame in all tensors")
        return Frames(state, force or None, tensors.get("weight."))


def _force(
    coordinates: Coordinates, descriptor: Descriptor, state: State, energy: Energy, first: int, process: Joint | None
) -> Tangent:
    curved: set[str] = set(getattr(coordinates, "curved", ())) & set(state)
    if process is None and curved:
        raise IncompatibleError(f"forces along {', '.join(sorted(curved))} need process=, the process that the model diffuses by.")
    leaves = {name: x.detach().requires_grad_() for name, x in state.items()} if process is None else process.still(state)
    state = leaves if process is None else process.exp(state, leaves)
    u = energy(coordinates.decode(state, descriptor))
    if not bool(torch.isfinite(u).all()):
        bad = first + int((~torch.isfinite(u)).nonzero()[0])
        raise IncompatibleError(f"frame {bad} has no finite energy: remove or minimise it before training.")
    total = (coordinates.log_volume(state, descriptor) - u).sum()
    # A molecule without free torsions has an empty component, which no energy depends on.
    return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()), materialize_grads=True), strict=True))


def _join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name].detach() for part in parts]).float() for name in parts[0]}
