"""Energies and forces of adsorbates on slabs from a real calculator, placed where a Gaussian process knows least of what matters.

python -m dig_plugins.ase.recipes.labels --out runs/adsorb     # CHGNet r2SCAN; some three hours of one core; resumable
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import covalent_radii
from ase.io import read, write

from dig_plugins.ase.calculators import calculator_named
from dig_plugins.ase.recipes.slabs import (
    HELD_OUT,
    MOLECULAR,
    SLABS,
    VALIDATION,
    adsorbate,
    build,
    guests,
    surface_vectors,
)
from dig_plugins.ase.recipes.surrogate import SlabProcess

log = logging.getLogger(__name__)

__all__ = ["Labels", "label", "process_of"]

_TOUCH = 0.9  # contact, as a share of the sum of covalent radii
_WINDOW = (-0.45, 1.1)  # Angstrom about contact, where structures are tried
_HOT = 0.15  # eV, the temperature at which structures compete for a label
_ABOVE = 4.0  # eV above the lowest label: further up nothing is worth knowing


class Labels:
    """``positions`` (n, A, 3) Angstrom, ``energy`` (n,) eV and ``force`` (n, A, 3) eV/Angstrom of one adsorbate on one slab."""

    def __init__(self, positions: np.ndarray, energy: np.ndarray, force: np.ndarray):
        self.positions, self.energy, self.force = positions, energy, force

    def useful(self) -> Labels:
        """Those within reach of the lowest."""
        keep = self.energy < self.energy.min() + _ABOVE
        return Labels(self.positions[keep], self.energy[keep], self.force[keep])


def process_of(slab: Atoms, guest: Atoms, vectors: np.ndarray, labels: Labels) -> SlabProcess:
    """The Gaussian process of these labels."""
    near = _extended(slab, vectors)
    contact = covalent_radii[guest.numbers][:, None] + covalent_radii[near.numbers]
    lengths = [0.7] + [1.0] * (len(guest) - 1)
    process = SlabProcess(torch.tensor(near.positions), torch.tensor(contact), torch.tensor(vectors), torch.tensor(lengths))
    held = labels.useful()
    return process.fit(torch.tensor(held.positions), torch.tensor(held.energy), torch.tensor(held.force))


def label(slab: Atoms, guest: Atoms, vectors: np.ndarray, calculator: Calculator, count: int, rng: np.random.Generator) -> Labels:
    """``count`` labels: a third spread evenly, the rest where the process expects low energies that it is not sure of."""
    first = max(24, count // 3)
    found = _measure(slab, guest, _tries(slab, guest, vectors, first, rng), calculator)
    while len(found.energy) < count:
        process = process_of(slab, guest, vectors, found)
        tries = _tries(slab, guest, vectors, 1500, rng)
        low = np.argsort(found.energy)[:8]
        near = np.concatenate([_rattled(found.positions[low], rng) for _ in range(20)])
        tries = np.concatenate([tries, near])
        mean, doubt = (x.numpy() for x in process.energy(torch.tensor(tries)))
        # Where atoms overlap both numbers overflow: such places are worth nothing.
        worth = np.exp(-np.clip((mean - doubt - mean.min()) / _HOT, 0, 50)) * doubt**2
        worth = np.nan_to_num(worth, posinf=0.0) + 1e-12
        chosen = rng.choice(len(tries), size=min(12, count - len(found.energy)), replace=False, p=worth / worth.sum())
        more = _measure(slab, guest, tries[chosen], calculator)
        found = Labels(*(np.concatenate([getattr(found, k), getattr(more, k)]) for k in ("positions", "energy", "force")))
    return found


def _measure(slab: Atoms, guest: Atoms, positions: np.ndarray, calculator: Calculator) -> Labels:
    whole = slab.copy()
    whole.set_constraint()
    whole += guest
    size, energies, forces = len(guest), [], []
    for place in positions:
        whole.positions[-size:] = place
        whole.calc = calculator
        energies.append(whole.get_potential_energy())
        forces.append(whole.get_forces()[-size:])
    energy, force = np.array(energies, dtype=float), np.array(forces, dtype=float)
    good = np.isfinite(energy) & np.isfinite(force).all((1, 2))
    return Labels(positions[good], energy[good], force[good])


def _tries(slab: Atoms, guest: Atoms, vectors: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, A, 3): in random places of the surface cell, in random orientation, about contact."""
    near, size = _extended(slab, vectors), len(guest)
    sobol = torch.quasirandom.SobolEngine(3, scramble=True, seed=int(rng.integers(2**31))).draw(n).double().numpy()
    turned = np.stack([guest.positions @ _rotation(rng).T if size > 1 else guest.positions for _ in range(n)])
    turned -= turned[:, :1]
    turned[..., :2] += (sobol[:, :2] @ vectors)[:, None, :2]
    reach = _TOUCH * (covalent_radii[guest.numbers][:, None] + covalent_radii[near.numbers])
    flat = np.linalg.norm(turned[:, :, None, :2] - near.positions[:, :2], axis=-1)
    lift = near.positions[:, 2] + np.sqrt(np.clip(reach**2 - flat**2, 0, None)) - turned[..., None, 2]
    outside = flat - reach
    # Over the channels of an open surface a small atom touches none from above: the nearest, the upper of two, says how deep it may go.
    np.put_along_axis(outside, (outside - 1e-6 * near.positions[:, 2]).argmin(-1)[..., None], -1.0, -1)
    lift[outside >= 0] = -np.inf
    height = lift.reshape(n, -1).max(1) + _WINDOW[0] + (_WINDOW[1] - _WINDOW[0]) * sobol[:, 2]
    turned[..., 2] += height[:, None]
    return turned


def _rattled(positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moved by 0.25 Angstrom and turned by some 20 degrees about the first atom."""
    out = positions + 0.25 * rng.normal(size=(len(positions), 1, 3))
    if positions.shape[1] > 1:
        for place in out:
            axis = 0.35 * rng.normal(size=3)
            place[1:] = place[0] + (place[1:] - place[0]) @ _turn(axis).T
    return out


def _rotation(rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def _turn(axis: np.ndarray) -> np.ndarray:
    skew = torch.tensor([[0.0, -axis[2], axis[1]], [axis[2], 0.0, -axis[0]], [-axis[1], axis[0], 0.0]])
    return torch.linalg.matrix_exp(skew).numpy()


def _extended(slab: Atoms, vectors: np.ndarray) -> Atoms:
    """The upper part of the slab with its images around the surface cell."""
    top = slab[slab.positions[:, 2] > slab.positions[:, 2].max() - 5.0]
    top.set_constraint()
    cells = [(i, j) for i in range(-2, 4) for j in range(-2, 4)]
    images = np.concatenate([top.positions + i * slab.cell[0] + j * slab.cell[1] for i, j in cells])
    centre = vectors.sum(0) / 2
    out = Atoms(np.tile(top.numbers, len(cells)), images)
    return out[np.linalg.norm((out.positions - centre)[:, :2], axis=1) < 8.0 + np.linalg.norm(vectors.sum(0)) / 2]


def main() -> None:
    """Label everything that is not labelled yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=None)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    warnings.filterwarnings("ignore", module="pymatgen")
    torch.set_num_threads(1)
    calculator = calculator_named("chgnet")
    given.out.mkdir(parents=True, exist_ok=True)
    for name, recipe in {**SLABS, **VALIDATION, **HELD_OUT}.items():
        if given.only and name not in given.only:
            continue
        place = given.out / f"{name}.extxyz"
        if not place.exists():
            write(place.with_suffix(".part"), build(recipe, calculator), format="extxyz")
            place.with_suffix(".part").rename(place)
        if name in HELD_OUT:
            continue
        slab = read(place)
        vectors = surface_vectors(recipe, slab)
        area = float(np.linalg.norm(np.cross(*vectors)))
        for guest in guests(name):
            to = given.out / f"{name}-{guest}.npz"
            if to.exists():
                continue
            count = int((24 + 6 * area) * (1.0 if len(guest) == 1 else MOLECULAR[name]))
            found = label(slab, adsorbate(guest), vectors, calculator, count, np.random.default_rng([given.seed, len(name), ord(guest[0])]))
            part = to.with_suffix(".part.npz")
            np.savez(part, positions=found.positions, energy=found.energy, force=found.force)
            part.rename(to)
            log.info("%s %s: %d labels, lowest %.3f eV", name, guest, count, found.energy.min())


if __name__ == "__main__":
    main()
