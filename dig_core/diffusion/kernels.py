"""Conditional densities that can be drawn from: the normal law on a space, the uniform law, and products of them."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ..random import Streams
from ..types import State
from .spaces import TWO_PI, Space, wrap

__all__ = ["JointKernel", "Kernel", "Normal", "Uniform", "wrapped_normal_score"]


class Kernel(Protocol):
    """``sample`` draws one point a stream; ``log_prob(y)`` (B,) float64 in the space's measure."""

    def sample(self, rng: Streams) -> Tensor: ...
    def log_prob(self, y: Tensor) -> Tensor: ...


class Normal:
    """Normal law around ``mean`` (B, *shape) with ``variance`` broadcastable to it; wrapped on the torus, projected off the centroid.

    On the zero-centroid space the variance must be one number a sample: other laws do not stay isotropic there.
    """

    def __init__(self, space: Space, mean: Tensor, variance: Tensor):
        self.space, self.mean = space, mean
        self.variance = variance.expand_as(mean) if variance.dim() else variance.expand(mean.shape)

    def sample(self, rng: Streams) -> Tensor:
        noise = rng.normal(*self.space.shape, dtype=self.mean.dtype).to(self.mean.device)
        return self.space.exp(self.mean, self.variance.sqrt() * noise)

    def log_prob(self, y: Tensor) -> Tensor:
        gap = self.space.log(self.mean.double(), y.double())
        variance = self.variance.double()
        if self.space.periodic:
            return (_log_wrapped(gap, variance) + math.log(TWO_PI)).flatten(1).sum(1)
        quadratic = (gap**2 / variance).flatten(1).sum(1)
        # The mean over the event carries the log-variance to the subspace's dimension (it is constant where they differ).
        log_scale = torch.log(TWO_PI * variance).flatten(1).mean(1) * self.space.dim
        return -0.5 * (quadratic + log_scale)


class Uniform:
    """The uniform law of a torus, density one."""

    def __init__(self, space: Space, like: Tensor):
        self.space, self.like = space, like

    def sample(self, rng: Streams) -> Tensor:
        angles = TWO_PI * rng.uniform(*self.space.shape) - math.pi
        return angles.to(self.like)

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


def _images(variance: Tensor) -> Tensor:
    """Whole turns that matter (relative error below 1e-12) for the widest kernel in the batch."""
    widest = float(variance.max().sqrt()) if variance.numel() else 0.0
    reach = max(1, math.ceil(7.5 * widest / TWO_PI + 0.5))
    return TWO_PI * torch.arange(-reach, reach + 1, dtype=variance.dtype, device=variance.device)


def _log_wrapped(gap: Tensor, variance: Tensor) -> Tensor:
    turns = _images(variance)
    exponents = -0.5 * (gap[..., None] + turns) ** 2 / variance[..., None]
    return torch.logsumexp(exponents, dim=-1) - 0.5 * torch.log(TWO_PI * variance)


def wrapped_normal_score(gap: Tensor, variance: Tensor) -> Tensor:
    """d/dgap log of the wrapped normal density at ``gap`` = y - mean, elementwise; ``variance`` broadcasts."""
    variance = variance.expand_as(gap)
    shifted = wrap(gap)[..., None] + _images(variance)
    weights = torch.softmax(-0.5 * shifted**2 / variance[..., None], dim=-1)
    return -(weights * shifted).sum(-1) / variance
