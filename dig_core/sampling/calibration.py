"""How well properties of denoised states tell those of clean ones, measured once for each noise level."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Calibration", "regression"]

_FEWEST = 8
"""Structures without which nothing is learned of a property."""
_SLOPE_WIDTH = 0.5


class Calibration(NamedTuple):
    """At noise time t a property is taken to be N(offset + slope f, slope^2 S + excess), f read off the denoised state, S its variance
    to first order. ``times`` (T,) from 0 to 1; ``offset``, ``slope`` and ``excess`` (T, K) for K properties. Linear in between.

    For normal data and linear properties 0, 1 and 0. Elsewhere the average of structures is no structure: what is read off it is off,
    and tells less, the more noise there is.
    """

    times: Tensor
    offset: Tensor
    slope: Tensor
    excess: Tensor

    def at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Offset, slope and excess at times (B,), (B, K) each."""
        t = t.double().reshape(-1).contiguous()
        later = torch.searchsorted(self.times, t).clamp(1, len(self.times) - 1)
        share = ((t - self.times[later - 1]) / (self.times[later] - self.times[later - 1]))[:, None]
        offset, slope, excess = ((1 - share) * x[later - 1] + share * x[later] for x in (self.offset, self.slope, self.excess))
        return offset, slope, excess


def regression(clean: Tensor, value: Tensor, variance: Tensor) -> tuple[float, float, float]:
    """Offset, slope >= 0 and excess >= 0 of (n,) ``clean`` properties given ``value`` (n,), which has ``variance`` (n,) to first order.

    Structures of which one is not finite are left out; of fewer than eight nothing is learned: 0, 1, 0. The slope is expected to be
    1 +- 0.5, which it stays where denoised states are all alike and their differences say nothing of it.
    """
    known = clean.isfinite() & value.isfinite() & variance.isfinite()
    if int(known.sum()) < _FEWEST:
        return 0.0, 1.0, 0.0
    y, x = clean[known].double(), value[known].double()
    x_off, y_off = x - x.mean(), y - y.mean()
    information, expected = float(x_off.square().sum() / y_off.square().mean().clamp_min(1e-300)), 1 / _SLOPE_WIDTH**2
    seen = float((x_off * y_off).sum() / y_off.square().mean().clamp_min(1e-300))
    slope = max(0.0, (seen + expected) / (information + expected))
    offset = float(y.mean() - slope * x.mean())
    left = float((y - offset - slope * x).square().mean())
    return offset, slope, max(0.0, left - slope**2 * float(variance[known].mean()))
