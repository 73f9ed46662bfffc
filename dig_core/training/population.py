"""Population annealing: frames of exp(-u) from the energy alone, by walkers that are reweighted, resampled and moved on the way."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..energy import Energy
from ..errors import IncompatibleError, StateError
from ..files import understood
from ..montecarlo.analysis import effective_sample_size
from ..progress import bar
from ..random import Streams
from ..tensors import read_tensors, write_tensors
from ..types import State, Tangent
from .basins import langevin_step
from .draws import prior_law, resampled, softened, target_law
from .fit import Progress, Task
from .losses import Frames

if TYPE_CHECKING:
    from ..dig import DiG

log = logging.getLogger(__name__)

__all__ = ["Population", "spread_out"]

_FEW = 30  # ancestors


@dataclass(frozen=True)
class Population:
    """Stage: frames of the target law, without data and without a trained model.

    ``walkers`` structures start as draws of the process's prior and follow the laws prior^(1 - beta) exp(-beta u) from beta
    = 0 to 1: each rung goes as far as an effective fraction of ``floor`` of the walkers allows, resamples them by their
    weights and moves each by ``moves`` Metropolis-adjusted Langevin steps. Weights of states come from the warm end, where
    walkers cross barriers, as in Hukushima and Iba, doi:10.1063/1.1632130. Training on the model's own exact weights
    afterwards (:class:`~dig_core.training.stages.Reweight`) removes what bias a finite population leaves.

    ``harvest`` further moves at the target, of which every ``stride``-th gives a frame of each walker. ``cap`` / (1 - beta):
    kT above the best structure so far from which energies count only logarithmically on the way; the number of coordinates
    if None. Where there are frames at hand and ``first`` is not 0, walkers start as those, at beta = ``first``, where they are moved
    until they are of that law (``settle`` moves): rough structures of every basin then need not be found from the prior.
    Raises IncompatibleError for a harvest without frames, StateError if ``rungs`` do not reach the target.
    """

    walkers: int = 4096
    moves: int = 12
    floor: float = 0.7
    rungs: int = 200
    harvest: int = 200
    stride: int = 20
    cap: float | None = None
    first: float = 0.0
    settle: int = 200
    name: str = field(default="population", init=False)

    def __post_init__(self):
        if not 0 <= self.first < 1:
            raise IncompatibleError(f"expected the first beta in [0, 1), got {self.first}.")
        if not 0 < self.stride <= self.harvest:
            raise IncompatibleError(f"expected a harvest of at least stride = {self.stride} moves, got {self.harvest}.")

    def run(self, progress: Progress, task: Task) -> Progress:
        """``progress`` with frames of the target and their forces; the model is left as it is."""
        dig, energy = progress.dig, task.needed_energy()
        cap = float(sum(p.space.dim for p in dig.process.values()) if self.cap is None else self.cap)
        place = None if task.directory is None else task.directory / "walkers.safetensors"
        if place is not None and place.exists():
            here = _Walkers.read(place)
        elif progress.frames is not None and self.first:
            here = _Walkers.given(dig, energy, progress.frames, self, cap, task.seed)
        else:
            here = _Walkers.start(dig, energy, self.walkers, task.seed)
        shown = bar(label="population", progress=task.progress, total=1.0, initial=here.beta)
        while here.beta < 1 and len(here.history) < self.rungs:
            here = here.rung(dig, energy, self, cap, task.seed + len(here.history))
            shown.update(here.beta - shown.n)
            log.info("rung %(rung)d: beta %(beta).3g, acceptance %(acceptance).2f, families %(families).4f", here.history[-1])
            if place is not None:
                place.parent.mkdir(parents=True, exist_ok=True)
                here.write(place)
        shown.close()
        if here.beta < 1:
            raise StateError(
                f"the population is at beta = {here.beta:.3g} after {self.rungs} rungs, expected 1: its walkers are not of the target. "
                "Take more rungs, more moves or a lower floor."
            )
        families = here.history[-1]["families"] * self.walkers
        if families < _FEW:
            text = "all walkers descend from %d of the first %d, so that weights of states are rough: take more walkers, or moves."
            log.warning(text, families, self.walkers)
        frames, spent = here.harvest(dig, energy, self.harvest, self.stride, task.seed + 10_000)
        row = {"stage": self.name, "frames": len(frames), "families": here.history[-1]["families"], "rungs": here.history}
        return dataclasses.replace(
            progress, frames=frames, evaluations=progress.evaluations + here.evaluations + spent, history=[*progress.history, row]
        )


class _Walkers(NamedTuple):
    """Where they are, float64, with the target's log-density and its gradient there; ``family`` names the first ancestor."""

    state: State
    log_target: Tensor
    force: Tangent
    family: Tensor
    beta: float
    top: float
    size: float
    evaluations: int
    history: list[dict]

    @classmethod
    def start(cls, dig: DiG, energy: Energy, n: int, seed: int) -> _Walkers:
        drawn = dig.process.prior(dig.process.empty(n, torch.float64)).sample(Streams(seed, range(n)))
        state = {name: x.double() for name, x in drawn.items()}
        log_target, force = _target(dig, energy, state)
        return cls(state, log_target, force, torch.arange(n), 0.0, float(log_target.max()), 0.3, n, [])

    @classmethod
    def given(cls, dig: DiG, energy: Energy, frames: Frames, options: Population, cap: float, seed: int) -> _Walkers:
        """As many as wanted of ``frames``, moved until they are of the law at ``first``; each is an ancestor then."""
        n = options.walkers
        state = {name: x.double() for name, x in frames.take(torch.arange(n) % len(frames)).state.items()}
        log_target, force = _target(dig, energy, state)
        top = float(log_target.max())
        here = cls(state, log_target, force, torch.arange(n), options.first, top, 0.3, n, [])
        for part in range(0, options.settle, options.moves):  # energies fall on the way, and what is capped with them
            here, _ = here.moved(dig, energy, options.moves, cap, seed + 20_000 + part)
            here = here._replace(top=max(here.top, float(here.log_target.max())))
        return here._replace(family=torch.arange(n))

    def law(self, dig: DiG, beta: float, top: float, cap: float) -> Tensor:
        """(n,) log of the law at ``beta``."""
        log_target = _softened(self.log_target, beta, top, cap)[0]
        log_prior, _ = prior_law(dig.process, self.state)
        return torch.where(torch.isfinite(log_target), beta * log_target + (1 - beta) * log_prior, -math.inf)

    def rung(self, dig: DiG, energy: Energy, options: Population, cap: float, seed: int) -> _Walkers:
        """One law further: reweighted, resampled, moved."""
        top = max(self.top, float(self.log_target.max()))
        now = self.law(dig, self.beta, self.top, cap) if self.beta else prior_law(dig.process, self.state)[0]
        now = torch.where(torch.isfinite(now), now, 0.0)

        def weights(beta: float) -> Tensor:
            return self.law(dig, beta, top, cap) - now

        beta = _furthest(weights, self.beta, options.floor)
        n = len(self.log_target)
        chosen = resampled(weights(beta), n, float(Streams(seed, [1]).uniform(1)))
        there = self._replace(
            state={k: x[chosen] for k, x in self.state.items()}, force={k: x[chosen] for k, x in self.force.items()},
            log_target=self.log_target[chosen], family=self.family[chosen], beta=beta, top=top,
        )  # fmt: skip
        there, accepted = there.moved(dig, energy, options.moves, cap, seed)
        families = len(there.family.unique()) / n
        row = {"rung": len(self.history), "beta": beta, "acceptance": accepted, "families": families, "size": there.size}
        return there._replace(history=[*self.history, row])

    def moved(self, dig: DiG, energy: Energy, moves: int, cap: float, seed: int) -> tuple[_Walkers, float]:
        """After ``moves`` Langevin steps, and the fraction of them that were accepted."""
        rng, here, accepted = torch.Generator().manual_seed(seed), self, 0.0
        for _ in range(moves):
            here, share = here.step(dig, energy, cap, rng)
            accepted += share / moves
        return here, accepted

    def step(self, dig: DiG, energy: Energy, cap: float, rng: torch.Generator) -> tuple[_Walkers, float]:
        def law(state: State):
            log_target, force = _target(dig, energy, state)
            return *_at(dig, state, log_target, force, self.beta, self.top, cap), log_target, force

        held = *_at(dig, self.state, self.log_target, self.force, self.beta, self.top, cap), self.log_target, self.force
        scale = {name: self.size * width for name, width in _widths(held[1]).items()}
        state, (_, _, log_target, force), accept = langevin_step(dig.process, self.state, held, law, scale, rng)
        share = float(accept.double().mean())
        size = self.size * math.exp(0.2 * (share - 0.57))
        spent = self.evaluations + len(accept)
        return self._replace(state=state, log_target=log_target, force=force, size=size, evaluations=spent), share

    def harvest(self, dig: DiG, energy: Energy, moves: int, stride: int, seed: int) -> tuple[Frames, int]:
        """Frames at the target, in random order, and the evaluations they took."""
        rng, here, found = torch.Generator().manual_seed(seed), self, []
        for number in range(moves):
            here, _ = here.step(dig, energy, 0.0, rng)
            if number % stride == stride - 1:
                found.append(here)
        state = {k: torch.cat([w.state[k] for w in found]).float() for k in self.state}
        force = {k: torch.cat([w.force[k] for w in found]).float() for k in self.state}
        # In random order, so that every part of them, a validation split for one, is like the whole.
        order = torch.randperm(len(found) * len(self.log_target), generator=rng)
        return Frames(state, force).take(order), here.evaluations - self.evaluations

    def write(self, path: Path) -> None:
        tensors = {f"state.{k}": x for k, x in self.state.items()} | {f"force.{k}": x for k, x in self.force.items()}
        tensors |= {"log_target": self.log_target, "family": self.family}
        about = json.dumps({k: getattr(self, k) for k in ("beta", "top", "size", "evaluations", "history")})
        write_tensors(path, tensors, walkers=about)

    @classmethod
    def read(cls, path: Path) -> _Walkers:
        with understood(path, "is not of this run", "delete it to start anew"):
            held, about = read_tensors(path)
            state, force = ({k[6:]: x for k, x in held.items() if k.startswith(kind)} for kind in ("state.", "force."))
            return cls(state, held["log_target"], force, held["family"], **json.loads(about["walkers"]))


def spread_out(dig: DiG, energy: Energy, frames: Frames, wanted: int, seed: int, *, stride: int = 20) -> tuple[Frames, int]:
    """At least ``wanted`` frames of the target law from fewer, by Langevin steps of each; and the evaluations they took.

    Frames that stand for many, or twice for the same, thus spread over their basin; between basins nothing changes.
    """
    state = {k: x.double() for k, x in frames.state.items()}
    log_target, force = _target(dig, energy, state)
    n = len(log_target)
    here = _Walkers(state, log_target, force, torch.arange(n), 1.0, 0.0, 0.3, n, [])
    found, spent = here.harvest(dig, energy, stride * math.ceil(wanted / n), stride, seed)
    return found, n + spent


def _target(dig: DiG, energy: Energy, state: State) -> tuple[Tensor, Tangent]:
    """As :func:`target_law`, -inf where the coordinates are not those of a structure."""
    log_target, force = target_law(dig, energy, state)
    return torch.where(dig.coordinates.valid(state, dig.descriptor), log_target, -math.inf), force


def _at(dig: DiG, state: State, log_target: Tensor, force: Tangent, beta: float, top: float, cap: float) -> tuple[Tensor, Tangent]:
    """Log of the law at ``beta`` and its gradient."""
    if beta == 1:
        return log_target, force
    soft, scale = _softened(log_target, beta, top, cap)
    log_prior, prior = prior_law(dig.process, state)
    slope = {k: beta * f * scale.reshape(-1, *[1] * (f.dim() - 1)) + (1 - beta) * prior[k] for k, f in force.items()}
    return torch.where(torch.isfinite(soft), beta * soft + (1 - beta) * log_prior, -math.inf), slope


def _softened(log_target: Tensor, beta: float, top: float, cap: float) -> tuple[Tensor, Tensor]:
    """What counts of the target at ``beta``. The cap rises without bound: a fixed one would leave room, and walkers, above it."""
    return softened(log_target, top, cap / (1 - beta)) if beta < 1 else (log_target, torch.ones_like(log_target))


def _widths(slope: Tangent) -> Tangent:
    """How wide the law is along each coordinate, from the typical force on the walkers; at most 1."""
    return {name: 1 / (f.abs().median(0).values / 0.6745).clamp_min(1.0) for name, f in slope.items()}


def _furthest(weights, beta: float, floor: float) -> float:
    """The largest beta' at which weights(beta') keep an effective fraction of ``floor``, by bisection in log beta."""

    def worth(at: float) -> float:
        found = weights(at)
        return effective_sample_size(found) if bool((found > -math.inf).any()) else 0.0

    if worth(1.0) >= floor:
        return 1.0
    low, high = math.log(max(beta, 1e-12)), 0.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if worth(math.exp(middle)) >= floor else (low, middle)
    # At least a little: where many walkers are impossible at any beta, resampling alone brings the floor back.
    return min(1.0, max(math.exp(low), beta * 1.02, 1e-12))
