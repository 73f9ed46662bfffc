"""Samples of an adsorbate and models fitted to a slab: energies that belong to their structures, counts, files, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("ase")

from ase.build import fcc111
from ase.calculators.emt import EMT

from dig_core.dig import DiG
from dig_core.errors import CheckpointError, IncompatibleError, StateError, UnsupportedError
from dig_plugins.ase.adsorption import SiteSurface, find_sites, fit_adsorption, grid_search, sample_adsorption
from dig_plugins.ase.adsorption.training import untrained

SLAB = fcc111("Pt", (2, 2, 3), a=3.98, vacuum=8)


@pytest.mark.parametrize("correct", [None, "reweight", "mc"])
def test_energies_and_weights_belong_to_the_structures(correct):
    surface = SiteSurface.from_table("Pt", "H")
    found = sample_adsorption(
        SLAB, "H", untrained(SLAB, "H"), n=100, seed=1, energy=surface.calculator(), correct=correct, steps=3, unseen=True
    )
    wanted = surface.on(SLAB).energy(found.positions[:, -1]).numpy()
    assert len(found) == 100 and np.allclose(found.energies, wanted, atol=1e-9)
    assert (found.positions[:, :-1] == SLAB.positions).all()
    assert ("longest run of rejections" in found.source) == (correct == "mc")
    if correct != "mc":
        assert np.allclose(found.log_weight, -wanted / (8.617333262e-5 * 300) - found.log_q, atol=1e-3)


def test_a_model_from_frames_alone_is_written(tmp_path):
    images = sample_adsorption(SLAB, "H", untrained(SLAB, "H"), n=20, seed=1, steps=3, unseen=True).images()
    found = fit_adsorption(SLAB, "H", frames=images, steps=20, out=tmp_path, seed=1, progress=False)
    assert found.finished and math.isnan(found.raw_ess) and "frames alone" in str(found)
    assert DiG.load(tmp_path / "model.safetensors").card.temperature == 300


def test_energies_of_frames_are_counted(tmp_path):
    images = sample_adsorption(SLAB, "H", untrained(SLAB, "H"), n=20, seed=1, steps=3, unseen=True).images()
    calculator = SiteSurface.from_table("Pt", "H").calculator()
    found = fit_adsorption(SLAB, "H", calculator, frames=images, evaluations=200, steps=20, seed=1, progress=False)
    assert found.evaluations == 20 + 100 + 64


def test_a_directory_of_another_training_is_refused(tmp_path):
    images = sample_adsorption(SLAB, "H", untrained(SLAB, "H"), n=5, seed=1, steps=3, unseen=True).images()
    fit_adsorption(SLAB, "H", frames=images, steps=20, out=tmp_path, seed=1, progress=False)
    with pytest.raises(CheckpointError, match="another slab, adsorbate or temperature"):
        fit_adsorption(SLAB, "H", frames=images, steps=20, out=tmp_path, seed=1, temperature=400, progress=False)


def test_what_cannot_be_had_is_refused_by_name():
    with pytest.raises(IncompatibleError, match="needs energy="):
        sample_adsorption(SLAB, "H", correct="mc")
    with pytest.raises(IncompatibleError, match="nothing to learn from"):
        fit_adsorption(SLAB, "H")
    with pytest.raises(UnsupportedError, match="the adsorbate F"):
        sample_adsorption(SLAB, "F", "adsorb-general")
    with pytest.raises(UnsupportedError, match="Nb in the slab"):
        sample_adsorption(fcc111("Nb", (2, 2, 3), a=4.0, vacuum=8), "O", "adsorb-general")


@pytest.mark.parametrize("guest", ["H", "O"])
def test_found_sites_are_the_minima_of_the_surface(guest):
    """From the shipped model, without an energy; then relaxed with one, for fewer calls than a grid search makes."""
    surface = SiteSurface.from_table("Cu", guest)
    slab = fcc111("Cu", (2, 2, 4), a=float(np.linalg.norm(surface.vectors[0])) * math.sqrt(2), vacuum=8)
    found = find_sites(slab, guest, "adsorb-fcc111", n=100, seed=1)
    assert sum(site.probability for site in found) == pytest.approx(1, abs=0.03)
    on = surface.on(slab)
    names = [list(on.populations(300.0))[int(on.nearest_site(on.fractions(site.position[None]))[0])] for site in found]
    assert set(names[:2]) == {"fcc", "hcp"}
    reference = grid_search(slab, guest, on.calculator())
    report = found.compare(reference, tol=0.2, baselines=())
    assert report.coverage_at_k == 1 and report.precision > 0.9 and report.rmsd < 0.1
    relaxed = found.relax(on.calculator(), fmax=0.02)
    assert relaxed.n_calls < reference.n_calls / 5
    assert relaxed.compare(reference, tol=0.05, baselines=()).coverage == 1


def test_a_density_that_hardly_varies_has_no_more_sites_than_the_surface_has_minima():
    """H on Pt(111): mean shift stalls between its three minima. What it stalls at counts for one of them, and nothing is lost.

    The model is one network alone, whose density ripples more than that of the committee that the default is for.
    """
    surface = SiteSurface.from_table("Pt", "H")
    slab = fcc111("Pt", (2, 2, 4), a=float(np.linalg.norm(surface.vectors[0])) * math.sqrt(2), vacuum=8)
    found = find_sites(slab, "H", "adsorb-fcc111", n=50, seed=1, barrier=0.05)
    assert len(found) <= 3
    assert sum(site.probability for site in found) == pytest.approx(1) and sum(site.count for site in found) == 50
    on = surface.on(slab)
    names = [list(on.populations(300.0))[int(on.nearest_site(on.fractions(site.position[None]))[0])] for site in found]
    assert len(set(names)) == len(names) and "bridge" not in names


def test_what_a_search_cannot_use_is_refused():
    with pytest.raises(IncompatibleError, match="width"):
        find_sites(SLAB, "H", "adsorb-fcc111", width=2.0)
    with pytest.raises(IncompatibleError, match="barrier"):
        find_sites(SLAB, "H", "adsorb-fcc111", barrier=-1.0)


class Failing(EMT):
    """Fails on every structure, or after ``good`` of them."""

    def __init__(self, good: int = 0):
        super().__init__()
        self.left = good

    def calculate(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("no license today")
        super().calculate(*args, **kwargs)


def test_a_calculator_that_fails_everywhere_is_told_and_one_that_fails_at_times_is_counted():
    options = {"n": 6, "seed": 1, "steps": 2, "unseen": True, "batch": 2}
    dig = untrained(SLAB, "H")
    for correct in ("reweight", "mc"):
        with pytest.raises(StateError, match="RuntimeError.*\n.*(.|\n)*no license today"):
            sample_adsorption(SLAB, "H", dig, energy=Failing(), correct=correct, **options)
    found = sample_adsorption(SLAB, "H", dig, energy=Failing(3), correct="reweight", **options)
    assert np.isfinite(found.log_weight).sum() <= 3 < len(found) == 6
