"""Training in stages: from data, from an energy, or from both, resumable as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from ..energy import Energy
from ..errors import IncompatibleError
from ..files import read_json, understood, write_atomically
from ..progress import Show
from .frames import read_frames, with_forces, write_frames
from .losses import Frames

if TYPE_CHECKING:
    from ..dig import DiG

__all__ = ["Fitted", "Progress", "Stage", "Task", "fit"]


@dataclass(frozen=True)
class Progress:
    """What travels from stage to stage.

    ``frames`` and ``validation`` are of the target law in the coordinates of ``dig``; ``evaluations`` of the energy so far;
    ``history`` one dict a stage; ``finished`` False if a stage was interrupted.
    """

    dig: DiG
    frames: Frames | None = None
    validation: Frames | None = None
    evaluations: int = 0
    history: list[dict] = field(default_factory=list)
    finished: bool = True


@dataclass(frozen=True)
class Task:
    """What every stage is given: the energy (or None), its own directory (or None), a seed, whether to show progress.

    ``watch`` is called with the Progress so far, after every stage and inside long ones: early pictures.
    """

    energy: Energy | None
    directory: Path | None
    seed: int
    progress: Show
    watch: Callable[[Progress], None] = lambda progress: None

    def needed_energy(self) -> Energy:
        """The energy; IncompatibleError if there is none."""
        if self.energy is None:
            raise IncompatibleError("this stage needs an energy: pass energy= to fit, or leave the stage out.")
        return self.energy


class Fitted(NamedTuple):
    """``dig`` and what to expect of it: raw effective sample size and acceptance of its proposals, as fractions (nan if not measured).

    ``evaluations`` of the energy and wall-clock ``seconds`` that the training took; ``history`` one dict a stage;
    ``finished`` False if it was interrupted: the same call goes on.
    """

    dig: DiG
    raw_ess: float
    acceptance: float
    evaluations: int
    seconds: float
    history: list[dict]
    finished: bool

    def __str__(self) -> str:
        cost = f"{self.evaluations:,} energy evaluations, {self.seconds / 60:.1f} minutes"
        if not self.finished:
            return f"interrupted after {cost}: run the same call again to go on."
        if self.raw_ess != self.raw_ess:
            return f"trained on frames alone, so that nothing says what to expect; {cost}."
        return f"expect an acceptance of {self.acceptance:.0%} and a raw effective sample size of {self.raw_ess:.0%}; {cost}."


class Stage(Protocol):
    """One step of a training; ``name`` labels its files. Interrupted, it returns with ``finished=False`` and goes on when run again."""

    @property
    def name(self) -> str: ...
    def run(self, progress: Progress, task: Task) -> Progress: ...


def fit(
    dig: DiG,
    stages: Sequence[Stage],
    *,
    energy: Energy | None = None,
    frames: Frames | None = None,
    validation: Frames | None = None,
    directory: str | Path | None = None,
    seed: int = 0,
    progress: Show = None,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Run ``stages`` one after the other on ``dig`` (trained in place) and return the last one's result.

    With ``directory`` each finished stage leaves ``N-name.safetensors``, its frames, and ``N-name.json`` there: a run that
    was cut off goes on after the last of them, and inside a stage from what that stage has written. Ctrl-C returns
    ``finished=False``.

    Parameters
    ----------
    energy: reduced energy of structures; needed by the stages that weigh samples. Frames without forces get them from it, one
        evaluation each: with both, data and energy are learned from together.
    frames, validation: data in the coordinates of ``dig``, as :func:`~dig_core.training.frames.frames_of` makes them.

    Raises
    ------
    IncompatibleError: no stages, or one that lacks what it needs. CheckpointError: the directory holds another training.
    """
    if not stages:
        raise IncompatibleError("expected at least one stage to run, got none.")
    here = Progress(dig, frames, validation)
    where = next(dig.model.parameters(), torch.empty(0)).device  # type: ignore[attr-defined]
    place = None if directory is None else Path(directory)
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(stages):
        stem = f"{number}-{stage.name}"
        if place is not None and (place / f"{stem}.json").exists():
            here = _read(place, stem, dig)
            here.dig.model.to(where)  # type: ignore[attr-defined]
            continue
        here = _informed(here, energy)
        task = Task(energy, None if place is None else place / stem, seed + 100_000 * number, progress, watch)
        try:
            here = stage.run(here, task)
        except KeyboardInterrupt:
            return replace(here, finished=False)
        if not here.finished:
            return here
        if place is not None:
            _write(place, stem, here)
        watch(here)
    return here


def _informed(progress: Progress, energy: Energy | None) -> Progress:
    """``progress`` with forces in its data, where there is an energy to ask."""
    spent = 0

    def informed(frames: Frames | None) -> Frames | None:
        nonlocal spent
        if energy is None or frames is None or frames.force is not None:
            return frames
        spent += len(frames)
        return with_forces(progress.dig.coordinates, progress.dig.descriptor, frames, energy, process=progress.dig.process)

    frames, validation = informed(progress.frames), informed(progress.validation)
    return replace(progress, frames=frames, validation=validation, evaluations=progress.evaluations + spent)


def _write(place: Path, stem: str, progress: Progress) -> None:
    """The JSON file comes last: where it is, the stage is complete."""
    progress.dig.save(place / f"{stem}.safetensors")
    for kind in ("frames", "validation"):
        frames = getattr(progress, kind)
        if frames is not None:
            write_frames(place / f"{stem}.{kind}", frames)
    about = {"evaluations": progress.evaluations, "history": progress.history}
    write_atomically(place / f"{stem}.json", json.dumps(about, indent=1).encode())


def _read(place: Path, stem: str, dig: DiG) -> Progress:
    with understood(f"stage {stem} in {place}", "cannot be read", f"delete {stem}.* to run it again"):
        about = read_json(place / f"{stem}.json")
        held = {kind: read_frames(path) if (path := place / f"{stem}.{kind}").exists() else None for kind in ("frames", "validation")}
        loaded, history = dig.load(place / f"{stem}.safetensors"), [dict(row) for row in about["history"]]
        return Progress(loaded, held["frames"], held["validation"], int(about["evaluations"]), history)
