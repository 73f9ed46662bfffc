"""Sites as the modes of a learned density: samples that climb, no grid of starting points, no energy until they are relaxed."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError
from dig_core.random import as_seed
from dig_core.sampling.modes import climb, heights, lasting, profile
from dig_core.types import Geometry, State

from .ensemble import AdsorptionEnsemble
from .plane import shortest
from .sample import on_slab, sample_adsorption
from .sites import Site, SiteSet

__all__ = ["carried", "find_sites"]

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
    (:func:`dig_core.sampling.modes.lasting`). A site's ``probability`` is what the model gives it at ``cool``: the share of the
    structures that climbed to it, carried over from their mean temperature by its log-density (:func:`carried`).
    :meth:`SiteSet.relax` gives energies.

    Parameters
    ----------
    temperature, cool: K. width: Angstrom, of the noise that smooths the density: less than an atom moves in a site by its heat.
    barrier: in kT of ``cool``, by which the density falls on the way to any denser site; lower ones are noise; one network
        alone may need 0.05.
    min_weight: sites to which less of the structures climbed are left out. The rest, and errors, are those of :func:`sample_adsorption`.
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
    found = _joined(climbed, dig, t, barrier, 1 - math.sqrt(cool / temperature), min_weight, batch)
    spent = {"wall_s": time.monotonic() - wall, "cpu_s": time.process_time() - cpu}
    return replace(found, source=source, **spent)


def _drawn(slab: Atoms, adsorbate, model, n: int, temperatures: np.ndarray, seed: int, **options) -> AdsorptionEnsemble:
    """``n`` structures, as many at each temperature, in one table."""
    shares = [len(part) for part in np.array_split(np.arange(n), len(temperatures)) if len(part)] or [n]
    parts = [
        sample_adsorption(slab, adsorbate, model, n=size, temperature=float(t), seed=(seed + k) % 2**64, **options)
        for k, (size, t) in enumerate(zip(shares, temperatures[::-1], strict=False))
    ]
    held = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("positions", "valid")}
    return replace(parts[0], **held, anomalies=(), log_q=None)


def carried(shares: np.ndarray, height: np.ndarray, group: np.ndarray, drop: float) -> np.ndarray:
    """(k,) probabilities of sites at a lower temperature, of their ``shares`` at a higher one.

    ``height``: log-densities at the lower; ``drop``: 1 less the lower over the higher. A site of energy E and volume v has
    v exp(-E/kT) of the probability, so that it gains exp(drop height). Heights compare within a ``group``; each keeps its share.
    """
    gain = shares * np.exp(drop * (height - np.array([height[group == g].max() for g in group])))
    whole, now = (np.array([x[group == g].sum() for g in group]) for x in (shares, gain))
    return gain * whole / now


def _joined(
    climbed: AdsorptionEnsemble, dig: DiG, t: float, barrier: float, drop: float, min_weight: float, batch: int
) -> SiteSet:
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
    ways = np.concatenate(rise[1:] or rise)
    head, height = lasting(len(xy), pairs, ways, barrier), heights(len(xy), pairs, ways)
    ends = np.reshape(np.array(pairs, dtype=int), (-1, 2))
    group = connected_components(csr_array((np.ones(len(ends)), ends.T), shape=(len(xy), len(xy))), directed=False)[1]
    count = np.bincount(head, [site.count for site in sites], minlength=len(xy))
    share = np.minimum(np.bincount(head, [site.probability or 0.0 for site in sites], minlength=len(xy)), 1.0)
    kept, made = np.flatnonzero((count > 0) & (share >= min_weight)), []
    for k, p in zip(kept, carried(share[kept], height[kept], group[kept], drop), strict=True):
        error = p * math.sqrt(max(1 - share[k], 0.0) / count[k])
        made.append(replace(sites.sites[k], probability=float(p), stderr=error, count=int(count[k])))
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
