"""A finished OpenMM script, and the one line that makes its molecule jump between its states."""

import argparse
import sys

import openmm as mm
from openmm import app, unit

import dig_plugins
from dig_plugins.openmm import DiGMonteCarlo, model_system

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--fast", action="store_true", help="a few steps only")
fast = parser.parse_args().fast

topology, system, positions, temperature = model_system("alanine-dipeptide")
integrator = mm.LangevinMiddleIntegrator(temperature * unit.kelvin, 1 / unit.picosecond, 1 * unit.femtosecond)
simulation = app.Simulation(topology, system, integrator, mm.Platform.getPlatformByName("Reference"))
simulation.context.setPositions(positions)
simulation.reporters.append(app.StateDataReporter(sys.stdout, 200, step=True, potentialEnergy=True, temperature=True))

# The line: 32 exact proposals after every 100 steps. Everything else is as it was.
dig = dig_plugins.load_model("alanine-dipeptide")
simulation.reporters.append(DiGMonteCarlo(simulation, dig, md_steps=100, proposals=32, seed=1, batch=64))

simulation.step(400 if fast else 20_000)
