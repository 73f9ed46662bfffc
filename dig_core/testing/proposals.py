"""Checks of proposals and noise streams, and toys to run them on: laws without atoms, and a spoilt score model."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..diffusion.processes import Joint
from ..diffusion.rotations import half_angle
from ..dig import DiG
from ..energy import AnalyticScore, Energy
from ..montecarlo.proposals import Proposal
from ..random import Streams
from ..score import Moments, ScoreModel, score_of
from ..system.descriptor import Descriptor, molecule
from ..types import Geometry, State, Tangent
from .diffusion import close, require

__all__ = ["Bare", "LawEnergy", "Sabotaged", "check_proposal", "check_streams", "toy"]


class Bare(nn.Module):
    """Coordinates that are the components themselves: laws on any spaces as if they were structures of ceil(D / 3) atoms.

    The Cartesian measure is Lebesgue's on the D numbers, angles and rotation vectors in radians; the rest of the last atom is padding.
    """

    gauge: frozenset[str] = frozenset()

    def __init__(self, process: Joint):
        super().__init__()
        self.shapes = {name: part.space.shape for name, part in process.items()}
        self.sizes = {name: math.prod(shape) for name, shape in self.shapes.items()}
        self.n_atoms = math.ceil(sum(self.sizes.values()) / 3)
        self.spaces = {name: part.space for name, part in process.items()}

    def encode(self, geometry: Geometry, descriptor: Descriptor | None = None) -> tuple[State, Tensor]:
        """State and log|det| (B,)."""
        flat = geometry.positions.flatten(1)[:, : sum(self.sizes.values())]
        pieces = flat.split(list(self.sizes.values()), dim=1)
        state = {name: x.reshape(-1, *shape) for (name, shape), x in zip(self.shapes.items(), pieces, strict=True)}
        return state, -self.log_volume(state, descriptor)

    def decode(self, state: State, descriptor: Descriptor | None = None) -> Geometry:
        """(B, n_atoms, 3), padded with zeros."""
        flat = torch.cat([state[name].double().flatten(1) for name in self.shapes], dim=1)
        return Geometry(nn.functional.pad(flat, (0, 3 * self.n_atoms - flat.shape[1])).reshape(-1, self.n_atoms, 3))

    def log_volume(self, state: State, descriptor: Descriptor | None = None) -> Tensor:
        """(B,) log|d geometry / d state|: closed spaces have unit volume, and rotation vectors are not rotations of even density."""
        batch = len(next(iter(state.values())))
        total = torch.full((batch,), sum(space.log_volume for space in self.spaces.values()), dtype=torch.float64)
        for name, space in self.spaces.items():
            if not space.flat:
                square = state[name].double().square().sum(-1)
                total = total - 2 * (2 * half_angle(square)[1]).log().reshape(batch, -1).sum(1)
        return total

    def valid(self, state: State, descriptor: Descriptor | None = None) -> Tensor:
        """(B,) all True."""
        return torch.ones(len(next(iter(state.values()))), dtype=torch.bool)

    def pose(self, geometry: Geometry, rng: Streams) -> Geometry:
        """Nothing is forgotten."""
        return geometry


class LawEnergy:
    """u = -log p of an :class:`AnalyticScore`'s clean law as structures of :class:`Bare`: its partition function is 1."""

    def __init__(self, model: AnalyticScore):
        self.model, self.coordinates = model, Bare(model.process)

    def __call__(self, geometry: Geometry) -> Tensor:
        state, log_det = self.coordinates.encode(geometry)
        u = -self.model.log_prob(state) - log_det
        return torch.where(u.isnan(), torch.full_like(u, math.inf), u)


class Sabotaged(nn.Module):
    """A score model made wrong on purpose: noise damped and bent, variances off by a half. Exact methods must not mind."""

    conservative = False

    def __init__(self, model: ScoreModel, strength: float = 0.3):
        super().__init__()
        self.model, self.process, self.strength = model, model.process, float(strength)

    def moments(self, state: State, t: Tensor, descriptor: Descriptor) -> Moments:
        found, wrong = self.model.moments(state, t, descriptor), self.strength
        noise = {
            name: part.space.project((1 - wrong) * found.noise[name] + wrong * torch.sin(2 * state[name] + 1))
            for name, part in self.process.items()
        }
        return Moments(noise, {name: (1 + wrong) * spread + 0.5 * wrong for name, spread in found.spread.items()})

    def forward(self, state: State, t: Tensor, descriptor: Descriptor) -> Tangent:
        return score_of(self.process, self.moments(state, t, descriptor).noise, t)


def toy(model: ScoreModel, **options) -> DiG:
    """A DiG of bare components, to draw from laws that have no atoms; ``options`` are DiG's."""
    coordinates = Bare(model.process)
    return DiG(model, coordinates, molecule([1] * coordinates.n_atoms, []), **options)


def check_proposal(
    proposal: Proposal,
    energy: Energy,
    log_z: float,
    *,
    n: int = 2000,
    seed: int = 0,
    structures: Geometry | None = None,
    limit: float = 4.0,
) -> None:
    """The mean of exp(-u - log_q) over draws is Z; with ``structures`` from exp(-u) / Z, that of exp(u + log_q) is 1 / Z.

    Both hold for every exact proposal, however bad (run it on :class:`Sabotaged` too), up to ``limit`` standard errors;
    weights too uneven for a standard error to be trusted are refused.
    """
    rng = Streams(seed, range(n))
    samples = proposal.draw(n, rng)
    if samples.log_q is None or samples.log_q.dtype != torch.float64:
        raise AssertionError("draw must return log_q in float64.")
    with torch.no_grad():
        log_ratio = -energy(samples.geometry).double() - samples.log_q - log_z
    _mean_is_one(
        torch.where(samples.valid, log_ratio, torch.full_like(log_ratio, -math.inf)).exp(), limit, "exp(-u - log_q) / Z"
    )
    if structures is None:
        return
    count = len(structures.positions)
    with torch.no_grad():
        log_q = proposal.log_q(structures, Streams(seed, range(n, n + count)))
        log_ratio = log_q + energy(structures).double() + log_z
    _mean_is_one(log_ratio.exp(), limit, "Z exp(u + log_q)")


def check_streams(draw: Callable[[Streams], State | Tensor], *, seed: int = 0, tolerance: float = 1e-5) -> None:
    """Sample i of ``draw(rng)`` depends on (seed, i) alone: the same alone, in another batch and in another order."""

    def run(indices) -> State:
        found = draw(Streams(seed, indices))
        return found if isinstance(found, dict) else {"sample": found}

    whole, alone, mixed = run(range(6)), run([4]), run([5, 4, 9, 0])
    other = draw(Streams(seed + 1, range(6)))
    other = other if isinstance(other, dict) else {"sample": other}
    for name, x in whole.items():
        close(alone[name], x[4:5], tolerance, f"sample 4 of {name}, alone against in a batch of 6")
        close(mixed[name][[0, 1, 3]], x[[5, 4, 0]], tolerance, f"samples of {name} in another batch")
    require(any(not torch.equal(other[name], x) for name, x in whole.items()), "another seed gave the same samples.")
    first = torch.cat([x.flatten(1).double() for x in whole.values()], dim=1)
    require(torch.cdist(first, first).fill_diagonal_(1.0) > 0, "two streams gave the same sample.")


def _mean_is_one(ratios: Tensor, limit: float, what: str) -> None:
    require(ratios.isfinite(), f"{what} must be finite.")
    n, mean = len(ratios), ratios.mean()
    effective = float(ratios.sum() ** 2 / (ratios**2).sum())
    require(
        effective > 50, f"only {effective:.0f} of {n} samples weigh: draw more, or compare a nearer model and energy."
    )
    z = float((mean - 1) / (ratios.std() / math.sqrt(n)).clamp_min(1e-12))
    require(abs(z) < limit, f"mean of {what} is {float(mean):.4f}, {z:+.1f} standard errors from 1 ({n} samples).")
