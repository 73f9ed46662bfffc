"""Mixtures of normal laws about the minima of an energy, made wider or narrower by what the energy says around them; and chains of them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..energy import Energy
from ..montecarlo.wells import Wells
from ..types import State
from .draws import resampled
from .fit import Progress, Task
from .losses import Frames

if TYPE_CHECKING:
    from ..dig import DiG

__all__ = ["Chains", "Equilibrium", "Harvest", "equilibrium", "harmonic", "log_target", "log_target_and_slope", "refined", "reweighed"]

_STEP = 1e-3
_SOFT = 0.3  # in units of 1 / width^2: what is softer is taken to be as wide as this
_FLAT = 1.2  # rad: an angle as wide as this turns freely
_SOUND = 8.0  # kT below the middle of a well's draws: they overlap, and say nothing of its shape
_FEW = 1e-3  # share of the whole: wells with less stay as they are
_HEAVY = 5.0
_LONGEST = 6.0  # drift of a Langevin step, in widths of all coordinates together


def log_target(wells: Wells, energy: Energy, points: Tensor) -> Tensor:
    """(B,) log of exp(-u) at points, in the measure of the state; -inf where there is no structure."""
    with torch.no_grad():
        value, possible = _law(wells, energy, points)
    return torch.where(possible, value, -math.inf)


def log_target_and_slope(wells: Wells, energy: Energy, points: Tensor) -> tuple[Tensor, Tensor]:
    """The same with its gradient (B, D), zero where there is no structure."""
    with torch.enable_grad():
        points = points.detach().clone().requires_grad_()
        value, possible = _law(wells, energy, points)
        slope = torch.autograd.grad(value.sum(), points)[0]
    return torch.where(possible, value.detach(), -math.inf), torch.where(possible[:, None], slope, 0.0)


def _law(wells: Wells, energy: Energy, points: Tensor) -> tuple[Tensor, Tensor]:
    """Log of exp(-u) where there is a structure, and where that is. Torsions may be any number: nothing jumps at half a turn."""
    coordinates, descriptor, state = wells.dig.coordinates, wells.dig.descriptor, wells.state(points)
    u = energy(coordinates.decode(state, descriptor)).double()
    finite = torch.isfinite(u)
    value = coordinates.log_volume(state, descriptor) - torch.where(finite, u, 0.0)
    return value, (coordinates.valid(state, descriptor) & finite).detach()


def harmonic(dig: DiG, energy: Energy, minima: State) -> Wells:
    """The harmonic law of each of ``minima``, a state of M, weighed by its free energy: 2 D + 1 energies with gradients a minimum.

    Curvatures by central differences in the model's coordinates, the volume of the coordinates included.
    """
    size, count = sum(part.space.dim for part in dig.process.values()), len(next(iter(minima.values())))
    bare = Wells(dig, torch.zeros(1, size).double(), torch.eye(size).double()[None], torch.zeros(1).double())
    mean, steps = bare.point(minima), _STEP * torch.eye(size, dtype=torch.float64)
    factors, weights, flat = [], [], []
    for k in range(count):
        value, slope = log_target_and_slope(bare, energy, mean[k] + torch.cat([torch.zeros_like(steps[:1]), steps, -steps]))
        curvature = (slope[size + 1 :] - slope[1 : size + 1]) / (2 * _STEP)
        curvature, slope = 0.5 * (curvature + curvature.T), slope[0]
        values, vectors = torch.linalg.eigh(curvature)
        free = bare.periodic & ((vectors.square() / values.clamp_min(_SOFT)).sum(1).sqrt() > _FLAT)
        curvature[free], curvature[:, free], slope[free] = 0.0, 0.0, 0.0
        curvature[free, free] = 1.0
        values, vectors = torch.linalg.eigh(curvature)
        values = values.clamp_min(_SOFT)
        newton = vectors @ ((vectors.T @ slope) / values)
        mean[k] += newton.clamp(-1.0, 1.0)
        flat.append(free)
        factors.append((vectors * values.rsqrt()) @ vectors.T)
        weights.append(value[0] + 0.5 * slope @ newton - 0.5 * values.log().sum() + 0.5 * math.log(2 * math.pi) * free.sum())
    return Wells(dig, mean, torch.stack(factors), torch.stack(weights), torch.stack(flat))


def refined(wells: Wells, energy: Energy, rng: torch.Generator, draws: int = 400) -> Wells:
    """One step towards the normal laws that are closest to exp(-u): each well's middle and widths from ``draws`` energies at its own draws.

    The mean force at draws of a well moves its middle, its correlation with them changes the inverse covariance (Stein's identity; the
    self-consistent harmonic approximation, or variational inference by natural gradients). What is measured is the departure from the law
    at hand, which is small, so few draws suffice; elements that are not above their own noise are left out. Weights are the mean of
    exp(-u) / q.
    """
    mean, factor = wells.mean.clone(), wells.factor.clone()
    chosen = (wells.log_weight > math.log(_FEW)).nonzero()[:, 0].tolist()
    for k in chosen:
        noise = torch.randn(draws // 2, mean.shape[1], generator=rng, dtype=torch.float64)
        noise = torch.cat([noise, -noise])
        points, inside = wells.points(torch.full((len(noise),), k), noise)
        value, slope = log_target_and_slope(wells, energy, points)
        noise = torch.where(wells.flat[k], 0.0, noise)
        departure = torch.where(wells.flat[k], 0.0, slope @ factor[k] + noise)
        value = torch.where(inside, value, -math.inf)
        log_ratio = value + 0.5 * noise.square().sum(1)
        sound = (log_ratio > log_ratio.median() - _SOUND).view(2, -1).all(0).repeat(2)
        if int(sound.sum()) < draws // 4:
            continue
        shift, bend = _departures(departure[sound], noise[sound])
        values, vectors = torch.linalg.eigh(torch.eye(len(shift), dtype=torch.float64) - bend)
        values = values.clamp(0.25, 4.0)
        mean[k] += factor[k] @ (vectors @ ((vectors.T @ shift) / values)).clamp(-1.0, 1.0)
        factor[k] = factor[k] @ (vectors * values.rsqrt()) @ vectors.T
    found = Wells(wells.dig, wells.tidy(mean), factor, wells.log_weight, wells.flat)
    return _weighed(found, energy, chosen, rng, draws)


def _departures(departure: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) of the departures and their correlation (D, D) with the noise, shrunk by their errors."""
    products = departure[:, :, None] * noise[:, None, :]
    products = 0.5 * (products + products.transpose(1, 2))

    def shrunk(values: Tensor) -> Tensor:
        found = values.mean(0)
        return found * (1 - values.var(0) / len(values) / found.square().clamp_min(1e-30)).clamp_min(0.0)

    return shrunk(departure), shrunk(products)


def _weighed(wells: Wells, energy: Energy, chosen: list[int], rng: torch.Generator, draws: int) -> Wells:
    """The wells with the weights that exp(-u) gives them, of those chosen; the others keep theirs beside these."""
    found = wells.log_weight.clone()
    for k in chosen:
        noise = torch.randn(draws, wells.mean.shape[1], generator=rng, dtype=torch.float64)
        points, inside = wells.points(torch.full((draws,), k), noise)
        log_q = wells.log_scale[k] - 0.5 * torch.where(wells.flat[k], 0.0, noise).square().sum(1)
        log_ratio = torch.where(inside, log_target(wells, energy, points), -math.inf) - log_q
        middle = log_ratio.median()
        found[k] = middle + (log_ratio - middle).clamp(max=4.0).exp().mean().log()
    others = torch.ones(len(found), dtype=torch.bool)
    others[chosen] = False
    found[others] += (found[chosen] - wells.log_weight[chosen]).median()
    return Wells(wells.dig, wells.mean, wells.factor, found, wells.flat)


def reweighed(wells: Wells, points: Tensor, rounds: int = 30) -> Wells:
    """The wells with the weights that (B, D) points of exp(-u) give them: expectation maximisation, shapes left as they are."""
    parts = wells.log_parts(points) - wells.log_weight
    log_weight = wells.log_weight
    for _ in range(rounds):
        share = torch.softmax(parts + log_weight, 1).sum(0)
        log_weight = ((share + 0.1) / (share + 0.1).sum()).log()
    return Wells(wells.dig, wells.mean, wells.factor, log_weight, wells.flat)


class Equilibrium(NamedTuple):
    """``frames`` of exp(-u) with their forces; ``wells``, weighed on the way; ``acceptance`` of their proposals there; ``evaluations``."""

    frames: Frames
    wells: Wells
    acceptance: float
    evaluations: int


def equilibrium(
    wells: Wells, energy: Energy, rng: torch.Generator, *, chains: int = 1000, settle: int = 60, moves: int = 160, stride: int = 8
) -> Equilibrium:
    """Frames by :class:`Chains` that start as draws of the wells, resampled by their weights: ``settle`` Langevin steps, in whose midst the
    wells get their weights anew, then every ``stride``-th of ``moves``. A proposal of the wells stands between any four."""
    points, inside = wells.points(
        torch.multinomial(wells.log_weight.exp(), 4 * chains, True, generator=rng),
        torch.randn(4 * chains, wells.mean.shape[1], generator=rng, dtype=torch.float64),
    )
    log_weight = torch.where(inside, log_target(wells, energy, points), -math.inf) - torch.logsumexp(wells.log_parts(points), 1)
    log_weight = log_weight.clamp(max=float(log_weight[log_weight.isfinite()].median()) + _HEAVY)  # a start, no result
    here = Chains.start(wells, energy, points[resampled(log_weight, chains, 0.5)])
    found, accepted, adapt = [], [], 0.1
    for number in range(settle + moves):
        here, _ = here.local(wells, energy, rng, adapt if number < settle else 0.0)
        if number == settle // 2:
            wells = reweighed(wells, here.points)
        if number % 4 == 3:
            here, share = here.independent(wells, energy, rng)
            accepted += [share] if number >= settle else []
        if number >= settle and number % stride == stride - 1:
            found.append(here)
    frames, asked = _frames(wells, energy, found, torch.randperm(len(found) * chains, generator=rng))
    spent = 5 * chains + (settle + moves) * chains * 5 // 4 + asked
    return Equilibrium(frames, wells, sum(accepted) / max(1, len(accepted)), spent)


def _frames(wells: Wells, energy: Energy, found: list[Chains], order: Tensor) -> tuple[Frames, int]:
    """Frames in a given order with the labels that encoding gives them, and the energies that took: forces of what was named otherwise."""
    points, slope = (torch.cat([getattr(one, name) for one in found])[order] for name in ("points", "slope"))
    canonical = torch.cat([wells.canonical(rows) for rows in points.split(4096)])
    other = ((canonical - points).abs() > 1e-9).any(1).nonzero()[:, 0]
    for rows in other.split(4096):
        slope[rows] = log_target_and_slope(wells, energy, canonical[rows])[1]
    state, force = ({name: x.float() for name, x in wells.state(part).items()} for part in (canonical, slope))
    return Frames(state, force), len(other)


@dataclass(frozen=True)
class Harvest:
    """Stage: frames of the target by chains of ``wells``, :func:`equilibrium`; for systems whose basins are known."""

    wells: Wells
    chains: int = 1000
    settle: int = 60
    moves: int = 200
    stride: int = 4
    name: str = field(default="wells", init=False)

    def run(self, progress: Progress, task: Task) -> Progress:
        """``progress`` with frames of the target and their forces; the model is left as it is."""
        sizes = {name: getattr(self, name) for name in ("chains", "settle", "moves", "stride")}
        found = equilibrium(self.wells, task.needed_energy(), torch.Generator().manual_seed(task.seed), **sizes)
        row = {"stage": self.name, "frames": len(found.frames), "wells": len(self.wells), "acceptance": found.acceptance}
        spent = progress.evaluations + found.evaluations
        return dataclasses.replace(progress, frames=found.frames, evaluations=spent, history=[*progress.history, row])


class Chains(NamedTuple):
    """W chains on exp(-u): where they are (W, D), log target and slope there, and the well whose shape each chain's steps have.

    A chain alternates Langevin steps, in the metric of the well it started in, with independent proposals of the wells; either leaves
    exp(-u) as it is.
    """

    points: Tensor
    value: Tensor
    slope: Tensor
    well: Tensor
    size: float = 0.6

    @classmethod
    def start(cls, wells: Wells, energy: Energy, points: Tensor) -> Chains:
        """Chains at (W, D) points."""
        return cls(points, *log_target_and_slope(wells, energy, points), wells.log_parts(points).argmax(1))

    def local(self, wells: Wells, energy: Energy, rng: torch.Generator, adapt: float = 0.1) -> tuple[Chains, float]:
        """One Metropolis-adjusted Langevin step each, and the fraction that was accepted; ``adapt``: of the step's length, 0 at the end."""
        factor, size = wells.factor[self.well], self.size

        def drift(slope: Tensor) -> Tensor:
            found = 0.5 * size * torch.einsum("bji,bj->bi", factor, slope)
            return found * (_LONGEST / found.norm(dim=1, keepdim=True).clamp_min(1e-9)).clamp(max=1.0)

        noise = torch.randn(self.points.shape, generator=rng, dtype=torch.float64)
        forth = drift(self.slope)
        moved = self.points + size * torch.einsum("bij,bj->bi", factor, forth + noise)
        points = wells.tidy(moved)
        value, slope = log_target_and_slope(wells, energy, points)
        returned = -(forth + noise) - drift(slope)
        gain = value - self.value + 0.5 * (noise.square() - returned.square()).sum(1)
        accept = torch.rand(len(gain), generator=rng, dtype=torch.float64).log() < gain
        share = float(accept.double().mean())
        there = self._moved(accept, points, value, slope)
        return there._replace(size=size * math.exp(adapt * (share - 0.57))), share

    def independent(self, wells: Wells, energy: Energy, rng: torch.Generator) -> tuple[Chains, float]:
        """One independent proposal each, and the fraction that was accepted. Slopes are computed where it was."""
        n = len(self.points)
        drawn = torch.multinomial(wells.log_weight.exp(), n, True, generator=rng)
        points, inside = wells.points(drawn, torch.randn(self.points.shape, generator=rng, dtype=torch.float64))
        value = torch.where(inside, log_target(wells, energy, points), -math.inf)
        here = torch.logsumexp(wells.log_parts(self.points), 1)
        there = torch.logsumexp(wells.log_parts(points), 1)
        accept = torch.rand(n, generator=rng, dtype=torch.float64).log() < value - there - self.value + here
        slope = self.slope.clone()
        if bool(accept.any()):
            slope[accept] = log_target_and_slope(wells, energy, points[accept])[1]
        return self._moved(accept, points, value, slope), float(accept.double().mean())

    def _moved(self, accept: Tensor, points: Tensor, value: Tensor, slope: Tensor) -> Chains:
        rows = accept[:, None]
        return self._replace(
            points=torch.where(rows, points, self.points), value=torch.where(accept, value, self.value),
            slope=torch.where(rows, slope, self.slope),
        )  # fmt: skip
