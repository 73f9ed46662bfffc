"""Geometry as the network sees it: pair distances, Gaussian radial basis, unit vectors; smooth at zero distance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["PairList", "RadialBasis", "centre", "distances", "envelope", "pair_list", "pair_types", "unit_vectors"]

SOFTENING = 1e-8
"""Angstrom^2 added to squared distances: lost in rounding beyond 0.3 Angstrom, and all derivatives exist at zero."""


FARTHEST = 50.0
"""Largest exponent of a Gaussian: exp(-50) is nothing, and subnormal numbers make exp and what follows 10 times slower."""


class PairList(NamedTuple):
    """Unordered pairs i <= j of N atoms, P = N(N+1)/2: distances are symmetric, so half of the N x N table is enough.

    ``first``, ``second`` (P,) atom indices; ``table`` (N*N,) the pair that holds (i, j), to expand a list to a table.
    """

    first: Tensor
    second: Tensor
    table: Tensor


def pair_list(n: int, device: torch.device) -> PairList:
    """All unordered pairs of ``n`` atoms, an atom with itself included."""
    first, second = torch.triu_indices(n, n, device=device)
    table = torch.empty(n, n, dtype=torch.long, device=device)
    order = torch.arange(len(first), device=device)
    table[first, second] = order
    table[second, first] = order
    return PairList(first, second, table.flatten())


def pair_types(numbers: Tensor, pairs: PairList) -> Tensor:
    """Type of each unordered element pair, an integer: ``numbers`` (R, N) -> (R, P)."""
    low, high = torch.aminmax(torch.stack([numbers[:, pairs.first], numbers[:, pairs.second]]), dim=0)
    return high * (high + 1) // 2 + low


def centre(positions: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Positions about the mean of the real atoms, zero for padding whatever it held. Cast last: far origins cost no digits.

    ``positions`` (B, N, 3) Angstrom, ``mask`` (R, N) bool with R = 1 or B -> (B, N, 3) Angstrom.
    """
    real = mask[..., None]
    positions = torch.where(real, positions, 0.0)
    mean = positions.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
    return torch.where(real, positions - mean, 0.0).to(dtype)


def distances(positions: Tensor, pairs: PairList) -> Tensor:
    """(B, N, 3) Angstrom -> (B, P) Angstrom, softened at zero."""
    difference = positions.index_select(1, pairs.first) - positions.index_select(1, pairs.second)
    return (difference.square().sum(-1) + SOFTENING).sqrt()


def envelope(distance: Tensor, cutoff: float) -> Tensor:
    """1 at contact, 0 from ``cutoff`` Angstrom on: the polynomial of arXiv:2003.03123 with p = 4, whose derivatives vanish at the
    cutoff up to the third."""
    x = (distance / cutoff).clamp(max=1.0)
    return 1 - 15 * x**4 + 24 * x**5 - 10 * x**6


def unit_vectors(positions: Tensor) -> Tensor:
    """(B, N, 3) Angstrom -> (B, N, N, 3), entry (i, j) points from j to i; zero where the two coincide."""
    difference = positions[:, :, None] - positions[:, None]
    return difference * (difference.square().sum(-1, keepdim=True) + SOFTENING).rsqrt()


class RadialBasis(nn.Module):
    """Gaussians of the distance after a learned affine map per element pair, as in Graphormer (arXiv:2203.04810).

    ``basis`` centres lie from 0 to ``reach`` Angstrom, denser at bonds than far out, each as wide as the local spacing;
    centres, widths and maps are learned. ``elements`` is the number of atomic numbers, 0 (padding) included.
    """

    def __init__(self, basis: int, reach: float, elements: int) -> None:
        super().__init__()
        grid = torch.linspace(0, 1, basis)
        centres = reach * grid**1.5
        spacing = 1.5 * reach * (grid.clamp(min=1 / basis)) ** 0.5 / basis
        self.centres = nn.Parameter(centres)
        self.sharpness = nn.Parameter(1 / spacing)
        self.affine = nn.Parameter(torch.zeros(elements * (elements + 1) // 2, 2))

    def forward(self, distance: Tensor, types: Tensor) -> Tensor:
        """``distance`` (B, P) Angstrom, ``types`` (R, P) from :func:`pair_types` -> (B, P, basis) in (0, 1]."""
        stretch, shift = self.affine[types].unbind(-1)
        mapped = torch.addcmul(shift, distance, 1 + stretch)[..., None]
        scaled = torch.addcmul(-self.centres * self.sharpness, mapped, self.sharpness)
        return scaled.square().neg().clamp(min=-FARTHEST).exp()
