"""Wells about minima: their density is that of what they draw, chains of them keep exp(-u), symmetry completes them."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

Chem = pytest.importorskip("rdkit.Chem")

from dig_core.montecarlo.wells import Wells  # noqa: E402
from dig_core.random import Streams  # noqa: E402
from dig_core.training.wells import equilibrium, log_target_and_slope  # noqa: E402
from dig_core.types import Geometry  # noqa: E402
from dig_plugins.rdkit import MMFFEnergy, of_smiles, sample_conformers, to_geometry  # noqa: E402
from dig_plugins.rdkit.convert import check_structure, embed  # noqa: E402
from dig_plugins.rdkit.minima import minimised, searched  # noqa: E402
from dig_plugins.rdkit.wells import conformer_wells, symmetric_copies  # noqa: E402


@pytest.fixture(autouse=True)
def short_streams(monkeypatch):
    monkeypatch.setattr("dig_core.random._BLOCK", 256)


@functools.cache
def wells(smiles: str) -> tuple[Chem.Mol, Wells]:
    mol = of_smiles(smiles)
    return mol, conformer_wells(mol, conformers=20, seed=1)


def test_density_is_that_of_what_is_drawn_whatever_end_atoms_are_called():
    _, law = wells("CCO")
    drawn = law.draw(200, Streams(3, range(200)))  # turned, and end atoms named at random
    again = law.log_q(drawn.geometry, Streams(4, range(200)))
    torch.testing.assert_close(again[drawn.valid], drawn.known_log_q()[drawn.valid], rtol=0, atol=1e-6)


def test_points_beyond_half_a_turn_are_structures_that_have_other_labels():
    _, law = wells("CCO")
    noise = torch.randn(100, law.mean.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points, _ = law.points(torch.zeros(100, dtype=torch.long), noise)
    points[:, law.rotors] += 7.0
    encoded, _ = law.dig.coordinates.encode(law.dig.coordinates.decode(law.state(points), law.dig.descriptor), law.dig.descriptor)
    torch.testing.assert_close(law.point(encoded), law.canonical(points), rtol=0, atol=1e-8)
    torch.testing.assert_close(law.log_parts(points), law.log_parts(law.canonical(points)), rtol=0, atol=1e-8)


def test_wells_of_butane_are_worth_having():
    mol, law = wells("CCCC")
    found = sample_conformers(mol, 1000, model="wells", seed=2)
    assert len(law) == 3 and found.acceptance > 0.6
    shares = found.populations()
    gap = shares[(0,)].value - shares[(-1,)].value
    assert abs(gap) < 4 * (shares[(0,)].stderr + shares[(-1,)].stderr)  # mirror images


def test_chains_keep_the_law():
    """The mean of x . grad u over exp(-u) in any coordinates is known: that of the slope of the log-density with a bounded function."""
    mol, law = wells("CO")
    found = equilibrium(law, MMFFEnergy(mol, 300.0), torch.Generator().manual_seed(1), chains=400, settle=40, moves=40, stride=20)
    assert found.acceptance > 0.5
    points, slope = law.point(found.frames.state), law.point(found.frames.force)
    shape = ~law.periodic  # E[f' + f d log p] = 0 for f = x - middle of each flat coordinate: Stein's identity
    value = 1 + ((points - points.mean(0)) * slope)[:, shape]
    error = value.view(2, 400, -1).mean(0).std(0) / 20
    assert float((value.mean(0).abs() / error).max()) < 4.5


def test_symmetry_keeps_the_energy_and_mirrors_where_it_may():
    mol = of_smiles("CC(F)(F)Cl")
    copies = symmetric_copies(mol, to_geometry(mol).positions)[0]
    u = MMFFEnergy(mol, 300.0)(Geometry(copies))
    assert len(copies) == 24 and float(u.max() - u.min()) < 1e-9
    handed = of_smiles("C[C@H](F)Cl")
    assert symmetric_copies(handed, to_geometry(handed).positions).shape[1] == 6


def test_slopes_are_those_of_the_law():
    mol, law = wells("CO")
    energy, point = MMFFEnergy(mol, 300.0), law.mean[:1] + 0.1
    slope, step = log_target_and_slope(law, energy, point)[1][0], 1e-4 * torch.eye(point.shape[1], dtype=torch.float64)
    values = log_target_and_slope(law, energy, torch.cat([point + step, point - step]))[0]
    torch.testing.assert_close((values[: len(step)] - values[len(step) :]) / 2e-4, slope, rtol=1e-4, atol=1e-3)


def test_minima_that_distance_geometry_never_makes_are_found():
    """MMFF94s prefers this amide cis, by several kcal/mol; ETKDG makes amides trans."""
    mol = of_smiles("CC(=O)Nc1nccs1")
    rough = embed(mol, 40, seed=1)
    _, made = minimised(rough)
    low, found = searched(rough, seed=2)
    assert found.min() < made.min() - 2
    again, same = minimised(low)
    np.testing.assert_allclose(same, found, atol=0.05)


def test_the_search_keeps_stereoisomer_and_end_atoms():
    mol = of_smiles("C[C@H](O)/C=C/C(=O)O")
    low, energies = searched(embed(mol, 16, seed=1), seed=2)
    near = np.flatnonzero(energies < energies.min() + 6)
    for k in near.tolist():
        check_structure(low, low.GetConformers()[k].GetId())
    assert len(near) > 3


def test_chains_of_wells_and_their_weights_agree_on_populations():
    mol, _ = wells("CCO")
    weighed, walked = (sample_conformers(mol, 1200, model="wells", correct=how, seed=3) for how in ("reweight", "mc"))
    assert weighed.chains == 1 < walked.chains and walked.acceptance > 0.5
    torsion = [(0, 1, 2, 8)]
    for state, share in weighed.populations(torsion).items():
        other = walked.populations(torsion)[state]
        assert abs(share.value - other.value) < 4 * math.hypot(share.stderr, other.stderr) < 0.3
    u = MMFFEnergy(mol, 300.0)
    np.testing.assert_allclose(walked.energy, (u(to_geometry(walked.mol)) * u.kt).numpy(), atol=1e-6)
    assert len(sample_conformers(mol, 1, model="wells", correct="mc", seed=3)) == 1
