"""Poses of a ligand in a pocket, rigid or flexible: from a model, reweighted or by Monte Carlo, relaxed if wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem

from dig_core.dig import DiG
from dig_core.energy import Energy
from dig_core.errors import IncompatibleError, StateError
from dig_core.montecarlo.analysis import metropolis_acceptance
from dig_core.montecarlo.chain import MonteCarlo, Pool
from dig_core.montecarlo.proposals import Proposal
from dig_core.random import Streams, as_seed
from dig_core.types import Geometry

from ... import models
from ..check import MAX_ATOMS
from ..convert import to_geometry, with_conformers
from ..energy import reduced_unit
from ..given import check_energy
from .describe import ring_forms
from .energy import PocketEnergy
from .ensemble import PoseEnsemble
from .flexible import Flexible, FlexibleProposal, pocket_law
from .minimise import relax
from .moves import HybridMoves, PoseMoves, stiffness_factor
from .pocket import Pocket
from .proposal import PoseProposal, bound_to
from .walls import avoid_overlaps
from .whole import ComplexEnergy, Fixed, Tethered

__all__ = ["CORRECTIONS", "sample_poses"]

CORRECTIONS = (None, "reweight", "mc")
_BLOCK, _WARM = 4, 25
"""Proposals between local moves, and blocks of such moves before a chain begins to count."""

_BURN_IN = 2**30  # proposals that a chain's start is chosen among have indices from here on


def sample_poses(
    pocket: Pocket,
    ligand: Chem.Mol,
    n: int = 50,
    *,
    model: DiG | str | Path = "pockets",
    correct: str | None = None,
    relaxed: bool = False,
    walls: bool = True,
    flexible: Flexible | None = None,
    temperature: float = 300.0,
    energy: Energy | None = None,
    variant: str = "MMFF94s",
    seed: int | None = None,
    steps: int | None = None,
    batch: int = 64,
    max_atoms: int = MAX_ATOMS,
) -> PoseEnsemble:
    """``n`` poses of ``ligand`` in ``pocket`` that ``model`` draws; where the ligand's own structure stands is not read.

    Parameters
    ----------
    ligand: with all hydrogens and stereochemistry. model: a DiG of ligands in pockets, the name of one that ships, or a file.
    correct: None, the model's own law, of which poses outside their form's coordinates are no part: weight 0; ``"reweight"``, independent
        poses with raw weights exp(-E/kT) / q; ``"mc"``, a Metropolis chain on the model's proposals with hybrid Monte Carlo in between,
        poses of equal weight, repeats included: exact, and it moves within a site even where no proposal is accepted.
    relaxed: minimise every pose in the pocket as it is; such poses have energies, and no density.
    walls: guide poses away from overlaps with the pocket (:func:`.walls.avoid_overlaps`); densities are exact with them and without.
    flexible: atoms of the pocket that move too, such as :func:`.flexible.side_chains` chooses, tethered as :class:`.whole.Tethered` says:
        drawn from a normal law about the pocket's own minimum, moved by the chain together with the ligand.
    temperature: K, of the energy.
    energy: E/kT at this temperature of ligand and pocket, (B, L + P, 3), the ligand first, such as ``OpenMMEnergy`` of
        ``dig_plugins.openff.complex_system(ligand, pocket.mol)``; MMFF94 of RDKit if None, by ``variant``.
    seed: pose i depends on (seed, i) alone, of a chain on those before it too.
    steps: of the model's paths; its card's if None. batch: poses at a time.

    Raises
    ------
    IncompatibleError: no such correction, a correction of relaxed poses or a flexible pocket for them; what
    :func:`dig_plugins.rdkit.check_molecule` refuses. UnsupportedError: a model of something else, atoms that MMFF94 does not know.
    StateError: a chain that finds no place to start from.
    """
    if correct not in CORRECTIONS or (relaxed and (correct or flexible)):
        raise IncompatibleError(
            f"expected correct to be one of {CORRECTIONS}; None, and a rigid pocket, for relaxed poses (induced_fit minimises both); "
            f"got {correct!r}, relaxed={relaxed}, flexible={'given' if flexible else None}."
        )
    if n < 1:
        raise IncompatibleError(f"expected to draw at least 1 pose, got n = {n}.")
    seed = as_seed(seed)
    dig = model if isinstance(model, DiG) else models.load(model)
    forms = ring_forms(ligand, temperature=temperature, variant=variant, seed=seed % 2**30, max_atoms=max_atoms)
    digs = bound_to(dig, ligand, pocket, forms)
    if walls:
        digs = [one.guided(avoid_overlaps(ligand, pocket)) for one in digs]
    poses = PoseProposal(digs, [form.share for form in forms], steps=steps)
    known, proposal = _energy(ligand, pocket, flexible, energy, temperature, variant), poses
    if flexible:
        law = pocket_law(known, to_geometry(forms[0].reference).positions[0], pocket, flexible)
        proposal = FlexibleProposal(poses, law, pocket, flexible)
    task = _Task(poses, proposal, known, ligand, pocket, flexible, float(temperature), seed, batch)
    if correct == "mc":
        return _chain(task, n)
    return _weighed(task, n) if correct == "reweight" else _plain(task, n, relaxed)


@dataclass(frozen=True)
class _Task:
    """What is drawn, what it is weighed by: structures (B, N, 3) of the ligand alone, or with a flexible pocket's atoms."""

    poses: Proposal
    proposal: Proposal
    energy: Energy
    ligand: Chem.Mol
    pocket: Pocket
    flexible: Flexible | None
    temperature: float
    seed: int
    batch: int

    def ensemble(
        self, positions: np.ndarray, u: np.ndarray, log_q: np.ndarray, log_weight: np.ndarray, acceptance: float, block: int = 1
    ) -> PoseEnsemble:
        numbers = {"energy": u * reduced_unit(self.temperature), "log_q": log_q, "log_weight": log_weight}
        size = self.ligand.GetNumAtoms()
        mol = with_conformers(self.ligand, positions[:, :size], **numbers)
        pockets = positions[:, size:] if self.flexible else None
        known = (self.temperature, self.seed, acceptance, block, pockets, self.flexible)
        return PoseEnsemble(mol, self.pocket, *numbers.values(), *known)


def _energy(
    ligand: Chem.Mol, pocket: Pocket, flexible: Flexible | None, given: Energy | None, temperature: float, variant: str
) -> Energy:
    """Of the ligand alone, or of ligand and flexible pocket, tethers included."""
    if given is not None:
        check_energy(given, temperature)
    if flexible:
        whole = ComplexEnergy(ligand, pocket, temperature, variant=variant) if given is None else given
        return Tethered(whole, flexible, pocket, temperature)
    if given is not None:
        return Fixed(given, torch.from_numpy(pocket.positions))
    return PocketEnergy(ligand, pocket, temperature, variant=variant)


def _weighed(task: _Task, n: int) -> PoseEnsemble:
    found = Pool(task.proposal, task.energy, seed=task.seed, batch=min(task.batch, n)).take(n)
    acceptance = metropolis_acceptance(found.log_weight) if n > 1 else math.nan
    return task.ensemble(found.positions, found.u, found.log_q, found.log_weight, acceptance)


def _plain(task: _Task, n: int, relaxed: bool) -> PoseEnsemble:
    parts = (range(low, min(low + task.batch, n)) for low in range(0, n, task.batch))
    drawn = [task.proposal.draw(len(rows), Streams(task.seed, rows)) for rows in parts]
    positions = torch.cat([d.geometry.positions for d in drawn])
    log_q, u = torch.cat([d.known_log_q() for d in drawn]).numpy(), np.full(n, math.nan)
    if relaxed:
        done = relax(positions, task.energy)
        positions, u, log_q = done.positions, done.after.numpy(), np.full(n, math.nan)
    log_weight = np.where(torch.cat([d.valid for d in drawn]).numpy(), 0.0, -math.inf)
    return task.ensemble(positions.numpy(), u, log_q, log_weight, math.nan)


def _chain(task: _Task, n: int) -> PoseEnsemble:
    """The state after each of ``n`` proposals, local moves before every ``_BLOCK`` of them.

    The start is the heaviest of ``batch`` proposals, minimised: overlaps would take a chain long to leave. Hybrid Monte Carlo along atoms
    serves anywhere, along the softness of that minimum near it; both find their steps before the chain counts.
    """
    seed, batch = task.seed, task.batch
    first = Pool(task.proposal, task.energy, seed=seed, batch=batch, start=_BURN_IN * batch).take(batch)
    if not np.isfinite(first.log_weight).any():
        raise StateError(f"none of {batch} proposals has a finite weight: the model has no place for this ligand in this pocket.")
    size, mobile = task.ligand.GetNumAtoms(), None
    if task.flexible:
        mobile = task.flexible.mobile(size, len(task.pocket.positions))
    heaviest = torch.from_numpy(first.positions[[int(first.log_weight.argmax())]])
    start = relax(heaviest, task.energy, mobile=mobile).positions
    factor = stiffness_factor(task.energy, start[0].numpy(), mobile)
    local: list[HybridMoves | PoseMoves] = [
        HybridMoves(task.energy, seed, count=1, mobile=mobile),
        HybridMoves(task.energy, seed, count=2, steps=8, step=0.1, mobile=mobile, factor=factor, number=1),
    ]
    here = start[0].numpy()
    for k in range(_WARM):
        for move in local:
            here = move.tune(here, 2**40 + k)  # type: ignore[union-attr]
    if task.flexible:
        local.append(PoseMoves(task.poses, task.energy, size, seed, _BLOCK))

    def moved(x: np.ndarray, block: int) -> np.ndarray:
        for move in local:
            x = move(x, block)
        return x

    start = Geometry(torch.from_numpy(here)[None])
    chain = MonteCarlo(task.proposal, task.energy, start, seed=seed, batch=min(batch, n), local=moved)
    parts, accepted, left = [], [], n
    while left > 0:
        visited, records = chain.block(min(_BLOCK, left))
        parts.append(visited)
        accepted.append(records.accepted)
        left -= len(visited)
    positions = np.concatenate(parts)
    u = np.concatenate([task.energy(Geometry(torch.from_numpy(part))).numpy() for part in parts])
    acceptance = float(np.concatenate(accepted).mean())
    return task.ensemble(positions, u, np.full(n, math.nan), np.zeros(n), acceptance, math.ceil(n / 40))
