"""Training frames of the DFT table of Xu and Kitchin: its metals, and mixtures of them, which are no one's.

Six or seven metals are too few to learn from: between and beyond them a network does as it likes. Mixtures with normal weights of
their d bands and of their site energies fill the space that they span. What a network learns of them is the mean over all mixtures of
one d band, which is the linear regression of the energies on it, the d-band model; a jitter of the d band is its ridge.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from ase.build import fcc111
from ase.data import atomic_numbers
from ase.units import kB

from dig_core.coordinates import Adsorbate
from dig_core.system.descriptor import Descriptor
from dig_core.system.elements import d_band
from dig_core.training.losses import Frames
from dig_plugins.ase.adsorption.describe import at_temperature
from dig_plugins.ase.adsorption.surface import SITES, SiteSurface
from dig_plugins.ase.recipes.samples import TEMPERATURES, described, frames

__all__ = ["GUESTS", "METALS", "mixed_systems", "table_systems"]

METALS = ("Ag", "Au", "Cu", "Ir", "Pd", "Pt", "Rh")
GUESTS = ("H", "C", "N", "O")

_SPREAD = 0.5  # of the weights of a mixture: a bit wider than the metals themselves, which are their own mixtures at 0.4
_RIDGE = 0.2  # of the regression, in units of one metal's standardised properties
_STRAIN = 0.06  # by how much lattices may be narrower or wider than any of the metals'


def table_systems(without: str | None = None, *, n: int = 1500, seed: int = 1) -> list[tuple[Descriptor, Frames]]:
    """H, C, N and O on the fcc(111) metals of the table, less one metal, at five temperatures."""
    rng, found = np.random.default_rng(seed), []
    for metal in (m for m in METALS if m != without):
        slab = _slab(metal, _spacing(metal))
        for guest in GUESTS:
            found += _drawn(SiteSurface.from_table(metal, guest).on(slab), slab, n, rng)
    return found


def mixed_systems(
    without: str | None = None, *, count: int = 960, cells: int = 24, n: int = 60, seed: int = 1
) -> list[tuple[Descriptor, Frames]]:
    """The same of ``count`` mixtures of the metals, less one metal, in ``cells`` cells.

    A cell has the radius of one of the metals and a lattice of its own: neither says anything about the energies of the mixtures in it.
    """
    rng, found = np.random.default_rng(seed), []
    metals = [m for m in METALS if m != without]
    bands = d_band(torch.tensor([atomic_numbers[m] for m in metals])).numpy()
    spacing, surfaces = [_spacing(m) for m in metals], {guest: [SiteSurface.from_table(m, guest) for m in metals] for guest in GUESTS}
    jitter = _SPREAD * math.sqrt(_RIDGE) * bands.std(0)
    hosts = [metals[k % len(metals)] for k in range(cells)]
    slabs = [_slab(host, rng.uniform(min(spacing) * (1 - _STRAIN), max(spacing) * (1 + _STRAIN))) for host in hosts]
    for k in range(count):
        host, slab = hosts[k % cells], slabs[k % cells]
        weight = _SPREAD * rng.normal(size=len(metals))
        weight += 1 / len(metals) - weight.mean()
        band = weight @ bands + jitter * rng.normal(size=bands.shape[1])
        for guest in GUESTS:
            surface = dataclasses.replace(_mixture(surfaces[guest], weight), metal=host).on(slab)
            found += _drawn(surface, slab, n, rng, band=band, tries=20_000)
    return found


def _drawn(
    surface: SiteSurface, slab: Atoms, n: int, rng: np.random.Generator, *, band: np.ndarray | None = None, tries: int = 200_000
) -> list[tuple[Descriptor, Frames]]:
    """The system at each temperature with ``n`` independent draws of exp(-E/kT) and their forces: the plane by resampling ``tries``, the
    height from its normal law. ``band``: the d band of a metal that is no element."""
    system, found = described(slab, Atoms(surface.adsorbate, [surface.origin + 1.5 * surface.normal])), []
    if band is not None:
        system = dataclasses.replace(system, single=torch.tensor(np.vstack([np.tile(band, (len(slab), 1)), np.zeros_like(band)])))
    fraction = rng.random((tries, 2))
    value, height = surface.profile(fraction)
    for temperature in TEMPERATURES:
        weight = np.exp(-(value - value.min()) / (kB * temperature))
        chosen = rng.choice(tries, n, p=weight / weight.sum())
        over = height[chosen] + np.sqrt(kB * temperature / surface.stiffness) * rng.normal(size=n)
        place = torch.tensor(surface.origin + fraction[chosen] @ surface.vectors + over[:, None] * surface.normal)
        force = surface.forces(place) / (kB * temperature)
        found.append((at_temperature(system, temperature), frames(Adsorbate(), system, place[:, None], force[:, None])))
    return found


def _spacing(metal: str) -> float:
    """Angstrom between neighbours of the table's surface."""
    return float(np.linalg.norm(SiteSurface.from_table(metal, "H").vectors[0]))


def _slab(metal: str, spacing: float) -> Atoms:
    """One atom wide: what a network learns of a cell holds for its multiples."""
    return fcc111(metal, (1, 1, 4), a=spacing * math.sqrt(2), vacuum=8)


def _mixture(surfaces: Sequence[SiteSurface], weight: np.ndarray) -> SiteSurface:
    """Energies, relative to those of the fcc site, and heights of a mixture; heights stay among the metals'."""
    energies, heights = {}, {}
    for site in SITES:
        energies[site] = float(weight @ [s.energies[site] - s.energies["fcc"] for s in surfaces])
        high = [s.heights[site] for s in surfaces]
        heights[site] = float(np.clip(weight @ high, min(high), max(high)))
    return dataclasses.replace(surfaces[0], energies=energies, heights=heights)
