"""The slabs that adsorption models learn from: what they are cut from, what repeats in them, and that nothing is named twice."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("ase")

from ase.calculators.emt import EMT
from ase.neighborlist import neighbor_list

from dig_plugins.ase.recipes.slabs import ADSORBATES, HELD_OUT, SLABS, build, guests, surface_vectors

CUT = {
    "Ag-fcc221": 7, "Ag-fcc310": 6, "Ni-fcc311": 7, "Pd-fcc331": 7, "Cu3Au-fcc100": 8, "Cu3Pt-fcc110": 7, "Pd3Ag-fcc211": 7,
}  # fmt: skip
"""Slab -> neighbours of the atoms at its steps, of twelve in the bulk."""
BUILT = ["Cu-fcc111", "Ag-fcc211", "Cu3Au-fcc111"]


def unrelaxed(name: str):
    """The slab as it is cut: forces below infinity are small enough."""
    return build(SLABS[name], EMT(), fmax=np.inf)


@pytest.mark.parametrize("name", [*CUT, *BUILT])
def test_the_surface_repeats_by_its_vectors(name):
    """Every atom, moved by one of them, is on one of the same element; there are no others in their cell."""
    slab = unrelaxed(name)
    vectors = surface_vectors(SLABS[name], slab)
    for vector in vectors:
        moved = slab.copy()
        moved.positions += vector
        moved.wrap()
        apart = np.array([[_distance(slab, a, b) for b in moved.positions] for a in slab.positions])
        nearest = apart.argmin(0)
        assert apart.min(0).max() < 1e-6 and (slab.numbers[nearest] == slab.numbers).all()
    whole, one = (abs(np.cross(*pair)[2]) for pair in (slab.cell[:2], vectors))
    assert round(whole / one) == np.prod(SLABS[name].repeats) and slab.cell[2, 2] > 16


def _distance(slab, a, b) -> float:
    part = np.linalg.solve(slab.cell.T, a - b)
    part[:2] -= np.rint(part[:2])
    return float(min(np.linalg.norm((part + [i, j, 0]) @ slab.cell) for i in (-1, 0, 1) for j in (-1, 0, 1)))


@pytest.mark.parametrize(("name", "least"), CUT.items(), ids=list(CUT))
def test_cut_slabs_have_the_steps_that_they_are_named_for(name, least):
    """As many neighbours at the steps as the facet has, all of them inside; as many of each element as the formula says."""
    slab = unrelaxed(name)
    bond = neighbor_list("d", slab, 3.2).min()
    count = np.bincount(neighbor_list("i", slab, 1.1 * bond), minlength=len(slab))
    assert count.min() == least and count.max() == 12
    if name[2] == "3":
        host, guest = re.findall("[A-Z][a-z]?", name)
        assert slab.symbols.count(host) == 3 * slab.symbols.count(guest)


def test_solid_solutions_hold_as_much_of_each_metal_and_are_the_same_every_time():
    recipe = SLABS["CuFeZn-fcc111"]._replace(metal="AgAuCu")  # what the test energy knows
    one, other = (build(recipe, EMT(), fmax=np.inf) for _ in range(2))
    assert one == other
    assert [one.symbols.count(metal) for metal in ("Ag", "Au", "Cu")] == [4, 4, 4]
    assert recipe.repeats == (1, 1)


def test_names_say_one_thing_each():
    assert not set(SLABS) & set(HELD_OUT)
    for name in SLABS:
        labelled = guests(name)
        assert len(set(labelled)) == len(labelled) >= 2 and set(labelled) <= set(ADSORBATES)
    alloys = {name.split("-")[0] for name in HELD_OUT if name[2] == "3"}
    assert len(alloys) == 3 and not {name for name in SLABS if name.split("-")[0] in alloys}
