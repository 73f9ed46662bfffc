"""The slabs and adsorbates that the shipped adsorption models learn from, and those held out for the benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.build import bcc100, bcc110, bulk, fcc100, fcc110, fcc111, fcc211, hcp0001
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms
from ase.optimize import BFGS
from scipy.optimize import minimize_scalar

__all__ = ["ADSORBATES", "HELD_OUT", "MOLECULAR", "SLABS", "SlabRecipe", "adsorbate", "build", "surface_vectors"]


class SlabRecipe(NamedTuple):
    """Element or L1_2/B2 compound, facet, size in surface cells and layers, and how often the surface repeats in it."""

    metal: str
    facet: str
    size: tuple[int, int, int]
    repeats: tuple[int, int]


_FACETS = {
    "fcc111": (fcc111, (2, 2, 3), (2, 2)), "fcc100": (fcc100, (2, 2, 3), (2, 2)), "fcc110": (fcc110, (2, 2, 4), (2, 2)),
    "fcc211": (fcc211, (3, 2, 3), (1, 2)), "hcp0001": (hcp0001, (2, 2, 3), (2, 2)), "bcc110": (bcc110, (2, 2, 3), (2, 2)),
    "bcc100": (bcc100, (2, 2, 4), (2, 2)),
}  # fmt: skip


def _recipe(name: str) -> SlabRecipe:
    metal, facet = name.split("-")
    _, size, repeats = _FACETS[facet]
    return SlabRecipe(metal, facet, size, (1, 1) if len(metal) > 2 else repeats)


_NAMES = [
    *(f"{m}-fcc111" for m in ("Cu", "Ag", "Ni", "Pd", "Pt", "Rh", "Au", "Al", "Ir")),
    *(f"{m}-fcc100" for m in ("Cu", "Ag", "Ni", "Pd")),
    *(f"{m}-fcc110" for m in ("Cu", "Ni", "Pd", "Pt", "Ag")),
    "Cu3Pt-fcc111", "Pd3Ag-fcc111", "Ni3Au-fcc111", "Ni-fcc211", "Pd-fcc211", "Rh-fcc211", "Ru-hcp0001", "Fe-bcc110", "W-bcc110",
    "Pt-fcc100", "Rh-fcc100", "Ir-fcc100", "Ag-fcc211", "Mo-bcc110", "Ta-bcc110", "Ti-hcp0001", "Co-hcp0001",
    *(f"{m}-fcc111" for m in ("Cu3Au", "Au3Cu", "Ni3Pt", "Pt3Cu", "Ni3Al", "Pd3Ni", "Ag3Au", "Pt3Rh")),
    "Rh-fcc110", "Ir-fcc211", "Au-fcc100", "Mo-bcc100", "W-bcc100",
]  # fmt: skip
_OPEN = {"Ni-fcc211", "Pd-fcc211", "Ag-fcc211", "Rh-fcc211", "Cu-fcc110", "Pd-fcc110"}
MOLECULAR = {
    n: 3.2 if n in _OPEN else 1.6
    for n in _NAMES
    if n in _OPEN or n == "Cu3Pt-fcc111" or (n.endswith(("fcc111", "fcc100")) and "3" not in n)
}
"""Slabs on which molecules are labelled too -> labels for one of an atom: a molecule's tilt has more ways to go where a surface is open."""

SLABS = {name: _recipe(name) for name in _NAMES}
HELD_OUT = {
    name: _recipe(name)
    for name in ("Cu-fcc211", "Pt-fcc211", "Au-fcc211", "Cu3Pd-fcc111", "Pt3Ni-fcc111", "Ag3Pd-fcc111", "Ir-fcc110")
}

ADSORBATES = ("H", "C", "N", "O", "CO", "OH")
_MOLECULES = {"CO": 1.16, "OH": 0.98}


def adsorbate(name: str) -> Atoms:
    """An atom, or a diatomic molecule along z whose first atom, at the origin, binds."""
    if name not in _MOLECULES:
        return Atoms(name, [(0, 0, 0)])
    return Atoms(name, [(0, 0, 0), (0, 0, _MOLECULES[name])])


def build(recipe: SlabRecipe, calculator: Calculator, *, vacuum: float = 8.0, fmax: float = 0.02) -> Atoms:
    """The clean slab at the calculator's own lattice constant, relaxed above its bottom layer (a third for steps)."""
    metal, facet = recipe.metal, recipe.facet
    structure = facet[:3]
    make = _FACETS[facet][0]
    host, guest = _split(metal)
    if structure == "hcp":
        a, c = _hcp(metal, calculator)
        slab = make(metal, recipe.size, a=a, c=c, vacuum=vacuum)
    else:
        slab = make(host, recipe.size, a=_cubic(host, guest, structure, calculator), vacuum=vacuum)
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


def _split(metal: str) -> tuple[str, str]:
    """("Cu3Pd") -> ("Cu", "Pd"); an element has no guest."""
    host, _, guest = metal.partition("3")
    return host, guest


def _cubic(host: str, guest: str, structure: str, calculator: Calculator) -> float:
    start = float(bulk(host, structure, cubic=True).cell[0, 0])
    if guest:
        start = 0.75 * start + 0.25 * float(bulk(guest, "fcc", cubic=True).cell[0, 0])

    def energy(a: float) -> float:
        cell = bulk(host, structure, a=a, cubic=True)
        if guest:
            cell[0].symbol = guest
        cell.calc = calculator
        return cell.get_potential_energy()

    return float(minimize_scalar(energy, bounds=(0.92 * start, 1.08 * start), method="bounded", options={"xatol": 2e-3}).x)


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
