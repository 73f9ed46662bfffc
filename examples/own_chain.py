"""DiG as the proposal of somebody else's Markov chain: draw, weigh, accept. No engine runs the chain."""

import argparse
import math

import numpy as np

import dig_plugins
from dig_core import Geometry, Streams
from dig_plugins.openmm import OpenMMEnergy, model_system

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--fast", action="store_true", help="a few proposals only")
n = 64 if parser.parse_args().fast else 2000

system = model_system("alanine-dipeptide")
energy = OpenMMEnergy(system.system, system.temperature)  # any function of (B, N, 3) Angstrom that returns E/kT will do
proposal = dig_plugins.load_model("alanine-dipeptide").proposal()

drawn = proposal.draw(n, Streams(seed=1, indices=range(n)))
log_weight = -energy(drawn.geometry) - drawn.log_q

decide = np.random.default_rng(1)
here, accepted = 0, 0
for candidate in range(1, n):
    if math.log(1 - decide.random()) < log_weight[candidate] - log_weight[here]:
        here, accepted = candidate, accepted + 1
print(f"accepted {accepted / (n - 1):.0%} of {n - 1} independent proposals")

# After a move of one's own the current structure gets its log_q anew, over a fresh path: an exact Gibbs step.
moved = Geometry(drawn.geometry.positions[here : here + 1])
print("log weight of the last state over another path:", float(-energy(moved) - proposal.log_q(moved, Streams(2, [0]))))
