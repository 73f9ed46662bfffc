"""A plain resumable training loop: moving average, validation, CSV log, early pictures through a callback, safe to interrupt."""

from __future__ import annotations

import copy
import csv
import io
import math
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..files import understood, write_atomically
from ..progress import Show, bar
from ..score import EnergyScore, NoiseScore
from ..tensors import read_tensors, write_tensors
from .losses import Objective
from .team import team_of

__all__ = ["Judge", "LoopConfig", "LoopResult", "Trainable", "optimise"]


_COLUMNS = ("step", "training", "validation", "spread")


Trainable = NoiseScore | EnergyScore


class Judge(Protocol):
    """What says how good a model is: losses by name, ``noise`` and ``spread``."""

    def evaluate(self, model: Trainable, seed: int) -> dict[str, float]: ...


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast. ``steps`` optimiser steps of ``batch`` frames; cosine decay of ``rate`` after ``warmup`` steps.

    ``decay`` is that of the weights (AdamW's), ``average`` that of their moving average; ``clip`` bounds the norm of a gradient; ``every``
    steps between validations, pictures and checkpoints.
    """

    steps: int = 20_000
    batch: int = 1024
    rate: float = 1e-3
    warmup: int = 200
    decay: float = 0.0
    average: float = 0.999
    clip: float = 10.0
    every: int = 500
    seed: int = 0


@dataclass(frozen=True)
class LoopResult:
    """``model`` with the averaged weights; ``history`` one dict a validation; ``steps`` done; ``finished`` False if interrupted."""

    model: Trainable
    history: list[dict]
    steps: int
    finished: bool
    seconds: float


def optimise(
    model: Trainable,
    objective: Objective,
    config: LoopConfig = LoopConfig(),
    *,
    validation: Judge | None = None,
    directory: str | Path | None = None,
    picture: Callable[[Trainable, int], None] | None = None,
    progress: Show = None,
    label: str = "fit",
) -> LoopResult:
    """Train ``model`` (in place) until ``objective`` is small; its final weights are the moving average.

    ``validation``: :class:`.losses.Denoising` or :class:`.systems.Systems` of held-out frames: their loss, of the averaged
    model; ``label`` names the progress bar.

    With ``directory``, progress is written to ``log.csv`` and ``resume.safetensors`` there, and a run that was cut off
    goes on from the latter. Ctrl-C finishes the step, writes, and returns with ``finished=False``. ``picture(model, step)``
    is called with the averaged model at every validation, the first time after ``every`` steps.

    Where ``torch.distributed`` is initialised, as by :func:`.team.launched`, all its processes train one model: of
    :class:`.losses.Denoising` and :class:`.systems.Systems` each takes its rows of the batch that one process would take, so that the
    losses are the same; of other objectives each takes the whole batch, which gains nothing. The first process writes the files,
    which all must be able to read.

    Raises
    ------
    IncompatibleError: a loss that explodes. CheckpointError: the directory holds another run.
    """
    trainer = _Trainer(model, objective, config)
    team = trainer.team
    directory = None if directory is None else Path(directory)
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        trainer.resume(directory / "resume.safetensors")
    team.gather(model, trainer.step)
    began = time.monotonic()
    seen = bar(label=label, progress=progress if team.leads else False, total=config.steps, initial=trainer.step)
    with _interruptible() as stop, seen as shown:
        while trainer.step < config.steps and not team.any(stop.is_set()):
            loss = trainer.advance()
            shown.update()
            if trainer.step % config.every == 0 or trainer.step == config.steps:
                row = trainer.validate(validation)
                shown.set_postfix(loss=f"{loss:.3f}", validation=f"{row['validation']:.3f}")
                if directory is not None:
                    trainer.store(directory)
                team.gather(model, trainer.step)  # rounding may differ between processes
                if picture is not None and team.leads:
                    picture(trainer.averaged(), trainer.step)
    if directory is not None:
        trainer.store(directory)
    model.load_state_dict(trainer.average)
    team.gather(model, trainer.step)
    return LoopResult(model.eval(), trainer.history, trainer.step, trainer.step >= config.steps, time.monotonic() - began)


class _Trainer:
    """The state of a run: weights, their average, optimiser, generators, step, history."""

    def __init__(self, model: Trainable, objective: Objective, config: LoopConfig):
        self.team = team_of(model)
        config = replace(config, seed=self.team.agreed(config.seed))
        self.model, self.objective, self.config = model.train(), objective, config
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=config.rate, betas=(0.9, 0.99), weight_decay=config.decay, fused=True)
        self.average = {name: value.clone() for name, value in model.state_dict().items()}
        self.order, self.noise = (torch.Generator().manual_seed(2 * config.seed + k) for k in (0, 1))
        self.step, self.running = 0, math.nan
        self.history: list[dict] = []

    def advance(self) -> float:
        """One optimiser step; returns the running training loss."""
        config = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = config.rate * _factor(self.step, config)
        loss = torch.stack(list(self.objective(self.model, config.batch, self.order, self.noise).values()))
        self.optimiser.zero_grad()
        loss.sum().backward()
        loss = self.team.average(list(self.model.parameters()), loss.detach())
        if not torch.isfinite(loss.sum()):
            raise IncompatibleError(f"the loss became {float(loss.sum())} at step {self.step}: lower the rate, or clip more.")
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimiser.step()
        self.step += 1
        decay = min(config.average, self.step / (self.step + 100))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.model.state_dict().values()), 1 - decay)
        now = float(loss[0])
        self.running = now if math.isnan(self.running) else 0.99 * self.running + 0.01 * now
        return self.running

    @torch.no_grad()
    def validate(self, validation: Judge | None) -> dict:
        """A row of the log, with the losses of the averaged model on held-out frames."""
        row = dict(zip(_COLUMNS, (self.step, self.running, math.nan, math.nan), strict=True))
        if validation is not None:
            loss = validation.evaluate(self.averaged(), self.config.seed + 12345)
            row |= {"validation": loss["noise"], "spread": loss["spread"]}
        self.history.append(row)
        return row

    def averaged(self) -> Trainable:
        """The model with averaged weights, for looking at; training goes on with its own."""
        shown = copy.deepcopy(self.model)
        shown.load_state_dict(self.average)
        return shown.eval()

    def store(self, directory: Path) -> None:
        """What :meth:`resume` reads, then the log, all of it: a process that is killed in between writes it next time."""
        if not self.team.leads:
            return
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{k}": torch.as_tensor(v) for k, v in state.items()}
        tensors |= {"order": self.order.get_state(), "noise": self.noise.get_state()}
        tensors["progress"] = torch.tensor([self.step, self.running], dtype=torch.float64)
        rows = [[row[name] for name in _COLUMNS] for row in self.history]
        tensors["history"] = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(_COLUMNS))
        write_tensors(directory / "resume.safetensors", tensors)
        if self.history:
            write_atomically(directory / "log.csv", _table(self.history).encode())

    def resume(self, path: Path) -> None:
        """Go on from what :meth:`store` wrote, if it is there. CheckpointError if it is of another run."""
        if not path.exists():
            return
        with understood(path, "is not of this run", "use another directory, or delete it to start anew"):
            self._take(read_tensors(path)[0])

    def _take(self, tensors: dict[str, Tensor]) -> None:
        for part in ("average", "model"):
            self.model.load_state_dict({k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")})
        self.average = {k: tensors[f"average.{k}"].to(v) for k, v in self.model.state_dict().items()}
        state: dict[int, dict] = {}
        for key in (k for k in tensors if k.startswith("optimiser.")):
            _, number, name = key.split(".")
            state.setdefault(int(number), {})[name] = tensors[key]
        shapes = [parameter.shape for parameter in self.model.parameters()]
        for at, held in state.items():
            wanted = {"step": torch.Size(), "exp_avg": shapes[at], "exp_avg_sq": shapes[at]}
            if {name: x.shape for name, x in held.items()} != wanted:
                raise ValueError(f"expected averages of parameter {at} of shape {tuple(shapes[at])}")
        self.optimiser.load_state_dict({"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]})
        self.order.set_state(tensors["order"])
        self.noise.set_state(tensors["noise"])
        self.step, self.running = int(tensors["progress"][0]), float(tensors["progress"][1])
        rows = tensors.get("history", torch.empty(0, len(_COLUMNS))).tolist()
        self.history = [dict(zip(_COLUMNS, (int(row[0]), *row[1:]), strict=True)) for row in rows]


def _factor(step: int, config: LoopConfig) -> float:
    return min(1.0, (step + 1) / max(1, config.warmup)) * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def _table(history: list[dict]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS)
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


@contextmanager
def _interruptible():
    """An event that Ctrl-C sets instead of raising; the handler is put back afterwards (main thread only)."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
