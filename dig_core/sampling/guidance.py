"""Guidance: a score model conditioned on a property (article, eq. 8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from ..diffusion.processes import Joint
from ..errors import IncompatibleError
from ..score import Moments, ScoreModel
from ..system.descriptor import Descriptor
from ..types import State, Tangent
from .solvers import denoised

__all__ = ["Guidance", "Guided", "PropertyGuidance"]


class Guidance(Protocol):
    """grad log q_t(c | x_t) of a condition c at noisy states (B, ...), a Tangent."""

    def __call__(self, state: State, t: Tensor, descriptor: Descriptor) -> Tangent: ...


class Guided(nn.Module):
    """score(R | c) = score(R) + grad log q(c | R) (eq. 8), a ScoreModel like any other: solvers never hear of the condition.

    ``moments`` shift the noise by -sigma times the same gradient; the spread stays the unconditional model's.
    """

    def __init__(self, model: ScoreModel, *guidance: Guidance):
        super().__init__()
        if not guidance:
            raise IncompatibleError("Guided needs at least one guidance besides the model.")
        self.model, self.guidance = model, guidance

    @property
    def process(self) -> Joint:
        return self.model.process

    @property
    def conservative(self) -> bool:
        """Whether the score is a gradient; a guidance is one by its contract."""
        return self.model.conservative

    def forward(self, state: State, t: Tensor, descriptor: Descriptor) -> Tangent:
        score, pull = self.model(state, t, descriptor), self._pull(state, t, descriptor)
        return {name: value + pull[name] for name, value in score.items()}

    def moments(self, state: State, t: Tensor, descriptor: Descriptor) -> Moments:
        moments, pull = self.model.moments(state, t, descriptor), self._pull(state, t, descriptor)
        noise = {name: value - self.process[name].levels(t)[1] * pull[name] for name, value in moments.noise.items()}
        return Moments(noise, moments.spread)

    def _pull(self, state: State, t: Tensor, descriptor: Descriptor) -> Tangent:
        pulls = [guidance(state, t, descriptor) for guidance in self.guidance]
        return {
            name: part.space.project(torch.stack([pull[name] for pull in pulls]).sum(0))
            for name, part in self.process.items()
        }


class PropertyGuidance:
    """grad of strength * log q(c | x0(x_t)), the property read off the denoised state (Chung et al., arXiv:2209.14687).

    An approximation: it takes the denoised state for the clean one, which is right as t -> 0. Differentiates through the
    model, so a step costs about three plain ones.

    Parameters
    ----------
    model: the score model to be guided, whose denoised state is used.
    property_fn: state -> (B, ...) values, differentiable; decode to a geometry in here if the property needs one.
    log_likelihood: values -> (B,) log q(c | values), such as a normal law around the target.
    strength: 1 is Bayes' rule; more concentrates on the condition.
    """

    def __init__(
        self,
        model: ScoreModel,
        property_fn: Callable[[State], Tensor],
        log_likelihood: Callable[[Tensor], Tensor],
        strength: float = 1.0,
    ):
        self.model, self.property_fn, self.log_likelihood, self.strength = (
            model,
            property_fn,
            log_likelihood,
            float(strength),
        )

    def __call__(self, state: State, t: Tensor, descriptor: Descriptor) -> Tangent:
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            still = self.model.process.still(state)
            clean = denoised(self.model, self.model.process.exp(state, still), t, descriptor)
            total = self.strength * self.log_likelihood(self.property_fn(clean)).sum()
            pull = torch.autograd.grad(total, list(still.values()), create_graph=wanted, materialize_grads=True)
        return dict(zip(still, pull, strict=True))
