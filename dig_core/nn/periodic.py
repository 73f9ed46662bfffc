"""Atoms and their periodic images within a cutoff, and attention over them: an image has its parent's key and value, its own geometry."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embed import seeded
from .geometry import FARTHEST, SOFTENING, envelope
from .graphormer import modulated_norm

__all__ = [
    "EnvelopedBasis", "ImageAttention", "Images", "PairAttention", "Region", "Surroundings", "images_within", "of_parents", "surroundings",
]  # fmt: skip


class Images(NamedTuple):
    """K periodic images: ``parent`` (K,) atom indices, ``shift`` (K, 3) Angstrom, ``home`` (K,) True for the atoms themselves."""

    parent: Tensor
    shift: Tensor
    home: Tensor


class Region(NamedTuple):
    """Where to look from: ``low``, ``high`` (2,) fractions of the cell vectors."""

    low: Tensor
    high: Tensor


def images_within(positions: Tensor, vectors: Tensor, reach: float, region: Region, *, loose: Tensor | None = None) -> Images:
    """Every image of atoms (S, 3) that comes within ``reach`` Angstrom of the region; ``vectors`` (2, 3) Angstrom are periodic.

    ``loose`` (S,) marks atoms that may be anywhere in the home cell, fractions in [-1/2, 1/2). The number of images follows
    from the reach and the cell: small cells have many.
    """
    heights = torch.linalg.cross(vectors[0], vectors[1]).norm() / vectors.norm(dim=1).flip(0)
    margin = reach / heights + 1e-9
    first = positions @ torch.linalg.pinv(vectors)
    last = first
    if loose is not None:
        first = torch.where(loose[:, None], torch.full_like(first, -0.5), first)
        last = torch.where(loose[:, None], torch.full_like(first, 0.5), last)
    least = ((region.low - margin) - last.amax(0)).ceil().tolist()
    most = ((region.high + margin) - first.amin(0)).floor().tolist()
    steps = torch.cartesian_prod(*(torch.arange(int(a), int(b) + 1) for a, b in zip(least, most, strict=True))).to(positions)
    inside = (last[:, None] + steps >= region.low - margin) & (first[:, None] + steps <= region.high + margin)
    parent, step = inside.all(-1).nonzero(as_tuple=True)
    return Images(parent, steps[step] @ vectors, (steps[step] == 0).all(-1))


class Surroundings(NamedTuple):
    """What Q atoms see, M images each, the nearest first: ``parent`` (B, Q, M) atom indices, ``distance`` (B, Q, M) Angstrom,
    ``unit`` (B, Q, M, 3) towards the query, ``near`` (B, Q, M) the smooth cutoff, 1 at contact and 0 beyond it."""

    parent: Tensor
    distance: Tensor
    unit: Tensor
    near: Tensor


def surroundings(queries: Tensor, atoms: Tensor, images: Images, cutoff: float, skip: Tensor) -> Surroundings:
    """The images of ``atoms`` (B, S, 3) that ``queries`` (B, Q, 3) see within ``cutoff``, Angstrom; none where ``skip`` (Q, K) is True."""
    keys = atoms[:, images.parent] + images.shift
    with torch.no_grad():
        distance = torch.cdist(queries, keys, compute_mode="donot_use_mm_for_euclid_dist").masked_fill_(skip, torch.inf)
        # As many as the query with the most neighbours has; others get images of no weight.
        count = int((distance < cutoff).sum(-1).max()) if distance.numel() else 0
        found, kept = distance.topk(count, largest=False)
    seen = keys.gather(1, kept.flatten(1)[..., None].expand(-1, -1, 3)).view(*kept.shape, 3)
    gap = queries[:, :, None] - seen
    distance = (gap.square().sum(-1) + SOFTENING).sqrt()
    near = envelope(distance, cutoff).masked_fill(found == torch.inf, 0.0)
    return Surroundings(images.parent[kept], distance, gap / distance[..., None], near)


def of_parents(values: Tensor, parent: Tensor) -> Tensor:
    """What each image has from its parent: ``values`` (B or 1, S, C), ``parent`` (B or 1, Q, M) -> (B, Q, M, C)."""
    if len(values) == 1:
        return F.embedding(parent, values[0])
    return F.embedding(parent + values.shape[1] * torch.arange(len(values), device=parent.device)[:, None, None], values.flatten(0, 1))


class EnvelopedBasis(nn.Module):
    """Gaussians of the distance, denser near contact, of which each pair's sum of radii sets the unit of length.

    ``sizes`` of a pair stretches distances, so that one basis serves small and large atoms alike. Without ``learned`` it is fixed.
    """

    centres: Tensor
    sharpness: Tensor

    def __init__(self, basis: int, cutoff: float, learned: bool = True) -> None:
        super().__init__()
        grid = torch.linspace(0, 1, basis)
        centres = 0.25 + (cutoff / 2.0 - 0.25) * grid**1.3
        spacing = 1.3 * (cutoff / 2.0) * grid.clamp(min=1 / basis) ** 0.3 / basis
        for name, value in (("centres", centres), ("sharpness", 1 / spacing)):
            if learned:
                setattr(self, name, nn.Parameter(value))
            else:
                self.register_buffer(name, value, persistent=False)

    def forward(self, distance: Tensor, sizes: Tensor) -> Tensor:
        """``distance`` and ``sizes`` (B, Q, M) Angstrom -> (B, Q, M, basis)."""
        scaled = (distance / sizes)[..., None] * self.sharpness - self.centres * self.sharpness
        return scaled.square().neg().clamp(min=-FARTHEST).exp()


class ImageAttention(nn.Module):
    """Pre-LN attention of atoms over images of atoms, with the time in the norms, then a feed-forward layer."""

    def __init__(self, width: int, heads: int, ffn: int, seed: int) -> None:
        super().__init__()
        self.heads = heads
        with seeded(seed):
            self.modulation = nn.Linear(width, 6 * width)
            self.query = nn.Linear(width, width, bias=False)
            self.key_value = nn.Linear(width, 2 * width, bias=False)
            self.mix = nn.Linear(width, width, bias=False)
            self.widen = nn.Linear(width, ffn * width, bias=False)
            self.narrow = nn.Linear(ffn * width, width, bias=False)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, others: Tensor, seen: Surroundings, bias: Tensor, time: Tensor) -> Tensor:
        """``x`` (B, Q, W); ``others`` (B or 1, S, W), the parents of the images ``seen``; ``bias`` (B, heads, Q, M);
        ``time`` (T, W) with T = 1 or B -> (B, Q, W)."""
        modulation = self._modulation(time)
        every, value = self._logits(x, others, modulation)
        parent = seen.parent[:, None].expand(len(every), self.heads, -1, -1)
        logits = every.gather(-1, parent) + bias
        # The envelope multiplies the weights, so that an image enters at the cutoff without a jump; 1 is the weight of silence.
        top = F.pad(logits.detach(), (0, 1)).amax(-1, keepdim=True)
        weights = seen.near[:, None] * torch.exp(logits - top)
        weights = weights / (weights.sum(-1, keepdim=True) + torch.exp(-top))
        # Images of one parent share its value: their weights add up first.
        weights = torch.zeros_like(every).scatter_add(-1, parent, weights)
        return self._answer(x, weights @ value, modulation)

    def _modulation(self, time: Tensor) -> tuple[Tensor, ...]:
        return self.modulation(time)[:, None].chunk(6, dim=-1)

    def _logits(self, x: Tensor, others: Tensor, modulation: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """What each atom thinks of each other (B, heads, Q, S), and the values (B or 1, heads, S, W / heads)."""
        b, q, w = x.shape
        scale, shift = modulation[:2]
        query = self.query(modulated_norm(x, scale, shift)).view(b, q, self.heads, -1).transpose(1, 2)
        both = self.key_value(F.layer_norm(others, (w,))).view(len(others), -1, 2, self.heads, w // self.heads)
        key, value = both.permute(2, 0, 3, 1, 4)
        return query @ key.transpose(2, 3) * (w // self.heads) ** -0.5, value

    def _answer(self, x: Tensor, heard: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """``x`` with what was ``heard`` (B, heads, Q, W / heads), and after the feed-forward layer."""
        gate1, scale2, shift2, gate2 = modulation[2:]
        x = x + (1 + gate1) * self.mix(heard.transpose(1, 2).reshape(x.shape))
        hidden = F.silu(self.widen(modulated_norm(x, scale2, shift2)))
        return x + (1 + gate2) * self.narrow(hidden)


class PairAttention(ImageAttention):
    """The same attention where all see all: the weights of a pair's images are summed beforehand, which the softmax allows."""

    def forward(self, x: Tensor, weight: Tensor, time: Tensor) -> Tensor:  # type: ignore[override]
        """``x`` (B, N, W); ``weight`` (B, heads, N, N), the sum of near * exp(bias) over a pair's images; ``time`` as above."""
        modulation = self._modulation(time)
        every, value = self._logits(x, x, modulation)
        top = F.pad(every.detach(), (0, 1)).amax(-1, keepdim=True)
        weights = weight * torch.exp(every - top)
        weights = weights / (weights.sum(-1, keepdim=True) + torch.exp(-top))
        return self._answer(x, weights @ value, modulation)
