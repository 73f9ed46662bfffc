"""The recipe of ``adsorb-general`` (any slab, CHGNet r2SCAN) and ``adsorb-fcc111`` (the DFT table of Xu and Kitchin).

python -m dig_plugins.ase.recipes.labels --out runs/adsorb                       # the calculator's labels, once
python -m dig_plugins.ase.recipes.adsorption general --out runs/general --labels runs/adsorb
python -m dig_plugins.ase.recipes.adsorption general --out runs/both --members runs/general/adsorb-general.safetensors MORE...
python -m dig_plugins.ase.recipes.adsorption fcc111 --out runs/fcc111 [--without Pt]

Resumable: run the same command again. ``adsorb-fcc111`` ships as the last command makes it. ``adsorb-general`` that ships is a committee of
three: on surfaces never trained on, models of other seeds find other sites, and their mean hangs less on the luck of one. Two learned
12,000 steps from the first 48 slabs (``--first 48 --steps 12000 --decay 0 --blur 0 --seed 2``, and 3), then 4,000 from all (``--start
runs/2/adsorb-general.safetensors --steps 4000 --rate 1e-3 --decay 0 --blur 0 --seed 2``): sharp, and sometimes far off. The third is
what the first command makes: smooth, and seldom far off.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from ase.io import read
from torch import Tensor

from dig_core.coordinates import Adsorbate
from dig_core.dig import Card, DiG
from dig_core.score import ScoreModel
from dig_core.system.descriptor import Descriptor
from dig_core.training.frames import read_frames, write_frames
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Frames, Objective
from dig_core.training.systems import Systems
from dig_plugins.ase.adsorption.describe import at_temperature
from dig_plugins.ase.adsorption.training import fresh
from dig_plugins.ase.recipes.labels import Labels
from dig_plugins.ase.recipes.samples import TEMPERATURES, described, labelled_frames
from dig_plugins.ase.recipes.slabs import SLABS, VALIDATION, SlabRecipe, adsorbate, guests, surface_vectors
from dig_plugins.ase.recipes.table import METALS, mixed_systems, table_systems
from dig_plugins.models import load

log = logging.getLogger(__name__)

__all__ = ["METALS", "general_systems", "train"]

_PLANS = {
    # Without decay and blur the loss on slabs not learned from is least after 1,000 steps.
    "general": {"steps": 2000, "batch": 384, "together": 6, "decay": 0.3, "blur": 0.4},
    "fcc111": {"steps": 4000, "batch": 384, "together": 2, "decay": 0.0, "blur": 0.0},
}


def general_systems(labels: Path, slabs: Mapping[str, SlabRecipe] = SLABS, *, n: int = 600) -> list[tuple[Descriptor, Frames]]:
    """Frames of every labelled adsorbate on every one of ``slabs`` at five temperatures, kept beside the labels."""
    coordinates, cache, found = Adsorbate(), labels / "frames", []
    cache.mkdir(parents=True, exist_ok=True)
    for name, recipe in slabs.items():
        for guest in guests(name):
            source = labels / f"{name}-{guest}.npz"
            if not source.exists():
                continue
            slab, held = read(labels / f"{name}.extxyz"), np.load(source)
            data = Labels(held["positions"], held["energy"], held["force"])
            places = [cache / f"{name}-{guest}-{temperature:.0f}.safetensors" for temperature in TEMPERATURES]
            if not all(place.exists() for place in places):
                seed = int.from_bytes(hashlib.sha256(f"{name}-{guest}".encode()).digest()[:4], "little")
                made = labelled_frames(slab, adsorbate(guest), surface_vectors(recipe, slab), data, coordinates, n, seed)
                for place, part in zip(places, made, strict=True):
                    write_frames(place, part)
                log.info("%s %s: %d frames a temperature", name, guest, len(made[0]))
            over = adsorbate(guest)
            over.positions += data.positions[data.energy.argmin(), 0]
            system = described(slab, over)
            found += [(at_temperature(system, t), read_frames(place)) for t, place in zip(TEMPERATURES, places, strict=True)]
    return found


def train(
    systems: list[tuple[Descriptor, Frames]], out: Path, steps: int, *, mixed: list[tuple[Descriptor, Frames]] | None = None,
    validation: list[tuple[Descriptor, Frames]] | None = None, width: int = 64, batch: int = 192, together: int = 4, company: int = 16,
    rate: float = 2e-3, decay: float = 0.0, blur: float = 0.0, seed: int = 1, start: str | None = None,
) -> DiG:  # fmt: skip
    """A network of ``systems``, trained for ``steps``; checkpoints in ``out``, and the loss on systems of ``validation`` in its log. With
    ``mixed`` ones, which take half of every batch, it reads of metals their d band alone. ``batch`` frames a step, of ``together`` slabs.
    ``start``: a model to go on from, its name or its file."""
    like = at_temperature(systems[0][0], 300.0)
    dig = fresh(like, width=width, seed=seed, d_band=mixed is not None) if start is None else load(start)
    config = LoopConfig(steps=steps, batch=batch, rate=rate, warmup=200, decay=decay, average=0.998, every=500, seed=seed)
    objective: Objective = Systems(systems, together=together, company=company, blur=blur)
    if mixed is not None:
        objective = _half(*(Systems(part, together=together // 2, company=company) for part in (systems, mixed)))
    judge = None if validation is None else Systems(validation)
    result = optimise(dig.model.requires_grad_(True), objective, config, validation=judge, directory=out)
    if not result.finished:
        raise SystemExit(f"stopped after {result.steps} of {steps} steps: run the same command again to go on.")
    return dataclasses.replace(dig, model=result.model.eval().requires_grad_(False))


def _half(*parts: Objective) -> Objective:
    """The mean of two objectives, each on half of the batch."""

    def together(model: ScoreModel, batch: int, order: torch.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        losses = [part(model, batch // 2, order, noise) for part in parts]
        return {name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]}

    return together


def _card(
    model: str, steps: int, systems: int, facets: Sequence[str] | None = None, without: str | None = None, before: Sequence[dict] = ()
) -> Card:
    """What the checkpoint says of itself; ``facets`` that it learned from, all if None; the metal that it is ``without``; ``before``:
    what it went on from."""
    history = [*before, {"stage": "denoise", "systems": systems, "steps": steps, "recipe": "dig_plugins/ase/recipes/adsorption.py"}]
    shared: dict = {
        "name": f"adsorb-{model}", "steps": 48, "history": history, "limits": "rigid adsorbates; the slab as given, unless yielding",
        "intended_use": "samples, sites and Monte Carlo proposals of an adsorbate on any slab; exact once an energy weighs them",
    }  # fmt: skip
    if model == "fcc111":
        scope = {"slab": [m for m in METALS if m != without], "adsorbate": ["H", "C", "N", "O"], "temperature": [300, 2000]}
        energy = "DFT table of Xu and Kitchin, doi:10.1021/jp508805h"
        return Card(system="H, C, N, O on fcc(111) of seven metals", energy=energy, scope=scope, **shared)
    slabs = [recipe for recipe in SLABS.values() if facets is None or recipe.facet in facets]
    metals = sorted({symbol for recipe in slabs for symbol in re.findall("[A-Z][a-z]?", recipe.metal)})
    # Formulas in Hill's order, which is how a structure is asked for its own.
    scope = {"slab": metals, "adsorbate": ["H", "C", "N", "O", "CO", "HO"], "temperature": [300, 2000]}
    surfaces = ", ".join(sorted({recipe.facet for recipe in slabs}))
    energy = "CHGNet r2SCAN (chgnet 0.4.2, BSD-3)"
    return Card(system=f"atoms, CO and OH on {surfaces} of metals and alloys", energy=energy, scope=scope, **shared)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=("general", "fcc111"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--facets", nargs="*", help="of general: train on these surfaces only")
    parser.add_argument("--first", type=int, help="of general: train on that many slabs of the recipe only")
    parser.add_argument("--without", help="of fcc111: a metal to leave out")
    told = {"steps": "of training", "batch": "frames a step", "together": "slabs a step", "decay": "of weights", "blur": "of elements"}
    for name, what in told.items():
        usual = ", ".join(f"{plan[name]} of {model}" for model, plan in _PLANS.items())
        parser.add_argument(f"--{name}", type=type(_PLANS["general"][name]), help=f"{what}; {usual}")
    parser.add_argument("--members", type=Path, nargs="+", help="trained models of one recipe to answer together, instead of training")
    parser.add_argument("--start", help="a model to go on from: a shipped one's name, or a checkpoint")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    plan = {name: usual if getattr(given, name) is None else getattr(given, name) for name, usual in _PLANS[given.model].items()}
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    if given.members:
        given.out.mkdir(parents=True, exist_ok=True)
        first, *others = (DiG.load(file) for file in given.members)
        first.with_others(*others).save(given.out / f"adsorb-{given.model}.safetensors")
        return
    if given.model == "general":
        if given.labels is None:
            parser.error("general needs --labels, the directory that dig_plugins.ase.recipes.labels wrote.")
        slabs = dict(list(SLABS.items())[: given.first])
        slabs = {name: recipe for name, recipe in slabs.items() if given.facets is None or recipe.facet in given.facets}
        mixed, systems = None, general_systems(given.labels, slabs)
        # One temperature says enough.
        validation = general_systems(given.labels, VALIDATION)[2 :: len(TEMPERATURES)]
    else:
        if plan["blur"]:
            parser.error("--blur is of general: fcc111 reads d bands, not elements.")
        validation = None
        systems, mixed = table_systems(given.without, seed=given.seed), mixed_systems(given.without, seed=given.seed)
    log.info("%d systems, %d frames", len(systems), sum(len(f) for _, f in systems))
    width = 64 if given.model == "general" else 48
    judged = {"mixed": mixed, "validation": validation}
    dig = train(systems, given.out, **plan, **judged, width=width, rate=given.rate, seed=given.seed, start=given.start)
    # Of a fresh model that is empty.
    before = dig.card.history
    dig = dataclasses.replace(dig, card=_card(given.model, plan["steps"], len(systems), given.facets, given.without, before))
    dig.save(given.out / f"adsorb-{given.model}.safetensors")


if __name__ == "__main__":
    main()
