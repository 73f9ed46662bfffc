"""Conditional densities that can be drawn from: normal laws and Brownian motion on a space, the uniform law, products of them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..random import Streams
from ..types import State
from .spaces import Space

__all__ = ["Heat", "JointKernel", "Kernel", "Normal", "Uniform"]


class Kernel(Protocol):
    """``sample`` draws one point a stream; ``log_prob(y)`` (B,) float64 in the space's measure."""

    def sample(self, rng: Streams) -> Tensor: ...
    def log_prob(self, y: Tensor) -> Tensor: ...


class Normal:
    """The law of exp(mean, v), v normal: ``mean`` (B, *shape), ``variance`` broadcastable to it.

    Wrapped on closed spaces, projected off the centroid.
    """

    def __init__(self, space: Space, mean: Tensor, variance: Tensor):
        self.space, self.mean = space, mean
        self.variance = variance.expand_as(mean) if variance.dim() else variance.expand(mean.shape)

    def sample(self, rng: Streams) -> Tensor:
        noise = rng.normal(*self.space.shape, dtype=self.mean.dtype).to(self.mean.device)
        return self.space.exp(self.mean, self._step(noise))

    def log_prob(self, y: Tensor) -> Tensor:
        return self._log_density(self.space.log(self.mean.double(), y.double()), self.variance.double())

    def _step(self, noise: Tensor) -> Tensor:
        return self.variance.sqrt() * noise

    def _log_density(self, gap: Tensor, variance: Tensor) -> Tensor:
        return self.space.log_normal(gap, variance)


class Heat(Normal):
    """Where Brownian motion from ``mean`` ends, with one ``variance`` a sample, (B or 1, 1, ...): on flat spaces the normal law."""

    def __init__(self, space: Space, mean: Tensor, variance: Tensor):
        self.space, self.mean, self.variance = space, mean, variance

    def _step(self, noise: Tensor) -> Tensor:
        return self.space.heat_step(noise, self.variance.sqrt())

    def _log_density(self, gap: Tensor, variance: Tensor) -> Tensor:
        return self.space.log_heat(gap, variance)


class Uniform:
    """The uniform law of a closed space, density one; ``like`` (B, *shape) gives dtype and device."""

    def __init__(self, space: Space, like: Tensor):
        self.space, self.like = space, like

    def sample(self, rng: Streams) -> Tensor:
        return self.space.uniform(rng).to(self.like)

    def log_prob(self, y: Tensor) -> Tensor:
        return torch.zeros(len(y), dtype=torch.float64, device=y.device)


class JointKernel:
    """Product of one kernel a component; components are drawn in the order of the mapping."""

    def __init__(self, kernels: dict[str, Kernel]):
        self.kernels = kernels

    def sample(self, rng: Streams) -> State:
        return {name: kernel.sample(rng) for name, kernel in self.kernels.items()}

    def log_prob(self, y: State) -> Tensor:
        return sum((kernel.log_prob(y[name]) for name, kernel in self.kernels.items()), torch.zeros(1, dtype=torch.float64))
