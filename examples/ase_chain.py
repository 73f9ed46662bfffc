"""Any ASE calculator, sampled exactly: proposals mixed with Langevin MD, then a model trained on what the chain has seen."""

import argparse
import math
from functools import partial

import numpy as np
import torch
from ase import units
from ase.build import molecule
from ase.calculators.ff import ForceField
from ase.md.langevin import Langevin
from ase.utils.ff import Angle, Bond, Dihedral

from dig_core import Card, DiG, Geometry
from dig_core.coordinates import Internal
from dig_core.diffusion import Diffusion, Euclidean, Joint, Karras, LogSNR, Torus
from dig_core.nn import ResidualMLP
from dig_core.score import NoiseScore
from dig_core.training.frames import frames_of
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Denoising
from dig_plugins.ase import ASEEnergy, DiGDynamics, DiGSampler, describe, kT

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--fast", action="store_true", help="too short to be good; still exact")
fast = parser.parse_args().fast
torch.set_num_threads(1)
temperature = 300.0

# Two mirror images, a barrier of a dozen kT apart. Put your own molecule and calculator in their place.
atoms = molecule("H2O2", vacuum=10.0)
rest, stiff = np.deg2rad(100), {(0, 1): 30.0, (0, 2): 45.0, (1, 3): 45.0, (2, 0, 1): 4.0, (0, 1, 3): 4.0}
lengths = {(0, 1): 1.45, (0, 2): 0.97, (1, 3): 0.97}
atoms.calc = ForceField(
    bonds=[Bond(*pair, stiff[pair], length) for pair, length in lengths.items()],
    angles=[Angle(*three, stiff[three], rest) for three in ((2, 0, 1), (0, 1, 3))],
    dihedrals=[Dihedral(2, 0, 1, 3, 0.12, math.pi, 1), Dihedral(2, 0, 1, 3, 0.2, 0.0, 2)],
)

# Coordinates in thermal widths, as far as a force field tells them; without it, typical ones are taken.
descriptor = describe(atoms)
widths = {ends: (lengths.get(ends, rest), math.sqrt(kT(temperature) / k)) for ends, k in stiff.items()}
coordinates = Internal.from_reference(descriptor, widths)
sizes = {"shape": len(coordinates.centre), "torsion": len(coordinates.torsion_atoms)}
process = Joint(shape=Diffusion(Euclidean(sizes["shape"]), LogSNR(4.5, -4.0)), torsion=Diffusion(Torus(sizes["torsion"]), Karras()))
model = NoiseScore(ResidualMLP(sizes, ["torsion"], width=32, blocks=2), process)
dig = DiG(model, coordinates, descriptor, Card(name="hydrogen peroxide", temperature=temperature, steps=16))

md = partial(Langevin, timestep=0.5 * units.fs, temperature_K=temperature, friction=0.02 / units.fs, fixcm=False)


def run(steps: int, seed: int) -> np.ndarray:
    """The states after every test, repeats included, (n, 4, 3) Angstrom."""
    chain = DiGDynamics(atoms, dig, seed=seed, md=md, md_steps=5, proposals=16)
    seen = [chain.block.positions for _ in chain.irun(steps)]
    frames = np.concatenate(seen[1:])
    # The sign of this volume tells the mirror images apart.
    right = np.linalg.det(frames[:, 1:] - frames[:, :1]) > 0
    print(f"acceptance {chain.statistics.acceptance:.1%}, longest run of rejections {chain.statistics.longest_rejection_run}, ", end="")
    print(f"right-handed {right.mean():.2f} of the time (0.50 by symmetry)")
    return frames


# The untrained model proposes from its coordinates' widths alone. That is exact already; its states, with forces, train it.
frames = Geometry(torch.from_numpy(run(10 if fast else 60, seed=1)))
training = frames_of(coordinates, descriptor, frames, ASEEnergy(atoms.calc, atoms, temperature))
optimise(model, Denoising(training, descriptor), LoopConfig(steps=10 if fast else 250, batch=128, warmup=20, average=0.99))
run(10 if fast else 60, seed=2)

sampler = DiGSampler(dig, atoms)
images = sampler.sample(64 if fast else 500, seed=3)
free_energy, error = sampler.free_energy(atoms.calc)
print(f"configurational free energy {free_energy:.4f} +- {error:.4f} eV; the first sample: {images[0].info}")
