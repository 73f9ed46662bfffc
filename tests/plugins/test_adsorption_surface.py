"""The analytic surface against its table and against quadrature; maps against known densities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("ase")
from ase.build import add_adsorbate, fcc100, fcc111, hcp0001
from ase.constraints import FixAtoms
from ase.optimize import BFGS
from ase.units import kB

from dig_core.errors import IncompatibleError, UnsupportedError
from dig_plugins.ase.adsorption import SiteSurface, SurfaceMap, place_adsorbate, slab_frame
from dig_plugins.ase.adsorption.maps import kt_slope
from dig_plugins.ase.adsorption.surface import SITES, _table
from dig_plugins.ase.adsorption.symmetry import operations

H_PT = SiteSurface.from_table("Pt", "H")
PAIRS = [name.split("-") for name in _table()]


def test_the_table_is_whole():
    assert len(PAIRS) == 56 and {"Cu", "Pt"} <= {metal for metal, _ in PAIRS} and set("HCNO") <= {guest for _, guest in PAIRS}
    with pytest.raises(UnsupportedError, match="metals Ag, Au"):
        SiteSurface.from_table("Ni", "O")


@pytest.mark.parametrize("metal, guest", PAIRS)
def test_every_site_has_the_energy_and_height_of_the_table(metal, guest):
    surface = SiteSurface.from_table(metal, guest)
    for site, fractions in SITES.items():
        xyz = np.array(fractions) @ surface.vectors + [0, 0, surface.heights[site]]
        assert float(surface.energy(torch.tensor(xyz))) == pytest.approx(surface.energies[site], abs=1e-10)
        np.testing.assert_allclose(surface.forces(torch.tensor(xyz))[:2] if site != "bridge" else 0, 0, atol=1e-9)


def test_forces_are_the_gradient_and_the_energy_is_periodic():
    rng = np.random.default_rng(0)
    xyz = torch.tensor(rng.normal(size=(20, 3)) * 2)
    forces = H_PT.forces(xyz)
    for axis in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[axis] = 1e-5
        slope = (H_PT.energy(xyz + step) - H_PT.energy(xyz - step)) / 2e-5
        np.testing.assert_allclose(slope, -forces[:, axis], atol=1e-7)
    moved = xyz + torch.tensor(3 * H_PT.vectors[0] - 2 * H_PT.vectors[1])
    np.testing.assert_allclose(H_PT.energy(moved), H_PT.energy(xyz), atol=1e-9)


def test_populations_by_quadrature():
    """Grids of 60 and 120 agree to 1e-3: that is the quadrature's error. 0.403/0.085/0.339/0.173, quoted from a 60 x 60 grid that gave
    points on a basin's edge to one side, is within 0.01."""
    fine, coarse = H_PT.populations(300, grid=120), H_PT.populations(300, grid=60)
    assert list(fine) == list(SITES) and sum(fine.values()) == pytest.approx(1)
    for site, quoted in zip(SITES, (0.403, 0.085, 0.339, 0.173), strict=True):
        assert fine[site] == pytest.approx(coarse[site], abs=1e-3)
        assert fine[site] == pytest.approx(quoted, abs=0.01)
    for (metal, guest), quoted in {("Cu", "H"): (0.617, 0.348), ("Pd", "H"): (0.767, 0.187), ("Cu", "O"): (0.992, 0.008)}.items():
        found = SiteSurface.from_table(metal, guest).populations(300, grid=120)
        assert (found["fcc"], found["hcp"]) == pytest.approx(quoted, abs=0.012)


def test_hot_populations_are_areas():
    """Of the nearest-site cells of the lattice: 3 bridges, 2 hollows and a top share it by their Voronoi cells."""
    found = H_PT.populations(1e9, grid=120)
    assert found["fcc"] == pytest.approx(found["hcp"], abs=1e-6)
    random = np.random.default_rng(1).random((40_000, 2))
    shares = np.bincount(H_PT.nearest_site(random), minlength=4) / len(random)
    for share, site in zip(shares, SITES, strict=True):
        assert abs(share - found[site]) < 4 * np.sqrt(share * (1 - share) / len(random))


@pytest.mark.parametrize("size, options", [((2, 2, 4), {}), ((3, 3, 3), {"a": 4.05}), ((1, 1, 4), {}), ((2, 4, 3), {"orthogonal": True})])
@pytest.mark.parametrize("side", [1, -1])
def test_any_slab_of_the_metal_will_do(size, options, side):
    """Heights and energies at ASE's own named sites, on both sides, for turned cells and other lattice constants."""
    slab = fcc111("Pt", size, vacuum=8, **options)
    names = {"fcc": "fcc", "hcp": "hcp", "bridge": "bridge", "top": "ontop"} if not options.get("orthogonal") else {}
    marked = slab.copy()
    for site, name in names.items():
        add_adsorbate(marked, "H", 1.0, name)
        marked.positions[-1, 2] = slab.positions[:, 2].max() + H_PT.heights[site]
    if side < 0:  # the point reflection of an fcc slab is an fcc slab with its other side up
        marked.positions = slab.positions.max(0) * [0, 0, 1] + slab.positions.min(0) * [0, 0, 1] - marked.positions
    marked.rotate(50, (1, 1, 0.3), rotate_cell=True)
    up = side * marked.cell[2] / np.linalg.norm(marked.cell[2])
    placed = H_PT.on(marked[: len(slab)], normal=up)
    assert placed.normal @ up == pytest.approx(1, abs=1e-9)
    for site, place in zip(names, marked.positions[len(slab) :], strict=True):
        assert float(placed.energy(torch.tensor(place))) == pytest.approx(H_PT.energies[site], abs=1e-6)


def test_slabs_of_another_kind_are_refused():
    for slab, match in (
        (fcc100("Pt", (2, 2, 3), vacuum=8), "fcc.111"), (fcc111("Cu", (2, 2, 3), vacuum=8), "slab of Pt"),
        (hcp0001("Pt", (2, 2, 4), a=2.8, vacuum=8), "hcp"), (fcc111("Pt", (2, 2, 1), vacuum=8), "two layers"),
    ):  # fmt: skip
        with pytest.raises(UnsupportedError, match=match):
            H_PT.on(slab)


def test_the_calculator_relaxes_to_the_table():
    slab = fcc111("Pt", (2, 2, 3), vacuum=8)
    slab.set_constraint(FixAtoms(range(len(slab))))
    atoms = place_adsorbate(slab, "H", (1.2, 0.9))
    atoms.calc = H_PT.calculator()
    with BFGS(atoms, logfile=None) as optimiser:
        optimiser.run(fmax=1e-4, steps=100)
    assert atoms.get_potential_energy() == pytest.approx(H_PT.energies["fcc"], abs=1e-6)
    below = place_adsorbate(slab, "H", (1.2, 0.9), normal=(0, 0, -1))
    below.calc = atoms.calc
    assert H_PT.energies["fcc"] - 0.01 < below.get_potential_energy() < H_PT.energies["fcc"] + 1.5
    atoms.set_constraint()
    atoms.positions[0] += 0.2
    with pytest.raises(IncompatibleError, match="rigid"):
        atoms.get_potential_energy()
    atoms.symbols[-1] = "O"
    with pytest.raises(UnsupportedError, match="adsorbate H"):
        atoms.get_potential_energy()


def test_the_map_is_boltzmann_and_symmetric():
    slab = fcc111("Pt", (2, 2, 4), vacuum=8)
    frame = slab_frame(slab)
    exact = H_PT.on(slab).map((24, 24), 300)
    assert exact.p.mean() * abs(np.linalg.det(exact.lattice)) == pytest.approx(1)
    assert exact.asymmetry(operations(slab, frame)) < 0.01
    value, _ = H_PT.on(slab).profile(H_PT.on(slab).fractions(frame.point(exact.xy, 0.0)))
    assert np.polyfit(value.ravel(), exact.free_energy(300).ravel(), 1)[0] == pytest.approx(1, abs=0.02)
    hot = H_PT.on(slab).map((24, 24), 600)
    assert hot.slope(exact, 300) == pytest.approx(0.5, abs=0.02)


def test_distances_between_maps():
    lattice = np.array([[3.0, 0.0], [1.0, 2.5]])
    left, right = np.zeros((8, 8)), np.zeros((8, 8))
    left[:4], right[4:] = 1, 1
    a, b = SurfaceMap.from_density(left, lattice), SurfaceMap.from_density(right, lattice)
    assert a.total_variation(b) == pytest.approx(1) and a.total_variation(a) == 0
    assert a.js(b) == pytest.approx(np.log(2)) and a.js(a) == pytest.approx(0, abs=1e-12)
    assert np.isinf(a.free_energy(300)).sum() == 32 and a.free_energy(300).min() == 0
    with pytest.raises(IncompatibleError, match="one grid"):
        a.total_variation(SurfaceMap.from_density(np.ones((4, 4)), lattice))
    with pytest.raises(IncompatibleError, match="densities"):
        SurfaceMap.from_density(-np.ones((4, 4)), lattice)


def test_a_histogram_is_as_far_off_as_its_noise_says():
    exact = H_PT.map((12, 12), 300)
    rng = np.random.default_rng(2)
    apart = []
    for _ in range(20):
        cells = rng.choice(144, 5000, p=exact.probability.ravel())
        inside = (np.stack(np.divmod(cells, 12), -1) + rng.random((5000, 2))) / 12
        xy = (inside + rng.integers(-3, 4, (5000, 2))) @ exact.lattice
        apart.append(SurfaceMap.from_samples(xy, exact.lattice, grid=(12, 12)).total_variation(exact))
    assert abs(np.mean(apart) - exact.noise(5000)) < 4 * np.std(apart) / np.sqrt(20)


def test_interpolation_and_smoothing_keep_the_integral():
    lattice = np.array([[3.0, 0.0], [1.5, 2.6]])
    xy = np.random.default_rng(3).normal(size=(500, 2))
    for smooth in (0.0, 0.2):
        found = SurfaceMap.from_samples(xy, lattice, grid=(20, 22), smooth=smooth)
        assert found.p.mean() * np.linalg.det(lattice) == pytest.approx(1)
        np.testing.assert_allclose(found.at(found.xy), found.p, atol=1e-12)
        np.testing.assert_allclose(found.at(found.xy + 2 * lattice[0] - lattice[1]), found.p, atol=1e-9)


def test_slope_of_a_calibrated_model_is_one():
    energy = np.random.default_rng(4).normal(size=200) * 0.1
    assert kt_slope(-energy / (kB * 300) + 7, energy, 300) == pytest.approx(1)
    assert kt_slope(-energy / (kB * 600), energy, 300) == pytest.approx(0.5)
