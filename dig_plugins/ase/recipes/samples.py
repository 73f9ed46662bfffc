"""Equilibrium samples of an adsorbate at several temperatures, with forces, as training frames of a slab's descriptor."""

from __future__ import annotations

import math

import numpy as np
import torch
from ase import Atoms
from ase.units import kB
from scipy.ndimage import map_coordinates, spline_filter
from torch import Tensor

from dig_core.coordinates import Adsorbate
from dig_core.system.descriptor import Descriptor
from dig_core.system.surface import frame_of, guest_of, surface
from dig_core.training.losses import Frames
from dig_core.types import Geometry
from dig_plugins.ase.recipes.labels import Labels, _rattled, _tries, process_of

__all__ = ["TEMPERATURES", "described", "frames", "labelled_frames"]

TEMPERATURES = (300.0, 500.0, 800.0, 1200.0, 2000.0)
_SPACING = 0.2  # Angstrom, of the table that samples are drawn from
_Drawn = list[tuple[np.ndarray, np.ndarray]]  # positions and forces (F, A, 3) a temperature, Angstrom and eV/Angstrom
_DOUBT = 2.0  # standard deviations added to the mean: what nobody has looked at is not low


def frames(coordinates: Adsorbate, descriptor: Descriptor, guest: Tensor, force: Tensor) -> Frames:
    """Adsorbate positions (F, A, 3) Angstrom and reduced forces (F, A, 3) 1/Angstrom as frames of the state."""
    positions = descriptor.reference.positions.expand(len(guest), -1, -1).clone()  # type: ignore[union-attr]
    positions[:, guest_of(descriptor)] = guest.double()
    state, _ = coordinates.encode(Geometry(positions), descriptor)
    frame, total = frame_of(descriptor), force.double().sum(1)
    along = {"plane": total @ frame.axes.T, "height": (total @ frame.normal)[:, None] * coordinates.width}
    if "turn" in state:
        along["turn"] = torch.linalg.cross(guest.double() - guest[:, :1].double(), force.double()).sum(1)
    return Frames({k: x.float() for k, x in state.items()}, {k: x.float() for k, x in along.items()})


def described(slab: Atoms, guest: Atoms) -> Descriptor:
    """``guest``, in any place over ``slab``, as a system at the reference temperature."""
    total = len(slab) + len(guest)
    positions = np.concatenate([slab.positions, guest.positions])
    return surface([*slab.numbers, *guest.numbers], positions, slab.cell.array, range(len(slab), total), conditions=[0.0])


def labelled_frames(
    slab: Atoms, guest: Atoms, vectors: np.ndarray, labels: Labels, coordinates: Adsorbate, n: int, seed: int
) -> list[Frames]:
    """Frames at each temperature from the labels of a calculator, ``n`` at most, of the system :func:`described`."""
    process = process_of(slab, guest, vectors, labels)
    rng = np.random.default_rng(seed)
    draw = _atoms if len(guest) == 1 else _molecules
    over = guest.copy()
    over.positions += labels.positions[labels.energy.argmin(), 0]
    descriptor, found = described(slab, over), []
    for positions, force in draw(process, slab, guest, vectors, n, rng):
        # The surface repeats inside the slab's cell: any of its translations will do.
        repeats = np.rint(np.linalg.norm(slab.cell.array[:2], axis=1) / np.linalg.norm(vectors, axis=1)).astype(int)
        steps = rng.integers(repeats, size=(len(positions), 2)) @ vectors
        temperature = TEMPERATURES[len(found)]
        found.append(frames(coordinates, descriptor, torch.tensor(positions + steps[:, None]), torch.tensor(force / (kB * temperature))))
    return found


def _atoms(process, slab: Atoms, guest: Atoms, vectors: np.ndarray, n: int, rng: np.random.Generator) -> _Drawn:
    """By importance resampling of uniform points, from a cubic spline through a table of the process."""
    tries = _tries(slab, guest, vectors, 512, rng)[:, 0, 2]
    low, high = tries.min(), tries.max()
    shape = [*(max(8, math.ceil(np.linalg.norm(v) / _SPACING)) for v in vectors), math.ceil((high - low) / (0.6 * _SPACING))]
    grid = np.stack(np.meshgrid(*(np.arange(k) / k for k in shape[:2]), np.linspace(low, high, shape[2]), indexing="ij"), -1).reshape(-1, 3)
    points = grid[:, :2] @ vectors
    points[:, 2] = grid[:, 2]
    table = []
    for part in torch.tensor(points[:, None]).split(2000):
        table.append(_cautious(process, part))
    pad = 6
    padded = np.pad(torch.cat(table).numpy().reshape(shape), [(pad, pad), (pad, pad), (0, 0)], mode="wrap")
    spline = spline_filter(np.clip(padded, None, padded.min() + 4.0), order=3)

    def energy(fraction: np.ndarray, height: np.ndarray) -> np.ndarray:
        where = [fraction[:, k] % 1 * shape[k] + pad for k in range(2)]
        return map_coordinates(spline, [*where, (height - low) / (high - low) * (shape[2] - 1)], order=3, prefilter=False, mode="nearest")

    inverse = np.linalg.pinv(vectors)
    fraction, height = rng.random((400_000, 2)), rng.uniform(low, high, 400_000)
    u = energy(fraction, height)
    out = []
    for temperature in TEMPERATURES:
        weight = np.exp(-(u - u.min()) / (kB * temperature))
        chosen = rng.choice(len(u), n, p=weight / weight.sum())
        positions = fraction[chosen] @ vectors
        positions[:, 2] += height[chosen]
        force = np.zeros_like(positions)
        for axis in range(3):
            step = np.zeros(3)
            step[axis] = 0.02
            ends = [positions + s * step for s in (1, -1)]
            force[:, axis] = -np.subtract(*(energy(e @ inverse, e[:, 2]) for e in ends)) / 0.04
        out.append((positions[:, None], force[:, None]))
    return out


def _molecules(process, slab: Atoms, guest: Atoms, vectors: np.ndarray, n: int, rng: np.random.Generator) -> _Drawn:
    """By Metropolis walkers that cool down from the highest temperature."""
    walkers = _tries(slab, guest, vectors, max(64, n // 4), rng)
    u, size, out = _cautious(process, torch.tensor(walkers)).numpy(), 1.0, []
    before = math.inf
    for temperature in sorted(TEMPERATURES, reverse=True):
        # Walkers that are stuck above the rest die out on the way down, as in population annealing.
        weight = np.exp(-(u - u.min()) * (1 / temperature - 1 / before) / kB)
        chosen = rng.choice(len(u), len(u), p=weight / weight.sum())
        walkers, u, before, kept = walkers[chosen], u[chosen], temperature, []
        for step in range(48):
            moved = walkers + size * (_rattled(walkers, rng) - walkers) if size < 1 else _rattled(walkers, rng)
            moved = _rigid(moved, guest)
            fresh = _cautious(process, torch.tensor(moved)).numpy()
            accept = rng.random(len(u)) < np.exp(np.clip((u - fresh) / (kB * temperature), -50, 0))
            walkers, u = np.where(accept[:, None, None], moved, walkers), np.where(accept, fresh, u)
            size = float(np.clip(size * math.exp(0.3 * (accept.mean() - 0.35)), 0.1, 1.0))
            if step % 12 == 11:
                kept.append(walkers.copy())
        positions = np.concatenate(kept)[-n:]
        force = np.concatenate([process(part)[1].numpy() for part in torch.tensor(positions).split(200)])
        out.append((positions, force))
    return out[::-1]


def _rigid(positions: np.ndarray, guest: Atoms) -> np.ndarray:
    """The adsorbate's own bond length again, after a move along a chord."""
    first = positions[:, :1]
    gap = positions - first
    length = np.linalg.norm(gap, axis=-1, keepdims=True)
    wanted = np.linalg.norm(guest.positions - guest.positions[0], axis=1)[None, :, None]
    return first + gap / np.where(length > 0, length, 1.0) * wanted


def _cautious(process, positions: Tensor) -> Tensor:
    both = [process.energy(part) for part in positions.split(1000)]
    return torch.cat([mean + _DOUBT * doubt for mean, doubt in both])
