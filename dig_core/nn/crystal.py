"""A Graphormer over a crystal cell and all its periodic images: moves atoms and strains the cell."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..coordinates.crystal import Crystal
from ..diffusion import Diffusion, Euclidean, Geometric, Joint, LogSNR, Torus
from ..errors import IncompatibleError
from ..system.crystal import contact_volume
from ..system.descriptor import Descriptor
from ..system.elements import N_PROPERTIES, covalent_radii, properties
from ..types import State, Tangent
from .cells import pair_images
from .embed import TimeEmbedding, seeded
from .geometry import PairList, pair_list
from .periodic import EnvelopedBasis, PairAttention

__all__ = ["CrystalGraphormer"]

TWO_PI = 2 * math.pi
_BOUND = 8.0  # standard deviations of the cell beyond which the network sees no difference: images stay countable
_LOW, _HIGH = 0.02, 2.2  # of the atoms' noise: Angstrom at the start, radians of the fraction at the end (pairs of atoms are even to 2 %)


class _Pairs(NamedTuple):
    """What one layer knows of pairs of atoms, all images summed up: ``weight`` (B, heads, N, N) in attention, ``scalar``
    (C, B, N, N), and ``outward`` (C, B, 8 N, N): components of the vector and the quadrupole, rows, towards the atoms of the columns."""

    weight: Tensor
    scalar: Tensor
    outward: Tensor


class CrystalGraphormer(nn.Module):
    """Noise departures and log-variances of the components of :class:`Crystal`, for any composition and number of atoms.

    Each pair of atoms is seen over all its images within ``cutoff`` of the noised cell. Attention weighs images by their
    distance; vectors and quadrupoles towards neighbours, weighted by what both atoms are, turn with the structure, and their
    invariants go back into the features. An atom's vectors move it, quadrupoles and pairs of vectors strain the cell. So the
    answer does not see where the origin is, which atom comes first, how the cell is turned or which image of an atom
    is named; mirror images get mirrored answers. Features know the choice of the cell through one tensor, the logarithm of
    its shape, which says how uneven the noise on fractions is in space.

    Parameters
    ----------
    width, heads, layers: of the transformer; basis: Gaussians of the distance; cutoff: Angstrom.
    channels: vectors and quadrupoles an atom. conditions: how many numbers ``descriptor.conditions`` holds.
    sharpness: Angstrom, below which the noise's length is what answers are scaled by.
    coordinates: config of :class:`Crystal`. seed: of the initial weights.
    """

    def __init__(
        self, width: int = 80, heads: int = 4, layers: int = 4, basis: int = 24, *, cutoff: float = 5.0, channels: int = 16,
        conditions: int = 0, sharpness: float = 0.2, coordinates: dict | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.coordinates = Crystal(**(coordinates or {}))
        self.config = {
            "width": width, "heads": heads, "layers": layers, "basis": basis, "cutoff": cutoff, "channels": channels,
            "conditions": conditions, "sharpness": sharpness, "coordinates": self.coordinates.config, "seed": seed,
        }  # fmt: skip
        if width % heads:
            raise IncompatibleError(f"width must be a multiple of heads, got width {width} and heads {heads}.")
        self.cutoff, self.channels, self.heads, self.sharpness = float(cutoff), channels, heads, float(sharpness)
        with seeded(seed):
            self.element = nn.Linear(N_PROPERTIES, width)
            self.time = TimeEmbedding(width)
            self.given = nn.Linear(2 + conditions, width)
            self.cell = nn.Linear(3, width, bias=False)
            self.radial = EnvelopedBasis(basis, cutoff, learned=False)
            self.bias = nn.Linear(basis, heads * layers)
            self.near = nn.Linear(basis, width, bias=False)
            self.sent = nn.Linear(width, width, bias=False)
            self.filters = nn.ModuleList(nn.Linear(basis, layers * channels, bias=False) for _ in range(2))
            self.blocks = nn.ModuleList(PairAttention(width, heads, 2, seed + 1 + k) for k in range(layers))
            self.turns = nn.ModuleList(_Turn(width, channels) for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 7 * channels + 5))
            nn.init.zeros_(self.head[2].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.head[2].bias)  # type: ignore[arg-type]

    def process(self, descriptor: Descriptor) -> Joint:
        """The process that noises crystals of this composition: the atoms' noise begins at the same length in all cells and ends
        evenly spread over each."""
        low = TWO_PI * _LOW / self._length(descriptor)
        return Joint(
            frac=Diffusion(Torus(3 * descriptor.n_atoms), Geometric(low, _HIGH)), cell=Diffusion(Euclidean(6), LogSNR(8.0, -4.0))
        )

    def forward(self, state: State, t: Tensor, descriptor: Descriptor) -> tuple[Tangent, Tangent]:
        """Noise departures and log-variances of B states at times ``t`` (1,) or (B,); ``descriptor.conditions`` may be (B, C)."""
        state = {"frac": state["frac"], "cell": state["cell"].clamp(-_BOUND, _BOUND)}
        shape = self.coordinates.tensor(state["cell"][:, 1:]).to(self.near.weight)
        x, active = self._start(state, shape, t, descriptor)
        return self._read(*self._look(x, active, shape, state, descriptor), shape, t, descriptor)

    def _length(self, descriptor: Descriptor) -> float:
        """Angstrom: the edge of a cube of the usual volume."""
        return (self.coordinates.volume * contact_volume(descriptor)) ** (1 / 3)

    def _look(self, x: Tensor, active: Tensor, shape: Tensor, state: State, descriptor: Descriptor) -> tuple[Tensor, Tensor]:
        """Features (B, N, W) of atoms that know their surroundings, and their vectors and quadrupoles (C, B, 8, N)."""
        near, layers = self._pairs(state, descriptor)
        x = x + (near @ self.sent(x).permute(2, 0, 1)[..., None])[..., 0].permute(1, 2, 0)
        arms = x.new_zeros(self.channels, len(x), 8, x.shape[1])
        for block, turn, seen in zip(self.blocks, self.turns, layers, strict=True):
            x = block(x, seen.weight, active)
            x, arms = turn(x, arms, seen, shape)
        return self.norm(x), arms

    def _pairs(self, state: State, descriptor: Descriptor) -> tuple[Tensor, list[_Pairs]]:
        """What atoms feel of each other at first (W, B, N, N), and what each layer sees."""
        n, pairs = descriptor.n_atoms, pair_list(descriptor.n_atoms, state["frac"].device)
        angular, weight = (x.index_select(1, pairs.table) for x in self._moments(state, descriptor, pairs))
        order = torch.arange(n, device=pairs.table.device)
        # A pair's vector points from its first atom to its second: every atom looks outwards.
        side = torch.ones(n, n, 9, 1).to(angular)
        side[order[:, None] > order, 1:4] = -1
        angular = (angular * side.flatten(0, 1)).permute(3, 0, 2, 1)
        near, scalar = (torch.tensordot(f.weight, angular[:, :, 0], 1) for f in (self.near, self.filters[0]))
        outward = torch.tensordot(self.filters[1].weight, angular[:, :, 1:], 1)
        weight, near, scalar, outward = (x.unflatten(-1, (n, n)) for x in (weight.permute(2, 0, 1), near, scalar, outward))
        parts = zip(*(x.chunk(len(self.blocks)) for x in (weight, scalar, outward)), strict=True)
        return near, [_Pairs(bias.transpose(0, 1), flat, arms.flatten(2, 3)) for bias, flat, arms in parts]

    def _moments(self, state: State, descriptor: Descriptor, pairs: PairList) -> tuple[Tensor, Tensor]:
        """Radial functions times 1, direction and quadrupole, summed over the images of P unordered pairs (B, P, 9, basis), and what
        images weigh in attention (B, P, layers * heads)."""
        seen = pair_images(self.coordinates.fractions(state), self.coordinates.vectors(state, descriptor), pairs, self.cutoff)
        distance, unit, near = (x.to(self.near.weight) for x in seen)
        radii = covalent_radii(descriptor.numbers).to(distance)
        radial = self.radial(distance, (radii[pairs.first] + radii[pairs.second])[:, None]) * near[..., None]
        x, y, z = unit.unbind(-1)
        half, sixth = math.sqrt(0.5), math.sqrt(1 / 6)
        # Coordinates.tensor's basis: the product of the unit vector with itself, less its trace.
        quadrupole = [half * (x * x - y * y), sixth * (x * x + y * y - 2 * z * z), 2 * half * x * y, 2 * half * x * z, 2 * half * y * z]
        angular = torch.stack([torch.ones_like(x), x, y, z, *quadrupole], -2) @ radial
        return angular, (torch.exp(self.bias(radial)) * near[..., None]).sum(-2)

    def _start(self, state: State, shape: Tensor, t: Tensor, descriptor: Descriptor) -> tuple[Tensor, Tensor]:
        """Features (B, N, W) of atoms that have seen nothing yet, and (T, W) of the time and what is given."""
        wanted = self.given.in_features - 2
        if descriptor.conditions.shape[-1] != wanted:
            raise IncompatibleError(
                f"the network is conditioned on {wanted} numbers, the descriptor has {descriptor.conditions.shape[-1]}: set its conditions."
            )
        t, like = t.reshape(-1), self.near.weight
        count = torch.full_like(t, math.log(descriptor.n_atoms / 8.0))
        given = torch.stack([count, self._noise(t, descriptor).log()], -1)
        if wanted:
            conditions = descriptor.conditions.reshape(-1, wanted).to(given)
            rows = max(len(given), len(conditions))
            given = torch.cat([given.expand(rows, -1), conditions.expand(rows, -1)], 1)
        embedded = self.time(t) + self.given(given.to(like))
        invariants = torch.stack(
            [state["cell"][:, 0].to(like), 3 * shape.square().sum((1, 2)), 9 * torch.linalg.det(shape)], -1
        )
        x = self.element(properties(descriptor.numbers).to(like)) + embedded[:, None] + self.cell(torch.asinh(invariants))[:, None]
        return x, F.silu(embedded)

    def _noise(self, t: Tensor, descriptor: Descriptor) -> Tensor:
        """(T,) Angstrom, the atoms' noise in a cell of the usual size."""
        return self.process(descriptor)["frac"].schedule.sigma(t) * self._length(descriptor) / TWO_PI

    def _read(self, x: Tensor, arms: Tensor, shape: Tensor, t: Tensor, descriptor: Descriptor) -> tuple[Tangent, Tangent]:
        """Tangents of the state's components, and log-variances."""
        gates, numbers = self.head(x).split([7 * self.channels, 5], -1)
        gates, mean = gates.permute(2, 0, 1).unflatten(0, (7, -1)).unsqueeze(3), numbers.mean(1)
        vectors, tensors = arms.split([3, 5], 2)
        grown, shrunk = torch.linalg.matrix_exp(torch.cat([shape, -shape])).split(len(shape))
        # Displacements in space become fractions by the inverse of the cell, forces by the cell itself.
        bent = _bent(tensors, vectors)
        push = shrunk @ (gates[0] * vectors + gates[1] * bent).sum(0) + grown @ (gates[2] * vectors).sum(0)
        frac = (push - push.mean(2, keepdim=True)).transpose(1, 2).flatten(1)
        others = vectors.roll(1, 0).transpose(2, 3)
        plain, mixed = (
            _matrix((g * tensors).mean(3).sum(0)) + ((h * vectors) @ others).sum(0) / x.shape[1] for g, h in (gates[3:5], gates[5:])
        )
        strain = plain + mixed @ shape + mean[:, 1, None, None] * shape
        cell = self.coordinates.components(0.5 * (strain + strain.transpose(1, 2)))
        cell = torch.cat([cell[:, :1] + mean[:, :1], cell[:, 1:]], 1)
        return self._scaled(frac, cell, numbers, mean, t, descriptor)

    def _scaled(self, frac, cell, numbers: Tensor, mean: Tensor, t: Tensor, descriptor: Descriptor) -> tuple[Tangent, Tangent]:
        """Departures as the process reads them: it multiplies with the noise, that crystals at rest, sharp as they are, do not know."""
        process, t = self.process(descriptor), t.reshape(-1)
        sigma = {name: part.schedule.sigma(t)[:, None].to(frac) for name, part in process.items()}
        gain = (1 + (self.sharpness / self._noise(t, descriptor)[:, None].to(frac)) ** 2).sqrt()
        noise = {"frac": frac * gain / sigma["frac"], "cell": cell * gain / sigma["cell"]}
        widths = torch.cat([mean[:, 3:4], mean[:, 4:5].expand(-1, 5)], 1)
        return noise, {"frac": numbers[..., 2:3].expand(-1, -1, 3).flatten(1), "cell": widths}


class _Turn(nn.Module):
    """Vectors and quadrupoles towards neighbours, and those that neighbours have; their invariants go back into the features."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.sender, self.receiver = nn.Linear(width, 2 * channels), nn.Linear(width, 3 * channels)
        self.mix = nn.Parameter(torch.randn(2, channels, channels) / channels)
        self.back = nn.Sequential(nn.Linear(7 * channels, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, arms: Tensor, seen: _Pairs, shape: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, N, W) and ``arms`` (C, B, 8, N), an atom's vectors and quadrupoles; ``shape`` (B, 3, 3) of the cell."""
        sent = (1 + self.sender(x)).permute(2, 0, 1).unflatten(0, (2, -1))
        heard = (1 + self.receiver(x)).permute(2, 0, 1).unflatten(0, (3, -1)).unsqueeze(3)
        towards = (seen.outward @ sent[0, ..., None]).view(arms.shape)
        towards = torch.cat([heard[0] * towards[:, :, :3], heard[1] * towards[:, :, 3:]], 2)
        # The scalars of a pair are the same both ways.
        arms = arms + towards + heard[2] * ((sent[1, :, :, None] * arms) @ seen.scalar)
        vectors, tensors = (_bounded(part + torch.tensordot(m, part, 1)) for m, part in zip(self.mix, arms.split([3, 5], 2), strict=True))
        cell = _quadrupole(shape)[:, None]
        invariants = [
            (vectors * vectors).sum(2), (vectors * vectors.roll(1, 0)).sum(2), (tensors * tensors).sum(2),
            (tensors * tensors.roll(1, 0)).sum(2), (vectors * (shape @ vectors)).sum(2), (vectors * _bent(tensors, vectors)).sum(2),
            (cell @ tensors)[:, :, 0],
        ]  # fmt: skip
        x = x + self.back(torch.asinh(torch.cat(invariants).permute(1, 2, 0)))
        return x, torch.cat([vectors, tensors], 2)


def _bounded(arms: Tensor) -> Tensor:
    """Vectors (C, B, 3, N) or quadrupoles whose channels together are no longer than about one each: crowded cells have many neighbours."""
    return arms * (1 + arms.square().sum(2, keepdim=True).mean(0)).rsqrt()


def _bent(tensors: Tensor, vectors: Tensor) -> Tensor:
    """Quadrupoles (C, B, 5, N), in the basis of :meth:`Crystal.tensor`, times vectors (C, B, 3, N)."""
    a, b, xy, xz, yz = (math.sqrt(0.5) * tensors).unbind(2)
    b = b / math.sqrt(3)
    x, y, z = vectors.unbind(2)
    return torch.stack([(a + b) * x + xy * y + xz * z, xy * x + (b - a) * y + yz * z, xz * x + yz * y - 2 * b * z], 2)


def _matrix(tensors: Tensor) -> Tensor:
    """(B, 3, 3) symmetric matrices of quadrupoles (B, 5)."""
    a, b, xy, xz, yz = (math.sqrt(0.5) * tensors).unbind(-1)
    b = b / math.sqrt(3)
    return torch.stack([a + b, xy, xz, xy, b - a, yz, xz, yz, -2 * b], -1).unflatten(-1, (3, 3))


def _quadrupole(matrix: Tensor) -> Tensor:
    """(B, 5) of symmetric matrices (B, 3, 3) without trace."""
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    first, second = (diagonal[:, 0] - diagonal[:, 1]) * math.sqrt(0.5), -diagonal[:, 2] * math.sqrt(1.5)
    return torch.stack([first, second, *(math.sqrt(2) * matrix[:, i, j] for i, j in ((0, 1), (0, 2), (1, 2)))], 1)
