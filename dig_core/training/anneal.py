"""Anneal and reweight: from an energy alone to the right weights of the states, by the model's own exact weights.

Each rung samples the model, weighs the samples for a law a little further on the way from the process's prior (what an
untrained model samples) to exp(-u), resamples, and trains on the result with its forces. Weights are exact for any
network, so errors of one rung do not reach the next; the step is as long as the raw effective sample size allows.
Annealed importance sampling: Neal, arXiv:physics/9803008; with retraining: Midgley et al., arXiv:2208.01893; in
temperature: Schopmans and Friederich, arXiv:2501.19077.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..files import understood
from ..tensors import read_tensors, write_tensors
from ..types import Geometry
from .basins import lost, relax
from .draws import Draws, draw, target_law
from .frames import join_frames
from .loop import LoopConfig, optimise
from .losses import Denoising, Frames

if TYPE_CHECKING:
    from ..dig import DiG
    from .fit import Progress, Task

__all__ = ["Anneal", "merged_frames", "next_rung"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Anneal:
    """Stage: sample, weigh, resample and train, from the prior to exp(-u); no data needed.

    Parameters
    ----------
    draws: proposals a rung, one energy evaluation each.
    floor, least: raw effective fraction of the draws that the next rung has to keep, the trust region. Where the present
        draws are worth less than twice ``floor`` it keeps half of what they are worth, but never less than ``least``.
    replay: rungs whose draws are trained on together, each with weights for the present rung.
    steps, batch, rate: training a rung. rungs: at most so many.
    goal, patience: at the target it goes on until the raw effective fraction is ``goal``, or ``patience`` rungs brought
        no new best.
    cap: kT above the best structure so far from which energies count only logarithmically on the way (not at the target);
        the number of coordinates if None, twice what heat takes.
    seeds: structures (S, N, 3) Angstrom of basins that must not be lost (short hot MD, a conformer search, the user).
        Basins of the law that the model would hardly propose are refilled by ``seed_steps`` of Langevin dynamics each.
    """

    draws: int = 30_000
    floor: float = 0.12
    least: float = 0.02
    replay: int = 3
    steps: int = 600
    batch: int = 1024
    rate: float = 1e-3
    rungs: int = 60
    goal: float = 0.2
    patience: int = 4
    cap: float | None = None
    seeds: Geometry | None = None
    seed_steps: int = 40
    name: str = field(default="anneal", init=False)

    def run(self, progress: Progress, task: Task) -> Progress:
        """The model at the target, the frames of its last rungs, and what it cost."""
        state = _Ladder(progress.dig, task.seed)
        if task.directory is not None:
            task.directory.mkdir(parents=True, exist_ok=True)
            state.resume(task.directory / "rung.safetensors")
        dig = state.dig
        while len(state.history) < self.rungs:
            rung = len(state.history)
            fresh = draw(dig, task.needed_energy(), self.draws, seed=task.seed + 1000 + rung, progress=task.progress, label=f"rung {rung}")
            state.evaluations += len(fresh)
            state.buffer = [*state.buffer, fresh][-self.replay :]
            state.top = max(state.top, float(fresh.log_target.max()))
            here = self._towards(fresh, state)
            row = {"rung": rung, "beta": state.beta, "ess": here.effective_fraction(state.beta), "ess_target": fresh.effective_fraction()}
            done = self._reached(state, row)
            state.beta = next_rung(here, state.beta, self.floor, self.least)
            frames = merged_frames(dig, [self._towards(d, state) for d in state.buffer], state.beta, task.seed + 10 * rung)
            refilled = self._refilled(dig, task, self._towards(fresh, state), state)
            row |= {"next": state.beta, "frames": len(frames), "refilled": 0 if refilled is None else len(refilled)}
            state.history.append(row)
            log.info("rung %(rung)d: beta %(beta).3g, raw ESS %(ess).3f, at the target %(ess_target).3g; next beta %(next).3g", row)
            if done:
                return state.progress(progress, frames)
            training = frames if refilled is None else join_frames([frames, refilled])
            if not self._train(dig, training, task, rung):
                return dataclasses.replace(progress, finished=False)
            task.watch(state.progress(progress, frames))
            if task.directory is not None:
                state.store(task.directory / "rung.safetensors")
        return state.progress(progress, merged_frames(dig, [self._towards(d, state) for d in state.buffer], state.beta, task.seed))

    def _towards(self, draws: Draws, state: _Ladder) -> Draws:
        """The draws as the law of the present rung sees them: softened on the way, exact at the target."""
        if state.beta == 1.0:
            return draws
        cap = sum(process.space.dim for process in state.dig.process.values()) if self.cap is None else self.cap
        return draws.softened(state.top, cap)

    def _reached(self, state: _Ladder, row: dict) -> bool:
        """Whether the target was reached well enough, or does not get better."""
        if row["beta"] < 1:
            return False
        at_target = [past["ess"] for past in state.history if past["beta"] == 1.0]
        stale = len(at_target) >= self.patience and max(at_target[-self.patience :]) <= max(at_target[: -self.patience], default=0.0)
        return row["ess"] >= self.goal or stale

    def _train(self, dig: DiG, frames: Frames, task: Task, rung: int) -> bool:
        config = LoopConfig(
            steps=self.steps, batch=self.batch, rate=self.rate, warmup=20, average=0.99, every=self.steps, seed=task.seed + rung
        )
        model = dig.model.requires_grad_(True)  # type: ignore[attr-defined]
        found = optimise(model, Denoising(frames, dig.descriptor), config, progress=task.progress, label=f"rung {rung}")
        dig.model.requires_grad_(False)  # type: ignore[attr-defined]
        return found.finished

    def _refilled(self, dig: DiG, task: Task, fresh: Draws, state: _Ladder) -> Frames | None:
        """Local frames of seeded basins that the model has lost, or None."""
        if self.seeds is None:
            return None
        seeds, _ = dig.coordinates.encode(Geometry(self.seeds.positions.double(), self.seeds.cell), dig.descriptor)
        log_target, _ = target_law(dig, task.needed_energy(), seeds)
        missing = lost(dig, fresh, seeds, log_target, state.beta, task.seed + len(state.history))
        state.evaluations += len(log_target)
        if not bool(missing.any()):
            return None
        log.warning("%d of %d seeded structures are hardly proposed: refilling their basins", int(missing.sum()), len(missing))
        chosen = {name: x[missing] for name, x in seeds.items()}
        frames, evaluations = relax(dig, task.needed_energy(), chosen, state.beta, self.seed_steps, task.seed + len(state.history))
        state.evaluations += evaluations
        return frames


def next_rung(draws: Draws, beta: float, floor: float, least: float) -> float:
    """The largest beta' >= beta at which these draws keep enough of a raw effective fraction; ``beta`` itself if none does.

    Enough is ``floor``, or half of what they are worth at ``beta`` where that is less, but at least ``least``.
    The law at beta is target^beta prior^(1 - beta). Found by bisection in log beta, since energies of overlapping atoms
    reach 1e10.
    """
    floor = min(floor, max(least, 0.5 * draws.effective_fraction(beta)))
    if draws.effective_fraction(1.0) >= floor:
        return 1.0
    low, high = math.log(max(beta, 1e-12)), 0.0
    if draws.effective_fraction(math.exp(low)) < floor:
        return beta
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if draws.effective_fraction(math.exp(middle)) >= floor else (low, middle)
    return math.exp(low)


def merged_frames(dig: DiG, buffer: list[Draws], beta: float, seed: int) -> Frames:
    """Frames of the law at ``beta`` from several models' draws, of each as many as they are worth there."""
    worth = [int(len(draws) * draws.effective_fraction(beta)) for draws in buffer]
    best = max(range(len(buffer)), key=worth.__getitem__)
    useful = [i for i, n in enumerate(worth) if n >= 2 or i == best]
    return join_frames([buffer[i].frames(dig.process, beta, max(2, worth[i]), seed + i) for i in useful])


class _Ladder:
    """Where an annealing stands: model, rung, draws of the last rungs, cost, history."""

    def __init__(self, dig: DiG, seed: int):
        self.dig, self.seed, self.beta, self.evaluations, self.top = dig, seed, 0.0, 0, -math.inf
        self.buffer: list[Draws] = []
        self.history: list[dict] = []

    def progress(self, progress: Progress, frames: Frames) -> Progress:
        history = [*progress.history, {"stage": "anneal", "evaluations": self.evaluations, "rungs": self.history}]
        return dataclasses.replace(
            progress, dig=self.dig, frames=frames, evaluations=progress.evaluations + self.evaluations, history=history
        )

    def store(self, path: Path) -> None:
        tensors = {f"model.{k}": v for k, v in self.dig.model.state_dict().items()}  # type: ignore[attr-defined]
        for number, draws in enumerate(self.buffer):
            for field_name, value in draws._asdict().items():
                parts = value.items() if isinstance(value, dict) else [("", value)]
                tensors |= {f"draws.{number}.{field_name}.{name}": x for name, x in parts}
        about = json.dumps({"beta": self.beta, "evaluations": self.evaluations, "history": self.history, "top": self.top})
        write_tensors(path, tensors, anneal=about)

    def resume(self, path: Path) -> None:
        if not path.exists():
            return
        with understood(path, "is not of this run", "delete it to start anew"):
            self._take(*read_tensors(path))

    def _take(self, tensors: dict[str, Tensor], words: dict[str, str]) -> None:
        about = json.loads(words["anneal"])
        self.beta, self.evaluations, self.history, self.top = (about[k] for k in ("beta", "evaluations", "history", "top"))
        self.dig.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})  # type: ignore[attr-defined]
        found: dict[str, dict] = {}
        for key in (k for k in tensors if k.startswith("draws.")):
            _, number, field_name, name = key.split(".")
            held = found.setdefault(number, {})
            if name:
                held.setdefault(field_name, {})[name] = tensors[key]
            else:
                held[field_name] = tensors[key]
        self.buffer = [Draws(**found[number]) for number in sorted(found, key=int)]
