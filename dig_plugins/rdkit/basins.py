"""Frames of a molecule to train a model of any molecule on: MMFF94s minima of distance geometry, weighted, and their vibrations."""

from __future__ import annotations

import math

import torch
from rdkit import Chem
from torch import Tensor

from dig_core.coordinates import Internal
from dig_core.diffusion.spaces import wrap
from dig_core.dig import DiG
from dig_core.system.descriptor import Descriptor
from dig_core.training.draws import resampled, target_law
from dig_core.training.frames import frames_of, join_frames
from dig_core.training.losses import Frames
from dig_core.training.molecule import internal_model
from dig_core.types import Geometry

from .convert import describe, embed, to_geometry
from .coordinates import internal_coordinates
from .energy import MMFFEnergy, reduced_unit
from .minima import minimised

__all__ = ["basin_frames", "distinct", "encoded", "transferable_coordinates"]

_ROUGH, _SEED = 60, 0
_SAME = 0.35  # rad or widths: minima whose coordinates all agree within it are one
FAR = 12.0  # widths: hydrogens that changed places would be 25 off
_STEP = 1e-3
_HIGH = 6.0  # standard deviations of a harmonic energy
_SOFT = 0.4


def transferable_coordinates(mol: Chem.Mol, temperature: float = 300.0) -> tuple[Internal, Descriptor, Chem.Mol]:
    """Coordinates and descriptor of a molecule as a model of any molecule takes them, and the rough conformers of distance geometry
    that they were made from: its own structure is not read but for stereochemistry, and the same molecule gives the same."""
    bare = Chem.Mol(mol)
    bare.RemoveAllConformers()
    first, _ = minimised(embed(bare, 1, seed=_SEED))
    rough = embed(first, _ROUGH, seed=_SEED + 1)
    return internal_coordinates(first, to_geometry(rough), temperature), describe(first), rough


def distinct(frames: Frames, energy: Tensor, near: float = _SAME) -> Tensor:
    """Indices of the minima, the lowest first, each of which stands for all that are like it."""
    shape, torsion = frames.state["shape"], frames.state["torsion"]
    points = torch.cat([torsion.sin(), torsion.cos(), 0.25 * shape], 1)
    kept: list[int] = []
    for i in torch.argsort(energy).tolist():
        if not kept or float((points[kept] - points[i]).abs().amax(1).min()) > near:
            kept.append(i)
    return torch.tensor(kept)


def basin_frames(
    mol: Chem.Mol, count: int, temperature: float = 300.0, *, spread: float = 1000.0, window: float = 12.0, seed: int = 0
) -> tuple[Internal, Descriptor, Frames]:
    """``count`` frames of a molecule, or nearly as many.

    Distinct minima within ``window`` kcal/mol get weights exp(-E / k spread), ``spread`` in K: hotter than ``temperature``, for ranks
    of minima in a force field are rough. A frame is a draw of the harmonic law of its minimum at ``temperature``; draws far above it, of
    atoms that overlap, are left out. Weights of minima leave out their widths, and one that distance geometry does not lead to is missed.
    """
    coordinates, descriptor, rough = transferable_coordinates(mol, temperature)
    low, found = minimised(rough)
    energies = torch.from_numpy(found)
    frames = frames_of(coordinates, descriptor, to_geometry(low))
    sound = coordinates.valid(frames.state, descriptor) & (energies < energies.min() + window)
    chosen = sound.nonzero()[:, 0]
    chosen = chosen[distinct(frames.take(chosen), energies[chosen])]
    log_weight = (energies.min() - energies[chosen]) / reduced_unit(spread)
    start = resampled(log_weight, count, 0.5)
    dig = DiG(internal_model(coordinates, width=8, blocks=1), coordinates, descriptor)
    energy, rng = MMFFEnergy(mol, temperature), torch.Generator().manual_seed(seed)
    drawn = [
        _vibrations(dig, energy, frames.take(chosen[k : k + 1]), int(times), rng)
        for k, times in enumerate(torch.bincount(start, minlength=len(chosen))) if times
    ]  # fmt: skip
    return coordinates, descriptor, join_frames(drawn)


def encoded(coordinates: Internal, descriptor: Descriptor, mol: Chem.Mol) -> Frames:
    """Conformers that are at hand, those that the coordinates describe. Two equivalent end atoms, hydrogens of a CH2 for example, take
    the places that they have there."""
    positions, numbers = to_geometry(mol).positions.clone(), descriptor.numbers.tolist()
    degree = descriptor.node[:, 1].tolist()
    state, _ = coordinates.encode(Geometry(positions), descriptor)
    for frame, far in enumerate(state["shape"].abs() > FAR):
        atoms = [coordinates.shape_atoms[column] for column in far.nonzero()[:, 0].tolist()]
        for centre in {known[1] for known in atoms}:
            pair = [known[0] for known in atoms if known[1] == centre]
            if len(pair) == 2 and degree[pair[0]] == degree[pair[1]] == 1 and numbers[pair[0]] == numbers[pair[1]]:
                positions[frame, pair] = positions[frame, pair[::-1]]
    frames = frames_of(coordinates, descriptor, Geometry(positions))
    sound = coordinates.valid(frames.state, descriptor) & (frames.state["shape"].abs() < FAR).all(1)
    return frames.take(sound.nonzero()[:, 0])


def _vibrations(dig: DiG, energy: MMFFEnergy, minimum: Frames, count: int, rng: torch.Generator) -> Frames:
    """Draws about one minimum, by the second derivatives of the law of the coordinates there; but for directions softer than a width
    or a radian and a half."""
    sizes = [x.shape[1] for x in minimum.state.values()]
    origin = torch.cat([x.double() for x in minimum.state.values()], 1)
    moved = origin + torch.cat([torch.zeros_like(origin), _STEP * torch.eye(origin.shape[1], dtype=torch.float64)])

    def law(points: Tensor) -> tuple[Tensor, Tensor]:
        log_target, force = target_law(dig, energy, dict(zip(minimum.state, points.split(sizes, 1), strict=True)))
        return log_target, torch.cat(list(force.values()), 1)

    log_target, force = law(moved)
    stiffness = -(force[1:] - force[:1]) / _STEP
    values, vectors = torch.linalg.eigh(0.5 * (stiffness + stiffness.T))
    width = values.clamp_min(_SOFT).rsqrt()
    shift = vectors @ (width**2 * (vectors.T @ force[0]))
    drawn = torch.randn(count, len(width), generator=rng, dtype=torch.float64)
    points = origin + shift.clamp(-1, 1) + (drawn * width) @ vectors.T
    heat = 0.5 * len(width)
    sound = law(points)[0] > log_target[0] - heat - _HIGH * math.sqrt(heat)
    state = dict(zip(minimum.state, points[sound].split(sizes, 1), strict=True))
    return Frames({"shape": state["shape"].float(), "torsion": wrap(state["torsion"]).float()})
