"""A network read as a score: noise-parametrised and energy-parametrised, and what path proposals need besides."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .diffusion.processes import Joint
from .errors import IncompatibleError, UnsupportedError
from .system.descriptor import Descriptor
from .types import State, Tangent

__all__ = ["EnergyScore", "Moments", "NoiseScore", "ScoreModel", "score_of"]


class Moments(NamedTuple):
    """What is known of the noise at (x_t, t): its mean and its variance, each (B, *shape) a component."""

    noise: Tangent
    spread: Tangent


class ScoreModel(Protocol):
    """grad log q_t(x_t), a Tangent. ``moments`` gives noise = -sigma * score and the variance that reverse kernels need.

    ``conservative`` says whether the score is the gradient of a scalar.
    """

    @property
    def process(self) -> Joint: ...
    @property
    def conservative(self) -> bool: ...
    def __call__(self, state: State, t: Tensor, descriptor: Descriptor) -> Tangent: ...
    def moments(self, state: State, t: Tensor, descriptor: Descriptor) -> Moments: ...


def score_of(process: Joint, noise: Tangent, t: Tensor) -> Tangent:
    """-noise / sigma(t), component by component."""
    return {name: value / -process[name].levels(t)[1] for name, value in noise.items()}


class NoiseScore(nn.Module):
    """score = -noise / sigma with the noise predicted by a network (article, eq. 5).

    ``network(state, t, descriptor)`` returns two tangents, departures of the noise and of its log-variance from what the
    process expects of standardised data; see :meth:`Diffusion.scale`. Not a gradient field. A network on another device than
    the state is asked there: after ``model.to("cuda")`` whatever draws, weighs or trains goes on as before.
    """

    conservative = False

    def __init__(self, network: nn.Module, process: Joint):
        super().__init__()
        self.network, self.process = network, process
        sizes = getattr(network, "sizes", None)
        if sizes is not None and {n: p.space.shape for n, p in process.items()} != {n: (d,) for n, d in sizes.items()}:
            raise IncompatibleError(
                f"The network was made for components {sizes}, the process has "
                f"{ {n: p.space.shape for n, p in process.items()} }. Build both from the same coordinates."
            )

    def moments(self, state: State, t: Tensor, descriptor: Descriptor) -> Moments:
        departure, log_spread = self._asked(state, t, descriptor)
        noise, spread = {}, {}
        for name, process in self.process.items():
            scale = process.scale(t)
            noise[name] = process.space.project(scale.skip * state[name] + scale.out * departure[name])
            spread[name] = scale.spread * torch.exp(log_spread[name].clamp(-6.0, 2.0))
        return Moments(noise, spread)

    def _asked(self, state: State, t: Tensor, descriptor: Descriptor) -> tuple[Tangent, Tangent]:
        """The network's answer, where the state is."""
        here, there = t.device, next(self.parameters(), t).device
        if here == there:
            return self.network(state, t, descriptor)
        answer = self.network({name: x.to(there) for name, x in state.items()}, t.to(there), descriptor)
        return tuple({name: x.to(here) for name, x in part.items()} for part in answer)  # type: ignore[return-value]

    def forward(self, state: State, t: Tensor, descriptor: Descriptor) -> Tangent:
        return score_of(self.process, self.moments(state, t, descriptor).noise, t)

    def along(self, grid: Tensor) -> NoiseScore:
        """The same score, parameters shared, for the times of a ``grid`` (K,), see :class:`~.diffusion.processes.Tabulated`."""
        return NoiseScore(self.network, self.process.tabulated(grid))

    def on(self, descriptor: Descriptor) -> NoiseScore:
        """The score of another system by the same network, parameters shared.

        Raises UnsupportedError for a network of one system: those that transfer say how a system is noised, ``process(descriptor)``.
        """
        if not hasattr(self.network, "process"):
            raise UnsupportedError(f"a {type(self.network).__name__} serves the one system it was trained on: train a model for this one.")
        return NoiseScore(self.network, self.network.process(descriptor))  # type: ignore[operator]


class EnergyScore(nn.Module):
    """score = -grad of a scalar: ``potential(state, t, descriptor)`` (B,) is added to the process's own quadratic part.

    Conservative: ``log_density`` (B,) is log q_t up to a constant that depends on t. The spread is the process's own guess.
    """

    conservative = True

    def __init__(self, potential: nn.Module, process: Joint):
        super().__init__()
        self.potential, self.process = potential, process

    def log_density(self, state: State, t: Tensor, descriptor: Descriptor) -> Tensor:
        """(B,) unnormalised log q_t."""
        total = -self.potential(state, t, descriptor)
        for name, process in self.process.items():
            alpha, sigma = process.levels(t)
            if not process.space.periodic:
                total = total - 0.5 * (state[name] ** 2 / (alpha**2 + sigma**2)).flatten(1).sum(1)
        return total

    def forward(self, state: State, t: Tensor, descriptor: Descriptor) -> Tangent:
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            still = self.process.still(state)
            total = self.log_density(self.process.exp(state, still), t, descriptor).sum()
            gradients = torch.autograd.grad(total, list(still.values()), create_graph=wanted)
        return {n: self.process[n].space.project(g) for n, g in zip(still, gradients, strict=True)}

    def moments(self, state: State, t: Tensor, descriptor: Descriptor) -> Moments:
        score = self(state, t, descriptor)
        noise = {n: -p.levels(t)[1] * score[n] for n, p in self.process.items()}
        return Moments(noise, {n: p.scale(t).spread.expand_as(state[n]) for n, p in self.process.items()})
