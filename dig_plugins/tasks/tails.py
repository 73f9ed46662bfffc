"""How heavy the tail of importance weights is: a tail too heavy makes averages unreliable, however large the sample size seems."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["pareto_k"]


def pareto_k(log_weights: np.ndarray) -> float:
    """Shape k of the generalised Pareto law of the largest weights; below 0.7 averages converge at a practical rate.

    The tail is the largest min(n / 5, 3 sqrt(n)) weights (Vehtari et al., Pareto smoothed importance sampling, arXiv:1507.02646), its law
    is fitted by the profile posterior of Zhang and Stephens, doi:10.1198/tech.2009.08017, and drawn a little to 0.5 as the former do.
    Nothing is smoothed: this is a diagnosis. +inf with fewer than 5 weights in the tail, -inf if those are all equal.
    """
    n = len(log_weights)
    size = int(min(n / 5, 3 * math.sqrt(n)))
    if size < 5:
        return math.inf
    ordered = np.sort(np.exp(log_weights - log_weights.max()))
    excess = ordered[-size:] - ordered[-size - 1]
    excess = excess[excess > 0]
    if len(excess) < 5:
        return -math.inf
    k = _shape(excess)
    return float((len(excess) * k + 10 * 0.5) / (len(excess) + 10))


def _shape(x: np.ndarray) -> float:
    """Posterior mean of k for sorted x > 0: theta = -k / scale on a grid, weighed by the profile likelihood."""
    n = len(x)
    grid = 30 + int(math.sqrt(n))
    quartile = x[int(n / 4 + 0.5) - 1]
    theta = 1 / x[-1] + (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3 * quartile)
    k = -np.log1p(-theta[:, None] * x).mean(1)
    likelihood = n * (np.log(theta / k) + k - 1)
    weight = np.exp(likelihood - likelihood.max())
    best = float((theta * weight).sum() / weight.sum())
    return float(np.log1p(-best * x).mean())
