"""MD on what a model has learned: an ordinary OpenMM script, its only potential the shipped model's own density."""

import argparse

import numpy as np
import openmm as mm
from openmm import app, unit

from dig_plugins.openmm import backbone_dihedrals, make_force, model_system

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--fast", action="store_true", help="a fraction of a picosecond only")
frames = 10 if parser.parse_args().fast else 200

topology, _, positions, temperature = model_system("alanine-dipeptide")
system = mm.System()
for atom in topology.atoms():
    system.addParticle(atom.element.mass)
system.addForce(make_force("alanine-dipeptide"))

# The learned score is not quite a gradient field, which heats a little: hence the friction. Nor has it an energy to report.
integrator = mm.LangevinMiddleIntegrator(temperature * unit.kelvin, 10 / unit.picosecond, 1 * unit.femtosecond)
integrator.setRandomNumberSeed(1)
simulation = app.Simulation(topology, system, integrator, mm.Platform.getPlatformByName("Reference"))
simulation.context.setPositions(positions)
simulation.context.setVelocitiesToTemperature(temperature * unit.kelvin, 1)

found, measured = [], []
for _ in range(frames):
    simulation.step(25)
    state = simulation.context.getState(positions=True, energy=True)
    found.append(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    measured.append(2 * state.getKineticEnergy() / (3 * len(positions) * unit.MOLAR_GAS_CONSTANT_R) / unit.kelvin)

phi, psi = (np.degrees(angle[:, 0]) for angle in backbone_dihedrals(topology).measure(np.array(found)))
print(f"{0.025 * frames:g} ps at {np.mean(measured):.0f} K")
print(f"phi from {phi.min():.0f} to {phi.max():.0f} degrees, psi from {psi.min():.0f} to {psi.max():.0f}")
