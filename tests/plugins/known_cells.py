"""Crystals whose law is known: a calculator of the cell's metric and of the gap between two atoms, and what follows from it."""

from __future__ import annotations

import numpy as np
import torch
from ase import units

EDGE, SPREAD, DEPTH = 2.0, 0.12, 1.0  # Angstrom; standard deviation of the metric over EDGE^2; kT
T = 1000.0
KT = units.kB * T
UPPER = np.triu_indices(3)


class Metric:
    """E = kT sum over i <= j of (G_ij / EDGE^2 - 1_ij)^2 / (2 SPREAD^2), G = cell cell^T.

    Two atoms add -DEPTH kT times the sum of cos(2 pi f), f the fractions of their gap.

    With one atom and no pressure, exp(-E/kT) over atoms and cells makes G normal: Lebesgue's measure of the cell is det(G)^(-1/2) dG
    (Muirhead 1982, theorem 2.1.14), and the atom adds the volume det(G)^(1/2).
    """

    def __init__(self, stress: bool = True):
        self.stress, self.calls = stress, 0

    def calculate_batch(self, images):
        self.calls += len(images)
        cell, positions = np.array([x.cell.array for x in images]), np.array([x.positions for x in images])
        turned = np.swapaxes(cell, 1, 2)
        off = cell @ turned / EDGE**2 - np.eye(3)
        energy = (off[(slice(None), *UPPER)] ** 2).sum(1) / (2 * SPREAD**2)
        slope = 0.5 * (off + off * np.eye(3)) / (SPREAD * EDGE) ** 2  # of E by G, each off-diagonal element half of it
        stress, forces = 2 * turned @ slope @ cell / np.abs(np.linalg.det(cell))[:, None, None], np.zeros_like(positions)
        if positions.shape[1] == 2:
            inverse = np.linalg.inv(cell)
            gap = 2 * np.pi * ((positions[:, 1] - positions[:, 0])[:, None] @ inverse)[:, 0]
            energy = energy - DEPTH * np.cos(gap).sum(1)
            pull = -DEPTH * 2 * np.pi * (inverse @ np.sin(gap)[..., None])[..., 0]
            forces[:, 1], forces[:, 0] = pull, -pull  # no stress: fractions do not feel a strain
        found = KT * energy, KT * forces
        return (*found, KT * stress) if self.stress else found


def cells(n: int, seed: int = 0) -> torch.Tensor:
    """(n, 3, 3) Angstrom, near the usual one, turned anyhow."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(n, 3, 3)))
    return torch.from_numpy(EDGE * (np.eye(3) + 0.08 * rng.normal(size=(n, 3, 3))) @ turn)


def exact(n_atoms: int, pressure: float = 0.0, n: int = 400_000) -> dict[str, float]:
    """Averages, from normal metrics weighed by what more than one atom and a pressure (GPa) add."""
    rng = np.random.default_rng(0)
    metric = np.zeros((n, 3, 3))
    metric[(slice(None), *UPPER)] = SPREAD * rng.normal(size=(n, 6))
    metric = EDGE**2 * (np.eye(3) + np.triu(metric) + np.swapaxes(np.triu(metric, 1), 1, 2))
    volume = np.sqrt(np.linalg.det(metric).clip(0))
    weight = volume ** (n_atoms - 1) * np.exp(-pressure * units.GPa * volume / KT)
    return {name: float((weight * x).sum() / weight.sum()) for name, x in of_metric(metric, volume).items()}


def of_metric(metric: np.ndarray, volume: np.ndarray) -> dict[str, np.ndarray]:
    off = metric / EDGE**2 - np.eye(3)
    return {
        "volume": volume, "volume squared": volume**2, "diagonal": off[:, 0, 0], "diagonal squared": off[:, 0, 0] ** 2,
        "angle": off[:, 0, 1], "angle squared": off[:, 0, 1] ** 2,
    }  # fmt: skip


def seen(cell) -> dict[str, np.ndarray]:
    """The same of cells (n, 3, 3)."""
    cell = np.asarray(cell)
    return of_metric(cell @ np.swapaxes(cell, 1, 2), np.abs(np.linalg.det(cell)))
