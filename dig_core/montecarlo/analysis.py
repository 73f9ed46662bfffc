"""Statistics of log weights and of chains: sample sizes, acceptance, free energies, their errors. Nothing is clipped.

Inputs are one-dimensional numpy arrays, tensors or sequences; everything is computed in float64. Energies are in kT.
``rng`` is always a ``numpy.random.Generator`` that the caller seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..errors import IncompatibleError, StateError
from .inputs import Vector, as_array, as_edges, as_series, as_vector, as_vectors, with_weights

__all__ = [
    "Estimate",
    "MBARInput",
    "Profile",
    "block_average",
    "bootstrap",
    "count_visits",
    "effective_sample_size",
    "free_energy_difference",
    "free_energy_profile",
    "integrated_autocorrelation_time",
    "largest_weight_share",
    "longest_rejection_run",
    "mbar_free_energy",
    "metropolis_acceptance",
    "normalised_weights",
    "to_pymbar",
]


class Estimate(NamedTuple):
    """A value and its standard error, floats or arrays of one shape."""

    value: Any
    stderr: Any


class Profile(NamedTuple):
    """A free energy along one variable: bin centres (M,) in its unit, free energy and standard error (M,) in kT.

    The lowest bin is at zero. ``stderr`` is that of -ln(bin's probability), not of a difference between two bins. Bins
    never visited have ``free_energy`` +inf and ``stderr`` nan.
    """

    centres: np.ndarray
    free_energy: np.ndarray
    stderr: np.ndarray


class MBARInput(NamedTuple):
    """What pymbar.MBAR takes: ``u_kn`` (2, n) reduced potentials of q and the target; ``N_k`` (2,) samples of each."""

    u_kn: np.ndarray
    N_k: np.ndarray


# Weights -------------------------------------------------------------------------------------------------------------


def normalised_weights(log_weights: Vector) -> np.ndarray:
    """(n,) weights that sum to one; -inf gives zero. :class:`StateError` if none is finite, or any is NaN or +inf."""
    log_w = as_vector(log_weights, "log_weights")
    top = log_w.max()
    if not np.isfinite(top):
        came = "only -inf" if top == -np.inf else "NaN or +inf"
        raise StateError(f"expected log weights below +inf, at least one finite, got {came}; check the energies.")
    weights = np.exp(log_w - top)
    return weights / weights.sum()


def effective_sample_size(log_weights: Vector) -> float:
    """Kish's effective sample size as a fraction of n, raw: (sum w)^2 / (n sum w^2), in (0, 1].

    Kish, Survey Sampling, Wiley 1965.
    """
    weights = normalised_weights(log_weights)
    return float(1.0 / (len(weights) * np.square(weights).sum()))


def largest_weight_share(log_weights: Vector) -> float:
    """Share of the total weight held by the heaviest sample: 1/n at best, 1 when a single sample decides everything."""
    return float(normalised_weights(log_weights).max())


def metropolis_acceptance(log_weights: Vector) -> float:
    """Expected acceptance of the independence sampler that proposes from q, from the log weights of n >= 2 draws of q.

    E over x ~ target, y ~ q of min(1, w(y)/w(x)) equals E[min(w_x, w_y)] / E[w] with both from q. All pairs of
    different samples are averaged, by sorting, in O(n log n). The sampler: Tierney, doi:10.1214/aos/1176325750.
    """
    weights = np.sort(normalised_weights(log_weights))
    n = len(weights)
    if n < 2:
        raise IncompatibleError("expected at least two log weights, got one; draw more proposals.")
    # The k-th smallest weight is the minimum of the n - 1 - k pairs it forms with larger ones.
    return float(2.0 * np.dot(weights, np.arange(n - 1, -1, -1)) / (n - 1))


# Chains --------------------------------------------------------------------------------------------------------------


def longest_rejection_run(accepted: Vector) -> int:
    """Length of the longest run of consecutive rejections in a (n,) boolean record of a chain."""
    stops = np.flatnonzero(np.concatenate([[True], as_vector(accepted, "accepted") != 0, [True]]))
    return int(np.diff(stops).max() - 1)


def count_visits(inside: Vector) -> int:
    """How often a chain was in a state: the number of maximal runs of True in a (n,) boolean record."""
    mask = as_vector(inside, "inside") != 0
    return int(mask[0]) + int(np.count_nonzero(mask[1:] & ~mask[:-1]))


def integrated_autocorrelation_time(x: Vector, c: float = 5.0) -> float:
    """tau = 1 + 2 sum of autocorrelations, in steps of the chain: n / tau is the number of independent samples.

    The sum ends at the first lag M >= c tau(M) (Sokal's window, doi:10.1007/978-1-4899-0319-8_6). Trust it when n is
    above some 50 tau. A series that never changes gives +inf.
    """
    series = as_series(x)
    if np.ptp(series) == 0:
        return math.inf
    series = series - series.mean()
    size = 1 << (2 * len(series) - 1).bit_length()
    covariance = np.fft.irfft(np.abs(np.fft.rfft(series, size)) ** 2, size)[: len(series)]
    tau = 2.0 * np.cumsum(covariance / covariance[0]) - 1.0
    # Deviations from the mean sum to zero, hence so does tau over all lags: the window always ends.
    return float(tau[np.argmax(np.arange(len(tau)) >= c * tau)])


def block_average(x: Vector, n_blocks: int) -> Estimate:
    """Mean of a chain's (n,) values and its standard error from the scatter of ``n_blocks`` consecutive blocks.

    Right when a block is many autocorrelation times long (Flyvbjerg and Petersen, doi:10.1063/1.457480).
    """
    series = as_series(x)
    if not 2 <= n_blocks <= len(series):
        raise IncompatibleError(f"expected between 2 and {len(series)} blocks (the number of values), got {n_blocks}.")
    means = np.array([block.mean() for block in np.array_split(series, n_blocks)])
    return Estimate(float(series.mean()), float(means.std(ddof=1) / math.sqrt(n_blocks)))


def bootstrap(
    statistic: Callable[..., Any], *arrays: Vector, block: int = 1, chains: int = 1, n: int = 200, rng: np.random.Generator
) -> Estimate:
    """``statistic(*arrays)`` and its bootstrap standard error from ``n`` resamplings of the arrays' common first axis.

    ``block = 1`` is for independent samples (Efron, doi:10.1214/aos/1176344552). A chain needs blocks of several
    autocorrelation times, and some 20 of them: drawn from the series closed to a circle (Politis and Romano, 1992).

    ``chains`` > 1: as many stand one after the other, each as long as the next or by one longer. The error is then the largest of
    three: of whole chains, resampled; half of what their first and second halves differ by; half of what even and odd chains differ
    by. Begin these two in different places: chains too short to forget where say so (Gelman and Rubin, doi:10.1214/ss/1177011136).
    """
    data = [as_array(array) for array in arrays]
    length = len(data[0])
    if any(len(array) != length for array in data):
        raise IncompatibleError(f"expected arrays of one length, got {[len(array) for array in data]}.")
    if not 1 <= block <= length:
        raise IncompatibleError(f"expected a block between 1 and {length} (the number of samples), got {block}.")
    if not 1 <= chains <= max(1, length // 2):
        raise IncompatibleError(f"expected chains of 2 samples or more, got {chains} of {length} together.")
    own, replicates = np.array_split(np.arange(length), chains), []

    def of(index: np.ndarray) -> np.ndarray:
        return np.asarray(statistic(*(array[index] for array in data)), dtype=np.float64)

    for _ in range(n):
        if chains > 1:
            index = np.concatenate([own[k] for k in rng.integers(chains, size=chains)])
        else:
            starts = rng.integers(length, size=-(-length // block))
            index = ((starts[:, None] + np.arange(block)) % length).reshape(-1)[:length]
        replicates.append(of(index))
    errors = [np.std(replicates, axis=0, ddof=1)]
    if chains > 1:
        halves = [np.concatenate([np.array_split(chain, 2)[half] for chain in own]) for half in (0, 1)]
        kinds = [np.concatenate(own[kind::2]) for kind in (0, 1)]
        errors += [0.5 * np.abs(of(one) - of(other)) for one, other in (halves, kinds)]
    return Estimate(of(np.arange(length)), np.max(errors, axis=0))


# Free energies -------------------------------------------------------------------------------------------------------


def free_energy_profile(
    values: Vector,
    bins: int | Vector,
    weights: Vector | None = None,
    *,
    limits: tuple[float, float] | None = None,
    periodic: bool = False,
    block: int = 1,
    n_bootstrap: int = 200,
    rng: np.random.Generator,
) -> Profile:
    """-ln of the probability density of (n,) ``values``, optionally weighted, with bootstrap errors.

    ``bins`` is a number of equal bins over ``limits`` (default: the values' range), or (M + 1,) edges. With
    ``periodic`` the values are first wrapped into the range of the bins. ``weights`` (n,) are >= 0 and need no
    normalisation. ``block`` is that of :func:`bootstrap`. Errors follow to first order from the bins' probabilities.
    """
    x, w = with_weights(weights, values=values)
    edges = as_edges(bins, limits if limits is not None else (x.min(), x.max()))
    if periodic:
        x = edges[0] + np.mod(x - edges[0], edges[-1] - edges[0])
    where = np.searchsorted(edges, x, side="right") - 1
    where[x == edges[-1]] = len(edges) - 2
    # What lies outside goes to one more bin, which is dropped.
    where[(where < 0) | (where > len(edges) - 2)] = len(edges) - 1

    def probability(index: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return _share(np.bincount(index, weight, minlength=len(edges))[:-1], weight)

    found = bootstrap(probability, where, w, block=block, n=n_bootstrap, rng=rng)
    if not found.value.sum() > 0:
        raise StateError(f"no weight between {edges[0]} and {edges[-1]}; widen the limits.")
    with np.errstate(divide="ignore", invalid="ignore"):
        free_energy = -np.log(found.value / np.diff(edges))
        stderr = np.where(found.value > 0, found.stderr / found.value, np.nan)
    return Profile((edges[1:] + edges[:-1]) / 2, free_energy - free_energy.min(), stderr)


def free_energy_difference(
    in_a: Vector,
    in_b: Vector,
    weights: Vector | None = None,
    *,
    block: int = 1,
    chains: int = 1,
    n_bootstrap: int = 200,
    rng: np.random.Generator,
) -> Estimate:
    """F_B - F_A = -ln(p_B / p_A) in kT from two (n,) boolean masks, optionally weighted, with its bootstrap error.

    ``block`` and ``chains`` as of :func:`bootstrap`. A state never visited gives +inf (B) or -inf (A) with error nan;
    :class:`StateError` if neither was.
    """
    a, b, w = with_weights(weights, in_a=in_a, in_b=in_b)

    def populations(in_a: np.ndarray, in_b: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return _share(np.array([weight[in_a != 0].sum(), weight[in_b != 0].sum()]), weight)

    p_a, p_b = populations(a, b, w)
    if not p_a + p_b > 0:
        raise StateError("neither state was visited; sample longer or widen the states.")
    if p_a == 0 or p_b == 0:
        return Estimate(math.inf if p_b == 0 else -math.inf, math.nan)

    def linearised(*resampled: np.ndarray) -> float:
        new_a, new_b = populations(*resampled)
        return new_a / p_a - new_b / p_b

    stderr = bootstrap(linearised, a, b, w, block=block, chains=chains, n=n_bootstrap, rng=rng).stderr
    return Estimate(math.log(p_a / p_b), float(stderr))


def _share(part: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A resample may hold no weight at all: then nan, which shows that the error cannot be told."""
    with np.errstate(invalid="ignore"):
        return part / weight.sum()


def to_pymbar(
    log_q: Vector, u: Vector, target_log_q: Vector | None = None, target_u: Vector | None = None
) -> MBARInput:
    """Arrays for ``pymbar.MBAR(u_kn, N_k)`` with two states: 0 is q with reduced potential -log q, 1 is the target.

    ``log_q`` and ``u`` (n,) belong to samples of q; ``target_log_q`` and ``target_u`` (m,) to samples of the target, if
    there are any (MBAR is then Bennett's ratio). With a normalised q the free energy of state 1 is -ln of the
    partition function.
    """
    if (target_log_q is None) != (target_u is None):
        raise IncompatibleError("expected target_log_q and target_u together, got one of them.")
    of_q = np.stack(as_vectors(log_q=log_q, u=u))
    of_target = np.empty((2, 0))
    if target_log_q is not None and target_u is not None:
        of_target = np.stack(as_vectors(target_log_q=target_log_q, target_u=target_u))
    u_kn = np.concatenate([of_q, of_target], axis=1) * [[-1.0], [1.0]]
    return MBARInput(u_kn, np.array([of_q.shape[1], of_target.shape[1]]))


def mbar_free_energy(data: MBARInput) -> Estimate:
    """Free energy of the target minus that of q, in kT, by MBAR (Shirts and Chodera, doi:10.1063/1.2978177).

    ImportError, naming what to install, without pymbar.
    """
    try:
        from pymbar import MBAR
    except ImportError as error:
        raise ImportError("mbar_free_energy needs pymbar: pip install 'dig-plugins[analysis]'") from error
    found = MBAR(data.u_kn, data.N_k).compute_free_energy_differences()
    return Estimate(float(found["Delta_f"][0, 1]), float(found["dDelta_f"][0, 1]))
