"""Noise schedules: how much signal alpha(t) and noise sigma(t) a component holds at time t in [0, 1]; t = 0 is clean data."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

__all__ = ["Cosine", "Geometric", "Karras", "Linear", "LogSNR", "Schedule", "Sigmoid"]


class Schedule(Protocol):
    """``alpha``, ``sigma``: signal and noise level; ``drift`` = d log alpha / dt; ``diffusion`` = g^2, the noise rate of the SDE.

    Variance-preserving schedules have alpha^2 + sigma^2 = 1, drift = -beta/2 and diffusion = beta (article, eq. 1).
    ``config`` rebuilds an equal object.
    """

    config: dict

    def alpha(self, t: Tensor) -> Tensor: ...
    def sigma(self, t: Tensor) -> Tensor: ...
    def drift(self, t: Tensor) -> Tensor: ...
    def diffusion(self, t: Tensor) -> Tensor: ...


class _VariancePreserving:
    """Everything from two functions: the integral of beta up to t, and beta(t)."""

    def integral(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def beta(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self.integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self.integral(t)))

    def drift(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.beta(t)


class Linear(_VariancePreserving):
    """beta rises linearly (Ho et al., arXiv:2006.11239, in continuous time: Song et al., arXiv:2011.13456)."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        self.config = {"beta_min": beta_min, "beta_max": beta_max}
        self.beta_min, self.beta_max = beta_min, beta_max

    def integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t


class Sigmoid(_VariancePreserving):
    """The article's schedule: beta = total * sigmoid(12 (t - 1/2)) / (1/2).

    ``total`` is the integral of beta over [0, 1]; the article's is 5, which leaves alpha(1) = 0.08, so the prior of wide
    coordinates is off. The default 10 leaves 0.007. ``Sigmoid.paper()`` is the article's.
    """

    def __init__(self, total: float = 10.0):
        self.config = {"total": total}
        self.total = total

    @classmethod
    def paper(cls) -> Sigmoid:
        return cls(total=5.0)

    def integral(self, t: Tensor) -> Tensor:
        return self.total / 6 * (softplus(12 * t - 6) - softplus(torch.full_like(t, -6.0)))

    def beta(self, t: Tensor) -> Tensor:
        return 2 * self.total * torch.sigmoid(12 * t - 6)


class Cosine(_VariancePreserving):
    """alpha = cos(pi/2 (t + s)/(1 + s)) / cos(pi/2 s/(1 + s)), cut at ``t_max`` of its arc (Nichol and Dhariwal, arXiv:2102.09672)."""

    def __init__(self, offset: float = 0.008, t_max: float = 0.995):
        self.config = {"offset": offset, "t_max": t_max}
        self.offset, self.t_max = offset, t_max

    def _angle(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * (t * self.t_max + self.offset) / (1 + self.offset)

    def integral(self, t: Tensor) -> Tensor:
        # cos(a + b) / cos(a) = 1 - (2 sin^2(b/2) + tan(a) sin(b)): exactly one at t = 0 on every processor, and no digits lost near it.
        start, turned = 0.5 * math.pi * self.offset / (1 + self.offset), 0.5 * math.pi * self.t_max / (1 + self.offset) * t
        return -2 * torch.log1p(-(2 * torch.sin(turned / 2) ** 2 + math.tan(start) * torch.sin(turned)))

    def beta(self, t: Tensor) -> Tensor:
        return math.pi * self.t_max / (1 + self.offset) * torch.tan(self._angle(t))


class LogSNR(_VariancePreserving):
    """log(alpha^2 / sigma^2) falls linearly from ``high`` at t -> 0+ to ``low`` at t = 1; t = 0 itself is clean data.

    A uniform time then weighs every octave of noise alike, which is the likelihood weighting of the noise-prediction loss
    (Kingma et al., arXiv:2107.00630).
    """

    def __init__(self, high: float = 6.0, low: float = -6.0):
        self.config = {"high": high, "low": low}
        self.high, self.low = high, low

    def _log_snr(self, t: Tensor) -> Tensor:
        return self.high + (self.low - self.high) * t

    def integral(self, t: Tensor) -> Tensor:
        return torch.where(t > 0, -logsigmoid(self._log_snr(t)), torch.zeros_like(t))

    def beta(self, t: Tensor) -> Tensor:
        return (self.high - self.low) * torch.sigmoid(-self._log_snr(t))


class Karras:
    """Variance exploding: alpha = 1 and sigma^(1/rho) rises linearly from ``low`` at t -> 0+ to ``high`` at t = 1; t = 0 is clean data.

    rho = 7 is the choice of Karras et al., arXiv:2206.00364, and rho -> infinity the geometric schedule. On a torus most
    steps belong where sigma is about a radian, hence the small default; at ``high`` = 2.5 rad the wrapped normal is
    uniform to 9 % at most, 3.5 rad to 0.5 %, and the rest is in the weights.
    """

    def __init__(self, low: float = 0.05, high: float = 2.5, rho: float = 2.0):
        self.config = {"low": low, "high": high, "rho": rho}
        self.low, self.high, self.rho = low, high, rho

    def _root(self, t: Tensor) -> Tensor:
        return self.low ** (1 / self.rho) * (1 - t) + self.high ** (1 / self.rho) * t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.where(t > 0, self._root(t) ** self.rho, torch.zeros_like(t))

    def drift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        slope = self.high ** (1 / self.rho) - self.low ** (1 / self.rho)
        return 2 * self.rho * slope * self._root(t) ** (2 * self.rho - 1)


class Geometric:
    """Variance exploding: alpha = 1 and sigma rises geometrically from ``low`` at t -> 0+ to ``high`` at t = 1; t = 0 is clean data.

    On the torus ``high`` of half a turn and more forgets the start: at 3.5 rad the wrapped normal is uniform to 0.5 %.
    """

    def __init__(self, low: float = 0.02, high: float = 3.5):
        self.config = {"low": low, "high": high}
        self.low, self.high = low, high

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.where(t > 0, self.low * torch.exp(t * math.log(self.high / self.low)), torch.zeros_like(t))

    def drift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return 2 * math.log(self.high / self.low) * (self.low * torch.exp(t * math.log(self.high / self.low))) ** 2
