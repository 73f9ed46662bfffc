"""Local moves between a model's proposals, exact for exp(-u): hybrid Monte Carlo on atoms, poses in the pocket as it stands."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from dig_core.energy import Energy
from dig_core.errors import StateError
from dig_core.gradients import energy_and_gradient
from dig_core.montecarlo.chain import MonteCarlo
from dig_core.montecarlo.proposals import Proposal
from dig_core.random import Streams
from dig_core.types import Geometry, Samples

from .minimise import hessian
from .whole import Fixed

__all__ = ["HybridMoves", "PoseMoves", "stiffness_factor"]

_FIRST, _BESIDE = 2**61, 2**50  # streams of a chain from here on are these moves', so many for each that has a number of its own
_ELSEWHERE = 2**59  # blocks of poses proposed beside a chain, which has those below
_WANTED = 0.7  # share of trajectories to accept
_SOFT = 0.3  # Angstrom: the widest that steps take a direction for


@dataclass
class HybridMoves:
    """Maps (positions (N, 3) Angstrom, block number) to positions, leaving exp(-u) as it is: what ``MonteCarlo`` takes as ``local``.

    ``count`` trajectories of ``steps`` leapfrog steps of ``step`` Angstrom (unit masses, kT = 1), each accepted or rejected by its error in
    the total energy (Duane et al., doi:10.1016/0370-2693(87)91197-X). ``mobile`` (N,) bool: the M atoms that move, all if None. ``factor``
    (3M, 3M): steps are along its columns instead of along atoms, see :func:`stiffness_factor`. ``number`` tells several such moves of one
    seed apart. ``proposed`` and ``accepted`` count trajectories.
    """

    energy: Energy
    seed: int
    count: int = 2
    steps: int = 20
    step: float = 0.02
    mobile: torch.Tensor | None = None
    factor: torch.Tensor | None = None
    number: int = 0
    proposed: int = 0
    accepted: int = 0
    tuned: int = 0

    def __call__(self, positions: np.ndarray, block: int) -> np.ndarray:
        rng = Streams.chain(self.seed, _FIRST + self.number * _BESIDE + block)
        x = torch.from_numpy(np.ascontiguousarray(positions, dtype=np.float64))
        u, slope = self._look(x)
        if not np.isfinite(u):
            raise StateError("the current pose has no finite energy: start from one that is minimised.")
        size = x.numel() if self.mobile is None else 3 * int(self.mobile.sum())
        for _ in range(self.count):
            p = torch.from_numpy(rng.normal(size=size))
            y, q = x, p - 0.5 * self.step * self._pull(slope)
            for k in range(self.steps):
                y = self._moved(y, self.step * q)
                v, g = self._look(y)
                q = q - (self.step if k < self.steps - 1 else 0.5 * self.step) * self._pull(g)
            error = v + 0.5 * float(q.square().sum()) - u - 0.5 * float(p.square().sum())
            self.proposed += 1
            if np.isfinite(error) and np.log1p(-rng.random()) < -error:
                x, u, slope, self.accepted = y, v, g, self.accepted + 1
        return x.numpy()

    def tune(self, positions: np.ndarray, block: int) -> np.ndarray:
        """As a call, and a longer step afterwards where trajectories were accepted, a shorter one where not, by less from time to time
        (Robbins and Monro, doi:10.1214/aoms/1177729586): before a chain counts, not within it."""
        before, self.tuned = self.accepted, self.tuned + 1
        found = self(positions, block)
        self.step *= math.exp(((self.accepted - before) / self.count - _WANTED) / math.sqrt(self.tuned))
        return found

    def _pull(self, gradient: torch.Tensor) -> torch.Tensor:
        """(3M,) along what moves."""
        slope = (gradient if self.mobile is None else gradient[self.mobile]).flatten()
        return slope if self.factor is None else slope @ self.factor

    def _moved(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        shift = (step if self.factor is None else self.factor @ step).view(-1, 3)
        if self.mobile is None:
            return x + shift
        x = x.clone()
        x[self.mobile] += shift
        return x

    def _look(self, x: torch.Tensor) -> tuple[float, torch.Tensor]:
        u, gradient = energy_and_gradient(self.energy, Geometry(x[None]))
        return float(u), gradient[0]


def stiffness_factor(energy: Energy, positions: np.ndarray, mobile: torch.Tensor | None = None) -> torch.Tensor:
    """(3M, 3M) Angstrom: the root of the inverse of second derivatives at a minimum (N, 3), which makes bonds and torsions equally stiff.

    Steps along it, instead of along atoms, serve near that minimum; elsewhere they are as exact and may be refused.
    """
    atoms = torch.arange(len(positions)) if mobile is None else mobile.nonzero()[:, 0]
    values, vectors = torch.linalg.eigh(hessian(energy, torch.from_numpy(positions), atoms))
    return vectors * values.clamp_min(_SOFT**-2).rsqrt()


@dataclass
class PoseMoves:
    """Maps (positions (L + P, 3), block number) to positions: ``count`` poses (L, 3) are proposed with the pocket where it stands.

    Metropolis-Hastings on the ligand given the pocket, a move of its own beside a chain of the same ``seed``. Poses do not depend
    on where the pocket stands, and are drawn ``ahead`` blocks at a time.
    """

    poses: Proposal
    energy: Energy
    n_ligand: int
    seed: int
    count: int = 4
    ahead: int = 8
    proposed: int = 0
    accepted: int = 0

    def __post_init__(self) -> None:
        self._ready = _Ahead(self.poses, self.ahead * self.count)

    def __call__(self, positions: np.ndarray, block: int) -> np.ndarray:
        ligand, pocket = positions[: self.n_ligand], positions[self.n_ligand :]
        energy = Fixed(self.energy, torch.from_numpy(np.ascontiguousarray(pocket)))
        chain = MonteCarlo(self._ready, energy, Geometry(torch.from_numpy(ligand[None])), seed=self.seed, batch=self.count)
        rows = (2**40 * self.ahead + block) * self.count
        chain.load_state_dict({**chain.state_dict(), "blocks": _ELSEWHERE + block, "next": rows})
        visited, records = chain.block(self.count)
        self.proposed += self.count
        self.accepted += int(records.accepted.sum())
        return np.concatenate([visited[-1], pocket])


class _Ahead:
    """Proposals drawn ``batch`` at a time and handed out fewer at a time, the same ones."""

    exact = True

    def __init__(self, poses: Proposal, batch: int):
        self.poses, self.batch, self.gauge = poses, batch, getattr(poses, "gauge", frozenset({"translation"}))
        self._number, self._held = -1, None

    def draw(self, n: int, rng: Streams) -> Samples:
        number, first = divmod(rng.indices[0], self.batch)
        if number != self._number:
            rows = range(number * self.batch, (number + 1) * self.batch)
            self._number, self._held = number, self.poses.draw(self.batch, Streams(rng.seed, rows))
        found, rows = self._held, slice(first, first + n)
        return Samples(Geometry(found.geometry.positions[rows]), {}, found.known_log_q()[rows], found.valid[rows], found.kind)

    def log_q(self, geometry: Geometry, rng: Streams) -> torch.Tensor:
        return self.poses.log_q(geometry, rng)
