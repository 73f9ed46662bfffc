"""Densities of the probability flow (article, eq. 6): exact trace, the discrete map's own determinant, or random probes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..random import Streams
from ..score import ScoreModel
from ..system.descriptor import Descriptor
from ..types import LogProb, State
from .flow import Flow, backward_steps, flow_times

__all__ = ["KINDS", "ROUND_TRIP", "flow_log_prob", "flow_sample"]

KINDS = ("trace", "map", "hutchinson")

ROUND_TRIP = 1e-4
"""Largest departure, in the state's units, of a state that "map" has encoded and decoded again. Rounding in a float32 network
stays orders below it, a missed inverse orders above."""

_NEWTON_ROUNDS = 4
_CLOSE = 1e-10


def flow_log_prob(
    model: ScoreModel,
    descriptor: Descriptor,
    state: State,
    grid: Tensor,
    *,
    kind: str = "trace",
    rng: Streams | None = None,
    probes: int = 8,
    method: str = "rk4",
) -> LogProb:
    """Log-density (B,) float64 of the law that ``flow_rk4`` or ``flow_heun`` draws from, in the measure of the state's spaces.

    Parameters
    ----------
    grid: (K + 1,) times rising from 0 to 1, the sampler's.
    kind: ``"trace"`` integrates the exact divergence; its error is that of the grid. ``"map"`` is the log-determinant of the
        discrete map that the sampler runs on this grid: exact to round-off on any grid on which the map is one to one.
        Where no inverse is found, or decoding it does not return, the density is zero (-inf). ``"hutchinson"`` estimates
        the divergence with Rademacher probes, the same along a path (Grathwohl et al., arXiv:1810.01367); it is
        unbiased for the log-density, not for the density, so chains that use it are approximate.
    rng: one stream a sample, for ``"hutchinson"``; ``probes`` their number, at least 2 to have a standard error.
    method: ``"rk4"`` or ``"heun"``.

    Raises
    ------
    IncompatibleError: an unknown kind or method, no ``rng`` for the probes, or fewer than 2 of them.
    UnsupportedError: ``"map"`` for rotations.
    """
    if kind not in KINDS:
        raise IncompatibleError(f"expected kind in {KINDS}, got {kind!r}.")
    flow, times = Flow(model, descriptor, method), flow_times(grid)
    noisy = flow.scaled(state, times[:1], 1)
    if kind == "map":
        values = _map(flow, noisy, times)[None]
    elif kind == "trace":
        one = torch.eye(flow.dim, dtype=torch.float64)[:, None].expand(-1, len(next(iter(noisy.values()))), -1)
        # The mean over basis vectors, times their number, is the trace.
        values = _integral(flow, noisy, times, one, flow.dim).mean(0, keepdim=True)
    else:
        if rng is None or probes < 2:
            raise IncompatibleError(f"hutchinson needs rng and at least 2 probes, got rng = {rng}, probes = {probes}.")
        signs = torch.where(rng.normal(probes, flow.dim) < 0, -1.0, 1.0).double()
        values = _integral(flow, noisy, times, signs.transpose(0, 1), 1)
    error = values.std(0) / math.sqrt(len(values)) if len(values) > 1 else torch.zeros_like(values[0])
    return LogProb(values.mean(0) + _log_alpha(flow, times), error, kind)


def flow_sample(
    model: ScoreModel, descriptor: Descriptor, grid: Tensor, rng: Streams, *, method: str = "rk4"
) -> tuple[State, LogProb]:
    """States as ``flow_rk4`` or ``flow_heun`` draws them, with their ``"map"`` density; no inverse has to be found."""
    flow, times = Flow(model, descriptor, method), flow_times(grid)
    prior = flow.process.prior(flow.process.empty(len(rng), torch.float64))
    state = prior.sample(rng)
    value = prior.log_prob(state)
    for t, s in backward_steps(times):
        state, jacobian = flow.step_jacobian(state, t, s)
        value = value - torch.linalg.slogdet(jacobian).logabsdet
    value = value + _log_alpha(flow, times)
    return flow.scaled(state, times[:1], -1), LogProb(value, torch.zeros_like(value), "map")


def _log_alpha(flow: Flow, times: Tensor) -> Tensor:
    """log|d x_t / d x_0| of the scaling by alpha at the flow's first time."""
    parts = [part.space.dim * part.levels(times[:1])[0].log().sum() for part in flow.process.values()]
    return torch.stack(parts).sum()


def _integral(flow: Flow, state: State, times: Tensor, probes: Tensor, factor: int) -> Tensor:
    """(P, B) log-density at the first time, from ``factor`` times each probe's share of the divergence (eq. 6)."""
    growth = torch.zeros(probes.shape[:2], dtype=torch.float64)
    for k in range(len(times) - 1):
        state, step = flow.step_growth(state, times[k : k + 1], times[k + 1 : k + 2], probes)
        growth = growth + factor * step
    return growth + flow.process.prior(state).log_prob(state)


def _map(flow: Flow, state: State, times: Tensor) -> Tensor:
    """(B,) log-density at the first time under the push-forward of the prior by the discrete map."""
    given, value = state, torch.zeros((), dtype=torch.float64)
    for k in range(len(times) - 1):
        s, t = times[k : k + 1], times[k + 1 : k + 2]
        state, jacobian = _inverse(flow, state, t, s)
        sign, log_det = torch.linalg.slogdet(jacobian)
        # A determinant that is not positive says that the map has folded: the grid is too coarse there.
        value = value - torch.where(sign > 0, log_det, torch.full_like(log_det, math.inf))
    value = value + flow.process.prior(state).log_prob(state)
    with torch.no_grad():
        for t, s in backward_steps(times):
            state = flow.step(state, t, s)
    returns = flow.gap(state, given).abs().amax(1) < ROUND_TRIP
    return torch.where(returns & value.isfinite(), value, torch.full_like(value, -math.inf))


def _inverse(flow: Flow, state: State, t: Tensor, s: Tensor) -> tuple[State, Tensor]:
    """The state at t that one step takes to ``state`` at s, and the step's Jacobian there."""
    found, gap = flow.inverse(state, t, s)
    _, jacobian = flow.step_jacobian(found, t, s)
    for _ in range(_NEWTON_ROUNDS):
        # The fixed point does not contract where steps are long; Newton's method does not need it to.
        if bool((gap.abs().amax(1) < _CLOSE).all()):
            break
        factors, pivots, _ = torch.linalg.lu_factor_ex(jacobian)
        trial = flow.shift(found, torch.linalg.lu_solve(factors, pivots, gap[..., None])[..., 0])
        image, slope = flow.step_jacobian(trial, t, s)
        left = flow.gap(image, state)
        better = left.abs().amax(1) < 0.5 * gap.abs().amax(1)
        if not bool(better.any()):
            break
        found = {
            name: torch.where(better.reshape(-1, *[1] * (x.dim() - 1)), trial[name], x) for name, x in found.items()
        }
        gap, jacobian = torch.where(better[:, None], left, gap), torch.where(better[:, None, None], slope, jacobian)
    return found, jacobian
