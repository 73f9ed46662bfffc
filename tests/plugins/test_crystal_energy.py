"""Energies of crystals and fits from them: stress and pressure, compact bases, laws known by quadrature, a chain that keeps its cell."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("ase")

from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import BaseCalculator
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms

from dig_core.dig import Card, DiG
from dig_core.errors import CheckpointError, IncompatibleError, UnsupportedError
from dig_core.montecarlo.chain import MonteCarlo, Pool
from dig_core.nn import CrystalGraphormer
from dig_core.random import Streams
from dig_core.score import NoiseScore
from dig_core.system.crystal import compact, contact_volume, crystal
from dig_core.training.draws import prior_law, target_law
from dig_core.types import Geometry
from dig_plugins.ase import ASEEnergy, CrystalEnergy, DiGDynamics, fit_crystal
from tests.plugins.known_cells import DEPTH, EDGE, KT, Metric, T, cells, exact, seen

SMALL = {"width": 16, "heads": 2, "layers": 1, "basis": 8, "channels": 4}


class Nothing(BaseCalculator):
    """An ideal gas."""

    implemented_properties = ["energy", "forces", "stress"]

    def calculate(self, atoms, properties, system_changes):
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3)), "stress": np.zeros(6)}


def model(n: int, *, shape: float = 0.15, width: float = 0.3, edge: float = EDGE) -> DiG:
    """An untrained model of n atoms in cells about a cube."""
    descriptor = crystal([6] * n)
    coordinates = {"volume": edge**3 / contact_volume(descriptor), "width": width, "shape": shape}
    network = CrystalGraphormer(**SMALL, coordinates=coordinates, seed=0)
    score = NoiseScore(network, network.process(descriptor)).eval().requires_grad_(False)
    return DiG(score, network.coordinates, descriptor, Card(name="untrained", steps=6, temperature=T))


def z_scores(values: dict[str, np.ndarray], log_weight: np.ndarray, wanted: dict[str, float]) -> dict[str, float]:
    """Of self-normalised averages."""
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    found = {}
    for name, x in values.items():
        mean = float((weight * x).sum())
        found[name] = (mean - wanted[name]) / math.sqrt(float((weight**2 * (x - mean) ** 2).sum()))
    return found


# Stress and pressure -------------------------------------------------------------------------------------------------------


def carbon_calculator():
    pytest.importorskip("matscipy", reason="Tersoff's potential is matscipy's")
    from matscipy.calculators.manybody import Manybody
    from matscipy.calculators.manybody.explicit_forms import TersoffBrenner
    from matscipy.calculators.manybody.explicit_forms.tersoff_brenner import Tersoff_PRB_39_5566_Si_C

    return Manybody(**TersoffBrenner(Tersoff_PRB_39_5566_Si_C))


def argon():
    return LennardJones(sigma=3.4, epsilon=0.01, rc=8.0, smooth=True)


@pytest.mark.parametrize("pressure", [0.0, 10.0])
@pytest.mark.parametrize("calculator, edge", [(argon, 4.5), (Metric, EDGE), (carbon_calculator, 2.3)], ids=["pairs", "metric", "Tersoff"])
def test_gradients_of_atoms_and_cell_are_those_of_differences(calculator, edge, pressure):
    energy = ASEEnergy(calculator(), Atoms("C2", pbc=True), T, pressure=pressure)
    cell = cells(3) * edge / EDGE
    positions = torch.rand(3, 1, 3, generator=torch.Generator().manual_seed(1)).double() @ cell
    positions = torch.cat([positions, positions + torch.tensor([[0.45, 0.5, 0.55]]).double() @ cell], 1)
    leaves = positions.clone().requires_grad_(), cell.clone().requires_grad_()
    slopes = torch.autograd.grad(energy(Geometry(*leaves)).sum(), leaves)
    rng, h = torch.Generator().manual_seed(2), 1e-5
    for _ in range(4):
        ways = [torch.randn(x.shape, generator=rng).double() for x in leaves]
        up, down = (energy(Geometry(positions + s * ways[0], cell + s * ways[1])) for s in (h, -h))
        found = sum((slope * way).flatten(1).sum(1) for slope, way in zip(slopes, ways, strict=True))
        assert torch.allclose(found, (up - down) / (2 * h), rtol=1e-4, atol=1e-4)


def test_a_cell_alone_may_be_asked_for_its_gradient():
    cell, energy = cells(2).requires_grad_(), ASEEnergy(Metric(), Atoms("C", pbc=True), T, pressure=5.0)
    (found,) = torch.autograd.grad(energy(Geometry(torch.zeros(2, 1, 3).double(), cell)).sum(), cell)
    # Turning a crystal costs nothing: cell^T du/dcell is symmetric.
    torque = cell.detach().mT @ found
    assert torch.allclose(torque, torque.mT) and float(found.abs().min()) > 0


def test_pressure_makes_enthalpies():
    atoms = bulk("Ar", "fcc", a=5.3)
    atoms.calc = argon()
    geometry = Geometry(torch.from_numpy(atoms.positions)[None], torch.from_numpy(atoms.cell.array)[None])
    found = float(ASEEnergy(atoms.calc, atoms, T, pressure=2.0)(geometry)) * KT
    assert found == pytest.approx(atoms.get_potential_energy() + 2.0 * units.GPa * atoms.get_volume())


@pytest.mark.parametrize("calculator", [lambda: Metric(stress=False), lambda: Stressless()], ids=["batch", "single"])
def test_a_calculator_without_stress_is_named_when_the_cell_asks(calculator):
    energy, cell = ASEEnergy(calculator(), Atoms("C", pbc=True), T), cells(1)
    assert bool(energy(Geometry(torch.zeros(1, 1, 3).double(), cell)).isfinite())
    with pytest.raises(UnsupportedError, match="no stress"):
        energy(Geometry(torch.zeros(1, 1, 3).double(), cell.requires_grad_()))


class Stressless(Nothing):
    implemented_properties = ["energy", "forces"]


def test_what_has_no_gradient_of_the_cell_or_no_pressure_is_refused():
    held = Atoms("C", pbc=True, constraint=FixAtoms([0]))
    with pytest.raises(UnsupportedError, match="under constraints"):
        ASEEnergy(Metric(), held, T)(Geometry(torch.zeros(1, 1, 3).double(), cells(1).requires_grad_()))
    with pytest.raises(IncompatibleError, match="needs pbc along all three"):
        ASEEnergy(Metric(), Atoms("C", pbc=[True, True, False]), T, pressure=1.0)
    with pytest.raises(IncompatibleError, match="needs a cell"):
        CrystalEnergy(Metric(), [6], T)(Geometry(torch.zeros(1, 1, 3).double()))


def test_broken_cells_fail_and_are_counted():
    cell = cells(3)
    cell[1, 0, 0] = math.nan
    energy = CrystalEnergy(Metric(), [6], T)
    assert energy(Geometry(torch.zeros(3, 1, 3).double(), cell)).isinf().tolist() == [False, True, False]
    assert energy.failures == {"cell is not finite": 1}


# The law -------------------------------------------------------------------------------------------------------------------


def test_a_lattice_counts_in_its_compact_bases_alone():
    """Of the shears of a cell at most the compact ones have an energy, the same; the calculator is not asked for others."""
    calculator = argon()
    energy, cell = CrystalEnergy(calculator, [18], T), 2.0 * cells(1)
    shears = torch.eye(3).double() + torch.tensor([[[0, a, 0], [0, 0, 0], [0, b, 0]] for a in (-1, 0, 1) for b in (-1, 0, 1)]).double()
    u = energy(Geometry(torch.zeros(9, 1, 3).double(), shears @ compact(cell).double() @ cell))
    assert int(u.isfinite().sum()) == 1 == energy.n_evaluations
    renamed = torch.eye(3).double()[[1, 2, 0]] @ compact(cell).double() @ cell
    assert torch.allclose(energy(Geometry(torch.zeros(1, 1, 3).double(), renamed)), u[4])


def test_an_ideal_gas_has_the_volume_of_its_law():
    """V^(N + 2) exp(-pV/kT): nine components of the cell and N atoms, each anywhere in it."""
    n, dig = 2, model(2, shape=0.2, width=0.55, edge=2.0)
    pressure = (n + 3) * KT / (EDGE**3 * units.GPa)
    state = dig.process.prior(dig.process.empty(4000, torch.float64)).sample(Streams(1, range(4000)))
    log_target, _ = target_law(dig, CrystalEnergy(Nothing(), [6] * n, T, pressure=pressure), state)
    log_weight = (log_target - prior_law(dig.process, state)[0]).numpy()
    volume = torch.linalg.det(dig.coordinates.decode(state, dig.descriptor).cell).numpy() / EDGE**3
    wanted = {"mean": 1.0, "square": 1 + 1 / (n + 3)}
    found = z_scores({"mean": volume, "square": volume**2}, log_weight, wanted)
    assert all(abs(z) < 4 for z in found.values()), found


@pytest.mark.parametrize("n, pressure", [(1, 0.0), (2, 8.0)])
def test_reweighted_samples_of_an_untrained_model_are_of_the_law(n, pressure):
    dig, energy = model(n), CrystalEnergy(Metric(), [6] * n, T, pressure=pressure)
    drawn = Pool(dig.proposal(steps=4), energy, seed=1, batch=1000).take(2000)
    found = z_scores(seen(drawn.cell), drawn.log_weight, exact(n, pressure))
    if n == 2:
        gap = np.einsum("bi,bij->bj", drawn.positions[:, 1] - drawn.positions[:, 0], np.linalg.inv(drawn.cell))
        bessel = float(torch.special.i1(torch.tensor(DEPTH)) / torch.special.i0(torch.tensor(DEPTH)))
        found |= z_scores({"cos": np.cos(2 * np.pi * gap).mean(1)}, drawn.log_weight, {"cos": bessel})
    assert all(abs(z) < 4 for z in found.values()), found


def start(energy: CrystalEnergy) -> Geometry:
    return Geometry(torch.zeros(1, len(energy.template), 3).double(), EDGE * torch.eye(3)[None].double())


def test_a_chain_keeps_its_cell_and_its_law():
    energy = CrystalEnergy(Metric(), [6], T)
    chain = MonteCarlo(model(1).proposal(steps=4), energy, start(energy), seed=2, batch=1000)
    visited = []
    for _ in range(3):
        chain.block(1000)
        visited.append(chain.cells)
    assert np.array_equal(chain.cell, visited[-1][-1])
    wanted = exact(1)
    for name, series in seen(np.concatenate(visited)).items():
        means = series.reshape(40, -1).mean(1)
        assert abs(means.mean() - wanted[name]) < 4 * means.std(ddof=1) / math.sqrt(40), name


def test_a_chain_of_crystals_goes_on_from_its_state():
    energy = CrystalEnergy(Metric(), [6], T)
    chain, other = (MonteCarlo(model(1).proposal(), energy, start(energy), seed=2, batch=100) for _ in range(2))
    chain.block(150)
    other.load_state_dict(chain.state_dict())
    chain.block(150), other.block(150)
    assert np.array_equal(chain.cells, other.cells)


def test_ases_atoms_follow_the_chain():
    energy = CrystalEnergy(Metric(), [6], T)
    atoms = Atoms("C", pbc=True, cell=EDGE * np.eye(3))
    chain = DiGDynamics(atoms, model(1), seed=2, proposals=200, energy=energy)
    chain.run(2)
    assert not np.allclose(atoms.cell.array, EDGE * np.eye(3)) and np.array_equal(atoms.cell.array, chain.block.cell[-1])


# Fits ----------------------------------------------------------------------------------------------------------------------


def test_a_model_from_a_calculator_alone(tmp_path):
    """Its weighed samples are of the law; every call is accounted for; a second call takes up what is there."""
    calculator = Metric()
    given = {"temperature": T, "volume": EDGE**3, "evaluations": 1500, "steps": 40, "out": tmp_path, "seed": 1, "progress": False, **SMALL}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = fit_crystal("C", calculator, **given)
    assert fitted.finished and 0.5 * fitted.evaluations < calculator.calls <= fitted.evaluations < 3000
    drawn = Pool(fitted.dig.proposal(steps=6), CrystalEnergy(calculator, [6], T), seed=5, batch=1000).take(1000)
    found = z_scores(seen(drawn.cell), drawn.log_weight, exact(1))
    assert all(abs(z) < 4 for z in found.values()), found
    before = calculator.calls
    again = fit_crystal({"C": 1}, calculator, **given)
    assert calculator.calls - before < 100 and again.raw_ess == fitted.raw_ess
    with pytest.raises(CheckpointError, match="the training of another"):
        fit_crystal("C", calculator, **given | {"temperature": 2 * T})


@pytest.mark.parametrize("composition", ["C0", {"C": 1.5}, {"Xx": 1}, {}])
def test_compositions_are_of_whole_atoms(composition):
    with pytest.raises(IncompatibleError, match="whole numbers of atoms"):
        fit_crystal(composition, Metric(), temperature=T)
