"""Stages of a training besides annealing: denoising, fresh coordinates, the model's own frames, physics alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ..coordinates import Coordinates
from ..errors import IncompatibleError
from ..score import NoiseScore
from ..types import Geometry
from .basins import relax
from .draws import draw, prior_law, reweighted_frames
from .fit import Progress, Task
from .frames import frames_of, join_frames, read_frames, write_frames
from .loop import LoopConfig, LoopResult, Trainable, optimise
from .losses import Denoising, Frames, Objective
from .pidp import PIDP, TRUST
from .population import spread_out

if TYPE_CHECKING:
    from ..dig import DiG

__all__ = ["Denoise", "Physics", "Reweight", "Standardise"]

_HOT, _RELAXING = 0.3, 40
"""Where physics is learned without structures: chains this long from the model's draws, at this fraction of the energy."""


@dataclass(frozen=True)
class Denoise:
    """Stage: denoising score matching on the frames at hand, blended with their forces; the rest as of :class:`Denoising`.

    ``only``: train the parameters whose names begin so, leave all others as they are.
    """

    config: LoopConfig = LoopConfig()
    blended: bool = True
    company: int = 0
    between: tuple[float, float] | None = None
    only: str = ""
    name: str = field(default="denoise", init=False)

    def run(self, progress: Progress, task: Task) -> Progress:
        """The model trained on ``progress.frames``."""
        if progress.frames is None:
            raise IncompatibleError("this stage needs frames: pass frames= to fit, or anneal first.")
        objective = Denoising(progress.frames, progress.dig.descriptor, self.blended, company=self.company, between=self.between)
        found = train(progress, objective, self.config, task, self.name, self.only)
        row = {"stage": self.name, "frames": len(progress.frames), **_last(found)}
        return dataclasses.replace(progress, history=[*progress.history, row], finished=found.finished)


@dataclass(frozen=True)
class Reweight:
    """Stage: ``rounds`` of ``draws`` proposals, resampled to the exact ensemble by their weights, then trained on together.

    A model that is roughly right makes more independent frames this way in a minute than MD in an hour. Where the draws are
    worth fewer than ``least`` frames, which a network would learn by heart, Langevin steps of each make as many, and the
    frames at hand are kept beside them. ``company`` as of :class:`Denoising`.
    """

    draws: int = 400_000
    rounds: int = 1
    config: LoopConfig = LoopConfig()
    least: int = 0
    company: int = 0
    name: str = field(default="reweight", init=False)

    def run(self, progress: Progress, task: Task) -> Progress:
        """The model trained on its own reweighted frames, which become ``progress.frames``."""
        parts, shares, spent = [], [], 0
        for number in range(self.rounds):
            file = None if task.directory is None else task.directory / f"round-{number}.frames"
            if file is not None and file.exists():
                parts.append(read_frames(file))
            else:
                made = reweighted_frames(
                    progress.dig, task.needed_energy(), self.draws, seed=task.seed + 1000 + number, progress=task.progress
                )
                parts.append(made.frames)
                if file is not None:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_frames(file, made.frames)
            shares.append(len(parts[-1]) / self.draws)
        frames = join_frames(parts)
        if len(frames) < self.least:
            frames, spent = spread_out(progress.dig, task.needed_energy(), frames, self.least, task.seed + 2000)
            frames = frames if progress.frames is None else join_frames([progress.frames, frames])
        objective = Denoising(frames, progress.dig.descriptor, company=self.company)
        found = train(progress, objective, self.config, task, self.name)
        row = {"stage": self.name, "frames": len(frames), "ess": shares, **_last(found)}
        return dataclasses.replace(
            progress,
            frames=frames,
            evaluations=progress.evaluations + self.draws * self.rounds + spent,
            history=[*progress.history, row],
            finished=found.finished,
        )


@dataclass(frozen=True)
class Standardise:
    """Stage: coordinates with centres, widths and correlations of the frames, and an untrained model in them.

    ``build`` makes the model for given coordinates; the last ``held_out`` fraction of the frames becomes the validation.
    Changing coordinates takes the forces of the frames anew: an energy evaluation each, where there is an energy.
    """

    build: Callable[[Coordinates], NoiseScore]
    held_out: float = 0.05
    most: int = 100_000
    name: str = field(default="standardise", init=False)

    def run(self, progress: Progress, task: Task) -> Progress:
        """``progress`` in the new coordinates."""
        old = progress.dig
        if progress.frames is None:
            raise IncompatibleError("this stage needs frames: pass frames= to fit, or anneal first.")
        frames = progress.frames
        state = {name: x[: self.most].double() for name, x in frames.state.items()}
        positions = old.coordinates.decode(state, old.descriptor).positions
        coordinates = type(old.coordinates).from_frames(old.descriptor, Geometry(positions))  # type: ignore[attr-defined]
        fresh = frames_of(coordinates, old.descriptor, Geometry(positions), task.energy)
        count = max(2, int(len(fresh) * self.held_out))
        training, validation = _split(fresh, count)
        dig = dataclasses.replace(old, model=self.build(coordinates), coordinates=coordinates)
        spent = len(fresh) if task.energy is not None else 0
        history = [*progress.history, {"stage": self.name, "frames": len(fresh)}]
        return dataclasses.replace(
            progress, dig=dig, frames=training, validation=validation, evaluations=progress.evaluations + spent, history=history
        )


@dataclass(frozen=True)
class Physics:
    """Stage: the Fokker-Planck equation inside and forces at its edge (PIDP, article eq. 4), at structures of any law.

    Parameters
    ----------
    structures: where to look, (S, N, 3) Angstrom: of short hot molecular dynamics, say. Otherwise the frames at hand if
        they have forces, else short hot chains from draws of the model itself, of the prior if it is untrained.
    draws: energy evaluations that those chains may take.
    residual_weight, boundary_weight: of the equation and of the forces.
    trust: how frames of large forces count, see :data:`.pidp.TRUST`; None, for all alike, where frames are coarse.
    """

    config: LoopConfig = LoopConfig()
    structures: Geometry | None = None
    draws: int = 20_000
    residual_weight: float = 1.0
    boundary_weight: float = 1.0
    trust: float | None = TRUST
    name: str = field(default="physics", init=False)

    def run(self, progress: Progress, task: Task) -> Progress:
        """The model trained; frames are left as they are, since these need not be of the target law."""
        frames, spent = self._frames(progress, task)
        objective = PIDP(frames, progress.dig.descriptor, self.residual_weight, self.boundary_weight, trust=self.trust)
        found = train(progress, objective, self.config, task, self.name)
        row = {"stage": self.name, "frames": len(frames), "evaluations": spent, **_last(found)}
        return dataclasses.replace(
            progress, evaluations=progress.evaluations + spent, history=[*progress.history, row], finished=found.finished
        )

    def _frames(self, progress: Progress, task: Task) -> tuple[Frames, int]:
        """Where to look, with forces, and the energy evaluations that took."""
        dig = progress.dig
        if self.structures is not None:
            frames = frames_of(dig.coordinates, dig.descriptor, self.structures, task.needed_energy(), process=dig.process)
            return frames, len(frames)
        if progress.frames is not None and progress.frames.force is not None:
            return progress.frames, 0
        file = None if task.directory is None else task.directory / "chains.frames"
        if file is not None and file.exists():
            frames = read_frames(file)
        else:
            frames = self._chains(dig, task)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_frames(file, frames)
        return frames, self._count * (_RELAXING + 2)

    @property
    def _count(self) -> int:
        return max(2, self.draws // (_RELAXING + 2))

    def _chains(self, dig: DiG, task: Task) -> Frames:
        """Frames of hot chains, each with the force of the target."""
        energy = task.needed_energy()
        start = draw(dig, energy, self._count, seed=task.seed + 1000, progress=task.progress)
        alive = torch.isfinite(start.log_target).nonzero()[:, 0]
        if not len(alive):
            raise IncompatibleError(f"none of {len(start)} draws of the model has a finite energy: pass structures= to look at.")
        # Another takes the place of a draw without an energy.
        chosen = alive[torch.arange(len(start)) % len(alive)]
        seeds = {name: x[chosen].double() for name, x in start.state.items()}
        frames, _ = relax(dig, energy, seeds, _HOT, _RELAXING, task.seed)
        # The chains know the force of their own law, which is this much of the target's and the rest of the prior's.
        _, prior = prior_law(dig.process, frames.state)
        force = {name: (f - (1 - _HOT) * prior[name].float()) / _HOT for name, f in (frames.force or {}).items()}
        return Frames(frames.state, force)


def train(progress: Progress, objective: Objective, config: LoopConfig, task: Task, label: str, only: str = "") -> LoopResult:
    """The model of ``progress`` optimised in place, watched by its validation frames; left without gradients; ``only`` as of Denoise."""
    dig = progress.dig
    held_out = None if progress.validation is None else Denoising(progress.validation, dig.descriptor)
    model: Trainable = dig.model  # type: ignore[assignment]
    chosen = [p.requires_grad_(True) for name, p in model.named_parameters() if name.startswith(only)]
    if not chosen:
        raise IncompatibleError(f"the model has no parameters whose names begin with {only!r}.")
    config = dataclasses.replace(config, seed=config.seed + task.seed)
    try:
        return optimise(model, objective, config, validation=held_out, directory=task.directory, progress=task.progress, label=label)
    finally:
        dig.model.requires_grad_(False)  # type: ignore[attr-defined]


def _split(frames: Frames, count: int) -> tuple[Frames, Frames]:
    order = torch.arange(len(frames))
    return frames.take(order[:-count]), frames.take(order[-count:])


def _last(found: LoopResult) -> dict:
    return {k: v for k, v in found.history[-1].items() if v == v} if found.history else {}
