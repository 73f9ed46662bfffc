"""What a ligand's atoms see of a pocket and of each other, and the vectors that they make of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Basis", "Pull", "Seen", "ToldAttention", "Wall", "distances", "rows_at"]


class Wall(NamedTuple):
    """Features of pocket atoms (Q, P, W) and of residues (Q, R, W)."""

    atoms: Tensor
    residues: Tensor


class Seen(NamedTuple):
    """Pocket atoms near a ligand atom (B, L, K), directions to them, to residues and to the ligand's atoms, and bases of the distances."""

    near: Tensor
    to_near: Tensor
    to_far: Tensor
    to_inner: Tensor
    close: Tensor
    far: Tensor
    inner: Tensor
    residues: Tensor
    real: Tensor


class Basis(nn.Module):
    """Gaussians of a distance, even to ``reach`` Angstrom, that fade towards it."""

    centres: Tensor

    def __init__(self, size: int, reach: float) -> None:
        super().__init__()
        self.reach, self.step = reach, reach / (size - 1)
        self.register_buffer("centres", torch.linspace(0, reach, size), persistent=False)

    def forward(self, distance: Tensor) -> Tensor:
        fade = (1 - (distance / self.reach).clamp(max=1) ** 4)[..., None]
        return torch.exp(-0.5 * ((distance[..., None] - self.centres) / self.step) ** 2) * fade


class ToldAttention(nn.Module):
    """Attention of B x L to B x M features with biases (B, H, L, M), then a feed-forward step; both told the time."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.hidden, self.back = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.told = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.told.weight)
        nn.init.zeros_(self.told.bias)

    def forward(self, x: Tensor, seen: Tensor, bias: Tensor, active: Tensor) -> Tensor:
        a, b, c, d, e, f = self.told(active)[:, None].chunk(6, -1)
        width = x.shape[2:]
        q = self.query(F.layer_norm(x, width) * (1 + a) + b).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in self.key_value(F.layer_norm(seen, width)).chunk(2, -1))
        mixed = torch.softmax(q @ k.transpose(2, 3) / q.shape[3] ** 0.5 + bias, -1) @ v
        x = x + (1 + c) * self.out(mixed.transpose(1, 2).flatten(2))
        return x + (1 + f) * self.back(F.silu(self.hidden(F.layer_norm(x, width) * (1 + d) + e)))


class Pull(nn.Module):
    """Vectors towards what an atom sees, weighted by what both are and how far apart; their lengths go back into the features."""

    def __init__(self, width: int, basis: int, channels: int) -> None:
        super().__init__()
        self.receiver = nn.Linear(width, 3 * channels)
        self.senders = nn.ModuleList(nn.Linear(width, channels) for _ in range(3))
        self.radials = nn.ModuleList(nn.Linear(basis, channels) for _ in range(3))
        self.near, self.sent = nn.Linear(basis, width, bias=False), nn.Linear(width, width)
        self.back = nn.Sequential(nn.Linear(2 * channels, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, wall: Wall, residues: Tensor, seen: Seen, before: Tensor) -> tuple[Tensor, Tensor]:
        normed = F.layer_norm(x, x.shape[2:])
        told = 1 + self.receiver(normed).unflatten(2, (3, -1))
        near, far, inner = (
            1 + F.embedding(seen.near, self.senders[0](wall.atoms).flatten(0, 1)),
            (1 + self.senders[1](residues))[:, None] * seen.residues[:, None, :, None],
            (1 + self.senders[2](normed))[:, None] * seen.real[:, None, :, None],
        )
        parts = zip((near, far, inner), (seen.close, seen.far, seen.inner), (seen.to_near, seen.to_far, seen.to_inner), strict=True)
        total = before
        for k, (weight, radial, unit) in enumerate(parts):
            total = total + torch.einsum("blmc,blmx->blcx", self.radials[k](radial) * weight, unit) * told[:, :, k, :, None]
        square = torch.asinh(torch.cat([(total * total).sum(-1), (total * total.roll(1, 2)).sum(-1)], -1))
        heard = (self.near(seen.close) * F.embedding(seen.near, self.sent(wall.atoms).flatten(0, 1))).sum(2)
        return x + self.back(square) + 0.2 * heard, total


def distances(a: Tensor, b: Tensor) -> Tensor:
    """(B, L, M) distances; not by products, which lose digits far from the origin."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def rows_at(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (B, M, W) at ``index`` (B, ...)."""
    flat = index.flatten(1)
    return x.gather(1, flat[..., None].expand(-1, -1, x.shape[2])).unflatten(1, index.shape[1:])
