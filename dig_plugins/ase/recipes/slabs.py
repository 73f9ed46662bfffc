"""Slabs and adsorbates that the shipped adsorption models learn from, that say how well, and what benchmarks hold out."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.build import bcc100, bcc110, bulk, fcc100, fcc110, fcc111, fcc211, hcp0001, surface
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms
from ase.geometry import minkowski_reduce
from ase.optimize import BFGS
from scipy.optimize import minimize_scalar

__all__ = ["ADSORBATES", "HELD_OUT", "MOLECULAR", "SLABS", "VALIDATION", "SlabRecipe", "adsorbate", "build", "guests", "surface_vectors"]


class SlabRecipe(NamedTuple):
    """Element, L1_2 compound or solid solution of several elements, facet, size in surface cells and layers, and how often the surface
    repeats in it."""

    metal: str
    facet: str
    size: tuple[int, int, int]
    repeats: tuple[int, int]


_FACETS = {
    "fcc111": (fcc111, (2, 2, 3), (2, 2)), "fcc100": (fcc100, (2, 2, 3), (2, 2)), "fcc110": (fcc110, (2, 2, 4), (2, 2)),
    "fcc211": (fcc211, (3, 2, 3), (1, 2)), "hcp0001": (hcp0001, (2, 2, 3), (2, 2)), "bcc110": (bcc110, (2, 2, 3), (2, 2)),
    "bcc100": (bcc100, (2, 2, 4), (2, 2)),
}  # fmt: skip
# Of an element, and of a compound whose cell is four times as large: how often the smallest surface cell repeats.
_CUTS = {
    "fcc221": ((1, 2), (1, 1)), "fcc310": ((1, 2), (1, 2)), "fcc311": ((2, 2), (1, 1)),
    "fcc331": ((1, 2), (1, 1)), "fcc100": ((2, 2), (2, 2)), "fcc110": ((2, 2), (1, 2)), "fcc211": ((1, 2), (1, 1)),
}  # fmt: skip
_THICKNESS = 5.5  # Angstrom, of slabs that are cut


def _recipe(name: str) -> SlabRecipe:
    metal, facet = name.split("-")
    if _is_cut(metal, facet):
        repeats = _CUTS[facet]["3" in metal]
        return SlabRecipe(metal, facet, (*repeats, 0), repeats)
    _, size, repeats = _FACETS[facet]
    return SlabRecipe(metal, facet, size, repeats if len(_elements(metal)) == 1 else (1, 1))


def _elements(metal: str) -> list[str]:
    return re.findall("[A-Z][a-z]?", metal)


def _is_cut(metal: str, facet: str) -> bool:
    """Whether ASE has no builder of its own for it."""
    return facet not in _FACETS or ("3" in metal and facet != "fcc111")


def _solutions(count: int) -> dict[str, tuple[str, ...]]:
    """Slabs of three metals each, mixed at random, and two adsorbates of each: many surroundings for the price."""
    rng, found = np.random.default_rng(1), {}
    metals = 3 * ["Cu", "Ag", "Au", "Ni", "Pd", "Pt", "Rh", "Ir"] + ["Co", "Fe", "Ru", "Os", "Al", "Zn", "Ti", "V", "W", "Mo"]
    pairs = [("H", "O"), ("C", "N"), ("H", "N"), ("C", "O"), ("H", "C"), ("N", "O")]
    while len(found) < count:
        three = sorted({str(metal) for metal in rng.choice(metals, 3)})
        if len(three) == 3:
            name = f"{''.join(three)}-{('fcc111', 'fcc211', 'fcc100', 'fcc110')[len(found) % 4]}"
            found.setdefault(name, pairs[int(rng.integers(6))])
    return found


_NAMES = [
    *(f"{m}-fcc111" for m in ("Cu", "Ag", "Ni", "Pd", "Pt", "Rh", "Au", "Al", "Ir")),
    *(f"{m}-fcc100" for m in ("Cu", "Ag", "Ni", "Pd")),
    *(f"{m}-fcc110" for m in ("Cu", "Ni", "Pd", "Pt", "Ag")),
    "Cu3Pt-fcc111", "Pd3Ag-fcc111", "Ni3Au-fcc111", "Ni-fcc211", "Pd-fcc211", "Rh-fcc211", "Ru-hcp0001", "Fe-bcc110", "W-bcc110",
    "Pt-fcc100", "Rh-fcc100", "Ir-fcc100", "Ag-fcc211", "Mo-bcc110", "Ta-bcc110", "Ti-hcp0001", "Co-hcp0001",
    *(f"{m}-fcc111" for m in ("Cu3Au", "Au3Cu", "Ni3Pt", "Pt3Cu", "Ni3Al", "Pd3Ni", "Ag3Au", "Pt3Rh")),
    "Rh-fcc110", "Ir-fcc211", "Au-fcc100", "Mo-bcc100", "W-bcc100",
    *(f"{m}-fcc111" for m in ("Pt3Co", "Cu3Ni", "Pd3Pt", "Ni3Pd", "Pd3Au", "Pt3Pd", "Ni3Cu", "Rh3Pt", "Pt3Fe", "Au3Pt", "Ag3Pt", "Cu3Rh",
      "Pd3Fe", "Ni3Fe", "Au3Ag", "Pt3Ag", "Pd3Rh", "Ir3Ni", "Co3Pt", "Cu3Ag")),
    "Cu3Au-fcc211", "Cu3Pt-fcc211", "Ni-fcc311", "Ag-fcc331", "Au3Cu-fcc211", "Pd-fcc331", "Rh-fcc311", "Ag-fcc221", "Pt3Cu-fcc211",
    "Cu3Pt-fcc110", "Pd3Ag-fcc211", "Ag-fcc310", "Ni-fcc331", "Cu3Au-fcc100", "Pt3Rh-fcc110", "Pd-fcc311", "Ni3Al-fcc100", "Ir-fcc331",
    "Ni3Pt-fcc211", "Pd-fcc310", "Ag3Au-fcc110",
]  # fmt: skip
_SOLUTIONS = _solutions(44)
_OPEN = {"Ni-fcc211", "Pd-fcc211", "Ag-fcc211", "Rh-fcc211", "Cu-fcc110", "Pd-fcc110", "Ni-fcc311", "Ag-fcc331"}
MOLECULAR = {
    n: 3.2 if n in _OPEN else 1.6
    for n in _NAMES
    if n in _OPEN or n == "Cu3Pt-fcc111" or (n.endswith(("fcc111", "fcc100")) and "3" not in n)
}
"""Slabs on which molecules are labelled too -> labels for one of an atom: a molecule's tilt has more ways to go where a surface is open."""

SLABS = {name: _recipe(name) for name in (*_NAMES, *_SOLUTIONS)}
HELD_OUT = {
    name: _recipe(name)
    for name in ("Cu-fcc211", "Pt-fcc211", "Au-fcc211", "Cu3Pd-fcc111", "Pt3Ni-fcc111", "Ag3Pd-fcc111", "Ir-fcc110")
}

VALIDATION = {
    name: _recipe(name)
    for name in (
        *(f"{m}-fcc111" for m in ("Au3Pd", "Pd3Cu", "Ag3Cu", "Ir3Pt", "Rh3Ni", "Pt3Au")),
        "Au-fcc110", "Al-fcc110", "Al-fcc211", "Fe-bcc100",
    )
}  # fmt: skip

ADSORBATES = ("H", "C", "N", "O", "CO", "OH")
_MOLECULES = {"CO": 1.16, "OH": 0.98}


def guests(name: str) -> list[str]:
    """The adsorbates that are labelled on a slab."""
    atoms = _SOLUTIONS.get(name, tuple(guest for guest in ADSORBATES if guest not in _MOLECULES))
    return [*atoms, *(_MOLECULES if name in MOLECULAR else ())]


def adsorbate(name: str) -> Atoms:
    """An atom, or a diatomic molecule along z whose first atom, at the origin, binds."""
    if name not in _MOLECULES:
        return Atoms(name, [(0, 0, 0)])
    return Atoms(name, [(0, 0, 0), (0, 0, _MOLECULES[name])])


def build(recipe: SlabRecipe, calculator: Calculator, *, vacuum: float = 8.0, fmax: float = 0.02) -> Atoms:
    """The clean slab at the calculator's own lattice constant, relaxed above its bottom layer (a third for steps)."""
    metal, facet = recipe.metal, recipe.facet
    structure = facet[:3]
    host, guest = _split(metal)
    if len(mixed := _elements(metal)) > 1 and not guest:
        slab = _FACETS[facet][0](mixed[0], recipe.size, a=_mean_constant(mixed, [1.0] * len(mixed)), vacuum=vacuum)
        slab.symbols = np.random.default_rng(zlib.crc32(metal.encode())).permutation(np.resize(mixed, len(slab)))
    elif _is_cut(metal, facet):
        slab = _cut(recipe, _cubic(host, guest, structure, calculator), vacuum)
    elif structure == "hcp":
        a, c = _hcp(metal, calculator)
        slab = _FACETS[facet][0](metal, recipe.size, a=a, c=c, vacuum=vacuum)
    else:
        slab = _FACETS[facet][0](host, recipe.size, a=_cubic(host, guest, structure, calculator), vacuum=vacuum)
        if guest:
            _mix(slab, guest)
    slab.pbc = (True, True, False)
    height = slab.positions[:, 2]
    slab.set_constraint(FixAtoms(mask=height < height.min() + (height.max() - height.min()) / 3))
    slab.calc = calculator
    BFGS(slab, logfile=None).run(fmax=fmax, steps=60)
    slab.calc = None
    slab.wrap()
    return slab


def surface_vectors(recipe: SlabRecipe, slab: Atoms) -> np.ndarray:
    """(2, 3) Angstrom, the translations that the surface repeats by."""
    return slab.cell[:2] / np.array(recipe.repeats)[:, None]


def _cut(recipe: SlabRecipe, a: float, vacuum: float) -> Atoms:
    """Of the bulk crystal with lattice constant ``a``: smallest surface cell, repeated."""
    host, guest = _split(recipe.metal)
    cell = bulk(host, "fcc", a=a, cubic=bool(guest))
    if guest:
        cell[0].symbol = guest
    # A plane's indices in the lattice's own vectors.
    indices = np.rint(2 / a * cell.cell.array @ [int(k) for k in recipe.facet[3:]]).astype(int)
    indices = tuple(int(k) for k in indices // np.gcd.reduce(indices))
    one = surface(cell, indices, 1, periodic=True)
    slab = surface(cell, indices, int(np.ceil(_THICKNESS * one.cell.areas()[2] / one.cell.volume)), vacuum=vacuum)
    slab.set_cell(minkowski_reduce(slab.cell, pbc=(True, True, False))[0])
    return slab.repeat((*recipe.size[:2], 1))


def _split(metal: str) -> tuple[str, str]:
    """("Cu3Pd") -> ("Cu", "Pd"); an element has no guest."""
    host, _, guest = metal.partition("3")
    return host, guest


def _cubic(host: str, guest: str, structure: str, calculator: Calculator) -> float:
    start = _mean_constant([host, guest], [3, 1]) if guest else float(bulk(host, structure, cubic=True).cell[0, 0])

    def energy(a: float) -> float:
        cell = bulk(host, structure, a=a, cubic=True)
        if guest:
            cell[0].symbol = guest
        cell.calc = calculator
        return cell.get_potential_energy()

    return float(minimize_scalar(energy, bounds=(0.92 * start, 1.08 * start), method="bounded", options={"xatol": 2e-3}).x)


def _mean_constant(elements: Sequence[str], shares: Sequence[float]) -> float:
    """Angstrom, of the fcc lattice that gives each atom the room that it has in its element."""
    own = [(4 * crystal.cell.volume / len(crystal)) ** (1 / 3) for crystal in map(bulk, elements)]
    return float(np.average(own, weights=shares))


def _hcp(metal: str, calculator: Calculator) -> tuple[float, float]:
    """a and c with the ratio of the experimental cell."""
    cell = bulk(metal, "hcp").cell
    start, ratio = float(cell.lengths()[0]), float(cell.lengths()[2] / cell.lengths()[0])

    def energy(a: float) -> float:
        atoms = bulk(metal, "hcp", a=a, c=a * ratio)
        atoms.calc = calculator
        return atoms.get_potential_energy()

    a = float(minimize_scalar(energy, bounds=(0.92 * start, 1.08 * start), method="bounded", options={"xatol": 2e-3}).x)
    return a, a * ratio


def _mix(slab: Atoms, guest: str) -> None:
    """One atom in four of every layer of a p(2x2) fcc(111) slab becomes ``guest``, as in the bulk L1_2 order."""
    for layer in sorted(set(np.round(slab.positions[:, 2], 2))):
        inside = np.flatnonzero(np.abs(slab.positions[:, 2] - layer) < 0.1)
        # Guests of the next layer stand over hollows of host atoms: the one farthest from the guests below.
        below = slab.positions[[a.index for a in slab if a.symbol == guest]]
        chosen = inside[0] if not len(below) else max(inside, key=lambda i: _nearest(slab, slab.positions[i], below))
        slab[int(chosen)].symbol = guest


def _nearest(slab: Atoms, point: np.ndarray, others: np.ndarray) -> float:
    shifts = [i * slab.cell[0] + j * slab.cell[1] for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return min(float(np.linalg.norm(point - o - s)) for o in others for s in shifts)
