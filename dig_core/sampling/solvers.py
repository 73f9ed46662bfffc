"""Solvers: states drawn by integrating a score model from noise (t = 1) to data (t = 0)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..diffusion.kernels import Normal
from ..diffusion.processes import Joint
from ..random import Streams
from ..score import ScoreModel, score_of
from ..system.descriptor import Descriptor
from ..types import State, Tangent
from .flow import Flow, backward_steps, checked_grid, flow_times

__all__ = ["SOLVERS", "ancestral", "cold", "ddpm", "denoised", "dpm_solver", "euler_maruyama", "flow_heun", "flow_rk4"]

Solver = Callable[..., State]

_COLD = 0.25


# Every solver takes the same arguments:
# ``grid`` (K + 1,) times rising from 0 to 1; ``rng`` one stream a sample; ``start`` states at t = 1 instead of draws from
# the prior. All return float64 states.


@torch.no_grad()
def ancestral(
    model: ScoreModel, descriptor: Descriptor, grid: Tensor, rng: Streams, *, start: State | None = None
) -> State:
    """Reverse kernels with the model's own spread (article eqs 2 and 3; Ho et al., arXiv:2006.11239; Bao et al., arXiv:2201.06503).

    The last step is drawn like the others, so that this is the law of :class:`~dig_core.montecarlo.proposals.PathProposal`,
    number for number, and normal data come out exactly on every grid.
    """
    state = _first(model.process, rng, start)
    for t, s in backward_steps(checked_grid(grid)):
        moments = model.moments(state, t, descriptor)
        score = score_of(model.process, moments.noise, t)
        state = model.process.reverse(state, t, s, score, moments.spread).sample(rng)
    return state


@torch.no_grad()
def ddpm(
    model: ScoreModel, descriptor: Descriptor, grid: Tensor, rng: Streams, *, start: State | None = None
) -> State:
    """:func:`ancestral`, but the last step goes to its mean (Ho et al., algorithm 2).

    What noise the last level leaves, which is alike in all directions, breaks bonds that the mean keeps. Not the law of path proposals.
    """
    grid = checked_grid(grid)
    state = _first(model.process, rng, start)
    for t, s in backward_steps(grid[1:]):
        moments = model.moments(state, t, descriptor)
        state = model.process.reverse(state, t, s, score_of(model.process, moments.noise, t), moments.spread).sample(rng)
    return denoised(model, state, grid[1:2], descriptor)


@torch.no_grad()
def cold(model: ScoreModel, descriptor: Descriptor, grid: Tensor, rng: Streams, *, start: State | None = None) -> State:
    """:func:`ancestral` with a quarter of the variance of every step's noise: what a network blurs comes out sharper, nearer to the modes.

    Low-temperature sampling (Ingraham et al., doi:10.1038/s41586-023-06728-8; the noise scale of Watson et al.,
    doi:10.1038/s41586-023-06415-8). Not the law: widths, and the weights of states, are no longer the model's.
    """
    state = _first(model.process, rng, start)
    for t, s in backward_steps(checked_grid(grid)):
        moments = model.moments(state, t, descriptor)
        score, earlier = score_of(model.process, moments.noise, t), {}
        for name, part in model.process.items():
            kernel = part.reverse(state[name], t, s, score[name], moments.spread[name])
            earlier[name] = Normal(part.space, kernel.mean, _COLD * kernel.variance).sample(rng)
        state = earlier
    return state


@torch.no_grad()
def euler_maruyama(
    model: ScoreModel, descriptor: Descriptor, grid: Tensor, rng: Streams, *, start: State | None = None
) -> State:
    """The reverse SDE as in the article's eq. (3): Euler-Maruyama with drift and noise of a step integrated exactly.

    The noise has the variance of the forward step, whatever the model knows of it; needs finer grids than :func:`ancestral`.
    """
    state = _first(model.process, rng, start)
    for t, s in backward_steps(checked_grid(grid)):
        score = model(state, t, descriptor)
        earlier = {}
        for name, part in model.process.items():
            (alpha_s, sigma_s), (alpha_t, sigma_t) = part.levels(s), part.levels(t)
            ratio = alpha_t / alpha_s
            # The spread that makes the reverse kernel's variance the forward kernel's.
            spread = ratio**2 * (sigma_t**2 - sigma_s**2) / (sigma_t**2 - (ratio * sigma_s) ** 2)
            earlier[name] = part.reverse(state[name], t, s, score[name], spread).sample(rng)
        state = earlier
    return state


@torch.no_grad()
def dpm_solver(
    model: ScoreModel, descriptor: Descriptor, grid: Tensor, rng: Streams, *, start: State | None = None
) -> State:
    """DPM-Solver++(2M), Lu et al., arXiv:2211.01095: second order in log(alpha / sigma), one evaluation a step, deterministic.

    Written for y = x / alpha and its noise level sigma / alpha, so that one formula serves every schedule and, with alpha = 1,
    the torus and rotations. The last step goes to the denoised state, at first order.
    """
    state = _first(model.process, rng, start)
    before: dict[str, tuple[Tensor, Tensor]] = {}
    for t, s in backward_steps(checked_grid(grid)):
        clean, earlier = denoised(model, state, t, descriptor), {}
        for name, part in model.process.items():
            (alpha_s, sigma_s), (alpha_t, sigma_t) = part.levels(s), part.levels(t)
            level_s, level_t = sigma_s / alpha_s, sigma_t / alpha_t
            x = state[name] / alpha_t
            towards = part.space.log(x, clean[name])
            if name in before and float(s) > 0:
                last, level_before = before[name]
                ratio = torch.log(level_t / level_s) / torch.log(level_before / level_t)
                # The motion of the clean state is one at its own place: in tangents at x it is a rate, on flat spaces the same.
                towards = towards + 0.5 * ratio * part.space.rate(towards, part.space.log(last, clean[name]))
            earlier[name] = part.space.exp(x, (1 - level_s / level_t) * towards) * alpha_s
            before[name] = clean[name], level_t
        state = earlier
    return state


def flow_heun(
    model: ScoreModel, descriptor: Descriptor, grid: Tensor, rng: Streams, *, start: State | None = None
) -> State:
    """Probability flow (eq. 7) by Heun's second-order method, from t = 1 to the first of :func:`~.flow.flow_times`."""
    return _flow(Flow(model, descriptor, "heun"), grid, rng, start)


def flow_rk4(
    model: ScoreModel, descriptor: Descriptor, grid: Tensor, rng: Streams, *, start: State | None = None
) -> State:
    """Probability flow (eq. 7) by the classical fourth-order Runge-Kutta method; its density is ``flow_log_prob``."""
    return _flow(Flow(model, descriptor, "rk4"), grid, rng, start)


SOLVERS: dict[str, Solver] = {
    "ancestral": ancestral, "ddpm": ddpm, "cold": cold, "sde": euler_maruyama, "heun": flow_heun, "rk4": flow_rk4, "dpm++": dpm_solver,
}  # fmt: skip


def denoised(model: ScoreModel, state: State, t: Tensor, descriptor: Descriptor) -> State:
    """The clean state expected at (x_t, t)."""
    return clean_state(model.process, state, t, model.moments(state, t, descriptor).noise)


def clean_state(process: Joint, state: State, t: Tensor, noise: Tangent) -> State:
    """(x_t - sigma noise) / alpha, along the space."""
    clean = {}
    for name, part in process.items():
        alpha, sigma = part.levels(t)
        clean[name] = part.space.exp(state[name], -sigma * noise[name]) / alpha
    return clean


@torch.no_grad()
def _flow(flow: Flow, grid: Tensor, rng: Streams, start: State | None) -> State:
    times, state = flow_times(grid), _first(flow.process, rng, start)
    for t, s in backward_steps(times):
        state = flow.step(state, t, s)
    return flow.scaled(state, times[:1], -1)


def _first(process: Joint, rng: Streams, start: State | None) -> State:
    if start is not None:
        return {name: start[name].double() for name in process}
    return process.prior(process.empty(len(rng), torch.float64)).sample(rng)
