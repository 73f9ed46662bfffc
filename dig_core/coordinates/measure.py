"""Bonds, angles and dihedrals of atoms, and the inverse: where an atom stands that has given ones."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["angle", "bond", "dihedral", "extend", "frame", "offset"]


def bond(positions: Tensor, atoms) -> Tensor:
    """(B, M) distances of M pairs of ``atoms`` in ``positions`` (B, N, 3), in the unit of the positions."""
    p = positions[:, torch.as_tensor(atoms)]
    return (p[:, :, 1] - p[:, :, 0]).norm(dim=-1)


def angle(positions: Tensor, atoms) -> Tensor:
    """(B, M) angles in [0, pi] of M triples of ``atoms``, at the middle one."""
    p = positions[:, torch.as_tensor(atoms)]
    a, b = p[:, :, 0] - p[:, :, 1], p[:, :, 2] - p[:, :, 1]
    return torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1))


def dihedral(positions: Tensor, atoms) -> Tensor:
    """(B, M) dihedrals in (-pi, pi] of M quadruples of ``atoms``, IUPAC sign (180 degrees is trans)."""
    p = positions[:, torch.as_tensor(atoms)]
    a, axis, c = p[:, :, 1] - p[:, :, 0], p[:, :, 2] - p[:, :, 1], p[:, :, 3] - p[:, :, 2]
    n1, n2 = torch.linalg.cross(a, axis), torch.linalg.cross(axis, c)
    return torch.atan2((torch.linalg.cross(n1, n2) * axis).sum(-1) / axis.norm(dim=-1), (n1 * n2).sum(-1))


def offset(positions: Tensor, atoms) -> Tensor:
    """(B, M, 3) components of the step from the second to the first of M quadruples of ``atoms``, in :func:`frame` of the last three."""
    p = positions[:, torch.as_tensor(atoms)]
    axes = torch.stack(frame(p[:, :, 3], p[:, :, 2], p[:, :, 1]), -2)
    return (axes * (p[:, :, 0] - p[:, :, 1])[..., None, :]).sum(-1)


def frame(m: Tensor, k: Tensor, j: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal axes (B, M, 3) at j: onwards from k, in the plane of m, and normal to it (points (B, M, 3), not on a line)."""
    along = torch.nn.functional.normalize(j - k, dim=-1)
    normal = torch.nn.functional.normalize(torch.linalg.cross(k - m, along), dim=-1)
    return along, torch.linalg.cross(normal, along), normal


def extend(m: Tensor, k: Tensor, j: Tensor, length: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
    """(B, M, 3) points at ``length`` from j, angle ``theta`` with k and dihedral ``phi`` with m (points (B, M, 3), the rest (B, M)).

    Natural extension reference frame, Parsons et al., doi:10.1002/jcc.20237.
    """
    along, side, normal = frame(m, k, j)
    local = torch.stack([-theta.cos(), theta.sin() * phi.cos(), theta.sin() * phi.sin()], -1) * length[..., None]
    return j + local[..., :1] * along + local[..., 1:2] * side + local[..., 2:] * normal
