"""How far two samples are apart on a map: Jensen-Shannon divergence in nats, beside what an exact sampler would show."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from dig_core.errors import IncompatibleError

from .grid import cell_edges, share_map
from .inputs import Vector, as_points, as_weights, effective_number

__all__ = ["Divergence", "jensen_shannon", "kernel_map", "map_divergence"]

METHODS = ("histogram", "kernel")
_REACH, _STEP = 5.0, 0.5


class Divergence(NamedTuple):
    """Jensen-Shannon divergence in nats, from 0 to ln 2, of samples from a reference, and the ``floor`` that exact samples reach.

    The floor is that of as many frames (of as many as weighted samples are worth) from one half of the reference against the
    other half, the mean over splits.
    """

    value: float
    floor: float


def jensen_shannon(p: Vector, q: Vector) -> float:
    """Divergence in nats of two arrays of one shape, each >= 0 and scaled to sum to one: Lin, doi:10.1109/18.61115."""
    first, second = (np.asarray(x, dtype=np.float64) for x in (p, q))
    if first.shape != second.shape or not all((x >= 0).all() and 0 < x.sum() < np.inf for x in (first, second)):
        raise IncompatibleError(f"expected two arrays >= 0 of one shape, neither all zero, got shapes {first.shape}, {second.shape}.")
    first, second = first / first.sum(), second / second.sum()
    middle = (first + second) / 2
    parts = [x[x > 0] * np.log(x[x > 0] / middle[x > 0]) for x in (first, second)]
    return max(0.0, float(sum(part.sum() for part in parts)) / 2)


def map_divergence(
    samples: Vector,
    reference: Vector,
    *,
    method: str = "histogram",
    cells: int = 50,
    weights: Vector | None = None,
    reference_weights: Vector | None = None,
    splits: int = 10,
    block: int = 1,
    rng: np.random.Generator,
) -> Divergence:
    """Divergence of ``samples`` (F, 2) from ``reference`` (G, 2), coordinates on the same map, each with optional weights.

    ``histogram``: ``cells`` x ``cells`` over the reference's range and one cell for what is outside. ``kernel``, for few samples:
    densities smeared by one and the same Gaussian (:func:`kernel_map`). ``splits`` of the reference in halves, drawn by ``rng``;
    a reference that is a trajectory is split in blocks of ``block`` consecutive frames.

    IncompatibleError for another method, shapes that do not fit, or a reference of less than two blocks.
    """
    if method not in METHODS:
        raise IncompatibleError(f"expected one of the methods {', '.join(METHODS)}, got {method!r}.")
    x, y = as_points(samples, "samples", 2), as_points(reference, "the reference", 2)
    v, w = as_weights(weights, len(x)), as_weights(reference_weights, len(y))
    blocks = -(-len(y) // block) if block >= 1 else 0
    if blocks < 2 or splits < 1:
        raise IncompatibleError(f"expected two blocks or more and a split or more, got {blocks} and {splits}; take shorter blocks.")
    if method == "kernel":
        x, y = _whitened(x, y, w)
        compare = _by_kernels
    else:
        compare = partial(_by_cells, cell_edges(y, cells))
    floors = []
    for _ in range(splits):
        first = (rng.permutation(blocks) < blocks // 2)[np.arange(len(y)) // block]
        one, other = np.flatnonzero(first), np.flatnonzero(~first)
        # As many as the samples are worth.
        one = rng.choice(one, min(len(one), max(1, round(effective_number(v)))), replace=False)
        if w[one].any() and w[other].any():
            floors.append(compare(y[one], y[other], w[one] / w[one].sum(), w[other] / w[other].sum()))
    if not floors:
        raise IncompatibleError("expected weights on many frames of the reference, got all in one half; take shorter blocks.")
    return Divergence(compare(x, y, v, w), float(np.mean(floors)))


def kernel_map(points: np.ndarray, weights: np.ndarray, axes: list[np.ndarray], width: float) -> np.ndarray:
    """(K, L) weighted sum of Gaussians of standard deviation ``width`` at ``points`` (F, 2), on the grid of ``axes`` (K,) and (L,)."""
    one, other = (
        np.exp(-0.5 * ((axis[:, None] - x) / width) ** 2) / (width * np.sqrt(2 * np.pi)) for axis, x in zip(axes, points.T, strict=True)
    )
    return (one * weights) @ other.T


def _by_cells(edges: list[np.ndarray], x: np.ndarray, y: np.ndarray, v: np.ndarray, w: np.ndarray) -> float:
    """One more cell holds what is outside."""
    shares = [share_map(points, edges, weights) for points, weights in ((x, v), (y, w))]
    return jensen_shannon(*(np.append(share, max(0.0, 1 - share.sum())) for share in shares))


def _whitened(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in coordinates in which the reference has unit covariance: the divergence does not depend on coordinates."""
    mean = w @ y
    try:
        factor = np.linalg.cholesky((w[:, None] * (y - mean)).T @ (y - mean))
    except np.linalg.LinAlgError as error:
        raise IncompatibleError("expected a reference that varies in two directions, got one on a line or a point.") from error
    return np.linalg.solve(factor, (x - mean).T).T, np.linalg.solve(factor, (y - mean).T).T


def _by_kernels(x: np.ndarray, y: np.ndarray, v: np.ndarray, w: np.ndarray) -> float:
    """Of whitened points, with Scott's width (doi:10.1002/9780470316849) for the smaller of the two samples."""
    width = min(effective_number(v), effective_number(w)) ** (-1 / 6)
    low, high = y.min(0) - 2 * _REACH * width, y.max(0) + 2 * _REACH * width
    # Farther than that a sample overlaps with nothing of the reference, wherever it is.
    x = np.clip(x, low, high)
    axes = [np.arange(a - _REACH * width, b + _REACH * width, _STEP * width) for a, b in zip(low, high, strict=True)]
    return jensen_shannon(kernel_map(x, v, axes, width), kernel_map(y, w, axes, width))
