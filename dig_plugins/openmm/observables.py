"""Named dihedrals of an OpenMM Topology."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from openmm import app

from dig_core.coordinates.measure import dihedral
from dig_core.errors import IncompatibleError

__all__ = ["Backbone", "backbone_dihedrals"]


class Backbone(NamedTuple):
    """Atom indices (R, 4) of the phi and psi dihedrals of the residues that have both, in chain order."""

    phi: np.ndarray
    psi: np.ndarray

    def measure(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """phi and psi (F, R) in (-pi, pi] of ``positions`` (F, N, 3), any unit of length."""
        points = torch.as_tensor(np.asarray(positions), dtype=torch.float64)
        return dihedral(points, self.phi).numpy(), dihedral(points, self.psi).numpy()


def backbone_dihedrals(topology: app.Topology) -> Backbone:
    """phi (C-N-CA-C) and psi (N-CA-C-N) found by following bonds from each CA; capping groups count as neighbours."""
    bonded: dict[int, list] = {atom.index: [] for atom in topology.atoms()}
    for first, second in topology.bonds():
        bonded[first.index].append(second)
        bonded[second.index].append(first)

    def neighbour(atom, symbol: str, *, outside) -> int | None:
        found = [a.index for a in bonded[atom.index] if a.element.symbol == symbol and a.residue is not outside]
        return found[0] if len(found) == 1 else None

    phi, psi = [], []
    for residue in topology.residues():
        named = {atom.name: atom for atom in residue.atoms()}
        if not {"N", "CA", "C"} <= named.keys():
            continue
        n, ca, c = (named[name] for name in ("N", "CA", "C"))
        before, after = neighbour(n, "C", outside=residue), neighbour(c, "N", outside=residue)
        if before is not None and after is not None:
            phi.append((before, n.index, ca.index, c.index))
            psi.append((n.index, ca.index, c.index, after))
    if not phi:
        raise IncompatibleError("no residue of this topology has both phi and psi: expected peptide bonds on both sides of an N, CA, C.")
    return Backbone(np.array(phi), np.array(psi))
