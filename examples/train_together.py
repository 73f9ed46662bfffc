"""One training on all the processes that torchrun starts; the losses are those of one.

torchrun --standalone --nproc-per-node 2 examples/train_together.py md.xtc --structure protein.pdb --out training
python examples/train_together.py md.xtc --structure protein.pdb --out training      # by itself

Killed at any time, the same command goes on. On several machines, and under SLURM: docs/scale.md.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch

from dig_core.training.team import launched
from dig_plugins import models
from dig_plugins.mdtraj import Backbones, fit_backbones, read_backbones, sample_backbones

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("trajectory", nargs="?", help="of a protein; drawn from a shipped model if not given")
parser.add_argument("--structure", help="PDB file that says what the atoms are")
parser.add_argument("--out", help="on a disk that all processes see")
parser.add_argument("--device", default="cpu", help="or cuda: a GPU for each process")
parser.add_argument("--fast", action="store_true", help="a small network, few steps: smoke sizes")
options = parser.parse_args()
torch.set_num_threads(1)

if options.trajectory:
    backbones = read_backbones(options.trajectory, options.structure)
else:
    drawn = sample_backbones(models.load("fs-peptide"), 16, seed=1, steps=8, valid_only=False)
    backbones = Backbones(drawn.descriptor, drawn.geometry, notes=())
network = {"width": 32, "layers": 1} if options.fast else {}
with launched(options.device) as device:
    out = Path(options.out or tempfile.mkdtemp())
    found = fit_backbones(backbones, steps=20 if options.fast else 4000, batch=8, device=device, out=out, seed=1, **network)
    if os.environ.get("RANK", "0") == "0":
        print(f"{found}\nmodel: {out / 'model.safetensors'}")
