"""Shapes with exact scores, noise for their samplers, and the loops that benchmarks/frames.py compares with."""

from __future__ import annotations

import math
import sys

import numpy as np
import torch
from torch import Tensor

from dig_core.diffusion import SO3, Joint, ZeroCentroid
from dig_core.diffusion.igso3 import angle_density
from dig_core.diffusion.rotations import half_cotangent
from dig_core.sampling.flow import backward_steps
from dig_core.score import Moments, score_of
from dig_core.types import State, Tangent

DOUBLE = torch.float64


class Shapes:
    """The exact score of a mixture: normal positions and Brownian motion of orientations about a mean, each component with both.

    ``means`` of the M components (M, N, 3) and ``widths``, M standard deviations an axis, by name.
    """

    conservative = True

    def __init__(self, process: Joint, weights: tuple[float, ...], means: State, widths: dict[str, tuple[float, ...]]):
        self.process, self.means, self.widths = process, means, widths
        self.weights = torch.tensor(weights, dtype=DOUBLE)

    def __call__(self, state: State, t: Tensor, descriptor=None) -> Tangent:
        return score_of(self.process, self._mixed(state, t, False).noise, t)

    def moments(self, state: State, t: Tensor, descriptor=None) -> Moments:
        return self._mixed(state, t, True)

    def which(self, state: State) -> Tensor:
        """(B,) the component that clean states are of."""
        return self._parts(state, torch.zeros(1, dtype=DOUBLE), False)[0].argmax(0)

    def _mixed(self, state: State, t: Tensor, spreads: bool) -> Moments:
        """By the laws of total expectation and variance."""
        logs, parts = self._parts(state, t, spreads)
        share, noise, spread = torch.softmax(logs, 0)[..., None, None], {}, {}
        for name, process in self.process.items():
            each = [part[name] for part in parts]
            noise[name] = sum(w * mean for w, (mean, _) in zip(share, each, strict=True))
            if spreads:
                gaps = [(mean - noise[name]) ** 2 for mean, _ in each]
                if not process.space.periodic:
                    gaps = [gap.sum((1, 2), keepdim=True) / process.space.dim for gap in gaps]
                total = sum(w * (left + gap) for w, (_, left), gap in zip(share, each, gaps, strict=True))
                spread[name] = total.expand_as(noise[name])
        return Moments(noise, spread)

    def _parts(self, state: State, t: Tensor, spreads: bool) -> tuple[Tensor, list[Tangent]]:
        """Log-densities (M, B), and of each component mean and variance of the noise by name."""
        logs, parts = [], []
        for k, weight in enumerate(self.weights):
            log, part = weight.log(), {}
            for name, process in self.process.items():
                (alpha, sigma), kind = process.levels(t), _turned if process.space.periodic else _moved
                found = kind(process.space, state[name], alpha * self.means[name][k], alpha * self.widths[name][k], sigma, spreads)
                log, part[name] = log + found[0], found[1:]
            logs.append(log)
            parts.append(part)
        return torch.stack(logs), parts


def _moved(space: ZeroCentroid, x: Tensor, mean: Tensor, width: Tensor, sigma: Tensor, spreads: bool) -> tuple[Tensor, Tensor, Tensor]:
    variance, gap = width**2 + sigma**2, x - mean
    log = -0.5 * (gap.square().sum((1, 2)) / variance.flatten() + space.dim * variance.log().flatten())
    return log, sigma * gap / variance, width**2 / variance


def _turned(space: SO3, x: Tensor, mean: Tensor, width: Tensor, sigma: Tensor, spreads: bool) -> tuple[Tensor, Tensor, Tensor]:
    gap = space.log(mean, x)
    square = gap.square().sum(-1, keepdim=True)
    if not spreads:
        log, slope = angle_density(square, width**2 + sigma**2)
        return log.sum((1, 2)), -sigma * slope * gap, torch.ones(())
    with torch.enable_grad():
        square.requires_grad_()
        log, slope = angle_density(square, width**2 + sigma**2)
        (change,) = torch.autograd.grad(slope.sum(), square)
    log, slope, square = log.detach(), slope.detach(), square.detach()
    # The derivative of each entry of slope(a^2) u along its own axis of space, where u grows by space.rate(u, axis).
    bend = slope * (1 + half_cotangent(square) * (gap**2 - square)) + 2 * change * gap**2
    return log.sum((1, 2)), -sigma * slope * gap, (1 + sigma**2 * bend).clamp_min(0)


class Noise:
    """Normal numbers of one generator: a stream for each sample would cost as much as the sampling."""

    def __init__(self, n: int, seed: int):
        self.n, self.generator = n, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.n

    def normal(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(self.n, *shape, generator=self.generator, dtype=dtype)


class Impulses:
    """Sample k has a unit in its k-th draw and nothing else: what linear solvers make of them adds up to the variance."""

    def __init__(self, n: int, way: Tensor):
        self.n, self.way, self.drawn = n, way, 0

    def __len__(self) -> int:
        return self.n

    def normal(self, *shape: int, dtype: torch.dtype) -> Tensor:
        found = torch.zeros(self.n, *shape, dtype=dtype)
        found[self.drawn] = self.way
        self.drawn += 1
        return found


@torch.no_grad()
def released(model, descriptor, grid: Tensor, rng, *, start: State | None = None) -> State:
    """The loop of the released code: all of the reverse drift, g^2 score dt, and no noise."""
    state = start or model.process.prior(model.process.empty(len(rng), DOUBLE)).sample(rng)
    for t, s in backward_steps(grid):
        score = model(state, t, descriptor)
        rate = {name: part.schedule.diffusion(t) * (t - s) for name, part in model.process.items()}
        state = model.process.exp(state, {name: rate[name] * score[name] for name in rate})
    return state


@torch.no_grad()
def algorithm_5(model, descriptor, grid: Tensor, rng, *, start: State | None = None) -> State:
    """The supplement's algorithm 5: half of what the variance falls by, the probability flow by Euler's method."""
    state = start or model.process.prior(model.process.empty(len(rng), DOUBLE)).sample(rng)
    for t, s in backward_steps(grid):
        score = model(state, t, descriptor)
        fall = {name: part.levels(t)[1] ** 2 - part.levels(s)[1] ** 2 for name, part in model.process.items()}
        state = model.process.exp(state, {name: 0.5 * fall[name] * score[name] for name in fall})
    return state


def angles() -> tuple[Tensor, Tensor]:
    """Nodes and weights of integrals over the angle of the uniform law."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(160))
    at = 0.5 * math.pi * (nodes + 1)
    return at, 0.5 * weights * (1 - torch.cos(at))


def swing_squared(swing: float) -> float:
    """E[angle^2] of Brownian motion of ``swing`` radians an axis."""
    at, weights = angles()
    return float((weights * angle_density(at**2, torch.tensor(swing**2, dtype=DOUBLE)).log.exp() * at**2).sum())


if __name__ == "__main__":
    sys.exit("frames_laws.py is imported by frames.py.")
