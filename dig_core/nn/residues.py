"""What residues of a protein see of each other: from their own frames, and by a structure that both know."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..diffusion.rotations import sine_axis
from .geometry import FARTHEST, SOFTENING

__all__ = ["ALONG", "TOLD", "Told", "View", "along", "channels", "displacements", "lengths", "n_lengths"]

TOLD = 9
"""Features of what a residue is told."""

ALONG = 24
"""Features of the residues before and after."""

_NEAR = 8.0  # Angstrom, about which displacements along the chain stop growing


class Told:
    """Where others say that a residue belongs: as the two stand in the reference structure, seen from where the other is now."""

    def __init__(
        self, fixed: Tensor, fixed_turn: Tensor, pos: Tensor, turn: Tensor, signal: Tensor, noise: Tensor, angle: Tensor
    ) -> None:  # fmt: skip
        b, n, _ = pos.shape
        back = fixed_turn.transpose(1, 2)
        place = back @ (fixed - fixed[:, None]).transpose(1, 2)
        axes = back[:, None] @ fixed_turn
        inside = torch.cat([place[:, :, None], axes.permute(0, 2, 3, 1)], 2).view(n, 3, 4 * n)
        said = torch.matmul(turn, inside).view(b, n, 3, 4, n)
        # (B, N, N, 12): row i, column j: where i belongs says j, and its three axes.
        place = signal[..., None, None] * said[:, :, :, :1] + pos[..., None, None]
        self.said = torch.cat([place, said[:, :, :, 1:]], 3).permute(0, 4, 1, 3, 2).flatten(3)
        self.pos, self.turn, self.noise, self.angle = pos, turn, noise, angle

    def __call__(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Shifts and turns (B, N, 2, heads, 3) in a residue's own frame, in units of the noise, and the same as features
        (B, N, heads, TOLD); ``weights`` (B, heads, N, N) of who is listened to."""
        mean = torch.matmul(weights.transpose(1, 2), self.said).unflatten(-1, (4, 3))
        shift = torch.matmul(mean[..., 0, :] - self.pos[:, :, None], self.turn) / self.noise[..., None]
        # Rows: its axes as others say, columns: along its own.
        axes = torch.matmul(mean[..., 1:, :], self.turn[:, :, None])
        twist = -sine_axis(axes) / self.angle[..., None]
        both = torch.stack([shift, twist], 2)
        seen = torch.cat([torch.asinh(shift), torch.asinh(twist), axes.diagonal(dim1=-2, dim2=-1)], -1)
        return both, seen


class View(nn.Module):
    """How residues see each other: Gaussians of the distance, its direction and the other's axes in their own frame."""

    def __init__(self, basis: int) -> None:
        super().__init__()
        # From contact to the size of a large protein, a few of 0.4 Angstrom where neighbours are: bonds are to be exact.
        grid = torch.linspace(0, 1, basis)
        self.centres = nn.Parameter(0.3 + 6.5 * grid**3)
        self.sharpness = nn.Parameter(1 / (19.5 * grid**2 / basis).clamp_min(0.04))
        self.features = basis + 12

    def forward(self, pos: Tensor, turn: Tensor, scale: float) -> Tensor:
        """``pos`` (B, N, 3) units of ``scale`` Angstrom, ``turn`` (B, N, 3, 3) -> (B, features, N, N)."""
        b, n, _ = pos.shape
        pos = pos * (scale / 10.0)
        axes = turn.permute(0, 3, 1, 2).reshape(b, 3 * n, 3)
        inside = torch.bmm(axes, torch.cat([pos, *turn.unbind(-1)], 1).transpose(1, 2)).view(b, 3, n, 4, n)
        # A position in the frame of i, less that of i.
        gap = inside[:, :, :, 0] - (turn * pos[..., None]).sum(2).transpose(1, 2)[..., None]
        distance = (gap.square().sum(1, keepdim=True) + SOFTENING).sqrt()
        radial = (distance - self.centres[:, None, None]) * self.sharpness[:, None, None]
        radial = radial.square().neg().clamp(min=-FARTHEST).exp()
        return torch.cat([radial, gap / distance, *inside[:, :, :, 1:].unbind(3)], 1)


def along(pos: Tensor, turn: Tensor, follows: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The residues before and after, in a residue's own frame: displacements (B, N, 2, 3) in units of ``scale`` Angstrom, and features
    (B, N, ALONG) in Angstrom, as bonds are to be exact; zero where the chain ends. ``follows`` (N - 1,) bool.
    """
    step = (pos[:, 1:] - pos[:, :-1]) * follows[:, None]
    ahead = torch.cat([step, torch.zeros_like(step[:, :1])], 1) if len(follows) else torch.zeros_like(pos)
    gap = torch.matmul(torch.stack([-ahead.roll(1, 1), ahead], 2), turn)
    bonded = torch.zeros(pos.shape[1], 2, dtype=pos.dtype, device=pos.device)
    bonded[1:, 0], bonded[:-1, 1] = follows.to(pos), follows.to(pos)
    axes = torch.stack([turn.roll(1, 1), turn.roll(-1, 1)], 2)
    axes = torch.matmul(turn.transpose(2, 3)[:, :, None], axes) * bonded[..., None, None]
    near = scale * gap
    near = near / (1 + near.square().sum(-1, keepdim=True) / _NEAR**2).sqrt()
    return gap, torch.cat([near.flatten(2), axes.flatten(2)], -1)


def channels(weight: Tensor, pair: Tensor) -> Tensor:
    """A linear layer over the channels of (B, C, N, N), which keeps rows of residues together in memory."""
    # Not matmul, which would fold the batch into the pairs by copies.
    return torch.bmm(weight.expand(len(pair), -1, -1), pair.flatten(2)).unflatten(2, pair.shape[2:])


def displacements(weights: Tensor, pos: Tensor, turn: Tensor) -> Tensor:
    """(B, N, heads, 3): mean displacements to the residues attended to, in a residue's own frame; ``weights`` (B, heads, N, N)."""
    gap = torch.matmul(weights, pos[:, None]) - pos[:, None]
    return torch.matmul(gap.transpose(1, 2), turn)


def lengths(local: Tensor) -> Tensor:
    """(B, N, ..) of displacements (B, N, heads, 3), and of the differences between heads: what a head attends to is a part of the
    protein, and how far parts are apart does not depend on where the noise has put the residue itself."""
    first, second = torch.triu_indices(local.shape[2], local.shape[2], 1, device=local.device)
    both = torch.cat([local, local[:, :, first] - local[:, :, second]], 2)
    return (both.square().sum(-1) + SOFTENING).sqrt()


def n_lengths(heads: int) -> int:
    """Numbers that displacements give: components, and :func:`lengths`."""
    return 4 * heads + heads * (heads - 1) // 2
