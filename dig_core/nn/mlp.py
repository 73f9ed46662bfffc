"""A residual perceptron over the whole state: the fast network for one system."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from ..system.descriptor import Descriptor
from ..types import State, Tangent

__all__ = ["ResidualMLP", "ScalarMLP"]

_TIME_WIDTH = 64


class ResidualMLP(nn.Module):
    """Two numbers a coordinate from the state of one molecule: how its noise and log-variance depart from the process's own guess.

    ``sizes`` maps component names to their number of coordinates, ``periodic`` names the components that are angles: they
    enter as sines and cosines of the first ``harmonics`` multiples. ``precision`` is the number format of the
    matrix products; weights, inputs and outputs stay float32. An untrained network is silent. After ``.double()`` all of
    it computes in float64, a reference to measure rounding against.
    """

    def __init__(
        self,
        sizes: dict[str, int],
        periodic: list[str],
        width: int = 384,
        blocks: int = 4,
        harmonics: int = 3,
        frequencies: int = 16,
        precision: str = "float32",
        seed: int = 0,
    ):
        super().__init__()
        self.config: dict[str, Any] = {
            "sizes": dict(sizes), "periodic": list(periodic), "width": width, "blocks": blocks, "harmonics": harmonics,
            "frequencies": frequencies, "precision": precision,
        }  # fmt: skip
        self.sizes, self.periodic, self.harmonics = dict(sizes), set(periodic), harmonics
        self.precision = getattr(torch, precision)
        inputs = sum(2 * harmonics * n if name in self.periodic else n for name, n in sizes.items())
        outputs = sum(sizes.values())
        rng = torch.Generator().manual_seed(seed)
        self.frequencies = frequencies
        # A narrow time embedding: one wide as the network would cost as much as all of its blocks.
        self.time = nn.ParameterList([_matrix(_TIME_WIDTH, 2 * frequencies, rng), _zeros(_TIME_WIDTH)])
        self.film = _zeros(blocks * 2 * width, _TIME_WIDTH)
        self.enter, self.enter_bias = _matrix(width, inputs, rng), _zeros(width)
        self.up = nn.ParameterList([_matrix(width, width, rng) for _ in range(blocks)])
        self.down = nn.ParameterList([_matrix(width, width, rng, gain=0.1) for _ in range(blocks)])
        self.leave, self.leave_bias = _zeros(2 * outputs, width), _zeros(2 * outputs)

    def forward(self, state: State, t: Tensor, descriptor: Descriptor | None = None) -> tuple[Tangent, Tangent]:
        """(noise departure, log-variance departure), each (B, n) a component; ``t`` (B,) or (1,)."""
        out = self._out(self._hidden(state, t)).split(list(self.sizes.values()) * 2, dim=1)
        names = list(self.sizes)
        return dict(zip(names, out[: len(names)], strict=True)), dict(zip(names, out[len(names) :], strict=True))

    def _hidden(self, state: State, t: Tensor) -> Tensor:
        """(B, width) features of the state at its time, in the format of the products."""
        precision = self.precision if self.enter.dtype == torch.float32 else self.enter.dtype
        features = torch.cat(self._features(state), dim=1)
        hidden = linear(features.to(precision), self.enter.to(precision), self.enter_bias.to(precision))
        for (gain, shift), up, down in zip(self._modulation(t, precision), self.up, self.down, strict=True):
            # One time or many, the arithmetic is the same: Monte Carlo compares densities of single and batched evaluations.
            inner = torch.addcmul(shift, linear(hidden, up.to(precision)), gain)
            hidden = hidden + linear(gelu(inner), down.to(precision))
        return hidden

    def _out(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self.leave.to(hidden.dtype), self.leave_bias.to(hidden.dtype)).to(self.leave.dtype)

    def _features(self, state: State) -> list[Tensor]:
        features = []
        for name in self.sizes:
            x = state[name].to(self.enter.dtype)
            if name not in self.periodic:
                features.append(x)
                continue
            for k in range(1, self.harmonics + 1):
                features += [torch.sin(k * x), torch.cos(k * x)]
        return features

    def _modulation(self, t: Tensor, precision: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Gain and shift (B or 1, width) a block."""
        angles = t.to(self.enter.dtype)[:, None] * torch.arange(1, self.frequencies + 1, device=t.device) * (0.5 * math.pi)
        embedded = gelu(linear(torch.cat([angles.sin(), angles.cos()], dim=1), *self.time))
        both = linear(embedded, self.film).to(precision).chunk(2 * len(self.up), dim=1)
        return [(1 + gain, shift) for gain, shift in zip(both[::2], both[1::2], strict=True)]


class ScalarMLP(ResidualMLP):
    """The same network with one number out: the ``potential`` of an :class:`~dig_core.score.EnergyScore`, options as there."""

    def __init__(self, sizes: dict[str, int], periodic: list[str], **options):
        super().__init__(sizes, periodic, **options)
        width = self.config["width"]
        self.leave, self.leave_bias = _zeros(1, width), _zeros(1)

    def forward(self, state: State, t: Tensor, descriptor: Descriptor | None = None) -> Tensor:  # type: ignore[override]
        """(B,) potential; ``t`` (B,) or (1,)."""
        return self._out(self._hidden(state, t))[:, 0]


def _matrix(rows: int, columns: int, rng: torch.Generator, gain: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns, generator=rng) * gain / math.sqrt(columns))


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))
