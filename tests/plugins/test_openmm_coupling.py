"""Switching a molecule's interactions with its surroundings: the ends are the given System and two that do not meet."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

import dig_plugins
from dig_core.errors import IncompatibleError, UnsupportedError

openmm = pytest.importorskip("openmm")
from openmm import app  # noqa: E402

from dig_plugins.openmm.coupling import COUPLINGS, decouple  # noqa: E402

ALA2 = Path(dig_plugins.__file__).parent / "models" / "alanine-dipeptide.pdb"
SOLUTE = range(22)


@functools.cache
def solvated() -> tuple[openmm.System, np.ndarray]:
    """Alanine dipeptide in 60 waters without a box, and relaxed positions in nm."""
    pdb, force_field = app.PDBFile(str(ALA2)), app.ForceField("amber99sbildn.xml", "tip3p.xml")
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addSolvent(force_field, numAdded=60)
    system = force_field.createSystem(modeller.topology, nonbondedMethod=app.NoCutoff, constraints=None)
    context = context_of(system)
    context.setPositions(modeller.positions)
    openmm.LocalEnergyMinimizer.minimize(context, 50, 50)
    return system, context.getState(positions=True).getPositions(asNumpy=True)._value


def context_of(system: openmm.System) -> openmm.Context:
    return openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))


def evaluated(context: openmm.Context, positions: np.ndarray) -> tuple[float, np.ndarray]:
    context.setPositions(positions)
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def frames(n: int) -> np.ndarray:
    return solvated()[1] + np.random.default_rng(0).normal(0, 0.005, (n, *solvated()[1].shape))


def test_coupled_is_the_given_system():
    system = solvated()[0]
    given, coupled = context_of(system), context_of(decouple(system, SOLUTE))
    for x in frames(3):
        (u, f), (v, g) = evaluated(given, x), evaluated(coupled, x)
        assert u == pytest.approx(v, abs=1e-6) and np.allclose(f, g, atol=1e-6)
    assert not system.getForces()[-1].getName() == "SoftCore"


def test_decoupled_feels_nothing_of_the_others():
    """Energies add up, and are those of the molecule alone and of the others alone."""
    system, x = solvated()
    context = context_of(decouple(system, SOLUTE))
    for name in COUPLINGS:
        context.setParameter(name, 0.0)
    pdb = app.PDBFile(str(ALA2))
    alone = context_of(app.ForceField("amber99sbildn.xml").createSystem(pdb.topology, constraints=None))
    u, forces = evaluated(context, x)
    inside, wanted = evaluated(alone, x[:22])
    assert np.allclose(forces[:22], wanted, atol=1e-6)
    away = x.copy()
    away[:22] += 30.0
    assert evaluated(context, away)[0] == pytest.approx(u, abs=1e-6)
    turned = x.copy()
    turned[:22] = frames(2)[1][:22]
    assert evaluated(context, turned)[0] - u == pytest.approx(evaluated(alone, turned[:22])[0] - inside, abs=1e-6)


def test_half_way_overlaps_cost_little():
    """The soft core is finite where atoms meet; charges are off by then."""
    system, x = solvated()
    context = context_of(decouple(system, SOLUTE))
    context.setParameter("lambda_electrostatics", 0.0)
    context.setParameter("lambda_sterics", 0.3)
    before = evaluated(context, x)[0]
    away = x.copy()
    away[:22] += 30.0
    gone = evaluated(context, away)[0]
    onto = x.copy()
    onto[:22] += x[22] - x[4] + 0.01  # a carbon all but on a water's oxygen
    assert abs(before - gone) < 500 and abs(evaluated(context, onto)[0] - gone) < 500


@pytest.mark.parametrize(
    ("force", "error", "named"),
    [
        (openmm.CustomNonbondedForce("0"), UnsupportedError, "CustomNonbondedForce"),
        (openmm.GBSAOBCForce(), UnsupportedError, "GBSAOBCForce"),
        (openmm.NonbondedForce(), IncompatibleError, "one NonbondedForce, the System has 2"),
    ],
)
def test_what_cannot_be_divided_is_refused(force, error, named):
    system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(solvated()[0]))
    system.addForce(force)
    with pytest.raises(error, match=named):
        decouple(system, SOLUTE)


def test_reaction_field_is_refused():
    system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(solvated()[0]))
    next(f for f in system.getForces() if isinstance(f, openmm.NonbondedForce)).setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    with pytest.raises(UnsupportedError, match="PME or NoCutoff"):
        decouple(system, SOLUTE)
