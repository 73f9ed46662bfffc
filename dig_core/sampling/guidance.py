"""Guidance: a score model conditioned on properties (article, eq. 8), and what its samples weigh."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..coordinates.contract import Coordinates
from ..diffusion.processes import Joint
from ..errors import IncompatibleError
from ..score import Moments, ScoreModel, score_of
from ..system.descriptor import Descriptor
from ..types import State, Tangent
from .likelihoods import Likelihood, joint_slopes
from .solvers import clean_state

__all__ = ["Denoised", "Fit", "Guidance", "Guided", "Property", "PropertyGuidance", "Pull"]


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
        seen = self._look(state, t, descriptor)
        pulls, noise, spread = [guidance(seen) for guidance in self.guidance], {}, {}
        for name, part in self.process.items():
            sigma, wide = part.levels(t)[1], seen.moments.spread[name]
            gradient = torch.stack([pull.gradient[name] for pull in pulls]).sum(0)
            narrowing = torch.stack([pull.narrowing[name] for pull in pulls]).sum(0)
            noise[name] = seen.moments.noise[name] - sigma * part.space.project(gradient)
            # Guidances overlap, and a network's variance and slope need not agree: what is left must stay a variance.
            spread[name] = torch.maximum(wide - _even(part.space, narrowing), 0.01 * wide)
        return seen.moments, Moments(noise, spread)

    def likelihood(self, state: State, descriptor: Descriptor) -> Fit:
        """That of all guidances together."""
        total, properties = torch.zeros((), dtype=torch.float64), dict[str, Tensor]()
        for guidance in self.guidance:
            found = guidance.likelihood(state, descriptor, self.coordinates)
            total, properties = total + found.log_likelihood, properties | found.properties
        return Fit(total, properties)

    def _look(self, state: State, t: Tensor, descriptor: Descriptor) -> Denoised:
        wanted, through = torch.is_grad_enabled(), any(guidance.through for guidance in self.guidance)
        still = self.process.still(state)
        with torch.set_grad_enabled(wanted or through):
            moved = self.process.exp(state, still) if through else state
            moments = self.model.moments(moved, t, descriptor)
            clean = clean_state(self.process, moved, t, moments.noise)
        if not wanted:
            moments = Moments(*({name: x.detach() for name, x in part.items()} for part in moments))
        return Denoised(self.process, state, t, descriptor, moments, clean, still, self.coordinates, wanted)


class Property(NamedTuple):
    """A property and what is wanted of it.

    ``predictor(geometry, descriptor)`` -> (B,), differentiable, each structure by itself; with ``of="state"`` it is given states instead.
    ``likelihood``: :class:`~.likelihoods.Value`, ``Range``, ``Bins`` or one's own. Names must differ within one guidance.
    """

    predictor: Callable[[Any, Descriptor], Tensor]
    likelihood: Likelihood
    name: str = "property"
    of: Literal["geometry", "state"] = "geometry"


class PropertyGuidance:
    """grad of log q(c | x_t) for properties f read off the denoised state x0, widened by what the noise leaves open of them.

    Given x_t, the property is taken to be normal about f(x0) with variance S = g Cov[x_0 | x_t] g, g = df/dx0, so that the
    likelihood of c is averaged over it in closed form. By Tweedie's second-order formula the covariance is (sigma^2 / alpha)
    dx0/dx_t (Boys et al., arXiv:2310.06721), which the same backward pass holds as the gradient. Exact for normal data and linear
    properties, several at once included; in general an approximation that path weights make good. As a step of a Kalman filter it never
    overshoots a linear property. Plain diffusion posterior sampling (Chung et al., arXiv:2209.14687) is S = 0; a fixed guess of the
    covariance is Song et al., ICLR 2023 (pseudo-inverse guidance).

    Samples whose property or its slope is not finite get no pull at that step; the others are not touched by it.

    Parameters
    ----------
    properties: what is wanted; the log-likelihoods add up.
    strength: 1 is Bayes' rule; more concentrates on the condition. Weights are for 1, whatever it is.
    through: "model" differentiates through the network, some three evaluations a step. "spread" takes its Jacobian to be the diagonal
        that the network's own variance implies, one evaluation and the predictor's slope: exact where the noise is independent.
    limit: longest pull, in standard deviations of the noise: sigma |gradient| <= limit.
    """

    def __init__(
        self, *properties: Property, strength: float = 1.0, through: Literal["model", "spread"] = "model", limit: float = 10.0
    ):
        names = [wanted.name for wanted in properties]
        if not names or len(set(names)) < len(names):
            raise IncompatibleError(f"expected properties of different names, at least one, got {names}.")
        if through not in ("model", "spread"):
            raise IncompatibleError(f'through must be "model" or "spread", got {through!r}.')
        if not limit > 0:
            raise IncompatibleError(f"limit must be above 0, got {limit}.")
        self.properties, self.strength, self.limit = properties, float(strength), float(limit)
        self.through = through == "model"

    def __call__(self, seen: Denoised) -> Pull:
        with torch.enable_grad():
            values, slopes = self._read(seen)
            noisy = [self._at_noise(seen, slope) for slope in slopes]
            covariance = self._covariance(seen, slopes, noisy)
            likelihoods = [wanted.likelihood for wanted in self.properties]
            first, second = joint_slopes(likelihoods, values, covariance, seen.differentiable)
            first, second = self.strength * first, self.strength * second
        gradient, narrowing = {}, {}
        for name, part in seen.process.items():
            towards = torch.stack([slope[name] for slope in noisy], dim=1).double()
            gradient[name] = torch.einsum("bk,bk...->b...", first, towards)
            sigma = part.levels(seen.t)[1]
            narrowing[name] = sigma**2 * torch.einsum("bk...,bkl,bl...->b...", towards, second, towards)
        return Pull(self._limited(seen, gradient), {name: x.to(seen.state[name]) for name, x in narrowing.items()})

    def likelihood(self, state: State, descriptor: Descriptor, coordinates: Coordinates | None) -> Fit:
        """The sum of the properties' log-likelihoods, without any width of noise."""
        total, properties = torch.zeros((), dtype=torch.float64), dict[str, Tensor]()
        with torch.no_grad():
            for wanted in self.properties:
                value = _value(wanted, state, descriptor, coordinates)
                known = value.isfinite()
                found = wanted.likelihood(torch.where(known, value, 0.0), torch.zeros_like(value))
                total = total + torch.where(known, found.double(), -math.inf)
                properties[wanted.name] = torch.where(known, value, math.nan)
        return Fit(total, properties)

    def _read(self, seen: Denoised) -> tuple[Tensor, list[Tangent]]:
        """Properties (B, K) of the denoised states and their slopes along the space there; NaN and zero where not finite."""
        values, slopes = [], []
        here = seen.clean if seen.differentiable else {name: x.detach() for name, x in seen.clean.items()}
        for wanted in self.properties:
            still = seen.process.still(here)
            value = _value(wanted, seen.process.exp(here, still), seen.descriptor, seen.coordinates)
            slope = _pulled({"": value}, still, {"": torch.ones_like(value)}, seen.differentiable)
            known = torch.stack([value.isfinite(), *(x.isfinite().flatten(1).all(1) for x in slope.values())]).all(0)
            values.append(torch.where(known, value, math.nan))
            slopes.append({name: _where(known, x) for name, x in slope.items()})
        return torch.stack(values, dim=1), slopes

    def _at_noise(self, seen: Denoised, slope: Tangent) -> Tangent:
        """The slope of a property carried from the denoised state to x_t."""
        if self.through:
            # Near itself, the logarithm of a point is its tangent.
            there = seen.process.log({name: x.detach() for name, x in seen.clean.items()}, seen.clean)
            found = _pulled(there, seen.still, slope, seen.differentiable, keep=True)
            return {name: _where(x.isfinite().flatten(1).all(1), x) for name, x in found.items()}
        found = {}
        for name, part in seen.process.items():
            carried = part.space.transport(seen.clean[name], seen.state[name], slope[name])
            found[name] = seen.moments.spread[name] / part.levels(seen.t)[0] * carried
        return found

    def _covariance(self, seen: Denoised, slopes: list[Tangent], noisy: list[Tangent]) -> Tensor:
        """(B, K, K) float64 of the properties given x_t."""
        total = torch.zeros((), dtype=torch.float64)
        for name, part in seen.process.items():
            alpha, sigma = part.levels(seen.t)
            clean, later = (torch.stack([x[name] for x in each], 1).double().flatten(2) for each in (slopes, noisy))
            total = total + (sigma**2 / alpha).double().reshape(-1, 1, 1) * (clean @ later.transpose(1, 2))
        # Of a network that is no gradient it need not be one: its symmetric part, without negative variances or correlations above 1.
        total = 0.5 * (total + total.transpose(1, 2))
        variance = total.diagonal(dim1=1, dim2=2).clamp_min(0)
        most = (variance[:, :, None] * variance[:, None]).sqrt()
        off = torch.minimum(torch.maximum(total, -most), most)
        return torch.diag_embed(variance) + off - torch.diag_embed(off.diagonal(dim1=1, dim2=2))

    def _limited(self, seen: Denoised, gradient: Tangent) -> Tangent:
        noise = [part.levels(seen.t)[1] * gradient[name] for name, part in seen.process.items()]
        length = torch.stack([x.flatten(1).square().sum(1) for x in noise]).sum(0).sqrt()
        factor = (self.limit / length.clamp_min(1e-300)).clamp_max(1.0)
        return {name: (_rows(factor, x) * x).to(seen.state[name]) for name, x in gradient.items()}


def _value(wanted: Property, state: State, descriptor: Descriptor, coordinates: Coordinates | None) -> Tensor:
    """(B,) of the property."""
    if wanted.of == "state":
        value = wanted.predictor(state, descriptor)
    elif coordinates is None:
        raise IncompatibleError(f'the property {wanted.name!r} is one of a geometry: give Guided the coordinates, or read it of="state".')
    else:
        value = wanted.predictor(coordinates.decode(state, descriptor), descriptor)
    batch = len(next(iter(state.values())))
    if value.shape != (batch,):
        raise IncompatibleError(f"expected one {wanted.name} for each of {batch} structures, got shape {tuple(value.shape)}.")
    return value


def _pulled(values: Tangent, at: Tangent, weights: Tangent, differentiable: bool, keep: bool = False) -> Tangent:
    """Gradients of sum(weights * values), zero along what no value depends on; ``keep`` the graph of ``values``."""
    there = [name for name, x in values.items() if x.requires_grad]
    if not there:
        return {name: torch.zeros_like(x) for name, x in at.items()}
    found = torch.autograd.grad(
        [values[name] for name in there],
        list(at.values()),
        [weights[name].to(values[name]) for name in there],
        create_graph=differentiable,
        retain_graph=keep or differentiable,
        materialize_grads=True,
    )
    return dict(zip(at, found, strict=True))


def _where(known: Tensor, x: Tensor) -> Tensor:
    """``x`` with zeros in the rows that are not known."""
    return torch.where(_rows(known, x), x, torch.zeros_like(x))


def _rows(one: Tensor, x: Tensor) -> Tensor:
    """(B,) shaped to meet ``x`` (B, *shape)."""
    return one.reshape(-1, *[1] * (x.dim() - 1))


def _even(space, x: Tensor) -> Tensor:
    """A variance by coordinate as one number a sample on spaces that know no other, those of fewer dimensions than numbers."""
    if math.prod(space.shape) == space.dim:
        return x
    return _rows(x.flatten(1).sum(1) / space.dim, x).expand_as(x)
