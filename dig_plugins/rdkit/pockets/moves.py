"""Local moves between a model's proposals: hybrid Monte Carlo on a ligand's atoms, exact for exp(-u)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dig_core.errors import StateError
from dig_core.random import Streams
from dig_core.types import Geometry

from .energy import PocketEnergy

__all__ = ["HybridMoves"]

_FIRST = 2**61  # streams of a chain from here on are these moves'


@dataclass
class HybridMoves:
    """Maps (positions (L, 3) Angstrom, block number) to positions, leaving exp(-u) as it is: what ``MonteCarlo`` takes as ``local``.

    ``count`` trajectories of ``steps`` leapfrog steps of ``step`` Angstrom (unit masses, kT = 1), each accepted or rejected by its error in
    the total energy (Duane et al., doi:10.1016/0370-2693(87)91197-X). ``proposed`` and ``accepted`` count them.
    """

    energy: PocketEnergy
    seed: int
    count: int = 2
    steps: int = 20
    step: float = 0.02
    proposed: int = 0
    accepted: int = 0

    def __call__(self, positions: np.ndarray, block: int) -> np.ndarray:
        rng = Streams.chain(self.seed, _FIRST + block)
        x = torch.from_numpy(np.ascontiguousarray(positions, dtype=np.float64))
        u, slope = self._look(x)
        if not np.isfinite(u):
            raise StateError("the current pose has no finite energy: start from one that is minimised.")
        for _ in range(self.count):
            p = torch.from_numpy(rng.normal(size=x.shape))
            y, q, g = x, p - 0.5 * self.step * slope, slope
            for k in range(self.steps):
                y = y + self.step * q
                v, g = self._look(y)
                q = q - (self.step if k < self.steps - 1 else 0.5 * self.step) * g
            error = v + 0.5 * float(q.square().sum()) - u - 0.5 * float(p.square().sum())
            self.proposed += 1
            if np.isfinite(error) and np.log1p(-rng.random()) < -error:
                x, u, slope, self.accepted = y, v, g, self.accepted + 1
        return x.numpy()

    def _look(self, x: torch.Tensor) -> tuple[float, torch.Tensor]:
        u, gradient = self.energy.energy_and_gradient(Geometry(x[None]))
        return float(u), gradient[0]
