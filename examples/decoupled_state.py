"""Explicit water: the molecule changes shape where it does not feel the water, and replica exchange brings it back."""

import argparse

import numpy as np
import openmm as mm
from openmm import app, unit

import dig_plugins
from dig_plugins.openmm import DiGReplicaExchangeSampler, backbone_dihedrals, decouple, model_system

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--fast", action="store_true", help="two short iterations in a small box")
parser.add_argument("--model", default="alanine-dipeptide", help="best one trained in vacuum: that is the decoupled molecule")
parser.add_argument("--iterations", type=int, default=400, help="of 0.5 ps for each of nine replicas")
parser.add_argument("--box", type=float, default=2.6, help="edge, nm")
given = parser.parse_args()

topology, _, positions, temperature = model_system(given.model)
force_field = app.ForceField("amber99sbildn.xml", "tip3p.xml")
modeller = app.Modeller(topology, positions * unit.nanometer)
modeller.addSolvent(force_field, boxSize=mm.Vec3(1, 1, 1) * (2.0 if given.fast else given.box))
molecule = list(range(topology.getNumAtoms()))
solvated = force_field.createSystem(modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.9, constraints=app.HBonds)
system = decouple(solvated, molecule)

integrator = mm.LangevinMiddleIntegrator(temperature * unit.kelvin, 1 / unit.picosecond, 2 * unit.femtosecond)
simulation = app.Simulation(modeller.topology, system, integrator)
simulation.context.setPositions(modeller.positions)
simulation.minimizeEnergy(maxIterations=50 if given.fast else 500)

# Charges are switched off first, then sterics; the move is made in the last state, where the water is not felt.
path = [(1, 1), (0, 0)] if given.fast else [(1, 1), (0.6, 1), (0.3, 1), (0, 1), (0, 0.7), (0, 0.45), (0, 0.25), (0, 0.1), (0, 0)]
states = [{"temperature": temperature, "lambda_electrostatics": q, "lambda_sterics": s} for q, s in path]
sampler = DiGReplicaExchangeSampler(
    states, simulation, 5 if given.fast else 250, dig_plugins.load_model(given.model), move_states=[len(states) - 1],
    atoms=molecule, allow_explicit_solvent=True, proposals=4 if given.fast else 32, batch=8 if given.fast else 256, seed=1,
)  # fmt: skip

backbone, phi, at, met = backbone_dihedrals(topology), [], [], []
kt = (unit.MOLAR_GAS_CONSTANT_R * temperature * unit.kelvin).value_in_unit(unit.kilojoule_per_mole)
for _ in range(2 if given.fast else given.iterations):
    before = np.argsort(sampler.replicaStateIndex)
    sampler.simulate(1)
    u = np.array([[e.value_in_unit(unit.kilojoule_per_mole) for e in row] for row in sampler.replicaStateEnergy])[before] / kt
    met.append(np.exp(np.minimum(0, np.diag(u)[:-1] + np.diag(u)[1:] - np.diag(u, 1) - np.diag(u, -1))))
    at.append(list(sampler.replicaStateIndex))
    coupled = sampler.replicaConformation[at[-1].index(0)]
    x = coupled.getPositions(asNumpy=True).value_in_unit(unit.nanometer)[molecule]
    phi.append(backbone.measure(x[None])[0][0, 0])

statistics, came = sampler.statistics[len(states) - 1], 0
for where in np.array(at).T:
    ends = where[(where == 0) | (where == len(states) - 1)]
    came += int(((ends[1:] == 0) & (ends[:-1] > 0)).sum())
print(f"decoupled state: {statistics.proposed} proposals, {statistics.acceptance:.0%} accepted")
print(f"neighbouring states would exchange at rates of {', '.join(f'{p:.2f}' for p in np.mean(met, axis=0))}")
print(f"{came} times a molecule came from the decoupled state to the coupled one")
print(f"coupled state: phi > 0 in {np.mean(np.array(phi) > 0):.0%} of {len(phi)} iterations")
