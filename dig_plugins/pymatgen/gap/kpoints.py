"""Points of the Brillouin zone: grids by spacing, half of them by time reversal, and finer ones around a point."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["around", "counts", "grid"]

_ALIKE = 0.01  # relative length and cosine within which two vectors form a hexagonal net


def counts(cell: Tensor, spacing: float) -> tuple[int, int, int]:
    """Divisions of the reciprocal cell of ``cell`` (3, 3) Angstrom that put points at most ``spacing`` 1/Angstrom apart, 2 pi included.

    Two vectors of equal length at 60 or 120 degrees get a multiple of three: the bands of graphite touch at a third of the
    way (K), and a grid without that point shows a gap of an electronvolt.
    """
    reciprocal = 2 * math.pi * torch.linalg.inv(cell).T
    found = [max(1, math.ceil(length / spacing - 1e-9)) for length in reciprocal.norm(dim=1).tolist()]
    lengths = cell.norm(dim=1)
    cosines = (cell @ cell.T / (lengths[:, None] * lengths)).abs().tolist()
    for i, j in itertools.combinations(range(3), 2):
        if abs(float(lengths[i] / lengths[j]) - 1) < _ALIKE and abs(cosines[i][j] - 0.5) < _ALIKE:
            found[i] = found[j] = 3 * math.ceil(max(found[i], found[j]) / 3)
    return found[0], found[1], found[2]


def grid(divisions: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Gamma-centred grid: fractions (K, 3) of the reciprocal vectors in [0, 1), one of each pair k, -k, and how many each stands for."""
    size = torch.tensor(divisions)
    steps = torch.cartesian_prod(*(torch.arange(n) for n in divisions)).reshape(-1, 3)
    place = steps @ torch.stack([size[1] * size[2], size[2], torch.ones_like(size[2])])
    mirror = (-steps % size) @ torch.stack([size[1] * size[2], size[2], torch.ones_like(size[2])])
    kept = place <= mirror
    return (steps / size)[kept].double(), torch.where(place < mirror, 2.0, 1.0)[kept].double()


def around(point: Tensor, step: Tensor) -> Tensor:
    """(14, 3): the faces and corners of the box of half widths ``step`` (3,) about ``point`` (3,)."""
    moves = [move for move in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, move)) in (1, 3)]
    return point + torch.tensor(moves).to(point) * step
