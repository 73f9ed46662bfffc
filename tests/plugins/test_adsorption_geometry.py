"""Slabs: which way is up, roles, contact placement, geometric sites, symmetry, anomalies."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

pytest.importorskip("ase")
from ase import Atoms
from ase.build import bcc100, bcc110, bulk, fcc100, fcc110, fcc111, fcc211, hcp0001, molecule
from ase.constraints import FixAtoms, FixedPlane
from ase.data import covalent_radii
from ase.geometry import find_mic
from ase.io import read, write

from dig_core.errors import IncompatibleError, StateError, UnsupportedError
from dig_plugins.ase.adsorption import anomalies, check_slab, enumerate_sites, place_adsorbate, roles, slab_frame
from dig_plugins.ase.adsorption.mesh import label_at
from dig_plugins.ase.adsorption.plane import shortest
from dig_plugins.ase.adsorption.symmetry import operations, primitive_lattice

SLABS = {
    "fcc111": fcc111("Pt", (2, 2, 4), vacuum=8), "fcc100": fcc100("Cu", (2, 2, 4), vacuum=8),
    "fcc110": fcc110("Cu", (2, 2, 4), vacuum=8), "fcc211": fcc211("Cu", (3, 2, 3), vacuum=8),
    "hcp0001": hcp0001("Ru", (2, 2, 4), vacuum=8), "bcc110": bcc110("Fe", (2, 2, 4), vacuum=8),
    "bcc100": bcc100("Fe", (2, 2, 4), vacuum=8), "fcc111-1x1": fcc111("Cu", (1, 1, 3), vacuum=8),
}  # fmt: skip


def turned(slab, kind):
    """The same slab, otherwise written down."""
    slab = slab.copy()
    if kind == "rotated":
        slab.rotate(37, (1, 2, 3), rotate_cell=True)
    elif kind == "permuted":
        slab.set_cell(slab.cell.array[[2, 0, 1]])
        slab.pbc = slab.pbc[[2, 0, 1]]
    elif kind == "cut":
        slab.pbc = True
        slab.positions += 0.5 * slab.cell[2] + [0.3, 0.2, 0]
        slab.wrap()
    return slab


def counts(sites):
    return Counter((site.label, site.coordination) for site in sites)


@pytest.mark.parametrize("kind", ["rotated", "permuted", "cut"])
@pytest.mark.parametrize("name", ["fcc111", "fcc211"])
def test_a_surface_is_the_same_however_it_is_written_down(name, kind):
    slab = turned(SLABS[name], kind)
    plain, other = slab_frame(SLABS[name]), slab_frame(slab)
    assert other.thickness == pytest.approx(plain.thickness, abs=1e-6)
    np.testing.assert_allclose(np.sort(other.height(slab.positions)), np.sort(plain.height(SLABS[name].positions)), atol=1e-6)
    assert counts(enumerate_sites(slab)) == counts(enumerate_sites(SLABS[name]))
    below = -other.normal
    assert counts(enumerate_sites(slab, normal=below)) == counts(enumerate_sites(SLABS[name]))
    area, expected = (np.linalg.det(primitive_lattice(s, f)) for s, f in ((slab, other), (SLABS[name], plain)))
    assert area == pytest.approx(expected, rel=1e-3)


def test_points_and_heights_are_inverse():
    for kind in ("rotated", "cut"):
        frame = slab_frame(turned(SLABS["fcc111"], kind))
        xy, height = np.array([[0.3, 1.2], [2.0, -0.7]]), np.array([1.1, -0.4])
        points = frame.point(xy, height)
        np.testing.assert_allclose(frame.xy(points), xy, atol=1e-9)
        np.testing.assert_allclose(frame.height(points), height, atol=1e-9)


def test_x_and_y_are_cartesian_for_a_slab_in_the_xy_plane_on_both_sides():
    for normal in ((0, 0, 1), (0, 0, -1)):
        frame = slab_frame(SLABS["fcc100"], normal=normal)
        np.testing.assert_allclose(frame.xy(SLABS["fcc100"].positions), SLABS["fcc100"].positions[:, :2])


def test_slabs_that_are_none_are_refused():
    with pytest.raises(IncompatibleError, match="vacuum of at least"):
        slab_frame(bulk("Cu", cubic=True))
    wrong = SLABS["fcc111"].copy()
    wrong.pbc = (True, False, True)
    with pytest.raises(IncompatibleError, match="one vacuum"):
        slab_frame(wrong)
    wrong.pbc = (True, False, False)
    with pytest.raises(IncompatibleError, match="along two cell vectors"):
        slab_frame(wrong)
    with pytest.raises(IncompatibleError, match="surface plane"):
        slab_frame(SLABS["fcc111"], normal=(1, 0, 0))
    wrong = SLABS["fcc111"].copy()
    wrong.positions[3] = np.nan
    with pytest.raises(StateError, match="atom 3"):
        slab_frame(wrong)


def test_roles_name_every_atom_once():
    atoms = place_adsorbate(SLABS["fcc111"], "CO", (0, 0))
    atoms.set_constraint(FixAtoms(range(8)))
    found = roles(atoms, [-1, -2])
    assert sorted(np.concatenate(found)) == list(range(18))
    assert found.frozen.tolist() == list(range(8)) and found.adsorbate.tolist() == [16, 17]
    assert roles(atoms).adsorbate.size == 0
    assert roles(atoms, convention="ase").adsorbate.tolist() == [16, 17]
    atoms.set_tags([0] * 8 + [1] * 8 + [2] * 2)
    assert roles(atoms, convention="ocp").adsorbate.tolist() == [16, 17]
    assert check_slab(atoms, found).normal @ [0, 0, 1] == pytest.approx(1)


@pytest.mark.parametrize(
    "indices, convention, match",
    [([18], None, "out of range"), ([16, -2], None, "twice"), ([0.5], None, "integers"), ([16], "ocp", "not both"),
     (None, "vasp", "one of"), (None, "ocp", "tags are 0, 1 and 2"), ([2, 16], None, "FixAtoms"), (range(18), None, "no slab")],
)  # fmt: skip
def test_roles_that_cannot_be_are_refused(indices, convention, match):
    atoms = place_adsorbate(SLABS["fcc111"], "CO", (0, 0))
    atoms.set_constraint(FixAtoms(range(8)))
    with pytest.raises(IncompatibleError, match=match):
        roles(atoms, None if indices is None else list(indices), convention=convention)


def test_other_constraints_and_buried_adsorbates_and_small_cells_are_refused():
    atoms = place_adsorbate(SLABS["fcc111"], "O", (0, 0))
    atoms.set_constraint(FixedPlane(0, (0, 0, 1)))
    with pytest.raises(UnsupportedError, match="FixedPlane"):
        roles(atoms, [16])
    atoms.set_constraint()
    with pytest.raises(IncompatibleError, match="cutoff"):
        check_slab(atoms, roles(atoms, [16]), cutoff=9.0)
    atoms.positions[16] = slab_frame(SLABS["fcc111"]).point(np.array([1.39, 0.8]), -1.1)
    with pytest.raises(IncompatibleError, match="inside the slab"):
        check_slab(atoms, roles(atoms, [16]))


@pytest.mark.parametrize("name", ["fcc111", "fcc110", "fcc211", "fcc111-1x1"])
@pytest.mark.parametrize("side", [1, -1])
def test_placement_ends_in_contact_and_nowhere_closer(name, side):
    slab = turned(SLABS[name], "rotated")
    frame = slab_frame(slab, normal=side * slab.cell[2] if np.linalg.norm(slab.cell[2]) else None)
    rng = np.random.default_rng(3)
    for _ in range(10):
        xy = rng.uniform(-9, 9, 2)
        placed = place_adsorbate(slab, "N", xy, normal=frame.normal)
        _, apart = find_mic(placed.positions[:-1] - placed.positions[-1], slab.cell, slab.pbc)
        ratio = apart / (covalent_radii[7] + covalent_radii[slab.numbers])
        assert ratio.min() == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(frame.xy(placed.positions[-1]), xy, atol=1e-9)
    lifted = place_adsorbate(slab, "N", xy, normal=frame.normal, gap=0.5)
    assert frame.height(lifted.positions[-1]) == pytest.approx(frame.height(placed.positions[-1]) + 0.5)


def test_named_molecules_stand_on_their_anchor_and_keep_their_handedness():
    for name, low in (("CO", "C"), ("OH", "O"), ("NO", "N"), ("H2O", "O")):
        placed = place_adsorbate(SLABS["fcc111"], name, (1, 1), normal=(0, 0, -1))
        guest = placed[16:]
        assert guest.symbols[guest.positions[:, 2].argmax()] == low
    chiral = Atoms("CHFClBr", [(0, 0, 0), (0, 0, -1.1), (1.3, 0, 0.4), (-0.8, 1.4, 0.6), (-0.9, -1.6, 0.6)])
    volume = np.linalg.det(chiral.positions[2:])
    big = fcc111("Pt", (4, 4, 3), vacuum=8)
    for normal in ((0, 0, 1), (0, 0, -1)):
        guest = place_adsorbate(big, chiral, (3, 3), normal=normal)[len(big) :]
        assert np.linalg.det(guest.positions[2:] - guest.positions[0]) == pytest.approx(volume)
        np.testing.assert_allclose(guest.get_all_distances(), chiral.get_all_distances(), atol=1e-9)


def test_placements_that_cannot_be_are_refused():
    slab = SLABS["fcc111-1x1"]
    for arguments, match in (
        (("Unobtainium", (0, 0)), "g2"), (("C6H6", (0, 0)), "own image"), (("O", (0, np.nan)), "finite"), (("O", (0,)), "two finite"),
    ):  # fmt: skip
        with pytest.raises(IncompatibleError, match=match):
            place_adsorbate(slab, *arguments)
    with pytest.raises(IncompatibleError, match="rotation"):
        place_adsorbate(slab, "O", (0, 0), rotation=-np.eye(3))
    with pytest.raises(IncompatibleError, match="anchor"):
        place_adsorbate(slab, molecule("CO"), (0, 0), anchor=2)


COUNTS = {
    "fcc111": {("top", 1): 4, ("bridge", 2): 12, ("fcc", 3): 4, ("hcp", 3): 4},
    "fcc100": {("top", 1): 4, ("bridge", 2): 8, ("hollow", 4): 4},
    "fcc110": {("top", 1): 4, ("hollow", 5): 4, ("bridge", 2): 24, ("fcc", 3): 8, ("hcp", 3): 8},
    "hcp0001": {("top", 1): 4, ("bridge", 2): 12, ("fcc", 3): 4, ("hcp", 3): 4},
    "fcc111-1x1": {("top", 1): 1, ("bridge", 2): 3, ("fcc", 3): 1, ("hcp", 3): 1},
    "fcc211": {("top", 1): 4, ("bridge", 2): 16, ("fcc", 3): 4, ("hcp", 3): 4, ("hollow", 4): 4},
    "bcc100": {("top", 1): 4, ("bridge", 2): 24, ("hcp", 3): 16, ("hollow", 5): 4},
    "bcc110": {("top", 1): 4, ("bridge", 2): 12, ("hcp", 3): 8},
}


@pytest.mark.parametrize("name", COUNTS)
def test_sites_of_known_surfaces(name):
    """By symmetry and by hand; V - E + F = 0 on a torus holds for the mesh of each."""
    sites = enumerate_sites(SLABS[name])
    assert counts(sites) == COUNTS[name]
    corners = Counter(len(site.atoms) for site in sites)
    assert corners[1] - corners[2] + corners[3] + corners[4] == 0


@pytest.mark.parametrize("name", COUNTS)
def test_sites_survive_displacements_and_files(name, tmp_path):
    rng = np.random.default_rng(5)
    plain = enumerate_sites(SLABS[name])
    for _ in range(3):
        slab = SLABS[name].copy()
        most = 0.05 if name == "bcc100" else 0.1  # its second layer is only just exposed: with it come four pseudo-hollows
        slab.positions += rng.uniform(-most, most, slab.positions.shape)
        sites = enumerate_sites(slab)
        assert Counter(site.label for site in sites) == Counter(site.label for site in plain)
        lattice = slab_frame(slab).lattice
        for site in sites:
            assert min(np.linalg.norm(shortest(site.xy - p.xy, lattice)) for p in plain if p.label == site.label) < 0.25
    slab = SLABS[name].copy()
    slab.info.clear()
    write(tmp_path / "slab.extxyz", slab)
    assert counts(enumerate_sites(read(tmp_path / "slab.extxyz"))) == COUNTS[name]


def test_guesses_on_a_step_stand_off_their_facet():
    """On the terrace of fcc(211), which is a tilted (111) face, a hollow's three distances are equal in space."""
    slab = SLABS["fcc211"]
    for site in enumerate_sites(slab):
        if site.label in ("fcc", "hcp"):
            vectors, apart = find_mic(slab.positions[list(site.atoms)] - site.position, slab.cell, (True, True, False))
            assert np.ptp(apart) < 0.02


def test_hollows_of_fcc111_are_where_crystallography_puts_them():
    slab = SLABS["fcc111"]
    frame = slab_frame(slab)
    a = np.linalg.norm(slab.cell[0]) / 2
    for label, place in (("fcc", (a / 2, a / np.sqrt(12))), ("hcp", (a, a / np.sqrt(3))), ("top", (0, 0)), ("bridge", (a / 2, 0))):
        apart = [np.linalg.norm(shortest(s.xy - place, frame.lattice / 2)) for s in enumerate_sites(slab) if s.label == label]
        assert min(apart) < 1e-6
        assert label_at(slab, frame, frame.point(np.array(place), 1.0 if label != "top" else 1.8))[0] == label


@pytest.mark.parametrize(
    "name, group, cells", [("fcc111", 6, 4), ("fcc100", 8, 4), ("fcc110", 4, 4), ("fcc211", 2, 2), ("bcc110", 4, 4), ("fcc111-1x1", 6, 1)]
)
def test_symmetry_of_known_surfaces(name, group, cells):
    """Plane groups p3m1, p4mm, p2mm, pm, c2mm; the translations of a p(2x2) cell fold it onto the surface's own."""
    slab = SLABS[name]
    frame = slab_frame(slab)
    lattice = primitive_lattice(slab, frame)
    found = operations(slab, frame)
    assert len(found) == group
    assert abs(np.linalg.det(frame.lattice)) / np.linalg.det(lattice) == pytest.approx(cells, rel=1e-3)
    np.testing.assert_allclose(found[0].matrix, np.eye(2), atol=1e-9)
    tops = np.array([s.xy for s in enumerate_sites(slab) if s.label == "hcp" or s.coordination == 4])
    for operation in found if len(tops) else ():
        apart = np.linalg.norm(shortest(operation(tops)[:, None] - tops[None], lattice), axis=-1)
        assert apart.min(1).max() < 1e-2


def test_an_alloy_repeats_less_often_than_its_lattice():
    slab = SLABS["fcc111"].copy()
    slab.numbers[-1] = 28
    frame = slab_frame(slab)
    assert np.linalg.det(primitive_lattice(slab, frame)) == pytest.approx(abs(np.linalg.det(frame.lattice)), rel=1e-6)
    assert len(operations(slab, frame)) == 6


def test_anomalies_are_told_apart():
    slab = fcc111("Pt", (3, 3, 3), vacuum=10)
    start = place_adsorbate(slab, "CO", (0, 0))
    n = len(slab)
    assert anomalies(start, start, slab) == ()
    away = start.copy()
    away.positions[n:, 2] += 3
    assert anomalies(start, away, slab) == ("adsorbate_desorbed",)
    apart = start.copy()
    apart.positions[n + int(start[n:].symbols[0] == "C")] = start.positions[n] + [4.2, 2.4, 0.0]
    assert "adsorbate_dissociated" in anomalies(start, apart, slab)
    torn = start.copy()
    torn.positions[n - 1, 2] += 2.5
    assert "surface_changed" in anomalies(start, torn, slab)
    atom = place_adsorbate(slab, "H", (0, 0))
    inside = atom.copy()
    inside.positions[n] = slab_frame(slab).point(np.array([1.39, 0.8]), -1.0)
    assert anomalies(atom, inside, slab) == ("adsorbate_intercalated",)
    with pytest.raises(IncompatibleError, match="same atoms"):
        anomalies(start, atom, slab)
    with pytest.raises(IncompatibleError, match="slab's"):
        anomalies(slab, atom, slab)


def test_adsorbates_on_steps_and_in_troughs_are_not_intercalated():
    for name in ("fcc211", "fcc110", "bcc100", "fcc100"):
        slab = SLABS[name]
        for site in enumerate_sites(slab):
            atoms = place_adsorbate(slab, "H", site.xy)
            assert anomalies(atoms, atoms, slab) == ()
