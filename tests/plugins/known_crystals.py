"""Crystals that everyone knows, copies of them that are the same, and an untrained model of crystals."""

from __future__ import annotations

import functools

import numpy as np
import torch
from pymatgen.core import Lattice, Structure

from dig_core.dig import Card, DiG
from dig_core.nn import CrystalGraphormer
from dig_core.score import NoiseScore
from dig_core.system.crystal import crystal


def diamond(a: float = 3.567) -> Structure:
    return Structure.from_spacegroup("Fd-3m", Lattice.cubic(a), ["C"], [[0, 0, 0]])


def graphite() -> Structure:
    lattice = Lattice.hexagonal(2.46, 6.70)
    return Structure(lattice, ["C"] * 4, [[0, 0, 0.25], [0, 0, 0.75], [1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]])


def lonsdaleite() -> Structure:
    places = [[1 / 3, 2 / 3, 0.062], [2 / 3, 1 / 3, 0.562], [2 / 3, 1 / 3, 0.938], [1 / 3, 2 / 3, 0.438]]
    return Structure(Lattice.hexagonal(2.52, 4.12), ["C"] * 4, places)


def rocksalt() -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def caesium_chloride() -> Structure:
    return Structure(Lattice.cubic(3.5), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def amorphous(n: int, seed: int, element: str = "C") -> Structure:
    """Random places in a random cell of carbon's density: nothing else is like it."""
    rng = np.random.default_rng(seed)
    cell = np.eye(3) + 0.25 * rng.normal(size=(3, 3))
    cell *= (6.5 * n / abs(np.linalg.det(cell))) ** (1 / 3)
    return Structure(Lattice(cell * np.sign(np.linalg.det(cell))), [element] * n, rng.random((n, 3)))


def moved(structure: Structure, seed: int, noise: float = 0.0, strain: float = 0.0) -> Structure:
    """The same crystal in another basis, order, origin and pose; ``noise`` Angstrom and ``strain`` make it a little another."""
    rng = np.random.default_rng(seed)
    basis = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 1]])
    cell = basis @ structure.lattice.matrix @ (np.eye(3) + strain * rng.normal(size=(3, 3)))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    order = rng.permutation(len(structure))
    fractions = structure.frac_coords[order] @ np.linalg.inv(basis) + rng.random(3)
    fractions = fractions + noise * rng.normal(size=fractions.shape) @ np.linalg.inv(cell)
    return Structure(Lattice(cell @ turn), [structure[i].specie for i in order], fractions % 1)


@functools.cache
def untrained(**card) -> DiG:
    """A network that has learned nothing: uniform places in cells of the density that coordinates take for granted."""
    network = CrystalGraphormer(width=16, heads=2, layers=1, basis=8, channels=4, seed=0)
    descriptor = crystal([6] * 4)
    model = NoiseScore(network, network.process(descriptor)).eval().requires_grad_(False)
    return DiG(model, network.coordinates, descriptor, Card(**({"name": "untrained", "steps": 6} | card)))


def carbon(**scope) -> DiG:
    dig = untrained()
    scope = {"element": ["C"], "atoms": [2, 6], "histogram": [[2, 10], [4, 30]]} | scope
    return DiG(dig.model, dig.coordinates, dig.descriptor, Card(name="untrained", steps=6, scope=scope))


def volume_per_atom(geometry) -> torch.Tensor:
    """(B,) Angstrom^3, a property with a gradient."""
    return torch.linalg.det(geometry.cell).abs() / geometry.positions.shape[1]
