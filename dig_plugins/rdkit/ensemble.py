"""Conformers with their exact weights: populations of states, free-energy differences, errors, files."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem

from dig_core.coordinates.measure import dihedral
from dig_core.errors import IncompatibleError
from dig_core.files import write_atomically
from dig_core.montecarlo import analysis
from dig_core.montecarlo.analysis import Estimate

from .convert import to_geometry
from .facts import rotatable_bonds
from .weighted import RESAMPLES, Weighted

__all__ = ["ConformerEnsemble", "torsion_states", "torsions_of"]


@dataclass(frozen=True)
class ConformerEnsemble(Weighted):
    """``mol`` with n conformers, whose properties hold the same numbers as the arrays do: energy, log_q, log_weight.

    ``energy`` (n,) kcal/mol; ``log_q`` (n,) log-density of how a conformer was proposed, Angstrom, nan where that is not known;
    ``log_weight`` (n,) raw and never clipped: averages with :attr:`weights` are those of exp(-E/kT), or of the model where the
    conformers are uncorrected. ``chains`` that they are of, one after the other, as long as each other; 1 if they are independent: errors
    grow where these disagree or drift, because they are too short. ``acceptance`` of a Metropolis chain on the model's proposals.
    """

    mol: Chem.Mol
    energy: np.ndarray
    log_q: np.ndarray
    log_weight: np.ndarray
    temperature: float
    seed: int
    acceptance: float
    chains: int = 1

    def populations(self, by: list | np.ndarray | None = None) -> dict[tuple[int, ...], Estimate]:
        """State -> population with its bootstrap standard error, the most populated first.

        ``by``: a list of torsions, quadruples of atoms, those of :func:`torsions_of` if None, whose states :func:`torsion_states`
        tells; or an array (n,) or (n, k) of one's own integers.
        """
        states = self._states(by)
        labels, where = np.unique(states, axis=0, return_inverse=True)

        def shares(index: np.ndarray, weight: np.ndarray) -> np.ndarray:
            return np.bincount(index, weight, minlength=len(labels)) / weight.sum()

        found = analysis.bootstrap(shares, where.reshape(-1), self.weights, chains=self.chains, n=RESAMPLES, rng=self._rng())
        order = np.argsort(-found.value, kind="stable")
        return {tuple(labels[i].tolist()): Estimate(float(found.value[i]), float(found.stderr[i])) for i in order}

    def average(self, values: np.ndarray) -> Estimate:
        """Mean of (n,) values, one a conformer, with its standard error."""

        def mean(x: np.ndarray, weight: np.ndarray) -> float:
            return float(x @ weight / weight.sum())

        values = np.asarray(values, dtype=np.float64)
        return analysis.bootstrap(mean, values, self.weights, chains=self.chains, n=RESAMPLES, rng=self._rng())

    def write_sdf(self, path: str | Path) -> None:
        """Every conformer as a record with its energy, log_q and log_weight; the file is complete or not there."""
        path, text = Path(path), io.StringIO()
        if not path.parent.is_dir():
            raise IncompatibleError(f"there is no directory {path.parent} to write {path.name} in: make it, or choose another.")
        record, writer = Chem.Mol(self.mol), Chem.SDWriter(text)
        for conformer in self.mol.GetConformers():
            for name, value in conformer.GetPropsAsDict().items():
                record.SetProp(name, repr(value))
            writer.write(record, confId=conformer.GetId())
        writer.close()
        write_atomically(path, text.getvalue().encode())

    def _states(self, by: list | np.ndarray | None) -> np.ndarray:
        """(n, k) integers."""
        if by is None or (isinstance(by, list) and by and len(by[0]) == 4):
            return torsion_states(self.mol, by)
        states = np.asarray(by)
        if len(states) != len(self) or states.ndim > 2:
            raise IncompatibleError(f"expected one state for each of {len(self)} conformers, got shape {states.shape}.")
        return states.reshape(len(self), -1).astype(np.int64)


def torsions_of(mol: Chem.Mol) -> list[tuple[int, int, int, int]]:
    """A torsion for each rotatable bond and each bond of a ring that is not aromatic: of the neighbours that come first, heavy if any."""
    rings = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds() if b.IsInRing() and not b.GetIsAromatic()]

    def neighbour(atom: int, other: int, ring: bool) -> int:
        around = [a for a in mol.GetAtomWithIdx(atom).GetNeighbors() if a.GetIdx() != other]
        if ring:
            around = [a for a in around if mol.GetBondBetweenAtoms(atom, a.GetIdx()).IsInRing()]
        return min(around, key=lambda a: (a.GetAtomicNum() == 1, a.GetIdx())).GetIdx()

    pairs = [(pair, False) for pair in rotatable_bonds(mol)] + [(tuple(sorted(pair)), True) for pair in sorted(rings)]
    return [(neighbour(i, j, ring), i, j, neighbour(j, i, ring)) for (i, j), ring in pairs]


def torsion_states(mol: Chem.Mol, torsions: Sequence[tuple[int, int, int, int]] | None = None) -> np.ndarray:
    """(n, T) third of the turn that each torsion of each conformer is in: 0 about +60 degrees, 1 about 180, -1 about -60."""
    torsions = torsions_of(mol) if torsions is None else list(torsions)
    if not torsions:
        return np.zeros((mol.GetNumConformers(), 0), dtype=np.int64)
    angles = dihedral(to_geometry(mol).positions, torch.as_tensor(torsions)).numpy()
    third = 2 * math.pi / 3
    return np.where(np.abs(angles) >= third, 1, np.where(angles >= 0, 0, -1)).astype(np.int64)
