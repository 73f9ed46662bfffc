"""Conformers of a drug-like molecule: minima to work with at once, and populations that are exact.

python examples/conformers.py [--fast]       # no download, no GPU; some ten minutes of one core

The shipped model serves any molecule; what it draws is minimised here. Populations need a model of the molecule's own, trained on MMFF94.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from rdkit import Chem

from dig_plugins.rdkit import distinct_minima, enumerate_stereo, fit_molecule, of_smiles, sample_conformers

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--fast", action="store_true", help="few conformers, no training")
fast = parser.parse_args().fast
torch.set_num_threads(1)
out = Path(tempfile.mkdtemp())

# Stereochemistry that a drawing leaves open is no detail: each isomer is a molecule of its own.
isomers = [Chem.MolToSmiles(isomer) for isomer in enumerate_stereo(Chem.MolFromSmiles("CC(O)C(=O)Nc1ccccc1"))]
print("isomers:", ", ".join(isomers))
mol = of_smiles(isomers[0])

# Draws of the model of any molecule, then the distinct minima that they lead to, lowest first.
drawn = sample_conformers(mol, 8 if fast else 50, model="conformers", correct=None, seed=1, steps=8 if fast else None)
minima = distinct_minima(drawn.mol, 10)
energies = [conformer.GetDoubleProp("energy") for conformer in minima.GetConformers()]
print("minima, kcal/mol:", ", ".join(f"{energy - energies[0]:.2f}" for energy in energies))

# Populations: every draw weighed with MMFF94. A model of the molecule's own makes the weights worth having.
model = "conformers" if fast else fit_molecule(mol, budget="5min", seed=1).dig
found = sample_conformers(mol, 20 if fast else 5000, model=model, seed=2)
print(f"worth {found.effective_sample_size():.0f} of {len(found)} conformers, acceptance {found.acceptance:.2f}")
for state, (share, error) in list(found.populations().items())[:4]:
    print(f"torsions {state}: {share:.3f} ± {error:.3f}")
found.write_sdf(out / "conformers.sdf")
print(f"written to {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")
