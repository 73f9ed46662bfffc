"""Energy terms of TorchPotential: (distances, positions) -> kJ/mol, the batch as the last dimension."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Angles", "Bonds", "Born", "Nonbonded", "Torsions"]


class _Term(nn.Module):
    """Part of the energy: (x (N, 3, B) nm, r (P, B) nm) -> (B,) kJ/mol. Float tables become columns (M, 1)."""

    def __init__(self, **tables):
        super().__init__()
        for name, table in tables.items():
            tensor = torch.as_tensor(np.asarray(table))
            self.register_buffer(name, tensor.double() if tensor.is_floating_point() else tensor.long())


class Bonds(_Term):
    """k (r - r0)^2 / 2."""

    def forward(self, x: Tensor, r: Tensor) -> Tensor:
        return self.half_k @ (r.index_select(0, self.pair) - self.length).square()


class Angles(_Term):
    """k (theta - theta0)^2 / 2, theta from the triangle's three sides."""

    def forward(self, x: Tensor, r: Tensor) -> Tensor:
        a, b, c = (r.index_select(0, side) for side in self.sides)
        twice_dot = a * a + b * b - c * c
        twice_product = 2 * a * b
        # arccos has an infinite derivative at 0 and pi; with the sine clamped, atan2 has none there.
        sine2 = (twice_product - twice_dot) * (twice_product + twice_dot)
        sine = sine2.clamp(min=torch.finfo(r.dtype).tiny ** 0.25).sqrt()
        return self.half_k @ (torch.atan2(sine, twice_dot) - self.angle).square()


class Torsions(_Term):
    """k (1 + cos(n phi - phi0)); ``quads`` are the distinct torsions, ``which`` the one that a term is about."""

    def forward(self, x: Tensor, r: Tensor) -> Tensor:
        i, j, k, m = (x.index_select(0, atom) for atom in self.quads)
        first, axis, last = j - i, k - j, m - k
        normal = torch.linalg.cross(axis, last, dim=1)
        cosine = (torch.linalg.cross(first, axis, dim=1) * normal).sum(1)
        sine = axis.square().sum(1).sqrt() * (first * normal).sum(1)
        # Three atoms in line have no torsion: phi = 0 without a derivative instead of NaN.
        flat = cosine.square() + sine.square() < torch.finfo(x.dtype).tiny ** 0.5
        phi = torch.atan2(torch.where(flat, 0.0, sine), torch.where(flat, 1.0, cosine))
        return self.k @ (1 + torch.cos(self.periodicity * phi.index_select(0, self.which) - self.phase))


class Nonbonded(_Term):
    """Coulomb and Lennard-Jones, exceptions included: charge / r + repulsion / r^12 - dispersion / r^6."""

    def forward(self, x: Tensor, r: Tensor) -> Tensor:
        inverse = r.reciprocal()
        square = inverse * inverse
        sixth = square * square * square
        return self.charge @ inverse + self.repulsion @ (sixth * sixth) - self.dispersion @ sixth


class Born(_Term):
    """Generalized Born, model II of Onufriev, Bashford and Case (doi:10.1002/prot.20033), and the surface term of ACE."""

    def forward(self, x: Tensor, r: Tensor) -> Tensor:
        first, second = self.pairs
        psi = 0.5 * self.core * _Descreening.apply(r, first, second, self.core, self.scaled)
        psi2 = psi * psi
        inverse = 1 / self.core - torch.tanh(psi - 0.8 * psi2 + 4.85 * psi2 * psi) / self.radius
        radius = inverse.reciprocal()
        product = radius.index_select(0, first) * radius.index_select(0, second)
        r2 = r * r
        screened = (r2 + product * torch.exp(-0.25 * r2 / product)).rsqrt()
        return self.cross @ screened + self.self_energy @ inverse + self.surface @ (self.radius * inverse) ** 6


class _Descreening(torch.autograd.Function):
    """Descreening of each atom by all others: r (P, B) -> (N, B) 1/nm (doi:10.1021/jp961710n, equation 9).

    With the derivative written out, a gradient takes a third of the operations that automatic differentiation needs.
    """

    @staticmethod
    def forward(ctx, r: Tensor, first: Tensor, second: Tensor, core: Tensor, scaled: Tensor) -> Tensor:
        by_second, slope_first = _descreen(r, core[first], scaled[second])
        by_first, slope_second = _descreen(r, core[second], scaled[first])
        ctx.save_for_backward(r, first, second, core, scaled, slope_first, slope_second)
        return r.new_zeros(len(core), r.shape[1]).index_add_(0, first, by_second).index_add_(0, second, by_first)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        r, first, second, core, scaled, slope_first, slope_second = ctx.saved_tensors
        if torch.is_grad_enabled():
            # A second derivative is wanted: this time the slopes must know that they depend on r.
            slope_first = _descreen(r, core[first], scaled[second])[1]
            slope_second = _descreen(r, core[second], scaled[first])[1]
        slope = grad.index_select(0, first) * slope_first + grad.index_select(0, second) * slope_second
        return slope, None, None, None, None


def _descreen(r: Tensor, rho: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """What a sphere of radius s at distance r takes from the integral around an atom of radius rho, and its slope in r."""
    lower, upper = torch.maximum((r - s).abs(), rho), torch.maximum(r + s, rho)
    up, inverse = upper.reciprocal(), r.reciprocal()
    low = lower.reciprocal()
    change = up - low
    squares = 0.25 * change * (up + low)
    ratio2 = (s * inverse).square()
    logarithm = 0.5 * inverse * torch.log(lower * up)
    # The last part is zero unless the atom lies inside the sphere.
    value = (1 - ratio2) * squares * r - change + logarithm + 2 * (1 / rho - 1 / torch.maximum(s - r, rho))
    # The integral is stationary in both limits, so only r itself contributes.
    return value, (1 + ratio2) * squares - inverse * logarithm
