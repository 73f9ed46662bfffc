"""One list per kind of part: a new part is tested by being listed here."""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion import (
    SO3,
    Cosine,
    Diffusion,
    Euclidean,
    Geometric,
    Joint,
    Lattice,
    Linear,
    LogSNR,
    Sigmoid,
    Torus,
    ZeroCentroid,
)
from ..diffusion.schedules import Karras, Schedule
from ..diffusion.spaces import Space
from ..energy import AnalyticScore, GaussianMixture, Law, WrappedMixture
from ..sampling.solvers import SOLVERS
from .laws import HeatMixture

__all__ = ["ALL_PROCESSES", "ALL_SCHEDULES", "ALL_SOLVERS", "ALL_SPACES", "example_law", "example_model"]

_END = torch.ones(1, dtype=torch.float64)

ALL_SPACES: tuple[Space, ...] = (
    Euclidean(2),
    ZeroCentroid(3),
    Torus(2),
    Lattice([[2.8, 0.0], [1.2, 2.5]]),
    SO3(),
    SO3(2),
)

ALL_SCHEDULES: tuple[Schedule, ...] = (
    LogSNR(),
    Linear(),
    Sigmoid(),
    Sigmoid.paper(),
    Cosine(),
    Geometric(),
    Geometric(low=0.02, high=20.0),
    Karras(),
    Karras(low=0.02, high=20.0, rho=7.0),
)

ALL_PROCESSES: tuple[Diffusion, ...] = tuple(
    Diffusion(space, schedule)
    for space in ALL_SPACES
    for schedule in ALL_SCHEDULES
    if (float(schedule.alpha(_END)) == 1.0 if space.periodic else schedule.sigma(_END) > 3 * schedule.alpha(_END))
)
"""Every space with every schedule that suits it: none on a closed space may pull to zero, and noise must drown unit data elsewhere."""

ALL_SOLVERS = tuple(SOLVERS)


def example_law(space: Space) -> Law:
    """Two components of unlike weights and widths on any space: a law that nothing about is symmetric."""
    if isinstance(space, Lattice | SO3):
        towards = torch.tensor([[2.0], [-0.7]]) * torch.linspace(0.5, 1.0, space.dim, dtype=torch.float64)
        return HeatMixture(space, [0.3, 0.7], _moved(space, towards), [0.1, 0.3])
    if space.periodic:
        centres = torch.linspace(2.0, 2.8, space.dim), torch.linspace(-0.5, -1.0, space.dim)
        return WrappedMixture([0.3, 0.7], torch.stack(centres), torch.tensor([[0.1], [0.3]]).expand(2, space.dim))
    eye = torch.eye(space.dim, dtype=torch.float64)
    tilt = 0.1 * (torch.ones_like(eye) - eye) / space.dim
    means = torch.stack([torch.linspace(-1.2, -0.4, space.dim), torch.linspace(0.5, 0.9, space.dim)])
    return GaussianMixture([0.3, 0.7], means, torch.stack([0.2 * eye + tilt, 0.4 * eye - tilt]))


def example_model(**processes: Diffusion) -> AnalyticScore:
    """The exact score of example laws, one a component."""
    return AnalyticScore(Joint(**processes), {name: example_law(part.space) for name, part in processes.items()})


def _moved(space: Space, tangents: Tensor) -> Tensor:
    """(M, d) the flat points that flat tangents (M, d) at the origin lead to."""
    tangents = tangents.unflatten(1, space.shape)
    return space.exp(torch.zeros_like(tangents), tangents).flatten(1)
