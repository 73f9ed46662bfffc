"""The recipe of the models trained from their force fields alone: ``fit`` with a budget, and a card. No data, no dynamics.

python -m dig_plugins.openmm.recipes.force_field alanine-dipeptide-vacuum --out runs/vacuum --budget 30min

Resumable: run the same command again. The structures beside the shipped checkpoints fix the stereochemistry and nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import NamedTuple

import torch

from dig_core.dig import Card
from dig_plugins import models
from dig_plugins.openmm.training import Fitted, fit_files

log = logging.getLogger(__name__)

__all__ = ["MOLECULES", "Molecule", "train"]


class Molecule(NamedTuple):
    """``structure`` beside the checkpoints, force-field files, temperature in K, what it is in words."""

    structure: str
    force_field: tuple[str, ...]
    temperature: float
    system: str


_OBC = ("amber99sbildn.xml", "amber99_obc.xml")

MOLECULES = {
    "alanine-dipeptide-vacuum": Molecule(
        "alanine-dipeptide.pdb", ("amber99sbildn.xml",), 300.0, "ACE-ALA-NME, 22 atoms, vacuum, no constraints"
    ),
    "alanine-dipeptide-ff96": Molecule(
        "alanine-dipeptide.pdb", ("amber96.xml", "amber96_obc.xml"), 300.0, "ACE-ALA-NME, 22 atoms, implicit solvent, no constraints"
    ),
    "alanine-tetrapeptide": Molecule(
        "alanine-tetrapeptide.pdb", _OBC, 300.0, "ACE-ALA-ALA-ALA-NME, 42 atoms, implicit solvent, no constraints"
    ),
    "proline-dipeptide": Molecule(
        "proline-dipeptide.pdb", _OBC, 300.0, "ACE-PRO-NME, 26 atoms with a ring, implicit solvent, no constraints"
    ),
}


def train(name: str, out: Path, budget: str, seed: int) -> Fitted:
    """Train ``name`` and write ``out/NAME.safetensors`` with its card."""
    molecule = MOLECULES[name]
    structure = Path(models.__file__).with_name(molecule.structure)
    found = fit_files(structure, list(molecule.force_field), molecule.temperature, budget=budget, out=out, name=name, seed=seed)
    if found.finished:
        dig = dataclasses.replace(found.dig, card=_card(name, found.dig.card, found))
        dig.save(out / f"{name}.safetensors")
    return found


def _card(name: str, card: Card, found: Fitted) -> Card:
    molecule = MOLECULES[name]
    minutes = f"{found.evaluations:,} energy evaluations, {found.seconds / 60:.0f} minutes of wall time, one core"
    return dataclasses.replace(
        card,
        system=molecule.system,
        energy=" + ".join(molecule.force_field),
        measured={**card.measured, "script": "dig_plugins/openmm/recipes/force_field.py"},
        history=[{"note": f"from the force field alone: {minutes}"}, *(_brief(stage) for stage in card.history)],
        intended_use="Monte Carlo proposals and reweighting at 300 K with this force field",
        limits="one molecule, one temperature; other energies are sampled exactly but less efficiently",
    )


def _brief(stage: dict) -> dict:
    """A stage without its rungs, which are many."""
    rungs = stage.get("rungs")
    return stage if rungs is None else {**stage, "rungs": len(rungs)}


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(MOLECULES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", default="30min")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    given = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(given.pop("threads"))
    log.info("%s", train(**given))


if __name__ == "__main__":
    main()
