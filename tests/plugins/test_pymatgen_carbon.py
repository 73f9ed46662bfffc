"""The shipped model of carbon: what it draws are crystals, and those asked for a gap have one by another's word."""

from __future__ import annotations

import pytest

pytest.importorskip("pymatgen")

from dig_core.errors import UnsupportedError
from dig_plugins.pymatgen import design
from dig_plugins.pymatgen.evaluate import coordination, judged, validity
from dig_plugins.pymatgen.gap import LearnedGap, TightBindingGap


def test_draws_are_crystals_of_carbon_under_pressure():
    found = design("C6", 24, seed=1, steps=30)
    room = validity(found.structures)
    assert found.failed == 0 and room.valid(1.1).mean() > 0.9
    # Between graphite under pressure and diamond, with a margin.
    assert ((room.density > 2.2) & (room.density < 4.2)).mean() > 0.9
    shares = coordination(found.structures)
    assert (shares.sp2 + shares.sp3).mean() > 0.8
    with pytest.raises(UnsupportedError, match="knows C, got Si"):
        design("Si2", 1)


def test_a_wide_gap_is_found_and_the_judge_agrees():
    """One crystal in twelve has one; networks chose, tight binding judges."""
    found = design("C6", 4, target=(3.0, float("inf")), predictor=LearnedGap.load(), seed=3, steps=30)
    assert len(found) == 4 and found.effective_sample_size() == pytest.approx(4)
    assert (judged(found.structures, TightBindingGap()) > 1.5).mean() >= 0.5
    assert coordination(found.structures).sp3.mean() > 0.8
