"""Grid search: the reference that finds an adsorbate's sites by relaxing it from everywhere on the surface.

Starts on an even grid over the primitive cell, in contact with the slab, in several orientations for molecules; equivalent ones
are dropped by their sorted distances; BFGS; anomalies counted and kept out; what relaxed to one place is one site; a
finite-difference Hessian of the adsorbate, and the energy along its softest direction, tell minima from saddles.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import product

import numpy as np
from ase import Atoms

from dig_core.errors import IncompatibleError
from dig_core.progress import bar
from dig_core.random import Streams, as_seed

from .anomaly import anomalies
from .contact import images, radii
from .coverage import distances
from .frame import SlabFrame, slab_frame
from .mesh import label_at
from .place import as_adsorbate, place_adsorbate
from .plane import wrap
from .relax import STIFF, Counted, Relaxed, is_minimum, relax, relax_clean
from .sites import Site, SiteSet
from .symmetry import primitive_lattice

__all__ = ["REFERENCE", "binding_atom", "grid_search", "relaxed_sites"]

REFERENCE = "E(slab + adsorbate) - E(relaxed clean slab), no gas-phase reference"

_ALIKE = 0.06  # Angstrom, between the sorted distances of equivalent starts
_JITTER = 0.03  # Angstrom, so that no start stays on a symmetric saddle
_SHELL = 24  # distances to each element in a fingerprint
_ONE_SITE = (0.25, 0.02)  # Angstrom, eV: closer than both is one site
_PATIENCE, _GAIN = 10, 0.001  # steps in which a relaxation in a flat valley gains less than this, eV, and ends
_SOFT = 35.0  # eV/Angstrom^2, of a metal's surface as it is known before the first relaxation
_TILTS = np.radians([0, 60, 120, 180])


def grid_search(
    slab: Atoms, adsorbate, calculator, *, spacing: float = 0.45, orientations: int = 6, fmax: float = 0.02, steps: int = 200,
    symmetry: bool = True, seed: int = 0, log=None, normal=None, anchor: int | None = None,
) -> SiteSet:  # fmt: skip
    """Sites, the lowest first, with their energies and which are minima.

    Parameters
    ----------
    slab: bare; what FixAtoms holds stays, the rest relaxes. adsorbate, anchor: see :func:`as_adsorbate`.
    calculator: any ASE calculator; one call is energy and forces of one structure. Where it fails the start is counted as failed.
    spacing: Angstrom between starts. orientations: of a molecule; the first is upright, the others tilt and turn it.
    fmax: eV/Angstrom, and ``steps`` at most, of every relaxation. symmetry: drop equivalent starts.
    seed: of the small displacement of every start. log: text stream that gets a line a start. normal: (3,) side.

    Raises
    ------
    StateError: the calculator fails on the clean slab. IncompatibleError: an unfit slab, or settings that are not positive.
    """
    if min(spacing, fmax, steps, orientations) <= 0:
        raise IncompatibleError(
            f"expected spacing, fmax, steps and orientations above zero, got {spacing}, {fmax}, {steps}, {orientations}."
        )
    wall, cpu = time.perf_counter(), time.process_time()
    counted = Counted(calculator)
    clean = relax_clean(slab, counted, fmax=fmax, steps=steps)
    frame = slab_frame(slab, normal=normal)
    guest, anchor = as_adsorbate(adsorbate, anchor)
    starts = _starts(clean.atoms, guest, anchor, frame, spacing, orientations if len(guest) > 1 else 1)
    if symmetry:
        starts = _distinct(starts, len(slab), frame)
    noise = Streams(as_seed(seed), range(len(starts))).normal(2).numpy().astype(float) * _JITTER
    for atoms, step in zip(starts, noise, strict=True):
        atoms.positions[len(slab) :] += frame.to_cartesian(step)
    found = relaxed_sites(
        starts, clean, frame, counted, anchor=anchor, fmax=fmax, steps=steps, log=log, source="grid search"
    )
    return replace(found, wall_s=time.perf_counter() - wall, cpu_s=time.process_time() - cpu)


def relaxed_sites(
    starts: list[Atoms],
    clean: Relaxed,
    frame: SlabFrame,
    counted: Counted,
    *,
    anchor: int,
    fmax: float,
    steps: int,
    log=None,
    source: str,
    shares=None,
    frugal: bool = False,
) -> SiteSet:
    """Relax every start and sort out where they end: the second half of a grid search, and of relaxing samples.

    ``shares``: probabilities of the starts; those of the starts that end in one site are added up. ``frugal``: what one relaxation
    has learned of the curvature is where the next begins, and a start that comes into a site that is there already ends in it.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    n = len(clean.atoms)
    numbers = tuple(int(k) for k in starts[0].numbers[n:]) if starts else ()
    table = SiteSet((), clean.atoms, numbers, frame.normal, source, REFERENCE)
    ends: list[Relaxed] = []
    kept: list[float | None] = []
    labels, failures = [], 0
    curvature: float | np.ndarray = _SOFT if frugal else STIFF
    for number, start in enumerate(bar(starts, label=source, progress=None)):
        owner = _Owner(ends, table, anchor)
        end = relax(start, counted, fmax=fmax, steps=steps, curvature=curvature, enough=owner if frugal else None)
        if frugal and end is not None:
            curvature = curvature if end.curvature is None else end.curvature
            end = owner.found or end
        wrong = () if end is None else anomalies(start, end.atoms, clean.atoms)
        failures += end is None
        labels.append(wrong)
        if end is not None and not wrong:
            ends.append(end)
            kept.append(None if shares is None else shares[number])
        if log is not None:
            state = "failed" if end is None else ", ".join(wrong) or f"{end.energy - clean.energy:.4f} eV"
            log.write(f"start {number}: {state}, {counted.calls} calls\n")
    groups = _grouped(ends, kept, table, anchor, clean.energy)
    sites = tuple(_examined(group, table, counted, n) for group in groups)
    counts = {"n_calls": counted.calls, "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    return replace(table, sites=sites).with_counts(labels=labels, failures=failures, draws=len(starts), **counts)


def _starts(slab: Atoms, guest: Atoms, anchor: int, frame: SlabFrame, spacing: float, orientations: int) -> list[Atoms]:
    lattice = primitive_lattice(slab, frame)
    shape = np.maximum(np.ceil(np.linalg.norm(lattice, axis=1) / spacing).astype(int), 1)
    places = [np.array([i / shape[0], j / shape[1]]) @ lattice for i, j in product(range(shape[0]), range(shape[1]))]
    turns = _orientations(orientations)
    return [
        place_adsorbate(slab, guest, xy, rotation=turn, normal=frame.normal, anchor=anchor)
        for xy in places
        for turn in turns
    ]


def _orientations(count: int) -> list[np.ndarray]:
    """Upright, tilted by 60 degrees in two azimuths, upside down, tilted by 120 degrees in two; then further azimuths."""
    plan = [(0, 0.0), (1, 0.0), (1, np.pi / 2), (3, 0.0), (2, 0.0), (2, np.pi / 2)]
    plan += [(tilt, azimuth) for azimuth in np.pi * np.arange(0.25, 2, 0.25) for tilt in (1, 2)]
    made = []
    for tilt, azimuth in plan[:count]:
        (c, s), (d, t) = ((np.cos(a), np.sin(a)) for a in (_TILTS[tilt], azimuth))
        made.append(np.array([[d, -t, 0], [t, d, 0], [0, 0, 1]]) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]))
    return made


def _distinct(starts: list[Atoms], n: int, frame: SlabFrame) -> list[Atoms]:
    """One of each set of starts with the same sorted distances; mirror images count as the same."""
    kept: list[Atoms] = []
    prints: list[np.ndarray] = []
    for start in starts:
        mark = _fingerprint(start, n, frame)
        if all(np.abs(mark - other).max() > _ALIKE for other in prints):
            kept.append(start)
            prints.append(mark)
    return kept


def _fingerprint(atoms: Atoms, n: int, frame: SlabFrame) -> np.ndarray:
    """Sorted distances (Angstrom) of each adsorbate atom to the nearest slab atoms of every element."""
    slab = atoms[:n]
    index, xy, height = images(slab, frame, 7.0)
    parts = []
    inverse = np.linalg.inv(frame.lattice)
    for position in atoms.positions[n:]:
        place = frame.xy(position)
        place = place - np.floor(place @ inverse + 1e-9) @ frame.lattice
        apart = np.sqrt(((xy - place) ** 2).sum(1) + (height - frame.height(position)) ** 2)
        for element in np.unique(slab.numbers):
            near = np.sort(apart[slab.numbers[index] == element])[:_SHELL]
            parts.append(np.pad(near, (0, _SHELL - len(near)), constant_values=9.0).clip(max=6.5))
    return np.concatenate(parts)


def _grouped(
    ends: list[Relaxed], shares: list[float | None], table: SiteSet, anchor: int, zero: float
) -> list[list[tuple[Site, Relaxed]]]:
    """Structures that are one site, symmetry included, the lowest of each first."""
    groups: list[list[tuple[Site, Relaxed]]] = []
    for end, share in sorted(zip(ends, shares, strict=True), key=lambda e: e[0].energy):
        site = replace(_place(end.atoms, table, anchor), energy=end.energy - zero, probability=share)
        for group in groups:
            close = distances([site], [group[0][0]], table)[0, 0] < _ONE_SITE[0]
            if close and site.energy - group[0][0].energy < _ONE_SITE[1]:
                group.append((site, end))
                break
        else:
            groups.append([(site, end)])
    return groups


def _place(atoms: Atoms, table: SiteSet, anchor: int) -> Site:
    """Where the adsorbate is, inside the cell."""
    positions = atoms.positions[len(table.slab) :]
    xy = table.frame.xy(positions[anchor])
    positions = positions + table.frame.to_cartesian(wrap(xy, table.frame.lattice) - xy)
    return Site(table.frame.xy(positions[anchor]), positions[anchor], "", 0, positions=positions)


class _Owner:
    """Asked along a relaxation whether it is in a site already, ``found`` is then what has relaxed there before, or gets nowhere."""

    def __init__(self, ends: list[Relaxed], table: SiteSet, anchor: int):
        self.ends, self.table, self.anchor, self.found = [e for e in ends if e.converged], table, anchor, None
        self.energies: list[float] = []

    def __call__(self, atoms: Atoms) -> bool:
        energy = atoms.get_potential_energy()
        self.energies.append(energy)
        if min(self.energies[:-_PATIENCE], default=np.inf) - min(self.energies) < _GAIN:
            return True
        near = [end for end in self.ends if 0 <= energy - end.energy < _ONE_SITE[1]]
        if near:
            places = [_place(end.atoms, self.table, self.anchor) for end in near]
            apart = distances([_place(atoms, self.table, self.anchor)], places, self.table)[0]
            self.found = near[int(apart.argmin())] if apart.min() < _ONE_SITE[0] else None
        return self.found is not None


def _examined(group: list[tuple[Site, Relaxed]], table: SiteSet, counted: Counted, n: int) -> Site:
    """The lowest of a group with its label, its copies in the primitive cell, and whether it is a minimum."""
    site, end = group[0]
    slab, guest = end.atoms[:n], np.arange(n, len(end.atoms))
    minimum = is_minimum(end, guest, counted)
    label, coordination = label_at(slab, table.frame, end.atoms.positions[binding_atom(end.atoms, n)])
    copies = table.multiplicity(site.xy)
    shares = [member.probability for member, _ in group]
    site = replace(site, probability=None if None in shares else float(sum(shares)))
    return replace(
        site, label=label, coordination=coordination, is_minimum=minimum, multiplicity=copies, count=len(group)
    )


def binding_atom(atoms: Atoms, n: int) -> int:
    """Of the adsorbate, the atom that is nearest to the slab for its size."""
    apart = atoms.get_all_distances(mic=True)[n:, :n] / (
        radii(atoms.numbers[n:])[:, None] + radii(atoms.numbers[:n])[None]
    )
    return n + int(apart.min(1).argmin())
