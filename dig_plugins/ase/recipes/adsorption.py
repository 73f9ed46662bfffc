"""The recipe of ``adsorb-general`` (any slab, CHGNet r2SCAN) and ``adsorb-fcc111`` (the DFT table of Xu and Kitchin).

python -m dig_plugins.ase.recipes.labels --out runs/adsorb                       # the calculator's labels, once
python -m dig_plugins.ase.recipes.adsorption general --out runs/general --labels runs/adsorb --minutes 60
python -m dig_plugins.ase.recipes.adsorption fcc111 --out runs/fcc111 --minutes 10 [--without Pt]

Resumable: run the same command again.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
from ase.io import read

from dig_core.coordinates import Adsorbate
from dig_core.dig import Card, DiG
from dig_core.nn import AdsorptionGraphormer
from dig_core.score import NoiseScore
from dig_core.system.descriptor import Descriptor
from dig_core.training.frames import read_frames, write_frames
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Frames
from dig_core.training.systems import Systems
from dig_plugins.ase.recipes.labels import Labels
from dig_plugins.ase.recipes.samples import TEMPERATURES, at_temperature, described, labelled_frames
from dig_plugins.ase.recipes.slabs import ADSORBATES, SLABS, adsorbate, surface_vectors

log = logging.getLogger(__name__)

__all__ = ["general_systems", "train"]

_TABLE = "Xu and Kitchin, doi:10.1021/jp508805h"


def general_systems(labels: Path, cache: Path, *, facets: tuple[str, ...] | None = None, n: int = 600) -> list[tuple[Descriptor, Frames]]:
    """Frames of every labelled adsorbate on every slab at five temperatures, kept in ``cache``; ``facets`` keeps those slabs only."""
    coordinates, found = Adsorbate(), []
    cache.mkdir(parents=True, exist_ok=True)
    for name, recipe in SLABS.items():
        for guest in ADSORBATES if facets is None or recipe.facet in facets else ():
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


def train(systems: list[tuple[Descriptor, Frames]], out: Path, steps: int, *, width: int = 64, batch: int = 256, seed: int = 1) -> DiG:
    """A network of these systems, trained for ``steps``; checkpoints in ``out``."""
    network = AdsorptionGraphormer(width=width, conditions=1, seed=seed)
    descriptor = at_temperature(systems[0][0], 300.0)
    model = NoiseScore(network, network.process(descriptor))
    config = LoopConfig(steps=steps, batch=batch, rate=2e-3, warmup=200, average=0.998, every=500, seed=seed)
    result = optimise(model, Systems(systems), config, directory=out)
    dig = DiG(result.model.eval().requires_grad_(False), network.coordinates, descriptor, Card(steps=24))
    return dig
