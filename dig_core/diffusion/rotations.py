"""Rotations as vectors, quaternions and matrices: smooth at the identity and exact at half turns."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "compose", "half_angle", "half_cotangent", "inverse", "quaternion", "rotation_matrix", "rotation_vector", "series", "sine_axis",
    "vector_of",
]  # fmt: skip

# Quaternions (..., 4) are unit, the scalar first.

_COSINE = [(-0.25) ** n / math.factorial(2 * n) for n in range(9)]
_SINE = [0.5 * (-0.25) ** n / math.factorial(2 * n + 1) for n in range(9)]
_ARCSINE = [2 * math.comb(2 * n, n) / (4**n * (2 * n + 1)) for n in range(12)]
# (1 - (a / 2) cot(a / 2)) / a^2 in powers of a^2: |B_2n| / (2 n)! (Abramowitz and Stegun, 4.3.70).
_COTANGENT = [
    1 / 12, 1 / 720, 1 / 30240, 1 / 1209600, 1 / 47900160, 691 / 1307674368000, 1 / 74724249600, 3617 / 10670622842880000,
]  # fmt: skip


def rotation_matrix(vector: Tensor) -> Tensor:
    """(..., 3) axis times angle in radians -> (..., 3, 3) matrices that act on columns."""
    w, x, y, z = quaternion(vector).unbind(-1)
    rows = [
        w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z,
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def rotation_vector(matrix: Tensor) -> Tensor:
    """(..., 3, 3) rotation matrices -> (..., 3) axis times angle, no longer than pi. The inverse of :func:`rotation_matrix`."""
    m = matrix
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    # Rows are the quaternion times four of each of its entries: the largest is far from zero (Bar-Itzhack, doi:10.2514/2.4654).
    rows = torch.stack(
        [
            torch.stack([1 + xx + yy + zz, wx, wy, wz], dim=-1),
            torch.stack([wx, 1 + xx - yy - zz, xy, xz], dim=-1),
            torch.stack([wy, xy, 1 - xx + yy - zz, yz], dim=-1),
            torch.stack([wz, xz, yz, 1 - xx - yy + zz], dim=-1),
        ],
        dim=-2,
    )
    best = rows.detach().diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = torch.gather(rows, -2, best[..., None, None].expand(*best.shape, 1, 4))[..., 0, :]
    return vector_of(row / row.norm(dim=-1, keepdim=True))


def sine_axis(matrix: Tensor) -> Tensor:
    """(..., 3), of a rotation (..., 3, 3) its axis times the sine of its angle; linear, so that it is defined of mean rotations too."""
    return 0.5 * torch.stack([matrix[..., b, a] - matrix[..., a, b] for a, b in ((1, 2), (2, 0), (0, 1))], -1)


def quaternion(vector: Tensor) -> Tensor:
    """(..., 3) rotation vectors -> (..., 4)."""
    cosine, sine = half_angle(vector.square().sum(-1, keepdim=True))
    return torch.cat([cosine, sine * vector], dim=-1)


def vector_of(q: Tensor) -> Tensor:
    """(..., 4) quaternions -> (..., 3) rotation vectors no longer than pi."""
    q = torch.where(q[..., :1] < 0, -q, q)
    w, axis = q[..., :1], q[..., 1:]
    square = axis.square().sum(-1, keepdim=True)
    small = square < 0.01
    sine = torch.where(small, torch.ones_like(square), square).sqrt()
    # The arc cosine is blind near one, so small angles go by their sine.
    return axis * torch.where(small, series(_ARCSINE, torch.where(small, square, 0)), 2 * torch.atan2(sine, w) / sine)


def compose(p: Tensor, q: Tensor) -> Tensor:
    """The quaternion of first ``q``, then ``p``."""
    w, a = p[..., :1], p[..., 1:]
    u, b = q[..., :1], q[..., 1:]
    scalar = w * u - (a * b).sum(-1, keepdim=True)
    return torch.cat([scalar, w * b + u * a + torch.linalg.cross(a, b)], dim=-1)


def inverse(q: Tensor) -> Tensor:
    """The quaternion of the rotation back."""
    return torch.cat([q[..., :1], -q[..., 1:]], dim=-1)


def half_angle(square: Tensor) -> tuple[Tensor, Tensor]:
    """cos(a / 2) and sin(a / 2) / a of ``square`` = a^2: functions of the square, so that derivatives at a = 0 exist."""
    small = square < 0.25
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    inside = torch.where(small, square, 0)
    cosine = torch.where(small, series(_COSINE, inside), torch.cos(0.5 * angle))
    return cosine, torch.where(small, series(_SINE, inside), torch.sin(0.5 * angle) / angle)


def half_cotangent(square: Tensor) -> Tensor:
    """(1 - (a / 2) cot(a / 2)) / a^2 of ``square`` = a^2."""
    small = square < 0.25
    cosine, sine = half_angle(square)
    far = (1 - 0.5 * cosine / sine) / torch.where(small, torch.ones_like(square), square)
    return torch.where(small, series(_COTANGENT, torch.where(small, square, 0)), far)


def series(coefficients: list[float], x: Tensor) -> Tensor:
    """The polynomial with these coefficients, the constant first."""
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total
