"""From a force field to a model in one call: counted, resumable, exact whatever came out; the command line, pictures, frames."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

openmm = pytest.importorskip("openmm")
from openmm import app, unit  # noqa: E402

import dig_plugins.openmm.training as training  # noqa: E402
from dig_core.coordinates.measure import angle, bond  # noqa: E402
from dig_core.dig import DiG  # noqa: E402
from dig_core.errors import CheckpointError, IncompatibleError, UnsupportedError  # noqa: E402
from dig_plugins.mdtraj import read_positions  # noqa: E402
from dig_plugins.openmm.convert import to_geometry  # noqa: E402
from dig_plugins.openmm.energy import OpenMMEnergy  # noqa: E402
from dig_plugins.openmm.montecarlo import DiGMonteCarlo  # noqa: E402
from dig_plugins.openmm.training import fit, fit_files  # noqa: E402
from dig_plugins.progress import training_picture  # noqa: E402
from tests.plugins.known import KT, assert_exact, chain_molecule, simulation_of  # noqa: E402

SMALL = {"seed": 3, "budget": 4.0, "progress": False}


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """Molecules of a few coordinates need no more, and the quick tests no larger ones."""
    monkeypatch.setattr("dig_core.random._BLOCK", 256)
    model = training.internal_model
    monkeypatch.setattr(training, "internal_model", lambda coordinates, *, width, seed=0: model(coordinates, width=48, blocks=2, seed=seed))


@pytest.fixture(scope="module")
def molecule():
    return chain_molecule(4)


@pytest.fixture(scope="module")
def trained(molecule, tmp_path_factory):
    """A training from the energy alone, and every energy evaluation its System was asked for."""
    out, asked = tmp_path_factory.mktemp("trained"), []
    with pytest.MonkeyPatch.context() as patch:
        model = training.internal_model
        patch.setattr(training, "internal_model", lambda c, *, width, seed=0: model(c, width=48, blocks=2, seed=seed))
        evaluate = OpenMMEnergy._evaluate
        patch.setattr(OpenMMEnergy, "_evaluate", lambda self, g, **k: asked.append(len(g.positions)) or evaluate(self, g, **k))
        topology, system, positions = molecule
        return fit(system, topology, 300, positions=positions, out=out, **SMALL), out, sum(asked)


def test_a_force_field_is_enough(trained):
    found, _, _ = trained
    assert found.finished and found.raw_ess > 0.5 and found.acceptance > 0.5
    assert [stage["stage"] for stage in found.history[1:]] == ["population", "standardise", "denoise", "reweight", "reweight"]
    assert f"{found.acceptance:.0%}" in str(found) and f"{found.evaluations:,}" in str(found)


def test_every_energy_evaluation_is_counted(trained):
    found, _, asked = trained
    # What times a draw before the start and judges the model at the end is no part of the training.
    assert found.evaluations == asked - 3 * 512 - 4096


def test_chains_of_that_model_are_exact(trained, molecule):
    found, _, _ = trained
    chain = DiGMonteCarlo(simulation_of(*molecule), found.dig, md_steps=0, proposals=64, batch=512, seed=5)
    positions = np.concatenate([chain.step().positions for _ in range(160)])
    assert_exact(positions, OpenMMEnergy(molecule[1], 300)(to_geometry(positions)).numpy())


def acetonitrile():
    """Harmonic bonds and angles: the bend of C-C-N, an angle at rest when straight, knows nothing of the others."""
    topology, system = app.Topology(), openmm.System()
    residue = topology.addResidue("ACN", topology.addChain())
    atoms = [topology.addAtom(f"{s}{i}", app.Element.getBySymbol(s), residue) for i, s in enumerate("CCNHHH")]
    stretch, bend = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    for mass in (12, 12, 14, 1, 1, 1):
        system.addParticle(mass)
    for i, j, length, k in [(0, 1, 0.146, 2.5e5), (1, 2, 0.1155, 8e5), *((0, h, 0.109, 2.8e5) for h in (3, 4, 5))]:
        topology.addBond(atoms[i], atoms[j])
        stretch.addBond(i, j, length, k)
    hydrogens = [(h, 0, 1, 1.92, 400.0) for h in (3, 4, 5)] + [(3, 0, 4, 1.9, 300.0), (3, 0, 5, 1.9, 300.0), (4, 0, 5, 1.9, 300.0)]
    for i, j, k, theta, stiffness in [(0, 1, 2, np.pi, 250.0), *hydrogens]:
        bend.addAngle(i, j, k, theta, stiffness)
    system.addForce(stretch)
    system.addForce(bend)
    positions = [[0.0, 0, 0], [0.146, 0, 0], [0.2615, 0, 0], [-0.037, 0.1025, 0], [-0.037, -0.051, 0.0887], [-0.037, -0.051, -0.0887]]
    return topology, system, np.array(positions)


@pytest.mark.slow
def test_a_straight_group_from_its_force_field_alone():
    """The mean square bend of C-C-N and the C-N bond, known by quadrature: densities sin(a) exp(-u) and b^2 exp(-u)."""
    topology, system, positions = acetonitrile()
    found = fit(system, topology, 300, positions=positions, seed=3, budget=20.0, progress=False)
    assert found.raw_ess > 0.3 and len(found.dig.coordinates.zmatrix.straight) == 1
    chain = DiGMonteCarlo(simulation_of(topology, system, positions), found.dig, md_steps=0, proposals=64, batch=512, seed=5)
    points = torch.as_tensor(np.concatenate([chain.step().positions for _ in range(160)]))
    a, b = np.linspace(2.0, np.pi, 20_001), np.linspace(0.1, 0.13, 20_001)
    bent, length = np.pi - angle(points, [(0, 1, 2)])[:, 0].numpy(), bond(points, [(1, 2)])[:, 0].numpy()
    for values, weight, exact in (
        (bent**2, np.sin(a) * np.exp(-125 * (a - np.pi) ** 2 / KT), (np.pi - a) ** 2),
        (length, b**2 * np.exp(-4e5 * (b - 0.1155) ** 2 / KT), b),
    ):
        means = values.reshape(40, -1).mean(1)
        z = (means.mean() - (exact * weight).sum() / weight.sum()) / (means.std(ddof=1) / 40**0.5)
        assert abs(z) < 4, z


def test_files_tell_the_whole_story(trained):
    found, out, _ = trained
    held, dig = json.loads((out / "run.json").read_text()), DiG.load(out / "model.safetensors")
    assert held["evaluations"] == found.evaluations and held["seed"] == 3
    assert held["raw_ess"] == pytest.approx(found.raw_ess, abs=1e-4) == dig.card.measured["raw_ess"]
    assert (out / "progress.png").read_bytes().startswith(b"\x89PNG")
    first, second = (model.sample(8, seed=1).geometry.positions for model in (found.dig, dig))
    assert torch.equal(first, second)


def test_a_finished_training_is_not_done_again(trained, molecule):
    found, out, _ = trained
    topology, system, positions = molecule
    again = fit(system, topology, 300, positions=positions, out=out, **SMALL)
    assert again.evaluations == found.evaluations and again.raw_ess == found.raw_ess


def test_an_interrupted_training_is_the_same_training(trained, molecule, tmp_path, monkeypatch):
    topology, system, positions = molecule
    found, done, _ = trained
    # Sizes come from measured times: the same plan makes it the same training.
    plan = {k: v for k, v in json.loads((done / "plan.json").read_text()).items() if k != "seconds"}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    draw, calls = OpenMMEnergy._evaluate, []

    def cut(self, geometry, **options):
        calls.append(1)
        if len(calls) in (6, 22):
            raise KeyboardInterrupt
        return draw(self, geometry, **options)

    monkeypatch.setattr(OpenMMEnergy, "_evaluate", cut)
    for _ in range(2):
        cut_off = fit(system, topology, 300, positions=positions, out=tmp_path, **SMALL)
        assert not cut_off.finished and "run the same call again" in str(cut_off)
    resumed = fit(system, topology, 300, positions=positions, out=tmp_path, **SMALL)
    assert resumed.finished and resumed.evaluations == found.evaluations and resumed.raw_ess == found.raw_ess


@pytest.mark.slow
def test_frames_take_the_place_of_annealing(molecule):
    topology, system, positions = molecule
    simulation = simulation_of(*molecule, seed=7)
    frames = []
    for _ in range(300):
        simulation.step(20)
        frames.append(simulation.context.getState(positions=True).getPositions(asNumpy=True)._value)
    found = fit(simulation, frames=np.array(frames), **SMALL)
    assert [stage["stage"] for stage in found.history[1:]] == ["denoise", "reweight", "reweight"]
    assert found.raw_ess > 0.5


def test_what_is_missing_is_named(molecule):
    topology, system, positions = molecule
    with pytest.raises(IncompatibleError, match="topology, temperature, positions"):
        fit(system)
    with pytest.raises(IncompatibleError, match="at least 100 frames, got 2"):
        fit(system, topology, 300, positions=positions, frames=np.stack([positions] * 2))
    for budget in ("soon", "0min", -3, "5 parsecs"):
        with pytest.raises(IncompatibleError, match="budget"):
            fit(system, topology, 300, positions=positions, budget=budget)
    constrained = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    constrained.addConstraint(0, 1, 0.15)
    with pytest.raises((IncompatibleError, UnsupportedError), match="constraint"):
        fit(constrained, topology, 300, positions=positions)


def test_a_directory_belongs_to_one_molecule(trained, molecule):
    topology, system, positions = molecule
    with pytest.raises(CheckpointError, match="another molecule or temperature"):
        fit(system, topology, 310, positions=positions, out=trained[1])


def test_training_by_files(tmp_path):
    """A water molecule: as small as force fields know."""
    pdb = tmp_path / "water.pdb"
    topology, x = app.Topology(), np.array([[0, 0, 0], [0.0957, 0, 0], [-0.024, 0.0927, 0]])
    residue = topology.addResidue("HOH", topology.addChain())
    atoms = [topology.addAtom(n, app.Element.getBySymbol(n[0]), residue) for n in ("O", "H1", "H2")]
    topology.addBond(atoms[0], atoms[1])
    topology.addBond(atoms[0], atoms[2])
    app.PDBFile.writeFile(topology, x * unit.nanometer, str(pdb))
    with pytest.raises(IncompatibleError, match="no structure"):
        fit_files(tmp_path / "none.pdb", ["amber14-all.xml"], 300)
    with pytest.raises(IncompatibleError, match="cannot describe"):
        fit_files(pdb, ["amber14-all.xml"], 300)
    with pytest.raises(IncompatibleError, match="cannot describe"):
        fit_files(pdb, ["nothing-of-the-kind.xml"], 300)


def test_frames_of_other_atoms_are_refused(tmp_path, molecule):
    mdtraj = pytest.importorskip("mdtraj")
    topology, _, positions = molecule
    app.PDBFile.writeFile(topology, positions * unit.nanometer, str(tmp_path / "x.pdb"))
    mdtraj.load(str(tmp_path / "x.pdb")).save_xtc(str(tmp_path / "x.xtc"))
    found = read_positions(tmp_path / "x.xtc", tmp_path / "x.pdb")
    assert found.shape == (1, 4, 3) and np.abs(found[0] - positions).max() < 2e-3
    mdtraj.load(str(tmp_path / "x.pdb")).atom_slice([0, 1]).save_xtc(str(tmp_path / "two.xtc"))
    with pytest.raises(IncompatibleError, match="cannot be read"):
        read_positions(tmp_path / "two.xtc", tmp_path / "x.pdb")
    with pytest.raises(IncompatibleError, match="no file"):
        read_positions(tmp_path / "gone.xtc", tmp_path / "x.pdb")


def test_pictures_of_trainings_without_torsions_or_annealing():
    for torsions in (np.zeros((0, 0)), np.zeros((50, 1)), np.random.default_rng(1).uniform(-3, 3, (50, 30))):
        assert training_picture([{"stage": "denoise", "frames": 50, "ess": [0.5]}], torsions).startswith(b"\x89PNG")
    assert training_picture([], np.zeros((0, 0))).startswith(b"\x89PNG")
