"""DiGMove between the moves of openmmtools: Langevin dynamics for the fast motions, proposals for the slow ones."""

import argparse
import sys

try:
    from openmmtools import cache, mcmc, states
except ImportError:
    sys.exit(print("this example needs openmmtools: pip install 'dig-plugins[openmmtools]'"))
import openmm as mm
from openmm import unit

from dig_plugins.openmm import DiGMove, model_system

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--fast", action="store_true", help="two iterations only")
fast = parser.parse_args().fast

cache.global_context_cache.platform = mm.Platform.getPlatformByName("Reference")
topology, system, positions, temperature = model_system("alanine-dipeptide")
here = states.ThermodynamicState(system, temperature * unit.kelvin)
now = states.SamplerState(positions * unit.nanometer)
dig = DiGMove("alanine-dipeptide", topology, proposals=32, batch=64, seed=1)
langevin = mcmc.LangevinDynamicsMove(timestep=1 * unit.femtosecond, collision_rate=1 / unit.picosecond, n_steps=100)

sampler = mcmc.MCMCSampler(here, now, move=mcmc.SequenceMove([langevin, dig]))
sampler.run(2 if fast else 100)
print(f"{dig.n_proposed} proposals, {dig.n_accepted / dig.n_proposed:.0%} accepted")
