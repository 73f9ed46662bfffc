"""What every observable takes: frames in Angstrom, points on a map, weights of frames; arrays, tensors or sequences, as float64."""

from __future__ import annotations

import numpy as np

from dig_core.errors import IncompatibleError
from dig_core.montecarlo.inputs import Vector, as_array, with_weights

__all__ = ["Vector", "as_frames", "as_points", "as_target", "as_weights", "effective_number"]


def as_frames(frames: Vector, name: str = "frames") -> np.ndarray:
    """(F, N, 3) float64, finite, F and N at least one, or :class:`IncompatibleError`."""
    found = as_array(frames).astype(np.float64)
    if found.ndim != 3 or found.shape[2] != 3 or not found.size:
        raise IncompatibleError(f"expected {name} of shape (frames, atoms, 3), neither empty, got {found.shape}.")
    return _finite(found, name)


def as_target(target: Vector, frames: np.ndarray) -> np.ndarray:
    """(1 or F, N, 3): one structure (N, 3), or one a frame, with the atoms of ``frames``, or :class:`IncompatibleError`."""
    found = as_array(target)
    found = as_frames(found[None] if found.ndim == 2 else found, "the target")
    if found.shape[1] != frames.shape[1] or len(found) not in (1, len(frames)):
        raise IncompatibleError(
            f"expected one target, or {len(frames)}, of {frames.shape[1]} atoms as the frames have, got {found.shape}; "
            "choose the atoms that both have."
        )
    return found


def as_points(points: Vector, name: str = "points", columns: int | None = None) -> np.ndarray:
    """(F, D) float64, finite, not empty, D being ``columns`` if that is given, or :class:`IncompatibleError`."""
    found = as_array(points).astype(np.float64)
    if found.ndim != 2 or not found.size or columns not in (None, found.shape[1]):
        shape = f"(frames, {'features' if columns is None else columns})"
        raise IncompatibleError(f"expected {name} of shape {shape}, not empty, got {found.shape}.")
    return _finite(found, name)


def as_weights(weights: Vector | None, n: int) -> np.ndarray:
    """(n,) weights that sum to one, equal if None. Errors as :func:`dig_core.montecarlo.inputs.with_weights` raises them."""
    found = with_weights(weights, frames=np.zeros(n))[-1]
    return found / found.sum()


def effective_number(weights: np.ndarray) -> float:
    """Kish's effective number of frames of weights (n,) that sum to one."""
    return float(1.0 / np.square(weights).sum())


def _finite(found: np.ndarray, name: str) -> np.ndarray:
    bad = int(np.count_nonzero(~np.isfinite(found).reshape(len(found), -1).all(1)))
    if bad:
        raise IncompatibleError(f"expected finite {name}, got {bad} of {len(found)} with NaN or infinity; leave them out.")
    return found
