"""Clusters of a reference ensemble, on a map or by RMSD, and how they are populated, with errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dig_core.errors import IncompatibleError
from dig_core.montecarlo.analysis import Estimate, bootstrap

from .inputs import Vector, as_points, as_weights

__all__ = ["Distance", "assign", "euclidean", "k_centres", "k_means", "populations"]

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(F, ...) and (G, ...) items to (F, G) distances: :func:`euclidean` for points, ``pairwise_rmsd`` for structures."""

_ROUNDS = 300


def euclidean(points: Vector, others: Vector) -> np.ndarray:
    """(F, G) distances of ``points`` (F, D) from ``others`` (G, D)."""
    x, y = as_points(points), as_points(others, "the others")
    if x.shape[1] != y.shape[1]:
        raise IncompatibleError(f"expected points with as many coordinates, got {x.shape[1]} and {y.shape[1]}.")
    return np.sqrt(sum(np.square(a[:, None] - b) for a, b in zip(x.T, y.T, strict=True)))


def k_centres(items: Vector, k: int, *, distance: Distance = euclidean, first: int = 0) -> np.ndarray:
    """(k,) indices of ``items`` (F, ...) none of which is far from all: each the one farthest from those before, from ``first`` on.

    Within twice the least possible radius: Gonzalez, doi:10.1016/0304-3975(85)90224-5.
    """
    x = np.asarray(items)
    _check_number(k, len(x))
    chosen, nearest = [first], distance(x, x[[first]])[:, 0]
    while len(chosen) < k:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distance(x, x[[chosen[-1]]])[:, 0])
    return np.array(chosen)


def k_means(points: Vector, k: int, *, weights: Vector | None = None, rng: np.random.Generator) -> np.ndarray:
    """(k, D) centres that ``points`` (F, D), weighted by ``weights`` (F,), are nearest to, the most populated first.

    Lloyd's iteration (doi:10.1109/TIT.1982.1056489) to its end, from seeds drawn with probability proportional to the square
    distance from those before (Arthur and Vassilvitskii, SODA 2007). A local optimum: it depends on ``rng``.
    """
    x = as_points(points)
    share = as_weights(weights, len(x))
    _check_number(k, int((share > 0).sum()))
    centres = x[[rng.choice(len(x), p=share)]]
    while len(centres) < k:
        spread = share * np.square(euclidean(x, centres).min(1))
        if not spread.sum() > 0:
            raise IncompatibleError(f"expected at least {k} different points, got {len(centres)}; ask for fewer clusters.")
        centres = np.concatenate([centres, x[[rng.choice(len(x), p=spread / spread.sum())]]])
    labels = None
    for _ in range(_ROUNDS):
        before, labels = labels, euclidean(x, centres).argmin(1)
        if before is not None and (labels == before).all():
            break
        held = np.bincount(labels, share, minlength=k)
        sums = np.stack([np.bincount(labels, share * column, minlength=k) for column in x.T], 1)
        # A cluster that lost all its points stays where it was.
        centres = np.where(held[:, None] > 0, sums / np.where(held > 0, held, 1.0)[:, None], centres)
    return centres[np.argsort(-np.bincount(labels, share, minlength=k), kind="stable")]


def assign(items: Vector, centres: Vector, *, distance: Distance = euclidean, within: float = np.inf) -> np.ndarray:
    """(F,) the index of the nearest of ``centres`` (K, ...) to each of ``items`` (F, ...); -1 if none is ``within`` that distance."""
    gap = distance(np.asarray(items), np.asarray(centres))
    return np.where(gap.min(1) <= within, gap.argmin(1), -1)


def populations(
    labels: Vector,
    k: int,
    *,
    weights: Vector | None = None,
    block: int = 1,
    n_bootstrap: int = 200,
    rng: np.random.Generator,
) -> Estimate:
    """Share (k,) of ``labels`` (F,), as :func:`assign` gives them, in each cluster, and its standard error (k,) by bootstrap.

    ``weights`` (F,) of the frames. ``block``: 1 for independent samples; for a trajectory several times its autocorrelation time.
    Labels of -1 belong to no cluster: the shares then sum to less than one.
    """
    found = np.asarray(labels)
    if found.ndim != 1 or not len(found) or found.dtype.kind not in "iu" or found.min() < -1 or found.max() >= k:
        raise IncompatibleError(f"expected labels from -1 to {k - 1}, one a frame, got shape {found.shape}: assign to {k} centres.")

    def shares(labels: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return np.bincount(labels + 1, weight, minlength=k + 1)[1:] / weight.sum()

    return bootstrap(shares, found, as_weights(weights, len(found)), block=block, n=n_bootstrap, rng=rng)


def _check_number(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise IncompatibleError(f"expected from 1 to {n} clusters, as many as there are items, got {k}.")
