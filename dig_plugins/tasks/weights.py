"""What the weights of a model's proposals say of its ensemble: how many structures count, whether that has converged."""

from __future__ import annotations

import math

import numpy as np

from dig_core.montecarlo.analysis import effective_sample_size, largest_weight_share, metropolis_acceptance
from dig_core.montecarlo.chain import Candidates

from .tails import pareto_k
from .verdicts import Check

__all__ = ["log_mean", "weight_checks"]

LEAST = 100  # structures: fewer leave errors of a tenth and more
HEAVIEST = 0.05  # of all weight on one structure
TAIL = 0.7  # arXiv:1507.02646
ERRORS = 4.0  # standard errors
FALL = 0.5  # of the effective share from quarters of the proposals to all of them, or of that registered to that measured


def weight_checks(found: Candidates, entry: dict) -> tuple[list[Check], dict]:
    """Checks, and the figures that a record holds; ``entry`` is the registry's, empty for other models."""
    log_weights, n = found.log_weight, len(found.u)
    failed = int((~np.isfinite(log_weights)).sum())
    if failed == n:
        return [Check("proposals", False, f"none of {n} has any weight")], {"proposals": n, "failed": failed}
    share, heaviest = effective_sample_size(log_weights), largest_weight_share(log_weights)
    k, acceptance = pareto_k(log_weights), metropolis_acceptance(log_weights)
    size = share * n
    checks = [
        Check("proposals", None, f"{failed} of {n} cannot be: no structure, or no energy"),
        Check("raw effective sample size", size >= LEAST, f"{share:.1%} of {n} proposals, {size:.0f} structures, {LEAST} are wanted"),
        Check("heaviest weight", heaviest <= HEAVIEST, f"{heaviest:.2%} of all weight, at most {HEAVIEST:.0%} is wanted"),
        Check("tail of the weights", k <= TAIL, f"Pareto shape {k:.2f}, at most {TAIL} is wanted"),
        *_convergence(log_weights, share),
        Check("acceptance", None, f"{acceptance:.1%} of proposals in a Metropolis chain"),
    ]
    if "raw_ess" in entry:
        wanted = entry["raw_ess"]
        checks.append(Check("registry", share >= FALL * wanted, f"raw effective sample size {share:.1%}, registered is {wanted:.1%}"))
    figures = {
        "proposals": n, "failed": failed, "raw_ess": share, "effective_sample_size": size, "acceptance": acceptance,
        "largest_weight_share": heaviest, "pareto_k": k, "log_z": log_mean(log_weights)[0], "log_z_stderr": log_mean(log_weights)[1],
    }  # fmt: skip
    return checks, figures


def log_mean(log_weights: np.ndarray) -> tuple[float, float]:
    """Logarithm of the mean weight and its standard error to first order; -inf and nan if none has weight."""
    top = log_weights.max()
    if not math.isfinite(top):
        return -math.inf, math.nan
    weights = np.exp(log_weights - top)
    return float(top + np.log(weights.mean())), float(weights.std(ddof=1) / weights.mean() / math.sqrt(len(weights)))


def _convergence(log_weights: np.ndarray, share: float) -> list[Check]:
    first, last = (log_mean(half) for half in np.array_split(log_weights, 2))
    apart, error = abs(first[0] - last[0]), math.hypot(first[1], last[1])
    quarters = [effective_sample_size(part) for part in np.array_split(log_weights, 4) if np.isfinite(part).any()]
    before = float(np.mean(quarters))
    return [
        Check("halves", apart <= ERRORS * error, f"the partition function of both agrees to {apart:.2f}, standard error {error:.2f}"),
        Check("convergence", share >= FALL * before, f"raw effective sample size {before:.1%} in quarters, {share:.1%} in all"),
    ]
