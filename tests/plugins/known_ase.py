"""ASE systems whose law is known by quadrature, models of them made wrong on purpose, and calculators that fail on purpose."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.constraints import FixAtoms
from torch import nn

from dig_core.coordinates import Cartesian, Internal
from dig_core.diffusion import Diffusion, Euclidean, Geometric, Joint, LogSNR, Torus, ZeroCentroid
from dig_core.dig import Card, DiG
from dig_core.energy import AnalyticScore, GaussianMixture
from dig_core.nn import ResidualMLP
from dig_core.score import NoiseScore
from dig_core.system.descriptor import Descriptor, molecule
from dig_core.testing import Sabotaged
from dig_core.types import Geometry
from dig_plugins.ase.convert import describe, kT

T = 300.0
KT = kT(T)


class Pairs(BaseCalculator):
    """E = sum over pairs of profile(r): ``profiles`` maps (i, j) to functions of r that return energy and slope, eV, Angstrom."""

    implemented_properties = ["energy", "free_energy", "forces"]

    def __init__(self, profiles):
        super().__init__()
        self.profiles, self.calls = dict(profiles), 0

    def calculate(self, atoms, properties, system_changes):
        self.calls += 1
        energy, forces = 0.0, np.zeros((len(atoms), 3))
        for (i, j), profile in self.profiles.items():
            gap = atoms.positions[j] - atoms.positions[i]
            r = np.linalg.norm(gap)
            value, slope = profile(r)
            energy += value
            forces[i] += slope * gap / r
            forces[j] -= slope * gap / r
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}


class Wells(BaseCalculator):
    """E = sum of k |x - place|^2 / 2 plus a double well along z for each atom: they stand where they stand."""

    implemented_properties = ["energy", "free_energy", "forces"]

    def __init__(self, places, k=0.4, height=2 * KT, half=0.5):
        super().__init__()
        self.places, self.k, self.height, self.half = np.array(places, dtype=float), k, height, half

    def calculate(self, atoms, properties, system_changes):
        gap = atoms.positions - self.places
        energy, forces = along_plane(gap, self.k)
        scaled = gap[:, 2] / self.half
        energy += self.height * ((scaled**2 - 1) ** 2).sum()
        forces[:, 2] -= 4 * self.height * scaled * (scaled**2 - 1) / self.half
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}


def along_plane(gap, k):
    forces = np.zeros_like(gap)
    forces[:, :2] = -k * gap[:, :2]
    return 0.5 * k * (gap[:, :2] ** 2).sum(), forces


class Sickly(BaseCalculator):
    """Another calculator that ``fails(atoms)`` -> None, or an exception to raise, or "nan"."""

    implemented_properties = ["energy", "free_energy", "forces"]

    def __init__(self, inner, fails):
        super().__init__()
        self.inner, self.fails = inner, fails

    def calculate(self, atoms, properties, system_changes):
        failure = self.fails(atoms)
        if isinstance(failure, Exception):
            raise failure
        self.inner.calculate(atoms, properties, system_changes)
        self.results = dict(self.inner.results)
        if failure == "nan":
            self.results["energy"] = self.results["free_energy"] = np.nan


# A dimer with two bond lengths -------------------------------------------------------------------------------------------

NEAR, FAR, HEIGHT = 1.5, 2.7, 2.0


def double_well(r):
    middle, half = 0.5 * (NEAR + FAR), 0.5 * (FAR - NEAR)
    s = (r - middle) / half
    return KT * HEIGHT * (s**2 - 1) ** 2, KT * HEIGHT * 4 * s * (s**2 - 1) / half


def dimer(calculator=None) -> Atoms:
    atoms = Atoms("CO", positions=[[4.0, 5.0, 6.0], [4.0, 5.0, 6.0 + NEAR]])
    atoms.calc = Pairs({(0, 1): double_well}) if calculator is None else calculator
    return atoms


def distance(positions) -> np.ndarray:
    positions = np.asarray(positions)
    return np.linalg.norm(positions[..., 1, :] - positions[..., 0, :], axis=-1)


DIMER = {"r": lambda r: r, "r^2": lambda r: r**2, "near": lambda r: (r < 0.5 * (NEAR + FAR)).astype(float)}


@functools.cache
def dimer_averages(lowest: float = 0.0) -> dict[str, float]:
    """Of exp(-E/kT) over r > lowest, by quadrature: p(r) = r^2 exp(-u)."""
    r = np.linspace(max(lowest, 1e-3), 4.5, 20_001)
    weight = r**2 * np.exp(-double_well(r)[0] / KT)
    return {name: float((f(r) * weight).sum() / weight.sum()) for name, f in DIMER.items()}


def dimer_log_z() -> float:
    """ln of the integral over the 3 coordinates of the shape; in the zero-centroid subspace lengths are r / sqrt(2)."""
    r = np.linspace(1e-3, 4.5, 20_001)
    return math.log(4 * math.pi * (r**2 * np.exp(-double_well(r)[0] / KT)).sum() * (r[1] - r[0]) / 2**1.5)


def dimer_model(strength: float = 0.15, **card) -> DiG:
    """Normal proposals about nothing in particular, made worse."""
    process = Joint(pos=Diffusion(ZeroCentroid(2), LogSNR(6.0, -6.0)))
    exact = AnalyticScore(process, {"pos": GaussianMixture([1.0], [[0.0] * 3], [[1.2**2] * 3])})
    options = {"temperature": T, "steps": 8, "name": "dimer"} | card
    return DiG(Sabotaged(exact, strength), Cartesian(1.0), molecule([6, 8], [], positions=dimer().positions), Card(**options))


# A bent molecule of three springs ----------------------------------------------------------------------------------------

LENGTHS = {(0, 1): 1.3, (0, 2): 1.5, (1, 2): 2.2}
STIFF = {(0, 1): 40.0, (0, 2): 35.0, (1, 2): 16.0}


def spring(length, k):
    return lambda r: (0.5 * k * (r - length) ** 2, k * (r - length))


def triangle(calculator=None) -> Atoms:
    atoms = Atoms("OFCl", positions=[[0.0, 0.0, 0.0], [1.3, 0.0, 0.0], [-0.25, 1.48, 0.0]])
    atoms.calc = Pairs({p: spring(LENGTHS[p], STIFF[p]) for p in LENGTHS}) if calculator is None else calculator
    return atoms


def triangle_model() -> DiG:
    """Internal coordinates and a network that has learned nothing."""
    descriptor = describe(triangle(), bonds=[(0, 1), (0, 2)])
    coordinates = Internal.from_reference(descriptor)
    state, _ = coordinates.encode(descriptor.reference, descriptor)
    sizes = {name: x.shape[1] for name, x in state.items()}
    process = Joint(
        shape=Diffusion(Euclidean(sizes["shape"]), LogSNR(6.0, -6.0)), torsion=Diffusion(Torus(sizes["torsion"]), Geometric(0.05, 3.5))
    )
    network = ResidualMLP(sizes, ["torsion"], width=8, blocks=1, frequencies=2)
    model = NoiseScore(network, process).eval().requires_grad_(False)
    return DiG(model, coordinates, descriptor, Card(name="triangle", temperature=T, steps=10))


@functools.cache
def triangle_averages() -> dict[str, float]:
    """Of the three distances, whose density is r01 r02 r12 exp(-u) where they make a triangle."""
    axes = [LENGTHS[p] + np.linspace(-6, 6, 121) * math.sqrt(KT / STIFF[p]) for p in LENGTHS]
    a, b, c = np.meshgrid(*axes, indexing="ij")
    u = sum(0.5 * STIFF[p] * (r - LENGTHS[p]) ** 2 / KT for p, r in zip(LENGTHS, (a, b, c), strict=True))
    weight = np.where((c < a + b) & (c > abs(a - b)), a * b * c * np.exp(-u), 0.0)
    weight /= weight.sum()
    return {f"{name}{power}": float((r**power * weight).sum()) for name, r in zip("abc", (a, b, c), strict=True) for power in (1, 2)}


def triangle_values(positions) -> dict[str, np.ndarray]:
    positions = np.asarray(positions)
    found = {n: np.linalg.norm(positions[..., j, :] - positions[..., i, :], axis=-1) for n, (i, j) in zip("abc", LENGTHS, strict=True)}
    return {f"{name}{power}": r**power for name, r in found.items() for power in (1, 2)}


# A fixed atom and one that stands in a well of its own -------------------------------------------------------------------

PLACES = [[1.0, 2.0, 3.0], [1.0, 2.0, 5.5]]


class Displaced(nn.Module):
    """``pos`` (B, 3): the second atom's displacement from the reference; the first stays."""

    gauge: frozenset[str] = frozenset()

    def encode(self, geometry: Geometry, descriptor: Descriptor):
        shift = geometry.positions[:, 1] - descriptor.reference.positions[0, 1]
        return {"pos": shift}, shift.new_zeros(len(shift), dtype=torch.float64)

    def decode(self, state, descriptor: Descriptor) -> Geometry:
        moved = descriptor.reference.positions[:, 1] + state["pos"].double()
        return Geometry(torch.stack([descriptor.reference.positions[:, 0].expand_as(moved), moved], dim=1))

    def log_volume(self, state, descriptor: Descriptor):
        return torch.zeros(len(state["pos"]), dtype=torch.float64)

    def valid(self, state, descriptor: Descriptor):
        return torch.ones(len(state["pos"]), dtype=torch.bool)

    def pose(self, geometry: Geometry, rng) -> Geometry:
        return geometry


def anchored(fixed=(0,)) -> Atoms:
    atoms = Atoms("PtH", positions=PLACES)
    atoms.set_constraint(FixAtoms(indices=list(fixed)))
    atoms.calc = Wells(PLACES)
    return atoms


def anchored_model() -> DiG:
    process = Joint(pos=Diffusion(Euclidean(3), LogSNR(6.0, -6.0)))
    exact = AnalyticScore(process, {"pos": GaussianMixture([1.0], [[0.1, 0.0, 0.2]], [[0.1, 0.1, 0.3]])})
    free = molecule([78, 1], [], positions=PLACES)
    descriptor = Descriptor(free.numbers, free.node, free.pair, free.bonds, torch.tensor([False, True]), free.reference, free.pbc)
    return DiG(Sabotaged(exact, 0.15), Displaced(), descriptor, Card(name="anchored", temperature=T, steps=8))


@functools.cache
def anchored_averages() -> dict[str, float]:
    wells = Wells(PLACES)
    z = np.linspace(-2, 2, 20_001)
    weight = np.exp(-wells.height * ((z / wells.half) ** 2 - 1) ** 2 / KT)
    return {"x": 0.0, "x^2": KT / wells.k, "y^2": KT / wells.k, "z": 0.0, "z^2": float((z**2 * weight).sum() / weight.sum())}


def anchored_values(positions) -> dict[str, np.ndarray]:
    x, y, z = np.moveaxis(np.asarray(positions)[..., 1, :] - PLACES[1], -1, 0)
    return {"x": x, "x^2": x**2, "y^2": y**2, "z": z, "z^2": z**2}


# Statements about laws ---------------------------------------------------------------------------------------------------


def assert_law(values: dict[str, np.ndarray], wanted: dict[str, float], stretches: int = 40, limit: float = 4.0) -> None:
    """Averages of a correlated series, with the error from means over long stretches: every |z| below the limit."""
    for name, series in values.items():
        length = len(series) // stretches
        means = series[: stretches * length].reshape(stretches, length).mean(1)
        z = (means.mean() - wanted[name]) / (means.std(ddof=1) / math.sqrt(stretches))
        assert abs(z) < limit, f"{name}: {means.mean():.4f} instead of {wanted[name]:.4f}, z = {z:.1f}"


def visited(chain, steps: int) -> np.ndarray:
    """(n, N, 3) Angstrom: the state after every test."""
    found = []
    for number, _ in enumerate(chain.irun(steps)):
        if number:
            found.append(chain.block.positions)
    return np.concatenate(found)
