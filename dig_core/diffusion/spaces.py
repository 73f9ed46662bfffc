"""The spaces that components live on. Measure: Lebesgue on R^d and on the zero-centroid subspace, unit volume on closed spaces."""

from __future__ import annotations

import functools
import math
from typing import Protocol

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..random import Streams

__all__ = ["Euclidean", "Flat", "Space", "Torus", "ZeroCentroid"]

TWO_PI = 2 * math.pi


class Space(Protocol):
    """What a process needs to know of a space. ``shape`` is the shape of points and tangents alike, ``dim`` its dimension.

    ``periodic``: closed in itself, so that there is a uniform law, which has density one; ``log_volume`` is then that of its volume
    in units of the tangents, 0 elsewhere: log p - log_volume is the density per unit of tangent. ``flat``: tangents add up,
    exp(exp(x, v), w) = exp(x, v + w). ``spectral_gap``: the rate at which noise of variance 2 fades, the smallest eigenvalue
    of minus the Laplacian, 0 on open spaces.

    ``project`` maps ambient vectors onto the tangent space (idempotent); ``exp(x, v)`` moves along a tangent and stays on
    the space; ``log(x, y)`` is its shortest inverse; ``basis`` (dim, *shape) is an orthonormal tangent basis, for exact traces;
    ``transport(x, y, v)`` carries a tangent at x along to y with the motion that takes x there; ``rate(u, v)`` is how fast the
    tangent u grows if exp(x, u) moves at velocity v.

    A gap is a tangent ``log(mean, y)`` (B, *shape). ``log_normal(gap, variance)`` (B,) is the log-density of exp(mean, v),
    v normal with ``variance`` (B, *shape); ``log_heat`` that of Brownian motion, with one variance a sample, which on flat spaces
    is the same; ``heat_score`` its gradient along y (B, *shape); ``heat_step(raw, sigma)`` the tangent that makes exp(mean, .)
    Brownian motion if ``raw`` (B, *shape) is standard normal. ``uniform`` draws (B, *shape) float64 points, one a stream.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dim(self) -> int: ...
    @property
    def periodic(self) -> bool: ...
    @property
    def flat(self) -> bool: ...
    @property
    def log_volume(self) -> float: ...
    @property
    def spectral_gap(self) -> float: ...
    @property
    def config(self) -> dict: ...
    def project(self, v: Tensor) -> Tensor: ...
    def exp(self, x: Tensor, v: Tensor) -> Tensor: ...
    def log(self, x: Tensor, y: Tensor) -> Tensor: ...
    def basis(self) -> Tensor: ...
    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor: ...
    def rate(self, u: Tensor, v: Tensor) -> Tensor: ...
    def uniform(self, rng: Streams) -> Tensor: ...
    def log_normal(self, gap: Tensor, variance: Tensor) -> Tensor: ...
    def log_heat(self, gap: Tensor, variance: Tensor) -> Tensor: ...
    def heat_score(self, gap: Tensor, variance: Tensor) -> Tensor: ...
    def heat_step(self, raw: Tensor, sigma: Tensor) -> Tensor: ...


class Flat:
    """What spaces have in common whose tangents add up: R^d itself, unless a subclass says otherwise."""

    dim: int
    shape: tuple[int, ...]
    config: dict
    periodic, flat = False, True
    log_volume, spectral_gap = 0.0, 0.0

    def project(self, v: Tensor) -> Tensor:
        return v

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return x + v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return y - x

    def basis(self) -> Tensor:
        return torch.eye(self.dim, dtype=torch.float64)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return v

    def rate(self, u: Tensor, v: Tensor) -> Tensor:
        return v

    def uniform(self, rng: Streams) -> Tensor:
        raise UnsupportedError(f"{type(self).__name__} has no uniform law: it is open. Its prior is normal.")

    def log_normal(self, gap: Tensor, variance: Tensor) -> Tensor:
        quadratic = (gap.square() / variance).flatten(1).sum(1)
        # The mean over the event carries the log-variance to the subspace's dimension (it is constant where they differ).
        log_scale = variance.log().flatten(1).mean(1) + math.log(TWO_PI)
        return -0.5 * (quadratic + log_scale * self.dim)

    def log_heat(self, gap: Tensor, variance: Tensor) -> Tensor:
        return self.log_normal(gap, variance.expand_as(gap))

    def heat_score(self, gap: Tensor, variance: Tensor) -> Tensor:
        return -gap / variance

    def heat_step(self, raw: Tensor, sigma: Tensor) -> Tensor:
        return sigma * raw


class _Unbounded(Flat):
    """Brownian motion is normal, alike in all directions."""

    def log_heat(self, gap: Tensor, variance: Tensor) -> Tensor:
        one = variance.expand(len(gap), *variance.shape[1:]).flatten(1)[:, 0]
        return -0.5 * (gap.square().flatten(1).sum(1) / one + self.dim * torch.log(TWO_PI * one))


class Euclidean(_Unbounded):
    """R^d."""

    def __init__(self, dim: int):
        self.dim, self.shape = int(dim), (int(dim),)
        self.config = {"dim": self.dim}


class ZeroCentroid(_Unbounded):
    """N points in R^3 whose centroid is the origin: a linear subspace of dimension 3 (N - 1) with its own Lebesgue measure.

    Variances must be one number a sample: other normal laws do not stay isotropic here.
    """

    def __init__(self, points: int):
        self.points, self.dim, self.shape = int(points), 3 * (int(points) - 1), (int(points), 3)
        self.config = {"points": self.points}

    def project(self, v: Tensor) -> Tensor:
        return v - v.mean(dim=-2, keepdim=True)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return x + self.project(v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return self.project(y - x)

    def basis(self) -> Tensor:
        n = self.points
        # Helmert rows: orthonormal and orthogonal to the uniform vector.
        rows = torch.tril(torch.ones(n, n, dtype=torch.float64), -1)[1:] - torch.diag(torch.arange(n, dtype=torch.float64))[1:]
        rows = rows / rows.norm(dim=1, keepdim=True)
        return torch.einsum("an,xy->axny", rows, torch.eye(3, dtype=torch.float64)).reshape(self.dim, n, 3)


class Torus(Flat):
    """d angles in radians, kept in [-pi, pi); normal laws are wrapped, with variances of their own for each angle."""

    periodic, spectral_gap = True, 1.0

    def __init__(self, dim: int):
        self.dim, self.shape = int(dim), (int(dim),)
        self.config, self.log_volume = {"dim": self.dim}, int(dim) * math.log(TWO_PI)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return wrap(x + v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return wrap(y - x)

    def uniform(self, rng: Streams) -> Tensor:
        return TWO_PI * rng.uniform(self.dim) - math.pi

    def log_normal(self, gap: Tensor, variance: Tensor) -> Tensor:
        # Turns stand in front: along a short last dimension, and where exponentials underflow, this takes many times longer.
        turns = _turns(variance).reshape(-1, *(1,) * gap.dim())
        exponents = -0.5 * (gap + turns).square() / variance
        highest = exponents.amax(0)
        # One by one: torch's own sum adds in an order that depends on the batch.
        total = functools.reduce(torch.add, (exponents - highest).clamp_min(-700.0).exp().unbind(0))
        found = torch.where(highest == -math.inf, highest, highest + total.log()) - 0.5 * torch.log(TWO_PI * variance)
        return (found + math.log(TWO_PI)).flatten(1).sum(1)

    def heat_score(self, gap: Tensor, variance: Tensor) -> Tensor:
        variance = variance.expand_as(gap)
        shifted = wrap(gap)[..., None] + _turns(variance)
        weights = torch.softmax(-0.5 * shifted**2 / variance[..., None], dim=-1)
        return -(weights * shifted).sum(-1) / variance


def wrap(angle: Tensor) -> Tensor:
    """The representative of an angle in [-pi, pi)."""
    return torch.remainder(angle + math.pi, TWO_PI) - math.pi


def _turns(variance: Tensor) -> Tensor:
    """Whole turns that matter (relative error below 1e-12) for the widest law in the batch."""
    known = variance.nan_to_num(0.0, 0.0, 0.0)  # a row that a network spoils leaves the others alone
    widest = math.sqrt(float(known.max())) if known.numel() else 0.0
    reach = max(1, math.ceil(7.5 * widest / TWO_PI + 0.5))
    return TWO_PI * torch.arange(-reach, reach + 1, dtype=variance.dtype, device=variance.device)
