"""Poses of a ligand in a pocket: from a model, reweighted or by Monte Carlo, relaxed if wanted."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError, StateError
from dig_core.montecarlo.analysis import metropolis_acceptance
from dig_core.montecarlo.chain import MonteCarlo, Pool
from dig_core.random import Streams, as_seed
from dig_core.types import Geometry

from ... import models
from ..check import MAX_ATOMS
from ..convert import with_conformers
from .describe import ring_forms
from .energy import PocketEnergy
from .ensemble import PoseEnsemble
from .minimise import relax
from .moves import HybridMoves
from .pocket import Pocket
from .proposal import PoseProposal, bound_to
from .walls import avoid_overlaps

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
    temperature: float = 300.0,
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
        poses with raw weights exp(-E/kT) / q of MMFF94 in the pocket as it is; ``"mc"``, a Metropolis chain on the model's proposals with
        hybrid Monte Carlo in between, poses of equal weight, repeats included: exact, and it moves within a site even where no proposal
        is accepted.
    relaxed: minimise every pose in the pocket (MMFF94); such poses have energies, and no density.
    walls: guide poses away from overlaps with the pocket (:func:`.walls.avoid_overlaps`); densities are exact with them and without.
    temperature: K, of the energy. seed: pose i depends on (seed, i) alone, of a chain on those before it too.
    steps: of the model's paths; its card's if None. batch: poses at a time.

    Raises
    ------
    IncompatibleError: no such correction, a correction of relaxed poses; what :func:`dig_plugins.rdkit.check_molecule` refuses.
    UnsupportedError: a model of something else, atoms that MMFF94 does not know. StateError: a chain that finds no place to start from.
    """
    if correct not in CORRECTIONS or (relaxed and correct):
        raise IncompatibleError(f"expected correct to be one of {CORRECTIONS}, None for relaxed poses, got {correct!r}, relaxed={relaxed}.")
    if n < 1:
        raise IncompatibleError(f"expected to draw at least 1 pose, got n = {n}.")
    seed = as_seed(seed)
    dig = model if isinstance(model, DiG) else models.load(model)
    forms = ring_forms(ligand, temperature=temperature, variant=variant, seed=seed % 2**30, max_atoms=max_atoms)
    digs = bound_to(dig, ligand, pocket, forms)
    if walls:
        digs = [one.guided(avoid_overlaps(ligand, pocket)) for one in digs]
    proposal = PoseProposal(digs, [form.share for form in forms], steps=steps)
    energy = PocketEnergy(ligand, pocket, temperature, variant=variant)
    if correct == "mc":
        return _chain(proposal, energy, ligand, pocket, n, seed, batch)
    if correct == "reweight":
        return _weighed(proposal, energy, ligand, pocket, n, seed, batch)
    return _plain(proposal, energy, ligand, pocket, n, seed, batch, relaxed)


def _weighed(
    proposal: PoseProposal, energy: PocketEnergy, ligand: Chem.Mol, pocket: Pocket, n: int, seed: int, batch: int
) -> PoseEnsemble:
    found = Pool(proposal, energy, seed=seed, batch=min(batch, n)).take(n)
    acceptance = metropolis_acceptance(found.log_weight) if n > 1 else math.nan
    numbers = {"energy": found.u * energy.kt, "log_q": found.log_q, "log_weight": found.log_weight}
    mol = with_conformers(ligand, found.positions, **numbers)
    return PoseEnsemble(mol, pocket, *numbers.values(), energy.own.temperature, seed, acceptance)


def _plain(
    proposal: PoseProposal, energy: PocketEnergy, ligand: Chem.Mol, pocket: Pocket, n: int, seed: int, batch: int, relaxed: bool
) -> PoseEnsemble:
    drawn = [proposal.draw(len(r), Streams(seed, r)) for r in (range(low, min(low + batch, n)) for low in range(0, n, batch))]
    positions = torch.cat([d.geometry.positions for d in drawn])
    log_q = torch.cat([d.known_log_q() for d in drawn]).numpy()
    values = np.full(n, math.nan)
    if relaxed:
        done = relax(positions, energy)
        positions, values, log_q = done.positions, (done.after * energy.kt).numpy(), np.full(n, math.nan)
    log_weight = np.where(torch.cat([d.valid for d in drawn]).numpy(), 0.0, -math.inf)
    numbers = {"energy": values, "log_q": log_q, "log_weight": log_weight}
    mol = with_conformers(ligand, Geometry(positions), **numbers)
    return PoseEnsemble(mol, pocket, *numbers.values(), energy.own.temperature, seed, math.nan)


def _chain(
    proposal: PoseProposal, energy: PocketEnergy, ligand: Chem.Mol, pocket: Pocket, n: int, seed: int, batch: int
) -> PoseEnsemble:
    """The state after each of ``n`` proposals, local moves before every ``_BLOCK`` of them.

    The start is the heaviest of ``batch`` proposals, minimised: overlaps would take a chain long to leave.
    """
    first = Pool(proposal, energy, seed=seed, batch=batch, start=_BURN_IN * batch).take(batch)
    if not np.isfinite(first.log_weight).any():
        raise StateError(f"none of {batch} proposals has a finite weight: the model has no place for this ligand in this pocket.")
    start = relax(torch.from_numpy(first.positions[[int(first.log_weight.argmax())]]), energy).positions
    moves = HybridMoves(energy, seed)
    chain = MonteCarlo(proposal, energy, Geometry(start), seed=seed, batch=min(batch, n), local=moves)
    for k in range(_WARM):
        chain.positions = moves(chain.positions, 2**40 + k)
    parts, accepted, left = [], [], n
    while left > 0:
        visited, records = chain.block(min(_BLOCK, left))
        parts.append(visited)
        accepted.append(records.accepted)
        left -= len(visited)
    positions = np.concatenate(parts)
    u = np.concatenate([energy(Geometry(torch.from_numpy(part))).numpy() for part in parts])
    numbers = {"energy": u * energy.kt, "log_q": np.full(n, math.nan), "log_weight": np.zeros(n)}
    filled, acceptance = with_conformers(ligand, positions, **numbers), float(np.concatenate(accepted).mean())
    return PoseEnsemble(filled, pocket, *numbers.values(), energy.own.temperature, seed, acceptance, math.ceil(n / 40))
