"""Poses with what they weigh: clusters with probabilities, checks, relaxation, files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rdkit import Chem

from dig_core.energy import Energy
from dig_core.errors import IncompatibleError
from dig_core.files import write_atomically
from dig_core.montecarlo import analysis
from dig_core.montecarlo.analysis import Estimate

from ..compare import heavy_symmetries
from ..convert import to_geometry, with_conformers
from ..energy import reduced_unit
from ..given import check_energy
from ..weighted import RESAMPLES, Weighted
from .checks import PoseChecks, check_poses
from .energy import PocketEnergy
from .flexible import Flexible
from .minimise import relax
from .pocket import Pocket
from .whole import Fixed

__all__ = ["Cluster", "PoseEnsemble", "pose_rmsd"]


class Cluster(NamedTuple):
    """Poses ``members``, indices, the heaviest first, and their ``probability`` with a bootstrap standard error."""

    members: tuple[int, ...]
    probability: Estimate


@dataclass(frozen=True)
class PoseEnsemble(Weighted):
    """``mol`` with n poses in the frame of ``pocket``, whose properties hold the same numbers as the arrays do.

    ``energy`` (n,) kcal/mol of the energy that was sampled, of MMFF94 in a fixed pocket without the pocket's own part, nan where it was
    not asked for; ``log_q`` (n,) log-density of how a pose was proposed, Angstrom, nan where there is none; ``log_weight`` (n,) raw and
    never clipped; ``acceptance`` of a Metropolis chain on the model's proposals; ``block``: poses that errors take together. Of a flexible
    pocket besides, ``pockets`` (n, P, 3) Angstrom, where each pose has it, and ``flexible``, which of its atoms moved.
    """

    mol: Chem.Mol
    pocket: Pocket
    energy: np.ndarray
    log_q: np.ndarray
    log_weight: np.ndarray
    temperature: float
    seed: int
    acceptance: float
    block: int = 1
    pockets: np.ndarray | None = None
    flexible: Flexible | None = None

    @property
    def positions(self) -> np.ndarray:
        """(n, L, 3) Angstrom."""
        return to_geometry(self.mol).positions.numpy()

    @property
    def pocket_rmsd(self) -> np.ndarray:
        """(n,) Angstrom: of the heavy atoms that are flexible from where the file has them, in place; 0 where none is."""
        if self.pockets is None or self.flexible is None:
            return np.zeros(len(self))
        heavy = self.flexible.atoms[self.pocket.heavy[self.flexible.atoms]]
        return np.sqrt(((self.pockets - self.pocket.positions)[:, heavy] ** 2).sum(2).mean(1))

    def pocket_of(self, k: int) -> Pocket:
        """The pocket as pose ``k`` has it."""
        if self.pockets is None:
            return self.pocket
        return dataclasses.replace(self.pocket, mol=with_conformers(self.pocket.mol, self.pockets[[k]]))

    def clusters(self, radius: float = 2.0) -> list[Cluster]:
        """Poses within ``radius`` Angstrom (RMSD in place) of a heavier one that no other has taken; the most probable first."""
        apart, weights = pose_rmsd(self.mol, self.mol), self.weights
        label = np.full(len(self), -1)
        for k in np.argsort(-weights, kind="stable"):
            if label[k] < 0:
                label[(apart[k] < radius) & (label < 0)] = k
        found, groups = np.unique(label, return_inverse=True)

        def shares(index: np.ndarray, weight: np.ndarray) -> np.ndarray:
            return np.bincount(index, weight, minlength=len(found)) / weight.sum()

        share = analysis.bootstrap(shares, groups, weights, block=self.block, n=RESAMPLES, rng=self._rng())
        made = []
        for k, (value, error) in enumerate(zip(share.value, share.stderr, strict=True)):
            members = np.flatnonzero(groups == k)
            members = members[np.argsort(-weights[members], kind="stable")]
            made.append(Cluster(tuple(members.tolist()), Estimate(float(value), float(error))))
        return sorted(made, key=lambda c: -c.probability.value)

    def checks(self) -> PoseChecks:
        """What is wrong with each pose in its pocket, see :func:`.checks.check_poses`."""
        if self.pockets is None:
            return check_poses(self.mol, self.pocket)
        positions = self.positions
        parts = [check_poses(with_conformers(self.mol, positions[[k]]), self.pocket_of(k)) for k in range(len(self))]
        return PoseChecks(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in dataclasses.fields(PoseChecks)))

    def relaxed(self, *, energy: Energy | None = None, variant: str = "MMFF94s", steps: int = 200) -> PoseEnsemble:
        """Every pose minimised in the pocket as the file has it; such poses have an energy and no density.

        ``energy``: as of :func:`.sample.sample_poses`, MMFF94 if None. IncompatibleError for an ensemble of flexible pockets: minimise its
        poses with their pockets by :func:`.induced.induced_fit`.
        """
        if self.pockets is not None:
            raise IncompatibleError("expected poses in a fixed pocket: those of a flexible one induced_fit(mol, pocket_of(k)) minimises.")
        if energy is None:
            known: Energy = PocketEnergy(self.mol, self.pocket, self.temperature, variant=variant)
        else:
            known = Fixed(check_energy(energy, self.temperature), torch.from_numpy(self.pocket.positions))
        done = relax(to_geometry(self.mol).positions, known, steps=steps)
        none = np.full(len(self), np.nan)
        numbers = {"energy": (done.after * reduced_unit(self.temperature)).numpy(), "log_q": none, "log_weight": self.log_weight}
        mol = with_conformers(self.mol, done.positions.numpy(), **numbers)
        return PoseEnsemble(mol, self.pocket, *numbers.values(), self.temperature, self.seed, self.acceptance, self.block)

    def write_pockets(self, path: str | Path) -> None:
        """The pocket of every pose as a model of one PDB file, in the order of the poses; complete or not there."""
        places = np.repeat(self.pocket.positions[None], len(self), 0) if self.pockets is None else self.pockets
        write_atomically(_checked(path), Chem.MolToPDBBlock(with_conformers(self.pocket.mol, places)).encode())

    def write_sdf(self, path: str | Path) -> None:
        """Every pose as a record with its energy, log_q and log_weight, in the pocket's frame; complete or not there."""
        record, text = Chem.Mol(self.mol), []
        for conformer in self.mol.GetConformers():
            fields = "".join(f">  <{name}>\n{value!r}\n\n" for name, value in conformer.GetPropsAsDict().items())
            text.append(Chem.MolToMolBlock(record, confId=conformer.GetId()) + fields + "$$$$\n")
        write_atomically(_checked(path), "".join(text).encode())


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if not path.parent.is_dir():
        raise IncompatibleError(f"there is no directory {path.parent} to write {path.name} in: make it, or choose another.")
    return path


def pose_rmsd(a: Chem.Mol, b: Chem.Mol) -> np.ndarray:
    """(n, m) Angstrom between n and m poses of one molecule where they stand: heavy atoms, the least over the graph's symmetries."""
    if [x.GetAtomicNum() for x in a.GetAtoms()] != [x.GetAtomicNum() for x in b.GetAtoms()]:
        raise IncompatibleError("expected two molecules with the same atoms in the same order: take the poses of one.")
    symmetries = heavy_symmetries(a)
    fixed, moved = to_geometry(a).positions.numpy()[:, symmetries[0]], to_geometry(b).positions.numpy()
    least = np.full((len(fixed), len(moved)), np.inf)
    for order in symmetries:
        other = moved[:, order]
        cross = np.einsum("aix,bix->ab", fixed, other, optimize=True)
        square = (fixed**2).sum((1, 2))[:, None] + (other**2).sum((1, 2)) - 2 * cross
        np.minimum(least, square.clip(0) / fixed.shape[1], out=least)
    return np.sqrt(least)
