"""Embeddings of what is not geometry: the time, and the integer categories of atoms and of pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import IncompatibleError

__all__ = ["CategoryEmbedding", "TimeEmbedding", "seeded"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initial weights from ``seed`` alone: torch layers draw from the CPU generator, which is seeded inside and restored after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class TimeEmbedding(nn.Module):
    """Float time -> features: sines and cosines of t at geometric frequencies, then a two-layer MLP.

    Parameters
    ----------
    width: features out.
    frequencies: how many; they run from 1/4 to ``fastest`` cycles per unit of time.
    fastest: cycles per unit of time; low, because the score's time derivative is learned too (article, eq. 4).
    """

    omega: Tensor

    def __init__(self, width: int, frequencies: int = 16, fastest: float = 32.0) -> None:
        super().__init__()
        cycles = torch.logspace(math.log10(0.25), math.log10(fastest), frequencies)
        self.register_buffer("omega", 2 * math.pi * cycles, persistent=False)
        self.hidden = nn.Linear(2 * frequencies + 1, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """``t`` (T,) in [0, 1], any real value -> (T, width)."""
        t = t.to(self.omega.dtype)[:, None]
        phase = t * self.omega
        return self.out(F.silu(self.hidden(torch.cat([t, phase.sin(), phase.cos()], dim=1))))


class CategoryEmbedding(nn.Module):
    """Sum of one learned vector per categorical column, all columns in one table.

    Parameters
    ----------
    sizes: number of categories of each column.
    width: features out.
    std: spread of the initial vectors.
    """

    sizes: Tensor
    offsets: Tensor

    def __init__(self, sizes: Sequence[int], width: int, std: float = 1.0) -> None:
        super().__init__()
        counts = torch.tensor(list(sizes))
        self.register_buffer("sizes", counts, persistent=False)
        self.register_buffer("offsets", counts.cumsum(0) - counts, persistent=False)
        self.table = nn.Parameter(std * torch.randn(int(counts.sum()), width))

    def forward(self, codes: Tensor) -> Tensor:
        """``codes`` (..., columns) long -> (..., width).

        Raises
        ------
        IncompatibleError: another number of columns, or a category that the table lacks.
        """
        if codes.shape[-1] != len(self.sizes):
            raise IncompatibleError(
                f"expected {len(self.sizes)} columns of categories, got {codes.shape[-1]}: build the model for this schema."
            )
        if bool(((codes < 0) | (codes >= self.sizes)).any()):
            highest = codes.reshape(-1, codes.shape[-1]).amax(0).tolist()
            raise IncompatibleError(
                f"expected categories from 0 to below {self.sizes.tolist()}, got up to {highest}: build the model with more."
            )
        return F.embedding(codes + self.offsets, self.table).sum(-2)
