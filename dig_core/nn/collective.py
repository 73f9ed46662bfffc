"""Collective motions of one protein: how far it has gone along learned directions from the reference structure, and what follows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Collective", "attitude"]

_SOFT = 1e-3  # of the trace: below it an axis of the overlap says nothing of how a structure is turned
_ROUNDS = 14


class Collective(nn.Module):
    """Amounts of ``modes`` motions of all residues at once, told to the network, and motions that it answers with.

    Noise that hides where a single residue is leaves no doubt of a motion of all of them together: what pairs of residues cannot tell,
    the projection on a direction does. Directions are of positions and of orientations, seen in the frame in which the structure
    lies on the reference, so that amounts do not change when it turns.
    """

    def __init__(self, members: int, width: int, modes: int) -> None:
        super().__init__()
        self.along = nn.Parameter(torch.randn(modes, members * 6) / (6 * members) ** 0.5)
        self.ways = nn.Parameter(torch.randn(modes, 2, members * 3))
        self.amounts = nn.Linear(modes, width)
        self.hidden = nn.Linear(width, width)
        self.told = nn.Linear(width, width)
        self.answer = nn.Linear(width, 2 * modes)
        for layer in (self.told, self.answer):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, pos: Tensor, turn: Tensor, fixed: Tensor, fixed_turn: Tensor, signal: Tensor, noise: Tensor, angle: Tensor, time: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features (B, W); shifts and turns (B, N, 2, 3) of all residues; frames, ``signal``, ``noise`` and ``angle`` as of Told."""
        frame = attitude(pos, turn, fixed, fixed_turn, noise, angle)
        gone, twist = departures(frame, pos, turn, signal * fixed, fixed_turn)
        both = torch.cat([gone / noise, twist / angle], 1).flatten(1)
        hidden = F.silu(self.amounts(torch.asinh(F.linear(both, self.along))) + time)
        hidden = F.silu(self.hidden(hidden))
        answer = torch.einsum("bcm,mcx->bcx", self.answer(hidden).unflatten(-1, (2, -1)), self.ways).unflatten(-1, (-1, 3))
        return self.told(hidden), torch.matmul(answer, frame.transpose(1, 2)[:, None]).transpose(1, 2)

    @torch.no_grad()
    def start(self, pos: Tensor, turn: Tensor, fixed: Tensor, fixed_turn: Tensor) -> None:
        """From the principal motions of F structures: half of the directions are of positions, half of orientations."""
        little = pos.new_tensor(0.1)
        frame = attitude(pos, turn, fixed, fixed_turn, little, little)
        size, modes = 3 * len(fixed), len(self.along)
        for number, part in enumerate(departures(frame, pos, turn, fixed, fixed_turn)):
            axes = torch.linalg.svd(part.flatten(1) - part.flatten(1).mean(0), full_matrices=False)[2][: (modes + 1 - number) // 2]
            own = slice(number, 2 * len(axes), 2)
            self.along[own] = 0.0
            self.along[own, number * size : (number + 1) * size] = axes
            self.ways[own, 1 - number], self.ways[own, number] = 0.0, size**0.5 * axes


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
