"""Proposals from a mixture of normal laws, one about each minimum of an energy: known densities, no network."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..diffusion.spaces import TWO_PI, wrap
from ..errors import IncompatibleError
from ..random import Streams
from ..types import Geometry, Samples, State

if TYPE_CHECKING:
    from ..dig import DiG

__all__ = ["Wells"]


class Wells:
    """A mixture of M normal laws over all coordinates of a system, whose density is known: a proposal for Monte Carlo.

    A point (D,) is the components of ``dig``'s states in the process's order, one after the other; of ``dig`` no more is used than its
    coordinates. An angle stays within half a turn of its well's middle: draws beyond it are invalid, so that the density of the others is
    exact. Torsions of equivalent end atoms may be any number, and the atoms are named as a well's law goes on smoothly.
    :func:`dig_core.training.wells.harmonic` makes such a law of an energy's minima.

    Parameters
    ----------
    mean: (M, D). factor: (M, D, D), covariance = factor factor^T. log_weight: (M,), need not be normalised.
    flat: (M, D) bool, angles that are uniform on the circle in a well, rotors without a barrier; their rows and columns of ``factor`` are
        those of the unit matrix.
    """

    exact = True

    def __init__(self, dig: DiG, mean: Tensor, factor: Tensor, log_weight: Tensor, flat: Tensor | None = None):
        self.dig, self.mean, self.factor = dig, mean, factor
        self.flat = torch.zeros(mean.shape, dtype=torch.bool) if flat is None else flat
        self.sizes = {name: part.space.dim for name, part in dig.process.items()}
        size = sum(self.sizes.values())
        if mean.shape != (len(log_weight), size) or factor.shape != (len(log_weight), size, size):
            raise IncompatibleError(f"expected wells in {size} coordinates, got means {tuple(mean.shape)}, factors {tuple(factor.shape)}.")
        self.log_weight = log_weight - torch.logsumexp(log_weight, 0)
        self.inverse = torch.linalg.inv(factor)
        angles = [torch.full((n,), dig.process[name].space.periodic) for name, n in self.sizes.items()]
        self.periodic = torch.cat(angles)
        first = sum(n for name, n in list(self.sizes.items())[: list(self.sizes).index("torsion")]) if "torsion" in self.sizes else 0
        self.rotors = [first + column for column in getattr(dig.coordinates, "rotors", [])]
        turns = float(self.periodic.sum()) * math.log(TWO_PI)  # a torus counts as one
        self.log_scale = turns - 0.5 * (size + self.flat.sum(1)) * math.log(TWO_PI) - torch.linalg.slogdet(factor).logabsdet

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def gauge(self) -> frozenset[str]:
        """What the coordinates forget of a structure."""
        return self.dig.coordinates.gauge

    @torch.no_grad()
    def draw(self, n: int, rng: Streams) -> Samples:
        """``n`` structures, one a stream of ``rng``."""
        if len(rng) != n:
            raise IncompatibleError(f"expected one stream for each of {n} samples, got {len(rng)}.")
        edges = self.log_weight.exp().cumsum(0)
        chosen = torch.searchsorted(edges, rng.uniform(1)[:, 0]).clamp(max=len(self) - 1)
        points, inside = self.points(chosen, rng.normal(self.mean.shape[1], dtype=torch.float64))
        log_q = torch.logsumexp(self.log_parts(points), 1)
        samples = self.dig.to_samples(self.state(self.canonical(points)), log_q, "wells", rng)
        valid = samples.valid & inside
        return samples._replace(valid=valid, log_q=torch.where(valid, samples.known_log_q(), math.inf))

    @torch.no_grad()
    def log_q(self, geometry: Geometry, rng: Streams) -> Tensor:
        """(B,) float64 log-density of given structures; no noise is needed."""
        state, log_det = self.dig.coordinates.encode(geometry, self.dig.descriptor)
        return log_det + torch.logsumexp(self.log_parts(self.point(state)), 1)

    def points(self, chosen: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) points of the wells ``chosen`` (B,) for standard normal ``noise`` (B, D), and which are inside of them."""
        gap = torch.empty_like(noise)
        for k in chosen.unique().tolist():
            rows = chosen == k
            gap[rows] = torch.where(self.flat[k], TWO_PI * (torch.special.ndtr(noise[rows]) - 0.5), noise[rows] @ self.factor[k].T)
        inside = (~self.periodic | (gap.abs() < math.pi)).all(1)
        return self.tidy(self.mean[chosen] + gap), inside

    def tidy(self, points: Tensor) -> Tensor:
        """The same points with torsions in [-pi, pi), but for those of equivalent end atoms."""
        angles = self.periodic.clone()
        angles[self.rotors] = False
        return torch.where(angles, wrap(points), points)

    def canonical(self, points: Tensor) -> Tensor:
        """The same points as :meth:`DiG.coordinates.encode` gives them, all torsions in [-pi, pi)."""
        return self._nearest(points, self.relabelled(points), torch.zeros_like(points[0]))[0]

    def gap(self, points: Tensor, k: int, relabelled: Tensor | None = None) -> Tensor:
        """(B, D) from the middle of well ``k``, angles by the shorter way; ``relabelled`` of the points, if it is known."""
        return self._nearest(points, self.relabelled(points) if relabelled is None else relabelled, self.mean[k])[1]

    def relabelled(self, points: Tensor) -> Tensor:
        """(B, R, 3, D): what naming the end atoms of each of R rotors anew, never, once or twice, adds to points, but for its torsion."""
        found, state = points.new_zeros(len(points), len(self.rotors), 3, points.shape[1]), self.state(points)
        for number, column in enumerate(self.rotors):
            for times, forward in ((1, True), (2, False)):
                change = self.point(self.dig.coordinates.turned(state, number, forward)) - points  # type: ignore[attr-defined]
                change[:, column] = 0.0
                found[:, number, times] = change
        return found

    def _nearest(self, points: Tensor, relabelled: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
        """The points, labelled so that torsions are within half a turn of ``middle`` (D,), and how far from it they are."""
        found, rows = points.clone(), torch.arange(len(points))
        for number, column in enumerate(self.rotors):
            turns = torch.round((points[:, column] - middle[column]) / TWO_PI)
            found += relabelled[rows, number, torch.remainder(-turns, 3).long()]
            found[:, column] -= TWO_PI * turns
        gap = found - middle
        gap = torch.where(self.periodic, wrap(gap), gap)
        return middle + gap, gap

    def log_parts(self, points: Tensor) -> Tensor:
        """(B, M) log of each well's share of the density at (B, D) points."""
        found, relabelled = [], self.relabelled(points)
        for k in range(len(self)):
            gap = torch.where(self.flat[k], 0.0, self.gap(points, k, relabelled))
            found.append(-0.5 * (gap @ self.inverse[k].T).square().sum(1))
        return torch.stack(found, 1) + self.log_scale + self.log_weight

    def state(self, points: Tensor) -> State:
        """The points as a state."""
        return dict(zip(self.sizes, points.split(list(self.sizes.values()), 1), strict=True))

    def point(self, state: State) -> Tensor:
        """(B, D) of a state."""
        return torch.cat([state[name].double() for name in self.sizes], 1)
