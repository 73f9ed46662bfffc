"""The rotations SO(3): orientations of rigid bodies, with space-fixed tangents."""

from __future__ import annotations

from .rotations import rotation_matrix, rotation_vector

__all__ = ["rotation_matrix", "rotation_vector"]
