"""Posed ligands as training frames: a form of the rings that fits, a minimum near the pose, the harmonic law about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from rdkit import Chem
from torch import Tensor

from dig_core.coordinates.bound import Bound
from dig_core.coordinates.complex import Complex
from dig_core.diffusion import SO3
from dig_core.diffusion.spaces import wrap
from dig_core.training.losses import Frames
from dig_core.types import Geometry, State

from ..convert import to_geometry
from .describe import check_place, describe_complex, ring_forms
from .energy import PocketEnergy
from .minimise import relax
from .pocket import Pocket

__all__ = ["Posed", "frames_of_pose", "nearest_form", "posed"]

_STEP = 1e-4  # Angstrom or radians, of numerical derivatives
_WIDEST = {"place": 0.15, "turn": 0.2, "shape": 3.0, "torsion": 0.4}
"""Largest standard deviations of frames about a pose, in the state's units: what is softer is no minimum's business."""


class Posed(NamedTuple):
    """A ligand's pose ready to train on: the complex, frames about the minimised pose, and how far (Angstrom) heavy atoms moved."""

    system: Complex
    frames: Frames
    moved: float


def posed(ligand: Chem.Mol, pocket: Pocket, *, n: int = 32, temperature: float = 300.0, restraint: float = 1.0, seed: int = 0) -> Posed:
    """``n`` frames of the harmonic law of MMFF94 about the ligand's own pose, minimised with springs of ``restraint`` kT/Angstrom^2.

    Raises as :func:`.describe.check_place`, :func:`.describe.ring_forms` and :class:`.energy.PocketEnergy`.
    """
    check_place(ligand, pocket)
    energy = PocketEnergy(ligand, pocket, temperature)
    forms = ring_forms(ligand, temperature=temperature, seed=seed)
    start = to_geometry(ligand).positions[:1]
    place = relax(start, energy, restraint=restraint).positions
    systems = [describe_complex(ligand, pocket, form) for form in forms]
    system = systems[int(nearest_form(place, systems)[0])]
    heavy = system.numbers[: system.n_ligand] > 1
    moved = float((place - start)[0, heavy].square().sum(-1).mean().sqrt())
    return Posed(system, frames_of_pose(system, place, energy, n, restraint, seed), moved)


def nearest_form(ligand: Tensor, systems: Sequence[Complex]) -> Tensor:
    """(B,) which of a ligand's forms poses (B, L, 3) are of: the one whose coordinates they strain least."""
    strain = [Bound().encode(Geometry(ligand), system)[0]["shape"].square().sum(1) for system in systems]
    return torch.stack(strain).argmin(0)


def frames_of_pose(system: Complex, ligand: Tensor, energy: PocketEnergy, n: int, restraint: float, seed: int) -> Frames:
    """``n`` draws of the harmonic law about a minimum (1, L, 3), with springs to it of ``restraint`` kT/Angstrom^2."""
    coordinates = Bound()
    state, _ = coordinates.encode(Geometry(ligand), system)
    sizes = {name: x.shape[1] for name, x in state.items()}
    size = sum(sizes.values())
    moves = _STEP * torch.eye(size, dtype=torch.float64)
    x = coordinates.ligand(_moved(state, torch.cat([moves, -moves]), sizes), system).flatten(1)
    slope = (x[:size] - x[size:]) / (2 * _STEP)
    here = coordinates.ligand(state, system)
    atoms = here.shape[1] * 3
    steps = 10 * _STEP * torch.eye(atoms, dtype=torch.float64).view(atoms, -1, 3)
    _, gradient = energy.energy_and_gradient(Geometry(torch.cat([here + steps, here - steps])))
    hessian = (gradient[:atoms] - gradient[atoms:]).flatten(1) / (20 * _STEP)
    hessian = 0.5 * (hessian + hessian.T) + restraint * torch.eye(atoms, dtype=torch.float64)
    widest = torch.cat([torch.full((sizes[name],), _WIDEST[name], dtype=torch.float64) for name in sizes])
    values, vectors = torch.linalg.eigh(widest[:, None] * (slope @ hessian @ slope.T) * widest)
    raw = torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn = (raw * values.clamp_min(1.0) ** -0.5) @ vectors.T * widest
    return Frames({name: x.float() for name, x in _moved(state, drawn, sizes).items()})


def _moved(state: State, by: Tensor, sizes: dict[str, int]) -> State:
    """States (B, ...) that tangents (B, D), component after component, lead to."""
    parts, found = dict(zip(sizes, by.split(list(sizes.values()), 1), strict=True)), {}
    for name, x in state.items():
        start = x.expand(len(by), -1)
        found[name] = SO3().exp(start, parts[name]) if name == "turn" else start + parts[name]
    if "torsion" in found:
        found["torsion"] = wrap(found["torsion"])
    return found
