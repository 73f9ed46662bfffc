"""What reports show of conformers: free energies along torsions, populations of states, structures to turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from rdkit import Chem

from dig_core.coordinates.measure import dihedral
from dig_core.montecarlo.analysis import free_energy_profile

from ..panels import COLOURS, turns
from ..report import Panel, Scene
from ..scene import superposed
from .convert import to_geometry
from .ensemble import ConformerEnsemble, torsions_of

__all__ = ["population_rows", "positions_of", "structures", "torsion_panels"]

_BINS, _MOST = 36, 4
_STATES = {0: "g+", 1: "t", -1: "g-"}


def torsion_panels(mol: Chem.Mol, positions: np.ndarray, weights: np.ndarray | None) -> list[Panel]:
    """Free energies along the torsions that vary most; ``positions`` (n, N, 3) Angstrom of which ``weights`` (n,) say what each weighs."""
    torsions = torsions_of(mol)
    if not torsions:
        return []
    angles = dihedral(torch.as_tensor(np.asarray(positions)), torch.as_tensor(torsions)).numpy()
    chosen = np.argsort(np.abs(np.exp(1j * angles).mean(0)), kind="stable")[:_MOST]
    edges, profiles = np.linspace(-np.pi, np.pi, _BINS + 1), {}
    for k, colour in zip(chosen.tolist(), COLOURS, strict=False):
        found = free_energy_profile(angles[:, k], edges, weights, periodic=True, rng=np.random.default_rng(0))
        profiles["-".join(f"{mol.GetAtomWithIdx(i).GetSymbol()}{i}" for i in torsions[k])] = (found, colour, "-")
    said = "The torsions that vary most, by their atoms. Bands are two standard errors either side; gaps were never visited."
    return [Panel("Free energy along torsions", lambda ax: turns(ax, profiles, "torsion"), said, wide=True)]


def structures(mol: Chem.Mol, positions: np.ndarray, labels: Sequence[str] = (), caption: str = "") -> Scene:
    """``positions`` (F, N, 3) Angstrom, superposed by heavy atoms."""
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    heavy = np.flatnonzero(numbers > 1)
    placed = superposed(np.asarray(positions, dtype=np.float64), heavy if len(heavy) > 2 else None)
    return Scene.of(numbers, placed, labels=labels, caption=caption, title="Conformers")


def population_rows(found: ConformerEnsemble, most: int = 10) -> list[dict]:
    """States of the torsions, the most populated first: ``state`` in words, ``population`` and its ``stderr``."""
    if not torsions_of(found.mol):
        return []
    states = list(found.populations().items())[:most]
    return [{"state": " ".join(_STATES[k] for k in state), "population": x.value, "stderr": x.stderr} for state, x in states]


def positions_of(mol: Chem.Mol) -> np.ndarray:
    """(n, N, 3) Angstrom of every conformer."""
    return to_geometry(mol).positions.numpy()
