"""Small molecules whose every coordinate is independent: averages known by quadrature, and untrained models of them."""

from __future__ import annotations

import functools
import math

import numpy as np
import openmm
import torch
from openmm import app, unit

from dig_core.coordinates import Internal
from dig_core.coordinates.measure import angle, bond, dihedral
from dig_core.diffusion import Diffusion, Euclidean, Geometric, Joint, LogSNR, Torus
from dig_core.dig import Card, DiG
from dig_core.nn import ResidualMLP
from dig_core.score import NoiseScore
from dig_core.testing import Sabotaged
from dig_plugins.openmm.convert import describe, reduced_unit

KT = reduced_unit(300)

# Soft, and far from right angles: the volumes b^2 and sin(a) shift the means by a fifth of a standard deviation.
BONDS = {"AB": (0.140, 15_000.0), "BC": (0.152, 20_000.0), "CD": (0.130, 12_000.0)}  # nm, kJ/mol/nm^2
ANGLES = {"ABC": (2.2, 70.0), "BCD": (1.0, 80.0)}  # rad, kJ/mol/rad^2
TORSION = (3, 0.4, 3.0)  # periodicity, phase, kJ/mol
TILT = (1, 1.0, 2.0)


def chain_molecule(n: int) -> tuple[app.Topology, openmm.System, np.ndarray]:
    """The chain A-B-C or A-B-C-D with harmonic bonds and angles and two torsion terms: every coordinate is independent."""
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    elements = [app.element.carbon, app.element.oxygen, app.element.nitrogen, app.element.fluorine]
    atoms = [topology.addAtom(name, element, residue) for name, element in zip("ABCD"[:n], elements, strict=False)]
    system = openmm.System()
    for _ in atoms:
        system.addParticle(14.0)
    stretch, bend, turn = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for i, (length, k) in enumerate(list(BONDS.values())[: n - 1]):
        topology.addBond(atoms[i], atoms[i + 1])
        stretch.addBond(i, i + 1, length, k)
    for i, (theta, k) in enumerate(list(ANGLES.values())[: n - 2]):
        bend.addAngle(i, i + 1, i + 2, theta, k)
    if n == 4:
        for periodicity, phase, k in (TORSION, TILT):
            turn.addTorsion(0, 1, 2, 3, periodicity, phase, k)
    for force in (stretch, bend, turn):
        system.addForce(force)
    positions = np.array([[-0.05, 0.13, 0.0], [0.0, 0.0, 0.0], [0.152, 0.0, 0.0], [0.18, 0.08, 0.1]])[:n]
    return topology, system, positions


def moments(axis: np.ndarray, density: np.ndarray, function: np.ndarray) -> float:
    return float((function * density).sum() / density.sum())


@functools.cache
def exact_averages(n: int) -> dict[str, float]:
    """By quadrature, coordinate by coordinate: densities b^2 exp(-u), sin(a) exp(-u), exp(-u). Angstrom, rad, kT."""
    found, energy = {}, 0.0
    for name, (length, k) in list(BONDS.items())[: n - 1]:
        axis = np.linspace(0.5 * length, 1.5 * length, 20_001)
        u = 0.5 * k * (axis - length) ** 2 / KT
        density = axis**2 * np.exp(-u)
        found[name] = 10 * moments(axis, density, axis)
        found[name + " squared"] = 100 * moments(axis, density, axis**2)
        energy += moments(axis, density, u)
    for name, (theta, k) in list(ANGLES.items())[: n - 2]:
        axis = np.linspace(0, np.pi, 20_001)
        u = 0.5 * k * (axis - theta) ** 2 / KT
        density = np.sin(axis) * np.exp(-u)
        found[name] = moments(axis, density, axis)
        found[name + " squared"] = moments(axis, density, axis**2)
        energy += moments(axis, density, u)
    if n == 4:
        axis = np.linspace(-np.pi, np.pi, 20_001)[:-1]
        u = sum(k * (1 + np.cos(m * axis - phase)) for m, phase, k in (TORSION, TILT)) / KT
        for name, f in (("cos", np.cos(axis)), ("sin", np.sin(axis)), ("cos 3", np.cos(3 * axis))):
            found[name] = moments(axis, np.exp(-u), f)
        energy += moments(axis, np.exp(-u), u)
    return {**found, "u": energy}


def measured(positions: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
    """The same quantities along a chain; ``positions`` (F, N, 3) nm."""
    points = torch.as_tensor(positions * 10)
    n = points.shape[1]
    found = {}
    for i, name in enumerate(list(BONDS)[: n - 1]):
        found[name] = bond(points, [(i, i + 1)])[:, 0].numpy()
    for i, name in enumerate(list(ANGLES)[: n - 2]):
        found[name] = angle(points, [(i, i + 1, i + 2)])[:, 0].numpy()
    found |= {name + " squared": x**2 for name, x in found.items()}
    if n == 4:
        phi = dihedral(points, [(0, 1, 2, 3)])[:, 0].numpy()
        found |= {"cos": np.cos(phi), "sin": np.sin(phi), "cos 3": np.cos(3 * phi)}
    return {**found, "u": u}


def assert_exact(positions: np.ndarray, u: np.ndarray, stretches: int = 40) -> None:
    """Averages agree with quadrature, |z| < 4 with the error from means over long stretches."""
    series, length = measured(positions, u), len(u) // stretches
    for name, wanted in exact_averages(positions.shape[1]).items():
        means = series[name][: stretches * length].reshape(stretches, length).mean(1)
        z = (means.mean() - wanted) / (means.std(ddof=1) / math.sqrt(stretches))
        assert abs(z) < 4, f"{name}: {means.mean():.5f} instead of {wanted:.5f}, z = {z:+.1f}"


def model_of(
    topology, system, positions, *, wide: float = 1.3, spoilt: bool = False, temperature=300.0, steps: int = 6
) -> DiG:
    """An untrained model: standardised by the force field with widths off by ``wide``, the torsion uniform."""
    descriptor = describe(topology, system, positions)
    kilo = (list(BONDS.values())[: len(positions) - 1], list(ANGLES.values())[: len(positions) - 2])
    standards = {(i, i + 1): (10 * length, wide * 10 * math.sqrt(KT / k)) for i, (length, k) in enumerate(kilo[0])}
    standards |= {(i, i + 1, i + 2): (theta, wide * math.sqrt(KT / k)) for i, (theta, k) in enumerate(kilo[1])}
    coordinates = Internal.from_reference(descriptor, standards)
    return DiG(
        untrained(coordinates, spoilt),
        coordinates,
        descriptor,
        Card(name="untrained", temperature=temperature, steps=steps),
    )


def untrained(coordinates: Internal, spoilt: bool = False):
    sizes = {"shape": len(coordinates.centre), "torsion": len(coordinates.torsion_atoms)}
    process = Joint(
        shape=Diffusion(Euclidean(sizes["shape"]), LogSNR(6.0, -6.0)),
        torsion=Diffusion(Torus(sizes["torsion"]), Geometric(0.05, 3.5)),
    )
    model = (
        NoiseScore(ResidualMLP(sizes, ["torsion"], width=16, blocks=1, seed=1), process).eval().requires_grad_(False)
    )
    return Sabotaged(model, strength=0.15) if spoilt else model


def simulation_of(
    topology, system, positions, *, temperature: float = 300.0, seed: int = 1, timestep: float = 1.0
) -> app.Simulation:
    integrator = openmm.LangevinMiddleIntegrator(
        temperature * unit.kelvin, 5 / unit.picosecond, timestep * unit.femtosecond
    )
    integrator.setRandomNumberSeed(seed)
    simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(temperature, seed)
    return simulation
