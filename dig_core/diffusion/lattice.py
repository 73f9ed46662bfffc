"""R^d modulo a lattice: points in a crystal cell or over a slab, with isotropic noise in Angstrom."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..random import Streams
from .spaces import TWO_PI, Flat

__all__ = ["Lattice"]

_REACH = 8.5
"""Standard deviations beyond which a normal density is less than 1e-15 of its peak."""

_WIDE = 0.35
"""A law is wide if its standard deviation is this part of the reach of the cell: little is then lost in a sum of waves of either sign."""


class Lattice(Flat):
    """R^d modulo the lattice of ``vectors`` (d, d), its rows in Angstrom, d from 1 to 3.

    Points are Cartesian (B, d), kept in the home cell: fractions in [-1/2, 1/2). Tangents are Cartesian, ``log`` is the shortest
    of all images. Normal laws may have a variance of their own along each Cartesian axis; narrow ones are summed over images,
    wide ones over their dual, the waves of the lattice (Poisson), exact to round-off either way.

    ``fade``: Angstrom, the wavelength at whose pace noise drowns scores, for networks that are to read one scale in every cell;
    the cell's own longest if None.

    Raises IncompatibleError for vectors that are not square, not finite or not independent.
    """

    periodic = True

    def __init__(self, vectors, fade: float | None = None):
        vectors = torch.as_tensor(vectors, dtype=torch.float64)
        if vectors.dim() != 2 or vectors.shape[0] != vectors.shape[1] or not 1 <= len(vectors) <= 3:
            raise IncompatibleError(f"expected lattice vectors (d, d), d = 1, 2 or 3, as rows; got shape {tuple(vectors.shape)}.")
        volume = float(torch.linalg.det(vectors).abs())
        if not volume > 1e-6 * float(vectors.norm(dim=1).prod()):
            raise IncompatibleError(f"expected finite, independent lattice vectors as rows, got {vectors.tolist()}.")
        self.log_volume = math.log(volume)
        self.vectors, self.dim, self.shape = vectors, len(vectors), (len(vectors),)
        self.config = {"vectors": vectors.tolist()} | ({} if fade is None else {"fade": float(fade)})
        self._inverse = torch.linalg.inv(vectors)
        self._short = _reduced(vectors)
        self._short_inverse = torch.linalg.inv(self._short)
        half = 0.5 * _longest_diagonal(self._short)
        # A point of the reduced cell is nearer than ``half`` to a lattice point, thus nearest to one within twice that.
        self._near = _points(self._short, 2 * half)
        self._wide = (_WIDE * half) ** 2
        self._images = _points(self._short, self._range(self._wide))
        waves = _points(TWO_PI * self._short_inverse.T, _REACH / math.sqrt(self._wide))
        # Waves come in pairs of equal cosines: one of each pair, and none for the constant.
        self._waves = waves[_positive(waves)]
        self.spectral_gap = _shortest(TWO_PI * self._short_inverse.T) ** 2 if fade is None else (TWO_PI / float(fade)) ** 2

    def fractions(self, x: Tensor) -> Tensor:
        """Multiples of the lattice vectors (..., d) that make up ``x``, in [-1/2, 1/2) for points."""
        return x @ self._inverse.to(x)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.wrap(x + v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        gap = _fold(y - x, self._short, self._short_inverse)
        images = gap[..., None, :] + self._near.to(gap)
        nearest = images.detach().square().sum(-1).argmin(-1)
        return gap + self._near.to(gap)[nearest]

    def wrap(self, x: Tensor) -> Tensor:
        """The representative of ``x`` in the home cell."""
        return _fold(x, self.vectors, self._inverse)

    def uniform(self, rng: Streams) -> Tensor:
        return self.wrap((rng.uniform(self.dim) - 0.5) @ self.vectors)

    def log_normal(self, gap: Tensor, variance: Tensor) -> Tensor:
        shifted, logits, wide, phase, height = self._sums(gap, variance)
        narrow = torch.logsumexp(logits, dim=-1) - 0.5 * torch.log(TWO_PI * _where(~wide, variance)).sum(-1) + self.log_volume
        # Where the law is narrow the waves are those of one just wide enough: a number to be thrown away, but a number.
        smooth = torch.log1p(2 * (height * torch.cos(phase)).sum(-1))
        return torch.where(wide[..., 0], smooth, narrow)

    def heat_score(self, gap: Tensor, variance: Tensor) -> Tensor:
        shifted, logits, wide, phase, height = self._sums(gap, variance)
        narrow = -(torch.softmax(logits, dim=-1)[..., None] * shifted).sum(-2) / _where(~wide, variance.expand_as(gap))
        waves, density = self._waves.to(gap), 1 + 2 * (height * torch.cos(phase)).sum(-1, keepdim=True)
        smooth = -2 * (height * torch.sin(phase)) @ waves / density
        return torch.where(wide, smooth, narrow)

    def _sums(self, gap: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Images (B, M, d) of gaps with their exponents (B, M); which laws are wide (B, 1); phases and heights (B, K) of the waves."""
        gap = self.log(torch.zeros_like(gap), gap)
        variance = variance.expand_as(gap)
        wide = (variance >= self._wide).all(-1, keepdim=True)
        narrow = _where(~wide, variance)
        # Only laws that are narrow along one axis and wide along another need more images than there are.
        widest = float(narrow.detach().max()) if narrow.numel() else 0.0
        images = self._images if widest <= self._wide else _points(self._short, self._range(widest))
        shifted = gap[..., None, :] + images.to(gap)
        logits = -0.5 * (shifted**2 / narrow[..., None, :]).sum(-1)
        waves = self._waves.to(gap)
        height = torch.exp(-0.5 * variance.clamp_min(self._wide) @ (waves**2).T)
        return shifted, logits, wide, gap @ waves.T, height

    def _range(self, variance: float) -> float:
        return _REACH * math.sqrt(variance) + math.sqrt(self._wide) / _WIDE


def _where(used: Tensor, variance: Tensor) -> Tensor:
    """The variance where it is used, one elsewhere, so that what is not used has finite derivatives."""
    return torch.where(used, variance, torch.ones_like(variance))


def _fold(x: Tensor, vectors: Tensor, inverse: Tensor) -> Tensor:
    """``x`` less whole lattice vectors, fractions in [-1/2, 1/2)."""
    whole = torch.floor(x.detach() @ inverse.to(x) + 0.5)
    return x - whole @ vectors.to(x)


def _reduced(vectors: Tensor) -> Tensor:
    """Short vectors of the same lattice: none can be shortened by another (Lagrange; a lattice is searched faster through them)."""
    vectors = vectors.clone()
    while True:
        before = vectors.clone()
        for i, j in itertools.permutations(range(len(vectors)), 2):
            vectors[i] -= torch.round(vectors[i] @ vectors[j] / (vectors[j] @ vectors[j]) * (1 - 1e-12)) * vectors[j]
        if torch.equal(before, vectors):
            return vectors


def _longest_diagonal(vectors: Tensor) -> float:
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(vectors))), dtype=vectors.dtype)
    return float((signs @ vectors).norm(dim=1).max())


def _points(vectors: Tensor, radius: float) -> Tensor:
    """(M, d) lattice points no farther than ``radius`` from the origin, the nearest first."""
    reach = torch.ceil(radius * torch.linalg.inv(vectors).norm(dim=0)).long().tolist()
    counts = torch.cartesian_prod(*[torch.arange(-n, n + 1, dtype=vectors.dtype) for n in reach]).reshape(-1, len(vectors))
    points = counts @ vectors
    length = points.norm(dim=1)
    order = torch.argsort(length, stable=True)
    return points[order[length[order] <= radius * (1 + 1e-12)]]


def _positive(points: Tensor) -> Tensor:
    """(M,) True for one of each pair of opposite points, False for the origin."""
    found = torch.zeros(len(points), dtype=torch.bool)
    for axis in reversed(range(points.shape[1])):
        here = points[:, axis].abs() > 1e-9 * points.abs().max().clamp_min(1e-300)
        found = torch.where(here, points[:, axis] > 0, found)
    return found


def _shortest(vectors: Tensor) -> float:
    """Length of the shortest lattice vector."""
    return float(_points(vectors, float(vectors.norm(dim=1).min()))[1].norm())
