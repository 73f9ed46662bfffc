"""One model of many adsorbates on many slabs, trained on frames of them all."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from ase import Atoms

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.progress import Show
from dig_core.random import as_seed
from dig_core.system.descriptor import Descriptor
from dig_core.system.surface import ADSORBATE, role_of
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Frames
from dig_core.training.systems import Systems

from ... import models
from .describe import temperature_of
from .training import fresh

__all__ = ["fit_systems"]

_LOG = logging.getLogger(__name__)


def fit_systems(
    systems: Sequence[tuple[Descriptor, Frames]], model: DiG | str | Path | None = None, *, steps: int = 4000, batch: int = 192,
    out: str | Path | None = None, seed: int | None = None, progress: Show = None,
) -> DiG:  # fmt: skip
    """Denoising score matching on all ``systems``, with their forces where they have them; the model then serves other slabs too.

    Parameters
    ----------
    systems: ``systems_of(...).systems``, in the coordinates of ``model``.
    model: where to start: a DiG, the name of a shipped model, a checkpoint's path; None for an untrained network.
    steps: of training, each on ``batch`` frames of a few systems. out: directory of checkpoints, where an interrupted call
        goes on, and of ``model.safetensors`` once it is finished. seed: recorded in the card's history.

    The card's scope names what the model has seen; that of the model it started from is kept. Ctrl-C returns the model so far.

    Raises
    ------
    IncompatibleError: no systems. UnsupportedError: a model that serves one system only, or other components than the frames have.
    """
    if not systems:
        raise IncompatibleError("expected at least one system with frames (systems_of), got none.")
    seed, descriptor = as_seed(seed), systems[0][0]
    if model is None:
        start = fresh(descriptor, width=64, seed=seed % 2**31)
        start = dataclasses.replace(start, card=dataclasses.replace(start.card, name="adsorption"))
    else:
        dig = (model if isinstance(model, DiG) else models.load(model)).on(descriptor)
        start = dataclasses.replace(dig, model=copy.deepcopy(dig.model))
    _check(start, systems)
    config = LoopConfig(
        steps=steps, batch=batch, rate=2e-3 if model is None else 5e-4, warmup=min(200, steps // 10), average=0.998,
        every=max(1, min(500, steps)), seed=seed % 2**31,
    )  # fmt: skip
    start.model.requires_grad_(True)
    result = optimise(start.model, Systems(systems, together=4), config, directory=out, progress=progress, label="fit systems")
    done = result.model.eval().requires_grad_(False)
    row = {"stage": "systems", "systems": len(systems), "frames": sum(len(f) for _, f in systems), "steps": result.steps, "seed": seed}
    known = _union(start.card.scope, _scope(systems))
    card = dataclasses.replace(start.card, temperature=None, history=[*start.card.history, row], scope=known, measured={})
    found = dataclasses.replace(start, model=done, card=card)
    if not result.finished:
        _LOG.warning("interrupted after %d of %d steps: the same call with out= goes on.", result.steps, steps)
    elif out is not None:
        found.save(Path(out) / "model.safetensors")
    return found


def _check(dig: DiG, systems: Sequence[tuple[Descriptor, Frames]]) -> None:
    for number, (descriptor, frames) in enumerate(systems):
        wanted = {name: tuple(p.space.shape) for name, p in dig.on(descriptor).process.items()}
        given = {name: tuple(x.shape[1:]) for name, x in frames.state.items()}
        if given != wanted:
            raise UnsupportedError(
                f"system {number}: its frames have components {given}, the model diffuses {wanted}: make them by systems_of with "
                "coordinates=model.coordinates."
            )


def _scope(systems: Sequence[tuple[Descriptor, Frames]]) -> dict:
    """What :func:`~.describe.check_scope` reads."""
    slabs, guests, temperatures = set(), set(), []
    for descriptor, _ in systems:
        guest = role_of(descriptor) == ADSORBATE
        slabs |= set(Atoms(descriptor.numbers[~guest].tolist()).get_chemical_symbols())
        guests.add(Atoms(descriptor.numbers[guest].tolist()).get_chemical_formula(mode="hill"))
        temperatures.append(round(temperature_of(descriptor), 3))
    return {"slab": sorted(slabs), "adsorbate": sorted(guests), "temperature": [min(temperatures), max(temperatures)]}


def _union(old: dict, new: dict) -> dict:
    if not old:
        return new
    joined = {key: sorted({*old.get(key, []), *new[key]}) for key in ("slab", "adsorbate")}
    both = [*old.get("temperature", new["temperature"]), *new["temperature"]]
    return old | joined | {"temperature": [min(both), max(both)]}
