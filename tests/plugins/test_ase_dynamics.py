"""DiGDynamics samples exp(-E/kT) with models that are wrong, beside MD, with fixed atoms, after failures and after a resume."""

from __future__ import annotations

import io
import math
from functools import partial

import numpy as np
import pytest

pytest.importorskip("ase")

from ase import units
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import ExternalForce, FixAtoms, FixBondLength, FixCom, Hookean
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.nvtberendsen import NVTBerendsen
from ase.md.verlet import VelocityVerlet

from dig_core.dig import Card, DiG
from dig_core.errors import IncompatibleError, StateError, UnsupportedError
from dig_core.nn import AdsorptionGraphormer
from dig_core.score import NoiseScore
from dig_plugins.ase import DiGDynamics
from dig_plugins.ase.adsorption.describe import describe_adsorption
from dig_plugins.ase.adsorption.place import place_adsorbate
from dig_plugins.ase.adsorption.surface import SITES, SiteSurface
from tests.plugins.known_ase import (
    DIMER,
    KT,
    PLACES,
    Sickly,
    T,
    Wells,
    anchored,
    anchored_averages,
    anchored_model,
    anchored_values,
    assert_law,
    dimer,
    dimer_averages,
    dimer_model,
    distance,
    double_well,
    triangle,
    triangle_averages,
    triangle_model,
    triangle_values,
    visited,
)

LANGEVIN = partial(Langevin, timestep=2 * units.fs, temperature_K=T, friction=0.05 / units.fs, fixcm=False)


def dimer_values(positions) -> dict[str, np.ndarray]:
    r = distance(positions)
    return {name: f(r) for name, f in DIMER.items()}


# The law -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["metropolis", "isir"])
def test_sabotaged_model_samples_the_calculator(scheme):
    chain = DiGDynamics(dimer(), dimer_model(), seed=1, proposals=32 if scheme == "metropolis" else 8, batch=512, scheme=scheme)
    assert_law(dimer_values(visited(chain, 120 if scheme == "metropolis" else 400)), dimer_averages())
    assert 0.05 < chain.statistics.acceptance < 0.95


def test_untrained_network_in_internal_coordinates():
    chain = DiGDynamics(triangle(), triangle_model(), seed=2, proposals=32, batch=512)
    found = visited(chain, 120)
    assert chain.statistics.accepted > 400
    assert_law(triangle_values(found), triangle_averages())


@pytest.mark.parametrize("make", [LANGEVIN, lambda atoms, rng: VelocityVerlet(atoms, 2 * units.fs)], ids=["Langevin", "Verlet"])
def test_beside_molecular_dynamics(make):
    """Velocities, too, keep their law: drawn anew with each acceptance."""
    atoms = dimer()
    chain = DiGDynamics(atoms, dimer_model(), seed=3, proposals=4, batch=512, md=make, md_steps=3)
    kinetic = []
    chain.attach(lambda: kinetic.append(atoms.get_kinetic_energy() / KT))
    assert_law(dimer_values(visited(chain, 400)), dimer_averages())
    assert_law({"kinetic": np.array(kinetic[1:])}, {"kinetic": 3.0})


def test_beside_moves_of_ones_own():
    def local(positions, number):
        """A symmetric step of the second atom, accepted by Metropolis."""
        rng = np.random.default_rng([5, number])
        trial = positions.copy()
        trial[1] += rng.normal(0, 0.2, 3)
        ask = dimer()
        u = []
        for x in (positions, trial):
            ask.positions = x
            u.append(ask.get_potential_energy() / KT)
        return trial if math.log1p(-rng.random()) < u[0] - u[1] else positions

    chain = DiGDynamics(dimer(), dimer_model(), seed=4, proposals=8, batch=512, local=local)
    assert_law(dimer_values(visited(chain, 240)), dimer_averages())


def test_fixed_atoms_stay_and_the_others_have_their_law():
    atoms = anchored()
    chain = DiGDynamics(atoms, anchored_model(), seed=6, proposals=16, batch=512, md=LANGEVIN, md_steps=3)
    found = visited(chain, 240)
    assert np.array_equal(found[:, 0], np.broadcast_to(PLACES[0], found[:, 0].shape))
    assert not atoms.get_momenta()[0].any()
    assert_law(anchored_values(found), anchored_averages())


def test_hookean_is_part_of_the_energy():
    """A restraint beyond 2 Angstrom weighs in the chain as it does in MD."""
    atoms = dimer()
    atoms.set_constraint(Hookean(0, 1, k=2 * KT, rt=2.0))
    r = np.linspace(1e-3, 4.5, 20_001)
    weight = r**2 * np.exp(-double_well(r)[0] / KT - 1.0 * np.clip(r - 2.0, 0, None) ** 2)
    wanted = {name: float((f(r) * weight).sum() / weight.sum()) for name, f in DIMER.items()}
    chain = DiGDynamics(atoms, dimer_model(), seed=7, proposals=32, batch=512)
    assert_law(dimer_values(visited(chain, 80)), wanted)
    assert wanted["near"] - dimer_averages()["near"] > 0.05


@pytest.mark.parametrize("failure", ["nan", RuntimeError("no convergence")], ids=["nan", "exception"])
def test_failed_energies_are_counted_and_never_accepted(failure):
    """The calculator fails where r < 1.4: the law is cut there, and the run goes on."""
    short = 1.4
    atoms = dimer(Sickly(dimer().calc, lambda a: failure if distance(a.positions) < short else None))
    chain = DiGDynamics(atoms, dimer_model(), seed=8, proposals=32, batch=512)
    found = visited(chain, 120)
    assert distance(found).min() >= short
    assert_law(dimer_values(found), dimer_averages(short))
    failed = chain.statistics.failed["energy"]
    assert 0 < failed <= chain.energy.n_failures == sum(chain.energy.failures.values())
    assert list(chain.energy.failures) == (["NaN energy"] if failure == "nan" else ["RuntimeError"])
    assert failure == "nan" or "no convergence" in chain.energy.first_traceback


@pytest.mark.parametrize("md", [None, LANGEVIN], ids=["proposals alone", "with MD"])
@pytest.mark.parametrize("stop", [1, 7])
def test_resumed_equals_run_through(md, stop):
    def chain():
        return DiGDynamics(dimer(), dimer_model(), seed=9, proposals=3, batch=16, md=md, md_steps=4)

    whole, first, second = chain(), chain(), chain()
    through = visited(whole, 12)
    before = visited(first, stop)
    second.atoms.positions += 1.0
    second.load_state_dict(first.state_dict())
    after = visited(second, 12 - stop)
    assert np.array_equal(np.concatenate([before, after]), through)
    assert second.statistics == whole.statistics and second.nsteps == whole.nsteps == 12
    assert np.array_equal(second.atoms.get_momenta(), whole.atoms.get_momenta())


def test_state_of_another_seed_is_refused():
    chain = DiGDynamics(dimer(), dimer_model(), seed=9)
    with pytest.raises(IncompatibleError, match="seed"):
        DiGDynamics(dimer(), dimer_model(), seed=10).load_state_dict(chain.state_dict())


def test_seed_is_kept_and_decides():
    chain = DiGDynamics(dimer(), dimer_model(), proposals=4)
    again = DiGDynamics(dimer(), dimer_model(), proposals=4, seed=chain.seed)
    assert np.array_equal(visited(chain, 5), visited(again, 5))


@pytest.mark.slow
def test_hydrogen_on_platinum_against_quadrature():
    """A slab: torus and height of an untrained model, Langevin beside it, the slab held; four sites that a quadrature weighs."""
    metal, slab = SiteSurface.from_table("Pt", "H"), fcc111("Pt", (1, 1, 2), a=3.97, vacuum=7.0)
    slab.set_constraint(FixAtoms(indices=[0, 1]))
    atoms = place_adsorbate(slab, "H", (0.3, 0.2))
    atoms.calc = metal.calculator(slab)
    descriptor = describe_adsorption(atoms, [2], temperature=T)
    network = AdsorptionGraphormer(width=8, heads=1, layers=1, encoder=1, basis=6, channels=3, cutoff=4.0, conditions=1)
    model = NoiseScore(network, network.process(descriptor)).eval().requires_grad_(False)
    dig = DiG(model, network.coordinates, descriptor, Card(name="untrained", temperature=T, steps=3))
    chain = DiGDynamics(atoms, dig, seed=1, proposals=100, batch=500, md=LANGEVIN, md_steps=5)
    found = visited(chain, 40)
    assert np.array_equal(found[:, :2], np.broadcast_to(atoms.positions[:2], found[:, :2].shape))
    placed = metal.on(slab)
    sites = placed.nearest_site(placed.fractions(found[:, 2]))
    values = {name: (sites == number).astype(float) for number, name in enumerate(SITES)}
    assert_law(values, metal.populations(T), stretches=20)


# As any ASE dynamics -----------------------------------------------------------------------------------------------------


def test_log_trajectory_and_observers(tmp_path):
    atoms, log, seen = dimer(), io.StringIO(), []
    with DiGDynamics(atoms, dimer_model(), seed=1, proposals=4, logfile=log, trajectory=tmp_path / "chain.traj") as chain:
        chain.attach(lambda: seen.append(chain.nsteps), interval=2)
        assert chain.run(6)
        assert list(chain.irun(2)) == [False, False, True]
    images = read(tmp_path / "chain.traj", index=":")
    assert len(images) == 9 and seen == [0, 2, 4, 6, 8]
    assert all(np.isclose(i.get_potential_energy(), dimer_energy(i)) for i in images)
    assert np.array_equal(images[-1].positions, atoms.positions)
    lines = log.getvalue().splitlines()
    assert len(lines) == 10 and "acceptance" in lines[0]
    assert np.isclose(float(lines[-1].split()[2]), atoms.get_potential_energy(), atol=1e-6)


def dimer_energy(image) -> float:
    ask = dimer()
    ask.positions = image.positions
    return ask.get_potential_energy()


def test_no_energy_is_spent_ahead_or_twice():
    """One for the current state, those of the proposals; what is looked at in between is found again."""
    atoms = dimer()
    chain = DiGDynamics(atoms, dimer_model(), seed=1, proposals=8)
    chain.attach(lambda: None)
    chain.run(1)
    before = atoms.calc.calls
    chain.run(10)
    assert atoms.calc.calls - before <= 10 * 9


def test_centroid_is_kept():
    atoms = dimer()
    chain = DiGDynamics(atoms, dimer_model(), seed=1, proposals=4)
    found = visited(chain, 20)
    assert np.allclose(found.mean(1), dimer().positions.mean(0), atol=1e-12)


@pytest.mark.slow
def test_lennard_jones_of_ase_against_quadrature():
    """A cluster of two, soft enough to stay one within the box that the model proposes in."""
    kt = units.kB * 60.0
    atoms = dimer(LennardJones(sigma=2.0, epsilon=6 * kt, rc=1e3, smooth=False))
    atoms.set_constraint(Hookean(0, 1, k=4 * kt, rt=2.5))
    atoms.positions[1] = atoms.positions[0] + [0, 0, 2.2]
    r = np.linspace(1.2, 6.0, 20_001)
    u = 24 * ((2 / r) ** 12 - (2 / r) ** 6) + 2 * np.clip(r - 2.5, 0, None) ** 2
    weight = r**2 * np.exp(-u)
    wanted = {name: float((f(r) * weight).sum() / weight.sum()) for name, f in DIMER.items()}
    md = partial(LANGEVIN, temperature_K=60.0, timestep=4 * units.fs)
    chain = DiGDynamics(atoms, dimer_model(name="cluster", temperature=60.0), seed=1, proposals=16, batch=512, md=md, md_steps=5)
    assert_law(dimer_values(visited(chain, 200)), wanted)


def test_emt_dimer_runs():
    atoms = dimer(EMT())
    assert DiGDynamics(atoms, dimer_model(), seed=1, proposals=4).run(3)


# What does not fit is named ----------------------------------------------------------------------------------------------


def test_missing_calculator():
    atoms = dimer()
    atoms.calc = None
    with pytest.raises(IncompatibleError, match="atoms.calc"):
        DiGDynamics(atoms, dimer_model())


def test_other_atoms_order_and_number():
    atoms = dimer()
    with pytest.raises(IncompatibleError, match="atom 0: expected C, found O"):
        DiGDynamics(atoms[[1, 0]], dimer_model(), energy=lambda g: 0)
    with pytest.raises(IncompatibleError, match="has 3 atoms"):
        DiGDynamics(triangle(), dimer_model())


def test_another_temperature():
    with pytest.raises(IncompatibleError, match="350 K.*300 K"):
        DiGDynamics(dimer(), dimer_model(), temperature=350.0)
    DiGDynamics(dimer(), dimer_model(), temperature=350.0, allow_temperature_mismatch=True)
    with pytest.raises(IncompatibleError, match="MD runs at 350 K"):
        DiGDynamics(dimer(), dimer_model(), md=partial(LANGEVIN, temperature_K=350.0))
    with pytest.raises(IncompatibleError, match="no temperature"):
        DiGDynamics(dimer(), dimer_model(temperature=None))


def test_fixed_atoms_must_be_the_models():
    with pytest.raises(IncompatibleError, match=r"atom 1 \(H\) is held"):
        DiGDynamics(anchored([0, 1]), anchored_model())
    with pytest.raises(IncompatibleError, match=r"atom 0 \(Pt\) is fixed in the model"):
        DiGDynamics(anchored([]), anchored_model())
    moved = anchored()
    moved.positions[0] += 0.1
    with pytest.raises(IncompatibleError, match="fixed atom 0 is 0.17"):
        DiGDynamics(moved, anchored_model())
    held = dimer()
    held.set_constraint(FixAtoms(indices=[0]))
    with pytest.raises(IncompatibleError, match=r"atom 0 \(C\) is held"):
        DiGDynamics(held, dimer_model())


@pytest.mark.parametrize("constraint", [FixBondLength(0, 1), FixCom()], ids=lambda c: type(c).__name__)
def test_constraints_that_make_another_law(constraint):
    atoms = dimer()
    atoms.set_constraint(constraint)
    with pytest.raises(UnsupportedError, match=type(constraint).__name__):
        DiGDynamics(atoms, dimer_model())


def test_energies_that_know_the_place_beside_models_that_forget_it():
    with pytest.raises(UnsupportedError, match="depends on where"):
        DiGDynamics(dimer(Wells(dimer().positions)), dimer_model())
    for constraint in (ExternalForce(0, 1, 0.1), Hookean(0, (0.0, 0.0, 0.0), k=1.0, rt=1.0)):
        atoms = dimer()
        atoms.set_constraint(constraint)
        if isinstance(constraint, ExternalForce):
            # Between two atoms of the molecule: part of the energy as any other.
            DiGDynamics(atoms, dimer_model())
        else:
            with pytest.raises(UnsupportedError, match="Hookean"):
                DiGDynamics(atoms, dimer_model())


def test_md_that_is_none_or_no_ensemble():
    with pytest.raises(IncompatibleError, match="returned a int"):
        DiGDynamics(dimer(), dimer_model(), md=lambda atoms, rng: 3)
    with pytest.raises(UnsupportedError, match="Berendsen"):
        DiGDynamics(dimer(), dimer_model(), md=lambda atoms, rng: NVTBerendsen(atoms, units.fs, temperature_K=T, taut=100 * units.fs))
    with pytest.raises(IncompatibleError, match="not both"):
        DiGDynamics(dimer(), dimer_model(), md=LANGEVIN, local=lambda x, n: x)


def test_start_whose_energy_fails_tells_the_calculators_words():
    atoms = dimer(Sickly(dimer().calc, lambda a: RuntimeError("out of licences")))
    with pytest.raises(StateError, match="out of licences"):
        DiGDynamics(atoms, dimer_model(), proposals=2).run(1)
