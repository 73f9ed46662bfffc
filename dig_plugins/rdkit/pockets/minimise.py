"""Poses brought to a minimum of an energy, in a pocket that stays or with atoms of it that give way; second derivatives there."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dig_core.energy import Energy
from dig_core.gradients import energy_and_gradient
from dig_core.types import Geometry

__all__ = ["Relaxed", "hessian", "relax"]

_STEP = 1e-3  # Angstrom, of numerical derivatives


class Relaxed(NamedTuple):
    """``positions`` (B, N, 3) Angstrom; energies (B,) kT ``before`` and ``after``; ``slope`` (B,) the largest force left, kT/Angstrom."""

    positions: Tensor
    before: Tensor
    after: Tensor
    slope: Tensor


def relax(positions: Tensor, energy: Energy, *, steps: int = 200, restraint: float = 0.0, mobile: Tensor | None = None) -> Relaxed:
    """Minimise structures (B, N, 3) Angstrom one by one (L-BFGS): poses, or ligand and pocket, whichever ``energy`` is of.

    ``mobile`` (N,) bool: which atoms move, all of them if None. ``restraint``: spring constant to the places at the start,
    kT/Angstrom^2; ``after`` is without its energy.
    """
    free = torch.ones(positions.shape[1], 1, dtype=torch.float64) if mobile is None else mobile.double()[:, None]
    done, before, after, slopes = [], [], [], []
    for start in positions.detach().double():
        x = start[None].clone().requires_grad_()
        mover = torch.optim.LBFGS(
            [x], max_iter=steps, tolerance_grad=0.5, tolerance_change=1e-7, history_size=20, line_search_fn="strong_wolfe"
        )

        def value(x: Tensor = x, start: Tensor = start) -> Tensor:
            u, gradient = energy_and_gradient(energy, Geometry(x.detach()))
            gap = x.detach() - start
            x.grad = free * (gradient + restraint * gap)
            return u.sum() + 0.5 * restraint * gap.square().sum()

        before.append(energy(Geometry(start[None])))
        mover.step(value)
        found, gradient = energy_and_gradient(energy, Geometry(x.detach()))
        done.append(x.detach())
        after.append(found)
        slopes.append((free * gradient).abs().amax((1, 2)))
    return Relaxed(*(torch.cat(part) for part in (done, before, after, slopes)))


def hessian(energy: Energy, positions: Tensor, atoms: Tensor) -> Tensor:
    """(3M, 3M) kT/Angstrom^2: second derivatives along ``atoms`` (M,), numbers, of a structure (N, 3), from 3M gradients beside its own."""
    place, rows = positions.double()[None], []
    here = energy_and_gradient(energy, Geometry(place))[1][0, atoms].flatten()
    for atom in atoms.tolist():
        for axis in range(3):
            moved = place.clone()
            moved[0, atom, axis] += _STEP
            rows.append((energy_and_gradient(energy, Geometry(moved))[1][0, atoms].flatten() - here) / _STEP)
    found = torch.stack(rows)
    return 0.5 * (found + found.T)
