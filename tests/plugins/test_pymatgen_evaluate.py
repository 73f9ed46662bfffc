"""Frequencies, room for atoms, coordination, targets, relaxation: each on cases whose answer is known; figures that draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("pymatgen")

from pymatgen.core import Lattice, Structure

from dig_core.errors import IncompatibleError
from dig_plugins.panels import new_figure, to_png
from dig_plugins.pymatgen.evaluate.counts import frequencies, jensen_shannon
from dig_plugins.pymatgen.evaluate.figures import energy_gap, gallery, gap_histogram
from dig_plugins.pymatgen.evaluate.quality import coordination, hit_rate, joint, judged, validity
from dig_plugins.pymatgen.evaluate.relaxation import relax
from dig_plugins.pymatgen.evaluate.report import evaluate
from tests.plugins.known_ase import Sickly
from tests.plugins.known_crystals import amorphous, diamond, graphite, lonsdaleite, moved, rocksalt, volume_per_atom


def test_jensen_shannon():
    """Zero from itself, one from what it shares nothing with, symmetric, and a number known in closed form between."""
    p, q = np.array([1.0, 3.0, 0.0]), np.array([0.0, 0.0, 5.0])
    assert jensen_shannon(p, 7 * p) == 0
    assert jensen_shannon(p, q) == 1
    a, b = np.array([1.0, 0.0]), np.array([0.5, 0.5])
    exact = np.sqrt(0.5 * np.log2(1 / 0.75) + 0.5 * (0.5 * np.log2(0.5 / 0.75) + 0.5 * np.log2(0.5 / 0.25)))
    assert jensen_shannon(a, b) == pytest.approx(exact) == jensen_shannon(b, a)


def search(rng, n):
    """Hits of a random search on 300 minima of very different basins."""
    shares = rng.dirichlet(np.full(300, 0.5))
    return shares, np.bincount(rng.choice(300, n, p=shares), minlength=300)


def test_the_right_frequencies_are_as_near_as_the_search_to_itself(rng):
    shares, hits = search(rng, 3000)
    found = frequencies(rng.choice(300, 5000, p=shares), hits, halves=20)
    assert found.ratio == pytest.approx(1, abs=0.04) and found.size == 1500
    # With fewer samples both the distance and the floor rise, their ratio stays.
    few = frequencies(rng.choice(300, 200, p=shares), hits, halves=20)
    assert few.ratio == pytest.approx(1, abs=0.12) and few.floor > 2 * found.floor


def test_wrong_frequencies_are_farther(rng):
    shares, hits = search(rng, 3000)
    even = frequencies(rng.integers(300, size=5000), hits, halves=20)
    assert even.ratio > 1.5
    partly = np.where(rng.random(5000) < 0.25, -1, rng.choice(300, 5000, p=shares))
    missing = frequencies(partly, hits, halves=20)
    assert missing.assigned == (partly >= 0).sum() and missing.ratio == pytest.approx(1, abs=0.06)


def test_frequencies_of_nothing_are_refused():
    with pytest.raises(IncompatibleError, match="at least 2"):
        frequencies(np.full(10, -1), np.array([5, 5]))
    with pytest.raises(IncompatibleError, match="below 2"):
        frequencies(np.array([0, 2]), np.array([5, 5]))


def test_validity_counts_images_too():
    thin = Structure(Lattice.from_parameters(0.8, 5, 5, 90, 90, 90), ["C"], [[0, 0, 0]])
    close = Structure(Lattice.cubic(4), ["C", "C"], [[0, 0, 0], [0, 0, 0.9]])
    found = validity([diamond(), thin, close, rocksalt()])
    np.testing.assert_allclose(found.shortest, [3.567 * np.sqrt(3) / 4, 0.8, 0.4, 2.82])
    assert found.valid(0.5).tolist() == [True, True, False, True]
    assert found.valid(1.1).tolist() == [True, False, False, True]
    assert found.density[0] == pytest.approx(3.51, abs=0.01)
    # The radii of sodium and chlorine are 1.66 and 1.02 Angstrom.
    assert found.contact[3] == pytest.approx(2.82 / 2.68)
    assert "75.0 %" in found.to_markdown()


def test_coordination_of_the_allotropes():
    found = coordination([diamond(), graphite(), lonsdaleite()])
    assert found.sp3.tolist() == [1, 0, 1] and found.sp2.tolist() == [0, 1, 0]
    assert "66.7 %" in found.to_markdown()


def test_hit_rates():
    values = np.array([-3.0, 0.2, 1.6, 2.4, 4.2, np.nan])
    assert hit_rate(values, 2.0).hit.tolist() == [False, False, True, True, False, False]
    assert hit_rate(values, 0).hit.tolist() == [True, True, False, False, False, False]
    assert not hit_rate(values, 0, floor=None).hit[0]
    assert hit_rate(values, (1.0, 5.0)).rate == 0.5
    found = hit_rate(values, 4.0, base=np.array([0.0, 0.0, 0.0, 4.1]))
    assert found.base == 0.25 and "| 1 |" in found.to_markdown()
    with pytest.raises(IncompatibleError, match="low <= high"):
        hit_rate(values, (3, 2))


def test_joint_rate_beside_the_product_of_single_ones():
    first, second = hit_rate(np.array([2.0, 2, 0, 0]), 2.0), hit_rate(np.array([1.0, 1, 9, 9]), (0, 2))
    table = joint({"gap": first, "enthalpy": second})
    assert "all at once | 50.0 %" in table and "product of the single rates | 25.0 %" in table


def test_judges_see_compositions_apart_and_values_come_back_in_order():
    structures = [diamond(), graphite(), diamond(3.6), lonsdaleite(), graphite()]
    found = judged(structures, volume_per_atom, batch=2)
    np.testing.assert_allclose(found, [s.volume / len(s) for s in structures])


def lennard_jones(**options):
    from ase.calculators.lj import LennardJones

    return LennardJones(**({"sigma": 2.0, "epsilon": 0.1, "rc": 5.0, "smooth": True} | options))


def test_relaxation_gains_what_the_energy_loses_and_failures_are_counted():
    pytest.importorskip("ase")
    crystal = Structure(Lattice.cubic(3.2), ["C"] * 4, [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    off = crystal.copy()
    off.perturb(0.1)
    calculator = Sickly(lennard_jones(), lambda atoms: RuntimeError("no") if len(atoms) == 8 else None)
    found = relax([crystal, off, diamond()], calculator, fmax=1e-3)
    assert found.gain[0] == pytest.approx(0, abs=1e-6)
    assert found.gain[1] > 1e-3 and found.energy[1] == pytest.approx(found.energy[0], abs=1e-5)
    assert np.isnan(found.gain[2]) and found.structures[2] is None and found.converged.tolist() == [True, True, False]
    np.testing.assert_allclose(found.structures[1].lattice.matrix, off.lattice.matrix)
    assert "| 3 | 1 | 2 |" in found.to_markdown()
    assert found.calls == relax([crystal, off], calculator, fmax=1e-3).calls + 1


def test_relaxation_under_pressure_shrinks_the_cell():
    pytest.importorskip("ase")
    crystal = Structure(Lattice.cubic(3.2), ["C"] * 4, [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    volumes = [relax([crystal], lennard_jones(), pressure=p, fmax=1e-3).structures[0].volume for p in (0.0, 10.0)]
    assert volumes[1] < 0.98 * volumes[0]


def test_evaluation_of_the_training_set_itself():
    """Everything matches, is covered, has the search's frequencies and meets the target."""
    training = [amorphous(4, seed) for seed in range(6)] + [diamond(), graphite()]
    hits = [4, 2, 2, 2, 2, 2, 8, 6]
    samples = [moved(structure, k) for k, structure in enumerate(training) for _ in range(hits[k])]
    found = evaluate(samples, training, held_out=training, hits=hits, judge=volume_per_atom, target=(1, 50), controls=4)
    assert found.matches.row("samples", "tight", True).rate == found.coverage.share == found.hits.rate == 1
    assert found.frequencies.assigned == len(samples) and found.frequencies.ratio < 1.3
    assert (found.diversity.unique, found.diversity.novel) == (8 - 6 + (validity(training[:6]).shortest > 1.1).sum(), 0)
    page = found.to_markdown()
    assert all(
        f"## {title}" in page
        for title in ("Minima that were never trained on", "Coordination", "Target met, by the judge")
    )


def test_bare_evaluation():
    found = evaluate([diamond(), graphite()])
    assert found.matches is None and "Relaxation" not in found.to_markdown()
    with pytest.raises(IncompatibleError, match="at least one"):
        evaluate([])
    with pytest.raises(IncompatibleError, match="hits"):
        evaluate([diamond()], [diamond()], hits=[1, 2])


def test_figures_show_every_set():
    rng = np.random.default_rng(0)
    figure = new_figure(10, 8)
    left, right = figure.subplots(2, 2)[0]
    gap_histogram(
        left, {"unguided": rng.normal(0.3, 1, 50), "4 eV": np.append(rng.normal(4, 0.3, 50), np.nan)}, {"4 eV": 4.0}
    )
    assert [text.get_text() for text in left.get_legend().get_texts()] == [
        "unguided (n = 50)",
        "4 eV (n = 50, 1 unknown)",
    ]
    assert left.get_xlim()[0] == 0
    energy_gap(right, {"data": (rng.normal(0, 1, 50), rng.random(50)), "4 eV": (np.array([4.0]), np.array([0.1]))})
    assert right.get_xlabel() == "band gap (eV)" and len(right.collections) == 2
    pictures = new_figure(8, 3)
    gallery(pictures, [diamond(), graphite(), lonsdaleite()], ["diamond", "graphite", "lonsdaleite"], columns=3)
    # Every carbon atom of the graphite ball inside the piece has its bonds drawn: three half-bonds an inner atom.
    assert all(len(ax.lines) > 10 and len(ax.collections) > 10 for ax in pictures.axes)
    assert to_png(pictures, dpi=30).startswith(b"\x89PNG")


def test_judged_values_are_float64():
    assert (
        judged([diamond()], lambda geometry: torch.ones(len(geometry.positions), dtype=torch.float32)).dtype
        == np.float64
    )
