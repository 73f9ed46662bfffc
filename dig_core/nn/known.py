"""What known structures of one protein say of a noised one, however it is turned: the exact mean of their mixture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..diffusion.rotations import sine_axis

__all__ = ["KnownStructures", "Recollection", "concentration", "mean_rotation"]


def _nodes(count: int = 40, power: int = 6) -> Tensor:
    """(2, count): nodes and weights on (0, 1), most of them near 0, where all is when overlaps are large."""
    z, weight = np.polynomial.legendre.leggauss(count)
    z = 0.5 * (z + 1)
    return torch.from_numpy(np.stack([z**power, 0.5 * weight * power * z ** (power - 1)]))


_NODES = _nodes()  # of y, where an integral from -1 to 1 is over u = 1 - 2 y


class Recollection(NamedTuple):
    """Of B noised structures: ``pos`` (B, N, 3) and ``due`` (B, N, 3), as they are and as expected clean; ``turn`` (B, N, 3), half the
    axis by which orientations miss those expected; ``gates`` (T, 5), how much of each is added, and of the network's own answer."""

    pos: Tensor
    due: Tensor
    turn: Tensor
    gates: Tensor

    def mend(self, answer: Tensor) -> Tensor:
        """``answer`` (B, N, 2, 3), shifts and turns of all residues, with what is remembered."""
        seen, expected, own, twist, own_twist = self.gates[:, :, None, None].unbind(1)
        shift, turn = answer.unbind(2)
        shift = (1 + own) * shift + seen * self.pos + expected * self.due
        return torch.stack([shift, (1 + own_twist) * turn + twist * self.turn], 2)


class KnownStructures(nn.Module):
    """The mean of clean structures given noised ones, if they were ``count`` known ones, each a little widened and turned at random.

    Noise that hides where a single residue is leaves little doubt of how far all of them have gone together: what pairs of residues
    cannot tell, the overlap with a whole structure does. Given one of them, the unknown rotation has a matrix Fisher law, whose norm
    weighs the structure and whose mean lays it on what is seen. How much of the result the answer takes is learned for every noise;
    it fades where noise is less than ``finest``, in the units of positions: there residues are seen, and nothing need be remembered.
    """

    pos: Tensor
    turn: Tensor
    width: Tensor

    def __init__(self, members: int, features: int, count: int, finest: float) -> None:
        super().__init__()
        self.finest = finest
        self.register_buffer("pos", torch.zeros(count, members, 3))
        self.register_buffer("turn", torch.eye(3).repeat(count, members, 1, 1))
        self.register_buffer("width", torch.zeros(2))
        self.gates = nn.Sequential(nn.Linear(features, features), nn.SiLU(), nn.Linear(features, 5))
        nn.init.zeros_(self.gates[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.gates[2].bias)  # type: ignore[arg-type]

    def forward(self, pos: Tensor, turn: Tensor, signal: Tensor, noise: Tensor, angle: Tensor, time: Tensor) -> Recollection:
        """Of frames (B, N, 3), (B, N, 3, 3); (T, 1, 1) each: how large a clean structure is in them, and their noise; ``time`` (T, W)."""
        variance = noise**2 + (signal * self.width[0]) ** 2
        kappa = concentration(angle**2 + self.width[1] ** 2)
        overlap = signal / variance * torch.matmul(pos.transpose(1, 2).flatten(0, 1), self._columns).unflatten(0, (-1, 3)).flatten(2)
        spin = torch.einsum("bnik,fnjk->bfij", turn, self.turn)
        overlap = overlap.unflatten(-1, (-1, 3)).transpose(1, 2) + kappa[..., None] * spin
        log_norm, mean = mean_rotation(overlap)
        size = self.pos.square().sum((1, 2))
        share = torch.softmax(log_norm - (0.5 * signal**2 / variance)[..., 0] * size, 1)
        laid = share[..., None, None] * mean
        due = torch.einsum("bfij,fnj->bni", laid, self.pos)
        expected = torch.einsum("bfij,fnjk->bnik", laid, self.turn)
        axis = sine_axis(torch.matmul(turn, expected.transpose(2, 3)))
        hidden = (noise / signal)[:, :, 0] ** 4
        return Recollection(pos, due, axis, self.gates(time) * hidden / (hidden + self.finest**4))

    @property
    def _columns(self) -> Tensor:
        """(N, F * 3)"""
        return self.pos.transpose(0, 1).flatten(1)

    @torch.no_grad()
    def start(self, pos: Tensor, turn: Tensor) -> None:
        """Know F structures, or as many of them, evenly; their widths let neighbours touch."""
        chosen = torch.linspace(0, len(pos) - 1, len(self.pos)).round().long()
        pos, turn = pos[chosen], turn[chosen]
        left, s, right = torch.linalg.svd(torch.einsum("fni,gnj->fgij", pos, pos))
        sign = torch.linalg.det(left @ right)
        size = pos.square().sum((1, 2))
        miss = size[:, None] + size - 2 * (s[..., 0] + s[..., 1] + sign * s[..., 2])
        miss = torch.where(miss > 1e-6 * size, miss, torch.inf)  # from itself, or once more the same
        near = miss.argmin(1)
        rows = torch.arange(len(pos), device=pos.device)
        left[..., 2] *= sign[..., None]
        lie = torch.einsum("fnij,fik,fnkj->fn", turn, (left @ right)[rows, near], turn[near])
        apart = torch.stack([miss[rows, near] / (3 * pos.shape[1]), (3 - lie).mean(1) / 3], 1).sqrt()
        apart = apart[apart.isfinite().all(1)]
        self.width.copy_(0.5 * apart.median(0).values if len(apart) else self.width)
        self.pos.copy_(pos)
        self.turn.copy_(turn)


def concentration(variance: Tensor) -> Tensor:
    """Of the matrix Fisher law exp(kappa tr R) whose mean is that of Brownian motion by ``variance`` an axis, exp(-variance): to 3 %."""
    return 0.5 / torch.expm1(variance) + torch.exp(-variance) * (0.5 + 2 * variance / (1 + variance))


def mean_rotation(overlap: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the norm (...,) and the mean (..., 3, 3) of the law exp(tr overlap^T R) of rotations R; ``overlap`` (..., 3, 3).

    By one integral over singular values (Lee, doi:10.1109/TAC.2018.2797162), in which large ones do no harm.
    """
    left, s, right = torch.linalg.svd(overlap.double())
    sign = torch.linalg.det(left) * torch.linalg.det(right)
    s = torch.cat([s[..., :2], (sign * s[..., 2])[..., None]], -1)
    left = torch.cat([left[..., :2], (torch.linalg.det(left))[..., None, None] * left[..., 2:]], -1)
    right = torch.cat([right[..., :2, :], torch.linalg.det(right)[..., None, None] * right[..., 2:, :]], -2)
    y, weight = _NODES.to(s)
    logs, means = [], []
    for i, j, k in ((1, 2, 0), (2, 0, 1), (0, 1, 2)):
        less, more = (s[..., i] - s[..., j])[..., None] * y, (s[..., i] + s[..., j])[..., None] * (1 - y)
        # Of exp(tr S), the exponents' largest value, nothing is left to overflow.
        rest = less.abs() - (s[..., i] + s[..., j])[..., None] * y - 2 * s[..., k, None] * y
        part = weight * torch.special.i0e(less) * torch.special.i0e(more) * torch.exp(rest + more.abs() - more)
        norm = part.sum(-1)
        logs.append(norm.log() + s.sum(-1))
        means.append((part * (1 - 2 * y)).sum(-1) / norm)
    mean = left @ (torch.stack(means, -1)[..., None] * right)
    return logs[2].to(overlap), mean.to(overlap)
