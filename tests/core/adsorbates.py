"""Small slabs with something on them, and an adsorption network that is not silent: shared by the tests of adsorbates."""

from __future__ import annotations

import torch
from torch import Tensor

from dig_core.nn import AdsorptionGraphormer
from dig_core.random import Streams
from dig_core.system.descriptor import Descriptor
from dig_core.system.surface import surface
from dig_core.types import State

DOUBLE = torch.float64

ADSORBATES = {
    "O": ([8], [[0.0, 0.0, 1.2]]),
    "CO": ([6, 8], [[0.3, 0.2, 1.4], [0.4, 0.4, 2.5]]),
    "CO2": ([6, 8, 8], [[0.3, 0.2, 2.0], [1.1, 0.35, 2.2], [-0.5, 0.05, 1.8]]),
    "N2H": ([7, 7, 1], [[0.3, 0.2, 1.4], [0.6, 0.1, 2.6], [1.4, 0.5, 2.9]]),
}
"""Numbers and places (Angstrom; the height is over the surface), the atom that binds first."""


def cell_of(a: float = 2.8, repeat=((1, 0), (0, 1)), height: float = 18.0) -> Tensor:
    """(3, 3) a hexagonal surface's cell of ``repeat`` times its vectors."""
    plane = torch.tensor([[a, 0.0], [0.5 * a, 0.5 * 3**0.5 * a]], dtype=DOUBLE)
    cell = torch.zeros(3, 3, dtype=DOUBLE)
    cell[:2, :2] = torch.tensor(repeat, dtype=DOUBLE) @ plane
    cell[2, 2] = height
    return cell


def slab_of(a: float = 2.8, repeat=((1, 0), (0, 1))) -> tuple[list[int], Tensor, Tensor]:
    """Numbers, positions (S, 3) and cell of a crooked two-layer alloy, whatever the vectors that describe it."""
    first, basis = cell_of(a), torch.tensor([[0.0, 0.0, 5.0], [1.3, 0.9, 7.2]], dtype=DOUBLE)
    cell, steps = cell_of(a, repeat), torch.arange(-8.0, 9.0, dtype=DOUBLE)
    shifts = torch.cartesian_prod(steps, steps) @ first[:2]
    # Those in the cell, a hair off its edges.
    fraction = (shifts + 1e-6) @ torch.linalg.pinv(cell[:2])
    shifts = shifts[((fraction > 0) & (fraction < 1)).all(1)]
    return [46, 29] * len(shifts), (shifts[:, None] + basis).reshape(-1, 3), cell


def system(name: str = "CO", *, free=(), repeat=((1, 0), (0, 1)), moved=lambda x: x, **options) -> Descriptor:
    """An adsorbate on the slab; ``moved`` acts on all Cartesian vectors (.., 3), the cell's as well."""
    numbers, positions, cell = slab_of(repeat=repeat)
    mine, offsets = ADSORBATES[name]
    guest = torch.tensor(offsets, dtype=DOUBLE) + torch.tensor([0.0, 0.0, 7.2], dtype=DOUBLE)
    n = len(numbers)
    indices = range(n, n + len(mine))
    return surface([*numbers, *mine], moved(torch.cat([positions, guest])), moved(cell), indices, free=free, **options)


def states(network: AdsorptionGraphormer, descriptor: Descriptor, n: int = 6, seed: int = 0) -> State:
    """``n`` states from the prior, heights within reach of the surface."""
    process = network.process(descriptor)
    state = process.prior(process.empty(n, DOUBLE)).sample(Streams(seed, range(n)))
    return {name: 0.5 * x if name == "height" else 0.3 * x if name == "surface" else x for name, x in state.items()}


def awake(seed: int = 1, strength: float = 0.2, **options) -> AdsorptionGraphormer:
    """A small network with every weight moved by ``strength``: what is zero before training is not."""
    network = AdsorptionGraphormer(**{"width": 16, "heads": 2, "basis": 8, "channels": 4, "seed": seed} | options)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(strength * torch.randn(parameter.shape, generator=rng))
    return network
