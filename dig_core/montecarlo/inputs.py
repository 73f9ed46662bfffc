"""Arrays, tensors and sequences as checked float64 vectors, for the statistics in analysis.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..errors import IncompatibleError, StateError

__all__ = ["Vector", "as_array", "as_edges", "as_series", "as_vector", "as_vectors", "with_weights"]

Vector = np.ndarray | Tensor | Sequence[float]


def as_array(x: Vector) -> np.ndarray:
    """A numpy array of any shape and type."""
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def as_vector(x: Vector, name: str) -> np.ndarray:
    """(n,) float64 with n >= 1, or :class:`IncompatibleError`."""
    found = as_array(x).astype(np.float64)
    if found.ndim != 1 or not len(found):
        raise IncompatibleError(f"expected {name} to be one-dimensional and not empty, got shape {found.shape}.")
    return found


def as_vectors(**named: Vector) -> list[np.ndarray]:
    """Vectors of one length, or :class:`IncompatibleError`."""
    found = [as_vector(x, name) for name, x in named.items()]
    if len({len(x) for x in found}) > 1:
        sizes = ", ".join(f"{len(x)} of {name}" for name, x in zip(named, found, strict=True))
        raise IncompatibleError(f"expected one value a sample, got {sizes}.")
    return found


def as_series(x: Vector) -> np.ndarray:
    """A vector of finite values, or :class:`StateError`."""
    found = as_vector(x, "x")
    if not np.isfinite(found).all():
        bad = np.count_nonzero(~np.isfinite(found))
        raise StateError(f"expected a finite series, got {bad} values that are NaN or infinite.")
    return found


def with_weights(weights: Vector | None, **named: Vector) -> list[np.ndarray]:
    """The named vectors and, last, their weights: ones if none are given."""
    if weights is None:
        found = as_vectors(**named)
        return [*found, np.ones(len(found[0]))]
    found = as_vectors(**named, weights=weights)
    if not (np.isfinite(found[-1]).all() and (found[-1] >= 0).all() and found[-1].any()):
        raise StateError("expected finite weights >= 0, not all zero; log weights go through normalised_weights first.")
    return found


def as_edges(bins: int | Vector, limits: tuple[float, float]) -> np.ndarray:
    """(M + 1,) increasing edges from their number of bins between two limits, or from themselves."""
    edges = np.linspace(*limits, bins + 1) if isinstance(bins, int) else as_vector(bins, "bins")
    if len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise IncompatibleError(f"expected at least one bin and increasing edges, got edges {edges}.")
    return edges
