"""Designs: what is drawn, what guidance changes, what is said and counted, files. The model is untrained: its law is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip("pymatgen")

from dig_core.errors import CheckpointError, IncompatibleError, UnsupportedError
from dig_core.sampling.likelihoods import Bins
from dig_plugins.pymatgen.convert import to_geometry
from dig_plugins.pymatgen.designs import Designs
from dig_plugins.pymatgen.sample import design
from tests.plugins.known_crystals import carbon, diamond, graphite, volume_per_atom


def sick(geometry):
    """Volumes, of the smaller half; no prediction of the others."""
    found = volume_per_atom(geometry)
    return torch.where(found < 6.5, found, torch.nan)


def test_unguided_structures():
    found = design("C4", 12, model=carbon(), seed=3)
    assert len(found) == 12 and found.failed == 0 and found.valid.all()
    assert {s.composition.formula for s in found.structures} == {"C4"}
    assert np.isfinite(found.log_q).all() and found.log_weight is None and found.properties == {}
    np.testing.assert_allclose(found.weights, 1 / 12)
    assert found.effective_sample_size() == 12


def test_the_seed_decides_and_the_batch_does_not():
    options = {"model": carbon(), "steps": 3}
    one, other = design("C4", 7, seed=5, batch=7, **options), design({"C": 4}, 7, seed=5, batch=3, **options)
    np.testing.assert_allclose(one.log_q, other.log_q, rtol=1e-5)
    np.testing.assert_allclose([s.volume for s in one.structures], [s.volume for s in other.structures], rtol=1e-5)
    third = design("C4", 7, seed=6, **options)
    assert not np.allclose(one.log_q, third.log_q)


def test_atom_numbers_come_from_the_training_histogram():
    found = design("C", 200, model=carbon(), seed=1, steps=2, method="ancestral")
    sizes = np.array([len(s) for s in found.structures])
    assert set(sizes) == {2, 4}
    # A quarter of two atoms: four standard errors of 200 draws.
    assert abs((sizes == 2).mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 200)
    assert found.log_q is None
    with pytest.raises(IncompatibleError, match="number"):
        design("C", 2, model=carbon(histogram=[]))


def test_ratios_are_kept():
    scope = {"element": ["C", "Si"], "histogram": [[3, 5], [4, 5]]}
    found = design("SiC", 3, model=carbon(**scope), seed=1, steps=2)
    assert {s.composition.formula for s in found.structures} == {"Si2 C2"}


def test_guided_structures_meet_the_target_and_weigh_in():
    """Guidance by the volume moves volumes; weights are those of the law times the likelihood."""
    plain = design("C2", 64, model=carbon(), seed=2, steps=12)
    wanted = design(
        "C2", 64, model=carbon(), target={"size": 8.0}, predictor={"size": volume_per_atom}, by="guidance", width=0.3, seed=2, steps=12
    )
    sizes = [np.array([s.volume / len(s) for s in found.structures]) for found in (plain, wanted)]
    np.testing.assert_allclose(wanted.properties["size"], sizes[1], rtol=1e-5)
    assert abs(np.median(sizes[1]) - 8.0) < 0.3 < abs(np.median(sizes[0]) - 8.0)
    assert wanted.weights.sum() == pytest.approx(1) and 2 < wanted.effective_sample_size() < 64
    assert "8, width 0.3" in wanted.targets["size"] and "size" in wanted.table(3)


@pytest.mark.parametrize("target", [(7.5, 8.5), Bins([0, 7.5, 8.5, 99], [0, 1, 0], 0.1)])
def test_ranges_and_bins(target):
    found = design(
        "C2", 40, model=carbon(), target={"size": target}, predictor=volume_per_atom, by="guidance", width=0.1, seed=4, steps=12
    )
    assert ((found.properties["size"] > 7.3) & (found.properties["size"] < 8.7)).mean() > 0.7


def test_rejection_draws_from_the_law_times_the_likelihood():
    """Against unguided draws weighed by the likelihood: mean and spread of the volume, and the share of each number of atoms."""
    options = {"model": carbon(), "steps": 4, "method": "ancestral"}
    plain = design("C", 4000, seed=1, **options)
    sizes = np.array([[s.volume / len(s), len(s) == 2] for s in plain.structures])
    weight = np.exp(-0.5 * ((sizes[:, 0] - 7.5) / 0.5) ** 2)
    found = design("C", 300, target={"size": 7.5}, predictor=volume_per_atom, width=0.5, seed=2, **options)
    assert len(found) == 300 and found.effective_sample_size() == pytest.approx(300) and (found.log_likelihood <= 0).all()
    drawn = np.array([[s.volume / len(s), len(s) == 2] for s in found.structures])
    # Twice as strong on the target, weighed back: the same law.
    strong = design("C", 300, target={"size": 7.5}, predictor=volume_per_atom, width=0.5, strength=2.0, seed=4, **options)
    sharp, back = np.array([s.volume / len(s) for s in strong.structures]), strong.effective_sample_size()
    wanted = np.average(sizes[:, 0], weights=weight)
    width = np.sqrt(np.average((sizes[:, 0] - wanted) ** 2, weights=weight))
    assert back < 290 and abs(np.average(sharp, weights=strong.weights) - wanted) < 4 * width / math.sqrt(back)
    for power in (1, 2):
        for column in (0, 1):
            wanted = np.average(sizes[:, column] ** power, weights=weight)
            spread = np.sqrt(np.average(sizes[:, column] ** (2 * power), weights=weight) - wanted**2)
            few = weight.sum() ** 2 / (weight**2).sum()
            assert abs((drawn[:, column] ** power).mean() - wanted) < 4 * spread * math.sqrt(1 / 300 + 1 / few)


def test_rejection_says_how_rare_the_target_is_and_gives_up_in_time():
    options = {"model": carbon(), "predictor": volume_per_atom, "width": 0.1, "seed": 3, "steps": 3}
    with pytest.warns(UserWarning, match=r"of 128 draws meet the targets, 50 were asked for"):
        found = design("C2", 50, target={"size": 7.5}, most=128, **options)
    assert 0 < len(found) < 50 and f"rejection ({len(found)} of 128 draws)" in found.source
    one, other = (design("C2", 5, target={"size": 7.0}, batch=size, **options) for size in (64, 7))
    np.testing.assert_allclose(one.properties["size"], other.properties["size"], rtol=1e-5)
    blind = design("C2", 5, target={"size": 7.0}, **(options | {"predictor": sick, "width": 1.0}))
    assert len(blind) == 5 and "without a structure or prediction" in blind.source and (blind.properties["size"] < 6.5).all()
    with pytest.raises(IncompatibleError, match="at most 0"):
        design("C2", 5, target={"size": lambda value, variance: 1 + 0 * value}, **options)
    with pytest.raises(IncompatibleError, match="by = 'luck'"):
        design("C2", 5, target={"size": 7.0}, by="luck", **options)


def test_a_predictor_that_fails_marks_its_sample_and_the_run_goes_on():
    found = design("C2", 40, model=carbon(), target={"size": (0, 99)}, predictor=sick, by="guidance", seed=2, steps=6)
    failed = np.isnan(found.properties["size"])
    assert 0 < failed.sum() < 40 and (found.valid == ~failed).all()
    assert (found.weights[failed] == 0).all() and found.weights.sum() == pytest.approx(1)
    assert f"{failed.sum()} without a prediction" in found.summary() and "not valid" in found.table(None)
    assert len(found.used()) == (~failed).sum()


def test_a_predictor_that_always_fails():
    with pytest.warns(UserWarning, match="none has a prediction"):
        found = design(
            "C2", 4, model=carbon(), target=2.0, predictor=lambda g: volume_per_atom(g) * torch.nan, by="guidance", seed=2, steps=3
        )
    assert not found.valid.any() and (found.weights == 0).all() and found.effective_sample_size() == 0


def test_targets_out_of_reach_are_said():
    def limited(geometry):
        return volume_per_atom(geometry)

    limited.range = (5.0, 8.0)
    with pytest.warns(UserWarning) as said:
        found = design("C2", 4, model=carbon(), target={"size": 4000.0}, predictor=limited, by="guidance", seed=2, steps=3)
    assert [str(warning.message) for warning in said] == list(found.notes)
    assert (
        "outside what its predictor was made for, 5 to 8" in found.notes[0]
        and "No structure has size within 4000" in found.notes[1]
    )
    assert all(note in found.summary() for note in found.notes)


def test_a_gap_of_zero_is_a_metal():
    """Signed gaps of metals are negative; none is asked to be at zero."""
    found = design(
        "C2", 6, model=carbon(), target=0.0, predictor=lambda g: 20 - volume_per_atom(g) * 4, seed=2, steps=3
    )
    assert found.targets == {"gap": "-inf to 0, edges 0.25 wide"}


def test_what_does_not_fit_is_refused():
    with pytest.raises(UnsupportedError, match="knows C, got Xe"):
        design("Xe2", 2, model=carbon())
    with pytest.raises(CheckpointError, match="no model"):
        design("C2", 2, model="carbonado")
    with pytest.raises(IncompatibleError, match="whole numbers"):
        design({"C": 0.5}, 2, model=carbon())
    with pytest.raises(IncompatibleError, match="without a target"):
        design("C2", 2, model=carbon(), predictor=volume_per_atom)
    with pytest.raises(IncompatibleError, match="a predictor for each"):
        design("C2", 2, model=carbon(), target={"a": 1.0, "b": 2.0}, predictor={"a": volume_per_atom})
    with pytest.raises(IncompatibleError, match="at least one"):
        design("C2", 0, model=carbon())
    with pytest.warns(UserWarning, match="trained on 2 to 6 atoms"):
        design("C8", 1, model=carbon(), steps=2, seed=1)


@pytest.mark.parametrize("name", ["some.extxyz", "some.cif", "some.json.gz", "folder"])
def test_designs_come_back_from_files(tmp_path, name):
    first = Designs(
        (diamond(), graphite(), diamond(3.6)), np.array([True, True, False]), np.array([-3.5, -4.0, -1.0]), np.array([-0.1, -0.2, -np.inf]),
        np.array([0.3, 0.1, -np.inf]), {"gap": np.array([4.1, 0.0, np.nan])}, {"gap": "4, width 0.3"}, 2, "untrained", 7, ("A note.",),
    )  # fmt: skip
    first.write(tmp_path / name)
    back = Designs.read(tmp_path / name)
    assert (back.targets, back.failed, back.source, back.seed, back.notes) == (
        first.targets,
        2,
        "untrained",
        7,
        first.notes,
    )
    for field in ("valid", "log_q", "log_likelihood", "log_weight", "weights"):
        np.testing.assert_allclose(getattr(back, field), getattr(first, field))
    np.testing.assert_allclose(back.properties["gap"], first.properties["gap"])
    torch.testing.assert_close(to_geometry(back.structures[1]).cell, to_geometry(graphite()).cell, atol=1e-6, rtol=0)
    assert back.table() == first.table()


def test_the_table_names_the_allotropes():
    table = Designs((diamond(), graphite()), np.array([True, True])).table()
    assert "Fd-3m (227)" in table and "P6_3/mmc (194)" in table and "3.52" in table


def test_other_files_are_refused(tmp_path):
    from dig_plugins.pymatgen.files import write_structures

    write_structures(tmp_path / "plain.cif", [diamond()])
    with pytest.raises(IncompatibleError, match="Designs.write"):
        Designs.read(tmp_path / "plain.cif")
    with pytest.raises(IncompatibleError, match="2 numbers for"):
        Designs((diamond(), graphite()), np.ones(1, dtype=bool))
