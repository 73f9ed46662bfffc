"""A molecule among others: whole across the box's faces, its energy that of the System, and exact averages in a bath."""

from __future__ import annotations

import functools
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import dig_plugins
from dig_core.coordinates import Internal
from dig_core.coordinates.measure import dihedral
from dig_core.dig import Card, DiG
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.types import Geometry

openmm = pytest.importorskip("openmm")
from openmm import app  # noqa: E402

from dig_plugins.openmm.convert import describe, reduced_unit, to_geometry  # noqa: E402
from dig_plugins.openmm.montecarlo import DiGMonteCarlo  # noqa: E402
from dig_plugins.openmm.subset import (  # noqa: E402
    EnvironmentPool,
    SubsetEnergy,
    check_environment,
    check_subset,
    subtopology,
    unwrap,
)
from tests.plugins.known import simulation_of, untrained  # noqa: E402

ALA2 = Path(dig_plugins.__file__).parent / "models" / "alanine-dipeptide.pdb"
KT = reduced_unit(300)
BOX = 1.4  # nm
ATOMS = [2, 3, 4, 5]  # the molecule; two bath atoms stand before it, one behind
BONDS = ((0.20, 15_000.0), (0.21, 20_000.0), (0.19, 12_000.0))  # nm, kJ/mol/nm^2
ANGLES = ((2.0, 70.0), (1.9, 80.0))  # rad, kJ/mol/rad^2
TWIST = (1, 0.0, 2.0)  # periodicity, phase, kJ/mol: the open form is the favoured one


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """Noise made in small portions: the same numbers, sooner for small molecules."""
    monkeypatch.setattr("dig_core.random._BLOCK", 256)


@functools.cache
def bath() -> tuple[app.Topology, openmm.System, np.ndarray]:
    """Atoms A-B-C-D among three others that bind to both ends, in a periodic box; A-D do not see each other."""
    topology, system = app.Topology(), openmm.System()
    system.setDefaultPeriodicBoxVectors(*(BOX * np.eye(3)))
    chain = topology.addChain()
    stretch, bend, turn = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    pairs = openmm.NonbondedForce()
    pairs.setNonbondedMethod(pairs.CutoffPeriodic)
    pairs.setCutoffDistance(0.7)
    pairs.setUseDispersionCorrection(False)
    for index in range(7):
        inside = index in ATOMS
        if not inside or index == ATOMS[0]:
            residue = topology.addResidue("MOL" if inside else "BATH", chain)
        symbol = "CONF"[ATOMS.index(index)] if inside else "Ar"
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
        system.addParticle(14.0 if inside else 0.5)
        # Combined: 6 kJ/mol between an end and the bath, 0.24 between a middle atom and the bath, 0.3 within the bath.
        pairs.addParticle(0.0, 0.22, (120.0 if index in (2, 5) else 0.2) if inside else 0.3)
    atoms = list(topology.atoms())
    for i, (length, k) in enumerate(BONDS):
        topology.addBond(atoms[2 + i], atoms[3 + i])
        stretch.addBond(2 + i, 3 + i, length, k)
    for i, (theta, k) in enumerate(ANGLES):
        bend.addAngle(2 + i, 3 + i, 4 + i, theta, k)
    turn.addTorsion(*ATOMS, *TWIST)
    for i in ATOMS:
        for j in range(i + 1, 6):
            pairs.addException(i, j, 0, 0.3, 0)
    for force in (stretch, bend, turn, pairs):
        system.addForce(force)
    x = np.array([[0.2, 0.2, 0.2], [1.2, 0.3, 1.2], [-0.08, 0.18, 0], [0, 0, 0], [0.21, 0, 0], [0.28, 0.1, 0.15], [0.3, 1.2, 0.4]])
    x[2:6] += [0.6, 0.7, 0.7]
    return topology, system, x


def model(positions: np.ndarray, temperature: float | None = 300.0) -> DiG:
    """An untrained model of the molecule: a little too wide, its torsion uniform."""
    topology, system, _ = bath()
    descriptor = describe(subtopology(topology, ATOMS), None, positions)
    standards = {(i, i + 1): (10 * length, 13 * math.sqrt(KT / k)) for i, (length, k) in enumerate(BONDS)}
    standards |= {(i, i + 1, i + 2): (theta, 1.3 * math.sqrt(KT / k)) for i, (theta, k) in enumerate(ANGLES)}
    coordinates = Internal.from_reference(descriptor, standards)
    return DiG(untrained(coordinates), coordinates, descriptor, Card(name="untrained", temperature=temperature, steps=6))


def energy_of(system: openmm.System) -> SubsetEnergy:
    return SubsetEnergy(system, 300, ATOMS, [(0, 1), (1, 2), (2, 3)])


# Direct sampling: the molecule's coordinates are independent without the bath, which is uniform without the molecule ------


def drawn(rng: np.random.Generator, n: int, density, low: float, high: float) -> np.ndarray:
    axis = np.linspace(low, high, 20_001)
    cumulative = np.cumsum(density(axis))
    return np.interp(rng.random(n), cumulative / cumulative[-1], axis)


def mixed_energy(x: np.ndarray) -> np.ndarray:
    """u (n,) of what OpenMM's NonbondedForce computes for (n, 7, 3) nm, written out."""
    total = np.zeros(len(x))
    for i, j, epsilon in [(i, j, 6.0 if i in (2, 5) else math.sqrt(0.06)) for i in ATOMS for j in (0, 1, 6)] + [
        (i, j, 0.3) for i, j in ((0, 1), (0, 6), (1, 6))
    ]:
        gap = x[:, i] - x[:, j]
        gap -= BOX * np.round(gap / BOX)
        r2 = (gap**2).sum(1)
        s6 = (0.22**2 / r2) ** 3
        total += np.where(r2 < 0.49, 4 * epsilon * (s6 * s6 - s6), 0) / KT
    return total


def direct(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (n, 7, 3) nm, torsion (n,) and log weight (n,): -u of what acts between molecule and bath, and in the bath."""
    bonds = [drawn(rng, n, lambda b, r=r, k=k: b**2 * np.exp(-0.5 * k * (b - r) ** 2 / KT), 0.7 * r, 1.3 * r) for r, k in BONDS]
    angles = [drawn(rng, n, lambda a, r=r, k=k: np.sin(a) * np.exp(-0.5 * k * (a - r) ** 2 / KT), 0, np.pi) for r, k in ANGLES]
    m, phase, k = TWIST
    phi = drawn(rng, n, lambda p: np.exp(-k * (1 + np.cos(m * p - phase)) / KT), -np.pi, np.pi)
    x, zero = np.empty((n, 7, 3)), np.zeros(n)
    x[:, 3], x[:, 4] = 0.0, np.stack([bonds[1], zero, zero], 1)
    x[:, 2] = np.stack([bonds[0] * np.cos(angles[0]), bonds[0] * np.sin(angles[0]), zero], 1)
    side = bonds[2] * np.sin(angles[1])
    x[:, 5] = x[:, 4] + np.stack([-bonds[2] * np.cos(angles[1]), side * np.cos(phi), side * np.sin(phi)], 1)
    x[:, [0, 1, 6]] = BOX * rng.random((n, 3, 3))
    return x, phi, -mixed_energy(x)


OBSERVABLES = {"cos": np.cos, "cos 2": lambda p: np.cos(2 * p), "sin": np.sin, "closed": lambda p: (np.abs(p) < 1.0) * 1.0}

# Mean, its error, and the mean without the bath, of wanted(800).
DIRECT = {
    "cos": (-0.33452, 0.00051, -0.37183),
    "cos 2": (0.05433, 0.00045, 0.07268),
    "sin": (0.0003, 0.00045, -0.00018),
    "closed": (0.15461, 0.00033, 0.13977),
}


@functools.cache
def wanted(batches: int = 30, size: int = 100_000) -> dict[str, tuple[float, float, float]]:
    """Averages with the bath, their errors, and averages without it."""
    sums = []
    for batch in range(batches):
        _, phi, log_weight = direct(size, np.random.default_rng(batch))
        weight = np.exp(log_weight)
        values = [f(phi) for f in OBSERVABLES.values()]
        sums.append([weight.sum(), *((weight * v).sum() for v in values), *(v.mean() for v in values)])
    sums = np.array(sums)
    means, count = sums.sum(0), len(OBSERVABLES)
    found = {}
    for k, name in enumerate(OBSERVABLES, start=1):
        mean = means[k] / means[0]
        error = math.sqrt(((sums[:, k] - mean * sums[:, 0]) ** 2).sum()) / means[0]
        found[name] = (mean, error, means[k + count] / batches)
    return found


def test_the_written_out_energy_is_openmm_s():
    topology, system, _ = bath()
    x = direct(50, np.random.default_rng(1))[0]
    alone = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    for number in (2, 1, 0):
        alone.removeForce(number)
    context = openmm.Context(alone, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    for frame, u in zip(x, mixed_energy(x), strict=True):
        context.setPositions(frame)
        assert context.getState(energy=True).getPotentialEnergy()._value / KT == pytest.approx(u, rel=1e-8, abs=1e-8)


# The parts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [1.4 * np.eye(3), np.array([[1.4, 0, 0], [0.5, 1.3, 0], [-0.4, 0.5, 1.2]])], ids=["cube", "triclinic"])
def test_a_molecule_cut_by_the_faces_is_made_whole(box):
    rng = np.random.default_rng(2)
    whole = bath()[2][ATOMS]
    cut = whole + rng.integers(-2, 3, (4, 3)) @ box
    bonds = [(2, 3), (1, 0), (1, 2)]
    found = unwrap(cut, bonds, box)
    assert np.allclose(found - found[0], whole - whole[0], atol=1e-12) and np.array_equal(found[0], cut[0])
    assert unwrap(cut, bonds, None) is cut
    with pytest.raises(IncompatibleError, match="4 atoms of which 2 are bonded"):
        unwrap(cut, [(0, 1), (2, 3)], box)


def test_energy_differences_are_those_of_the_whole_system():
    topology, system, x = bath()
    simulation, energy = simulation_of(topology, system, x), energy_of(system)
    x = x.copy()
    x[3] += [BOX, 0, -BOX]  # the molecule cut in two
    simulation.context.setPositions(x)
    inside = energy.observe(simulation.context)
    others = inside + np.random.default_rng(0).normal(0, 0.01, (5, 4, 3)) + 0.3  # the centroid is put back
    found = energy(to_geometry(np.concatenate([inside[None], others]))).numpy()
    for u, frame in zip(found, [inside, *others], strict=True):
        whole = bath()[2].copy()
        whole[ATOMS] = frame - frame.mean(0) + inside.mean(0)
        simulation.context.setPositions(whole)
        assert u == pytest.approx(simulation.context.getState(energy=True).getPotentialEnergy()._value / KT, rel=1e-6)
    assert energy.n_evaluations == 6 and energy.platform_name in ("Reference", "CPU")


def test_gradient_is_that_at_a_fixed_centroid():
    topology, system, x = bath()
    energy = SubsetEnergy(system, 300, ATOMS, [(0, 1), (1, 2), (2, 3)], platform="Reference")
    energy.observe(simulation_of(topology, system, x).context)
    inside = to_geometry(x[ATOMS]).positions
    u, gradient = energy.energy_and_gradient(Geometry(inside))
    shifts = torch.eye(12, dtype=torch.float64).reshape(12, 4, 3) * 1e-4
    numeric = (energy(Geometry(inside + shifts)) - energy(Geometry(inside - shifts))) / 2e-4
    assert torch.allclose(numeric, gradient.flatten(), rtol=1e-5, atol=1e-5)
    assert torch.allclose(gradient.sum(1), torch.zeros(1, 3, dtype=torch.float64), atol=1e-9)


def test_environment_has_to_be_seen_and_is_followed():
    topology, system, x = bath()
    system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    system.addForce(openmm.MonteCarloBarostat(1, 300))
    extra = openmm.CustomExternalForce("strength*x")
    extra.addGlobalParameter("strength", 0.0)
    extra.addParticle(2, [])
    system.addForce(extra)
    energy = energy_of(system)
    with pytest.raises(IncompatibleError, match="observe"):
        energy(to_geometry(x[ATOMS]))
    simulation = simulation_of(topology, system, x)
    values = []
    for shift, strength in ((0.0, 0.0), (0.01, 0.0), (0.01, 5.0)):
        moved = x.copy()
        moved[0] = x[2] + [0.3 + shift, 0, 0]
        simulation.context.setPositions(moved)
        simulation.context.setParameter("strength", strength)
        values.append(float(energy(to_geometry(energy.observe(simulation.context)))))
        assert values[-1] == pytest.approx(simulation.context.getState(energy=True).getPotentialEnergy()._value / KT, rel=1e-6)
    assert len(set(values)) == 3
    copied = pickle.loads(pickle.dumps(energy))
    assert float(copied(to_geometry(moved[ATOMS]))) == pytest.approx(values[-1])


def test_the_box_is_followed():
    topology, system, x = bath()
    energy, simulation = energy_of(system), simulation_of(topology, system, x)
    for box in (BOX, BOX * 1.01):
        simulation.context.setPeriodicBoxVectors(*(box * np.eye(3)))
        moved = x.copy()
        moved[0] = x[2] + [0.3 - box, 0, 0]
        simulation.context.setPositions(moved)
        u = float(energy(to_geometry(energy.observe(simulation.context))))
        assert u == pytest.approx(simulation.context.getState(energy=True).getPotentialEnergy()._value / KT, rel=1e-6)


def test_energies_are_of_the_moment_they_are_taken_at():
    topology, system, x = bath()
    energy, simulation = energy_of(system), simulation_of(topology, system, x)
    pool = EnvironmentPool(model(x[ATOMS]).proposal(), energy, seed=1, batch=8)
    energy.observe(simulation.context)
    first = pool.take(3)
    moved = x.copy()
    moved[0] = x[2] + [0, 0.25, 0]
    simulation.context.setPositions(moved)
    energy.observe(simulation.context)
    second = pool.take(3)
    for taken in (first, second):
        fine = taken.reason == 0
        assert fine.any() and np.isfinite(taken.u[fine]).all()
    again = energy(Geometry(torch.from_numpy(first.positions))).numpy()
    assert not np.isclose(again, first.u).any()
    assert np.allclose(energy(Geometry(torch.from_numpy(second.positions))).numpy(), second.u)


def test_subtopology_keeps_names_order_and_bonds():
    topology = bath()[0]
    found = subtopology(topology, [5, 3, 4, 2])
    assert [a.name for a in found.atoms()] == ["F", "O", "N", "C"]
    assert {frozenset(a.index for a in b) for b in found.bonds()} == {frozenset(p) for p in ((3, 1), (1, 2), (2, 0))}
    assert [r.name for r in found.residues()] == ["MOL"]


@pytest.mark.parametrize(
    ("atoms", "named"),
    [([], "distinct"), ([2, 2, 3, 4, 5], "distinct"), ([2, 99], "distinct"), ([2, 3, 4], "whole molecules")],
    ids=str,
)
def test_atoms_must_be_whole_molecules(atoms, named):
    with pytest.raises(IncompatibleError, match=named):
        check_subset(bath()[1], bath()[0], atoms)


def test_sites_among_the_atoms_are_refused():
    topology, system, _ = bath()
    system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    system.setParticleMass(3, 0)
    with pytest.raises(UnsupportedError, match=r"1 virtual site.*atom 3 .O in MOL3"):
        check_subset(system, topology, ATOMS)
    check_subset(system, topology, [0])


def test_a_solvent_is_refused_with_what_to_do_instead():
    force_field, pdb = app.ForceField("amber99sbildn.xml", "tip3p.xml"), app.PDBFile(str(ALA2))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addSolvent(force_field, numAdded=30)
    with pytest.raises(UnsupportedError) as refusal:
        check_environment(modeller.topology, range(22), None)
    for part in ("30 water molecule", "28 kT", "replica exchange", "decoupled", "implicit", "allow_explicit_solvent=True"):
        assert part in str(refusal.value), part
    check_environment(bath()[0], ATOMS, BOX * np.eye(3))
    with pytest.raises(UnsupportedError, match="24 atoms a nm"):
        check_environment(bath()[0], ATOMS, 0.5 * np.eye(3))


# The chain ---------------------------------------------------------------------------------------------------------------


def chain_of(positions: np.ndarray | None = None, **options) -> DiGMonteCarlo:
    topology, system, x = bath()
    given = {"seed": 4, "atoms": ATOMS, "md_steps": 250, "proposals": 12, "batch": 512}
    simulation = simulation_of(topology, system, x if positions is None else positions)
    return DiGMonteCarlo(simulation, model(x[ATOMS]), **{**given, **options})


def whole_positions(simulation: app.Simulation) -> np.ndarray:
    return simulation.context.getState(positions=True).getPositions(asNumpy=True)._value


def test_a_move_leaves_the_environment_and_the_centroid_alone():
    chain = chain_of(md_steps=0)
    before, moved = whole_positions(chain.simulation).copy(), 0
    for _ in range(20):
        block = chain.step()
        after = whole_positions(chain.simulation)
        assert block.positions.shape == (12, 4, 3) and block.md_positions.shape == (4, 3)
        assert np.array_equal(after[[0, 1, 6]], before[[0, 1, 6]])
        assert np.allclose(after[ATOMS].mean(0), before[ATOMS].mean(0), atol=1e-9)
        assert np.allclose(after[ATOMS], block.positions[-1], atol=1e-9)
        moved += block.records.accepted.any()
    assert moved > 3


def test_a_molecule_cut_by_the_box_is_moved_as_a_whole():
    x = bath()[2].copy()
    x[3] -= [BOX, 0, 0]
    blocks = [chain.step(3) for chain in (chain_of(x, md_steps=0), chain_of(md_steps=0))]
    assert np.allclose(blocks[0].positions, blocks[1].positions, atol=1e-9)
    assert np.allclose(blocks[0].records.u, blocks[1].records.u) and np.ptp(blocks[0].md_positions, axis=0).max() < 0.7


def test_the_solvent_argument_reaches_the_check():
    force_field, pdb = app.ForceField("amber99sbildn.xml", "tip3p.xml"), app.PDBFile(str(ALA2))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addSolvent(force_field, boxSize=openmm.Vec3(2, 2, 2))
    system = force_field.createSystem(modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.9, constraints=app.HBonds)
    integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.001)
    simulation = app.Simulation(modeller.topology, system, integrator, openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"})
    simulation.context.setPositions(modeller.positions)
    simulation.minimizeEnergy(maxIterations=20)
    dig = dig_plugins.load_model("alanine-dipeptide")
    options = {"seed": 1, "atoms": range(22), "md_steps": 2, "proposals": 2, "batch": 2, "steps": 4}
    with pytest.raises(UnsupportedError, match=r"water molecule.*allow_explicit_solvent=True"):
        DiGMonteCarlo(simulation, dig, **options)
    chain = DiGMonteCarlo(simulation, dig, allow_explicit_solvent=True, **options)
    chain.step()
    assert chain.energy.platform_name == "CPU" and len(chain.energy.lift) == 12
    with pytest.raises(IncompatibleError, match="expected 22 atoms"):
        DiGMonteCarlo(simulation, dig, seed=1)


def exactness(blocks: int) -> None:
    """Averages of the molecule in the bath against direct sampling, and against what they would be without the bath."""
    chain = chain_of(batch=1024)
    phi, stretches = [], 40
    for _ in range(blocks):
        block = chain.step()
        phi.append(dihedral(torch.from_numpy(block.positions), [(0, 1, 2, 3)])[:, 0].numpy())
    assert 0.05 < chain.statistics.acceptance < 0.9
    phi = np.concatenate(phi).reshape(stretches, -1)
    bare = 0.0
    for name, f in OBSERVABLES.items():
        means = f(phi).mean(1)
        error, (mean, its_error, without) = means.std(ddof=1) / math.sqrt(stretches), DIRECT[name]
        z = (means.mean() - mean) / math.hypot(error, its_error)
        assert abs(z) < 3.5, f"{name}: {means.mean():.4f}({error:.4f}) instead of {mean:.4f}({its_error:.4f}), z = {z:+.1f}"
        bare = max(bare, abs(means.mean() - without) / error)
    # The quick run is too short to tell the bath from none.
    assert blocks < 3000 or bare > 4.5, f"the bath shows by {bare:.1f} standard errors only"


def test_averages_in_a_bath_are_those_of_direct_sampling():
    exactness(1000)


@pytest.mark.slow
def test_averages_in_a_bath_are_those_of_direct_sampling_for_long():
    exactness(8000)


@pytest.mark.slow
def test_direct_sampling_gives_the_figures_above():
    for name, (mean, error, without) in wanted().items():
        known, its_error, bare = DIRECT[name]
        assert abs(mean - known) < 4 * math.hypot(error, its_error), name
        assert without == pytest.approx(bare, abs=0.003)
