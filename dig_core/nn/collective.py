"""Collective motions of one protein: how far it has gone along known directions from the reference structure, and what follows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Collective", "Motion", "attitude", "departures", "twist_variance"]

_SOFT = 1e-3  # of the trace: below it an axis of the overlap says nothing of how a structure is turned
_ROUNDS = 14


class Motion(NamedTuple):
    """What :class:`Collective` says of B noised structures: ``told`` (B, W) to the network, and how to mend what it answers.

    ``frame`` (B, 3, 3) lays the reference on them; ``gone`` and ``due`` (B, M) are the amounts seen, and those expected of the clean
    structures; ``gates`` (B, M, 3) how much of either, and of the network's own answer, is added along each direction of ``along``.
    """

    told: Tensor
    frame: Tensor
    gone: Tensor
    due: Tensor
    gates: Tensor
    along: Tensor

    def mend(self, answer: Tensor) -> Tensor:
        """``answer`` (B, N, 2, 3), shifts and turns of all residues, changed along the directions alone."""
        own = torch.matmul(answer.transpose(1, 2), self.frame[:, None]).flatten(1)
        seen = torch.stack([self.gone, self.due, own @ self.along.T], -1)
        change = ((self.gates * seen).sum(-1) @ self.along).unflatten(-1, (2, -1, 3))
        return answer + torch.matmul(change, self.frame.transpose(1, 2)[:, None]).transpose(1, 2)


class Collective(nn.Module):
    """Amounts of ``modes`` motions of all residues at once, and what is expected of them: their law is a mixture about known structures.

    Noise that hides where a single residue is leaves no doubt of a motion of all of them together: what pairs of residues cannot tell,
    the projection on a direction does. The directions are principal motions, of positions and of orientations in turn, in the
    frame in which the reference lies on the structure, so that amounts do not change when it turns. In these few dimensions the law is
    that of ``known`` structures, each widened to a normal law, and the mean of the clean amounts given the noised ones is exact. How
    much of it the answer takes is learned for every noise: all where residues are hidden, nothing where they are seen.
    """

    along: Tensor
    known: Tensor

    def __init__(self, members: int, width: int, modes: int, known: int) -> None:
        super().__init__()
        self.register_buffer("along", torch.zeros(modes, members * 6))
        self.register_buffer("known", torch.zeros(known, modes))
        self.widths = nn.Parameter(torch.zeros(modes))
        self.amounts = nn.Linear(2 * modes, width)
        self.told = nn.Linear(width, width)
        self.gates = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 6))
        for layer in (self.told, self.gates[2]):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(
        self, pos: Tensor, turn: Tensor, fixed: Tensor, fixed_turn: Tensor, signal: Tensor, noise: Tensor, angle: Tensor, size: Tensor,
        time: Tensor,
    ) -> Motion:  # fmt: skip
        """Of frames (B, N, 3), (B, N, 3, 3) and a reference (N, 3), (N, 3, 3); (T, 1, 1) each: how large the reference is in them, the
        noise of positions before these were divided by ``size``, that of orientations, the size; ``time`` (T, W)."""
        noise = noise / size
        frame = attitude(pos, turn, fixed, fixed_turn, noise, angle)
        both = departures(frame, pos, turn, signal * fixed, fixed_turn)
        gone = torch.cat([part.flatten(1) for part in both], 1) @ self.along.T
        positions = torch.arange(len(self.along), device=pos.device) % 2 == 0
        left = torch.where(positions, signal[..., 0], torch.exp(-(angle[..., 0] ** 2)))
        variance = torch.where(positions, noise[..., 0] ** 2, twist_variance(angle[..., 0]))
        due = self._due(gone, left, variance)
        seen = torch.cat([torch.asinh(gone / variance.sqrt()), due / self._size], 1)
        told, unit = self.told(F.silu(self.amounts(seen) + time)), torch.where(positions, size[..., 0], 1.0)
        shifts, turns = self.gates(time)[:, None].chunk(2, -1)
        return Motion(told, frame, unit * gone, unit * due, torch.where(positions[:, None], shifts, turns), self.along)

    def _due(self, gone: Tensor, left: Tensor, variance: Tensor) -> Tensor:
        """(B, M): the mean of the clean amounts, of which ``left`` (T, M) and noise of ``variance`` (T, M) were seen as ``gone``."""
        own = torch.exp(2 * self.widths)
        total = variance + left**2 * own
        miss = gone[:, None] - left[:, None] * self.known
        share = torch.softmax(-0.5 * (miss**2 / total[:, None]).sum(-1), 1)
        return share @ self.known + left * own / total * (share[:, :, None] * miss).sum(1)

    @property
    def _size(self) -> Tensor:
        return self.known.square().mean(0).sqrt() + 1e-6

    @torch.no_grad()
    def start(self, pos: Tensor, turn: Tensor, fixed: Tensor, fixed_turn: Tensor) -> None:
        """From F structures: their principal motions; as many of them as are ``known``, evenly, and a width that lets neighbours touch."""
        little = pos.new_tensor(0.1)
        frame = attitude(pos, turn, fixed, fixed_turn, little, little)
        parts = departures(frame, pos, turn, fixed, fixed_turn)
        size, modes = 3 * len(fixed), len(self.along)
        self.along.zero_()
        for number, part in enumerate(parts):
            axes = torch.linalg.svd(part.flatten(1) - part.flatten(1).mean(0), full_matrices=False)[2][: (modes + 1 - number) // 2]
            self.along[number : 2 * len(axes) : 2, number * size : (number + 1) * size] = axes
        amounts = torch.cat([part.flatten(1) for part in parts], 1) @ self.along.T
        self.known.copy_(amounts[torch.linspace(0, len(amounts) - 1, len(self.known)).round().long()])
        apart = torch.cdist(self.known, self.known) + torch.diag(torch.full_like(self.known[:, 0], torch.inf))
        self.widths.fill_(float((0.5 * apart.min(1).values.median() / modes**0.5).clamp_min(1e-3).log()))


def twist_variance(angle: Tensor) -> Tensor:
    """Of a component of :func:`departures`' twist after Brownian motion by ``angle`` an axis from no turn: angle^2, at last 1 / 6.

    By the characters of SO(3), whose means decay as exp(-l (l + 1) angle^2 / 2).
    """
    square = angle**2
    return (1 - 2.5 * torch.exp(-3 * square) + 1.5 * torch.exp(-square)) / 6


def departures(frame: Tensor, pos: Tensor, turn: Tensor, fixed: Tensor, fixed_turn: Tensor) -> tuple[Tensor, Tensor]:
    """What is left, (B, N, 3) each, of positions and of turns when a structure is laid back on the reference."""
    axes = torch.matmul(frame.transpose(1, 2)[:, None], turn) @ fixed_turn.transpose(1, 2)
    twist = 0.5 * torch.stack([axes[..., b, a] - axes[..., a, b] for a, b in ((1, 2), (2, 0), (0, 1))], -1)
    return torch.matmul(pos, frame) - fixed, twist


def attitude(pos: Tensor, turn: Tensor, fixed: Tensor, fixed_turn: Tensor, noise: Tensor, angle: Tensor) -> Tensor:
    """(B, 3, 3), the rotation that lays the reference on the structure: the polar factor of their overlap.

    Smooth everywhere, also where the overlap says little, since its small axes fade; no eigenvectors, whose derivatives diverge.
    """
    overlap = torch.matmul(pos.transpose(1, 2), fixed) / noise.square()
    overlap = overlap + torch.einsum("bnij,nkj->bik", turn, fixed_turn) / angle.square()
    square = torch.matmul(overlap.transpose(1, 2), overlap)
    trace = square.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None].clamp_min(1e-12)
    eye = torch.eye(3, dtype=pos.dtype, device=pos.device)
    near, root = square / trace + _SOFT * eye, eye.expand_as(square)
    for _ in range(_ROUNDS):  # Newton and Schulz's iteration for the inverse root
        step = 1.5 * eye - 0.5 * torch.matmul(root, near)
        near, root = torch.matmul(near, step), torch.matmul(step, root)
    return torch.matmul(overlap / trace.sqrt(), root)
