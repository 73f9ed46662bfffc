"""The border with OpenMM: descriptors, units, and refusals that name what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import dig_plugins
from dig_core.errors import IncompatibleError, UnsupportedError

openmm = pytest.importorskip("openmm")
from openmm import app, unit  # noqa: E402

from dig_plugins.openmm.convert import (  # noqa: E402
    COULOMB,
    check_supported,
    check_topology,
    describe,
    reduced_unit,
    thermal_widths,
    to_geometry,
    to_nanometers,
)

ALA2 = Path(dig_plugins.__file__).parent / "models" / "alanine-dipeptide.pdb"


@pytest.fixture
def pdb() -> app.PDBFile:
    return app.PDBFile(str(ALA2))


def ala2_system(pdb: app.PDBFile, **options) -> openmm.System:
    force_field = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
    return force_field.createSystem(pdb.topology, **{"constraints": None, **options})


def argon(n: int = 3, mass: float = 39.9) -> openmm.System:
    system = openmm.System()
    for _ in range(n):
        system.addParticle(mass)
    return system


def test_describe_keeps_atoms_bonds_and_reference(pdb):
    descriptor = describe(pdb.topology, ala2_system(pdb), pdb.positions)
    assert descriptor.numbers.tolist() == [atom.element.atomic_number for atom in pdb.topology.atoms()]
    assert len(descriptor.bonds) == 21
    nanometers = np.array(pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    assert np.allclose(descriptor.reference.positions[0].numpy(), 10 * nanometers, rtol=0, atol=1e-12)
    assert describe(pdb.topology).reference is None


def test_describe_without_bonds_says_how_to_get_them(pdb):
    bare = app.Topology()
    residue = bare.addResidue("X", bare.addChain())
    for atom in pdb.topology.atoms():
        bare.addAtom(atom.name, atom.element, residue)
    with pytest.raises(IncompatibleError, match=r"createStandardBonds.*CONECT"):
        describe(bare)


def test_describe_checks_counts_and_sites(pdb):
    with pytest.raises(IncompatibleError, match="expected 22 atoms, the system has 3"):
        describe(pdb.topology, argon())
    with pytest.raises(IncompatibleError, match="expected 22 atoms, the positions has 5"):
        describe(pdb.topology, positions=np.zeros((5, 3)))
    with pytest.raises(IncompatibleError, match="one reference frame, got 2"):
        describe(pdb.topology, positions=np.zeros((2, 22, 3)))
    pdb.topology.addAtom("M", None, list(pdb.topology.residues())[-1])
    with pytest.raises(UnsupportedError, match="atom 22 .M in NME3."):
        describe(pdb.topology)


def test_positions_of_every_kind_become_angstrom(pdb):
    array = np.array(pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    kinds = {
        "list of Vec3 with a unit": pdb.positions,
        "array with a unit": pdb.getPositions(asNumpy=True),
        "other unit": pdb.getPositions(asNumpy=True).in_units_of(unit.bohr),
        "array": array,
        "nested list": array.tolist(),
        "atoms with a unit each": [openmm.Vec3(*row) * unit.nanometer for row in array],
    }
    for kind, positions in kinds.items():
        geometry = to_geometry(positions)
        assert geometry.positions.shape == (1, 22, 3) and geometry.positions.dtype == torch.float64, kind
        assert np.allclose(geometry.positions[0].numpy(), 10 * array, rtol=1e-12), kind
    batch = to_geometry([pdb.positions, pdb.positions])
    assert batch.positions.shape == (2, 22, 3) and to_geometry(np.zeros((4, 22, 3))).positions.shape == (4, 22, 3)
    nanometers = to_nanometers(batch)
    assert nanometers.shape == (2, 22, 3) and nanometers.dtype == np.float64 and nanometers.flags.c_contiguous
    assert np.allclose(nanometers, array, rtol=1e-15, atol=0)


@pytest.mark.parametrize("shape", [(3,), (22, 2), (1, 1, 22, 3)])
def test_positions_of_another_shape_are_refused(shape):
    with pytest.raises(IncompatibleError, match=re.escape(str(shape))):
        to_geometry(np.zeros(shape))


def test_positions_are_copied(pdb):
    array = np.array(pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    geometry = to_geometry(array)
    to_nanometers(geometry)[:] = 0
    array[:] = 0
    assert geometry.positions.abs().max() > 1


def test_constants():
    assert reduced_unit(300) == pytest.approx(8.31446261815324e-3 * 300, rel=1e-14)
    assert reduced_unit(300 * unit.kelvin) == reduced_unit(300.0)
    for bad in (0, -5, float("nan")):
        with pytest.raises(IncompatibleError, match="positive temperature"):
            reduced_unit(bad)
    system = argon(2)
    force = openmm.NonbondedForce()
    for charge in (1, -1):
        force.addParticle(charge, 1, 0)
    system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(np.array([[0.0, 0, 0], [1, 0, 0]]))
    energy = context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    assert energy == pytest.approx(-COULOMB, rel=1e-14)


def test_topology_of_the_model_passes_and_others_name_the_first_difference(pdb):
    descriptor = describe(pdb.topology)
    check_topology(descriptor, pdb.topology)
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.delete([list(modeller.topology.atoms())[-1]])
    with pytest.raises(IncompatibleError, match="expected 22 atoms, the topology has 21"):
        check_topology(descriptor, modeller.topology)
    for index, element in ((15, app.element.sulfur), (6, app.element.silicon)):
        list(pdb.topology.atoms())[index].element = element
    with pytest.raises(IncompatibleError, match=r"atom 6 \(N in ALA2\): expected element N, found Si"):
        check_topology(descriptor, pdb.topology)


def test_same_elements_with_other_bonds_are_refused(pdb):
    descriptor = describe(pdb.topology)
    hydrogen, carbon = list(pdb.topology.atoms())[0], list(pdb.topology.atoms())[8]
    pdb.topology.addBond(hydrogen, carbon)
    with pytest.raises(
        IncompatibleError, match=r"atom 0 \(H1 in ACE1\): expected bonds to atoms \[1\], found \[1, 8\]"
    ):
        check_topology(descriptor, pdb.topology)


def test_supported_system_passes(pdb):
    check_supported(ala2_system(pdb), pdb.topology)


def test_constraints_are_counted_and_the_way_out_named(pdb):
    with pytest.raises(UnsupportedError) as refusal:
        check_supported(ala2_system(pdb, constraints=app.HBonds), pdb.topology)
    for part in (
        "12 constraint",
        "CH3 in ACE1",
        "constraints=None",
        "1 fs",
        "mass repartitioning",
        "LiftedEnergy",
    ):
        assert part in str(refusal.value), part


def virtual_site(system):
    system.setParticleMass(2, 0)
    system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))


def massless(system):
    system.setParticleMass(1, 0)


def periodic(system):
    force = openmm.NonbondedForce()
    force.setNonbondedMethod(openmm.NonbondedForce.PME)
    for _ in range(system.getNumParticles()):
        force.addParticle(0, 0.3, 1)
    system.addForce(force)


def restraint(system):
    force = openmm.CustomExternalForce("x^2")
    force.addParticle(0, [])
    system.addForce(force)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (virtual_site, ["1 virtual site", "atom 2", "atoms only"]),
        (massless, ["1 massless particle", "atom 1"]),
        (periodic, ["NonbondedForce", "periodic", "implicit-solvent", "1e-4"]),
        (lambda s: s.addForce(openmm.MonteCarloBarostat(1, 300)), ["MonteCarloBarostat", "Remove the barostat"]),
        (lambda s: s.addForce(openmm.DrudeForce()), ["DrudeForce", "fixed charges"]),
        (restraint, ["CustomExternalForce", "centred", "restraints"]),
    ],
)
def test_each_refusal_names_the_thing_and_a_way_out(spoil, named):
    system = argon()
    check_supported(system)
    spoil(system)
    with pytest.raises(UnsupportedError) as refusal:
        check_supported(system)
    for part in named:
        assert part in str(refusal.value), part


def test_all_reasons_come_at_once():
    system = argon()
    system.addConstraint(0, 1, 0.1)
    system.addForce(openmm.MonteCarloBarostat(1, 300))
    with pytest.raises(UnsupportedError, match=r"(?s)1 constraint.*MonteCarloBarostat"):
        check_supported(system)


def test_thermal_widths_standardise_a_harmonic_molecule():
    """A bond of stiffness k has the thermal width sqrt(kT/k) about its rest length."""
    system = openmm.System()
    for _ in range(3):
        system.addParticle(12.0)
    bonds, angles = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    bonds.addBond(0, 1, 0.15, 2.0e5)
    bonds.addBond(1, 2, 0.15, 0.0)
    angles.addAngle(0, 1, 2, 1.9, 400.0)
    system.addForce(bonds)
    system.addForce(angles)
    found = thermal_widths(system, 300)
    kt = reduced_unit(300)
    assert found == {
        (0, 1): pytest.approx((1.5, 10 * (kt / 2.0e5) ** 0.5)),
        (0, 1, 2): pytest.approx((1.9, (kt / 400.0) ** 0.5)),
    }
