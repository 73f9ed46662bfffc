"""Relaxations that spend few calls: what curvature is known is used, and what comes into a site already there ends in it."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms

from dig_plugins.ase.adsorption import SiteSurface, slab_frame
from dig_plugins.ase.adsorption.grid import relaxed_sites
from dig_plugins.ase.adsorption.place import place_adsorbate
from dig_plugins.ase.adsorption.relax import Counted, relax, relax_clean


class Bowl(Calculator):
    """A quadratic form of all coordinates, lowest at the origin."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def calculate(self, atoms=None, properties=("energy",), system_changes=None):
        super().calculate(atoms, properties, system_changes)
        x = atoms.positions.ravel()
        self.results = {"energy": x @ self.matrix @ x / 2, "forces": -(self.matrix @ x).reshape(-1, 3)}


def test_a_known_curvature_leads_to_the_minimum_in_one_step():
    """Newton's step; and what a relaxation has learned serves the next as well or better than knowing nothing."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(9, 9))
    matrix = root @ root.T + 3 * np.eye(9)
    start = Atoms("H3", rng.uniform(-0.05, 0.05, (3, 3)))
    calls, curvature = [], matrix
    for _ in range(3):
        counted = Counted(Bowl(matrix))
        end = relax(start, counted, fmax=1e-3, steps=200, curvature=curvature)
        assert end.converged
        assert np.abs(end.atoms.positions).max() < 1e-3
        calls.append(counted.calls)
        curvature = 70.0 if len(calls) == 1 else end.curvature
    assert calls[0] == 2 and calls[2] < calls[1]


def test_a_relaxation_ends_where_it_is_enough():
    counted = Counted(Bowl(np.eye(3)))
    end = relax(Atoms("H", [(1.0, 0, 0)]), counted, fmax=1e-3, steps=200, enough=lambda atoms: atoms.positions[0, 0] < 0.8)
    assert not end.converged and 0.6 < end.atoms.positions[0, 0] < 0.8


def test_sparing_relaxations_find_the_same_sites():
    """As many sites, at the same places, with the same shares, for fewer calls."""
    slab = fcc111("Cu", (2, 2, 3), a=3.64, vacuum=8)
    slab.set_constraint(FixAtoms(range(len(slab))))
    surface, frame = SiteSurface.from_table("Cu", "O").on(slab), slab_frame(slab)
    starts = [place_adsorbate(slab, "O", xy) for xy in np.random.default_rng(2).uniform(0, 5, (10, 2))]
    found, calls = [], []
    for frugal in (False, True):
        counted = Counted(surface.calculator())
        clean = relax_clean(slab, counted, fmax=0.02, steps=50)
        table = relaxed_sites(
            starts, clean, frame, counted, anchor=0, fmax=0.02, steps=200, source="starts", shares=[0.1] * 10, frugal=frugal
        )
        found.append(table)
        calls.append(table.n_calls)
        assert sum(site.count for site in table) == 10
        assert sum(site.probability for site in table) == pytest.approx(1)
    full, sparing = found
    assert len(full) == len(sparing) and calls[1] < 0.8 * calls[0]
    assert sparing.compare(full, tol=0.05, baselines=()).coverage == 1
    np.testing.assert_allclose([s.energy for s in sparing], [s.energy for s in full], atol=2e-3)
