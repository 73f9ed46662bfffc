"""Carbon crystals with a wanted band gap: design, judge, picture.

python examples/carbon_design.py [--fast]       # no download, no GPU; some minutes of one core

What decides is the tight-binding gap. Any other function takes its place: predictor=f, f(geometry) -> (B,) of crystals (B, N, 3) with
cells (B, 3, 3) in Angstrom. Designs are drawn by rejection: some ten draws for one of 4 eV.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure

from dig_plugins.pymatgen import design
from dig_plugins.pymatgen.evaluate import coordination, gallery, gap_histogram, hit_rate, judged
from dig_plugins.pymatgen.gap import LearnedGap

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--fast", action="store_true", help="few structures, few steps: smoke sizes")
fast = parser.parse_args().fast
torch.set_num_threads(1)
n, steps, out = (2, 24, Path(tempfile.mkdtemp())) if fast else (40, 60, Path(tempfile.mkdtemp()))

# The model as it is, then the same model asked for an insulator of 4 eV, and for anything above 2 eV.
options = {"composition": "C6", "n": n, "model": "carbon", "seed": 1, "steps": steps}
sets = {"unguided": design(**options), "4 eV": design(target=4.0, **options), "above 2 eV": design(target=(2.0, float("inf")), **options)}
print(sets["4 eV"].summary())

# Never believe the guide: gaps again, by a network. It was trained on tight-binding labels; the last word have plane waves.
judge = LearnedGap.load()
gaps = {name: judged(designs.structures, judge) for name, designs in sets.items()}
for name, target in (("4 eV", 4.0), ("above 2 eV", (2.0, float("inf")))):
    print(f"asked for {name}:\n{hit_rate(gaps[name], target, base=gaps['unguided']).to_markdown()}")
print(coordination(sets["4 eV"].structures).to_markdown())

figure = Figure(figsize=(10, 6), layout="constrained")
above, below = figure.subfigures(2, 1)
gap_histogram(above.add_subplot(), gaps, {"4 eV": 4.0, "above 2 eV": (2.0, 6.0)})
best = sorted(range(len(sets["4 eV"])), key=lambda i: -sets["4 eV"].log_likelihood[i])[:4]
gallery(below, [sets["4 eV"].structures[i] for i in best], [f"{gaps['4 eV'][i]:.1f} eV" for i in best])
figure.savefig(out / "carbon.png", dpi=150)

# extended XYZ for ASE and OVITO, CIF for everything else, a table to read; weights, log q and gaps travel along.
sets["4 eV"].write(out / "4eV")
print(f"written to {out}: {', '.join(sorted(str(p.relative_to(out)) for p in out.rglob('*.*')))}")
