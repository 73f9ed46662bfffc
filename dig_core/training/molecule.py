"""One molecule from its energy: an untrained model in internal coordinates, and the stages and sizes that a budget allows."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..coordinates import Coordinates
from ..energy import Energy
from ..files import write_atomically
from ..montecarlo.analysis import effective_sample_size, metropolis_acceptance
from ..montecarlo.chain import Pool
from ..montecarlo.wells import Wells
from ..nn import ResidualMLP
from ..progress import Show
from ..score import NoiseScore
from .fit import Fitted, Progress, Stage
from .fit import fit as run_stages
from .loop import LoopConfig
from .losses import Frames
from .molecules import internal_process
from .plan import Plan
from .population import Population
from .stages import Denoise, Reweight, Standardise
from .wells import Harvest

if TYPE_CHECKING:
    from ..dig import DiG

__all__ = ["fit_molecule", "internal_model", "width_of"]

_HOT = 0.25
"""Fraction of the energy at which walkers that start from structures begin: ten kT then are two and a half."""
_CHAINS = 4000


def internal_model(coordinates: Coordinates, *, width: int = 256, blocks: int = 4, seed: int = 0) -> NoiseScore:
    """An untrained score model in internal coordinates: torsions on a torus, the rest standardised, a residual network."""
    shape, torsion = len(coordinates.centre), len(coordinates.torsion_atoms)  # type: ignore[attr-defined]
    sizes = {"shape": shape, "torsion": torsion}
    network = ResidualMLP(sizes, ["torsion"], width=width, blocks=blocks, precision="bfloat16", seed=seed)
    return NoiseScore(network, internal_process(**sizes)).requires_grad_(False)


def width_of(coordinates: Coordinates) -> int:
    """Of the network, from the number of coordinates."""
    return 256 if len(coordinates.centre) < 150 else 384  # type: ignore[attr-defined]


def fit_molecule(
    dig: DiG,
    energy: Energy,
    build: Callable[[Coordinates], NoiseScore],
    plan: Plan,
    seconds: float,
    *,
    data: tuple[Frames, Frames] | None = None,
    start: Frames | Wells | None = None,
    out: Path | None = None,
    progress: Show = None,
    watch: Callable[[Progress], None] = lambda progress: None,
    began: float | None = None,
) -> Fitted:
    """Train the untrained ``dig`` on ``energy`` alone, or on ``data`` (training, validation) and the energy.

    Without data there are frames first. Where ``start`` are wells that chains go between, these are run. Otherwise a population of
    structures is annealed to exp(-u), from the model's prior, or from ``start``, rough structures of every basin, at four times the
    temperature. Either gives the coordinates anew, in which ``build`` makes the model. That is trained on those frames, and after
    annealing twice on independent ones that it makes itself, with its own exact weights.

    ``plan`` decides sizes once for a budget of ``seconds``, counted from ``began`` (time.monotonic; now if None); ``out`` gets the
    stages' checkpoints, ``model.safetensors`` and ``run.json``, and a call that was cut off goes on from there.
    """
    began = time.monotonic() if began is None else began
    directory = None if out is None else out / "stages"
    run = functools.partial(
        run_stages, dig, energy=energy, directory=directory, seed=plan.seed % 2**31, progress=progress, watch=watch
    )
    if data is not None:
        run = functools.partial(run, frames=data[0], validation=data[1])
    elif isinstance(start, Frames):
        run = functools.partial(run, frames=start)
    sizes = plan.sizes(dig, energy, seconds)
    stages: list[Stage] = [] if data is not None else [_first(start, sizes["population"]), Standardise(build)]
    here = run(stages) if stages else Progress(dig)
    if here.finished:
        left = plan.rest(seconds - (time.monotonic() - began), sizes, seconds, exact=data is None and isinstance(start, Wells))
        stages += [Denoise(LoopConfig(**left["denoise"]))]
        stages += [Reweight(draws, 1, LoopConfig(**config), left["least"]) for draws, config in left["reweight"]]
        here = run(stages)
    return _finish(here, energy, plan, out, time.monotonic() - began)


def _first(start: Frames | Wells | None, sizes: dict) -> Stage:
    """Where the first frames come from."""
    if not isinstance(start, Wells):
        return Population(**sizes, first=0.0 if start is None else _HOT)
    known = {"walkers": "chains", "settle": "settle", "harvest": "moves", "stride": "stride"}
    return Harvest(start, **{known[name]: min(value, _CHAINS) for name, value in sizes.items()})


def _finish(here: Progress, energy: Energy, plan: Plan, out: Path | None, seconds: float) -> Fitted:
    """Measure the finished model, write it with what it cost."""
    seconds += plan.held.get("seconds", 0.0)
    plan.keep("seconds", seconds)
    if not here.finished:
        return Fitted(here.dig, 0.0, 0.0, here.evaluations, seconds, here.history, False)
    log_weight = Pool(here.dig.proposal(), energy, seed=plan.seed + 1, batch=512).take(4096).log_weight
    ess, acceptance = effective_sample_size(log_weight), metropolis_acceptance(log_weight)
    measured = {"raw_ess": round(ess, 4), "acceptance": round(acceptance, 4), "proposals": len(log_weight), "steps": here.dig.card.steps}
    history = [{"seed": plan.seed, "evaluations": here.evaluations, "seconds": round(seconds)}, *here.history]
    dig = dataclasses.replace(here.dig, card=dataclasses.replace(here.dig.card, measured=measured, history=history))
    if out is not None:
        dig.save(out / "model.safetensors")
        about = {**measured, "evaluations": here.evaluations, "seconds": seconds, "seed": plan.seed, "history": here.history}
        write_atomically(out / "run.json", json.dumps(about, indent=1).encode())
    return Fitted(dig, ess, acceptance, here.evaluations, seconds, history, True)
