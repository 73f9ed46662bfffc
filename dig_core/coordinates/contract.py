"""The contract between structures and states."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..random import Streams
from ..system.descriptor import Descriptor
from ..types import Geometry, State

__all__ = ["Coordinates"]


class Coordinates(Protocol):
    """How a structure becomes a state and back.

    ``encode`` returns the state and log|d state / d geometry| (B,); ``decode`` a structure in a fixed pose; ``log_volume``
    (B,) is log|d geometry / d state|; ``valid`` (B,) says which states are structures. ``gauge`` names what encode forgets,
    and ``pose`` draws it uniformly. Coordinates with components on which tangents do not add up, rotations, name them in ``curved``.
    Measure: Lebesgue on the zero-centroid subspace, Angstrom.
    """

    gauge: frozenset[str]

    def encode(self, geometry: Geometry, descriptor: Descriptor) -> tuple[State, Tensor]: ...
    def decode(self, state: State, descriptor: Descriptor) -> Geometry: ...
    def log_volume(self, state: State, descriptor: Descriptor) -> Tensor: ...
    def valid(self, state: State, descriptor: Descriptor) -> Tensor: ...
    def pose(self, geometry: Geometry, rng: Streams) -> Geometry: ...
