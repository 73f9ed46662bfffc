"""Structures in and out: round trips, what is refused and by which name, files that lose nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("pymatgen")

from pymatgen.core import DummySpecies, Lattice, Structure

from dig_core.errors import IncompatibleError, StateError, UnsupportedError
from dig_core.types import Geometry
from dig_plugins.pymatgen.convert import check_structure, from_atoms, grouped, to_atoms, to_geometry, to_structures
from dig_plugins.pymatgen.distances import closest, fingerprint, neighbour_distances, within
from dig_plugins.pymatgen.files import read_structures, write_structures
from tests.plugins.known_crystals import amorphous, diamond, graphite, moved, rocksalt

CRYSTALS = {"diamond": diamond(), "graphite": graphite(), "rocksalt": rocksalt(), "amorphous": amorphous(5, 1)}


@pytest.mark.parametrize("name", CRYSTALS)
def test_structure_comes_back(name):
    """All distances are kept, through another basis and another order of the atoms."""
    (group,) = grouped([CRYSTALS[name]])
    (back,) = to_structures(group.geometry, group.descriptor)
    np.testing.assert_allclose(fingerprint(back), fingerprint(CRYSTALS[name]), atol=1e-9)
    assert back.composition == CRYSTALS[name].composition
    assert back.volume == pytest.approx(CRYSTALS[name].volume)


def test_handedness_is_kept():
    """Structures of left-handed lattice vectors are not mirrored: signed volumes of four neighbouring atoms stay."""
    chiral = amorphous(4, 3)
    left = Structure(Lattice(chiral.lattice.matrix[[1, 0, 2]]), chiral.species, chiral.frac_coords[:, [1, 0, 2]])

    def hand(structure):
        first, *others = structure.frac_coords
        images = [structure.lattice.get_distance_and_image(first, other)[1] for other in others]
        return np.linalg.det((np.array(others) + images - first) @ structure.lattice.matrix)

    (back,) = to_structures(to_geometry(left), [6] * 4)
    assert hand(back) == pytest.approx(hand(chiral)) == pytest.approx(hand(left))


def test_grouped_sorts_by_composition_and_keeps_places():
    structures = [diamond(), rocksalt(), graphite(), diamond(3.6), graphite()]
    groups = grouped(structures)
    assert sorted(i for group in groups for i in group.index) == list(range(5))
    assert {group.index for group in groups} == {(0, 3), (1,), (2, 4)}
    salt = next(group for group in groups if group.index == (1,))
    assert salt.descriptor.numbers.tolist() == [11] * 4 + [17] * 4


def test_oxidation_states_are_ignored():
    charged = rocksalt()
    charged.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    check_structure(charged)
    torch.testing.assert_close(to_geometry(charged).cell, to_geometry(rocksalt()).cell)
    assert grouped([charged])[0].descriptor.numbers.tolist() == [11] * 4 + [17] * 4


def broken(kind: str) -> Structure:
    if kind == "occupancy":
        return Structure(Lattice.cubic(3), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]])
    if kind == "vacancy":
        return Structure(Lattice.cubic(3), [{"Fe": 0.9}], [[0, 0, 0]])
    if kind == "overlap":
        return Structure(Lattice.cubic(3), ["C", "C"], [[0, 0, 0], [0.01, 0, 0.99]])
    if kind == "own image":
        return Structure(Lattice.from_parameters(0.3, 5, 5, 90, 90, 90), ["C"], [[0, 0, 0]])
    if kind == "flat":
        return Structure(Lattice([[3, 0, 0], [0, 3, 0], [3, 3, 1e-9]]), ["C"], [[0, 0, 0]])
    if kind == "nan":
        return Structure(Lattice.cubic(3), ["C", "C"], [[0, 0, 0], [0.5, np.nan, 0.5]])
    return Structure(Lattice.cubic(3), [DummySpecies("X")], [[0, 0, 0]])


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("occupancy", UnsupportedError, "Fe:0.5"),
        ("vacancy", UnsupportedError, "Fe:0.9"),
        ("dummy", UnsupportedError, "X"),
        ("overlap", IncompatibleError, "nearest neighbour"),
        ("own image", IncompatibleError, "nearest neighbour"),
        ("flat", IncompatibleError, "volume"),
        ("nan", IncompatibleError, "not finite"),
    ],
)
def test_bad_structures_are_refused_by_name(kind, error, said):
    bad = broken(kind)
    bad.properties["uid"] = "mp-17"
    with pytest.raises(error, match="structure 1.*mp-17") as found:
        grouped([diamond(), bad])
    assert said in str(found.value)


def test_geometry_without_structures_is_refused():
    geometry = to_geometry(diamond())
    with pytest.raises(StateError, match="structure 1"):
        to_structures(
            Geometry(geometry.positions.repeat(2, 1, 1), torch.cat([geometry.cell, 0 * geometry.cell])), [6] * 8
        )
    with pytest.raises(IncompatibleError, match="one composition"):
        to_geometry([diamond(), graphite()])


@pytest.mark.parametrize("suffix", [".cif", ".extxyz", ".json", ".cif.gz", ".extxyz.gz", ".json.gz"])
def test_files_keep_structures_and_what_is_known_of_them(tmp_path, suffix):
    structures = [diamond(), rocksalt(), amorphous(5, 2)]
    for k, structure in enumerate(structures):
        structure.properties = {
            "log_q": -1.2345678901234 * k,
            "gap": np.float64(4.0),
            "uid": f"number {k}",
            "count": k,
            "valid": 1,
        }
    write_structures(tmp_path / f"all{suffix}", structures)
    back = read_structures(tmp_path / f"all{suffix}")
    assert [s.properties for s in back] == [s.properties for s in structures]
    for old, new in zip(structures, back, strict=True):
        assert old.composition == new.composition
        np.testing.assert_allclose(fingerprint(new), fingerprint(old), atol=1e-7)


def test_other_names_are_refused(tmp_path):
    with pytest.raises(IncompatibleError, match="extxyz"):
        write_structures(tmp_path / "all.txt", [diamond()])
    with pytest.raises(IncompatibleError, match="at least one"):
        write_structures(tmp_path / "all.cif", [])


def test_atoms_and_back():
    structure = graphite()
    structure.properties = {"gap": 0.5, "uid": "g"}
    atoms = to_atoms(structure)
    assert atoms.pbc.all() and atoms.info == structure.properties and atoms.calc is None
    back = from_atoms(atoms)
    np.testing.assert_allclose(back.frac_coords, structure.frac_coords, atol=1e-12)
    assert back.properties == structure.properties


def test_distances_of_diamond():
    bond = 3.567 * np.sqrt(3) / 4
    found = neighbour_distances(diamond(), 16)
    np.testing.assert_allclose(found[:, :4], bond)
    np.testing.assert_allclose(found[:, 4:], 3.567 / np.sqrt(2))
    assert (within(diamond(), 1.85) == 4).all() and (within(graphite(), 1.85) == 3).all()
    assert closest(diamond(), np.full(8, 0.5)) == pytest.approx((bond, bond))


@pytest.mark.parametrize("name", CRYSTALS)
def test_fingerprint_is_blind_to_description(name):
    crystal = CRYSTALS[name]
    np.testing.assert_allclose(fingerprint(moved(crystal, 5)), fingerprint(crystal), atol=1e-9)
    np.testing.assert_allclose(
        fingerprint(crystal.make_supercell([2, 1, 1], in_place=False)), fingerprint(crystal), atol=1e-9
    )


def test_fingerprint_is_continuous():
    """No distance changes by more than twice the longest displacement."""
    crystal = amorphous(6, 9)
    scale = (len(crystal) / crystal.volume) ** (1 / 3)
    for noise in (1e-6, 1e-3, 0.05):
        near = crystal.copy()
        near.perturb(noise)
        assert np.abs(fingerprint(near) - fingerprint(crystal)).max() <= 2 * noise * scale * (1 + 1e-9)


def test_long_thin_cells_have_all_their_neighbours():
    """The same crystal in a very skew basis."""
    crystal = graphite()
    skew = Structure(
        Lattice(np.array([[1, 0, 0], [9, 1, 0], [0, 7, 1]]) @ crystal.lattice.matrix), crystal.species, np.zeros((4, 3))
    )
    skew = Structure(skew.lattice, crystal.species, crystal.cart_coords, coords_are_cartesian=True)
    np.testing.assert_allclose(neighbour_distances(skew, 20), neighbour_distances(crystal, 20), atol=1e-9)
