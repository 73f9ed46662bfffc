"""The rotations SO(3): orientations of one rigid body or of many, with space-fixed tangents."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..random import Streams
from .igso3 import angle_density, angle_step
from .rotations import (
    compose,
    half_angle,
    half_cotangent,
    inverse,
    quaternion,
    rotation_matrix,
    rotation_vector,
    vector_of,
)
from .spaces import TWO_PI

__all__ = ["SO3", "rotation_matrix", "rotation_vector"]

_LOG_VOLUME = math.log(8 * math.pi**2)


class SO3:
    """Rotations as rotation vectors (B, 3), axis times angle in radians, no longer than pi; zero is the identity. With ``bodies``
    the product of as many, (B, bodies, 3).

    Tangents are rotation vectors about axes fixed in space: exp(x, v) turns the body, as x has it, further by v, so that
    tangents turn with the system as forces do; along them, a torque over kT is a score. The coordinates jump where |x| = pi:
    networks read :func:`rotation_matrix`. Densities are relative to the uniform law (Haar measure), whose volume in units of
    the tangents is 8 pi^2 a body. Brownian motion is IGSO(3), with the variance per axis (see :mod:`.igso3`).
    """

    periodic, flat = True, False
    spectral_gap = 2.0

    def __init__(self, bodies: int | None = None):
        count = 1 if bodies is None else int(bodies)
        self.config: dict = {} if bodies is None else {"bodies": count}
        self.shape: tuple[int, ...] = (3,) if bodies is None else (count, 3)
        self.dim, self.log_volume = 3 * count, count * _LOG_VOLUME

    def project(self, v: Tensor) -> Tensor:
        return v

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return vector_of(compose(quaternion(v), quaternion(x)))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return vector_of(compose(quaternion(y), inverse(quaternion(x))))

    def basis(self) -> Tensor:
        return torch.eye(self.dim, dtype=torch.float64).unflatten(1, self.shape)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return (rotation_matrix(self.log(x, y)) @ v[..., None])[..., 0]

    def rate(self, u: Tensor, v: Tensor) -> Tensor:
        """The inverse of the exponential map's derivative: v - u x v / 2 + (1 - (a / 2) cot(a / 2)) u x (u x v) / a^2, a = |u|."""
        turned = torch.linalg.cross(u, v)
        return v - 0.5 * turned + half_cotangent(u.square().sum(-1, keepdim=True)) * torch.linalg.cross(u, turned)

    def uniform(self, rng: Streams) -> Tensor:
        # A normal law in four dimensions has no preferred direction, and unit quaternions carry the Haar measure.
        raw = rng.normal(*self.shape[:-1], 4, dtype=torch.float64)
        return vector_of(raw / raw.norm(dim=-1, keepdim=True))

    def log_normal(self, gap: Tensor, variance: Tensor) -> Tensor:
        """Summed over the turns of the exponential map, each with its Jacobian (2 sin(a / 2) / a)^2."""
        variance = variance.expand_as(gap)
        # Whole turns end at the identity whatever their axis, so the density has a pole there: it is cut off at this angle.
        tiny = torch.tensor([1e-100, 0.0, 0.0], dtype=gap.dtype, device=gap.device)
        gap = torch.where(gap.square().sum(-1, keepdim=True) < 1e-200, tiny, gap)
        square = gap.square().sum(-1, keepdim=True)
        angle = square.sqrt()
        reach = max(1, math.ceil(8.5 * float(variance.detach().max().sqrt()) / TWO_PI + 0.5)) if variance.numel() else 1
        turns = TWO_PI * torch.arange(-reach, reach + 1, dtype=gap.dtype, device=gap.device)
        whole = 1 + turns / angle
        logits = -0.5 * (gap**2 / variance).sum(-1, keepdim=True) * whole**2 + 2 * whole.abs().clamp_min(1e-100).log()
        scale = _LOG_VOLUME - 0.5 * torch.log(TWO_PI * variance).sum(-1)
        return self._together(torch.logsumexp(logits, dim=-1) + scale - 2 * (2 * half_angle(square)[1][..., 0]).log())

    def log_heat(self, gap: Tensor, variance: Tensor) -> Tensor:
        return self._together(angle_density(gap.square().sum(-1), variance.expand_as(gap)[..., 0]).log)

    def heat_score(self, gap: Tensor, variance: Tensor) -> Tensor:
        gap64 = gap.double()
        slope = angle_density(gap64.square().sum(-1, keepdim=True), variance.double().expand_as(gap)[..., :1]).slope
        return (slope * gap64).to(gap)

    def heat_step(self, raw: Tensor, sigma: Tensor) -> Tensor:
        radius = raw.double().norm(dim=-1)
        angle = angle_step(radius.flatten(), sigma.double().expand_as(raw)[..., 0].flatten()).reshape(radius.shape)
        return ((angle / radius.clamp_min(1e-300))[..., None] * raw).to(raw)

    def _together(self, log_density: Tensor) -> Tensor:
        """That of all bodies."""
        return log_density if len(self.shape) == 1 else log_density.sum(-1)
