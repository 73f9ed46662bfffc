"""The band gap of a carbon crystal by a small network on invariants of the atoms' surroundings; differentiable, a judge or a guide."""

from __future__ import annotations

import itertools
import json
import math
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dig_core.errors import CheckpointError
from dig_core.files import understood
from dig_core.nn.embed import seeded
from dig_core.nn.geometry import SOFTENING
from dig_core.tensors import from_bytes, write_tensors
from dig_core.types import Geometry

from .dftb import check_carbon
from .neighbours import pairs, sound

__all__ = ["GapNetwork", "LearnedGap", "Surroundings", "surroundings"]

_REACH, _BOND = 5.0, 2.4  # Angstrom: surroundings of an atom, and the neighbours it hears from
_RADIAL, _ORDER = 8, 4
_CLOSEST = 0.2  # Angstrom, below which two atoms overlap and nothing was ever learned
_CENTRES = torch.linspace(1.0, 4.5, _RADIAL)


class Surroundings(NamedTuple):
    """What the network reads of A atoms: ``invariants`` (A, D), ``structure`` (A,), and of the bonds to and from which atoms,
    ``to``, ``of`` (E,), with their ``shape`` (E, R), a basis of the length that vanishes at the cutoff."""

    invariants: Tensor
    structure: Tensor
    to: Tensor
    of: Tensor
    shape: Tensor


def surroundings(geometry: Geometry) -> tuple[Surroundings, Tensor]:
    """Of sound crystals (B, N, 3), (B, 3, 3) Angstrom, and (B,) the square of the shortest distance.

    Invariants: inner products of the moments of the neighbours' density, radial functions times powers of the direction up to
    the fourth, which hold the angles (power spectrum, Bartok et al., doi:10.1103/PhysRevB.87.184115).
    """
    positions, cell = geometry.positions, geometry.cell
    b, n = positions.shape[:2]
    found = pairs(positions, cell, _REACH)
    vectors = found.vectors(positions, cell)
    square = vectors.square().sum(-1)
    nearest = torch.full((b,), torch.inf).to(square).scatter_reduce(0, found.structure, square.detach(), "amin")
    distance = (square + SOFTENING).sqrt()
    shape = torch.exp(-((distance[:, None] - _CENTRES.to(distance)) / 0.5).square()) * _envelope(distance / _REACH)[:, None]
    powers, order = _powers(vectors / distance[:, None])
    centre = found.structure * n + found.first
    moments = torch.zeros(b * n, _RADIAL * powers.shape[1]).to(positions)
    moments = moments.index_add(0, centre, (shape[:, :, None] * powers[:, None]).flatten(1)).view(b * n, _RADIAL, -1)
    upper = torch.triu_indices(_RADIAL, _RADIAL, device=cell.device)
    spectrum = []
    for k in range(_ORDER + 1):
        part = moments[:, :, order == k]
        spectrum.append((part @ part.mT)[:, upper[0], upper[1]])
    bond = distance.detach() < _BOND
    near = distance[bond]
    near_shape = torch.exp(-((near[:, None] - _CENTRES.to(near) * (_BOND / _REACH)) / 0.25).square()) * _envelope(near / _BOND)[:, None]
    structure = torch.arange(b, device=cell.device).repeat_interleave(n)
    other = found.structure * n + found.second
    return Surroundings(torch.cat(spectrum, 1), structure, centre[bond], other[bond], near_shape), nearest


class GapNetwork(nn.Module):
    """Surroundings -> (B,) eV: each atom a perceptron of its invariants, ``rounds`` of messages along bonds, and pooling.

    Atoms are pooled by weights that the network chooses, feature by feature, which add up to one: a gap is set by few of them,
    and is the same in a supercell.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int = 64, rounds: int = 2, seed: int = 0):
        super().__init__()
        self.config = {"width": width, "rounds": rounds}
        d = (_ORDER + 1) * _RADIAL * (_RADIAL + 1) // 2
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("scale", torch.ones(d))
        with seeded(seed):
            self.enter = nn.Sequential(nn.Linear(d, width), nn.SiLU(), nn.Linear(width, width))
            self.filters = nn.ModuleList(nn.Linear(_RADIAL, width, bias=False) for _ in range(rounds))
            self.updates = nn.ModuleList(
                nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(rounds)
            )
            self.pool = nn.Linear(width, 2 * width)
            self.leave = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, seen: Surroundings, structures: int) -> Tensor:
        # The logarithmic tail keeps atoms that are too close within what was learned.
        h = self.enter(((seen.invariants - self.mean) * self.scale).asinh())
        for turn, update in zip(self.filters, self.updates, strict=True):
            heard = torch.zeros_like(h).index_add(0, seen.to, turn(seen.shape) * h[seen.of])
            h = h + update(torch.cat([h, heard], 1))
        logits, values = self.pool(h).chunk(2, dim=1)
        rows = seen.structure[:, None].expand_as(h)
        top = torch.full((structures, h.shape[1]), -torch.inf).to(h).scatter_reduce(0, rows, logits.detach(), "amax")
        weights = torch.exp(logits - top[seen.structure])
        total = torch.zeros(structures, h.shape[1]).to(h)
        chosen = total.index_add(0, seen.structure, weights * values) / total.index_add(0, seen.structure, weights)
        count = torch.bincount(seen.structure, minlength=structures)[:, None]
        return self.leave(torch.cat([chosen, total.index_add(0, seen.structure, h) / count], 1))[:, 0]


class LearnedGap(nn.Module):
    """Signed band gap in eV by a trained :class:`GapNetwork`, with the ``card`` that says how it was trained and how far it is off, and the
    ``range`` of gaps that it was trained on, eV.

    Every image within 5 Angstrom counts. ``LearnedGap.load()`` is the one that ships.
    """

    def __init__(self, network: GapNetwork, card: dict | None = None):
        super().__init__()
        self.network, self.card = network, dict(card or {})
        self.range = tuple(self.card.get("range", (-math.inf, math.inf)))

    def forward(self, geometry: Geometry, numbers: Tensor | None = None) -> Tensor:
        """(B,) eV, float64, of crystals (B, N, 3), (B, 3, 3) Angstrom. Differentiable.

        NaN for numbers that are not finite, cells without volume, and atoms closer than 0.2 Angstrom. Raises
        UnsupportedError if ``numbers`` holds anything but carbon.
        """
        check_carbon(geometry, numbers)
        positions, cell = geometry.positions.double(), geometry.cell.double()
        gaps = positions.new_full((len(positions),), torch.nan)
        rows = sound(positions, cell, _REACH).nonzero()[:, 0]
        if not len(rows):
            return gaps
        seen, nearest = surroundings(Geometry(positions[rows], cell[rows]))
        kind = self.network.mean.dtype
        seen = seen._replace(invariants=seen.invariants.to(kind), shape=seen.shape.to(kind))
        known = nearest > _CLOSEST**2
        return gaps.index_copy(0, rows[known], self.network(seen, len(rows))[known].double())

    def save(self, path: str | Path) -> None:
        """Write network and card to one safetensors file."""
        header = json.dumps({"config": self.network.config, "card": self.card})
        write_tensors(Path(path), self.network.state_dict(), gap=header)

    @classmethod
    def load(cls, path: str | Path | None = None) -> LearnedGap:
        """The one in ``path``, or the one that ships. Raises CheckpointError for a file that is missing or of another kind."""
        if path is None:
            with resources.as_file(resources.files(__package__) / "carbon-gap.safetensors") as shipped:
                return cls.load(shipped)
        if not Path(path).is_file():
            raise CheckpointError(f"{path} is no gap network: expected a file that LearnedGap.save has written.")
        with understood(path, "is no gap network", "expected a file that LearnedGap.save has written"):
            tensors, about = from_bytes(Path(path).read_bytes(), path)
            header = json.loads(about["gap"])
            network = GapNetwork(**header["config"])
            network.load_state_dict(tensors)
            return cls(network.eval().requires_grad_(False), header["card"])


def _envelope(x: Tensor) -> Tensor:
    """1 at contact, 0 from x = 1 on, with two derivatives that vanish there."""
    return (1 - x.clamp(max=1.0).square()) ** 3


def _powers(unit: Tensor) -> tuple[Tensor, Tensor]:
    """(E, m) products of components of ``unit`` up to the highest order, and the order of each; inner products of those
    of order k are the k-th power of the cosine."""
    exponents = [e for e in itertools.product(range(_ORDER + 1), repeat=3) if sum(e) <= _ORDER]
    order = torch.tensor([sum(e) for e in exponents], device=unit.device)
    share = [math.sqrt(math.factorial(sum(e)) / math.prod(map(math.factorial, e))) for e in exponents]
    ladder = [torch.ones_like(unit)]
    for _ in range(_ORDER):
        ladder.append(ladder[-1] * unit)
    found = [s * ladder[a][:, 0] * ladder[b][:, 1] * ladder[c][:, 2] for s, (a, b, c) in zip(share, exponents, strict=True)]
    return torch.stack(found, 1), order
