"""DiG: a score model, its coordinates and its system behind a thin facade."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .coordinates import Coordinates
from .diffusion.processes import Joint
from .errors import IncompatibleError, UnsupportedError
from .montecarlo.proposals import PathProposal
from .nn.committee import Committee
from .parallel import as_here, halving, in_order
from .random import Streams
from .sampling.density import flow_log_prob
from .sampling.guidance import Guidance, Guided
from .sampling.interpolate import interpolate
from .sampling.solvers import SOLVERS
from .score import NoiseScore, ScoreModel
from .system.descriptor import Descriptor
from .types import Geometry, LogProb, Samples, State

__all__ = ["Card", "DiG"]


@dataclass(frozen=True)
class Card:
    """What a model says of itself; every value is a JSON primitive.

    ``temperature`` in K, None for models of no single temperature; ``steps`` and ``paths`` the defaults of path proposals; ``pace``
    where those steps are, ``[time, steps up to it]`` one after the other up to time 1, evenly spread if empty;
    ``measured`` figures with the script that made them; ``history`` the stages of its training; ``scope`` what a model of
    many systems was trained on, kind of thing -> names or range.
    """

    name: str = "unnamed"
    system: str = ""
    energy: str = ""
    temperature: float | None = None
    steps: int = 50
    paths: int = 1
    licence: str = "MIT"
    units: str = "Angstrom, kT"
    measured: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    intended_use: str = ""
    limits: str = ""
    scope: dict = field(default_factory=dict)
    pace: list = field(default_factory=list)


@dataclass(frozen=True)
class DiG:
    """The equilibrium distribution of ``descriptor``'s system as a diffusion model. Parts that do not fit are refused here."""

    model: ScoreModel
    coordinates: Coordinates
    descriptor: Descriptor
    card: Card = Card()

    def __post_init__(self):
        if self.descriptor.reference is None:
            return
        state, _ = self.coordinates.encode(self.descriptor.reference, self.descriptor)
        given = {name: tuple(x.shape[1:]) for name, x in state.items()}
        wanted = {name: tuple(p.space.shape) for name, p in self.process.items()}
        if given != wanted:
            raise IncompatibleError(f"The coordinates make components {given}, the process diffuses {wanted}: build both for one system.")

    @property
    def process(self) -> Joint:
        return self.model.process

    def on(self, descriptor: Descriptor) -> DiG:
        """This model for another system, parameters shared. Raises UnsupportedError if its network serves one system only."""
        if not isinstance(self.model, NoiseScore):
            raise UnsupportedError(f"a {type(self.model).__name__} serves the system it was trained on: train a model for this one.")
        return replace(self, model=self.model.on(descriptor).eval(), descriptor=descriptor)

    def with_others(self, *others: DiG, weights: Sequence[float] | None = None) -> DiG:
        """A committee of this model and ``others`` of the same recipe: its score is the average of theirs, its samples are exact for that.

        Where models were trained apart, their errors on systems they never saw differ, and partly cancel; it costs as much as all of
        them together. ``weights``: one a model, this one's first, together 1; equal if None. ``dig.with_others(worse, weights=(3, -2))``
        leads away from what a worse model gets wrong (autoguidance, see :class:`~dig_core.nn.Committee`). Of committees the members
        join. System, coordinates and card are this model's, the history is everyone's. Raises IncompatibleError for models that noise or
        describe the system otherwise and for weights that do not fit, UnsupportedError for scores that are no networks of noise.
        """
        models = (self, *others)
        given = (1 / len(models),) * len(models) if weights is None else tuple(float(w) for w in weights)
        if len(given) != len(models):
            raise IncompatibleError(f"expected a weight for each of {len(models)} models, this one's first, got {given}.")
        networks, shares, history = [], [], []
        for dig, weight in zip(models, given, strict=True):
            for member, share in zip(dig.members(), _shares(dig), strict=True):
                if not isinstance(member.model, NoiseScore):
                    raise UnsupportedError(f"a {type(member.model).__name__} cannot join a committee: train models of noise (NoiseScore).")
                here = member.on(self.descriptor) if hasattr(member.model.network, "process") else member
                if _laws(here) != _laws(self):
                    raise IncompatibleError(f"{here.card.name!r} and {self.card.name!r} differ in coordinates or noise: train both alike.")
                networks.append(copy.deepcopy(member.model.network))
                shares.append(weight * share)
                history += [{**stage, "member": len(networks)} for stage in member.card.history]
        committee = NoiseScore(Committee(networks, shares), self.process).eval().requires_grad_(False)
        return replace(self, model=committee, card=replace(self.card, history=history))

    def members(self) -> list[DiG]:
        """The models of a committee one by one, each with its own history; of any other model itself."""
        if not _many(self):
            return [self]
        found = []
        for k, member in enumerate(self.model.network.members, start=1):  # type: ignore[attr-defined]
            stages = [{n: x for n, x in stage.items() if n != "member"} for stage in self.card.history if stage.get("member") == k]
            found.append(replace(self, model=NoiseScore(member, self.process), card=replace(self.card, history=stages)))
        return found

    def guided(self, *guidance: Guidance) -> DiG:
        """This model under conditions (article, eq. 8): its samples and proposals follow them."""
        return replace(self, model=Guided(self.model, *guidance, coordinates=self.coordinates))

    def grid(self, steps: int | None = None) -> Tensor:
        """(K + 1,) times from 0 to 1: even ones if ``steps`` K are given, the card's steps at its own pace if not.

        Schedules decide what an even step means. Raises IncompatibleError for no steps, and for a card whose pace does not end at time 1
        or has other than its steps.
        """
        if steps is None and self.card.pace:
            return _paced(self.card)
        steps = self.card.steps if steps is None else int(steps)
        if steps < 1:
            raise IncompatibleError(f"steps must be at least 1, got {steps}.")
        return torch.linspace(0, 1, steps + 1, dtype=torch.float64)

    def sample(
        self,
        n: int,
        *,
        seed: int,
        steps: int | None = None,
        method: str = "ancestral",
        batch: int = 256,
        guidance: Guidance | Sequence[Guidance] = (),
        executor: Executor | None = None,
    ) -> Samples:
        """``n`` independent structures (B, N, 3) Angstrom; sample i depends on (seed, i) alone.

        ``method``: ``"path"`` (ancestral with ``log_q`` for exact weights) or a solver of :mod:`dig_core.sampling.solvers`.
        ``guidance``: conditions, such as :class:`~dig_core.sampling.guidance.PropertyGuidance`. ``executor``: processes, here or on
        other machines, that draw a batch each; the samples are those of this process, bit by bit on processors of one kind. The model
        travels as the bytes of its checkpoint. A batch for which memory does not suffice is drawn in halves, with a warning.

        Raises
        ------
        IncompatibleError: options that make no sense. UnsupportedError: guidance in an executor. CheckpointError: a model in an executor
        that cannot be saved.
        """
        given: dict[str, Any] = {"seed": seed, "steps": steps, "method": method, "batch": batch, "guidance": guidance}
        return concatenate(list(self.stream(n, **given, executor=executor)))

    def stream(
        self,
        n: int,
        *,
        seed: int,
        steps: int | None = None,
        method: str = "ancestral",
        batch: int = 256,
        guidance: Guidance | Sequence[Guidance] = (),
        start: int = 0,
        executor: Executor | None = None,
    ) -> Iterator[Samples]:
        """The same in batches, with flat memory."""
        if n < 1 or batch < 1:
            raise IncompatibleError(f"expected at least 1 sample, in batches of at least 1, got n = {n} and batch = {batch}.")
        if method != "path" and method not in SOLVERS:
            raise IncompatibleError(f"method must be 'path' or one of {sorted(SOLVERS)}, got {method!r}.")
        wanted = guidance if isinstance(guidance, Sequence) else (guidance,)
        if executor is not None and wanted:
            raise UnsupportedError("conditions stay in this process: draw guided samples without executor=.")
        dig = self.guided(*wanted) if wanted else self
        grid = dig.grid(steps)
        batches = (range(low, min(low + batch, start + n)) for low in range(start, start + n, batch))
        if executor is None:
            yield from (concatenate(halving(partial(_drawn, dig, method, grid, seed), rows)) for rows in batches)
        else:
            task = partial(_drawn_elsewhere, dig, method, grid.tolist(), seed)
            yield from (_each(torch.from_numpy, found) for found in in_order(executor, as_here(task), batches))

    def to_samples(self, state: State, log_q: Tensor | None, kind: str | None, rng: Streams) -> Samples:
        """Structures of ``state``; ``log_q`` in the state's measure is carried to Angstrom. Invalid states get log_q = +inf.

        Those of a guided model come with its log-likelihood.
        """
        valid = self.coordinates.valid(state, self.descriptor)
        geometry = self.coordinates.pose(self.coordinates.decode(state, self.descriptor), rng)
        valid = valid & torch.isfinite(geometry.positions).flatten(1).all(1).to(valid.device)  # of a network that makes NaN
        if log_q is not None:
            log_q = log_q - self.coordinates.log_volume(state, self.descriptor)
            log_q = torch.where(valid, log_q, torch.full_like(log_q, math.inf))
        likelihood, properties = self.model.likelihood(state, self.descriptor) if isinstance(self.model, Guided) else (None, None)
        return Samples(geometry, state, log_q, valid, kind, likelihood, properties)

    def log_prob(self, geometry: Geometry, *, steps: int | None = None, kind: str = "trace", seed: int = 0) -> LogProb:
        """Log-density by the probability flow (eq. 6), in 1/Angstrom^(3N-3); ``kind``: trace, map or hutchinson."""
        state, log_det = self.coordinates.encode(geometry, self.descriptor)
        rng = Streams(seed, range(len(log_det)))
        found = flow_log_prob(self._precise(), self.descriptor, state, self.grid(steps), kind=kind, rng=rng)
        return LogProb(found.value + log_det, found.stderr, found.kind)

    def interpolate(
        self, start: Geometry, end: Geometry, n: int, *, steps: int | None = None, path: str = "spherical",
        apart: Callable[[Geometry, Geometry], Tensor] | None = None,
    ) -> Geometry:  # fmt: skip
        """``n`` structures from each of ``start`` to the same of ``end``, (P, N, 3), along a latent path, ends included: (P n, N, 3).

        ``apart``: the distances (B,) between B structures and B others, by which neighbours are to be about equally far from each other;
        None for latents that are. See :func:`~dig_core.sampling.interpolate.interpolate`.
        """
        first, last = (self.coordinates.encode(g, self.descriptor)[0] for g in (start, end))
        distance = None if apart is None else lambda a, b: apart(*(self.coordinates.decode(x, self.descriptor) for x in (a, b)))
        states = interpolate(self._precise(), self.descriptor, first, last, n, grid=self.grid(steps), path=path, apart=distance)
        return self.coordinates.decode(states, self.descriptor)

    def proposal(self, *, steps: int | None = None, paths: int | None = None) -> PathProposal:
        """The exact generator of independent Monte Carlo proposals: ``draw(n, rng)``, ``log_q(geometry, rng)``."""
        return PathProposal(self, steps=steps, paths=paths)

    def reduced_force(self, geometry: Geometry, *, t: float = 0.01) -> Tensor:
        """(B, N, 3) 1/Angstrom: grad of the model's log-density at noise time ``t`` with respect to the positions."""
        positions = geometry.positions.detach().double().requires_grad_()
        state, log_det = self.coordinates.encode(Geometry(positions, geometry.cell), self.descriptor)
        with torch.no_grad():
            score = self.model({n: x.detach() for n, x in state.items()}, torch.tensor([t], dtype=torch.float64), self.descriptor)
        moved = self.process.log({n: x.detach() for n, x in state.items()}, state)
        pulled = sum((moved[n] * score[n].double()).sum() for n in moved) + log_det.sum()
        return torch.autograd.grad(pulled, positions)[0]

    def _precise(self) -> ScoreModel:
        """The model in float64: a flow has to be run both ways, and low-precision products do not come back."""
        return copy.deepcopy(self.model).double() if isinstance(self.model, nn.Module) else self.model

    def save(self, path: str | Path) -> None:
        """One safetensors file, written atomically; see :mod:`dig_core.checkpoint`."""
        from .checkpoint import save

        save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> DiG:
        """A model from a checkpoint file; nothing is unpickled."""
        from .checkpoint import load

        return load(path)

    def __reduce__(self):
        """Other processes are sent the content of a checkpoint; there the network is put where their ``DIG_PLUGINS_DEVICE`` says."""
        from .checkpoint import arrived, dumps

        return arrived, (dumps(self),)

    def __deepcopy__(self, memo: dict) -> DiG:
        return DiG(*(copy.deepcopy(getattr(self, part.name), memo) for part in fields(self)))


def _many(dig: DiG) -> bool:
    """Whether the model is a committee."""
    return isinstance(dig.model, NoiseScore) and isinstance(dig.model.network, Committee)


def _shares(dig: DiG) -> tuple[float, ...]:
    """The weights of a model's members."""
    return dig.model.network.weights if _many(dig) else (1.0,)  # type: ignore[attr-defined]


def _laws(dig: DiG) -> list:
    """What tells one model's coordinates and noise from another's."""
    parts: list[tuple[str, Any]] = [("coordinates", dig.coordinates)]
    for name, process in dig.process.items():
        parts += [(name, process.space), (name, process.schedule)]
    return [(name, type(part).__name__, part.config) for name, part in parts]


def _paced(card: Card) -> Tensor:
    """The times of a card with a pace."""
    ends, counts = [0.0, *(float(end) for end, _ in card.pace)], [int(count) for _, count in card.pace]
    rising = all(low < high for low, high in zip(ends, ends[1:], strict=False))
    if not rising or ends[-1] != 1 or min(counts) < 1 or sum(counts) != card.steps:
        raise IncompatibleError(f"expected a pace that rises to time 1 in the card's {card.steps} steps, got {card.pace}: mend the card.")
    parts = [torch.linspace(a, b, n + 1, dtype=torch.float64)[1:] for a, b, n in zip(ends, ends[1:], counts, strict=False)]
    return torch.cat([torch.zeros(1, dtype=torch.float64), *parts])


def _drawn(dig: DiG, method: str, grid: Tensor, seed: int, rows: range) -> Samples:
    """Samples ``rows`` of a model."""
    rng = Streams(seed, rows)
    if method == "path":
        return PathProposal(dig, grid=grid).draw(len(rng), rng)
    return dig.to_samples(SOLVERS[method](dig.model, dig.descriptor, grid, rng), None, None, rng)


def _drawn_elsewhere(dig: DiG, method: str, grid: list[float], seed: int, rows: range) -> Samples:
    """In a worker: arrays in place of tensors, which processes would share."""
    draw = partial(_drawn, dig, method, torch.tensor(grid, dtype=torch.float64), seed)
    return _each(lambda x: x.detach().cpu().numpy(), concatenate(halving(draw, rows)))


def concatenate(batches: list[Samples]) -> Samples:
    """Batches of Samples as one."""
    return _each(lambda *parts: torch.cat(parts), *batches)


def _each(function: Callable, first: Any, *rest: Any) -> Any:
    """``function`` of the tensors, or arrays, that stand at the same place in each; what is none of them is the first's."""
    if isinstance(first, Tensor | np.ndarray):
        return function(first, *rest)
    if isinstance(first, dict):
        return {name: _each(function, x, *(part[name] for part in rest)) for name, x in first.items()}
    if isinstance(first, tuple):
        return type(first)(*(_each(function, *parts) for parts in zip(first, *rest, strict=True)))
    return first
