"""MD on a learned potential: its forces, its averages, what it is copied as, what it refuses, openmm-torch and openmmml."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

from dig_core.coordinates import Internal
from dig_core.diffusion import Diffusion, Euclidean, Geometric, Joint, LogSNR, Torus
from dig_core.dig import Card, DiG
from dig_core.errors import CheckpointError, DiGError, IncompatibleError, UnsupportedError
from dig_core.nn import ResidualMLP, ScalarMLP
from dig_core.score import EnergyScore, NoiseScore
from dig_core.types import Geometry

openmm = pytest.importorskip("openmm")
from openmm import app, unit  # noqa: E402

from dig_plugins.openmm import force as force_module  # noqa: E402
from dig_plugins.openmm import learned, torchforce  # noqa: E402
from dig_plugins.openmm.convert import describe  # noqa: E402
from dig_plugins.openmm.force import LearnedForce, make_force  # noqa: E402
from dig_plugins.openmm.observables import backbone_dihedrals  # noqa: E402
from dig_plugins.openmm.subset import subtopology  # noqa: E402
from dig_plugins.openmm.systems import model_system  # noqa: E402
from tests.plugins.known import KT, chain_molecule  # noqa: E402

T = 0.01
WAVES = {1: 0.8, 2: 0.5}  # kT: the potential of the torsion is sum of a cos(k torsion)
TURN = 0.5  # kT, times the sine of the torsion


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Checkpoints of one known law: every shape coordinate N(0, 1), the torsion exp(-waves); and of silent networks."""
    topology, system, positions = chain_molecule(4)
    descriptor = describe(topology, system, positions)
    standards = {(0, 1): (1.4, 0.13), (1, 2): (1.52, 0.11), (2, 3): (1.3, 0.14), (0, 1, 2): (2.0, 0.19), (1, 2, 3): (1.2, 0.18)}
    coordinates = Internal.from_reference(descriptor, standards)
    sizes = {"shape": len(coordinates.centre), "torsion": len(coordinates.torsion_atoms)}
    process = Joint(
        shape=Diffusion(Euclidean(sizes["shape"]), LogSNR(6.0, -6.0)), torsion=Diffusion(Torus(sizes["torsion"]), Geometric(0.05, 3.5))
    )
    folder, options = tmp_path_factory.mktemp("models"), {"width": 16, "blocks": 1}
    scores = {
        "known": EnergyScore(_waves(ScalarMLP(sizes, ["torsion"], **options)), process),
        "silent": EnergyScore(ScalarMLP(sizes, ["torsion"], **options), process),
        "noise": NoiseScore(ResidualMLP(sizes, ["torsion"], **options), process),
        "damaged energy": EnergyScore(_damaged(ScalarMLP(sizes, ["torsion"], **options)), process),
        "damaged noise": NoiseScore(_damaged(ResidualMLP(sizes, ["torsion"], **options)), process),
    }
    for name, score in scores.items():
        dig = DiG(score.eval().requires_grad_(False), coordinates, descriptor, Card(name=name, temperature=300.0))
        dig.save(folder / f"{name}.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in scores}


def _waves(network: ScalarMLP) -> ScalarMLP:
    """Its weights set so that what comes out is linear in the sines and cosines that go in."""
    with torch.no_grad():
        network.down[0].zero_()
        network.enter.zero_()
        for row, (column, factor) in enumerate([(5, TURN), *((4 + 2 * k, a) for k, a in WAVES.items())]):
            network.enter[row, column], network.leave[0, row] = 1.0, factor
    return network


def _damaged(network: ResidualMLP) -> ResidualMLP:
    torch.nn.init.constant_(network.leave_bias, float("nan"))
    return network


def system_with(force: openmm.Force, n: int = 4) -> openmm.System:
    system = openmm.System()
    for _ in range(n):
        system.addParticle(14.0)
    system.addForce(force)
    return system


def context_of(system: openmm.System, positions: np.ndarray, timestep: float = 0.005, friction: float = 10.0) -> openmm.Context:
    integrator = openmm.LangevinMiddleIntegrator(300, friction, timestep)
    integrator.setRandomNumberSeed(7)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    context.setVelocitiesToTemperature(300, 7)
    return context


def evaluated(context: openmm.Context, positions: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    if positions is not None:
        context.setPositions(positions)
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def structures(n: int) -> np.ndarray:
    positions = chain_molecule(4)[2]
    return positions + np.random.default_rng(2).normal(0, 0.008, (n, 4, 3))


def states(path: str, positions: np.ndarray) -> dict[str, np.ndarray]:
    """The model's own coordinates of ``positions`` (F, 4, 3) nm."""
    dig = DiG.load(path)
    state, _ = dig.coordinates.encode(Geometry(torch.from_numpy(10 * positions)), dig.descriptor)
    return {name: x.numpy() for name, x in state.items()}


# -- the force ---------------------------------------------------------------------------------------------------------


def test_forces_are_minus_the_slope_of_the_energy(models):
    context, step = context_of(system_with(make_force(models["known"])), structures(1)[0]), 1e-5
    for positions in structures(3):
        forces = evaluated(context, positions)[1]
        for index in np.ndindex(4, 3):
            moved = np.zeros((4, 3))
            moved[index] = step
            slope = (evaluated(context, positions + moved)[0] - evaluated(context, positions - moved)[0]) / (2 * step)
            assert forces[index] == pytest.approx(-slope, abs=1e-4 * np.abs(forces).max())


def test_energy_and_forces_are_those_of_log_q(models):
    dig, context = DiG.load(models["known"]), context_of(system_with(make_force(models["known"])), structures(1)[0])
    model, time, energies = dig.model.double(), torch.tensor([T], dtype=torch.float64), []
    for positions in structures(3):
        x = torch.from_numpy(10 * positions).requires_grad_()
        state, log_det = dig.coordinates.encode(Geometry(x[None]), dig.descriptor)
        log_q = model.log_density(state, time, dig.descriptor) + log_det
        (gradient,) = torch.autograd.grad(log_q.sum(), x)
        energy, forces = evaluated(context, positions)
        np.testing.assert_allclose(forces, 10 * KT * gradient.numpy(), rtol=1e-7, atol=1e-6)
        energies.append(energy + KT * float(log_q.detach()))
    np.testing.assert_allclose(energies, energies[0], atol=1e-9)


def test_a_silent_network_is_the_same_force_as_noise_or_energy(models):
    forces = {}
    for name in ("noise", "silent"):
        energy, forces[name] = evaluated(context_of(system_with(make_force(models[name])), structures(1)[0]))
        assert (energy == 0.0) == (name == "noise"), "a score that is not a gradient reports 0.0"
    np.testing.assert_allclose(forces["noise"], forces["silent"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["known", "noise"])
def test_no_net_force_and_no_torque(models, name):
    context = context_of(system_with(make_force(models[name])), structures(1)[0])
    for positions in structures(5):
        forces = evaluated(context, positions)[1]
        assert np.abs(forces.sum(0)).max() < 1e-9 * np.abs(forces).max()
        assert np.abs(np.cross(positions, forces).sum(0)).max() < 1e-9 * np.abs(forces).max()


def test_particles_among_others(models):
    positions, chosen = structures(1)[0], [5, 0, 3, 2]
    alone = evaluated(context_of(system_with(make_force(models["known"])), positions))
    scattered = np.random.default_rng(0).normal(size=(6, 3))
    scattered[chosen] = positions
    among = evaluated(context_of(system_with(make_force(models["known"], particles=chosen), n=6), scattered))
    assert among[0] == pytest.approx(alone[0])
    np.testing.assert_allclose(among[1][chosen], alone[1])
    assert not among[1][[1, 4]].any()


@pytest.mark.slow
def test_dynamics_has_the_averages_of_the_law(models):
    """Shape coordinates of mean 0 and variance 1, the torsion's waves by quadrature, |z| < 4; the temperature."""
    context = context_of(system_with(make_force(models["known"])), chain_molecule(4)[2], friction=2.0)
    frames, kinetic = [], []
    context.getIntegrator().step(200)
    for _ in range(1320):
        context.getIntegrator().step(5)
        state = context.getState(positions=True, energy=True)
        frames.append(state.getPositions(asNumpy=True)._value)
        kinetic.append(state.getKineticEnergy()._value)
    found = states(models["known"], np.array(frames))
    turn = found["torsion"][:, 0]
    axis = np.linspace(-np.pi, np.pi, 4001)[:-1]
    density = np.exp(-TURN * np.sin(axis) - sum(a * np.cos(k * axis) for k, a in WAVES.items()))
    density /= density.sum()
    wanted = [(f"shape {i}", x, 0.0) for i, x in enumerate(found["shape"].T)]
    wanted += [(f"shape {i} squared", x**2, 1.0) for i, x in enumerate(found["shape"].T)]
    wanted += [(f"{f.__name__} {k}", f(k * turn), float((f(k * axis) * density).sum())) for f in (np.cos, np.sin) for k in (1, 2)]
    for name, series, expected in wanted:
        means = series.reshape(24, -1).mean(1)
        z = (means.mean() - expected) / (means.std(ddof=1) / np.sqrt(len(means)))
        assert abs(z) < 4, f"{name}: {means.mean():.4f} instead of {expected:.4f}, z = {z:+.1f}"
    assert np.mean(kinetic) == pytest.approx(6 * KT, rel=0.1)  # 3 % off by the time step alone


def test_minimisation_finds_the_top_of_the_density(models):
    context = context_of(system_with(make_force(models["known"])), structures(1)[0])
    before = evaluated(context)[0]
    openmm.LocalEnergyMinimizer.minimize(context, 0.01)
    after, forces = evaluated(context)
    assert after < before and np.sqrt((forces**2).mean()) < 0.1


# -- copies ------------------------------------------------------------------------------------------------------------


def test_travels_as_a_name_not_as_a_model(models):
    system = system_with(make_force(models["known"]))
    xml, positions = openmm.XmlSerializer.serialize(system), structures(1)[0]
    assert len(xml) < 5000
    energy, forces = evaluated(context_of(system, positions))
    for other in (openmm.XmlSerializer.deserialize(xml), copy.deepcopy(system)):
        assert openmm.XmlSerializer.serialize(other) == xml
        assert evaluated(context_of(other, positions))[0] == energy
        np.testing.assert_array_equal(evaluated(context_of(other, positions))[1], forces)


_ELSEWHERE = """
import json, sys, openmm
system = openmm.XmlSerializer.deserialize(open(sys.argv[1]).read())
context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
context.setPositions(json.loads(sys.argv[2]))
print(json.dumps(context.getState(forces=True).getForces(asNumpy=True)._value.tolist()))
"""


def test_works_in_a_second_process(models, tmp_path):
    system, positions = system_with(make_force(models["known"])), structures(1)[0]
    (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    done = python(_ELSEWHERE, str(tmp_path / "system.xml"), json.dumps(positions.tolist()))
    np.testing.assert_array_equal(json.loads(done), evaluated(context_of(system, positions))[1])


def python(code: str, *arguments: str) -> str:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("what, said", [("changed", "has changed since"), ("gone", "no checkpoint at")])
def test_another_file_is_refused_by_name(models, tmp_path, monkeypatch, what, said):
    file = tmp_path / "mine.safetensors"
    file.write_bytes(Path(models["known"]).read_bytes())
    system = system_with(make_force(str(file)))
    file.unlink()
    if what == "changed":
        file.write_bytes(Path(models["silent"]).read_bytes())
    monkeypatch.setattr(learned, "_LOADED", {})  # as in a process that has not read it yet
    with pytest.raises(openmm.OpenMMException, match=f"{said}.*") as caught:
        evaluated(context_of(system, structures(1)[0]))
    assert str(file) in str(caught.value)
    assert isinstance(LearnedForce.last_exception, CheckpointError)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, options, error, said",
    [
        ("noise", {"energy": True}, UnsupportedError, "not the gradient of a density"),
        ("known", {"temperature": 310}, IncompatibleError, "300 K, got 310 K"),
        ("known", {"temperature": 310 * unit.kelvin}, IncompatibleError, "300 K, got 310 K"),
        ("known", {"t": 0.0}, IncompatibleError, "noise time"),
        ("known", {"particles": [0, 1, 2]}, IncompatibleError, "4 different particles"),
        ("known", {"particles": [0, 1, 2, 2]}, IncompatibleError, "3 of them different"),
        ("known", {"backend": "cuda"}, IncompatibleError, "python, torch, auto"),
    ],
)
def test_refused_with_the_reason(models, name, options, error, said):
    with pytest.raises(error, match=said):
        make_force(models[name], **options)


def test_models_without_a_file_are_refused(models, tmp_path):
    with pytest.raises(IncompatibleError, match="dig.save"):
        make_force(DiG.load(models["known"]))
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        make_force(tmp_path / "none.safetensors")


def test_another_number_of_particles_is_refused(models):
    with pytest.raises(openmm.OpenMMException, match="4 atoms of 'known', the force acts on 5 particles: pass particles="):
        evaluated(context_of(system_with(make_force(models["known"]), n=5), np.random.default_rng(0).normal(size=(5, 3))))


def test_a_blow_up_names_step_and_time_and_keeps_the_traceback(models):
    context = context_of(system_with(make_force(models["known"])), structures(1)[0])
    context.getIntegrator().step(3)
    broken = structures(1)[0]
    broken[1] = np.nan
    context.setPositions(broken)
    with pytest.raises(openmm.OpenMMException, match="not finite at step 3, 0.015 ps"):
        context.getIntegrator().step(1)
    assert "_evaluate" in [entry.name for entry in traceback.extract_tb(LearnedForce.last_exception.__traceback__)]


@pytest.mark.parametrize("name", ["damaged energy", "damaged noise"])
def test_a_damaged_model_stops_the_dynamics(models, name):
    with pytest.raises(openmm.OpenMMException, match=f"{name}.*not finite at step 0, 0 ps"):
        context_of(system_with(make_force(models[name])), structures(1)[0]).getIntegrator().step(1)


def test_atoms_in_one_place_give_no_nan(models):
    positions = structures(1)[0]
    positions[1] = positions[0]
    try:
        forces = evaluated(context_of(system_with(make_force(models["known"])), positions))[1]
    except openmm.OpenMMException as refused:  # of an angle there, older torch has a slope of nan
        assert "atoms on top of each other" in str(refused)
    else:
        assert np.isfinite(forces).all()


def test_errors_of_others_are_kept_and_explained(models, monkeypatch):
    def broken(*_):
        raise KeyError("xx")

    context = context_of(system_with(make_force(models["known"])), structures(1)[0])
    monkeypatch.setattr(force_module, "load", broken)
    with pytest.raises(openmm.OpenMMException, match="at step 0, 0 ps: KeyError: 'xx'.*last_exception"):
        evaluated(context)
    assert isinstance(LearnedForce.last_exception, KeyError) and not isinstance(LearnedForce.last_exception, DiGError)


# -- openmm-torch ------------------------------------------------------------------------------------------------------

_FAKES = {
    "lacks a library": ("raise ImportError('libnvrtc.so.12: cannot open shared object file')", (False, False), "libnvrtc"),
    "crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", (False, False), "exit status -11"),
    "cannot be copied": ("WORKS\nimport copy\ndef no(_): raise ValueError('no copies')\ncopy.deepcopy = no", (True, False), "no copies"),
    "works": ("WORKS", (True, True), "^$"),
}
_WORKING = """
import openmm
def TorchForce(module):
    force = openmm.CustomExternalForce("x*x + y*y + z*z")
    force.addParticle(0)
    return force
"""


@pytest.fixture
def fresh_probe():
    torchforce.probe.cache_clear()
    yield
    torchforce.probe.cache_clear()


@pytest.mark.parametrize("code, expected, why", _FAKES.values(), ids=_FAKES)
def test_a_build_is_judged_by_what_it_does(tmp_path, monkeypatch, fresh_probe, code, expected, why):
    (tmp_path / "openmmtorch.py").write_text(code.replace("WORKS", _WORKING))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = torchforce.probe()
    assert found[:2] == expected, found.why
    assert re.search(why, found.why)


@pytest.mark.parametrize("probed", [(False, False, "ImportError: no such thing"), (True, False, "exit status -11")])
def test_auto_is_python_where_torch_does_not_do_everything(models, monkeypatch, probed):
    monkeypatch.setattr(torchforce, "probe", lambda: torchforce.Probe(*probed))
    assert isinstance(make_force(models["known"], backend="auto"), openmm.PythonForce)


def test_auto_is_torch_where_it_does(models, monkeypatch):
    monkeypatch.setattr(torchforce, "probe", lambda: torchforce.Probe(True, True, ""))
    monkeypatch.setattr(torchforce, "make_torch_force", lambda *arguments: arguments)
    assert make_force(models["noise"], backend="auto", particles=[3, 2, 1, 0])[1:] == (KT, T, False, [3, 2, 1, 0])


def test_torch_without_a_build_says_what_was_tried(models, monkeypatch):
    monkeypatch.setattr(torchforce, "probe", lambda: torchforce.Probe(False, False, "ImportError: no such thing"))
    with pytest.raises(UnsupportedError, match="tried a small TorchForce: ImportError: no such thing. Use backend='python'"):
        make_force(models["known"], backend="torch")


@pytest.mark.parametrize("name", ["known", "noise", "alanine-dipeptide"])
def test_the_scripted_law_is_the_law(models, name):
    """Frozen, as TorchForce runs it; at structures it was not traced at; and it refuses what is not finite."""
    law = learned.load(*learned.identify(models.get(name, name)))
    particles = list(range(1, law.n_atoms + 1))
    module = torch.jit.freeze(torchforce.scripted(law, KT, T, law.conservative, particles).eval())
    for seed in range(2):
        x = law.descriptor.reference.positions[0]
        x = x + 0.03 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        log_q, gradient = law.evaluate(x, T)
        energy, forces = module(torch.cat([torch.full((1, 3), 9.0), x / 10]))
        wanted = 10 * KT * (gradient - gradient.mean(0))
        torch.testing.assert_close(forces[1:], wanted, rtol=1e-8, atol=1e-6)
        assert not forces[0].any() and float(energy.detach()) == pytest.approx(-KT * log_q)
    with pytest.raises(torch.jit.Error, match="not finite"):
        module(torch.full((len(particles) + 1, 3), float("nan"), dtype=torch.float64))


def test_real_openmm_torch_gives_the_same_forces(models, fresh_probe):
    if not torchforce.probe().works:
        pytest.skip(f"no openmm-torch that works: {torchforce.probe().why}")
    for name in ("known", "noise"):
        given = [evaluated(context_of(system_with(make_force(models[name], backend=b)), structures(1)[0])) for b in ("python", "torch")]
        assert given[1][0] == pytest.approx(given[0][0])
        np.testing.assert_allclose(given[1][1], given[0][1], rtol=1e-6, atol=1e-6)


# -- openmmml ----------------------------------------------------------------------------------------------------------


def test_the_entry_point_imports_nothing():
    heavy = "{'torch', 'numpy', 'openmm', 'openmmml'}"
    assert python(f"import sys, dig_plugins.openmm.mlpotential; print(sorted(set(sys.modules) & {heavy}))").strip() == "[]"


@pytest.mark.parametrize("first", ["", "sys.modules['torch'] = None", "import dig_plugins.openmm.mlpotential"])
def test_import_openmmml_never_breaks(first):
    """Without torch, or with this module imported before openmmml."""
    pytest.importorskip("openmmml")
    code = f"import sys\n{first}\nimport openmm, openmmml\nprint('dig' in openmmml.MLPotential._implFactories)"
    assert python(code).strip() == "True", "the entry point is not registered: pip install -e . again"


def test_mlpotential_is_the_force(models):
    potential = pytest.importorskip("openmmml").MLPotential("dig", model=models["known"])
    topology, _, positions = chain_molecule(4)
    wanted = evaluated(context_of(system_with(make_force(models["known"])), positions))
    found = evaluated(context_of(potential.createSystem(topology), positions))
    assert found[0] == wanted[0]
    np.testing.assert_array_equal(found[1], wanted[1])


def test_mlpotential_of_a_molecule_among_others(models):
    """Everything within the molecule is the model's, at lambda = 0 the force field's, scaled in between."""
    potential = pytest.importorskip("openmmml").MLPotential("dig", model=models["known"])
    topology, _, positions = chain_molecule(4)
    both = app.Modeller(topology, positions * unit.nanometer)
    both.add(topology, (positions + [3.0, 0, 0]) * unit.nanometer)
    bonds, places = openmm.HarmonicBondForce(), np.array(both.positions.value_in_unit(unit.nanometer))
    for bond in both.topology.bonds():
        bonds.addBond(bond[0].index, bond[1].index, 0.14, 15_000.0)
    classical = system_with(bonds, n=8)
    mixed = context_of(potential.createMixedSystem(both.topology, classical, range(4, 8), interpolate=True), places)
    by_bonds = evaluated(context_of(classical, places))[1]
    by_model = evaluated(context_of(system_with(make_force(models["known"])), positions))[1]
    for weight in (0.0, 0.5, 1.0):
        mixed.setParameter("lambda_interpolate", weight)
        forces = evaluated(mixed)[1]
        np.testing.assert_allclose(forces[:4], by_bonds[:4], atol=1e-6)
        np.testing.assert_allclose(forces[4:], weight * by_model + (1 - weight) * by_bonds[4:], rtol=1e-6, atol=1e-5)


def test_mlpotential_refuses_other_molecules(models):
    openmmml = pytest.importorskip("openmmml")
    with pytest.raises(IncompatibleError, match="expected element"):
        openmmml.MLPotential("dig", model=models["known"]).createSystem(subtopology(chain_molecule(4)[0], [3, 2, 1, 0]))
    with pytest.raises(IncompatibleError, match="got no model"):
        openmmml.MLPotential("dig")


# -- the shipped model -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_alanine_dipeptide_keeps_its_shape_and_temperature():
    """20 ps at 10 / ps: bonds within a quarter of their length, phi and psi where the force field has them, 300 K to 15 %."""
    topology, _, positions, temperature = model_system("alanine-dipeptide")
    system = openmm.System()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    system.addForce(make_force("alanine-dipeptide"))
    context, frames, kinetic = context_of(system, positions, timestep=0.001), [], []
    for _ in range(1000):
        context.getIntegrator().step(20)
        state = context.getState(positions=True, energy=True)
        frames.append(state.getPositions(asNumpy=True)._value)
        kinetic.append(state.getKineticEnergy()._value)
    frames, pairs = np.array(frames), np.array([(bond[0].index, bond[1].index) for bond in topology.bonds()])
    lengths = np.linalg.norm(frames[:, pairs[:, 0]] - frames[:, pairs[:, 1]], axis=-1)
    start = np.linalg.norm(positions[pairs[:, 0]] - positions[pairs[:, 1]], axis=-1)
    assert np.isfinite(lengths).all() and (np.abs(lengths / start - 1) < 0.25).all()
    phi, psi = (np.degrees(x[:, 0]) for x in backbone_dihedrals(topology).measure(frames))
    left = (phi > 0) & (phi < 130)
    forbidden = ~left & (psi > -140) & (psi < -100) | (phi > -20) & (phi < 20)
    assert forbidden.mean() < 0.02
    assert 2 * np.mean(kinetic[100:]) / (3 * 22) / (KT / 300) == pytest.approx(temperature, rel=0.15)
