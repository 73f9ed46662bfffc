"""A plain OpenMM script with DiG as a Monte Carlo move: two lines differ from MD alone."""

import argparse

import openmm as mm
from openmm import app, unit

import dig_plugins
from dig_plugins.openmm import DiGMonteCarlo, model_system

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--fast", action="store_true", help="a few blocks only")
fast = parser.parse_args().fast

# Any topology and System will do; these are the ones that the shipped model was trained on.
topology, system, positions, temperature = model_system("alanine-dipeptide")
integrator = mm.LangevinMiddleIntegrator(temperature * unit.kelvin, 1 / unit.picosecond, 1 * unit.femtosecond)
simulation = app.Simulation(topology, system, integrator, mm.Platform.getPlatformByName("Reference"))
simulation.context.setPositions(positions)
simulation.context.setVelocitiesToTemperature(temperature * unit.kelvin, 1)

monte_carlo = DiGMonteCarlo(simulation, dig_plugins.load_model("alanine-dipeptide"), md_steps=100, proposals=32, seed=1, batch=64)
for _ in range(2 if fast else 100):
    monte_carlo.step()  # in place of simulation.step

statistics = monte_carlo.statistics
print(f"{statistics.proposed} proposals, {statistics.acceptance:.0%} accepted, longest rejection run {statistics.longest_rejection_run}")
