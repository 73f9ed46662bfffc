"""Border between OpenMM and dig_core: descriptors from topologies, nm <-> Angstrom, kT, and what is refused and why."""

from __future__ import annotations

import math

import numpy as np
import openmm
import torch
from openmm import app, unit

from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.system.descriptor import Descriptor, molecule
from dig_core.types import Geometry

__all__ = [
    "COULOMB",
    "NM_PER_ANGSTROM",
    "check_supported",
    "check_topology",
    "describe",
    "helix",
    "kelvin",
    "label",
    "reduced_unit",
    "thermal_widths",
    "to_geometry",
    "to_nanometers",
]

NM_PER_ANGSTROM = unit.angstrom.conversion_factor_to(unit.nanometer)

# OpenMM's platforms build this constant from the numbers below (SimTKOpenMMRealType.h, 8.6); its unit module has no
# vacuum permittivity to read.
_CHARGE, _PERMITTIVITY, _AVOGADRO = 1.602176634e-19, 8.8541878128e-12, 6.02214076e23
COULOMB = 1e6 * _CHARGE**2 * _AVOGADRO / (4 * math.pi * _PERMITTIVITY)
"""1 / (4 pi eps0) in kJ/mol nm e^-2, 138.935..."""


def describe(topology: app.Topology, system: openmm.System | None = None, positions=None) -> Descriptor:
    """Descriptor of the molecule(s) in an OpenMM Topology; the order of the atoms is kept.

    Parameters
    ----------
    topology: with bonds. Bond orders and formal charges are not read: whether they are known depends on the file the
        topology came from, and the same molecule must give the same descriptor.
    system: its number of particles must be the topology's.
    positions: one frame as in :func:`to_geometry` (nm), the reference that fixes the handedness of stereocentres.

    Raises
    ------
    IncompatibleError: no bonds, or another number of particles or positions.
    UnsupportedError: a site without an element.
    """
    atoms = list(topology.atoms())
    sites = [atom for atom in atoms if atom.element is None]
    if sites:
        raise UnsupportedError(
            f"{len(sites)} site(s) without an element, the first is {label(sites[0])}: virtual sites and Drude "
            "particles are not covered. Use a force field that has atoms only."
        )
    bonds = [(bond[0].index, bond[1].index) for bond in topology.bonds()]
    if not bonds and len(atoms) > 1:
        raise IncompatibleError(
            f"expected a topology with bonds, got {len(atoms)} atoms and none. Standard residues: call "
            "topology.createStandardBonds(). Others: add CONECT records to the PDB file or use topology.addBond()."
        )
    if system is not None:
        _check_count(system.getNumParticles(), len(atoms), "system")
    reference = None if positions is None else to_geometry(positions).positions
    if reference is not None and len(reference) != 1:
        raise IncompatibleError(f"expected one reference frame, got {len(reference)}. Pass one of them.")
    if reference is not None:
        _check_count(reference.shape[1], len(atoms), "positions")
    return molecule([atom.element.atomic_number for atom in atoms], bonds, positions=reference)


def to_geometry(positions) -> Geometry:
    """Positions as OpenMM gives them -> Geometry, (B, N, 3) float64 Angstrom.

    ``positions``: (N, 3) or (B, N, 3); a Quantity of length, a list of such Quantities, or an array or a list in nm.
    Raises IncompatibleError for any other shape.
    """
    if unit.is_quantity(positions):
        positions = positions.value_in_unit(unit.nanometer)
    elif isinstance(positions, (list, tuple)):
        positions = [p.value_in_unit(unit.nanometer) if unit.is_quantity(p) else p for p in positions]
    array = np.asarray(positions, dtype=np.float64)
    if array.ndim not in (2, 3) or array.shape[-1] != 3:
        raise IncompatibleError(f"expected positions of shape (N, 3) or (B, N, 3) in nm, got {array.shape}.")
    array = array.reshape(-1, *array.shape[-2:])
    return Geometry(torch.from_numpy(array / NM_PER_ANGSTROM))


def to_nanometers(geometry: Geometry) -> np.ndarray:
    """(B, N, 3) float64 nm, C-contiguous and a copy; OpenMM takes each row as it is."""
    positions = geometry.positions.detach().to("cpu", torch.float64).numpy()
    return np.ascontiguousarray(positions * NM_PER_ANGSTROM)


def helix(n_atoms: int) -> np.ndarray:
    """(N, 3) nm: atoms that neither overlap nor line up, for when any structure will do."""
    angle = np.arange(n_atoms)
    return 0.3 * np.stack([np.cos(angle), np.sin(angle), 0.5 * angle], axis=1)


def kelvin(temperature) -> float:
    """Temperature (K or a Quantity) as a number. Raises IncompatibleError unless it is finite and positive."""
    value = temperature.value_in_unit(unit.kelvin) if unit.is_quantity(temperature) else float(temperature)
    if not (math.isfinite(value) and value > 0):
        raise IncompatibleError(f"expected a positive temperature in K, got {value}.")
    return value


def reduced_unit(temperature) -> float:
    """kT in kJ/mol at ``temperature`` (K or a Quantity): energies are divided by it."""
    kt = unit.MOLAR_GAS_CONSTANT_R * (kelvin(temperature) * unit.kelvin)
    return kt.value_in_unit(unit.kilojoule_per_mole)


def check_topology(descriptor: Descriptor, topology: app.Topology) -> None:
    """Raise IncompatibleError unless the topology holds the descriptor's atoms and bonds in the descriptor's order."""
    atoms = list(topology.atoms())
    _check_count(len(atoms), descriptor.n_atoms, "topology")
    for atom, number in zip(atoms, descriptor.numbers.tolist(), strict=True):
        found = atom.element.symbol if atom.element is not None else "no element"
        expected = app.Element.getByAtomicNumber(number).symbol if number else "padding"
        if found != expected:
            raise IncompatibleError(
                f"{label(atom)}: expected element {expected}, found {found}. Atoms must come in the order the model "
                "was trained with; use the same topology file."
            )
    expected_bonds = _partners(descriptor.n_atoms, descriptor.bonds.tolist())
    found_bonds = _partners(len(atoms), [(bond[0].index, bond[1].index) for bond in topology.bonds()])
    for atom, expected, found in zip(atoms, expected_bonds, found_bonds, strict=True):
        if expected != found:
            raise IncompatibleError(
                f"{label(atom)}: expected bonds to atoms {sorted(expected)}, found {sorted(found)}. Atoms must "
                "come in the order the model was trained with, and the topology must have its bonds."
            )


def check_supported(system: openmm.System, topology: app.Topology | None = None) -> None:
    """Raise UnsupportedError, naming each part of the System that Cartesian sampling of a free molecule does not cover.

    Refused: constraints, virtual sites, massless and Drude particles, periodic boxes, barostats, position restraints.
    ``topology`` only adds atom names to the message.
    """
    names = _names(system, topology)
    reasons = [
        *_constraint_reasons(system, names),
        *_particle_reasons(system, names),
        *(reason for force in system.getForces() if (reason := _force_reason(force))),
    ]
    if reasons:
        raise UnsupportedError("\n".join(reasons))


def _constraint_reasons(system: openmm.System, names: list[str]) -> list[str]:
    count = system.getNumConstraints()
    if not count:
        return []
    first, second, _ = system.getConstraintParameters(0)
    return [
        f"{count} constraint(s), the first between {names[first]} and {names[second]}: the System alone has no energy for "
        "a constrained bond. DiGMonteCarlo takes constraints=HBonds as they are; for an energy to train on use "
        "LiftedEnergy.from_system. Or create the System with constraints=None (and rigidWater=False) and use a time step "
        "of 1 fs, or hydrogen mass repartitioning (hydrogenMass=) for a longer one."
    ]


def _particle_reasons(system: openmm.System, names: list[str]) -> list[str]:
    virtual = [i for i in range(len(names)) if system.isVirtualSite(i)]
    masses = [system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(len(names))]
    massless = [i for i, mass in enumerate(masses) if mass == 0 and not system.isVirtualSite(i)]
    reasons = []
    if virtual:
        reasons.append(
            f"{len(virtual)} virtual site(s), the first is {names[virtual[0]]}: their place follows from other atoms. "
            "Use a force field that has atoms only."
        )
    if massless:
        reasons.append(
            f"{len(massless)} massless particle(s), the first is {names[massless[0]]}: the model would move what the "
            "System holds fixed. Give each particle its mass."
        )
    return reasons


def _force_reason(force: openmm.Force) -> str | None:
    kind = type(force).__name__
    if "Barostat" in kind:
        return f"{kind}: the volume is not sampled. Remove the barostat; a molecule in implicit solvent has no volume."
    if kind == "DrudeForce":
        return "DrudeForce: Drude particles follow the atoms. Use a force field with fixed charges."
    if kind == "CustomExternalForce":
        return (
            "CustomExternalForce: the energy depends on where the molecule is, and samples are centred. Remove "
            "position restraints, or restrain distances between atoms instead."
        )
    try:
        periodic = force.usesPeriodicBoundaryConditions()
    except openmm.OpenMMException:
        # Forces that do not say (plug-ins) are taken as not periodic.
        periodic = False
    if periodic:
        return (
            f"{kind} ({force.getName()}) uses periodic boundary conditions: a plain swap of a solute in explicit "
            "solvent has an acceptance of about 1e-4. Use an implicit-solvent model with nonbondedMethod=NoCutoff."
        )
    return None


def _names(system: openmm.System, topology: app.Topology | None) -> list[str]:
    if topology is None:
        return [f"atom {i}" for i in range(system.getNumParticles())]
    _check_count(system.getNumParticles(), topology.getNumAtoms(), "system")
    return [label(atom) for atom in topology.atoms()]


def label(atom: app.topology.Atom) -> str:
    """What messages call an atom."""
    return f"atom {atom.index} ({atom.name} in {atom.residue.name}{atom.residue.id})"


def _partners(n: int, bonds) -> list[set[int]]:
    partners: list[set[int]] = [set() for _ in range(n)]
    for i, j in bonds:
        partners[i].add(j)
        partners[j].add(i)
    return partners


def _check_count(found: int, expected: int, what: str) -> None:
    if found != expected:
        raise IncompatibleError(
            f"expected {expected} atoms, the {what} has {found}. Use the model's own topology, whole molecules only."
        )


def thermal_widths(system: openmm.System, temperature) -> dict[tuple[int, ...], tuple[float, float]]:
    """What the force field says of bonds and angles: atoms -> (rest value, thermal width sqrt(kT/k)), Angstrom or radians.

    The ``standards`` of :meth:`dig_core.coordinates.Internal.from_reference`: coordinates of one molecule without any frames.
    Terms of zero stiffness are left out.
    """
    kt, found = reduced_unit(temperature), {}
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for number in range(force.getNumBonds()):
                i, j, length, k = force.getBondParameters(number)
                if k._value > 0:
                    found[(i, j)] = (length._value / NM_PER_ANGSTROM, math.sqrt(kt / k._value) / NM_PER_ANGSTROM)
        elif isinstance(force, openmm.HarmonicAngleForce):
            for number in range(force.getNumAngles()):
                i, j, m, angle, k = force.getAngleParameters(number)
                if k._value > 0:
                    found[(i, j, m)] = (angle._value, math.sqrt(kt / k._value))
    return found
