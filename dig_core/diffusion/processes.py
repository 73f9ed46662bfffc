"""Diffusion of one component (article eqs 1-3 and 7) and of several together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..random import Streams
from ..types import State, Tangent
from .kernels import Heat, JointKernel, Kernel, Normal, Uniform
from .schedules import Schedule
from .spaces import Space

__all__ = ["Between", "Diffusion", "Joint", "Noised", "Scale", "Tabulated"]


class Noised(NamedTuple):
    """A noised state, and the noise (article's epsilon) as the regression target: -sigma times the kernel's score.

    ``drawn`` is the standard normal noise itself. On a torus it counts whole turns, which its regression target averages over:
    the mean given x_t is the same, the variance is what reverse kernels need.
    """

    state: State
    noise: Tangent
    drawn: Tangent


class Scale(NamedTuple):
    """The noise is read from a network as ``skip * x + out * network``; ``spread`` is the noise's variance given x_t."""

    skip: Tensor
    out: Tensor
    spread: Tensor


class Between(NamedTuple):
    """A step of the noise: x_t given x_s has mean ``ratio`` x_s and this ``variance``.

    Back from x_t the mean is x_t / ratio + ``gain`` * score, and the variance ``least`` + ``share`` times the noise's own.
    """

    ratio: Tensor
    variance: Tensor
    gain: Tensor
    least: Tensor
    share: Tensor


class Diffusion:
    """Linear diffusion of one component: x_t given x_0 is N(alpha x_0, sigma^2), on any :class:`Space`.

    With a variance-preserving schedule this is the article's OU process, with :class:`~.schedules.Geometric` Brownian motion.
    Times ``t`` are tensors, (B,) or (1,), in [0, 1]. Closed spaces need alpha = 1 (checked) and have a uniform prior; there
    x_t is Brownian motion from x_0.
    """

    def __init__(self, space: Space, schedule: Schedule):
        self.space, self.schedule = space, schedule
        end = torch.ones(1, dtype=torch.float64)
        if space.periodic and float(schedule.alpha(end)) != 1.0:
            raise IncompatibleError(
                f"A {type(space).__name__} needs a schedule with alpha = 1, such as Geometric; got {type(schedule).__name__}, "
                "which pulls points towards zero."
            )

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at ``t``, shaped to multiply a state."""
        shape = (-1,) + (1,) * len(self.space.shape)
        return self.schedule.alpha(t).reshape(shape), self.schedule.sigma(t).reshape(shape)

    def between(self, s: Tensor, t: Tensor) -> Between:
        """What happens from ``s`` to ``t``, s < t, shaped to multiply a state."""
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.levels(s), self.levels(t)
        ratio = alpha_t / alpha_s
        step = sigma_t**2 - (ratio * sigma_s) ** 2
        return Between(ratio, step, step / ratio, step * (sigma_s / sigma_t) ** 2, (step / (ratio * sigma_t)) ** 2)

    def prior(self, like: Tensor) -> Kernel:
        """p_simple: N(0, sigma(1)^2 + alpha(1)^2) or uniform; ``like`` (B, *shape) gives batch, dtype and device."""
        if self.space.periodic:
            return Uniform(self.space, like)
        alpha, sigma = self.levels(torch.ones(1, dtype=like.dtype, device=like.device))
        return Normal(self.space, torch.zeros_like(like), sigma**2 + alpha**2)

    def forward(self, x: Tensor, s: Tensor, t: Tensor) -> Kernel:
        """q(x_t given x_s), s < t (eq. 1)."""
        between = self.between(s, t)
        return Heat(self.space, between.ratio * x, between.variance)

    def reverse(self, x: Tensor, t: Tensor, s: Tensor, score: Tensor, spread: Tensor) -> Normal:
        """p(x_s given x_t) on any grid, s < t (eqs 2, 3).

        ``score`` (B, *shape) at (x, t). ``spread`` broadcasts to x: the variance that the noise (epsilon) still has once
        x_t is known, between 0 and 1. Spread 0 is the DDPM posterior, spread 1 the article's eq. (3); the kernel closest
        to the true one, in between, is the measured or learned variance (Bao et al., arXiv:2201.06503).
        """
        between = self.between(s, t)
        mean = self.space.exp(x / between.ratio, between.gain * score)
        return Normal(self.space, mean, (between.least + between.share * spread).expand(x.shape))

    def velocity(self, x: Tensor, t: Tensor, score: Tensor) -> Tensor:
        """Probability flow dx/dt (eq. 7)."""
        shape = (-1,) + (1,) * len(self.space.shape)
        drift, diffusion = self.schedule.drift(t).reshape(shape), self.schedule.diffusion(t).reshape(shape)
        return drift * x - 0.5 * diffusion * score

    def target(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """grad log q(x_t given x_0), the denoising target (eq. 5)."""
        alpha, sigma = self.levels(t)
        return self.space.heat_score(self.space.log(alpha * x0, xt), sigma**2)

    def scale(self, t: Tensor) -> Scale:
        """How a network's output is read; with a silent network, exact for unit normal data on R^d, the uniform law elsewhere."""
        alpha, sigma = self.levels(t)
        if self.space.periodic:
            # The score fades like the first harmonic, exp(-gap sigma^2 / 2), and faster than half that rate.
            out = sigma * torch.exp(-0.25 * self.space.spectral_gap * sigma**2)
            return Scale(torch.zeros_like(sigma), out, torch.ones_like(sigma))
        norm = alpha**2 + sigma**2
        return Scale(sigma / norm, alpha * sigma / norm.sqrt(), alpha**2 / norm)

    def weight(self, t: Tensor) -> Tensor:
        """Likelihood weight of the squared noise error, g^2 / sigma^2 (Song et al., arXiv:2101.09258), shaped like ``t``."""
        return self.schedule.diffusion(t) / self.schedule.sigma(t) ** 2


class Tabulated(Diffusion):
    """A process along a ``grid`` (K,): what is asked of single times on it, at every step again, is computed once.

    Not to be differentiated along t.
    """

    def __init__(self, process: Diffusion, grid: Tensor):
        self.space, self.schedule = process.space, process.schedule
        self._grid = frozenset(grid.tolist())
        self._held: dict[tuple, Any] = {}

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._once(super().levels, t)

    def between(self, s: Tensor, t: Tensor) -> Between:
        return self._once(super().between, s, t)

    def scale(self, t: Tensor) -> Scale:
        return self._once(super().scale, t)

    def _once(self, compute: Callable[..., Any], *times: Tensor) -> Any:
        if any(t.numel() != 1 for t in times):
            return compute(*times)
        numbers = [float(t) for t in times]
        key = (compute.__name__, times[0].dtype, *numbers)
        if key not in self._held:
            found = compute(*times)
            if not self._grid.issuperset(numbers):
                return found
            self._held[key] = found
        return self._held[key]


class Joint(Mapping[str, Diffusion]):
    """Independent diffusion of named components; every method maps over the components of a State."""

    def __init__(self, **components: Diffusion):
        if not components:
            raise IncompatibleError("Joint needs at least one component, such as Joint(pos=Diffusion(...)).")
        self._components = components

    def __getitem__(self, name: str) -> Diffusion:
        return self._components[name]

    def __iter__(self):
        return iter(self._components)

    def __len__(self) -> int:
        return len(self._components)

    @property
    def dim(self) -> int:
        return sum(process.space.dim for process in self.values())

    def tabulated(self, grid: Tensor) -> Joint:
        """The same along a ``grid`` (K,), see :class:`Tabulated`."""
        return Joint(**{name: Tabulated(part, grid) for name, part in self.items()})

    def empty(self, n: int, dtype: torch.dtype = torch.float32, device=None) -> State:
        """A State of zeros with ``n`` samples, to hand to :meth:`prior`."""
        return {name: torch.zeros(n, *process.space.shape, dtype=dtype, device=device) for name, process in self.items()}

    def exp(self, state: State, tangent: Tangent) -> State:
        """``state`` moved along ``tangent``, component by component."""
        return {name: process.space.exp(state[name], tangent[name]) for name, process in self.items()}

    def log(self, x: State, y: State) -> Tangent:
        """The shortest tangents that take ``x`` to ``y``."""
        return {name: process.space.log(x[name], y[name]) for name, process in self.items()}

    def still(self, state: State) -> Tangent:
        """Zero tangents that require gradients: by them, functions of ``exp(state, .)`` are differentiated along the spaces."""
        return {name: torch.zeros_like(state[name], requires_grad=True) for name in self}

    def prior(self, like: State) -> JointKernel:
        return JointKernel({name: process.prior(like[name]) for name, process in self.items()})

    def forward(self, state: State, s: Tensor, t: Tensor) -> JointKernel:
        return JointKernel({name: process.forward(state[name], s, t) for name, process in self.items()})

    def reverse(self, state: State, t: Tensor, s: Tensor, score: Tangent, spread: Tangent) -> JointKernel:
        return JointKernel(
            {name: process.reverse(state[name], t, s, score[name], spread[name]) for name, process in self.items()}
        )

    def velocity(self, state: State, t: Tensor, score: Tangent) -> Tangent:
        return {name: process.velocity(state[name], t, score[name]) for name, process in self.items()}

    def noise(self, state: State, t: Tensor, rng: Streams | torch.Generator) -> Noised:
        """Push clean states to time ``t`` (B,) and return the noise that a network has to find."""
        noised, noise, drawn = {}, {}, {}
        for name, process in self.items():
            x = state[name]
            alpha, sigma = process.levels(t)
            raw = _draw(rng, x, process.space)
            noised[name] = process.space.exp(alpha * x, process.space.heat_step(raw, sigma))
            drawn[name] = process.space.project(raw)
            noise[name] = -sigma * process.target(x, noised[name], t) if process.space.periodic else drawn[name]
        return Noised(noised, noise, drawn)


def _draw(rng: Streams | torch.Generator, like: Tensor, space: Space) -> Tensor:
    if isinstance(rng, Streams):
        return rng.normal(*space.shape, dtype=like.dtype).to(like.device)
    return torch.randn(like.shape, generator=rng, dtype=like.dtype, device=rng.device).to(like.device)
