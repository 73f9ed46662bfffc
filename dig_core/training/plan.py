"""How long a training of a given budget may be: sizes from measured times, decided once and kept in a file."""

from __future__ import annotations

import copy
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..energy import Energy
from ..errors import CheckpointError, IncompatibleError
from ..files import read_json, understood, write_atomically
from .draws import draw, target_law
from .loop import LoopConfig, optimise
from .losses import Denoising, Frames

if TYPE_CHECKING:
    from ..dig import DiG

__all__ = ["Plan", "draw_times", "seconds_of", "step_time"]

_UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "hour": 3600, "hours": 3600, "d": 86400}
_SHARE = 0.2  # of the budget for the population
_VISITS = 450  # evaluations a walker: some 20 rungs of 12 moves, and the harvest


class Plan:
    """Sizes decided once and kept in ``plan.json``, so that a resumed training is the same training."""

    def __init__(self, path: Path | None, held: dict):
        self.path, self.held = path, held
        self.seed = int(held["seed"])

    @classmethod
    def of(cls, out: Path | None, seed: int, numbers: list[int], temperature: float) -> Plan:
        fresh = {"seed": seed, "numbers": numbers, "temperature": temperature}
        if out is None:
            return cls(None, fresh)
        out.mkdir(parents=True, exist_ok=True)
        path = out / "plan.json"
        if not path.exists():
            write_atomically(path, json.dumps(fresh).encode())
            return cls(path, fresh)
        held = read_json(path)
        if held.get("numbers") != numbers or held.get("temperature") != temperature:
            raise CheckpointError(f"{out} holds the training of another molecule or temperature: choose another directory.")
        with understood(path, "cannot be read", "delete the directory to start anew"):
            _check(held)
            return cls(path, held)

    def sizes(self, dig: DiG, energy: Energy, seconds: float) -> dict:
        """Of the population, from measured times."""
        if "sizes" not in self.held:
            step, one = step_time(dig), draw_times(dig, energy)
            walkers = _between(_SHARE * seconds / (_VISITS * one["energy"]), 1000, 16_384)
            self.keep("sizes", {"population": {"walkers": walkers}, "step": step, **one})
        return self.held["sizes"]

    def rest(self, left: float, sizes: dict, seconds: float, *, exact: bool = False) -> dict:
        """Of what follows the first frames, from the time that is left: never less than half of the budget. ``exact``: they have the
        right weights, and all of it goes into learning from them."""
        if "rest" not in self.held:
            left = max(left, seconds / 2)

            def steps(share: float) -> dict:
                count = _between(share * left / sizes["step"], 200, 100_000)
                return {"steps": count, "every": max(1, min(1000, count // 4))}

            def draws(share: float) -> int:
                return _between(share * left / sizes["draw"], 2000, 3_000_000)

            rounds = [] if exact else [(draws(0.06), steps(0.12)), (draws(0.24), steps(0.30))]
            least = _between(0.1 * left / (20 * sizes["energy"]), 1000, 200_000)  # twenty energies a frame
            self.keep("rest", {"denoise": steps(0.9 if exact else 0.18), "reweight": rounds, "least": least})
        return self.held["rest"]

    def keep(self, key: str, value) -> None:
        """Remember ``value``, in the file where there is one."""
        self.held[key] = value
        if self.path is not None:
            write_atomically(self.path, json.dumps(self.held, indent=1).encode())


def _check(held: dict) -> None:
    """Raise whatever what is missing, or is no number, raises."""
    float(held.get("seconds", 0.0))
    if "sizes" in held:
        sizes = held["sizes"]
        numbers = [sizes["population"]["walkers"], sizes["step"], sizes["draw"], sizes["energy"]]
        if not all(float(number) >= 0 for number in numbers):
            raise ValueError(f"expected sizes of 0 or more, got {numbers}")
    if "rest" in held:
        rest = held["rest"]
        parts = [rest["denoise"], *(steps for _, steps in rest["reweight"])]
        counts = [rest["least"], *(draws for draws, _ in rest["reweight"]), *(part[key] for part in parts for key in ("steps", "every"))]
        if not all(isinstance(count, int) and count > 0 for count in counts):
            raise ValueError(f"expected positive counts, got {counts}")


def seconds_of(budget: str | float) -> float:
    """Seconds of a budget such as ``"30min"``, ``"2h"`` or 90. IncompatibleError for what is none."""
    if isinstance(budget, (int, float)):
        value = float(budget)
    else:
        found = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]*)\s*", budget.lower())
        if not found or found[2] not in {*_UNITS, ""}:
            raise IncompatibleError(f"expected a budget such as '30min', '2h' or a number of seconds, got {budget!r}.")
        value = float(found[1]) * _UNITS.get(found[2], 1)
    if not value > 0:
        raise IncompatibleError(f"expected a positive budget, got {budget!r}.")
    return value


def step_time(dig: DiG, steps: int = 10) -> float:
    """Seconds of a training step, on a copy of the untrained model; the first run pays for what is paid once."""
    model = copy.deepcopy(dig.model)
    state = {n: torch.zeros(1024, *p.space.shape) for n, p in dig.process.items()}
    frames = Frames(state, {n: torch.zeros_like(x) for n, x in state.items()})
    model.requires_grad_(True)  # type: ignore[attr-defined]
    for _ in range(2):
        began = time.monotonic()
        config = LoopConfig(steps=steps, every=steps)
        optimise(model, Denoising(frames, dig.descriptor), config, progress=False)  # type: ignore[arg-type]
    return (time.monotonic() - began) / steps


def draw_times(dig: DiG, energy: Energy, n: int = 512) -> dict[str, float]:
    """Seconds of a weighed proposal, and of an energy with its gradient in the model's coordinates."""
    drawn = draw(dig, energy, n, seed=0, progress=False)
    began = time.monotonic()
    draw(dig, energy, n, seed=0, progress=False)
    halfway = time.monotonic()
    target_law(dig, energy, drawn.state)
    return {"draw": (halfway - began) / n, "energy": (time.monotonic() - halfway) / n}


def _between(value: float, low: int, high: int) -> int:
    return int(min(max(value, low), high))
