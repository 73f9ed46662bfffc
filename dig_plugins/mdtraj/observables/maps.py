"""Maps of few dimensions, fitted on a reference ensemble: principal components and slow (time-lagged independent) components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dig_core.errors import IncompatibleError

from .inputs import Vector, as_points, as_weights

__all__ = ["Map", "pca", "tica"]

_CUTOFF = 1e-10


class Map(NamedTuple):
    """A linear map of D features on K coordinates: ``mean`` (D,), ``components`` (D, K), and ``values`` (K,), the largest first.

    ``values`` are variances along principal components, autocorrelations at the lag of slow ones. A component's sign is such that
    its largest entry is positive.
    """

    mean: np.ndarray
    components: np.ndarray
    values: np.ndarray

    def project(self, features: Vector) -> np.ndarray:
        """(F, K) coordinates of ``features`` (F, D)."""
        return (as_points(features, "features", len(self.mean)) - self.mean) @ self.components


def pca(features: Vector, dimensions: int = 2, *, weights: Vector | None = None) -> Map:
    """Principal components of ``features`` (F, D), weighted by ``weights`` (F,), coordinates in the features' unit.

    IncompatibleError if the features vary in fewer than ``dimensions`` directions.
    """
    x = as_points(features, "features")
    mean, vectors, values = _principal(x, as_weights(weights, len(x)))
    return _map(mean, vectors, values, dimensions)


def tica(trajectories: Sequence[Vector], lag: int, dimensions: int = 2, *, principal: int | None = None) -> Map:
    """The slowest components of ``trajectories``, each (F, D) features in order of time, of unit variance in them.

    Correlations over ``lag`` frames, within trajectories only, averaged over both directions of time (Perez-Hernandez et al.,
    doi:10.1063/1.4811489). ``principal``: features are first cut to so many principal components; if None, to those with a variance
    above 1e-10 of the largest.

    IncompatibleError if no trajectory is longer than the lag, or the pairs of frames are no more than the components kept: then
    something in them looks slow that is not; give ``principal``.
    """
    series = [as_points(x, "features") for x in trajectories]
    if lag < 1 or not any(len(x) > lag for x in series) or len({x.shape[1] for x in series}) > 1:
        raise IncompatibleError(
            f"expected trajectories of the same features, one at least longer than the lag (1 or more), got shapes "
            f"{[x.shape for x in series]} and a lag of {lag}."
        )
    series = [x for x in series if len(x) > lag]
    # A frame counts once for each pair that it is in.
    counts = [np.bincount([*range(len(x) - lag), *range(lag, len(x))], minlength=len(x)) for x in series]
    mean, vectors, values = _principal(np.concatenate(series), as_weights(np.concatenate(counts), sum(map(len, series))))
    kept, pairs = int((values > _CUTOFF * values[0]).sum()), sum(len(x) - lag for x in series)
    kept = kept if principal is None else min(kept, principal)
    if pairs <= kept:
        raise IncompatibleError(f"expected more pairs of frames than components, got {pairs} and {kept}; give a smaller principal.")
    whitening = vectors[:, :kept] / np.sqrt(values[:kept])
    lagged = np.zeros((kept, kept))
    for x in series:
        y = (x - mean) @ whitening
        lagged += y[:-lag].T @ y[lag:]
    slow, turn = np.linalg.eigh((lagged + lagged.T) / (2 * pairs))
    return _map(mean, whitening @ turn[:, ::-1], slow[::-1], dimensions)


def _principal(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted mean (D,), principal directions (D, R) and variances (R,), the largest first, of (F, D), by the smaller Gram matrix."""
    mean = weights @ x
    scaled = np.sqrt(weights)[:, None] * (x - mean)
    few = len(scaled) < x.shape[1]
    values, vectors = np.linalg.eigh(scaled @ scaled.T if few else scaled.T @ scaled)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = values > 1e-12 * max(values[0], np.square(x).max() * 1e-12)
    values, vectors = values[kept], vectors[:, kept]
    if not len(values):
        raise IncompatibleError("expected features that vary, got frames that are all the same.")
    return mean, scaled.T @ (vectors / np.sqrt(values)) if few else vectors, values


def _map(mean: np.ndarray, components: np.ndarray, values: np.ndarray, dimensions: int) -> Map:
    if not 1 <= dimensions <= len(values):
        raise IncompatibleError(f"expected from 1 to {len(values)} dimensions, as many as the features vary in, got {dimensions}.")
    chosen = components[:, :dimensions]
    signs = np.sign(chosen[np.abs(chosen).argmax(0), np.arange(dimensions)])
    return Map(mean, chosen * signs, values[:dimensions].copy())
