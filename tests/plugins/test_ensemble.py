"""Weighted ensembles of the shipped model: averages, weights, files that other programs open, and the index of models."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import dig_plugins
from dig_core.dig import Card
from dig_core.errors import CheckpointError, IncompatibleError, UnsupportedError
from dig_plugins import models

openmm = pytest.importorskip("openmm")
from openmm import app, unit  # noqa: E402

from dig_plugins.openmm.convert import to_geometry  # noqa: E402
from dig_plugins.openmm.energy import OpenMMEnergy  # noqa: E402
from dig_plugins.openmm.ensemble import Ensemble, sample  # noqa: E402
from dig_plugins.openmm.systems import model_system  # noqa: E402

NAME = "alanine-dipeptide"
HERE = Path(models.__file__).parent

pytestmark = pytest.mark.skipif(
    not (HERE / "index.json").exists(), reason="no model ships yet: models/index.json is missing"
)


@pytest.fixture(scope="module")
def drawn() -> Ensemble:
    return sample(NAME, 120, seed=3, batch=60, progress=False)


# Numbers ---------------------------------------------------------------------------------------------------------------


def test_shapes_and_seed(drawn):
    assert drawn.positions.shape == (120, 22, 3)
    assert drawn.log_weights.shape == drawn.energies.shape == (120,)
    assert drawn.seed == 3 and drawn.topology.getNumAtoms() == 22


def test_model_is_worth_something(drawn):
    """A shipped model is trained: far more effective samples than the one or so of an untrained model."""
    assert drawn.effective_sample_size > 6 and drawn.acceptance > 0.05


def test_weights_are_energies_against_densities(drawn):
    """log w = -u - log q, with u of the shipped System at the shipped temperature and log q of the model's own paths."""
    system = model_system(NAME)
    energy = OpenMMEnergy(system.system, system.temperature, platform="Reference")
    u = energy(to_geometry(drawn.positions)).numpy()
    assert np.allclose(drawn.energies, u, atol=1e-2)  # platforms agree to 1e-3 kJ/mol
    from dig_core.random import Streams

    log_q = models.load(NAME).proposal().draw(60, Streams(3, range(60))).log_q.numpy()
    assert np.allclose(drawn.log_weights[:60], -drawn.energies[:60] - log_q, atol=1e-9)


def test_more_samples_begin_with_the_same_ones(drawn):
    fewer = sample(NAME, 7, seed=3, batch=60, progress=False)
    assert np.array_equal(fewer.positions, drawn.positions[:7])
    assert np.allclose(fewer.log_weights, drawn.log_weights[:7], atol=1e-2)


def test_fresh_seeds_are_recorded_and_can_be_used_again():
    first = sample(NAME, 2, batch=2, steps=3, progress=False)
    again = sample(NAME, 2, batch=2, steps=3, seed=first.seed, progress=False)
    assert np.array_equal(first.positions, again.positions)
    assert sample(NAME, 2, batch=2, steps=3, progress=False).seed != first.seed


def known(log_weights) -> Ensemble:
    """An ensemble of one atom a frame, at x = frame number."""
    n = len(log_weights)
    topology = app.Topology()
    topology.addAtom("C", app.element.carbon, topology.addResidue("MOL", topology.addChain()))
    positions = np.zeros((n, 1, 3))
    positions[:, 0, 0] = np.arange(n)
    return Ensemble(topology, positions, np.array(log_weights), np.zeros(n), seed=1)


def test_averages_are_weighted():
    ensemble = known([700.0 + math.log(1), 700.0 + math.log(2), -math.inf, 700.0 + math.log(5)])
    assert ensemble.weights == pytest.approx([1 / 8, 2 / 8, 0, 5 / 8])
    assert float(ensemble.average(lambda x: x[:, 0, 0])) == pytest.approx((2 + 15) / 8)
    assert ensemble.average(lambda x: x[:, 0]).shape == (3,)
    assert ensemble.effective_sample_size == pytest.approx(64 / 30)


def test_resampling_draws_each_frame_as_often_as_its_weight_says():
    weights = np.random.default_rng(0).dirichlet(np.full(30, 0.5))
    ensemble = known(np.log(weights))
    frames = ensemble.resample(1000)[:, 0, 0].astype(int)
    counts = np.bincount(frames, minlength=30)
    assert counts.sum() == 1000 and (np.abs(counts - 1000 * weights) < 1).all()
    assert len(ensemble.resample()) == int(ensemble.effective_sample_size)


# Files -----------------------------------------------------------------------------------------------------------------


def test_xtc_pdb_and_weights_beside_it(drawn, tmp_path):
    mdtraj = pytest.importorskip("mdtraj")
    drawn.save(tmp_path / "out.xtc")
    trajectory = mdtraj.load(tmp_path / "out.xtc", top=tmp_path / "out.pdb")
    assert trajectory.n_frames == 120
    assert np.allclose(trajectory.xyz, drawn.positions, atol=1.5e-3)
    named = [(atom.name, atom.element.symbol) for atom in trajectory.topology.atoms]
    assert named == [(atom.name, atom.element.symbol) for atom in drawn.topology.atoms()]
    with np.load(tmp_path / "out.npz") as held:
        assert np.array_equal(held["log_weights"], drawn.log_weights)
        assert np.array_equal(held["energies"], drawn.energies) and int(held["seed"]) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.npz", "out.pdb", "out.xtc"]


def test_npz_alone(drawn, tmp_path):
    drawn.save(str(tmp_path / "out.npz"))
    with np.load(tmp_path / "out.npz") as held:
        assert np.allclose(held["positions"], drawn.positions, atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["out.npz"]


def test_pdb_holds_resampled_models(drawn, tmp_path):
    drawn.save(tmp_path / "out.pdb")
    pdb, wanted = app.PDBFile(str(tmp_path / "out.pdb")), drawn.resample()
    assert pdb.getNumFrames() == len(wanted) > 1
    for frame in (0, len(wanted) - 1):
        found = pdb.getPositions(asNumpy=True, frame=frame).value_in_unit(unit.nanometer)
        assert np.allclose(found, wanted[frame], atol=1e-4)


def test_saving_again_replaces(drawn, tmp_path):
    mdtraj = pytest.importorskip("mdtraj")
    drawn.save(tmp_path / "out.xtc")
    replace(drawn, positions=drawn.positions[:5]).save(tmp_path / "out.xtc")
    assert mdtraj.load(tmp_path / "out.xtc", top=tmp_path / "out.pdb").n_frames == 5


@pytest.mark.parametrize("name", ["out.trr", "out", "out.XTC2"])
def test_unknown_format(drawn, tmp_path, name):
    with pytest.raises(IncompatibleError, match=r"\.xtc, \.dcd, \.h5, \.pdb, \.npz"):
        drawn.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


# What does not fit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, -1])
def test_no_samples(n):
    with pytest.raises(IncompatibleError, match="at least 1"):
        sample(NAME, n)


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(CheckpointError, match=f"'methane'.*{NAME}"):
        sample("methane", 3)


def test_model_of_one_s_own_needs_its_simulation():
    with pytest.raises(IncompatibleError, match="simulation="):
        sample(models.load(NAME), 3)


def test_model_of_one_s_own_with_its_simulation(drawn):
    found = sample(
        models.load(NAME),
        2,
        simulation=model_system(NAME).simulation(platform="Reference"),
        seed=3,
        batch=60,
        progress=False,
    )
    assert np.array_equal(found.positions, drawn.positions[:2])


def test_constraints_are_refused():
    topology = model_system(NAME).topology
    system = app.ForceField("amber99sbildn.xml", "amber99_obc.xml").createSystem(topology, constraints=app.HBonds)
    simulation = app.Simulation(
        topology, system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    with pytest.raises(UnsupportedError, match="constraint"):
        sample(NAME, 2, simulation=simulation)


def test_model_without_a_temperature_has_no_weights():
    simulation = model_system(NAME).simulation(platform="Reference")
    with pytest.raises(IncompatibleError, match="no temperature"):
        sample(replace(models.load(NAME), card=Card()), 2, simulation=simulation)


# The index of models ---------------------------------------------------------------------------------------------------


def test_index_says_everything():
    for name, entry in models.index().items():
        assert {"file", "sha256", "licence", "system", "temperature", "recipe"} <= set(entry)
        assert models.path(name).is_file()
        # A model of many systems, which its scope tells, has no structure or force field of its own.
        if "structure" in entry:
            assert (HERE / entry["structure"]).is_file() and entry["force_field"] and entry["temperature"] > 0
        else:
            assert models.load(name).card.scope, name
        assert (Path(dig_plugins.__file__).parents[1] / entry["recipe"]).is_file()
        assert (HERE / entry["file"]).stat().st_size < 20e6
        if "reference" in entry:
            assert (HERE / entry["reference"]).is_file()


@pytest.mark.parametrize("name", sorted(models.index()) if (HERE / "index.json").exists() else [])
def test_card_agrees_with_the_index(name):
    card, entry = models.load(name).card, models.index()[name]
    assert card.name == name and card.temperature == entry["temperature"] and card.licence == entry["licence"]
    if "structure" in entry:
        assert card.measured["raw_ess"] > 0.05 and card.measured["script"] == entry["recipe"]
    else:
        assert card.scope
    assert card.intended_use and card.limits and card.history


def test_systems_of_models_need_no_constraints():
    system = model_system(NAME)
    assert system.system.getNumConstraints() == 0 and system.temperature == 300
    assert system.positions.shape == (22, 3)


def test_system_of_an_unknown_model():
    with pytest.raises(CheckpointError, match="no model is called"):
        model_system("methane")


def test_load_takes_names_and_files(tmp_path):
    copy = shutil.copy(models.path(NAME), tmp_path / "mine.safetensors")
    assert dig_plugins.load_model(str(copy)).card == dig_plugins.load_model(NAME).card
    with pytest.raises(CheckpointError, match="absent.safetensors"):
        models.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_checkpoint_that_is_not_the_released_one(damage, tmp_path, monkeypatch):
    entry = models.index()[NAME]
    (tmp_path / "index.json").write_text(json.dumps({NAME: entry}))
    content = (HERE / entry["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    if damage == "changed":
        (tmp_path / entry["file"]).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.setattr(models, "_HERE", tmp_path)
    with pytest.raises(CheckpointError, match="differs from the one released"):
        models.load(NAME)
