"""Adsorbates on a slab, exact whatever the network: partition functions by quadrature, populations of sites, and orientations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dig_core.dig import DiG
from dig_core.montecarlo.chain import MonteCarlo
from dig_core.nn import AdsorptionGraphormer
from dig_core.score import NoiseScore
from dig_core.system.descriptor import Descriptor
from dig_core.system.surface import frame_of, guest_of
from dig_core.testing import check_proposal
from dig_core.types import Geometry
from tests.core.adsorbates import DOUBLE, awake, system

SMALL = {"width": 8, "heads": 1, "layers": 1, "encoder": 1, "basis": 6, "channels": 3, "cutoff": 4.0}
STIFF, UPRIGHT, EXTENT = 1.5, 1.0, 128


class EggBox:
    """u of an atom or molecule: three waves in the plane that repeat with the slab's own cell, a spring along the normal, and
    ``UPRIGHT`` (1 - cos) of the angle between the normal and the second atom. Sites are not alike: one deep, one shallow."""

    def __init__(self, descriptor: Descriptor):
        self.frame, self.guest = frame_of(descriptor), guest_of(descriptor)
        self.waves = torch.tensor([[1.0, 0], [0, 1], [1, -1]], dtype=DOUBLE)
        self.heights, self.phases = torch.tensor([-0.8, -0.5, 0.6], dtype=DOUBLE), torch.tensor([0.3, -0.4, 1.0], dtype=DOUBLE)

    def across(self, plane: Tensor) -> Tensor:
        """(...,) of in-plane places (..., 2) Angstrom."""
        fraction = plane @ torch.linalg.inv(self.frame.vectors)
        return torch.cos(2 * math.pi * fraction @ self.waves.T + self.phases) @ self.heights

    def __call__(self, geometry: Geometry) -> Tensor:
        first = geometry.positions[:, self.guest[0]]
        rise = first @ self.frame.normal - self.frame.top - 1.3
        u = self.across(first @ self.frame.axes.T) + 0.5 * STIFF * rise**2
        if len(self.guest) == 1:
            return u
        arm = geometry.positions[:, self.guest[1]] - first
        return u + UPRIGHT * (1 - arm @ self.frame.normal / arm.norm(dim=-1))

    def grid(self) -> Tensor:
        """(EXTENT^2, 2) Angstrom, even over the cell: a sum over it is exact for what is periodic and smooth."""
        steps = torch.arange(EXTENT, dtype=DOUBLE) / EXTENT
        return torch.cartesian_prod(steps, steps) @ self.frame.vectors

    def log_z(self) -> float:
        """By quadrature in the plane and in closed form elsewhere: an axis has 4 pi to point, a body 2 pi more to turn."""
        area = float(torch.linalg.det(self.frame.vectors).abs())
        z = area * float((-self.across(self.grid())).exp().mean()) * math.sqrt(2 * math.pi / STIFF)
        if len(self.guest) > 1:
            z *= 2 * math.pi * (1 - math.exp(-2 * UPRIGHT)) / UPRIGHT * (2 * math.pi if len(self.guest) > 2 else 1)
        return math.log(z)

    def left(self, plane: Tensor) -> Tensor:
        """(...,) whether a place is at the deep site's half of the cell."""
        return torch.cos(2 * math.pi * (plane @ torch.linalg.inv(self.frame.vectors))[..., 0] + 0.3) > 0

    def population(self) -> float:
        weight = (-self.across(self.grid())).exp()
        return float(weight[self.left(self.grid())].sum() / weight.sum())


def model(name: str, kind: str) -> DiG:
    """An untrained network, or one whose every answer is wrong."""
    descriptor = system(name)
    network = AdsorptionGraphormer(**SMALL) if kind == "untrained" else awake(strength=0.1, **SMALL)
    return DiG(NoiseScore(network, network.process(descriptor)).eval().requires_grad_(False), network.coordinates, descriptor)


@pytest.mark.parametrize("name", ["O", "CO", "N2H"])
@pytest.mark.parametrize("kind", ["untrained", "sabotaged"])
def test_path_weights_average_to_the_partition_function(name, kind):
    dig = model(name, kind)
    energy = EggBox(dig.descriptor)
    assert 0.1 < float(energy.across(energy.grid()).std()) < 1.5
    check_proposal(dig.proposal(steps=3), energy, energy.log_z(), n=1500, limit=3.0)


@pytest.mark.parametrize("name", ["O", "CO"])
@pytest.mark.parametrize("kind", ["untrained", "sabotaged"])
def test_monte_carlo_gives_the_populations_of_the_sites(name, kind):
    dig = model(name, kind)
    energy = EggBox(dig.descriptor)
    chain = MonteCarlo(dig.proposal(steps=3), energy, dig.descriptor.reference, seed=3, batch=500)
    blocks = [chain.block(100) for _ in range(20)]
    visited = torch.from_numpy(np.concatenate([positions for positions, _ in blocks]))
    first = visited[:, energy.guest[0]]
    found = [energy.left(first @ energy.frame.axes.T).double()]
    wanted = [energy.population()]
    assert 0.55 < wanted[0] < 0.95
    if name == "CO":
        arm = visited[:, energy.guest[1]] - first
        found.append(arm @ energy.frame.normal / arm.norm(dim=-1))
        wanted.append(1 / math.tanh(UPRIGHT) - 1 / UPRIGHT)
    for values, exact in zip(found, wanted, strict=True):
        means = values.reshape(20, -1).mean(1)
        assert abs(float(means.mean()) - exact) < 3 * float(means.std()) / math.sqrt(20), (float(means.mean()), exact)
    assert np.mean([records.accepted.mean() for _, records in blocks]) > 0.05
