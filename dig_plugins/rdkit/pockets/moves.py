"""Local moves between a model's proposals, exact for exp(-u): hybrid Monte Carlo on atoms, poses in the pocket as it stands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dig_core.energy import Energy
from dig_core.errors import StateError
from dig_core.gradients import energy_and_gradient
from dig_core.montecarlo.chain import MonteCarlo
from dig_core.montecarlo.proposals import Proposal
from dig_core.random import Streams
from dig_core.types import Geometry

from .whole import Fixed

__all__ = ["HybridMoves", "PoseMoves"]

_FIRST = 2**61  # streams of a chain from here on are these moves'


@dataclass
class HybridMoves:
    """Maps (positions (N, 3) Angstrom, block number) to positions, leaving exp(-u) as it is: what ``MonteCarlo`` takes as ``local``.

    ``count`` trajectories of ``steps`` leapfrog steps of ``step`` Angstrom (unit masses, kT = 1), each accepted or rejected by its error in
    the total energy (Duane et al., doi:10.1016/0370-2693(87)91197-X). ``mobile`` (N,) bool: the atoms that move, all if None.
    ``proposed`` and ``accepted`` count trajectories.
    """

    energy: Energy
    seed: int
    count: int = 2
    steps: int = 20
    step: float = 0.02
    mobile: torch.Tensor | None = None
    proposed: int = 0
    accepted: int = 0

    def __call__(self, positions: np.ndarray, block: int) -> np.ndarray:
        rng = Streams.chain(self.seed, _FIRST + block)
        x = torch.from_numpy(np.ascontiguousarray(positions, dtype=np.float64))
        u, slope = self._look(x)
        if not np.isfinite(u):
            raise StateError("the current pose has no finite energy: start from one that is minimised.")
        free = torch.ones_like(x) if self.mobile is None else self.mobile.double()[:, None].expand(x.shape)
        for _ in range(self.count):
            p = free * torch.from_numpy(rng.normal(size=x.shape))
            y, q = x, p - 0.5 * self.step * free * slope
            for k in range(self.steps):
                y = y + self.step * q
                v, g = self._look(y)
                q = q - (self.step if k < self.steps - 1 else 0.5 * self.step) * free * g
            error = v + 0.5 * float(q.square().sum()) - u - 0.5 * float(p.square().sum())
            self.proposed += 1
            if np.isfinite(error) and np.log1p(-rng.random()) < -error:
                x, u, slope, self.accepted = y, v, g, self.accepted + 1
        return x.numpy()

    def _look(self, x: torch.Tensor) -> tuple[float, torch.Tensor]:
        u, gradient = energy_and_gradient(self.energy, Geometry(x[None]))
        return float(u), gradient[0]


@dataclass
class PoseMoves:
    """Maps (positions (L + P, 3), block number) to positions: ``count`` poses (L, 3) are proposed with the pocket where it stands.

    Metropolis-Hastings on the ligand given the pocket, a move of its own beside others. ``seed`` is another than theirs.
    """

    poses: Proposal
    energy: Energy
    n_ligand: int
    seed: int
    count: int = 4
    proposed: int = 0
    accepted: int = 0

    def __call__(self, positions: np.ndarray, block: int) -> np.ndarray:
        ligand, pocket = positions[: self.n_ligand], positions[self.n_ligand :]
        energy = Fixed(self.energy, torch.from_numpy(np.ascontiguousarray(pocket)))
        chain = MonteCarlo(self.poses, energy, Geometry(torch.from_numpy(ligand[None])), seed=self.seed, batch=self.count)
        chain.load_state_dict({**chain.state_dict(), "blocks": block, "next": block * self.count})
        visited, records = chain.block(self.count)
        self.proposed += self.count
        self.accepted += int(records.accepted.sum())
        return np.concatenate([visited[-1], pocket])
