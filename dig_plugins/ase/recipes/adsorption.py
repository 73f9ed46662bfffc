"""The recipe of ``adsorb-general`` (any slab, CHGNet r2SCAN) and ``adsorb-fcc111`` (the DFT table of Xu and Kitchin).

python -m dig_plugins.ase.recipes.labels --out runs/adsorb                       # the calculator's labels, once
python -m dig_plugins.ase.recipes.adsorption general --out runs/general --labels runs/adsorb --facets fcc111 fcc100 hcp0001 bcc110
python -m dig_plugins.ase.recipes.adsorption fcc111 --out runs/fcc111 --steps 9700 [--without Pt]

Resumable: run the same command again. The one that ships learned from flat facets alone. One that learned from steps as well, for longer,
was no better on steps; molecules there had half the labels that they are given now.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import logging
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import fcc111
from ase.io import read
from ase.units import kB

from dig_core.coordinates import Adsorbate
from dig_core.dig import Card, DiG
from dig_core.system.descriptor import Descriptor
from dig_core.training.frames import read_frames, write_frames
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Frames
from dig_core.training.systems import Systems
from dig_plugins.ase.adsorption.describe import at_temperature
from dig_plugins.ase.adsorption.surface import SiteSurface
from dig_plugins.ase.adsorption.training import fresh
from dig_plugins.ase.recipes.labels import Labels
from dig_plugins.ase.recipes.samples import TEMPERATURES, described, frames, labelled_frames
from dig_plugins.ase.recipes.slabs import ADSORBATES, SLABS, adsorbate, surface_vectors

log = logging.getLogger(__name__)

__all__ = ["METALS", "general_systems", "table_frames", "table_systems", "train"]

METALS = ("Ag", "Au", "Cu", "Ir", "Pd", "Pt", "Rh")


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


def table_systems(without: str | None = None, *, n: int = 1500, seed: int = 1) -> list[tuple[Descriptor, Frames]]:
    """H, C, N and O on the fcc(111) metals of the table, less one metal, at five temperatures."""
    rng, found = np.random.default_rng(seed), []
    for metal, guest in ((m, g) for m in METALS if m != without for g in ("H", "C", "N", "O")):
        found += [(system, table_frames(surface, system, t, n, rng)) for surface, system, t in _table_laws(metal, guest)]
    return found


def table_frames(surface: SiteSurface, system: Descriptor, temperature: float, n: int, rng: np.random.Generator) -> Frames:
    """``n`` independent draws of exp(-E/kT) and their forces: the plane by resampling, the height from its normal law."""
    fraction = rng.random((200_000, 2))
    value, height = surface.profile(fraction)
    weight = np.exp(-(value - value.min()) / (kB * temperature))
    chosen = rng.choice(len(value), n, p=weight / weight.sum())
    height = height[chosen] + np.sqrt(kB * temperature / surface.stiffness) * rng.normal(size=n)
    # Any translation of the surface will do: the model's cell holds several.
    steps = rng.integers(2, size=(n, 2))
    place = torch.tensor(surface.origin + (fraction[chosen] + steps) @ surface.vectors + height[:, None] * surface.normal)
    return frames(Adsorbate(), system, place[:, None], surface.forces(place)[:, None] / (kB * temperature))


def _table_laws(metal: str, guest: str) -> Iterator[tuple[SiteSurface, Descriptor, float]]:
    """The surface on a p(2x2) slab of the table's lattice constant, and the system at each temperature."""
    surface = SiteSurface.from_table(metal, guest)
    slab = fcc111(metal, (2, 2, 4), a=float(np.linalg.norm(surface.vectors[0])) * math.sqrt(2), vacuum=8)
    surface = surface.on(slab)
    over = Atoms(guest, [surface.origin + 1.5 * surface.normal])
    system = described(slab, over)
    yield from ((surface, at_temperature(system, t), t) for t in TEMPERATURES)


def train(
    systems: list[tuple[Descriptor, Frames]], out: Path, steps: int, *, width: int = 64, batch: int = 192, company: int = 0, seed: int = 1
) -> DiG:
    """A network of these systems, trained for ``steps``; checkpoints in ``out``."""
    dig = fresh(at_temperature(systems[0][0], 300.0), width=width, seed=seed)
    config = LoopConfig(steps=steps, batch=batch, rate=2e-3, warmup=200, average=0.998, every=500, seed=seed)
    result = optimise(dig.model.requires_grad_(True), Systems(systems, together=4, company=company), config, directory=out)
    return dataclasses.replace(dig, model=result.model.eval().requires_grad_(False))


def _card(model: str, steps: int, systems: int, facets: Sequence[str] | None = None) -> Card:
    """What the checkpoint says of itself; ``facets`` that it learned from, all if None."""
    history = [{"stage": "denoise", "systems": systems, "steps": steps, "recipe": "dig_plugins/ase/recipes/adsorption.py"}]
    shared: dict = {
        "name": f"adsorb-{model}", "steps": 48, "history": history, "limits": "rigid adsorbates; the slab as given, unless yielding",
        "intended_use": "samples, sites and Monte Carlo proposals of an adsorbate on any slab; exact once an energy weighs them",
    }  # fmt: skip
    if model == "fcc111":
        scope = {"slab": list(METALS), "adsorbate": ["H", "C", "N", "O"], "temperature": [300, 2000]}
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
    parser.add_argument("--without", help="of fcc111: a metal to leave out")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    if given.model == "general":
        if given.labels is None:
            parser.error("general needs --labels, the directory that dig_plugins.ase.recipes.labels wrote.")
        systems = general_systems(given.labels, given.labels / "frames", facets=tuple(given.facets) if given.facets else None)
    else:
        systems = table_systems(given.without, seed=given.seed)
    log.info("%d systems, %d frames", len(systems), sum(len(f) for _, f in systems))
    size = {"width": 64, "company": 16} if given.model == "general" else {"width": 48}
    dig = train(systems, given.out, given.steps, seed=given.seed, **size)
    dig = dataclasses.replace(dig, card=_card(given.model, given.steps, len(systems), given.facets))
    dig.save(given.out / f"adsorb-{given.model}.safetensors")


if __name__ == "__main__":
    main()
