"""Constrained bonds, lifted and projected: the volume factors, the mass term, the gradient, and what is refused."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import dig_plugins
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.types import Geometry

openmm = pytest.importorskip("openmm")
from openmm import app, unit  # noqa: E402

from dig_plugins.openmm.constraints import BOND_STIFFNESS, BondLift, LiftedEnergy, without_constraints  # noqa: E402
from dig_plugins.openmm.convert import reduced_unit, thermal_widths, to_geometry  # noqa: E402
from dig_plugins.openmm.energy import OpenMMEnergy  # noqa: E402
from dig_plugins.openmm.potential import TorchPotential  # noqa: E402

ALA2 = Path(dig_plugins.__file__).parent / "models" / "alanine-dipeptide.pdb"
KT = reduced_unit(300)
REST, STIFF = 1.7, 20.0  # rad, kJ/mol/rad^2


def triatomic(masses=(12.0, 12.0, 12.0)) -> openmm.System:
    """Two constrained bonds and an angle: the smallest molecule whose mass term matters."""
    system = openmm.System()
    for mass in masses:
        system.addParticle(mass)
    system.addConstraint(0, 1, 0.12)
    system.addConstraint(1, 2, 0.13)
    force = openmm.HarmonicAngleForce()
    force.addAngle(0, 1, 2, REST, STIFF)
    system.addForce(force)
    return system


def triangles(r1, r2, theta) -> torch.Tensor:
    """(B, 3, 3) Angstrom from two bonds and the angle."""
    zero = np.zeros_like(theta)
    ends = np.stack([r1, zero, zero], 1), np.stack([r2 * np.cos(theta), r2 * np.sin(theta), zero], 1)
    return torch.from_numpy(np.stack([ends[0], np.zeros_like(ends[0]), ends[1]], 1))


def angle_law(theta: np.ndarray, *, mass_term: bool = True) -> np.ndarray:
    """Density of the angle under constrained dynamics: Z is 2/m on the diagonal and cos(theta)/m beside it."""
    det = 1 - np.cos(theta) ** 2 / 4 if mass_term else 1.0
    return np.sin(theta) * np.sqrt(det) * np.exp(-0.5 * STIFF * (theta - REST) ** 2 / KT)


def spread(theta: np.ndarray, density: np.ndarray) -> float:
    density = density / density.sum()
    return math.sqrt((density * (theta - (density * theta).sum()) ** 2).sum())


@functools.cache
def dipeptide(constraints=app.HBonds) -> tuple[app.Topology, openmm.System, torch.Tensor]:
    pdb = app.PDBFile(str(ALA2))
    system = app.ForceField("amber99sbildn.xml", "amber99_obc.xml").createSystem(pdb.topology, constraints=constraints)
    return pdb.topology, system, to_geometry(pdb.positions).positions


def test_the_figures_of_the_mass_term():
    theta = np.linspace(0, np.pi, 20_001)
    assert spread(theta, angle_law(theta)) == pytest.approx(0.3263, abs=1e-4)
    assert spread(theta, angle_law(theta, mass_term=False)) == pytest.approx(0.3300, abs=1e-4)


@pytest.mark.parametrize("mass_term", [True, False])
@pytest.mark.parametrize("stiffness", [284_512.0, 5_000.0])
def test_the_lifted_density_leaves_the_constrained_law_of_the_angle(mass_term, stiffness):
    """exp(-u_ext) r1^2 r2^2 sin(theta), summed over both lengths, is the constrained law whatever kappa."""
    energy = LiftedEnergy.from_system(triatomic(), 300, stiffness=stiffness, mass_term=mass_term, platform="Reference")
    theta, s = np.linspace(0.02, np.pi - 0.02, 30), float(energy.lift.widths[0])
    offsets = np.linspace(-6 * s, 6 * s, 21)
    t, o1, o2 = (x.ravel() for x in np.meshgrid(theta, offsets, offsets, indexing="ij"))
    r1, r2 = 1.2 + o1, 1.3 + o2
    u = energy(Geometry(triangles(r1, r2, t))).numpy()
    found = (np.where(np.minimum(r1, r2) > 0, r1**2 * r2**2, 0) * np.sin(t) * np.exp(-u)).reshape(30, -1).sum(1)
    wanted = angle_law(theta, mass_term=mass_term)
    assert np.allclose(found / found.sum(), wanted / wanted.sum(), rtol=1e-9)


def test_unequal_masses_and_three_bonds_of_one_parent():
    """ln det Z against the matrix written out from the constraints' gradients."""
    masses = [1.0, 2.0, 12.0, 4.0, 16.0]
    system = openmm.System()
    for mass in masses:
        system.addParticle(mass)
    for atom in (0, 1, 3):
        system.addConstraint(atom, 2, 0.1)
    system.addConstraint(2, 4, 0.14)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 5, 3)))
    found = BondLift.from_system(system, 300).log_det(x)
    wanted = []
    for frame in x:
        rows = []
        for i, j in ((0, 2), (1, 2), (3, 2), (4, 2)):
            p = frame.clone().requires_grad_()
            (slope,) = torch.autograd.grad((p[i] - p[j]).norm(), p)
            rows.append((slope / torch.tensor(masses).double().sqrt()[:, None]).flatten())
        rows = torch.stack(rows)
        wanted.append(torch.logdet(rows @ rows.T))
    gap = found - torch.stack(wanted)
    assert torch.allclose(gap, gap[:1].expand_as(gap), atol=1e-12)


def test_lengths_are_drawn_from_their_law():
    """Mean and variance of r^2 exp(-(r - d)^2 / 2 s^2), with a width large enough for the volume to show."""
    lift = BondLift.from_system(triatomic(), 300, stiffness={(1, 0): 2_000.0, "C": 400.0})
    assert lift.atoms.tolist() == [0, 2] and lift.parents.tolist() == [1, 1]
    x = triangles(np.full(40_000, 1.0), np.full(40_000, 2.0), np.full(40_000, 1.0))
    drawn = lift.lift(x, np.random.default_rng(1))
    r = (drawn[:, [0, 2]] - drawn[:, [1, 1]]).norm(dim=-1).numpy()
    for column, (d, kappa) in enumerate(((1.2, 2_000.0), (1.3, 400.0))):
        s = 10 * math.sqrt(KT / kappa)
        assert float(lift.widths[column]) == pytest.approx(s)
        axis = np.linspace(1e-6, d + 10 * s, 100_001)
        density = axis**2 * np.exp(-0.5 * ((axis - d) / s) ** 2)
        for power in (1, 2, 3):
            wanted = (density * axis**power).sum() / density.sum()
            assert abs((r[:, column] ** power).mean() - wanted) < 4 * (r[:, column] ** power).std() / 200
    assert abs(np.corrcoef(r.T)[0, 1]) < 4 / 200
    assert torch.allclose(lift.project(drawn), lift.project(x), atol=1e-12)
    again = lift.lift(x, np.random.default_rng(1))
    assert torch.equal(again, drawn)


def test_projection_restores_the_constraints_and_nothing_else():
    topology, system, x = dipeptide()
    lift = BondLift.from_system(system, 300, topology=topology)
    assert len(lift) == 12
    moved = lift.lift(x.expand(5, -1, -1), np.random.default_rng(0))
    back = lift.project(moved)
    others = [a for a in range(22) if a not in lift.atoms.tolist()]
    assert torch.equal(back[:, others], x.expand(5, -1, -1)[:, others]) and torch.equal(moved[:, others], back[:, others])
    assert torch.allclose((back[:, lift.atoms] - back[:, lift.parents]).norm(dim=-1), lift.lengths.expand(5, -1), atol=1e-12)
    assert torch.allclose(lift.project(back), back, atol=1e-12)


def test_stiffness_is_the_force_field_s_own():
    """The default is the stiffness that the same force field gives the bonds when they are flexible."""
    topology, system, _ = dipeptide()
    flexible = thermal_widths(dipeptide(None)[1], 300)
    lift = BondLift.from_system(system, 300, topology=topology)
    for atom, parent, length, width in zip(lift.atoms.tolist(), lift.parents.tolist(), lift.lengths, lift.widths, strict=True):
        wanted = flexible.get((atom, parent)) or flexible[(parent, atom)]
        assert (float(length), float(width)) == pytest.approx(wanted, rel=1e-6)
    assert float(BondLift.from_system(system, 300).widths[0]) == pytest.approx(10 * math.sqrt(KT / BOND_STIFFNESS["C"]))


@pytest.mark.parametrize("kind", ["context", "torch"])
def test_gradient_is_that_of_the_lifted_energy(kind):
    topology, system, x = dipeptide()
    free = without_constraints(system)
    assert free.getNumConstraints() == 0 and system.getNumConstraints() == 12
    inner = OpenMMEnergy(free, 300, platform="Reference") if kind == "context" else TorchPotential.from_system(free, 300)
    energy = LiftedEnergy(inner, BondLift.from_system(system, 300, topology=topology))
    x = x + torch.from_numpy(np.random.default_rng(3).normal(0, 0.05, (1, 22, 3)))
    u, gradient = energy.energy_and_gradient(Geometry(x))
    assert u.dtype == gradient.dtype == torch.float64
    step = 1e-4
    shifts = torch.eye(66, dtype=torch.float64).reshape(66, 22, 3) * step
    with torch.no_grad():
        numeric = (energy(Geometry(x + shifts)) - energy(Geometry(x - shifts))) / (2 * step)
    assert torch.allclose(numeric, gradient.flatten(), rtol=1e-5, atol=1e-4)
    assert torch.allclose(energy(Geometry(x)), u)


def test_lifted_energy_confines_what_the_system_does_not():
    topology, system, x = dipeptide()
    energy = LiftedEnergy.from_system(system, 300, topology=topology, platform="Reference")
    lift = energy.lift
    stretched = lift.project(x)
    base = energy(Geometry(stretched))
    axis = stretched[:, lift.atoms[:1]] - stretched[:, lift.parents[:1]]
    stretched = stretched.index_add(1, lift.atoms[:1], 0.05 * axis)
    wanted = 0.5 * (0.05 * lift.lengths[0] / lift.widths[0]) ** 2
    assert float(energy(Geometry(stretched)) - base) == pytest.approx(float(wanted), rel=1e-6)
    assert energy.temperature == 300 and energy.platform_name == "Reference"


def test_failed_energies_are_infinite_without_gradient():
    topology, system, x = dipeptide()
    energy = LiftedEnergy.from_system(system, 300, topology=topology, platform="Reference")
    x = x.repeat(4, 1, 1)
    x[1, 8], x[2, 3], x[3, 0] = x[1, 1], math.nan, x[3, 1]  # two heavy atoms, a NaN, an end atom on its parent
    u, gradient = energy.energy_and_gradient(Geometry(x))
    assert u.isfinite().tolist() == [True, False, False, False] and (u[1:] == math.inf).all()
    assert gradient[0].abs().max() > 0 and (gradient[1:] == 0).all()
    with pytest.raises(IncompatibleError, match=r"\(B, 22, 3\)"):
        energy(Geometry(x[:, :5]))


@pytest.mark.parametrize(("constraints", "named"), [(app.AllBonds, "7 constraint"), (app.HAngles, "constraint")])
def test_other_constraints_are_refused(constraints, named):
    topology, system, _ = dipeptide(constraints)
    with pytest.raises(UnsupportedError) as refusal:
        BondLift.from_system(system, 300, topology=topology)
    for part in (named, "AllBonds", "HAngles", "constraints=HBonds", "ACE1"):
        assert part in str(refusal.value), part


def test_rigid_water_is_refused_where_it_moves_and_left_alone_where_it_stays():
    system = openmm.System()
    for mass in (16.0, 1.0, 1.0, 12.0, 1.0):
        system.addParticle(mass)
    for i, j, length in ((0, 1, 0.0957), (0, 2, 0.0957), (1, 2, 0.151), (3, 4, 0.109)):
        system.addConstraint(i, j, length)
    with pytest.raises(UnsupportedError, match=r"3 constraint.*atom 0 and atom 1.*rigid water.*rigidWater=False"):
        BondLift.from_system(system, 300)
    lift = BondLift.from_system(system, 300, atoms=[3, 4])
    assert lift.n_atoms == 2 and lift.atoms.tolist() == [1] and lift.parents.tolist() == [0]
    with pytest.raises(UnsupportedError, match="whole molecules"):
        BondLift.from_system(system, 300, atoms=[4])


def test_stiffness_must_be_positive():
    with pytest.raises(IncompatibleError, match="positive stiffness.*atoms 1 and 0.*-3"):
        BondLift.from_system(triatomic(), 300, stiffness={(0, 1): -3})


@pytest.mark.slow
def test_constrained_dynamics_samples_the_law_with_the_mass_term():
    """OpenMM's constrained Langevin dynamics has the angle's spread with det Z, and not the one without."""
    integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 20 / unit.picosecond, 4 * unit.femtosecond)
    integrator.setRandomNumberSeed(5)
    context = openmm.Context(triatomic(), integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(np.array([[0.12, 0, 0], [0, 0, 0], [0, 0.13, 0]]))
    context.setVelocitiesToTemperature(300, 5)
    angles = np.empty(600_000)
    for i in range(len(angles)):
        integrator.step(20)
        x = context.getState(positions=True).getPositions(asNumpy=True)._value
        a, b = x[0] - x[1], x[2] - x[1]
        angles[i] = math.acos(a @ b / math.sqrt((a @ a) * (b @ b)))
    blocks = angles.reshape(40, -1)
    axis = np.linspace(0, np.pi, 20_001)
    z = {}
    for mass_term in (True, False):
        density = angle_law(axis, mass_term=mass_term)
        centre = (density * axis).sum() / density.sum()
        squares = ((blocks - centre) ** 2).mean(1)
        wanted = spread(axis, density) ** 2
        z[mass_term] = (squares.mean() - wanted) / (squares.std(ddof=1) / math.sqrt(40))
    assert abs(z[True]) < 3 and abs(z[False]) > 6, z
