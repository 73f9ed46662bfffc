"""The recipe of carbon: trained models become a committee by its command, and training goes on from a committee's first member."""

from __future__ import annotations

import sys

import numpy as np
import pytest

pytest.importorskip("pymatgen")

from pymatgen.core import Lattice, Structure

from dig_core.dig import DiG
from dig_plugins.pymatgen.recipes import carbon

SMALL = {"width": 8, "heads": 2, "layers": 1, "basis": 4, "channels": 2}


def test_a_committee_is_made_by_the_command_and_trained_on_from(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    minima = [(Structure(Lattice.cubic(3.0 + 0.1 * k), ["C"] * 4, rng.random((4, 3))), 1.0) for k in range(4)]
    systems, files = carbon.sizes(minima), []
    for seed in (1, 2):
        dig = carbon.train(systems, tmp_path / str(seed), 1e-6, batch=4, together=1, seed=seed, **SMALL)
        files.append(str(tmp_path / f"{seed}.safetensors"))
        dig.save(files[-1])
    asked = ["carbon", "--out", str(tmp_path / "both"), "--members", *files, "--weights", "2", "-1"]
    monkeypatch.setattr(sys, "argv", asked)
    carbon.main()
    place = tmp_path / "both" / "carbon.safetensors"
    both = DiG.load(place)
    assert both.model.network.weights == (2, -1) and [stage["member"] for stage in both.card.history] == [1, 2]
    more = carbon.train(systems, tmp_path / "more", 1e-6, batch=4, together=1, start=str(place), **SMALL)
    assert len(more.members()) == 1 and [stage["steps"] for stage in more.card.history] == [10, 10]
    assert all("member" not in stage for stage in more.card.history)
