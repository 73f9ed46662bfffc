"""Grid searches with CHGNet r2SCAN on surfaces that no shipped model was trained on: the references of adsorption.py. Half an hour.

Needs chgnet and the clean slabs of ``python -m dig_plugins.ase.recipes.labels``; writes benchmarks/results/adsorption/NAME.json.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from ase.io import read

from dig_plugins.ase.adsorption import grid_search
from dig_plugins.ase.adsorption.run import calculator_named
from dig_plugins.ase.recipes.slabs import adsorbate

HERE = Path(__file__).parent
SYSTEMS = (
    ("Cu-fcc211", "O"), ("Pt-fcc211", "O"), ("Cu3Pd-fcc111", "O"), ("Pt3Ni-fcc111", "O"), ("Cu-fcc211", "H"), ("Pt3Ni-fcc111", "H"),
    ("Ir-fcc110", "O"), ("Au-fcc211", "N"), ("Cu-fcc211", "CO"),
)  # fmt: skip


def main() -> None:
    """Search what is not searched yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slabs", type=Path, required=True)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    calculator = calculator_named("chgnet")
    out = HERE / "results" / "adsorption"
    out.mkdir(parents=True, exist_ok=True)
    for name, guest in SYSTEMS:
        place = out / f"{name}-{guest}.json"
        if place.exists():
            continue
        slab = read(given.slabs / f"{name}.extxyz")
        molecule = adsorbate(guest)
        found = grid_search(slab, molecule, calculator, spacing=0.55, orientations=3, fmax=0.03, steps=80)
        found.write(place)
        print(f"{name} {guest}: {len(found)} sites, {found.n_calls} calls, {found.cpu_s:.0f} s", flush=True)


if __name__ == "__main__":
    main()
