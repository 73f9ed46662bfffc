"""Basins that a model has lost: found by structures known from elsewhere, refilled by short local chains."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..diffusion.processes import Joint
from ..energy import Energy
from ..random import Streams
from ..types import State, Tangent
from .draws import Draws, prior_law, target_law
from .frames import join_frames
from .losses import Frames

if TYPE_CHECKING:
    from ..dig import DiG

__all__ = ["langevin_step", "lost", "relax"]


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

    Returns the last half of all states with their forces, and the number of energy evaluations.
    """
    rng = torch.Generator().manual_seed(seed)
    here, size, found = seeds, 0.1, []
    held = _tempered(dig, energy, here, beta)
    for number in range(steps):
        scale = {n: torch.full_like(x[0], size) for n, x in here.items()}
        here, held, accept = langevin_step(dig.process, here, held, lambda state: _tempered(dig, energy, state, beta), scale, rng)
        size *= math.exp(0.1 * (float(accept.double().mean()) - 0.57))
        if number >= steps // 2:
            found.append(Frames({n: x.float() for n, x in here.items()}, {n: f.float() for n, f in held[1].items()}))
    return join_frames(found), (steps + 1) * len(held[0])


def langevin_step(
    process: Joint, here: State, held: tuple, law: Callable, scale: Tangent, rng: torch.Generator
) -> tuple[State, tuple, Tensor]:
    """One Metropolis-adjusted Langevin step of every row; ``law(state)`` is (log p, its gradient, ...), ``held`` that of ``here``.

    ``scale`` (*shape) a component: the step's standard deviations. Returns the states, what ``law`` says of them, and who moved.
    Roberts and Tweedie, doi:10.2307/3318418; drifts are cut at a step's length, the same on the way back.
    """

    def drift(slope: Tangent) -> Tangent:
        return {n: (0.5 * scale[n] * f).clamp(-1.0, 1.0) for n, f in slope.items()}

    here = {n: here[n] for n in process}  # a state read from a file may name its components in another order, and noise is drawn in it
    noise = {n: torch.randn(x.shape, generator=rng, dtype=x.dtype) for n, x in here.items()}
    forth = drift(held[1])
    there = {n: process[n].space.exp(x, scale[n] * (forth[n] + noise[n])) for n, x in here.items()}
    found = law(there)
    back = drift(found[1])
    gain = found[0] - held[0]
    for n, x in here.items():
        returned = process[n].space.log(there[n], x) / scale[n] - back[n]
        gain = gain + 0.5 * (noise[n] ** 2 - returned**2).flatten(1).sum(1)
    accept = torch.rand(len(gain), generator=rng, dtype=gain.dtype).log() < gain

    def chosen(new, old):
        if isinstance(new, dict):
            return {n: chosen(x, old[n]) for n, x in new.items()}
        return torch.where(accept.reshape(-1, *[1] * (new.dim() - 1)), new, old)

    return chosen(there, here), tuple(chosen(new, old) for new, old in zip(found, held, strict=True)), accept


def _tempered(dig: DiG, energy: Energy, state: State, beta: float) -> tuple[Tensor, Tangent]:
    """(B,) log of the law at ``beta``, -inf where a state is not valid, and its gradient."""
    log_target, target = target_law(dig, energy, state)
    log_prior, prior = prior_law(dig.process, state)
    valid = dig.coordinates.valid(state, dig.descriptor) & torch.isfinite(log_target)
    log_p = torch.where(valid, beta * log_target + (1 - beta) * log_prior, -math.inf)
    return log_p, {n: beta * f + (1 - beta) * prior[n] for n, f in target.items()}
