"""Sites as the modes of a learned density: samples that climb, no grid of starting points, no energy until they are relaxed."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError
from dig_core.random import as_seed
from dig_core.sampling.modes import climb, lasting, profile
from dig_core.types import Geometry, State

from .ensemble import AdsorptionEnsemble
from .plane import shortest
from .sample import on_slab, sample_adsorption
from .sites import Site, SiteSet

__all__ = ["find_sites"]

_RADIUS = 0.2  # Angstrom: what climbed closer than this is one site
_CLIMBS = 200  # steps at most: a shallow mode is climbed slowly
_REACH = 3.0  # Angstrom: modes farther apart have others between them
_TEMPERATURES = 3  # at which structures are drawn


def find_sites(
    slab: Atoms, adsorbate, model: DiG | str | Path = "adsorb-general", *, n: int = 400, temperature: float = 1500.0,
    cool: float = 600.0, width: float = 0.05, barrier: float = 0.02, min_weight: float = 0.0025, seed: int | None = None,
    normal=None, anchor: int | None = None, yielding: bool = False, unseen: bool = False, batch: int = 512,
) -> SiteSet:  # fmt: skip
    """The sites of ``adsorbate`` on ``slab``, the most probable first, where its learned density has its maxima.

    ``n`` structures, a third each drawn at ``cool``, at ``temperature`` and at the geometric mean of both, climb the density of the
    temperature ``cool`` by mean shift (:func:`dig_core.sampling.modes.climb`): hot samples reach every basin, cold ones say which are
    deep, cold modes say where exactly they are lowest. Modes without a barrier between them are one site, the densest of them
    (:func:`dig_core.sampling.modes.lasting`). A site's ``probability`` is the share of the structures that climbed to it;
    :meth:`SiteSet.relax` gives energies.

    Parameters
    ----------
    temperature, cool: K. width: Angstrom, of the noise that smooths the density: less than an atom moves in a site by its heat.
    barrier: in kT of ``cool``, by which the density falls on the way to any denser site; lower ones are noise; one network
        alone may need 0.05.
    min_weight: sites with less probability are left out. The rest, and errors, are those of :func:`sample_adsorption`.
    """
    if not 0 < width < 1 or not min(cool, temperature) > 0 or not barrier >= 0:
        raise IncompatibleError(
            "expected a width between 0 and 1 Angstrom, temperatures above zero and a barrier that is not below it, got "
            f"{width}, {cool} and {temperature}, and {barrier}."
        )
    wall, cpu, seed = time.monotonic(), time.process_time(), as_seed(seed)
    given = {"normal": normal, "anchor": anchor, "yielding": yielding, "unseen": unseen}
    drawn = _drawn(slab, adsorbate, model, n, np.geomspace(cool, temperature, _TEMPERATURES), seed, batch=batch, **given)
    dig, _ = on_slab(slab, adsorbate, model, temperature=cool, **given)
    t, tops = _time_of(dig, width), []
    good = torch.as_tensor(drawn.valid)
    for part in torch.as_tensor(drawn.positions)[good].split(batch):
        state, _ = dig.coordinates.encode(Geometry(part), dig.descriptor)
        top = climb(dig.model, dig.descriptor, state, t, iterations=_CLIMBS)
        tops.append(dig.coordinates.decode(top, dig.descriptor).positions)
    positions = drawn.positions.copy()
    positions[good.numpy()] = torch.cat(tops).numpy()
    source = f"modes at {cool:g} K of {dig.card.name}, from {n} structures at {cool:g} to {temperature:g} K, seed {seed}"
    climbed = replace(drawn, positions=positions, anomalies=(), log_q=None).labelled()
    found = _joined(climbed, dig, t, barrier, batch)
    kept = tuple(site for site in found if (site.probability or 0.0) >= min_weight)
    spent = {"wall_s": time.monotonic() - wall, "cpu_s": time.process_time() - cpu}
    return replace(found, sites=kept, source=source, **spent)


def _drawn(slab: Atoms, adsorbate, model, n: int, temperatures: np.ndarray, seed: int, **options) -> AdsorptionEnsemble:
    """``n`` structures, as many at each temperature, in one table."""
    shares = [len(part) for part in np.array_split(np.arange(n), len(temperatures)) if len(part)] or [n]
    parts = [
        sample_adsorption(slab, adsorbate, model, n=size, temperature=float(t), seed=(seed + k) % 2**64, **options)
        for k, (size, t) in enumerate(zip(shares, temperatures[::-1], strict=False))
    ]
    held = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("positions", "valid")}
    return replace(parts[0], **held, anomalies=(), log_q=None)


def _joined(climbed: AdsorptionEnsemble, dig: DiG, t: float, barrier: float, batch: int) -> SiteSet:
    """Sites that a barrier, in nats of the density at time ``t``, parts from every denser one; each has what was part of it."""
    sites = climbed.sites(_RADIUS, 0.0)
    xy, lattice = np.array([site.xy for site in sites]), sites.lattice
    pairs = [(i, j) for j in range(len(xy)) for i in range(j) if np.linalg.norm(shortest(xy[j] - xy[i], lattice)) < _REACH]
    size, rise = max(batch // 10, 1), [np.zeros((0, 1))]
    for part in (pairs[k : k + size] for k in range(0, len(pairs), size)):
        start = _states(climbed, dig, [(sites.sites[i], xy[i]) for i, _ in part])
        # The copy of the second that is nearest to the first.
        end = _states(climbed, dig, [(sites.sites[j], xy[i] + shortest(xy[j] - xy[i], lattice)) for i, j in part])
        rise.append(profile(dig.model, dig.descriptor, start, end, t).numpy())
    head = lasting(len(xy), pairs, np.concatenate(rise[1:] or rise), barrier)
    total, made = sum(site.count for site in sites), []
    for k in np.unique(head):
        members = [site for site, top in zip(sites, head, strict=True) if top == k]
        count, share = sum(site.count for site in members), min(sum(site.probability or 0.0 for site in members), 1.0)
        made.append(replace(sites.sites[k], probability=share, stderr=math.sqrt(share * (1 - share) / total), count=count))
    return replace(sites, sites=tuple(sorted(made, key=lambda site: -(site.probability or 0.0))))


def _states(climbed: AdsorptionEnsemble, dig: DiG, places: list[tuple[Site, np.ndarray]]) -> State:
    """States (n, ...) of sites, each moved in the plane to a place (2,)."""
    positions = np.repeat(climbed.template.positions[None], len(places), 0)
    for made, (site, xy) in zip(positions, places, strict=True):
        made[list(climbed.adsorbate)] = site.positions + climbed.frame.to_cartesian(xy - site.xy)
    return dig.coordinates.encode(Geometry(torch.as_tensor(positions)), dig.descriptor)[0]


def _time_of(dig: DiG, width: float) -> float:
    """The time at which the noise in the plane is ``width`` Angstrom wide."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        sigma = float(dig.process["plane"].levels(torch.tensor([middle], dtype=torch.float64))[1])
        low, high = (middle, high) if sigma < width else (low, middle)
    return high
