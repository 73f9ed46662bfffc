"""A model of any molecule's conformers on the molecule at hand."""

from __future__ import annotations

import dataclasses

from rdkit import Chem

from dig_core.dig import DiG
from dig_core.nn.conformer import ConformerGraphormer
from dig_core.score import NoiseScore
from dig_core.training.molecules import internal_process

from .basins import transferable_coordinates
from .check import check_molecule, check_parameters

__all__ = ["on_molecule"]


def on_molecule(dig: DiG, mol: Chem.Mol) -> DiG:
    """``dig`` as a model of ``mol``; of a model of one molecule, which it may be already, nothing changes.

    The structure of ``mol`` is not read: its coordinates come from distance geometry with a fixed seed, so that the same molecule in the
    same order of atoms gives the same model. It can be sampled, weighed and saved like any other.

    Raises
    ------
    IncompatibleError, UnsupportedError: what :func:`.check.check_molecule` refuses, atoms that MMFF94 does not know.
    StateError: no 3D structure found.
    """
    network = dig.model.network if isinstance(dig.model, NoiseScore) else None
    if not isinstance(network, ConformerGraphormer):
        return dig
    check_molecule(mol)
    check_parameters(mol)
    coordinates, descriptor, _ = transferable_coordinates(mol, dig.card.temperature or 300.0)
    fresh = network.on(coordinates, descriptor)
    system = Chem.MolToSmiles(Chem.RemoveHs(mol))
    model = NoiseScore(fresh, internal_process(**fresh.sizes)).eval().requires_grad_(False)
    return DiG(model, coordinates, descriptor, dataclasses.replace(dig.card, system=system))
