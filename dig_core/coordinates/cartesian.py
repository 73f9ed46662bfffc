"""Cartesian coordinates about the centroid, in units of a length."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..random import Streams
from ..system.descriptor import Descriptor
from ..types import Geometry, State

__all__ = ["Cartesian"]


class Cartesian(nn.Module):
    """``pos`` (B, N, 3): positions minus their centroid, over ``scale`` Angstrom. With one OU process this is the article's state."""

    gauge = frozenset({"translation"})

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = float(scale)

    @property
    def config(self) -> dict:
        return {"scale": self.scale}

    @classmethod
    def from_config(cls, scale: float) -> Cartesian:
        return cls(scale)

    def encode(self, geometry: Geometry, descriptor: Descriptor) -> tuple[State, Tensor]:
        """State and log|d state / d geometry| (B,)."""
        positions = geometry.positions
        state = {"pos": (positions - positions.mean(dim=1, keepdim=True)) / self.scale}
        return state, -self.log_volume(state, descriptor)

    def decode(self, state: State, descriptor: Descriptor) -> Geometry:
        """(B, N, 3) Angstrom, centroid at the origin."""
        return Geometry(state["pos"].double() * self.scale)

    def log_volume(self, state: State, descriptor: Descriptor) -> Tensor:
        """(B,) log|d geometry / d state|."""
        batch, n, _ = state["pos"].shape
        return state["pos"].new_full((batch,), 3 * (n - 1) * math.log(self.scale), dtype=torch.float64)

    def valid(self, state: State, descriptor: Descriptor) -> Tensor:
        """(B,) all True: every point of R^3N is a structure."""
        return torch.ones(len(state["pos"]), dtype=torch.bool, device=state["pos"].device)

    def pose(self, geometry: Geometry, rng: Streams) -> Geometry:
        """Nothing to draw: the state holds everything but the centroid."""
        return geometry

