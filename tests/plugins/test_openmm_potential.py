"""TorchPotential: every force against OpenMM's Reference platform, derivatives to second order, refusals by name."""

from __future__ import annotations

import copy
import functools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import dig_plugins
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.types import Geometry

openmm = pytest.importorskip("openmm")
from openmm import app  # noqa: E402

from dig_plugins.openmm.convert import to_geometry  # noqa: E402
from dig_plugins.openmm.energy import OpenMMEnergy  # noqa: E402
from dig_plugins.openmm.potential import TorchPotential  # noqa: E402

ALA2 = Path(dig_plugins.__file__).parent / "models" / "alanine-dipeptide.pdb"
N = 6


@functools.cache
def ala2() -> tuple[app.PDBFile, openmm.System]:
    pdb = app.PDBFile(str(ALA2))
    force_field = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
    return pdb, force_field.createSystem(pdb.topology, constraints=None)


@functools.cache
def potential(dtype: torch.dtype = torch.float64) -> TorchPotential:
    pdb, system = ala2()
    return TorchPotential.from_system(system, 300, dtype=dtype, check_positions=pdb.positions)


def frames(n: int, sd: float = 0.05) -> torch.Tensor:
    noise = np.random.default_rng(1).normal(0, sd, (n, 22, 3))
    return to_geometry(ala2()[0].positions).positions + torch.from_numpy(noise)


def clouds(n: int, size: float = 1.0) -> torch.Tensor:
    """(n, N, 3) Angstrom: atoms anywhere, at distances from touching to inside one another."""
    return torch.from_numpy(np.random.default_rng(3).normal(0, size, (n, N, 3)))


def system_of(*forces: openmm.Force, n: int = N) -> openmm.System:
    system = openmm.System()
    for _ in range(n):
        system.addParticle(12.0)
    for force in forces:
        system.addForce(force)
    return system


def bonds():
    force = openmm.HarmonicBondForce()
    for i, j, length, k in ((0, 1, 0.1, 2e5), (3, 1, 0.15, 1e5), (4, 5, 0.12, 0.0)):
        force.addBond(i, j, length, k)
    return force


def angles():
    force = openmm.HarmonicAngleForce()
    for i, j, k, angle in ((0, 1, 2, 1.9), (5, 3, 4, 3.1), (2, 0, 4, 0.1)):
        force.addAngle(i, j, k, angle, 400.0)
    return force


def torsions():
    force = openmm.PeriodicTorsionForce()
    # Phases other than 0 and pi tell the two senses of rotation apart.
    for atoms, n, phase, k in (
        ((0, 1, 2, 3), 1, 0.3, 5.0),
        ((0, 1, 2, 3), 3, np.pi, 8.0),
        ((5, 2, 4, 1), 2, -1.0, -3.0),
        ((3, 2, 1, 0), 6, 0.0, 1.0),
    ):
        force.addTorsion(*atoms, n, phase, k)
    return force


def nonbonded():
    force = openmm.NonbondedForce()
    for i in range(N):
        force.addParticle((-1) ** i * 0.1 * (i + 1), 0.2 + 0.03 * i, 0.1 + 0.2 * i)
    force.addException(0, 1, 0.0, 0.1, 0.0)
    force.addException(3, 1, -0.2, 0.31, 0.7)
    force.addException(2, 5, 0.4, 0.22, 0.0)
    return force


def born(solute: float = 1.0, solvent: float = 78.5, tension: float | None = None):
    force = openmm.GBSAOBCForce()
    for i in range(N):
        force.addParticle(0.3 * (-1) ** i + 0.02 * i, 0.11 + 0.02 * i, 0.72 + 0.05 * i)
    force.setSoluteDielectric(solute)
    force.setSolventDielectric(solvent)
    if tension is not None:
        force.setSurfaceAreaEnergy(tension)
    return force


FORCES = {
    "bonds": [bonds],
    "angles": [angles],
    "torsions": [torsions],
    "nonbonded": [nonbonded],
    "born": [born],
    "born, other constants": [functools.partial(born, 4.0, 20.0, 10.0)],
    "born, no surface": [functools.partial(born, tension=0.0)],
    "two of a kind": [bonds, bonds, nonbonded, nonbonded],
    "empty": [openmm.HarmonicBondForce, openmm.HarmonicAngleForce, openmm.PeriodicTorsionForce, openmm.CMMotionRemover],
    "all": [bonds, angles, torsions, nonbonded, born],
}


def assert_same(found: TorchPotential, system: openmm.System, x: torch.Tensor, tolerance: float = 1e-9):
    x = x.clone().requires_grad_(True)
    u = found(Geometry(x))
    (gradient,) = torch.autograd.grad(u.sum(), x, allow_unused=True)
    expected_u, expected_gradient = OpenMMEnergy(system, 300, platform="Reference").energy_and_gradient(Geometry(x))
    assert u.shape == (len(x),) and u.dtype == torch.float64
    for a, b in ((u.detach(), expected_u), (torch.zeros_like(x) if gradient is None else gradient, expected_gradient)):
        assert (a - b).abs().max() <= tolerance * (1 + b.abs().max())


@pytest.mark.parametrize("name", FORCES)
def test_each_force_agrees_with_the_reference_platform(name):
    system = system_of(*(make() for make in FORCES[name]))
    for size in (0.7, 2.0):
        x = clouds(20, size)
        assert_same(TorchPotential.from_system(system, 300), system, x)


def test_born_radii_when_one_atom_lies_inside_another():
    system = system_of(born())
    x = clouds(1).repeat(40, 1, 1)
    x[:, 1] = x[:, 0]
    x[:, 1, 0] += torch.linspace(0.02, 3.0, 40)
    assert_same(TorchPotential.from_system(system, 300), system, x)


def test_alanine_dipeptide_agrees_with_the_reference_platform():
    _, system = ala2()
    assert_same(potential(), system, torch.cat([frames(5), frames(5, 0.3)]), 1e-11)
    assert_same(potential(torch.float32), system, frames(5), 2e-5)


def test_one_atom_has_no_energy():
    lonely = TorchPotential.from_system(system_of(openmm.HarmonicBondForce(), n=1), 300)
    assert lonely(Geometry(torch.zeros(3, 1, 3))).eq(0).all()


def test_gradient_is_the_energy_s_central_difference():
    x = frames(3).requires_grad_(True)
    (gradient,) = torch.autograd.grad(potential()(Geometry(x)).sum(), x)
    step = 1e-4
    generator = np.random.default_rng(2)
    for _ in range(5):
        direction = torch.from_numpy(generator.normal(size=x.shape))
        up, down = (potential()(Geometry(x.detach() + sign * step * direction)) for sign in (1, -1))
        assert torch.allclose((up - down) / (2 * step), (gradient * direction).sum((1, 2)), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", ["bonds", "angles", "torsions", "nonbonded", "born", "all"])
def test_second_derivatives(name):
    module = TorchPotential.from_system(system_of(*(make() for make in FORCES[name])), 300)
    x = clouds(1, 2.0).requires_grad_(True)
    assert torch.autograd.gradgradcheck(lambda y: module(Geometry(y)), x, eps=1e-6, rtol=1e-4, atol=1e-5)


def test_hessian_products_are_differences_of_openmm_s_forces():
    reference = OpenMMEnergy(ala2()[1], 300, platform="Reference")
    x = frames(2).requires_grad_(True)
    (gradient,) = torch.autograd.grad(potential()(Geometry(x)).sum(), x, create_graph=True)
    direction = torch.from_numpy(np.random.default_rng(4).normal(size=x.shape))
    (product,) = torch.autograd.grad((gradient * direction).sum(), x)
    step = 1e-5
    up, down = (reference.energy_and_gradient(Geometry(x.detach() + s * step * direction))[1] for s in (1, -1))
    assert torch.allclose(product, (up - down) / (2 * step), rtol=1e-5, atol=1e-2)


def test_atoms_in_line_have_finite_derivatives():
    """Angles of 0 and pi, and torsions that are not defined."""
    module = TorchPotential.from_system(system_of(angles(), torsions()), 300)
    x = torch.zeros(1, N, 3, dtype=torch.float64)
    x[0, :, 0] = torch.tensor([0.0, 1, 2, 3, 4, 5])
    x.requires_grad_(True)
    u = module(Geometry(x))
    (gradient,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert u.isfinite().all() and gradient.isfinite().all() and second.isfinite().all()


def test_batch_order_does_not_matter():
    x = frames(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.allclose(potential()(Geometry(x[order])), potential()(Geometry(x))[order], rtol=1e-13)
    assert torch.allclose(potential()(Geometry(x[2:3])), potential()(Geometry(x))[2:3], rtol=1e-13)
    assert potential()(Geometry(x[:0])).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_energy_does_not_depend_on_where_the_molecule_is(dtype):
    x = frames(2)
    for shift in (10.0, 1e4, 1e6):
        far = x + torch.tensor([shift, -shift, 0.5 * shift], dtype=torch.float64)
        found = potential(dtype)(Geometry(far))
        assert torch.allclose(
            found, potential(dtype)(Geometry(x)), rtol=0, atol=1e-4 if dtype == torch.float64 else 1e-2
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_failures_are_infinite_without_gradient_and_leave_others_alone(dtype):
    x = frames(5)
    bad = x.clone()
    bad[0, 3, 1] = torch.nan
    bad[1, 7] = bad[1, 4]
    bad[2] = 0.0
    bad[3, 5, 0] = torch.inf
    bad.requires_grad_(True)
    u = potential(dtype)(Geometry(bad))
    assert u[:4].eq(torch.inf).all()
    assert u[4].item() == pytest.approx(potential(dtype)(Geometry(x[4:])).item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(u.clamp(max=1e6).sum(), bad, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), bad)
    for derivative in (gradient, second):
        assert derivative.isfinite().all() and derivative[:4].eq(0).all() and derivative[4].abs().max() > 0


def test_parameters_are_buffers_and_copies_work():
    module = potential()
    assert not list(module.parameters()) and len(list(module.buffers())) > 10
    x = Geometry(frames(2))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x))


def with_cutoff():
    force = nonbonded()
    force.setNonbondedMethod(openmm.NonbondedForce.CutoffNonPeriodic)
    return force


def born_with_cutoff():
    force = born()
    force.setNonbondedMethod(openmm.GBSAOBCForce.CutoffNonPeriodic)
    return force


def with_offsets():
    force = nonbonded()
    force.addGlobalParameter("scale", 1.0)
    force.addParticleParameterOffset("scale", 0, 0.1, 0.0, 0.0)
    return force


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: openmm.CustomBondForce("r"), "CustomBondForce"),
        (openmm.CMAPTorsionForce, "CMAPTorsionForce"),
        (openmm.RBTorsionForce, "RBTorsionForce"),
        (with_cutoff, "NonbondedForce with a cutoff"),
        (born_with_cutoff, "GBSAOBCForce with a cutoff"),
        (with_offsets, "NonbondedForce with parameter offsets"),
    ],
)
def test_each_refusal_names_the_force_and_the_alternative(make, named):
    with pytest.raises(UnsupportedError, match=rf"{named}.*OpenMMEnergy"):
        TorchPotential.from_system(system_of(bonds(), make()), 300)


def test_all_refused_forces_are_listed():
    system = system_of(openmm.RBTorsionForce(), bonds(), openmm.CMAPTorsionForce(), with_cutoff())
    with pytest.raises(UnsupportedError, match=r"RBTorsionForce; CMAPTorsionForce; NonbondedForce with a cutoff"):
        TorchPotential.from_system(system, 300)


def test_the_check_finds_a_wrong_parameter(monkeypatch):
    """The comparison with OpenMM at construction is what stands between a misread System and wrong weights."""
    from dig_plugins.openmm import potential as module

    right = module._READERS["HarmonicBondForce"]

    def wrong(force, n):
        term = right(force, n)
        term.length += 1e-4
        return term

    monkeypatch.setitem(module._READERS, "HarmonicBondForce", wrong)
    pdb, system = ala2()
    for positions in (None, pdb.positions):
        with pytest.raises(UnsupportedError, match="differ from OpenMM's"):
            TorchPotential.from_system(system, 300, check_positions=positions)


def test_what_does_not_fit_is_refused():
    with pytest.raises(IncompatibleError, match=r"\(B, 22, 3\).*\(1, 5, 3\)"):
        potential()(Geometry(torch.zeros(1, 5, 3)))
    with pytest.raises(IncompatibleError, match="cell"):
        potential()(Geometry(frames(1), torch.eye(3)[None]))
    with pytest.raises(IncompatibleError, match="float64 or float32"):
        TorchPotential.from_system(ala2()[1], 300, dtype=torch.float16)
    system = system_of(bonds())
    system.addConstraint(0, 1, 0.1)
    with pytest.raises(UnsupportedError, match="1 constraint"):
        TorchPotential.from_system(system, 300)
