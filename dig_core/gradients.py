"""Energies and gradients of other programs as torch functions, differentiable once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .energy import Energy
from .errors import UnsupportedError
from .types import Geometry

__all__ = ["energy_and_gradient", "with_gradients"]

Evaluate = Callable[[Geometry, bool], tuple[Tensor, Tensor, Tensor | None]]


def with_gradients(evaluate: Evaluate, geometry: Geometry, why: str) -> Tensor:
    """u (B,) of structures, with the gradients that a program has computed beside it.

    ``evaluate(geometry, strain)`` returns u (B,), its gradient (B, N, 3) and, where ``strain`` asks for it, that along the cell (B, 3, 3),
    per Angstrom. Whatever a loss makes of u = +inf, a failed structure has no gradient. Differentiating a gradient raises UnsupportedError
    with the reason ``why``.
    """
    return _Evaluate.apply(geometry.positions, geometry.cell, evaluate, why)


def energy_and_gradient(energy: Energy, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """u (B,) and du/dx (B, N, 3) float64, 1/Angstrom, of any energy; zero where u is not finite.

    By the energy's own method of this name where it has one, which costs less than autograd.
    """
    if hasattr(energy, "energy_and_gradient"):
        return energy.energy_and_gradient(geometry)
    leaf = geometry.positions.detach().double().requires_grad_()
    with torch.enable_grad():
        u = energy(geometry._replace(positions=leaf))
        (gradient,) = torch.autograd.grad(u[u.isfinite()].sum(), leaf)
    return u.detach().double(), gradient


class _Evaluate(torch.autograd.Function):
    """Positions (B, N, 3) and cells (B, 3, 3) or None -> u (B,)."""

    @staticmethod
    def forward(ctx, positions: Tensor, cell: Tensor | None, evaluate: Evaluate, why: str) -> Tensor:
        u, dx, dcell = evaluate(Geometry(positions, cell), ctx.needs_input_grad[1])
        ctx.why = why
        ctx.save_for_backward(positions, cell, dx.to(positions), None if dcell is None else dcell.to(positions), u.isfinite().to(dx.device))
        return u.to(positions.device)

    @staticmethod
    def backward(ctx, grad_u: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        positions, cell, dx, dcell, ok = ctx.saved_tensors
        scale = torch.where(ok, grad_u, 0.0).to(dx.dtype)[:, None, None]
        moved, strained = ctx.needs_input_grad[:2]
        return (
            _NoFurther.apply(positions, scale * dx, ctx.why) if moved else None,
            _NoFurther.apply(cell, scale * dcell, ctx.why) if strained else None, None, None,
        )  # fmt: skip


class _NoFurther(torch.autograd.Function):
    """The gradient as it is; differentiating it raises.

    torch's ``once_differentiable`` would take it for a constant where the incoming gradient is one, and a loss on forces
    would silently lose its derivative.
    """

    @staticmethod
    def forward(ctx, where: Tensor, gradient: Tensor, why: str) -> Tensor:
        ctx.why = why
        return gradient.clone()

    @staticmethod
    def backward(ctx, _):
        raise UnsupportedError(ctx.why)
