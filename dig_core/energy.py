"""The energy contract, analytic energies, and laws whose noised densities and scores are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .diffusion.processes import Joint
from .diffusion.spaces import TWO_PI, wrap
from .errors import IncompatibleError
from .score import Moments, score_of
from .system.descriptor import Descriptor
from .types import Geometry, State, Tangent

__all__ = [
    "AnalyticScore",
    "DoubleWell",
    "Energy",
    "GaussianMixture",
    "Law",
    "Mixture",
    "MuellerBrown",
    "Springs",
    "WrappedMixture",
]


class Energy(Protocol):
    """Reduced energy u = E / kT (B,) of structures, differentiable by autograd (gradient in 1/Angstrom); +inf on failure."""

    def __call__(self, geometry: Geometry) -> Tensor: ...


class Law(Protocol):
    """A density on R^d or a closed space whose pushed-forward x_t = alpha x_0 + sigma noise is known.

    ``alpha`` and ``sigma`` are (B, 1) or (1, 1); the defaults of ``log_prob`` are clean data. ``curvature`` (B, d) is the
    diagonal of the Hessian of ``log_prob``.
    """

    def log_prob(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor: ...
    def score(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor: ...
    def curvature(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor: ...
    def sample(self, n: int, rng: torch.Generator) -> Tensor: ...


class Mixture:
    """What every mixture has: subclasses give each component's log-density, score and curvature."""

    def __init__(self, weights: Sequence[float] | Tensor, means: Sequence | Tensor):
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        self.means = torch.as_tensor(means, dtype=torch.float64)
        if self.weights.dim() != 1 or self.means.dim() != 2 or len(self.means) != len(self.weights):
            raise IncompatibleError(
                f"expected weights (M,) and means (M, d), got {tuple(self.weights.shape)} and {tuple(self.means.shape)}."
            )
        self.weights = self.weights / self.weights.sum()
        self.dim = self.means.shape[1]

    def _parts(self, x: Tensor, alpha, sigma) -> tuple[Tensor, Tensor]:
        """Log-densities (B, M) and scores (B, M, d) of the components."""
        raise NotImplementedError

    def _bends(self, x: Tensor, alpha, sigma) -> Tensor:
        """Curvatures (B, M, d) of the components."""
        raise NotImplementedError

    def log_prob(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """(B,) log-density of x (B, d)."""
        return torch.logsumexp(self._parts(x, alpha, sigma)[0] + self.weights.log(), dim=1)

    def score(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """(B, d) gradient of :meth:`log_prob`."""
        logs, slopes = self._parts(x, alpha, sigma)
        return torch.einsum("bm,bmd->bd", torch.softmax(logs + self.weights.log(), dim=1), slopes)

    def curvature(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """(B, d) diagonal of the Hessian of :meth:`log_prob`."""
        logs, slopes = self._parts(x, alpha, sigma)
        share = torch.softmax(logs + self.weights.log(), dim=1)[..., None]
        mean = (share * slopes).sum(1)
        return (share * (self._bends(x, alpha, sigma) + (slopes - mean[:, None]) ** 2)).sum(1)

    def _pick(self, n: int, rng: torch.Generator) -> Tensor:
        return torch.multinomial(self.weights, n, replacement=True, generator=rng)


class GaussianMixture(Mixture):
    """Normal laws on R^d: ``weights`` (M,), ``means`` (M, d), ``covariances`` (M, d, d) or variances of the axes (M, d)."""

    def __init__(self, weights, means, covariances):
        super().__init__(weights, means)
        covariances = torch.as_tensor(covariances, dtype=torch.float64)
        if covariances.dim() == 2:
            covariances = torch.diag_embed(covariances)
        if covariances.shape != (*self.means.shape, self.dim):
            raise IncompatibleError(f"expected covariances (M, d, d) or (M, d), got {tuple(covariances.shape)}.")
        self.covariances = covariances
        # In its own axes a component stays diagonal at every noise level.
        self._variances, self._axes = torch.linalg.eigh(covariances)

    def _parts(self, x, alpha, sigma):
        alpha, sigma = _level(alpha), _level(sigma)
        gap = torch.einsum("mdk,bmd->bmk", self._axes, x[:, None] - alpha * self.means)
        variance = alpha**2 * self._variances + sigma**2
        logs = -0.5 * (gap**2 / variance + torch.log(TWO_PI * variance)).sum(-1)
        return logs, -torch.einsum("mdk,bmk->bmd", self._axes, gap / variance)

    def _bends(self, x, alpha, sigma):
        precision = 1 / (_level(alpha) ** 2 * self._variances + _level(sigma) ** 2)
        return -torch.einsum("mdk,bmk->bmd", self._axes**2, precision)

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """(n, d) independent draws."""
        which = self._pick(n, rng)
        raw = torch.randn(n, self.dim, generator=rng, dtype=torch.float64) * self._variances[which].sqrt()
        return self.means[which] + torch.einsum("bdk,bk->bd", self._axes[which], raw)


class WrappedMixture(Mixture):
    """Wrapped normal laws on the torus, density relative to the uniform law: ``means`` and ``variances`` (M, d)."""

    def __init__(self, weights, means, variances):
        super().__init__(weights, means)
        self.variances = torch.as_tensor(variances, dtype=torch.float64).expand(self.means.shape)

    def _turned(self, x, sigma):
        """Variances, and gaps to every image that matters with their logits (B, M, d, images)."""
        variance = self.variances + _level(sigma) ** 2
        # Images beyond 9 standard deviations weigh less than 1e-17.
        widest = float(variance.detach().max().sqrt()) if variance.numel() else 0.0
        reach = math.ceil(9 * widest / TWO_PI + 0.5)
        turns = TWO_PI * torch.arange(-reach, reach + 1, dtype=torch.float64)
        gap = wrap(x[:, None] - self.means)[..., None] + turns
        return variance, gap, -0.5 * gap**2 / variance[..., None]

    def _parts(self, x, alpha, sigma):
        variance, gap, logits = self._turned(x, sigma)
        logs = (torch.logsumexp(logits, dim=-1) - 0.5 * torch.log(variance / TWO_PI)).sum(-1)
        return logs, -(torch.softmax(logits, dim=-1) * gap).sum(-1) / variance

    def _bends(self, x, alpha, sigma):
        variance, gap, logits = self._turned(x, sigma)
        share = torch.softmax(logits, dim=-1)
        mean = (share * gap).sum(-1, keepdim=True)
        return ((share * (gap - mean) ** 2).sum(-1) / variance - 1) / variance

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """(n, d) independent draws in [-pi, pi)."""
        which = self._pick(n, rng)
        raw = torch.randn(n, self.dim, generator=rng, dtype=torch.float64)
        return wrap(self.means[which] + self.variances[which].sqrt() * raw)


class AnalyticScore:
    """The exact score model of a product of laws, one a component of ``process``, in orthonormal coordinates of its space.

    With x_t = alpha x_0 + sigma noise, E[noise | x_t] = -sigma score and Var[noise | x_t] = 1 + sigma^2 curvature (Tweedie;
    Bao et al., arXiv:2201.06503). On the torus the noise counts whole turns, as the reverse kernels do.
    """

    conservative = True

    def __init__(self, process: Joint, laws: Mapping[str, Law]):
        sizes = {name: getattr(law, "dim", None) for name, law in laws.items()}
        if sizes != {name: part.space.dim for name, part in process.items()}:
            raise IncompatibleError(
                f"expected laws of dimensions { {n: p.space.dim for n, p in process.items()} }, got {sizes}."
            )
        self.process, self.laws = process, dict(laws)
        self._bases = {name: part.space.basis().flatten(1) for name, part in process.items()}

    def __call__(self, state: State, t: Tensor, descriptor: Descriptor | None = None) -> Tangent:
        return score_of(self.process, self._noise(state, t), t)

    def moments(self, state: State, t: Tensor, descriptor: Descriptor | None = None) -> Moments:
        """Mean and variance of the noise; off the centroid the variance is the mean over the subspace."""
        spread = {}
        for name, law in self.laws.items():
            alpha, sigma = self._levels(name, t)
            left = (1 + sigma**2 * law.curvature(self._flat(state, name), alpha, sigma)).clamp_min(0)
            shape = state[name].shape
            whole = left.shape[1] == math.prod(shape[1:])
            spread[name] = (
                left.reshape(shape) if whole else left.mean(1).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
            )
        return Moments(self._noise(state, t), spread)

    def log_prob(self, state: State, t: Tensor | None = None) -> Tensor:
        """(B,) log q_t in the measure of the spaces; of clean data if ``t`` is None."""
        total = torch.zeros((), dtype=torch.float64)
        for name, law in self.laws.items():
            levels = () if t is None else self._levels(name, t)
            total = total + law.log_prob(self._flat(state, name), *levels)
        return total

    def sample(self, n: int, rng: torch.Generator) -> State:
        """Clean data, float64."""
        return {
            name: (law.sample(n, rng) @ self._bases[name]).reshape(n, *self.process[name].space.shape)
            for name, law in self.laws.items()
        }

    def _levels(self, name: str, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.process[name].levels(t)
        return alpha.reshape(-1, 1), sigma.reshape(-1, 1)

    def _flat(self, state: State, name: str) -> Tensor:
        return state[name].double().flatten(1) @ self._bases[name].T

    def _noise(self, state: State, t: Tensor) -> Tangent:
        noise = {}
        for name, law in self.laws.items():
            alpha, sigma = self._levels(name, t)
            found = -sigma * law.score(self._flat(state, name), alpha, sigma)
            noise[name] = (found @ self._bases[name]).reshape(state[name].shape)
        return noise


class MuellerBrown:
    """One particle on the Mueller-Brown surface in x and y (doi:10.1007/BF00547608), harmonic in z: three minima, bent paths.

    ``kt`` is the temperature in units of the surface, whose wells are 147, 108 and 81 deep and its saddles 41 and 72.
    """

    _heights = (-200.0, -100.0, -170.0, 15.0)
    _terms = ((-1.0, 0.0, -10.0), (-1.0, 0.0, -10.0), (-6.5, 11.0, -6.5), (0.7, 0.6, 0.7))
    _centres = ((1.0, 0.0), (0.0, 0.5), (-0.5, 1.5), (-1.0, 1.0))

    def __init__(self, kt: float = 15.0):
        self.kt = float(kt)

    def plane(self, x: Tensor) -> Tensor:
        """u (B,) of points (B, 2)."""
        total = torch.zeros_like(x[:, 0])
        for height, (a, b, c), (x0, y0) in zip(self._heights, self._terms, self._centres, strict=True):
            dx, dy = x[:, 0] - x0, x[:, 1] - y0
            total = total + height * torch.exp(a * dx**2 + b * dx * dy + c * dy**2)
        return total / self.kt

    def __call__(self, geometry: Geometry) -> Tensor:
        point = geometry.positions[:, 0]
        return _or_infinite(self.plane(point[:, :2]) + 0.5 * point[:, 2] ** 2)


class DoubleWell:
    """Two atoms, bound at ``near`` or ``far`` Angstrom: u = height (((r - middle) / half)^2 - 1)^2."""

    def __init__(self, height: float = 3.0, near: float = 1.5, far: float = 3.0):
        self.height, self.middle, self.half = float(height), 0.5 * (near + far), 0.5 * (far - near)

    def profile(self, r: Tensor) -> Tensor:
        """u at distances r, any shape."""
        return self.height * (((r - self.middle) / self.half) ** 2 - 1) ** 2

    def __call__(self, geometry: Geometry) -> Tensor:
        return _or_infinite(self.profile((geometry.positions[:, 1] - geometry.positions[:, 0]).norm(dim=-1)))


class Springs:
    """u = sum of stiffness (r - length)^2 / 2 over pairs of atoms: ``pairs`` (P, 2), ``lengths``, ``stiffness`` (P,)."""

    def __init__(self, pairs, lengths, stiffness):
        self.pairs = torch.as_tensor(pairs, dtype=torch.long)
        self.lengths, self.stiffness = (torch.as_tensor(x, dtype=torch.float64) for x in (lengths, stiffness))

    def __call__(self, geometry: Geometry) -> Tensor:
        ends = geometry.positions[:, self.pairs]
        gap = (ends[:, :, 1] - ends[:, :, 0]).norm(dim=-1) - self.lengths
        return _or_infinite((0.5 * self.stiffness * gap**2).sum(1))


def _level(x: Tensor | float) -> Tensor:
    """A noise level shaped (B or 1, 1, 1), to meet (B, M, d)."""
    return torch.as_tensor(x, dtype=torch.float64).reshape(-1, 1, 1)


def _or_infinite(u: Tensor) -> Tensor:
    return torch.where(u.isnan(), torch.full_like(u, math.inf), u)
