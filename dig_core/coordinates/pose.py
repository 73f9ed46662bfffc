"""Uniform random rotations, one a noise stream."""

from __future__ import annotations

import torch
from torch import Tensor

from ..random import Streams

__all__ = ["random_rotations"]


def random_rotations(rng: Streams) -> Tensor:
    """(B, 3, 3) float64 rotation matrices, uniform on SO(3): unit quaternions from four normal numbers (Shoemake, 1992)."""
    w, x, y, z = torch.nn.functional.normalize(rng.normal(4, dtype=torch.float64), dim=1).unbind(1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
    ]
    return torch.stack(rows, dim=1)
