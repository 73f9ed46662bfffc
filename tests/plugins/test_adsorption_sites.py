"""Grid searches, comparisons of sites, and ensembles: what is known of them on the analytic surface, from exact samples."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("ase")
from ase import Atoms
from ase.build import fcc111, fcc211
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read
from ase.units import kB

from dig_core.errors import IncompatibleError, StateError
from dig_plugins.ase.adsorption import (
    AdsorptionEnsemble,
    Site,
    SiteSet,
    SiteSurface,
    enumerate_sites,
    grid_search,
    place_adsorbate,
    slab_frame,
)
from dig_plugins.ase.adsorption.coverage import distances, merged
from dig_plugins.ase.adsorption.plane import shortest
from dig_plugins.ase.adsorption.relax import Counted, hessian, is_minimum, relax
from dig_plugins.ase.adsorption.search import carried

H_PT = SiteSurface.from_table("Pt", "H")
COPIES = {"fcc": [(1 / 3, 1 / 3)], "hcp": [(2 / 3, 2 / 3)], "bridge": [(0.5, 0), (0, 0.5), (0.5, 0.5)], "top": [(0, 0)]}


def rigid(slab):
    slab.set_constraint(FixAtoms(range(len(slab))))
    return slab


SLAB = rigid(fcc111("Pt", (2, 2, 3), vacuum=8))
ON = H_PT.on(SLAB)


def exact_samples(n, temperature=300.0, seed=0, surface=ON, slab=SLAB):
    """(n, 3) positions by rejection, over the whole cell and beyond."""
    rng, frame = np.random.default_rng(seed), slab_frame(slab)
    fractions = rng.random((30 * n, 2)) * 6 - 2
    value, height = surface.profile(fractions)
    kept = rng.random(len(value)) < np.exp(-(value - value.min()) / (kB * temperature))
    height = height + rng.normal(size=len(height)) * np.sqrt(kB * temperature / surface.stiffness)
    places = surface.origin + fractions @ surface.vectors + height[:, None] * surface.normal
    assert kept.sum() >= n and frame.axis == 2
    return places[kept][:n]


def ensemble(xyz, **fields):
    template = place_adsorbate(SLAB, "H", (0, 0))
    positions = np.repeat(template.positions[None], len(xyz), 0)
    positions[:, -1] = xyz
    return AdsorptionEnsemble(template, positions, (len(SLAB),), **fields)


def places(surface=ON, frame=None):
    frame = frame or slab_frame(SLAB)
    return {site: np.array([frame.xy(surface.origin + np.array(c) @ surface.vectors) for c in cs]) for site, cs in COPIES.items()}


class Springs(Calculator):
    """Two atoms bound to the origin by a quadratic form of their six coordinates, the rest free."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def calculate(self, atoms=None, properties=("energy",), system_changes=None):
        super().calculate(atoms, properties, system_changes)
        x = self.atoms.positions[:2].ravel()
        forces = np.zeros((len(self.atoms), 3))
        forces[:2] = -(self.matrix @ x).reshape(2, 3)
        self.results = {"energy": 0.5 * x @ self.matrix @ x, "forces": forces}


def test_curvatures_of_springs_are_exact_wherever_the_relaxation_ends():
    """Three calls an atom; forces that are left where it ended drop out."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(6, 6))
    matrix, counted = half @ half.T + np.eye(6), Counted(Springs(half @ half.T + np.eye(6)))
    for steps in (0, 200):
        end = relax(Atoms("H2Pt", rng.normal(size=(3, 3))), counted, fmax=1e-3, steps=steps)
        before = counted.calls
        assert np.abs(hessian(end, np.array([0, 1]), counted) - matrix).max() < 1e-9
        assert counted.calls - before == 6 and end.converged == bool(steps)


@pytest.fixture(scope="module")
def searched():
    return grid_search(SLAB, "H", H_PT.calculator(), log=io.StringIO())


def test_grid_search_finds_the_table(searched):
    minima = [site for site in searched if site.is_minimum]
    assert [site.label for site in minima] == ["fcc", "top", "hcp"]
    for site in minima:
        assert site.energy == pytest.approx(H_PT.energies[site.label], abs=1e-3)
        assert site.multiplicity == 1
        assert np.linalg.norm(shortest(site.xy - places()[site.label][0], searched.lattice)) < 0.02
    saddles = [site for site in searched if site.is_minimum is False]
    assert all(site.multiplicity == 3 for site in saddles)
    assert searched.n_calls > 100 and searched.failures == 0 and searched.draws == 12


class Rough(Calculator):
    """A surface whose forces are rough, as those of networks in single precision are."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, inner, roughness):
        super().__init__()
        self.inner, self.roughness, self.rng = inner, roughness, np.random.default_rng(0)

    def calculate(self, atoms=None, properties=("energy",), system_changes=None):
        super().calculate(atoms, properties, system_changes)
        self.inner.calculate(atoms)
        self.results = dict(self.inner.results)
        self.results["forces"] = self.results["forces"] + self.roughness * self.rng.normal(size=(len(atoms), 3))


@pytest.mark.parametrize(("guest", "site", "minimum"), [("H", "fcc", True), ("H", "hcp", True), ("N", "fcc", True), ("N", "bridge", False)])
def test_rough_forces_make_no_saddle_of_a_minimum_and_no_minimum_of_a_saddle(guest, site, minimum):
    """H on Pt hardly feels where it is: second differences of rough forces call its minima saddles, the energies around do not."""
    surface = SiteSurface.from_table("Pt", guest)
    start = place_adsorbate(SLAB, Atoms(guest), places(surface.on(SLAB))[site][0])
    start.positions[-1, 2] = SLAB.positions[:, 2].max() + surface.heights[site]
    counted = Counted(Rough(surface.calculator(), 0.01))
    end = relax(start, counted, fmax=0.05, steps=0)
    found = [is_minimum(end, np.array([len(SLAB)]), counted) for _ in range(20)]
    assert found == [minimum] * 20
    if guest == "H":
        assert any(np.linalg.eigvalsh(hessian(end, np.array([len(SLAB)]), counted))[0] < 0 for _ in range(20))


def test_a_relaxation_that_gets_nowhere_ends(searched):
    """No energy to win, and rough forces that never converge: a site is left after ten steps, not after all that are allowed."""
    lost = replace(searched, sites=searched.sites[:1]).relax(Rough(Springs(np.zeros((6, 6))), 0.01), fmax=1e-4, steps=200)
    assert 10 < lost.n_calls < 25


def test_grid_search_is_reproducible_and_finds_the_same_without_symmetry(searched):
    one, two = (grid_search(SLAB, "H", H_PT.calculator(), spacing=0.9) for _ in range(2))
    np.testing.assert_array_equal([s.xy for s in one], [s.xy for s in two])
    full = grid_search(SLAB, "H", H_PT.calculator(), symmetry=False, spacing=0.9)
    assert full.draws == 16 > one.draws
    assert full.compare(searched, tol=0.05, baselines=()).coverage == 1


def test_grid_search_below_finds_what_it_finds_above():
    """The point reflection of the slab has the other side up: the two searches must agree, energies and all."""
    slab = fcc111("Cu", (1, 1, 4), vacuum=8)
    slab.set_constraint(FixAtoms([0, 1]))
    turned = slab.copy()
    turned.positions = slab.positions.max(0) * [0, 0, 1] + slab.positions.min(0) * [0, 0, 1] - slab.positions
    above = grid_search(slab, "O", EMT(), spacing=0.9, fmax=0.01)
    below = grid_search(turned, "O", EMT(), spacing=0.9, fmax=0.01, normal=(0, 0, -1))
    assert [s.label for s in above][-1:] == [s.label for s in below][-1:]
    np.testing.assert_allclose([s.energy for s in above][:1], [s.energy for s in below][:1], atol=2e-3)


class Fragile(Calculator):
    """The table's energy, that fails or is not finite over the top site."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, nan):
        super().__init__()
        self.inner, self.nan = H_PT.calculator(), nan

    def calculate(self, atoms=None, properties=("energy",), system_changes=None):
        super().calculate(atoms, properties, system_changes)
        self.inner.calculate(atoms)
        self.results = dict(self.inner.results)
        away = shortest((atoms.positions[-1] - ON.origin)[:2], ON.vectors[:, :2])
        over = len(atoms) > len(SLAB) and np.linalg.norm(away) < 0.6
        if over and self.nan:
            self.results["energy"] = float("nan")
        elif over:
            raise RuntimeError("no convergence")


@pytest.mark.parametrize("nan", [True, False])
def test_failures_of_the_calculator_are_counted_and_kept_out(nan, searched):
    found = grid_search(SLAB, "H", Fragile(nan), spacing=0.7)
    assert found.failures > 0
    assert {s.label for s in found if s.is_minimum} == {"fcc", "hcp"}
    assert found.compare(searched, baselines=()).coverage == pytest.approx(2 / 3)
    with pytest.raises(StateError, match="clean slab"):
        grid_search(fcc111("Fe", (1, 1, 2), a=3.6, vacuum=8), "O", EMT(), spacing=2)


def test_emt_on_a_step_smoke():
    slab = fcc211("Cu", (3, 1, 3), vacuum=8)
    slab.set_constraint(FixAtoms(np.flatnonzero(slab.positions[:, 2] < slab.positions[:, 2].mean())))
    found = grid_search(slab, "O", EMT(), spacing=1.3, fmax=0.05)
    assert len([s for s in found if s.is_minimum]) >= 2
    report = found.compare(found, baselines=("random", "geometric"))
    assert report.coverage == report.precision == report.f1 == 1 and report.rmsd == pytest.approx(0, abs=1e-9)


def test_tables_survive_files(searched, tmp_path):
    searched.write(tmp_path / "sites.json")
    again = SiteSet.read(tmp_path / "sites.json")
    assert again.table() == searched.table() and again.to_markdown() == searched.to_markdown()
    assert again.n_calls == searched.n_calls and len(again.slab.constraints[0].index) == len(SLAB)
    for name in ("sites.extxyz", "sites.traj"):
        searched.write(tmp_path / name)
        images = read(tmp_path / name, index=":")
        assert [a.info["dig_label"] for a in images] == [s.label for s in searched]
    with pytest.raises(IncompatibleError, match="json"):
        searched.write(tmp_path / "sites.cif")


def site_set(spots, numbers=(1,), slab=SLAB, probabilities=None, positions=None):
    frame = slab_frame(slab)
    made = [
        Site(np.array(xy), frame.point(np.array(xy), 1.0), "top", 1, probability=None if probabilities is None else probabilities[i],
             positions=None if positions is None else positions[i])
        for i, xy in enumerate(spots)
    ]  # fmt: skip
    return SiteSet(tuple(made), slab, numbers, frame.normal, "test")


def test_coverage_and_precision_by_hand(searched):
    """Three minima. Two of four proposals, with 0.4 + 0.3 of the weight, lie on minima; one of those is among the first three."""
    spots = places()
    proposed = site_set(
        [spots["fcc"][0], spots["bridge"][0], spots["bridge"][1] + 0.31, spots["top"][0]], probabilities=[0.4, 0.18, 0.12, 0.3]
    )
    report = proposed.compare(searched, tol=0.3, baselines=())
    assert report.coverage == pytest.approx(2 / 3) and report.precision == pytest.approx(0.7)
    assert report.f1 == pytest.approx(2 * (2 / 3) * 0.7 / (2 / 3 + 0.7))
    assert proposed.compare(searched, tol=0.3, top_k=1, baselines=()).coverage_at_k == pytest.approx(1 / 3)
    assert len(report.missed) == 1 and report.missed[0].startswith("hcp")
    narrow = proposed.compare(searched, tol=0.3, window=0.01, baselines=())
    assert narrow.n_reference == 1 and narrow.coverage == 1
    assert "| proposed |" in report.to_markdown()


def test_images_of_a_site_are_one_site(searched):
    """In the p(2x2) cell there are four of each; the three bridges are one by symmetry. Probabilities add up;
    the place of 0.4 comes before the three of 0.2."""
    frame = slab_frame(SLAB)
    spots = [places()["fcc"][0] + i * ON.vectors[0, :2] + j * ON.vectors[1, :2] for i in (0, 1) for j in (0, 1)]
    spots += list(places()["bridge"] + frame.lattice[0])
    proposed = site_set(spots, probabilities=[0.1] * 4 + [0.2] * 3)
    assert [s.probability for s in merged(proposed)] == pytest.approx([0.4, 0.6])
    assert distances(proposed.sites[4:], proposed.sites[4:], proposed).max() < 1e-6
    larger = grid_search(rigid(fcc111("Pt", (3, 3, 3), vacuum=8)), "H", H_PT.calculator(), spacing=0.9)
    assert site_set([s.xy for s in larger]).compare(searched, tol=0.1, baselines=()).coverage == 1


def test_molecules_are_compared_atom_by_atom():
    """Two like atoms exchanged are the same; turning H2 by 90 degrees moves each atom by d / sqrt(2)."""
    frame = slab_frame(SLAB)

    def molecule(direction, swap=False):
        ends = np.array([[-0.5, 0], [0.5, 0]]) if direction == "x" else np.array([[0, -0.5], [0, 0.5]])
        return frame.point(ends[::-1] if swap else ends, np.full(2, 2.0))

    one = site_set([(0, 0)], (1, 1), positions=[molecule("x")])
    assert distances(one.sites, site_set([(0, 0)], (1, 1), positions=[molecule("x", True)]).sites, one)[0, 0] < 1e-9
    turned = site_set([(0, 0)], (1, 1), positions=[molecule("y")])
    # No operation of p3m1 turns by 90 degrees: the least is 30 away, 2 * 0.5 * sin(15 degrees) an atom.
    assert distances(one.sites, turned.sites, one)[0, 0] == pytest.approx(np.sin(np.radians(15)), abs=1e-6)


def test_random_baselines_are_areas(searched):
    report = site_set([(0, 0)]).compare(searched, tol=0.3, baselines=("random", "geometric", "pymatgen"))
    area = 3 * np.pi * 0.3**2 / np.linalg.det(searched.lattice)
    (k, n, *_) = report.baselines
    assert (k.name, n.name) == ("random@3", "random@100")
    assert abs(n.precision - area) < 4 * np.sqrt(area * (1 - area) / 20_000)
    assert k.coverage == pytest.approx(1 - (1 - area / 3) ** 3, abs=0.05) and n.coverage > 0.9
    geometric = next(row for row in report.baselines if row.name == "geometric")
    assert geometric.coverage == 1 and geometric.precision == pytest.approx(0.5)  # tops and hollows of 24 sites with bridges
    with pytest.raises(IncompatibleError, match="baselines"):
        searched.compare(searched, baselines=("guess",))
    with pytest.raises(IncompatibleError, match="same adsorbate"):
        site_set([(0, 0)], (8,)).compare(searched)
    with pytest.raises(IncompatibleError, match="one surface"):
        site_set([(0, 0)], slab=fcc211("Pt", (3, 2, 3), vacuum=8)).compare(searched)


def test_exact_samples_give_the_sites_their_shares_and_the_map():
    xyz = exact_samples(20_000)
    found = ensemble(xyz)
    spots = places()
    share, stderr = found.shares(np.concatenate(list(spots.values())))
    ends = np.cumsum([len(s) for s in spots.values()])[:-1]
    exact = H_PT.populations(300, grid=240)
    for site, part, error in zip(spots, np.split(share, ends), np.split(stderr, ends), strict=True):
        assert abs(part.sum() - exact[site]) < 4 * np.sqrt((error**2).sum()) + 1e-3
    sites = found.sites()
    assert [s.label for s in sites][:1] == ["fcc"] and {s.label for s in sites} >= {"fcc", "top"}
    assert sum(s.probability for s in sites) == pytest.approx(1, abs=0.03)
    for site in sites:
        if site.label in ("fcc", "top"):
            assert np.linalg.norm(shortest(site.xy - spots[site.label][0], found.lattice)) < 0.1
    density = found.density((12, 12))
    target = ON.map((12, 12), 300, lattice=density.lattice)
    assert density.total_variation(target) < 1.3 * target.noise(20_000)
    folded = found.density((12, 12), symmetrize=True)
    assert folded.total_variation(target) < 0.6 * density.total_variation(target)
    assert density.slope(target, 300) == pytest.approx(1, abs=0.05)


def test_reweighting_makes_hot_samples_cold():
    hot, cold = 900.0, 300.0
    xyz = exact_samples(20_000, hot, seed=1)
    energy = ON.energy(torch.tensor(xyz)).numpy()
    log_q = -energy / (kB * hot)
    found = ensemble(xyz, log_q=log_q, log_weight=-energy / (kB * cold) - log_q, energies=energy, correction="reweight", energy_name="E")
    share, stderr = found.shares(np.concatenate(list(places().values())))
    exact = H_PT.populations(cold, grid=240)
    assert abs(share[0] - exact["fcc"]) < 4 * stderr[0] + 1e-3
    weight = np.exp(found.log_weight - found.log_weight.max())
    assert found.effective_sample_size() == pytest.approx(weight.sum() ** 2 / (weight**2).sum())
    assert found.kt_slope() == pytest.approx(cold / hot, rel=1e-6)
    text = found.summary()
    assert text.index("Raw:") < text.index("Reweighted") and "Reference energy: E" in text and "Largest weight" in text


def test_what_is_invalid_or_anomalous_has_no_weight_and_is_counted():
    xyz = exact_samples(200, seed=2)
    xyz[0] = np.nan
    xyz[1] += [0, 0, 3.0]
    found = ensemble(xyz).labelled()
    assert found.anomalies[1] == ("adsorbate_desorbed",) and not any(found.anomalies[2:])
    assert found.weights[0] == found.weights[1] == 0 and found.effective_sample_size() == 198
    sites = found.sites()
    assert sites.anomalies == {"adsorbate_desorbed": 1} and sites.failures == 1 and sites.draws == 200
    assert "adsorbate_desorbed 1, invalid or failed 1" in found.summary()
    with pytest.raises(StateError, match="none of 2"):
        _ = ensemble(xyz[:2]).labelled().weights
    with pytest.raises(IncompatibleError, match="log_weight"):
        ensemble(xyz, correction="reweight")
    with pytest.raises(IncompatibleError, match="log_q for 200"):
        ensemble(xyz, log_q=np.zeros(3))


@pytest.mark.parametrize("suffix", ["extxyz", "traj", "db"])
def test_ensembles_survive_files(suffix, tmp_path):
    xyz = exact_samples(12, seed=3)
    energy = ON.energy(torch.tensor(xyz)).numpy()
    written = ensemble(
        xyz, log_q=-energy, log_weight=energy, energies=energy, correction="reweight", temperature=350.0, energy_name="a b", source="s",
        anomalies=(("adsorbate_desorbed", "surface_changed"),) + ((),) * 11, valid=np.arange(12) != 5, n_calls=12,
    )  # fmt: skip
    written.write(tmp_path / f"run.{suffix}")
    found = AdsorptionEnsemble.read(tmp_path / f"run.{suffix}")
    np.testing.assert_allclose(found.positions, written.positions, atol=1e-7)
    np.testing.assert_allclose(found.template.positions, written.template.positions, atol=1e-7)
    for name in ("log_q", "log_weight", "energies", "valid"):
        np.testing.assert_allclose(getattr(found, name), getattr(written, name), rtol=1e-12)
    for name in ("adsorbate", "anomalies", "temperature", "correction", "energy_name", "source", "n_calls"):
        assert getattr(found, name) == getattr(written, name)
    assert len(found.template.constraints[0].index) == len(SLAB)
    with pytest.raises(IncompatibleError, match="ending in"):
        written.write(tmp_path / "run.cif")


def test_relaxed_samples_own_the_minima_for_few_calls(searched):
    found = ensemble(exact_samples(500, seed=4)).relax(H_PT.calculator(), 3)
    report = found.compare(searched, tol=0.1, baselines=())
    assert report.coverage == 1 and found.n_calls < searched.n_calls / 3
    assert all(site.probability is not None for site in found)


def test_the_viewer_draws_a_file(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from dig_plugins.ase.adsorption.viewer import MAP, figure, main

    ensemble(exact_samples(100, seed=5)).write(tmp_path / "run.traj")
    ax = Figure().add_subplot()
    assert figure(str(tmp_path / "run.traj"), ax) is ax.figure
    assert ax.images and ax.texts
    assert MAP.cli and MAP.fmt == "traj"
    with pytest.raises(SystemExit):
        main([])


def test_guesses_relax_into_the_minima(searched):
    """The geometric sites of the surface hold every minimum of it: the table's sites are high-symmetry ones."""
    guessed = site_set([g.xy for g in enumerate_sites(SLAB)])
    assert guessed.compare(searched, tol=0.05, baselines=()).coverage == 1


def test_probabilities_carried_to_a_lower_temperature_are_those_of_boltzmann_wells():
    """Wells of any depth and width, at 949 K and at 600 K; what no way connects keeps its share."""
    rng = np.random.default_rng(1)
    energy, volume = rng.uniform(0, 0.5, 6), rng.uniform(0.2, 2.0, 6)
    hot, cold = (volume * np.exp(-energy / (kB * T)) for T in (949.0, 600.0))
    height, drop = 7.0 - energy / (kB * 600.0), 1 - 600 / 949
    one = np.zeros(6, dtype=int)
    np.testing.assert_allclose(carried(hot / hot.sum(), height, one, drop), cold / cold.sum(), rtol=1e-12)
    two = np.array([0, 0, 0, 1, 1, 1])
    found = carried(hot / hot.sum(), height - 40.0 * two, two, drop)
    for k in (0, 1):
        assert found[two == k].sum() == pytest.approx((hot / hot.sum())[two == k].sum())
        np.testing.assert_allclose(found[two == k] / found[two == k].sum(), cold[two == k] / cold[two == k].sum(), rtol=1e-12)
