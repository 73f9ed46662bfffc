"""Guidance by properties of the denoised state, for any differentiable predictor (article, eq. 8)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..coordinates.contract import Coordinates
from ..errors import IncompatibleError
from ..score import ScoreModel
from ..system.descriptor import Descriptor
from ..types import State, Tangent
from .calibration import Calibration, regression
from .guided import Denoised, Fit, Guidance, Guided, Pull, look, rows
from .likelihoods import Property, joint_slopes

__all__ = ["Denoised", "Fit", "Guidance", "Guided", "Property", "PropertyGuidance", "Pull"]


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
    calibration: what :meth:`calibrated` found.
    """

    def __init__(
        self,
        *properties: Property,
        strength: float = 1.0,
        through: Literal["model", "spread"] = "model",
        limit: float = 10.0,
        calibration: Calibration | None = None,
    ):
        names = [wanted.name for wanted in properties]
        if not names or len(set(names)) < len(names):
            raise IncompatibleError(f"expected properties of different names, at least one, got {names}.")
        if through not in ("model", "spread"):
            raise IncompatibleError(f'through must be "model" or "spread", got {through!r}.')
        if not limit > 0:
            raise IncompatibleError(f"limit must be above 0, got {limit}.")
        self.properties, self.strength, self.limit = properties, float(strength), float(limit)
        self.through, self.calibration = through == "model", calibration

    def __call__(self, seen: Denoised) -> Pull:
        with torch.enable_grad():
            values, noisy, covariance = self._estimated(seen)
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
                value = wanted.read(state, descriptor, coordinates)
                known = value.isfinite()
                found = wanted.likelihood(torch.where(known, value, 0.0), torch.zeros_like(value))
                total = total + torch.where(known, found.double(), -math.inf)
                properties[wanted.name] = torch.where(known, value, math.nan)
        return Fit(total, properties)

    def calibrated(
        self,
        model: ScoreModel,
        state: State,
        descriptor: Descriptor,
        coordinates: Coordinates | None = None,
        *,
        seed: int,
        levels: int = 15,
    ) -> PropertyGuidance:
        """This guidance with a :class:`~.calibration.Calibration` from clean states (n, ...) of the model, a few hundred, noised to each of
        ``levels`` times. Worth its n * levels evaluations where a property is far from linear: raises the sample size of weights.
        """
        with torch.no_grad():
            clean = torch.stack([wanted.read(state, descriptor, coordinates) for wanted in self.properties], dim=1)
        rng, times = torch.Generator().manual_seed(seed), torch.linspace(0, 1, levels + 1, dtype=torch.float64)
        found, count = [[(0.0, 1.0, 0.0)] * len(self.properties)], range(len(self.properties))
        for t in times[1:]:
            noised = model.process.noise(state, t.expand(len(clean)), rng).state
            with torch.no_grad():
                seen = look(model, noised, t.reshape(1), descriptor, coordinates, self.through)
            with torch.enable_grad():
                values, _, covariance = self._with(None)._estimated(seen)
            found.append([regression(clean[:, k], values[:, k].detach(), covariance[:, k, k].detach()) for k in count])
        return self._with(Calibration(times, *torch.tensor(found, dtype=torch.float64).unbind(2)))

    def _with(self, calibration: Calibration | None) -> PropertyGuidance:
        through: Literal["model", "spread"] = "model" if self.through else "spread"
        return PropertyGuidance(*self.properties, strength=self.strength, through=through, limit=self.limit, calibration=calibration)

    def _estimated(self, seen: Denoised) -> tuple[Tensor, list[Tangent], Tensor]:
        """Of the properties given x_t: mean (B, K), its slopes along x_t, covariance (B, K, K)."""
        values, slopes = self._read(seen)
        noisy = [self._at_noise(seen, slope) for slope in slopes]
        covariance = self._covariance(seen, slopes, noisy)
        if self.calibration is None:
            return values, noisy, covariance
        offset, slope, excess = self.calibration.at(seen.t)
        noisy = [{name: rows(slope[:, k], x) * x for name, x in each.items()} for k, each in enumerate(noisy)]
        return offset + slope * values, noisy, slope[:, :, None] * covariance * slope[:, None] + torch.diag_embed(excess)

    def _read(self, seen: Denoised) -> tuple[Tensor, list[Tangent]]:
        """Properties (B, K) of the denoised states and their slopes along the space there; NaN and zero where not finite."""
        values, slopes = [], []
        here = seen.clean if seen.differentiable else {name: x.detach() for name, x in seen.clean.items()}
        for wanted in self.properties:
            still = seen.process.still(here)
            value = wanted.read(seen.process.exp(here, still), seen.descriptor, seen.coordinates)
            slope = _pulled({"": value}, still, {"": torch.ones_like(value)}, seen.differentiable)
            known = torch.stack([value.isfinite(), *(x.isfinite().flatten(1).all(1) for x in slope.values())]).all(0)
            values.append(torch.where(known, value, math.nan))
            slopes.append({name: _where(known, x) for name, x in slope.items()})
        return torch.stack(values, dim=1), slopes

    def _at_noise(self, seen: Denoised, slope: Tangent) -> Tangent:
        """The slope of a property carried from the denoised state to x_t."""
        own = {}
        for name, part in seen.process.items():
            carried = part.space.transport(seen.clean[name], seen.state[name], slope[name])
            own[name] = seen.moments.spread[name] / part.levels(seen.t)[0] * carried
        if not self.through:
            return own
        # Near itself, the logarithm of a point is its tangent.
        there = seen.process.log({name: x.detach() for name, x in seen.clean.items()}, seen.clean)
        found = _pulled(there, seen.still, slope, seen.differentiable, keep=True)
        return self._trusted(seen, slope, found, own)

    def _trusted(self, seen: Denoised, slope: Tangent, found: Tangent, own: Tangent) -> Tangent:
        """What is ``found`` through the model as far as it can be so: a property's variance is positive, and no covariance with x_0 is
        above the product of standard deviations. Of networks neither is certain; where there is no variance, the model's ``own`` serves.
        """
        variance = self._covariance(seen, [slope], [found])[:, 0, 0].clamp_min(1e-300)
        trusted, sound = {}, (variance > 1e-300) & variance.isfinite()
        for name, part in seen.process.items():
            sigma, spread = part.levels(seen.t)[1], seen.moments.spread[name].double()
            length, most = (sigma * found[name]).flatten(1).norm(dim=1), (variance * spread.flatten(1).sum(1)).sqrt()
            factor = torch.where(length > most, most / length, torch.ones_like(most))
            trusted[name] = torch.where(rows(sound, spread), rows(factor, spread) * found[name], own[name])
        return trusted

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
        return {name: (rows(factor, x) * x).to(seen.state[name]) for name, x in gradient.items()}


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
    return torch.where(rows(known, x), x, torch.zeros_like(x))
