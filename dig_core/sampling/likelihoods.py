"""Properties of structures and their likelihoods: how well a value, known up to a variance, meets what is wanted of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ..coordinates.contract import Coordinates
from ..errors import IncompatibleError
from ..system.descriptor import Descriptor
from ..types import State

__all__ = ["Bins", "Likelihood", "Property", "Range", "Value", "joint_slopes"]

_SURE = 9.0
"""Standard deviations inside an edge beyond which float64 knows no doubt."""


class Likelihood(Protocol):
    """log q(c | property ~ N(value, variance)), (B,) float64, twice differentiable in ``value`` (B,).

    ``variance`` (B,) is what noise leaves open of the property, 0 for a clean structure. The three below have edges and widths
    that are normal, so that they widen exactly: the slope far out is the distance over the whole variance, and neither fades nor bursts.
    """

    def __call__(self, value: Tensor, variance: Tensor) -> Tensor: ...


class Value:
    """A normal law about ``target`` with standard deviation ``width``, in the property's unit; 0 at a clean target."""

    def __init__(self, target: float, width: float):
        self.target, self.width = float(target), _positive(width)
        if not math.isfinite(self.target):
            raise IncompatibleError(f"expected a finite target, got {target}; for a bound use Range.")

    def __call__(self, value: Tensor, variance: Tensor) -> Tensor:
        whole = self.width**2 + variance.double()
        return -0.5 * ((value.double() - self.target) ** 2 / whole + torch.log(whole / self.width**2))


class Range:
    """The interval from ``low`` to ``high``, either of which may be infinite, with edges that are normal cdfs of ``width``."""

    def __init__(self, low: float, high: float, width: float):
        self.low, self.high, self.width = float(low), float(high), _positive(width)
        if not self.low < self.high:
            raise IncompatibleError(f"expected low < high, got {low} and {high}.")

    def __call__(self, value: Tensor, variance: Tensor) -> Tensor:
        return _log_between(self.low, self.high, value, (self.width**2 + variance.double()).sqrt())


class Bins:
    """sum_k probabilities_k P(property in bin k), with ``width`` of the edges as in :class:`Range`.

    ``edges`` (M + 1,) rising, the outer ones may be infinite; ``probabilities`` (M,) >= 0 of c given each bin, any scale.
    """

    def __init__(self, edges: Sequence[float], probabilities: Sequence[float], width: float):
        self.edges, self.width = [float(x) for x in edges], _positive(width)
        wanted = [float(p) for p in probabilities]
        if len(self.edges) != len(wanted) + 1 or not all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise IncompatibleError(f"expected M + 1 rising edges and M probabilities, got edges {edges} and {len(wanted)} probabilities.")
        if not all(p >= 0 for p in wanted) or not 0 < sum(wanted) < math.inf:
            raise IncompatibleError(f"expected probabilities >= 0 with one above it, got {wanted}.")
        self.probabilities = [p / max(wanted) for p in wanted]

    def __call__(self, value: Tensor, variance: Tensor) -> Tensor:
        spread = (self.width**2 + variance.double()).sqrt()
        parts = [
            math.log(p) + _log_between(low, high, value, spread)
            for low, high, p in zip(self.edges[:-1], self.edges[1:], self.probabilities, strict=True)
            if p > 0
        ]
        return torch.logsumexp(torch.stack(parts), dim=0)


class Property(NamedTuple):
    """A property and what is wanted of it.

    ``predictor(geometry, descriptor)`` -> (B,), differentiable, each structure by itself; with ``of="state"`` it is given states instead.
    ``likelihood``: :class:`Value`, :class:`Range`, :class:`Bins` or one's own. Names must differ within one guidance.
    """

    predictor: Callable[[Any, Descriptor], Tensor]
    likelihood: Likelihood
    name: str = "property"
    of: Literal["geometry", "state"] = "geometry"

    def read(self, state: State, descriptor: Descriptor, coordinates: Coordinates | None) -> Tensor:
        """(B,) of the property. Raises IncompatibleError for other shapes, and for geometries where there are no coordinates."""
        if self.of == "state":
            value = self.predictor(state, descriptor)
        elif coordinates is None:
            raise IncompatibleError(f'{self.name!r} is read off a geometry: give Guided the coordinates, or read it of="state".')
        else:
            value = self.predictor(coordinates.decode(state, descriptor), descriptor)
        batch = len(next(iter(state.values())))
        if value.shape != (batch,):
            raise IncompatibleError(f"expected one {self.name} for each of {batch} structures, got shape {tuple(value.shape)}.")
        return value


def joint_slopes(
    likelihoods: Sequence[Likelihood], values: Tensor, covariance: Tensor, differentiable: bool = False
) -> tuple[Tensor, Tensor]:
    """(B, K) and (B, K, K) float64: d/dv and -d^2/dv^2 of the log-likelihood of K properties ~ N(values, covariance) together.

    Each likelihood stands for the normal one of its own slope a and bend b, and the joint slope of those is (1 + b S')^-1 a with S' the
    covariances between properties: exact for :class:`Value`, and for any likelihoods of properties that vary independently.
    ``values`` (B, K) that are not finite count as not asked for. ``differentiable`` results keep their graph.
    """
    known, variance = values.isfinite(), covariance.diagonal(dim1=1, dim2=2)
    slopes, bends = [], []
    for k, likelihood in enumerate(likelihoods):
        at = torch.where(known[:, k], values[:, k], 0.0).double()
        at = at if at.requires_grad else at.requires_grad_()
        slope = torch.autograd.grad(likelihood(at, variance[:, k]).sum(), at, create_graph=True)[0]
        bend = torch.zeros_like(at)
        if slope.requires_grad:
            bend = -torch.autograd.grad(slope.sum(), at, create_graph=differentiable, retain_graph=True, materialize_grads=True)[0]
        slopes.append(torch.where(known[:, k], slope, 0.0))
        # What is averaged over a normal law bends by no more than that law.
        bends.append(torch.where(known[:, k], bend.clamp_min(0).minimum(1 / variance[:, k]), 0.0))
    a, b = torch.stack(slopes, dim=1), torch.diag_embed(torch.stack(bends, dim=1))
    between = torch.eye(len(likelihoods), dtype=torch.float64) + b @ (covariance - torch.diag_embed(variance))
    solved = torch.linalg.solve(between, torch.cat([a[..., None], b], dim=2))
    first, second = solved[..., 0], solved[..., 1:]
    return (first, second) if differentiable else (first.detach(), second.detach())


def _log_between(low: float, high: float, value: Tensor, spread: Tensor) -> Tensor:
    """log P(low < value + spread * normal < high), to full relative precision in either tail."""
    below, above = (low - value.double()) / spread, (high - value.double()) / spread
    if math.isinf(low) and math.isinf(high):
        return 0 * value.double()
    if math.isinf(low):
        return _log_cdf(above)
    if math.isinf(high):
        return _log_cdf(-below)
    # The tail on the side where it is small: a difference of two numbers near one would lose it.
    turned = below + above > 0
    a, b = torch.where(turned, -above, below), torch.where(turned, -below, above)
    return _log_cdf(b) + torch.log(-torch.expm1(_log_cdf(a) - _log_cdf(b)))


def _log_cdf(z: Tensor) -> Tensor:
    # Its second derivative overflows where it is zero anyway.
    return torch.special.log_ndtr(z.clamp(max=_SURE))


def _positive(width: float) -> float:
    if not (float(width) > 0 and math.isfinite(float(width))):
        raise IncompatibleError(f"expected a finite width above 0, in the property's unit, got {width}.")
    return float(width)
