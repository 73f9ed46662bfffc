"""Conformers of a molecule at a temperature: from a model, reweighted or by Monte Carlo, exact whatever the model is worth."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem

from dig_core.dig import DiG
from dig_core.energy import Energy
from dig_core.errors import IncompatibleError
from dig_core.montecarlo.analysis import metropolis_acceptance, normalised_weights
from dig_core.montecarlo.chain import Candidates, MonteCarlo, Pool
from dig_core.montecarlo.proposals import Proposal
from dig_core.montecarlo.wells import Wells
from dig_core.progress import Show
from dig_core.random import Streams, as_seed
from dig_core.training.walks import rounds
from dig_core.types import Geometry

from .. import models
from .check import check_molecule, label
from .convert import check_structure, describe, with_conformers
from .energy import MMFFEnergy, reduced_unit
from .ensemble import ConformerEnsemble
from .given import check_energy
from .training import fit_molecule
from .transfer import on_molecule
from .wells import conformer_wells

__all__ = ["CORRECTIONS", "check_model", "sample_conformers"]

CORRECTIONS = ("reweight", "mc", None)
_BURN_IN = 2**30  # proposals that chains' starts are chosen among have indices from here on
_CHAINS, _LONG = 16, 8  # chains of proposals at most, and conformers of each at least
_WALKERS, _WALK = 200, 25  # the same of chains of wells


def sample_conformers(
    mol: Chem.Mol,
    n: int,
    temperature: float = 300.0,
    *,
    model: DiG | str | Path | None = None,
    correct: str | None = "reweight",
    energy: Energy | None = None,
    variant: str = "MMFF94s",
    budget: str | float = "5min",
    seed: int | None = None,
    steps: int | None = None,
    batch: int = 512,
    progress: Show = None,
) -> ConformerEnsemble:
    """``n`` conformers of the equilibrium ensemble at ``temperature`` K, of MMFF94 unless another energy is given, with what they weigh.

    Parameters
    ----------
    mol: with all hydrogens and stereochemistry.
    model: a DiG of this molecule or its file, trained for ``budget`` first if None (keep it: :func:`.training.fit_molecule`);
        ``"conformers"``, the shipped model of any molecule, whose conformers are worth less; ``"wells"``, normal laws about its minima
        instead of a model, made anew in seconds (:func:`.wells.conformer_wells`).
    correct: ``"reweight"``, independent conformers with raw weights exp(-E/kT) / q; ``"mc"``, Metropolis chains on the model's proposals,
        with Langevin steps between those of wells, one after the other in the result, conformers of equal weight, repeats included:
        errors are large where chains are too short to agree; None, the model's own law, whatever it is.
    energy: E/kT at this temperature of the molecule's atoms in their order, such as ``OpenMMEnergy(System, temperature)`` of
        :mod:`dig_plugins.openmm`; MMFF94 of RDKit if None, by ``variant``. Corrections are exact for any model, whatever it was trained on.
    seed: conformer i depends on (seed, i) alone, of chains on ``n`` and those before it too.
    steps: of the model's paths; its card's if None. batch: conformers at a time.

    Raises
    ------
    IncompatibleError: no such correction, a model of another molecule, stereoisomer or temperature. And as ``fit_molecule``.
    """
    if correct not in CORRECTIONS:
        raise IncompatibleError(f"expected correct to be one of {', '.join(map(repr, CORRECTIONS))}, got {correct!r}.")
    if n < 1:
        raise IncompatibleError(f"expected to draw at least 1 conformer, got n = {n}.")
    check_molecule(mol)
    seed = as_seed(seed)
    if model is None:
        model = fit_molecule(mol, temperature, energy=energy, variant=variant, budget=budget, seed=seed, progress=progress).dig
    proposal: Proposal
    if isinstance(model, str) and model == "wells":
        proposal = conformer_wells(mol, temperature, energy=energy, variant=variant, seed=seed)
    else:
        dig = on_molecule(model if isinstance(model, DiG) else models.load(model), mol)
        check_model(dig, mol, temperature, variant if energy is None else None)
        proposal = dig.proposal(steps=steps)
    energy = MMFFEnergy(mol, temperature, variant=variant) if energy is None else check_energy(energy, temperature)
    chains = 1
    if correct == "mc":
        done = _walk(proposal, energy, n, seed) if isinstance(proposal, Wells) else _chain(proposal, energy, n, seed, batch)
        (found, acceptance, chains), log_weight = done, np.zeros(n)
    else:
        found = Pool(proposal, energy, seed=seed, batch=min(batch, n)).take(n)
        acceptance = metropolis_acceptance(found.log_weight) if n > 1 else math.nan
        log_weight = found.log_weight if correct else np.where(found.reason == 0, 0.0, -np.inf)
    numbers = {"energy": found.u * reduced_unit(temperature), "log_q": found.log_q, "log_weight": log_weight}
    filled = with_conformers(mol, Geometry(torch.from_numpy(found.positions)), **numbers)
    return ConformerEnsemble(filled, *numbers.values(), float(temperature), seed, acceptance, chains)


def check_model(dig: DiG, mol: Chem.Mol, temperature: float, variant: str | None) -> None:
    """IncompatibleError unless the model is one of this molecule, atom for atom, of this stereoisomer and temperature, and of the MMFF94
    ``variant`` where one is asked for."""
    reference = dig.descriptor.reference
    if reference is None or reference.positions.shape[1] != mol.GetNumAtoms():
        raise IncompatibleError(f"the model {dig.card.name!r} has {dig.descriptor.n_atoms} atoms, the molecule {mol.GetNumAtoms()}.")
    model, wanted = dig.card.temperature, float(temperature)
    if model is not None and abs(model - wanted) > 0.1:
        raise IncompatibleError(f"the model {dig.card.name!r} was trained at {model:g} K: ask for that temperature, not for {wanted:g} K.")
    if variant and dig.card.energy and not dig.card.energy.startswith(f"{variant} "):
        raise IncompatibleError(
            f"the model {dig.card.name!r} was trained on {dig.card.energy}: ask for that energy, or pass energy= if you mean another."
        )
    placed = with_conformers(mol, reference)
    for i, (number, atom) in enumerate(zip(dig.descriptor.numbers.tolist(), mol.GetAtoms(), strict=True)):
        if number != atom.GetAtomicNum():
            raise IncompatibleError(f"the model's atom {i} is of element {number}, the molecule's is {label(mol, i)}: keep the order.")
    check_structure(placed, 0)
    if not torch.equal(describe(placed).pair, dig.descriptor.pair):
        raise IncompatibleError(f"the model {dig.card.name!r} has other bonds than the molecule: keep its order of atoms.")


def _shared(n: int, most: int, long: int) -> int:
    """Chains for ``n`` conformers: two at least, for one alone cannot say how wrong it is."""
    return max(1, min(n // 2, max(2, min(most, n // long))))


def _chain(proposal: Proposal, energy: Energy, n: int, seed: int, batch: int) -> tuple[Candidates, float, int]:
    """States of chains, one after the other, ``n`` together, after each proposal; the fraction that was accepted; how many chains.

    Each starts at one of its own share of ``batch`` proposals, drawn by their weights: nearly in equilibrium.
    """
    chains = _shared(n, _CHAINS, _LONG)
    first = Pool(proposal, energy, seed=seed, batch=batch, start=_BURN_IN * batch).take(max(batch, chains))
    rng, parts = Streams.chain(seed, 2**62), []
    chain = MonteCarlo(proposal, energy, Geometry(torch.from_numpy(first.positions[:1])), seed=seed, batch=min(batch, n))
    for number, own in enumerate(np.array_split(np.arange(n), chains)):
        share = first.log_weight.copy()
        share[np.arange(len(share)) % chains != number] = -math.inf
        chosen = int(rng.choice(len(share), p=normalised_weights(share if share.max() > -math.inf else first.log_weight)))
        chain.positions = first.positions[chosen].copy()
        visited, records = chain.block(len(own))
        here = np.maximum.accumulate(np.where(records.accepted, np.arange(len(own)), -1))
        u = np.where(here < 0, first.u[chosen], records.u[here])
        parts.append((visited, u, np.where(here < 0, math.nan, records.log_q[here]), records.accepted))
    visited, u, log_q, accepted = (np.concatenate(found) for found in zip(*parts, strict=True))
    return Candidates(visited, u, log_q, np.zeros(n, dtype=np.uint8)), float(accepted.mean()), chains


def _walk(wells: Wells, energy: Energy, n: int, seed: int) -> tuple[Candidates, float, int]:
    """The same of wells' chains, side by side, after each of their rounds (:func:`dig_core.training.walks.rounds`), but for the first
    quarter. How they were proposed is not known, after Langevin steps."""
    chains = _shared(n, _WALKERS, _WALK)
    lengths = [len(own) for own in np.array_split(np.arange(n), chains)]
    settle, found, accepted = max(8, lengths[0] // 3), [], []
    for here, share in itertools.islice(rounds(wells, energy, torch.Generator().manual_seed(seed % 2**31), chains), settle + lengths[0]):
        found.append(torch.cat([here.points, here.value[:, None]], 1))
        accepted.append(share)
    kept = torch.cat([one[:length] for one, length in zip(torch.stack(found[settle:], 1), lengths, strict=True)])
    state = wells.state(torch.cat([wells.canonical(rows) for rows in kept[:, :-1].split(4096)]))
    u = wells.dig.coordinates.log_volume(state, wells.dig.descriptor) - kept[:, -1]
    drawn = wells.dig.to_samples(state, torch.zeros(n, dtype=torch.float64), "wells", Streams(seed, range(n)))
    reason = np.where(drawn.valid.numpy(), 0, 1).astype(np.uint8)
    return Candidates(drawn.geometry.positions.double().numpy(), u.numpy(), np.full(n, math.nan), reason), float(np.mean(accepted)), chains
