"""Basins that a model has lost: found by structures known from elsewhere, refilled by short local chains."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..energy import Energy
from ..random import Streams
from ..types import State, Tangent
from .draws import Draws, prior_law, target_law
from .frames import join_frames
from .losses import Frames

if TYPE_CHECKING:
    from ..dig import DiG

__all__ = ["lost", "relax"]


def lost(dig: DiG, draws: Draws, seeds: State, log_target: Tensor, beta: float, seed: int, nats: float = 5.0) -> Tensor:
    """(S,) bool: seeded structures that the model would propose e^nats times more seldom than the law at ``beta`` wants.

    A high effective sample size says nothing of states that were never drawn (doi:10.48550/arXiv.2208.01893); structures
    known from elsewhere do. Their own path weights are compared with the mean weight of the draws, an estimate of the
    normalising constant.
    """
    geometry = dig.coordinates.decode(seeds, dig.descriptor)
    count = len(log_target)
    log_q = dig.proposal().log_q(geometry, Streams(seed, range(count))) + dig.coordinates.log_volume(seeds, dig.descriptor)
    log_prior, _ = prior_law(dig.process, seeds)
    log_weight = beta * log_target + (1 - beta) * log_prior - log_q
    mean = torch.logsumexp(draws.log_weight(beta), 0) - math.log(len(draws))
    return log_weight - mean > nats


def relax(dig: DiG, energy: Energy, seeds: State, beta: float, steps: int, seed: int) -> tuple[Frames, int]:
    """Frames of the law at ``beta`` near ``seeds``: Metropolis-adjusted Langevin chains in the model's coordinates.

    Returns the last half of all states with their forces, and the number of energy evaluations. Proposals: Roberts and
    Tweedie, doi:10.2307/3318418.
    """
    rng = torch.Generator().manual_seed(seed)
    here, size, found = seeds, 0.1, []
    log_p, slope = _tempered(dig, energy, here, beta)
    for number in range(steps):
        noise = {n: torch.randn(x.shape, generator=rng, dtype=x.dtype) for n, x in here.items()}
        there = {n: dig.process[n].space.exp(x, 0.5 * size**2 * slope[n] + size * noise[n]) for n, x in here.items()}
        log_p_there, slope_there = _tempered(dig, energy, there, beta)
        gain = log_p_there - log_p
        for n, x in here.items():
            forth = noise[n]
            back = (dig.process[n].space.log(there[n], x) - 0.5 * size**2 * slope_there[n]) / size
            gain = gain + 0.5 * ((forth**2) - (back**2)).flatten(1).sum(1)
        accept = torch.rand(len(gain), generator=rng, dtype=gain.dtype).log() < gain
        size *= math.exp(0.1 * (float(accept.double().mean()) - 0.57))
        pick = {n: accept.reshape(-1, *[1] * (x.dim() - 1)) for n, x in here.items()}
        here = {n: torch.where(pick[n], there[n], x) for n, x in here.items()}
        slope = {n: torch.where(pick[n], slope_there[n], x) for n, x in slope.items()}
        log_p = torch.where(accept, log_p_there, log_p)
        if number >= steps // 2:
            found.append(Frames({n: x.float() for n, x in here.items()}, {n: f.float() for n, f in slope.items()}))
    return join_frames(found), (steps + 1) * len(log_p)


def _tempered(dig: DiG, energy: Energy, state: State, beta: float) -> tuple[Tensor, Tangent]:
    """(B,) log of the law at ``beta``, -inf where a state is not valid, and its gradient."""
    log_target, target = target_law(dig, energy, state)
    log_prior, prior = prior_law(dig.process, state)
    valid = dig.coordinates.valid(state, dig.descriptor) & torch.isfinite(log_target)
    log_p = torch.where(valid, beta * log_target + (1 - beta) * log_prior, -math.inf)
    return log_p, {n: beta * f + (1 - beta) * prior[n] for n, f in target.items()}
