"""Basins of a weighted density over the plane: the modes that mean shift climbs to (Comaniciu and Meer, 10.1109/34.1000236)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .grid import binding_atom
from .maps import SurfaceMap
from .mesh import label_at
from .plane import shortest, wrap
from .sites import Site, SiteSet

if TYPE_CHECKING:
    from .ensemble import AdsorptionEnsemble

__all__ = ["basins", "sites_of"]

_CELL = 0.08  # Angstrom, of the grid that is climbed
_STEPS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]


def basins(xy: np.ndarray, weights: np.ndarray, lattice: np.ndarray, radius: float) -> np.ndarray:
    """(n,) number of the basin that each point (n, 2) Angstrom belongs to, modulo ``lattice``; basin 0 has the highest mode.

    The density is the points with a Gaussian of half the ``radius`` each, on a fine periodic grid; a basin is what climbs to one
    mode from cell to cell, and modes closer than ``radius`` are one.
    """
    shape = tuple(int(n) for n in np.maximum(np.ceil(np.linalg.norm(lattice, axis=1) / _CELL), 3))
    density = SurfaceMap.from_samples(xy, lattice, weights=weights, grid=shape, smooth=radius / 2)
    mode = _climbed(density)
    tops = np.unique(mode)
    tops = tops[np.argsort(-density.p.ravel()[tops])]
    joined = _joined(density.xy.reshape(-1, 2)[tops], lattice, radius)
    number = np.zeros(density.p.size, dtype=int)
    number[tops] = joined
    fractions = np.asarray(xy) @ np.linalg.inv(lattice) % 1.0
    cells = np.ravel_multi_index(tuple(np.minimum((fractions * shape).astype(int), np.array(shape) - 1).T), shape)
    return number[mode[cells]]


def _climbed(density: SurfaceMap) -> np.ndarray:
    """(cells,) the cell of the mode above every cell: steepest ascent to one of eight neighbours, followed to its end."""
    shape = density.p.shape
    index = np.arange(density.p.size).reshape(shape)
    # Slopes and not heights decide: the neighbours of a slanted cell are not equally far.
    length = {step: np.linalg.norm(np.array(step) / shape @ density.lattice) or 1.0 for step in _STEPS}
    rise = np.stack([(np.roll(density.p, (-i, -j), (0, 1)) - density.p) / length[i, j] for i, j in _STEPS])
    target = np.stack([np.roll(index, (-i, -j), (0, 1)) for i, j in _STEPS])
    best = np.take_along_axis(target, np.where(rise.max(0) > 0, rise.argmax(0), 4)[None], 0)[0].ravel()
    while True:
        further = best[best]
        if (further == best).all():
            return best
        best = further


def _joined(tops: np.ndarray, lattice: np.ndarray, radius: float) -> np.ndarray:
    """Number of the first, highest, mode within ``radius`` of each."""
    heads: list[int] = []
    number = np.zeros(len(tops), dtype=int)
    for i, top in enumerate(tops):
        apart = np.linalg.norm(shortest(tops[heads] - top, lattice), axis=-1) if heads else np.array([np.inf])
        if apart.min() < radius:
            number[i] = int(apart.argmin())
        else:
            number[i] = len(heads)
            heads.append(i)
    return number


def sites_of(ensemble: AdsorptionEnsemble, radius: float, min_weight: float) -> SiteSet:
    """See :meth:`AdsorptionEnsemble.sites`."""
    weights, xy, posture = ensemble.weights, ensemble.xy, _posture(ensemble)
    basin = np.full(len(ensemble), -1)
    for kind in np.unique(posture[weights > 0]):
        chosen = (posture == kind) & (weights > 0)
        basin[chosen] = basin.max() + 1 + basins(xy[chosen], weights[chosen], ensemble.lattice, radius)
    made = SiteSet(
        (),
        ensemble.slab,
        tuple(int(k) for k in ensemble.template.numbers[list(ensemble.adsorbate)]),
        ensemble.frame.normal,
        ensemble.described(),
        ensemble.energy_name and f"of the lowest sample, {ensemble.energy_name}",
    )
    shares = [weights[basin == k].sum() for k in range(basin.max() + 1)]
    sites = [_site(ensemble, basin == k, weights) for k in np.argsort(shares)[::-1] if shares[k] >= min_weight]
    return replace(made, sites=tuple(replace(s, multiplicity=made.multiplicity(s.xy)) for s in sites)).with_counts(
        labels=ensemble.anomalies,
        failures=int((~np.asarray(ensemble.valid)).sum()),
        draws=len(ensemble),
        n_calls=ensemble.n_calls,
        wall_s=ensemble.wall_s,
        cpu_s=ensemble.cpu_s,
    )


def _posture(ensemble: AdsorptionEnsemble) -> np.ndarray:
    """(n,) 1, 0 or -1: the adsorbate's centroid is above, level with or below its anchor; 30 degrees are level."""
    guest = np.nan_to_num(ensemble.positions[:, list(ensemble.adsorbate)])
    lift = ensemble.frame.height(guest).mean(1) - ensemble.frame.height(guest[:, 0])
    length = np.linalg.norm(guest.mean(1) - guest[:, 0], axis=-1)
    return np.where(np.abs(lift) > length / 2, np.sign(lift), 0).astype(int)


def _site(ensemble: AdsorptionEnsemble, member: np.ndarray, weights: np.ndarray) -> Site:
    """A basin's mean place, and the sample nearest to it, moved there."""
    index, frame, guest = np.flatnonzero(member), ensemble.frame, list(ensemble.adsorbate)
    share = weights[index] / weights[index].sum()
    xy = ensemble.xy[index]
    place = xy[share.argmax()]
    for _ in range(5):
        place = place + share @ shortest(xy - place, ensemble.lattice)
    near = int(np.linalg.norm(shortest(xy - place, ensemble.lattice), axis=-1).argmin())
    image = ensemble.positions[index[near]]
    label, coordination = _label(ensemble, image)
    # The copy of the place that the sample itself is at, so that the slab atoms around it are its own.
    place = wrap(xy[near] + shortest(place - xy[near], ensemble.lattice), frame.lattice)
    positions = image[guest] + frame.to_cartesian(place - xy[near])
    probability = float(weights[index].sum())
    stderr = float(np.sqrt((weights**2 * (member - probability) ** 2).sum()))
    energy = None if ensemble.energies is None else float(np.min(ensemble.energies[index]))
    return Site(place, positions[0], label, coordination, probability, stderr, energy, None, 1, positions, len(index))


def _label(ensemble: AdsorptionEnsemble, positions: np.ndarray) -> tuple[str, int]:
    """Of one sample, by its own slab atoms."""
    n = len(ensemble.template)
    order = np.r_[np.setdiff1d(np.arange(n), ensemble.adsorbate), ensemble.adsorbate]
    atoms = ensemble.template[order]
    atoms.positions = positions[order]
    slab = len(ensemble.slab)
    return label_at(atoms[:slab], ensemble.frame, atoms.positions[binding_atom(atoms, slab)])
