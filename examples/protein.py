"""Both states of a protein, and a path between them: sample, look, interpolate.

python examples/protein.py [--fast]       # no download, no GPU; some minutes of one core

The model knows adenylate kinase from one transition. For your own: fit_backbones(read_backbones("md.xtc", "protein.pdb")).
"""

import argparse
import tempfile
from pathlib import Path

import torch

from dig_core.sampling.guidance import PropertyGuidance
from dig_core.sampling.likelihoods import Property, Value
from dig_core.types import Geometry
from dig_plugins import models
from dig_plugins.mdtraj import Distance, interpolate_backbones, numbered, sample_backbones
from dig_plugins.mdtraj.observables import rmsf

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--fast", action="store_true", help="a small protein, few structures: smoke sizes")
fast = parser.parse_args().fast
torch.set_num_threads(1)
n, steps, out = (3, 12, Path(tempfile.mkdtemp())) if fast else (16, 32, Path(tempfile.mkdtemp()))

# In fast mode a peptide of 21 residues stands in.
name, spans = ("fs-peptide", (range(2, 7), range(18, 23))) if fast else ("adenylate-kinase", (range(118, 161), range(1, 30)))
dig = models.load(name)
ensemble = sample_backbones(dig, n, seed=1, steps=steps, valid_only=not fast)
print(ensemble.summary())
ensemble.write(out / "samples.xtc")

# Where the lid (residues 118 to 160) stands from the core says which state a structure is in.
lid, core = (numbered(dig.descriptor, span) for span in spans)
distance = Distance(lid, core)(ensemble.geometry, dig.descriptor)
print(f"lid to core: {float(distance.min()):.1f} to {float(distance.max()):.1f} Angstrom")
mobile = rmsf(ensemble.trajectory().atom_slice(ensemble.trajectory().top.select("name CA")).xyz * 10.0)
print(f"most mobile residue: {int(mobile.argmax()) + 1}, {mobile.max():.1f} Angstrom")

# The same model asked for a lid that is half open. Paths carry weights; other samplers follow the condition roughly.
half = Property(Distance(lid, core), Value(float(distance.mean()), 0.5), "lid to core")
guided = sample_backbones(dig, n, seed=2, steps=steps, method="ancestral", guidance=PropertyGuidance(half), valid_only=False)
print(f"asked for {float(distance.mean()):.1f}: {guided.properties['lid to core'].mean():.1f} Angstrom")

# From the most closed to the most open structure through latent space.
ends = (ensemble.geometry.positions[k : k + 1] for k in (int(distance.argmin()), int(distance.argmax())))
path = interpolate_backbones(dig, *(Geometry(end) for end in ends), n=3 if fast else 11, steps=4 if fast else 12)
print(path.summary())
path.write(out / "path.xtc")
path.figure().savefig(out / "path.png", dpi=150)
print(f"written to {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")
