"""The spaces that components live on. Measure: Lebesgue on R^d and on the zero-centroid subspace, unit volume on the torus."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Euclidean", "Space", "Torus", "ZeroCentroid"]

TWO_PI = 2 * math.pi


class Space(Protocol):
    """What a process needs to know of a space. ``shape`` is the event shape, ``dim`` its dimension.

    ``project`` maps ambient vectors onto the tangent space (idempotent); ``exp(x, v)`` moves along a tangent and stays on
    the space; ``log(x, y)`` is its inverse; ``basis`` (dim, *shape) is an orthonormal tangent basis, for exact traces.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dim(self) -> int: ...
    @property
    def periodic(self) -> bool: ...
    def project(self, v: Tensor) -> Tensor: ...
    def exp(self, x: Tensor, v: Tensor) -> Tensor: ...
    def log(self, x: Tensor, y: Tensor) -> Tensor: ...
    def basis(self) -> Tensor: ...


class Euclidean:
    """R^d."""

    periodic = False

    def __init__(self, dim: int):
        self.dim, self.shape = int(dim), (int(dim),)
        self.config = {"dim": self.dim}

    def project(self, v: Tensor) -> Tensor:
        return v

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return x + v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return y - x

    def basis(self) -> Tensor:
        return torch.eye(self.dim, dtype=torch.float64)


class ZeroCentroid:
    """N points in R^3 whose centroid is the origin: a linear subspace of dimension 3 (N - 1) with its own Lebesgue measure."""

    periodic = False

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


class Torus:
    """d angles in radians, kept in [-pi, pi); log-densities are relative to the uniform law (unit volume)."""

    periodic = True

    def __init__(self, dim: int):
        self.dim, self.shape = int(dim), (int(dim),)
        self.config = {"dim": self.dim}

    def project(self, v: Tensor) -> Tensor:
        return v

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return wrap(x + v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return wrap(y - x)

    def basis(self) -> Tensor:
        return torch.eye(self.dim, dtype=torch.float64)


def wrap(angle: Tensor) -> Tensor:
    """The representative of an angle in [-pi, pi)."""
    return torch.remainder(angle + math.pi, TWO_PI) - math.pi
