"""Pairs of atoms in crystal cells with all their periodic images within a cutoff; cells of a batch differ, and so do their image counts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import IncompatibleError
from .geometry import SOFTENING, PairList, envelope

__all__ = ["PairImages", "pair_images", "short_basis"]

_SWEEPS = 12
_MOST = 4_000_000  # lattice vectors of a batch: a cell that asks for more is no cell


class PairImages(NamedTuple):
    """P unordered pairs, M images each, the nearest first: ``distance`` (B, P, M) Angstrom, ``unit`` (B, P, M, 3) from the first
    atom to the second one's image, ``near`` (B, P, M) the smooth cutoff, 1 at contact, 0 beyond it and for what is no image."""

    distance: Tensor
    unit: Tensor
    near: Tensor


def pair_images(fractions: Tensor, vectors: Tensor, pairs: PairList, cutoff: float) -> PairImages:
    """Every image within ``cutoff`` Angstrom of the atoms at ``fractions`` (B, N, 3) of ``vectors`` (B, 3, 3) Angstrom, rows.

    An atom's own images are those of its pair with itself. How many lattice vectors are looked at follows from each cell: its
    shortest basis, the distance between its lattice planes, its longest diagonal. Differentiable by fractions and vectors.

    Raises IncompatibleError for cells that are so thin that the images would not fit in memory.
    """
    with torch.no_grad():
        change = short_basis(vectors)
        back = torch.linalg.inv(change.double()).round().to(vectors)
    short = change @ vectors
    gap = (fractions[:, pairs.second] - fractions[:, pairs.first]) @ back
    gap = gap - gap.detach().round()
    with torch.no_grad():
        steps = _steps(short, cutoff)
        offsets = gap @ short
        distance = (offsets[:, :, None] + (steps @ short)[:, None]).norm(dim=-1)
        own = (pairs.first == pairs.second)[:, None] & ~steps.any(-1)[:, None]
        distance = distance.masked_fill_(own, torch.inf)
        # As many as the pair with the most images has; others get images of no weight.
        count = int((distance < cutoff).sum(-1).max())
        found, kept = distance.topk(count, largest=False)
        chosen = steps.gather(1, kept.flatten(1)[..., None].expand(-1, -1, 3)).unflatten(1, kept.shape[1:])
    seen = (gap[:, :, None] + chosen) @ short[:, None]
    distance = (seen.square().sum(-1) + SOFTENING).sqrt()
    near = envelope(distance, cutoff).masked_fill(found == torch.inf, 0.0)
    return PairImages(distance, seen / distance[..., None], near)


def short_basis(vectors: Tensor) -> Tensor:
    """(B, 3, 3) integer matrices that make short vectors of the rows of ``vectors`` (B, 3, 3), the shortest first (Lagrange)."""
    total = torch.eye(3).to(vectors).expand(len(vectors), -1, -1)
    for _ in range(_SWEEPS):
        rows = total @ vectors
        order = rows.square().sum(-1).argsort(1)[..., None].expand(-1, -1, 3)
        rows, total = rows.gather(1, order), total.gather(1, order)
        a, b, c = rows.unbind(1)
        first, second, third = total.unbind(1)
        step = _nearest(b, a)
        b, second = b - step * a, second - step * first
        step = _nearest(c, b)
        c, third = c - step * b, third - step * second
        before, total = total, torch.stack([first, second, third - _nearest(c, a) * first], 1)
        if torch.equal(before, total):
            break
    return total


def _nearest(x: Tensor, y: Tensor) -> Tensor:
    """(B, 1) the whole multiple of ``y`` (B, 3) nearest to ``x`` along it; ties stay."""
    return ((x * y).sum(-1, keepdim=True) / y.square().sum(-1, keepdim=True).clamp_min(1e-12) * (1 - 1e-6)).round()


def _steps(short: Tensor, cutoff: float) -> Tensor:
    """(B, L, 3) whole multiples of ``short`` (B, 3, 3) that can bring a gap of the home cell within the cutoff."""
    planes = torch.linalg.inv(short).norm(dim=1)
    most = (cutoff * planes + 0.5).amax(0).floor().nan_to_num(nan=torch.inf).clamp(max=1e4).long().tolist()
    count = (2 * most[0] + 1) * (2 * most[1] + 1) * (2 * most[2] + 1)
    if count * len(short) > _MOST:
        raise IncompatibleError(
            f"a cell of the batch is so thin that {count} lattice vectors lie around it: {_thinnest(short, planes)} Angstrom. "
            "It is no crystal, or the cutoff is too long."
        )
    steps = torch.cartesian_prod(*(torch.arange(-n, n + 1).to(short) for n in most))
    signs = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5]).to(short)] * 3)
    reach = cutoff + (signs @ short).norm(dim=-1).amax(1, keepdim=True)
    length = (steps @ short).norm(dim=-1)
    kept = length.topk(int((length < reach).sum(1).max()), largest=False).indices
    return steps[kept]


def _thinnest(short: Tensor, planes: Tensor) -> list:
    return short[int(planes.amax(1).argmax())].tolist()
