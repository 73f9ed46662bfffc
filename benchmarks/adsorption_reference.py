"""Grid searches with CHGNet r2SCAN on surfaces that no shipped model was trained on: the references of adsorption.py. Half an hour.

Needs chgnet and the clean slabs of ``python -m dig_plugins.ase.recipes.labels``; writes benchmarks/results/adsorption/NAME.json.
A search stops at 0.03 eV/Angstrom, which in a flat valley may be far from its lowest place: what it calls minima is relaxed once more,
to 0.005 eV/Angstrom. Calls are those of the search alone.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from ase import Atoms
from ase.io import read

from dig_plugins.ase import calculator_named
from dig_plugins.ase.adsorption import SiteSet, grid_search
from dig_plugins.ase.adsorption.coverage import reference_minima
from dig_plugins.ase.adsorption.grid import relaxed_sites
from dig_plugins.ase.adsorption.relax import Counted, relax_clean
from dig_plugins.ase.recipes.slabs import adsorbate

HERE = Path(__file__).parent
SYSTEMS = (
    ("Cu-fcc211", "O"), ("Pt-fcc211", "O"), ("Cu3Pd-fcc111", "O"), ("Pt3Ni-fcc111", "O"), ("Cu-fcc211", "H"), ("Pt3Ni-fcc111", "H"),
    ("Ir-fcc110", "O"), ("Au-fcc211", "N"), ("Cu-fcc211", "CO"),
)  # fmt: skip


def settled(found: SiteSet, calculator) -> SiteSet:
    """The minima of a search, each relaxed by itself until forces are below 0.005 eV/Angstrom; what ends in one place is one."""
    counted = Counted(calculator)
    clean = relax_clean(found.slab, counted, fmax=0.005, steps=300)
    starts = [clean.atoms + Atoms(found.numbers, positions=site.positions) for site in reference_minima(found, 0.5)]
    source = f"{found.source}, minima relaxed to 0.005 eV/Angstrom"
    ends = relaxed_sites(starts, clean, found.frame, counted, anchor=0, fmax=0.005, steps=300, source=source)
    return replace(ends, n_calls=found.n_calls, wall_s=found.wall_s, cpu_s=found.cpu_s)


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
        settled(found, calculator).write(place)
        print(f"{name} {guest}: {len(found)} sites, {found.n_calls} calls, {found.cpu_s:.0f} s", flush=True)


if __name__ == "__main__":
    main()
