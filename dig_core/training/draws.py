"""A model's own weighed samples, and frames of a tempered or of the exact ensemble resampled from them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..diffusion.processes import Joint
from ..energy import Energy
from ..montecarlo.analysis import effective_sample_size, normalised_weights
from ..progress import Show, bar
from ..random import Streams
from ..types import State, Tangent
from .losses import Frames

if TYPE_CHECKING:
    from ..dig import DiG

__all__ = ["Draws", "Reweighted", "draw", "prior_law", "resampled", "reweighted_frames", "softened", "target_law"]


class Draws(NamedTuple):
    """n proposals, weighed, with one energy evaluation each.

    ``state`` and ``force`` = grad log target, float32, in the model's coordinates; ``log_target`` (n,) = -u + log volume, -inf
    where the state or its energy is no good; ``log_prior`` (n,) the process's prior law at the state, which an untrained model
    samples; ``log_q`` (n,) of the path. All log-densities in the measure of the state, float64.
    """

    state: State
    force: Tangent
    log_target: Tensor
    log_prior: Tensor
    log_q: Tensor

    def __len__(self) -> int:
        return len(self.log_q)

    def log_weight(self, beta: float = 1.0) -> Tensor:
        """(n,) for the law target^beta prior^(1 - beta): the exact ensemble at 1, the untrained model's at 0."""
        tempered = torch.where(torch.isfinite(self.log_target), beta * self.log_target, -math.inf) if beta else 0.0
        return tempered + (1 - beta) * self.log_prior - self.log_q

    def effective_fraction(self, beta: float = 1.0) -> float:
        """Raw effective sample size for that law as a fraction of n; 0 if no weight is finite."""
        log_weight = self.log_weight(beta)
        return effective_sample_size(log_weight) if bool((log_weight > -math.inf).any()) else 0.0

    def softened(self, top: float, cap: float) -> Draws:
        """The same draws for the law of :func:`softened`, forces included."""
        log_target, scale = softened(self.log_target, top, cap)
        force = {name: f * _rows(scale.float(), f) for name, f in self.force.items()}
        return Draws(self.state, force, log_target, self.log_prior, self.log_q)

    def frames(self, process: Joint, beta: float, n: int, seed: int) -> Frames:
        """``n`` frames of that law with its forces, resampled systematically: a draw as often as its raw weight says."""
        chosen = resampled(self.log_weight(beta), n, float(Streams(seed, [0]).uniform(1)))
        state = {name: x[chosen] for name, x in self.state.items()}
        force = {name: f[chosen] for name, f in self.force.items()}
        if beta < 1:
            _, prior = prior_law(process, state)
            force = {name: beta * f + (1 - beta) * prior[name].float() for name, f in force.items()}
        return Frames(state, force)


def draw(
    dig: DiG, energy: Energy, n: int, *, seed: int, batch: int = 512, progress: Show = None, label: str = "draws"
) -> Draws:
    """``n`` path proposals of ``dig`` with their weights and forces; sample i depends on (seed, i) alone."""
    parts, proposal = [], dig.proposal()
    for low in bar(range(0, n, batch), label=label, progress=progress, leave=False):
        rng = Streams(seed, range(low, min(low + batch, n)))
        samples = proposal.draw(len(rng), rng)
        state = {name: x.detach().double() for name, x in samples.state.items()}
        log_target, force = target_law(dig, energy, state)
        log_prior, _ = prior_law(dig.process, state)
        log_q = samples.known_log_q() + dig.coordinates.log_volume(state, dig.descriptor)
        possible = samples.valid & torch.isfinite(log_q)
        parts.append((state, force, torch.where(possible, log_target, -math.inf), log_prior, torch.where(possible, log_q, 0.0)))
    states, forces, *logs = zip(*parts, strict=True)
    return Draws(_joined(states), _joined(forces), *(torch.cat(part) for part in logs))


def resampled(log_weight: Tensor, n: int, shift: float) -> Tensor:
    """(n,) indices, each as often as its raw weight says: systematic resampling, ``shift`` in [0, 1)."""
    share = torch.from_numpy(np.asarray(normalised_weights(log_weight)))
    edges = (torch.arange(n) + shift) / n
    return torch.searchsorted(share.cumsum(0).clamp(max=1.0), edges.double()).clamp(max=len(share) - 1)


def softened(log_target: Tensor, top: float, cap: float) -> tuple[Tensor, Tensor]:
    """(n,) a log-density that falls only logarithmically below ``top`` - ``cap``, and what its gradient is multiplied by there.

    Overlapping atoms, 1e10 kT up, thus lose their weight as gradually as everything else does when such a law is
    approached; where the exact one has any weight the two agree. Its slope is continuous, so that far out it is a power of
    the energy: rings close and chains disentangle along a funnel without a scale of its own, and not all at once.
    """
    beyond = (top - log_target - cap).clamp_min(0.0)
    soft = torch.where(beyond > 0, top - cap - cap * torch.log1p(beyond / cap), log_target)
    return torch.where(torch.isfinite(log_target), soft, -math.inf), cap / (cap + beyond)


def target_law(dig: DiG, energy: Energy, state: State) -> tuple[Tensor, Tangent]:
    """(B,) -u + log volume of states, -inf where the energy fails, and its gradient, zero there."""
    state = {name: x.detach().double() for name, x in state.items()}
    with torch.enable_grad():
        still = dig.process.still(state)
        state = dig.process.exp(state, still)
        volume = dig.coordinates.log_volume(state, dig.descriptor)
        u = energy(dig.coordinates.decode(state, dig.descriptor)).double()
        good = torch.isfinite(u)
        total = (volume - torch.where(good, u, 0.0)).sum()
        gradient = torch.autograd.grad(total, list(still.values()), materialize_grads=True)
    force = {name: torch.where(_rows(good, g), g, 0.0) for name, g in zip(still, gradient, strict=True)}
    return torch.where(good, volume - u, -math.inf).detach(), force


def prior_law(process: Joint, state: State) -> tuple[Tensor, Tangent]:
    """(B,) log-density of the process's prior at states, and its gradient."""
    state = {name: x.detach().double().requires_grad_() for name, x in state.items()}
    batch = len(next(iter(state.values())))
    with torch.enable_grad():
        value = process.prior(process.empty(batch, torch.float64)).log_prob(state)
        if not value.requires_grad:  # uniform throughout
            return value, {name: torch.zeros_like(x) for name, x in state.items()}
        gradient = torch.autograd.grad(value.sum(), list(state.values()), allow_unused=True, materialize_grads=True)
    return value.detach(), dict(zip(state, gradient, strict=True))


class Reweighted(NamedTuple):
    """``frames`` drawn from exp(-u) by the model's own exact weights; ``ess`` the raw effective fraction they rest on."""

    frames: Frames
    ess: float
    evaluations: int


def reweighted_frames(
    dig: DiG, energy: Energy, n: int, *, seed: int, batch: int = 512, progress: Show = None
) -> Reweighted:
    """Draw ``n`` proposals and resample them to the law exp(-u), as many as they are worth.

    A model that is roughly right thus makes independent frames of the exact ensemble for one energy each (self-normalised
    importance sampling). Weights are raw.
    """
    found = draw(dig, energy, n, seed=seed, batch=batch, progress=progress, label="reweighted frames")
    ess = effective_sample_size(found.log_weight())
    return Reweighted(found.frames(dig.process, 1.0, max(2, int(ess * n)), seed), ess, n)


def _rows(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (like.dim() - 1))


def _joined(parts: tuple[dict[str, Tensor], ...]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]).float() for name in parts[0]}
