"""MDTraj: trajectories in and out of the formats that people have."""

from .convert import read_positions

__all__ = ["read_positions"]
