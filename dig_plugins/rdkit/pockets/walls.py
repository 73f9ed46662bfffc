"""The pocket as a wall while poses are drawn: guidance away from overlaps, whose paths have exact densities like any other."""

from __future__ import annotations

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor

from dig_core.coordinates import Bound
from dig_core.sampling.guidance import Property, PropertyGuidance
from dig_core.sampling.likelihoods import Value
from dig_core.system.descriptor import Descriptor
from dig_core.types import State

from .pocket import Pocket

__all__ = ["Overlap", "avoid_overlaps"]

_NEAREST = 0.85  # of the sum of van der Waals radii; chosen, as the width below, on ligands that were trained on
_SOFT = 0.02  # Angstrom


class Overlap:
    """How deep a ligand stands in the pocket: the root of the sum of squares, over heavy atoms, of what is missing to ``nearest`` times the
    sum of van der Waals radii, Angstrom. (B,) of states, differentiable."""

    def __init__(self, ligand: Chem.Mol, pocket: Pocket, nearest: float = _NEAREST):
        table = Chem.GetPeriodicTable()
        self.heavy = [a.GetIdx() for a in ligand.GetAtoms() if a.GetAtomicNum() > 1]
        mine = [table.GetRvdw(ligand.GetAtomWithIdx(i).GetAtomicNum()) for i in self.heavy]
        others = np.flatnonzero(pocket.heavy)
        theirs = [table.GetRvdw(pocket.mol.GetAtomWithIdx(int(i)).GetAtomicNum()) for i in others]
        self.wall = torch.from_numpy(pocket.positions[others])
        self.least = nearest * (torch.tensor(mine, dtype=torch.float64)[:, None] + torch.tensor(theirs, dtype=torch.float64))

    def __call__(self, state: State, descriptor: Descriptor) -> Tensor:
        ligand = Bound().ligand(state, descriptor)[:, self.heavy]
        # Only pairs that may touch have a slope: found without one.
        with torch.no_grad():
            apart = torch.cdist(ligand, self.wall.expand(len(ligand), -1, -1), compute_mode="donot_use_mm_for_euclid_dist")
            row, i, j = (apart < self.least).nonzero(as_tuple=True)
        distance = (ligand[row, i] - self.wall[j]).square().sum(-1).clamp_min(1e-12).sqrt()
        depth = (self.least[i, j] - distance).square()
        total = torch.zeros(len(ligand), dtype=torch.float64).index_add(0, row, depth)
        return (total + _SOFT**2).sqrt() - _SOFT


def avoid_overlaps(ligand: Chem.Mol, pocket: Pocket, width: float = 0.1) -> PropertyGuidance:
    """Guidance to an :class:`Overlap` of none, with a standard deviation of ``width`` Angstrom."""
    wanted = Property(Overlap(ligand, pocket), Value(0.0, width), "overlap", of="state")
    return PropertyGuidance(wanted, through="spread", limit=20.0)
