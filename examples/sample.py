"""Draw independent alanine dipeptide structures with exact weights, average something, save a trajectory."""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from dig_plugins.openmm import backbone_dihedrals, sample

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--fast", action="store_true", help="a few structures only")
fast = parser.parse_args().fast

ensemble = sample("alanine-dipeptide", 256 if fast else 10_000, seed=1)
ensemble.save(Path(tempfile.mkdtemp()) / "alanine-dipeptide.xtc")

backbone = backbone_dihedrals(ensemble.topology)
left_handed = ensemble.average(lambda x: (backbone.measure(x)[0][:, 0] > 0) & (backbone.measure(x)[0][:, 0] < np.radians(130)))
print(f"worth {ensemble.effective_sample_size:.0f} equilibrium samples of {len(ensemble.positions)}")
print(f"population of the left-handed states (0 < phi < 130 degrees): {left_handed:.4f}")
