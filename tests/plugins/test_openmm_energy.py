"""OpenMMEnergy: the Energy contract, failures that stay where they are, and copies for other processes."""

from __future__ import annotations

import functools
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import dig_plugins
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.types import Geometry

openmm = pytest.importorskip("openmm")
from openmm import app, unit  # noqa: E402

from dig_plugins.openmm.convert import reduced_unit, to_geometry  # noqa: E402
from dig_plugins.openmm.energy import OpenMMEnergy  # noqa: E402

ALA2 = Path(dig_plugins.__file__).parent / "models" / "alanine-dipeptide.pdb"


@functools.cache
def ala2() -> tuple[app.PDBFile, openmm.System]:
    pdb = app.PDBFile(str(ALA2))
    force_field = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
    return pdb, force_field.createSystem(pdb.topology, constraints=None)


@pytest.fixture
def energy() -> OpenMMEnergy:
    return OpenMMEnergy(ala2()[1], 300, platform="Reference")


def frames(n: int, sd: float = 0.05) -> torch.Tensor:
    """(n, 22, 3) Angstrom, perturbed copies of the reference."""
    noise = np.random.default_rng(1).normal(0, sd, (n, 22, 3))
    return to_geometry(ala2()[0].positions).positions + torch.from_numpy(noise)


def diatomic(force: openmm.Force | None = None) -> openmm.System:
    system = openmm.System()
    for _ in range(2):
        system.addParticle(12.0)
    if force is not None:
        system.addForce(force)
    return system


def test_energy_is_openmm_s_over_kt(energy):
    pdb, system = ala2()
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(pdb.positions)
    expected = context.getState(energy=True).getPotentialEnergy() / (unit.MOLAR_GAS_CONSTANT_R * 300 * unit.kelvin)
    u = energy(to_geometry(pdb.positions))
    assert u.shape == (1,) and u.dtype == torch.float64
    assert u.item() == pytest.approx(expected, rel=1e-10)


def test_gradient_is_the_energy_s_central_difference(energy):
    x = frames(3)
    u, gradient = energy.energy_and_gradient(Geometry(x))
    assert gradient.shape == x.shape and gradient.dtype == torch.float64
    step = 1e-4
    generator = np.random.default_rng(2)
    for _ in range(5):
        direction = torch.from_numpy(generator.normal(size=x.shape))
        difference = (energy(Geometry(x + step * direction)) - energy(Geometry(x - step * direction))) / (2 * step)
        assert torch.allclose(difference, (gradient * direction).sum((1, 2)), rtol=1e-5, atol=1e-3)
    assert torch.allclose(u, energy(Geometry(x)), rtol=1e-12)


def test_autograd_gives_the_same_gradient_for_any_weight_of_the_batch(energy):
    x = frames(4).requires_grad_(True)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    (found,) = torch.autograd.grad((weights * energy(Geometry(x))).sum(), x)
    _, gradient = energy.energy_and_gradient(Geometry(x))
    assert torch.allclose(found, weights[:, None, None] * gradient, rtol=1e-12)
    y = frames(4).float().requires_grad_(True)
    energy(Geometry(y)).sum().backward()
    assert y.grad.dtype == torch.float32 and torch.allclose(y.grad.double(), gradient, rtol=1e-3, atol=1e-1)


def test_second_derivatives_are_refused_and_never_silently_zero(energy):
    x = frames(1).requires_grad_(True)
    u = energy(Geometry(x))
    for weight in (torch.ones_like(u), torch.ones_like(u).requires_grad_(True)):
        (gradient,) = torch.autograd.grad(u, x, weight, create_graph=True)
        assert gradient.requires_grad
        with pytest.raises(UnsupportedError, match=r"only once.*TorchPotential"):
            torch.autograd.grad(gradient.square().sum() + x.sum(), x, retain_graph=True)


def test_no_gradient_is_computed_where_none_is_wanted(energy):
    x = frames(1).requires_grad_(True)
    with torch.no_grad():
        assert not energy(Geometry(x)).requires_grad
    assert not energy(Geometry(x.detach())).requires_grad


def test_batch_order_does_not_matter(energy):
    x = frames(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(energy(Geometry(x[order])), energy(Geometry(x))[order])
    assert torch.equal(energy(Geometry(x[2:3])), energy(Geometry(x))[2:3])
    assert energy(Geometry(x[:0])).shape == (0,)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_energy_does_not_depend_on_where_the_molecule_is(platform):
    energy = OpenMMEnergy(ala2()[1], 300, platform=platform, threads=1)
    x = frames(2)
    for shift in (10.0, 1e4, 1e6):
        far = x + torch.tensor([shift, -shift, 0.5 * shift], dtype=torch.float64)
        # float64 itself resolves 1e-10 Angstrom at 1e6; float32 at that distance would resolve 0.1.
        assert torch.allclose(energy(Geometry(far)), energy(Geometry(x)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_failures_are_infinite_without_gradient_and_leave_no_trace(platform):
    energy = OpenMMEnergy(ala2()[1], 300, platform=platform, threads=1)
    x = frames(5)
    before = energy(Geometry(x))
    bad = x.clone()
    bad[0, 3, 1] = torch.nan
    bad[1, 7] = bad[1, 4]
    bad[2] = 0.0
    bad[3, 5, 0] = torch.inf
    energy.n_evaluations = energy.n_failures = 0
    u, gradient = energy.energy_and_gradient(Geometry(bad))
    assert u[:4].eq(torch.inf).all() and gradient[:4].eq(0).all()
    assert u[4] == pytest.approx(before[4].item(), abs=1e-4) and gradient[4].abs().max() > 0
    assert energy.n_evaluations == 5 and energy.n_failures == 4
    bad.requires_grad_(True)
    # exp(-u) and clamps are what losses and weights make of u; neither may spread NaN.
    for loss in (torch.exp(-energy(Geometry(bad))).sum(), energy(Geometry(bad)).clamp(max=1e4).sum()):
        (found,) = torch.autograd.grad(loss, bad)
        assert found.isfinite().all() and found[:4].eq(0).all()
    assert torch.allclose(energy(Geometry(x)), before, rtol=0, atol=1e-4)


def test_an_exception_from_openmm_is_a_failure_with_a_message():
    energy = OpenMMEnergy(diatomic(openmm.PythonForce(_hooke)), 300, platform="Reference")
    assert energy(Geometry(torch.tensor([[[0.0, 0, 0], [2, 0, 0]]]))).item() == pytest.approx(0.2 / reduced_unit(300))
    assert energy.last_error is None
    assert energy(Geometry(torch.tensor([[[0.0, 0, 0], [9, 0, 0]]]))).item() == np.inf
    assert "too long" in energy.last_error and energy.n_failures == 1


def _hooke(state):
    x = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    length = np.linalg.norm(x[1] - x[0])
    if length > 0.5:
        raise ValueError("too long")
    return float(length), np.zeros((2, 3))


def test_automatic_platform_is_one_of_those_present_and_agrees():
    energy = OpenMMEnergy(ala2()[1], 300)
    present = {openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())}
    assert energy.platform_name in present
    x = Geometry(frames(3))
    assert torch.allclose(energy(x), OpenMMEnergy(ala2()[1], 300, platform="Reference")(x), rtol=1e-5, atol=1e-3)


def test_temperature_comes_from_the_integrator():
    pdb, system = ala2()
    hot = app.Simulation(pdb.topology, system, openmm.LangevinMiddleIntegrator(450, 1, 0.001))
    assert OpenMMEnergy.from_simulation(hot, platform="Reference").temperature == pytest.approx(450)
    newton = app.Simulation(pdb.topology, system, openmm.VerletIntegrator(0.001))
    with pytest.raises(IncompatibleError, match=r"VerletIntegrator.*temperature="):
        OpenMMEnergy.from_simulation(newton)
    assert OpenMMEnergy.from_simulation(newton, 310 * unit.kelvin, platform="Reference").temperature == 310


def test_parameters_of_the_simulation_s_context_are_kept():
    force = openmm.CustomBondForce("strength * r")
    force.addGlobalParameter("strength", 1.0)
    force.addBond(0, 1, [])
    topology = app.Topology()
    residue = topology.addResidue("C2", topology.addChain())
    for name in ("C1", "C2"):
        topology.addAtom(name, app.element.carbon, residue)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(topology, diatomic(force), openmm.LangevinIntegrator(300, 1, 0.001), platform)
    simulation.context.setParameter("strength", 5.0)
    energy = OpenMMEnergy.from_simulation(simulation, platform="Reference")
    x = Geometry(torch.tensor([[[0.0, 0, 0], [10, 0, 0]]]))
    assert energy(x).item() == pytest.approx(5.0 / reduced_unit(300))
    assert pickle.loads(pickle.dumps(energy))(x).item() == energy(x).item()


def test_system_is_copied():
    system = diatomic(openmm.HarmonicBondForce())
    system.getForce(0).addBond(0, 1, 0.1, 1000.0)
    energy = OpenMMEnergy(system, 300, platform="Reference")
    x = Geometry(torch.tensor([[[0.0, 0, 0], [1.5, 0, 0]]]))
    before = energy(x).item()
    system.getForce(0).setBondParameters(0, 0, 1, 0.1, 0.0)
    assert energy(x).item() == before > 0
    assert pickle.loads(pickle.dumps(energy))(x).item() == before


def test_a_spawned_worker_gives_the_same_energies(energy):
    x = Geometry(frames(3))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert torch.equal(pool.submit(energy, x).result(timeout=60), energy(x))


def test_what_does_not_fit_is_refused(energy):
    with pytest.raises(IncompatibleError, match=r"\(B, 22, 3\).*\(1, 5, 3\)"):
        energy(Geometry(torch.zeros(1, 5, 3)))
    with pytest.raises(IncompatibleError, match="cell"):
        energy(Geometry(frames(1), torch.eye(3)[None]))
    with pytest.raises(IncompatibleError, match=r"Reference.*'Abacus'"):
        OpenMMEnergy(ala2()[1], 300, platform="Abacus")
    with pytest.raises(IncompatibleError, match="positive temperature"):
        OpenMMEnergy(ala2()[1], -1)
    system = diatomic()
    system.addConstraint(0, 1, 0.1)
    with pytest.raises(UnsupportedError, match="1 constraint"):
        OpenMMEnergy(system, 300)
