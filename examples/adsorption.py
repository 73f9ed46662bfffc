"""Hydrogen on Pt(111): build a slab, sample it, make the ensemble exact, map it, and list the sites. No download, no GPU.

python examples/adsorption.py [--fast]

The energy here is in closed form (SiteSurface, a DFT table); any ASE calculator takes its place, such as CHGNet's:
    from chgnet.model.dynamics import CHGNetCalculator
    energy, model = CHGNetCalculator(use_device="cpu"), "adsorb-general"      # pip install chgnet
"""

import sys

from ase.build import fcc111

from dig_plugins.ase.adsorption import SiteSurface, fit_adsorption, sample_adsorption

fast = "--fast" in sys.argv
slab = fcc111("Pt", (2, 2, 4), a=3.98, vacuum=8)
energy = SiteSurface.from_table("Pt", "H").calculator()

# Where a model of this slab is wanted that is right by itself, train it from the energy alone.
found = fit_adsorption(slab, "H", energy, temperature=300, evaluations=1000 if fast else 20_000, steps=20 if fast else 800, seed=1)
print(found)

# Or take a model as it is: with an energy, weights and chains are exact whatever it is worth.
ensemble = sample_adsorption(slab, "H", found.dig, n=50 if fast else 2000, temperature=300, seed=1, energy=energy, correct="reweight")
print(ensemble.summary())

if not fast:
    import matplotlib.pyplot as plt

    ensemble.write("h-on-pt.extxyz")  # ase gui h-on-pt.extxyz
    figure, axes = plt.subplots(figsize=(5, 4))
    ensemble.plot(axes)
    figure.savefig("h-on-pt.png", dpi=150)
