"""Sites as the modes of a learned density: hot samples that climb, no grid of starting points, no energy until they are relaxed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
from ase import Atoms

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError
from dig_core.random import as_seed
from dig_core.sampling.modes import climb
from dig_core.types import Geometry

from .sample import on_slab, sample_adsorption
from .sites import SiteSet

__all__ = ["find_sites"]

_RADIUS = 0.2  # Angstrom: what climbed closer than this is one site
_CLIMBS = 200  # steps at most: a shallow mode is climbed slowly


def find_sites(
    slab: Atoms, adsorbate, model: DiG | str | Path = "adsorb-general", *, n: int = 400, temperature: float = 1500.0,
    cool: float = 600.0, width: float = 0.1, min_weight: float = 0.01, seed: int | None = None, normal=None,
    anchor: int | None = None, yielding: bool = False, unseen: bool = False, batch: int = 512,
) -> SiteSet:  # fmt: skip
    """The sites of ``adsorbate`` on ``slab``, the most probable first, where its learned density has its maxima.

    ``n`` structures drawn at ``temperature`` climb the density of the temperature ``cool`` by mean shift
    (:func:`dig_core.sampling.modes.climb`): hot samples reach every basin, cold modes say where exactly it is lowest. A
    site's ``probability`` is the share of the hot structures that climbed to it; :meth:`SiteSet.relax` gives energies.

    Parameters
    ----------
    temperature, cool: K. width: Angstrom, of the noise that smooths the density: sites closer than about this merge.
    min_weight: sites with less probability are left out. The rest, and errors, are those of :func:`sample_adsorption`.
    """
    if not 0 < width < 1 or not cool > 0:
        raise IncompatibleError(
            f"expected a width between 0 and 1 Angstrom and a temperature above zero, got {width} and {cool}."
        )
    wall, cpu, seed = time.monotonic(), time.process_time(), as_seed(seed)
    given = {"normal": normal, "anchor": anchor, "yielding": yielding, "unseen": unseen}
    hot = sample_adsorption(slab, adsorbate, model, n=n, temperature=temperature, seed=seed, batch=batch, **given)
    dig, _ = on_slab(slab, adsorbate, model, temperature=cool, **given)
    t, tops = _time_of(dig, width), []
    good = torch.as_tensor(hot.valid)
    for part in torch.as_tensor(hot.positions)[good].split(batch):
        state, _ = dig.coordinates.encode(Geometry(part), dig.descriptor)
        top = climb(dig.model, dig.descriptor, state, t, iterations=_CLIMBS)
        tops.append(dig.coordinates.decode(top, dig.descriptor).positions)
    positions = hot.positions.copy()
    positions[good.numpy()] = torch.cat(tops).numpy()
    source = f"modes at {cool:g} K of {dig.card.name}, from {n} structures at {temperature:g} K, seed {seed}"
    climbed = replace(hot, positions=positions, anomalies=(), log_q=None).labelled()
    spent = {"wall_s": time.monotonic() - wall, "cpu_s": time.process_time() - cpu}
    return replace(climbed.sites(_RADIUS, min_weight), source=source, **spent)


def _time_of(dig: DiG, width: float) -> float:
    """The time at which the noise in the plane is ``width`` Angstrom wide."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        sigma = float(dig.process["plane"].levels(torch.tensor([middle], dtype=torch.float64))[1])
        low, high = (middle, high) if sigma < width else (low, middle)
    return high
