"""Pairs of atoms of a crystal within a cutoff, every periodic image counted; the number of images follows from the cell."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Pairs", "pairs", "sound"]

_MOST = 2_000_000  # images of pairs looked at for one structure; cells thin as foil or without volume need more


class Pairs(NamedTuple):
    """E pairs, sorted by structure: ``structure``, ``first``, ``second`` (E,), ``image`` (E, 3) the lattice vectors between, integers.

    The second atom stands at ``positions[second] + image @ cell``, whatever cell the positions were written in.
    """

    structure: Tensor
    first: Tensor
    second: Tensor
    image: Tensor

    def vectors(self, positions: Tensor, cell: Tensor) -> Tensor:
        """(E, 3) Angstrom from the first atom to the second; differentiable in positions (B, N, 3) and cell (B, 3, 3)."""
        ends = positions[self.structure, self.second] - positions[self.structure, self.first]
        return ends + (self.image.to(cell)[:, None] @ cell[self.structure])[:, 0]


def pairs(positions: Tensor, cell: Tensor, reach: float, *, half: bool = False) -> Pairs:
    """All pairs closer than ``reach`` Angstrom in crystals (B, N, 3), (B, 3, 3); each once if ``half``, else from both sides.

    The structures must be :func:`sound`.
    """
    found = [_of_one(x, c, reach, half) for x, c in zip(positions.detach(), cell.detach(), strict=True)]
    structure = torch.cat([torch.full((len(f[0]),), k, device=cell.device) for k, f in enumerate(found)])
    return Pairs(structure, *(torch.cat(part) for part in zip(*found, strict=True)))


def sound(positions: Tensor, cell: Tensor, reach: float) -> Tensor:
    """(B,) True where all numbers are finite and the cell has a volume, so that the images within ``reach`` can be counted."""
    finite = positions.detach().isfinite().all(-1).all(-1) & cell.detach().isfinite().all(-1).all(-1)
    safe = torch.where(finite[:, None, None], cell.detach(), torch.eye(3).to(cell))
    volume = torch.linalg.det(safe).abs()
    heights = volume[:, None] / torch.linalg.cross(safe.roll(-1, 1), safe.roll(-2, 1)).norm(dim=-1)
    images = (2 * (reach / heights + 0.5).floor() + 1).prod(-1)
    return finite & (images * positions.shape[1] ** 2 <= _MOST)


def _of_one(positions: Tensor, cell: Tensor, reach: float, half: bool) -> tuple[Tensor, Tensor, Tensor]:
    inverse = torch.linalg.inv(cell)
    apart = (positions[None] - positions[:, None]) @ inverse
    # Differences of fractions in [-1/2, 1/2]: then |step + difference| <= reach / height bounds the steps.
    home = -apart.round()
    most = (reach * inverse.norm(dim=0) + 0.5).floor().long().tolist()
    steps = torch.cartesian_prod(*(torch.arange(-m, m + 1, device=cell.device) for m in most)).to(cell)
    distance = ((apart + home)[:, :, None] + steps) @ cell
    within = distance.square().sum(-1) < reach**2
    order = torch.arange(len(positions), device=cell.device)
    # The middle step is the home cell; steps after it are minus those before.
    later = torch.arange(len(steps), device=cell.device) > len(steps) // 2
    if half:
        within &= (order[:, None] < order)[..., None] | ((order[:, None] == order)[..., None] & later)
    else:
        within[order, order, len(steps) // 2] = False
    first, second, step = within.nonzero(as_tuple=True)
    return first, second, (steps[step] + home[first, second]).long()
