"""What any proposal of sites has to be better than: random places, geometric heuristics, and those of other packages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple

import numpy as np
from ase import Atoms

from dig_core.errors import IncompatibleError

from .frame import slab_frame
from .mesh import enumerate_sites
from .plane import shortest
from .sites import SiteSet

__all__ = ["Baseline", "acat_sites", "baseline", "flat_copy", "geometric_sites", "pymatgen_sites"]

_FAILURES = (ValueError, IndexError, KeyError, AttributeError, TypeError, RuntimeError)  # of other packages on a slab
_REPEATS = 200  # random draws that a baseline is averaged over


class Baseline(NamedTuple):
    """Scores of ``number`` sites called ``name``; random ones are averages."""

    name: str
    number: int
    coverage: float
    coverage_at_k: float
    precision: float


def baseline(
    name: str, surface: SiteSet, minima, *, k: int, tol: float, draws: int, seed: int, score
) -> list[Baseline] | None:
    """Rows for one baseline against ``minima``, or why there are none. Random gives two: k places, and ``draws`` places."""
    targets = np.array([site.xy for site in minima])
    if name == "random":
        generator = np.random.default_rng(seed)
        return [_random(f"random@{n}", n, surface, targets, generator, k, tol, score) for n in (k, draws)]
    source, _, kind = name.partition(":")
    if source not in _SOURCES:
        raise IncompatibleError(f"expected baselines of 'random', {', '.join(map(repr, _SOURCES))}, got {name!r}.")
    try:
        xy = _SOURCES[source](surface.slab, surface.normal, *([kind] if kind else []))
    except ModuleNotFoundError as error:
        return f"{name} (not installed: {error.name})"
    except _FAILURES as error:
        return f"{name} (failed: {type(error).__name__}: {error})"
    # Which of the heuristic's sites comes first means nothing: k of them are a random choice.
    apart = _apart(xy, targets, surface)
    generator = np.random.default_rng(seed)
    at_k = np.mean(
        [score(apart[generator.permutation(len(apart))], np.ones(len(apart)), k, tol)[1] for _ in range(_REPEATS)]
    )
    coverage, _, precision = score(apart, np.ones(len(apart)), k, tol)
    return [Baseline(name, len(xy), coverage, float(at_k), precision)]


def geometric_sites(slab: Atoms, normal=None) -> np.ndarray:
    """(n, 2) Angstrom from :func:`enumerate_sites`."""
    return np.array([site.xy for site in enumerate_sites(slab, normal=normal)]).reshape(-1, 2)


def pymatgen_sites(slab: Atoms, normal=None) -> np.ndarray:
    """(n, 2) Angstrom from pymatgen's AdsorbateSiteFinder, all images. Raises ModuleNotFoundError without pymatgen."""
    # By name: this sub-package's engine is ASE, and nothing but this baseline asks for pymatgen.
    finder = import_module("pymatgen.analysis.adsorption").AdsorbateSiteFinder
    flat = flat_copy(slab, normal)
    structure = import_module("pymatgen.io.ase").AseAtomsAdaptor.get_structure(flat)
    height = flat.positions[:, 2]
    properties = ["surface" if h > height.max() - 0.9 else "subsurface" for h in height]
    structure.add_site_property("surface_properties", properties)
    found = finder(structure, selective_dynamics=False).find_adsorption_sites(symm_reduce=0, near_reduce=0.01)
    return np.array(found["all"])[:, :2]


def acat_sites(slab: Atoms, normal=None, surface: str | None = None) -> np.ndarray:
    """(n, 2) Angstrom from ACAT, for a ``surface`` of its names, or its custom surfaces. Raises ModuleNotFoundError without ACAT."""
    settings = import_module("acat.settings")
    flat = flat_copy(slab, normal)
    with _numpy_with_in1d():
        kind = surface or settings.CustomSurface(flat, n_layers=_layers(flat))
        found = import_module("acat.adsorption_sites").SlabAdsorptionSites(flat, surface=kind, both_sides=False)
        sites = found.get_sites()
    return np.array([site["position"][:2] for site in sites]).reshape(-1, 2)


_SOURCES: dict[str, Callable] = {"geometric": geometric_sites, "pymatgen": pymatgen_sites, "acat": acat_sites}


def flat_copy(slab: Atoms, normal=None) -> Atoms:
    """The slab as other packages want it: surface in the xy plane, the side in use up, 10 Angstrom of vacuum, periodic."""
    frame = slab_frame(slab, normal=normal)
    lattice = frame.lattice if np.linalg.det(frame.lattice) > 0 else frame.lattice[::-1]
    cell = np.zeros((3, 3))
    cell[:2, :2] = lattice
    cell[2, 2] = frame.thickness + 20
    height = frame.height(slab.positions) + frame.thickness + 10
    return Atoms(slab.numbers, positions=np.column_stack([frame.xy(slab.positions), height]), cell=cell, pbc=True)


@contextmanager
def _numpy_with_in1d():
    """ACAT 2.0.3 calls numpy.in1d, which NumPy 2.4 no longer has: it is lent for the call."""
    missing = not hasattr(np, "in1d")
    if missing:
        np.in1d = np.isin  # noqa: NPY201
    try:
        yield
    finally:
        if missing:
            del np.in1d  # noqa: NPY201


def _layers(flat: Atoms) -> int:
    height = np.sort(flat.positions[:, 2])
    return int(1 + (np.diff(height) > 0.5).sum())


def _apart(xy: np.ndarray, targets: np.ndarray, surface: SiteSet) -> np.ndarray:
    """(n, m) in-plane distances of places to the minima, modulo the surface's symmetry."""
    apart = np.full((len(xy), len(targets)), np.inf)
    for operation in surface.operations:
        apart = np.minimum(
            apart, np.linalg.norm(shortest(operation(xy)[:, None] - targets[None], surface.lattice), axis=-1)
        )
    return apart


def _random(name, n, surface, targets, generator, k, tol, score) -> Baseline:
    repeats = min(_REPEATS, max(20, 20_000 // n))
    places = generator.random((repeats, n, 2)) @ surface.lattice
    apart = _apart(places.reshape(-1, 2), targets, surface).reshape(repeats, n, -1)
    coverage, at_k, precision = np.mean([score(a, np.ones(n), k, tol) for a in apart], axis=0)
    return Baseline(name, n, float(coverage), float(at_k), float(precision))
