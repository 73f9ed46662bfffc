"""Hydrogen on Pt(111): build a slab, sample it, make the ensemble exact, map it, find the sites and relax them.

python examples/adsorption.py [--fast]       # no download, no GPU

The energy here is in closed form (SiteSurface, a DFT table), so that populations can be compared with quadrature. Any ASE
calculator takes its place, over any slab; with CHGNet (pip install chgnet):
    energy, model = calculator_named("chgnet"), "adsorb-general"       # or "sevennet"
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from ase.build import fcc111
from ase.constraints import FixAtoms
from matplotlib.figure import Figure

from dig_plugins.ase.adsorption import SiteSurface, find_sites, fit_adsorption, sample_adsorption

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--fast", action="store_true", help="the shipped model as it is, and fewer samples")
fast = parser.parse_args().fast
torch.set_num_threads(1)
temperature, out = 300.0, Path(tempfile.mkdtemp())

# A slab as a paper would have it: p(2x2), four layers. The analytic energy asks for a rigid one.
slab = fcc111("Pt", (2, 2, 4), a=3.98, vacuum=8.0)
slab.set_constraint(FixAtoms(range(len(slab))))
surface = SiteSurface.from_table("Pt", "H")
energy, model = surface.calculator(), "adsorb-fcc111"

# The shipped model will do: weights are exact whatever it is worth. Trained on for half a minute, it is worth ten times the samples.
if not fast:
    found = fit_adsorption(slab, "H", energy, model, temperature=temperature, evaluations=4000, steps=150, seed=1)
    print(found)
    model = found.dig

# One call: independent samples, each with its log-density and its energy, weighed to be exact for that energy.
ensemble = sample_adsorption(
    slab, "H", model, n=200 if fast else 2000, temperature=temperature, seed=1, energy=energy, correct="reweight"
)
print(ensemble.summary())
placed = surface.on(slab)
nearest = placed.nearest_site(placed.fractions(ensemble.positions[:, -1]))
for k, (site, exact) in enumerate(surface.populations(temperature).items()):
    weight = ensemble.weights * (nearest == k)
    stderr = np.sqrt((ensemble.weights**2 * ((nearest == k) - weight.sum()) ** 2).sum())
    print(f"nearest to {site:6s} {weight.sum():.3f} +- {stderr:.3f}, by quadrature {exact:.3f}")

# The map: free energy over the atoms, sites numbered as in the table.
figure = Figure(figsize=(5, 4), layout="constrained")
ensemble.plot(figure.add_subplot(), title="H on Pt(111), 300 K")
figure.savefig(out / "h-on-pt.png", dpi=150)

# Sites are where the learned density has its maxima, for which no energy is asked; relaxed, minima and saddles are told apart.
# The shipped model, which knows hot structures too: the one trained on has seen this temperature alone.
sites = find_sites(slab, "H", "adsorb-fcc111", n=100 if fast else 400, seed=1)
print(sites.to_markdown())
print(sites.relax(energy, 2 if fast else None).to_markdown())

# Everything in one file: ase gui opens it, AdsorptionEnsemble.read reads it.
ensemble.write(out / "h-on-pt.extxyz")
print(f"written to {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")
