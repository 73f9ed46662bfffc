"""Brownian motion on SO(3): the density of its angle, exact at every variance, and normal noise carried to it.

After variance v per axis the density relative to the uniform law is, at the angle a from the start (F. Perrin, Annales
scientifiques de l'Ecole normale superieure 45, 1, 1928),

    f(a) = sum_l (2 l + 1) exp(-l (l + 1) v / 2) sin((l + 1/2) a) / sin(a / 2),

which for small v is N(0, v I_3) in the rotation vector. Poisson's formula over the half-integers l + 1/2 gives the same sum over turns,

    f(a) = sqrt(2 pi) v^(-3/2) exp(v / 8) / sin(a / 2) * sum_k (-1)^k (a + 2 pi k) exp(-(a + 2 pi k)^2 / (2 v)).

The variance is that of one axis: E[a^2] = 3 v for small v. (Some codes leave out the 1/2 in the exponent and call sigma^2 half of v.)
Everything is written in functions of a^2 and cos(a / 2), so that derivatives exist at a = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .rotations import half_angle, half_cotangent, series

__all__ = ["Radial", "angle_density", "angle_step"]

_SPLIT = 1.0
"""The variance up to which turns are summed, and from which on waves: both need few terms there, and lose no digits."""

_WAVES = 10
_TURNS = 2
_SINH = [1 / math.factorial(2 * n + 1) for n in range(12)]
_COSH = [1 / math.factorial(2 * n) for n in range(12)]
_BEND = [(2 * n + 2) / math.factorial(2 * n + 3) for n in range(12)]

Density = Callable[[Tensor, Tensor], Tensor]

_CELLS, _SPAN = 32, 10.0
_NODES, _WEIGHTS = (torch.from_numpy(0.5 * x) for x in np.polynomial.legendre.leggauss(4))


class Radial(NamedTuple):
    """log f and its derivative by the angle over the angle, which times the rotation vector is the score; both shaped like the angle."""

    log: Tensor
    slope: Tensor


def angle_density(square: Tensor, variance: Tensor) -> Radial:
    """f at ``square`` = a^2, a in [0, pi], float64; ``variance`` broadcasts to it."""
    variance = variance.expand_as(square)
    narrow = variance < _SPLIT
    if bool(narrow.all()):
        return _by_turns(square, variance)
    if not bool(narrow.any()):
        return _by_waves(square, variance)
    one = torch.full_like(variance, _SPLIT)
    turns = _by_turns(square, torch.where(narrow, variance, one))
    waves = _by_waves(square, torch.where(narrow, one, variance))
    return Radial(*(torch.where(narrow, a, b) for a, b in zip(turns, waves, strict=True)))


def _by_waves(square: Tensor, variance: Tensor) -> Radial:
    """sin((l + 1/2) a) / sin(a / 2) = 1 + 2 sum over m = 1..l of cos(m a), Chebyshev polynomials of cos(a)."""
    cosine, sine = half_angle(square)
    tails, degree = _tails(variance), range(1, _WAVES + 1)
    x = 2 * cosine**2 - 1
    # T_m(x) = cos(m a), U_(m-1)(x) = sin(m a) / sin(a).
    first, second = [torch.ones_like(x), x], [torch.zeros_like(x), torch.ones_like(x)]
    for _ in range(2, _WAVES + 1):
        first.append(2 * x * first[-1] - first[-2])
        second.append(2 * x * second[-1] - second[-2])
    density = tails[0] + 2 * sum(tails[m] * first[m] for m in degree)
    slope = -2 * sum(m * tails[m] * second[m] for m in degree) * 2 * cosine * sine
    return Radial(density.log(), slope / density)


def _by_turns(square: Tensor, variance: Tensor) -> Radial:
    """The turns k and -k together, over the term of none: with c = 2 pi k and b = c a / v,

    2 (-1)^k exp(-c^2 / (2 v)) (cosh b - c^2 / v sinh(b) / b).
    """
    sine = half_angle(square)[1]
    total, slope = torch.ones_like(square), torch.zeros_like(square)
    for k in range(1, _TURNS):
        rate, sign = (2 * math.pi * k) / variance, 2.0 * (-1) ** k
        cosh, sinh, bend = _hyperbolic(rate**2 * square, math.pi * k * rate)
        total = total + sign * (cosh - 2 * math.pi * k * rate * sinh)
        slope = slope + sign * rate**2 * (sinh - 2 * math.pi * k * rate * bend)
    log = 0.5 * math.log(2 * math.pi) - 1.5 * variance.log() + variance / 8 - 0.5 * square / variance - sine.log() + total.log()
    return Radial(log, half_cotangent(square) - 1 / variance + slope / total)


def _hyperbolic(square: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """cosh b, sinh(b) / b and its derivative by b over b, each times exp(-shift), of ``square`` = b^2; b does not exceed the shift."""
    small = square < 1.0
    inside, scale = torch.where(small, square, 0), torch.exp(-shift)
    b = torch.where(small, torch.ones_like(square), square).sqrt()
    up, down = torch.exp(torch.where(small, 0, b) - shift), torch.exp(-b - shift)
    cosh = torch.where(small, series(_COSH, inside) * scale, 0.5 * (up + down))
    sinh = torch.where(small, series(_SINH, inside) * scale, 0.5 * (up - down) / b)
    bend = torch.where(small, series(_BEND, inside) * scale, (0.5 * (up + down) - 0.5 * (up - down) / b) / b**2)
    return cosh, sinh, bend


@torch.no_grad()
def angle_step(radius: Tensor, sigma: Tensor) -> Tensor:
    """The angle (B,) at which Brownian motion has the probability that a standard normal vector has at ``radius`` (B,), float64.

    A normal vector so shortened is Brownian motion of standard deviation ``sigma`` (B,) per axis. By quadrature of the density of
    the angle and Newton's method, from whichever end is nearer: relative error below 1e-8 out into the tails.
    """
    angle, narrow = torch.empty_like(radius), sigma.square() < _SPLIT
    for density, part in ((_turning, narrow), (_waving, ~narrow)):
        if bool(part.any()):
            angle[part] = _inverted(density, radius[part], sigma[part])
    return angle


def _inverted(density: Density, radius: Tensor, sigma: Tensor) -> Tensor:
    # One table of masses a level of noise: the bodies of a sample share it.
    levels, which = sigma.unique(return_inverse=True)
    widths = (_SPAN * levels).clamp_max(math.pi) / _CELLS
    edges = widths[:, None] * torch.arange(_CELLS, dtype=widths.dtype, device=widths.device)
    masses = _mass(density, edges, widths[:, None], levels.square()[:, None])
    below, above = masses.cumsum(1)[which], masses.flip(1).cumsum(1).flip(1)[which]
    mass, width, variance = masses[which], widths[which], sigma.square()
    half, square = torch.full_like(radius, 1.5), 0.5 * radius.square()
    want_below, want_above = torch.special.gammainc(half, square), torch.special.gammaincc(half, square)
    rising = want_below < 0.5
    wanted = torch.where(rising, want_below, want_above)
    cell = torch.where(rising, (below < wanted[:, None]).sum(1), (above >= wanted[:, None]).sum(1) - 1).clamp(0, _CELLS - 1)
    start = width * cell
    # The mass between the cell's lower edge and the angle, and the share of the cell's width that holds it.
    needed = torch.where(rising, wanted - torch.where(cell > 0, _at(below, (cell - 1).clamp_min(0)), 0), _at(above, cell) - wanted)
    share = (needed / _at(mass, cell).clamp_min(1e-300)).clamp(0, 1)
    # Near the identity the mass grows with the cube of the angle.
    share = torch.where(cell > 0, share, share ** (1 / 3))
    for _ in range(4):
        slope = width * density(start + share * width, variance)
        share = (share - (_mass(density, start, share * width, variance) - needed) / slope.clamp_min(1e-300)).clamp(0, 1)
    # The angle is the radius times sigma (1 - sigma^2 / 24 + ..).
    return torch.where(sigma < 1e-3, sigma * radius * (1 - variance / 24), start + share * width)


def _at(table: Tensor, index: Tensor) -> Tensor:
    return table.gather(1, index[:, None])[:, 0]


def _mass(density: Density, start: Tensor, width: Tensor, variance: Tensor) -> Tensor:
    """The probability of angles from ``start`` to ``start + width``, by Gauss's formula."""
    # Nodes lead: what differs from sample to sample stays last, where products are quick.
    nodes, weights = (x.to(width).reshape(-1, *[1] * start.dim()) for x in (_NODES, _WEIGHTS))
    return (weights * width * density(start + width * (0.5 + nodes), variance)).sum(0)


def _turning(angle: Tensor, variance: Tensor) -> Tensor:
    """The probability density of the angle on [0, pi], f(a) (1 - cos a) / pi, quickly, of variances up to the split."""
    turns = torch.zeros_like(angle)
    for k in range(1 - _TURNS, _TURNS):
        turned = angle + 2 * math.pi * k
        turns += (-1) ** k * turned * torch.exp(-0.5 * turned.square() / variance)
    return turns * torch.sin(0.5 * angle) * (math.sqrt(8 / math.pi) * variance**-1.5 * torch.exp(variance / 8))


def _waving(angle: Tensor, variance: Tensor) -> Tensor:
    """The same from the split on."""
    weights, x = _tails(variance), 2 * torch.cos(angle)
    last, this = torch.ones_like(x), 0.5 * x
    waves = weights[0] + 2 * weights[1] * this
    for weight in weights[2:]:
        last, this = this, x * this - last
        waves += (2 * weight) * this
    return 2 / math.pi * torch.sin(0.5 * angle).square() * waves


def _tails(variance: Tensor) -> list[Tensor]:
    """Weights of cos(m a), m = 0, 1, ..: f is the sum of them, each but the first doubled."""
    weights = [(2 * n + 1) * torch.exp(-0.5 * n * (n + 1) * variance) for n in range(_WAVES + 1)]
    return list(torch.stack(weights).flip(0).cumsum(0).flip(0))
