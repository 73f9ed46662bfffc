"""Poses brought to a minimum of MMFF94 in a pocket that stays, and the harmonic law about one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dig_core.types import Geometry

from .energy import PocketEnergy

__all__ = ["Relaxed", "relax"]


class Relaxed(NamedTuple):
    """``positions`` (B, L, 3) Angstrom; energies (B,) kT ``before`` and ``after``; ``slope`` (B,) the largest force left, kT/Angstrom."""

    positions: Tensor
    before: Tensor
    after: Tensor
    slope: Tensor


def relax(ligand: Tensor, energy: PocketEnergy, *, steps: int = 200, restraint: float = 0.0) -> Relaxed:
    """Minimise poses (B, L, 3) Angstrom one by one (L-BFGS), every atom of the ligand free, the pocket as it is.

    ``restraint``: spring constant to the places at the start, kT/Angstrom^2; ``after`` is without its energy.
    """
    done, before, after, slopes = [], [], [], []
    for start in ligand.detach().double():
        x = start[None].clone().requires_grad_()
        mover = torch.optim.LBFGS(
            [x], max_iter=steps, tolerance_grad=0.5, tolerance_change=1e-7, history_size=20, line_search_fn="strong_wolfe"
        )

        def value(x: Tensor = x, start: Tensor = start) -> Tensor:
            u, gradient = energy.energy_and_gradient(Geometry(x))
            gap = x.detach() - start
            x.grad = gradient + restraint * gap
            return u.sum() + 0.5 * restraint * gap.square().sum()

        before.append(energy(Geometry(start[None])))
        mover.step(value)
        found, gradient = energy.energy_and_gradient(Geometry(x))
        done.append(x.detach())
        after.append(found)
        slopes.append(gradient.abs().amax((1, 2)))
    return Relaxed(*(torch.cat(part) for part in (done, before, after, slopes)))
