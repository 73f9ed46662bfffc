"""Train a small model of a molecule of your own from MD frames and forces, then sample it exactly."""

import argparse

import numpy as np
import openmm as mm
import torch
from openmm import app, unit

from dig_core import Card, DiG, Geometry
from dig_core.coordinates import Internal
from dig_core.diffusion import Diffusion, Euclidean, Joint, Karras, LogSNR, Torus
from dig_core.nn import ResidualMLP
from dig_core.score import NoiseScore
from dig_core.training.frames import frames_of
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Denoising
from dig_plugins.openmm import OpenMMEnergy, describe, model_system, sample

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--fast", action="store_true", help="too short to be good; still exact")
fast = parser.parse_args().fast
torch.set_num_threads(1)

# A molecule: here the topology and force field of alanine dipeptide; put your own in their place.
topology, system, positions, temperature = model_system("alanine-dipeptide")
integrator = mm.LangevinMiddleIntegrator(temperature * unit.kelvin, 1 / unit.picosecond, 1 * unit.femtosecond)
simulation = app.Simulation(topology, system, integrator, mm.Platform.getPlatformByName("Reference"))
simulation.context.setPositions(positions)
frames = []
for _ in range(100 if fast else 5000):
    simulation.step(25)
    frames.append(simulation.context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.angstrom))
geometry = Geometry(torch.from_numpy(np.array(frames)))

# Coordinates standardised by the frames, forces pulled through them, a network for their number.
descriptor = describe(topology, system, positions)
coordinates = Internal.from_frames(descriptor, geometry)
training = frames_of(coordinates, descriptor, geometry, OpenMMEnergy(system, temperature))
sizes = {"shape": len(coordinates.centre), "torsion": len(coordinates.torsion_atoms)}
process = Joint(shape=Diffusion(Euclidean(sizes["shape"]), LogSNR(4.5, -4.0)), torsion=Diffusion(Torus(sizes["torsion"]), Karras()))
model = NoiseScore(ResidualMLP(sizes, ["torsion"], width=64 if fast else 256), process)
optimise(model, Denoising(training, descriptor), LoopConfig(steps=20 if fast else 5000, batch=64 if fast else 1024))

dig = DiG(model, coordinates, descriptor, Card(name="my molecule", temperature=temperature, steps=10 if fast else 32))
ensemble = sample(dig, 64 if fast else 2000, simulation=simulation, seed=1)
print(f"raw effective sample size {ensemble.effective_sample_size / len(ensemble.positions):.1%}, acceptance {ensemble.acceptance:.1%}")
