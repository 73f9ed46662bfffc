"""The contract of guidances, and a score model under them (article, eq. 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..coordinates.contract import Coordinates
from ..diffusion.processes import Joint
from ..errors import IncompatibleError
from ..score import Moments, ScoreModel, score_of
from ..system.descriptor import Descriptor
from ..types import State, Tangent
from .solvers import clean_state

__all__ = ["Denoised", "Fit", "Guidance", "Guided", "Pull", "look", "rows"]


_NARROWEST = 0.75
"""Of the model's own variance, what guided reverse kernels keep at least."""


@dataclass(frozen=True)
class Denoised:
    """What a guidance reads: noisy states (B, ...) at times ``t`` ((B,) or (1,)), the model's ``moments`` there, the ``clean`` states
    they imply, and what makes structures of states. ``still``: zero tangents at ``state``, by which ``clean`` is differentiated
    where a guidance asked to see through the model. ``differentiable``: whether the result will be differentiated.
    """

    process: Joint
    state: State
    t: Tensor
    descriptor: Descriptor
    moments: Moments
    clean: State
    still: Tangent
    coordinates: Coordinates | None = None
    differentiable: bool = False


class Pull(NamedTuple):
    """Of log q(c | x_t): the gradient, and what conditioning takes off the variance of the noise (>= 0), both (B, *shape) a component.

    The second is -sigma^2 times the diagonal of the Hessian; zero is always allowed, reverse kernels are then wider than they need be.
    """

    gradient: Tangent
    narrowing: Tangent


class Fit(NamedTuple):
    """How clean states meet a condition: log q(c | x_0) (B,) float64, -inf where it cannot be told, and the properties it was told
    by, name -> (B,), NaN where there is none.
    """

    log_likelihood: Tensor
    properties: dict[str, Tensor]


class Guidance(Protocol):
    """log q(c | x_t) of a condition c. ``through``: it differentiates ``clean`` through the model.

    ``likelihood`` says what it asks of clean states.
    """

    through: bool

    def __call__(self, seen: Denoised) -> Pull: ...
    def likelihood(self, state: State, descriptor: Descriptor, coordinates: Coordinates | None) -> Fit: ...


class Guided(nn.Module):
    """score(R | c) = score(R) + grad log q(c | R) (eq. 8), a ScoreModel like any other: solvers never hear of the condition.

    ``moments`` shift the noise by -sigma times the gradient and narrow its spread by the guidances' curvature, for which the model is
    evaluated once. ``coordinates`` make structures for guidances that read them.
    """

    def __init__(self, model: ScoreModel, *guidance: Guidance, coordinates: Coordinates | None = None):
        super().__init__()
        if not guidance:
            raise IncompatibleError("Guided needs at least one guidance besides the model.")
        self.model, self.guidance, self.coordinates = model, guidance, coordinates

    @property
    def process(self) -> Joint:
        return self.model.process

    @property
    def conservative(self) -> bool:
        """False: the variance that widens a likelihood is not differentiated."""
        return False

    def forward(self, state: State, t: Tensor, descriptor: Descriptor) -> Tangent:
        return score_of(self.process, self.moments(state, t, descriptor).noise, t)

    def moments(self, state: State, t: Tensor, descriptor: Descriptor) -> Moments:
        return self.both(state, t, descriptor)[1]

    def both(self, state: State, t: Tensor, descriptor: Descriptor) -> tuple[Moments, Moments]:
        """Moments of the model alone and guided, at the cost of one evaluation."""
        through = any(guidance.through for guidance in self.guidance)
        seen = look(self.model, state, t, descriptor, self.coordinates, through)
        pulls, noise, spread = [guidance(seen) for guidance in self.guidance], {}, {}
        for name, part in self.process.items():
            sigma, wide = part.levels(t)[1], seen.moments.spread[name]
            gradient = torch.stack([pull.gradient[name] for pull in pulls]).sum(0)
            narrowing = torch.stack([pull.narrowing[name] for pull in pulls]).sum(0)
            noise[name] = seen.moments.noise[name] - sigma * part.space.project(gradient)
            # Kernels narrower than the model's make its weights uneven, without bound if by half: it is narrowed by a quarter at most.
            spread[name] = torch.maximum(wide - _even(part.space, narrowing), _NARROWEST * wide)
        return seen.moments, Moments(noise, spread)

    def likelihood(self, state: State, descriptor: Descriptor) -> Fit:
        """That of all guidances together."""
        total, properties = torch.zeros((), dtype=torch.float64), dict[str, Tensor]()
        for guidance in self.guidance:
            found = guidance.likelihood(state, descriptor, self.coordinates)
            total, properties = total + found.log_likelihood, properties | found.properties
        return Fit(total, properties)


def look(
    model: ScoreModel, state: State, t: Tensor, descriptor: Descriptor, coordinates: Coordinates | None, through: bool
) -> Denoised:
    """One evaluation of the model, with its graph if a guidance differentiates ``through`` it."""
    wanted, process = torch.is_grad_enabled(), model.process
    still = process.still(state)
    with torch.set_grad_enabled(wanted or through):
        moved = process.exp(state, still) if through else state
        moments = model.moments(moved, t, descriptor)
        clean = clean_state(process, moved, t, moments.noise)
    if not wanted:
        moments = Moments(*({name: x.detach() for name, x in part.items()} for part in moments))
    return Denoised(process, state, t, descriptor, moments, clean, still, coordinates, wanted)


def rows(one: Tensor, x: Tensor) -> Tensor:
    """(B,) shaped to meet ``x`` (B, *shape)."""
    return one.reshape(-1, *[1] * (x.dim() - 1))


def _even(space, x: Tensor) -> Tensor:
    """A variance by coordinate as one number a sample on spaces that know no other, those of fewer dimensions than numbers."""
    if math.prod(space.shape) == space.dim:
        return x
    return rows(x.flatten(1).sum(1) / space.dim, x).expand_as(x)
