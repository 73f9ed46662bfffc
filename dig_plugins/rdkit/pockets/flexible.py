"""A pocket whose side chains give way: which atoms, how far, and the normal law that proposals draw their displacements from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor

from dig_core.energy import Energy
from dig_core.errors import IncompatibleError
from dig_core.montecarlo.proposals import Proposal
from dig_core.random import Streams
from dig_core.types import Geometry, Samples

from .minimise import hessian, relax
from .pocket import Pocket, points_of
from .residues import CAP

__all__ = ["Flexible", "FlexibleProposal", "PocketLaw", "pocket_law", "side_chains"]

_BACKBONE = frozenset({"N", "CA", "C", "O", "OXT", "H", "HN", "H1", "H2", "H3", "HA", "HA2", "HA3", "1H", "2H", "3H"})
_APART = torch.tensor([200.0, 0.0, 0.0], dtype=torch.float64)  # Angstrom: a ligand that far off is none
_DISPLACED = 2**60  # streams from here on draw displacements


@dataclass(frozen=True)
class Flexible:
    """Atoms of a pocket that move: ``atoms`` (F,) their numbers in it; free up to ``limit`` Angstrom from where the file has them, held by
    springs of ``stiffness`` kcal/mol/Angstrom^2 beyond.

    IncompatibleError unless these are whole numbers, each once, and both constants are positive.
    """

    atoms: np.ndarray
    limit: float = 1.0
    stiffness: float = 100.0

    def __post_init__(self) -> None:
        atoms = np.asarray(self.atoms)
        if atoms.ndim != 1 or atoms.dtype.kind not in "iu" or not 0 < len(atoms) == len(np.unique(atoms)) or atoms.min() < 0:
            raise IncompatibleError(f"expected numbers of atoms (F,), each once, got {atoms.dtype} {atoms.shape}: see side_chains.")
        if self.limit <= 0 or self.stiffness <= 0:
            raise IncompatibleError(f"expected a positive limit and stiffness, got {self.limit} and {self.stiffness}.")
        object.__setattr__(self, "atoms", atoms.astype(np.int64))

    def check(self, pocket: Pocket) -> None:
        """IncompatibleError where the pocket has no such atoms."""
        if self.atoms.max() >= len(pocket.positions):
            raise IncompatibleError(f"the pocket has {len(pocket.positions)} atoms, numbered from 0: there is no atom {self.atoms.max()}.")

    def mobile(self, n_ligand: int, n_pocket: int) -> Tensor:
        """(L + P,) bool: the ligand's atoms and these."""
        found = torch.zeros(n_ligand + n_pocket, dtype=torch.bool)
        found[:n_ligand] = True
        found[n_ligand + torch.from_numpy(self.atoms)] = True
        return found


def side_chains(pocket: Pocket, site: Chem.Mol | np.ndarray, *, radius: float = 5.0, limit: float = 1.0) -> Flexible:
    """The side chains of all amino acids that have an atom of theirs within ``radius`` Angstrom of the site's (heavy) atoms.

    Those that the pocket's cut runs through stay, such as half of a disulphide bridge: nothing would hold them. ``site``: a ligand with a
    structure in the pocket, or points (M, 3) Angstrom. IncompatibleError where there is none, or for a radius or limit that is not
    positive.
    """
    if radius <= 0:
        raise IncompatibleError(f"expected a positive radius, got {radius}.")
    side = np.array([_of_side_chain(a) for a in pocket.mol.GetAtoms()]) & (pocket.kind < CAP)
    cut = side & [any(b.GetPDBResidueInfo() is None for b in a.GetNeighbors()) for a in pocket.mol.GetAtoms()]
    side &= ~np.isin(pocket.residue, pocket.residue[cut])
    near = side & (np.linalg.norm(pocket.positions[:, None] - points_of(site), axis=2).min(1) < radius)
    atoms = np.flatnonzero(side & np.isin(pocket.residue, np.unique(pocket.residue[near])))
    if not len(atoms):
        raise IncompatibleError(f"no side chain is within {radius:g} Angstrom of the site: ask for a larger radius.")
    return Flexible(atoms, float(limit))


def _of_side_chain(atom: Chem.Atom) -> bool:
    at = atom.GetPDBResidueInfo()  # caps of cut bonds have none
    return at is not None and at.GetName().strip() not in _BACKBONE


class PocketLaw:
    """A normal law of displacements (B, F, 3) Angstrom: ``mean`` (F, 3) and ``precision`` (3F, 3F), 1/Angstrom^2."""

    def __init__(self, mean: Tensor, precision: Tensor):
        self.mean = mean.double()
        self.values, self.vectors = torch.linalg.eigh(precision.double())
        if not bool((self.values > 0).all()):
            raise IncompatibleError("expected a positive precision: directions without a force back have no normal law.")

    def sample(self, rng: Streams) -> Tensor:
        """One displacement a stream."""
        raw = rng.normal(len(self.values), dtype=torch.float64)
        return self.mean + ((raw * self.values.rsqrt()) @ self.vectors.T).view(len(raw), -1, 3)

    def log_prob(self, displacement: Tensor) -> Tensor:
        """(B,) float64, of Lebesgue measure in Angstrom."""
        raw = (displacement.double() - self.mean).flatten(1) @ self.vectors
        return -0.5 * (raw.square() * self.values - (self.values / (2 * torch.pi)).log()).sum(1)


def pocket_law(energy: Energy, ligand: Tensor, pocket: Pocket, flexible: Flexible, *, steps: int = 200) -> PocketLaw:
    """The harmonic law of ``energy`` about the pocket's own minimum, ``ligand`` (L, 3) taken away; directions softer than a width of
    half the limit are drawn that wide."""
    n, home = len(ligand), torch.from_numpy(pocket.positions)
    place = torch.cat([ligand.double() - ligand.double().mean(0) + home.mean(0) + _APART, home])
    moving = flexible.mobile(n, len(home))
    moving[:n] = False
    place = relax(place[None], energy, steps=steps, mobile=moving).positions[0]
    columns = n + torch.from_numpy(flexible.atoms)
    values, vectors = torch.linalg.eigh(hessian(energy, place, columns))
    widest = 0.5 * flexible.limit
    return PocketLaw(place[columns] - home[flexible.atoms], (vectors * values.clamp_min(widest**-2)) @ vectors.T)


class FlexibleProposal:
    """Independent poses and, independent of them, displacements of a pocket: structures (B, L + P, 3) of ligand and pocket.

    ``poses``: proposals (B, L, 3) of the ligand alone, such as :class:`.proposal.PoseProposal`; its density times that of ``law`` is the
    density, of the ligand's and the flexible atoms' places in Angstrom. States have a component ``pocket`` (B, F, 3) more.
    """

    exact = True
    gauge = frozenset({"equivalent atoms"})

    def __init__(self, poses: Proposal, law: PocketLaw, pocket: Pocket, flexible: Flexible):
        self.poses, self.law = poses, law
        self.home, self.atoms = torch.from_numpy(pocket.positions), torch.from_numpy(flexible.atoms)

    def draw(self, n: int, rng: Streams) -> Samples:
        """``n`` structures, one a stream of ``rng``; streams of their own draw displacements, so that both are independent."""
        found = self.poses.draw(n, rng)
        moved = self.law.sample(Streams(rng.seed, [_DISPLACED + i for i in rng.indices]))
        pocket = self.home.repeat(n, 1, 1)
        pocket[:, self.atoms] += moved
        positions = torch.cat([found.geometry.positions.double(), pocket], 1)
        log_q = found.known_log_q() + self.law.log_prob(self._moved(positions))
        return Samples(Geometry(positions), {**found.state, "pocket": moved}, log_q, found.valid, found.kind)

    def log_q(self, geometry: Geometry, rng: Streams) -> Tensor:
        """(B,) float64 of given structures (B, L + P, 3)."""
        ligand = geometry.positions[:, : -len(self.home)]
        return self.poses.log_q(Geometry(ligand), rng) + self.law.log_prob(self._moved(geometry.positions))

    def _moved(self, positions: Tensor) -> Tensor:
        return positions[:, -len(self.home) :].double()[:, self.atoms] - self.home[self.atoms]
