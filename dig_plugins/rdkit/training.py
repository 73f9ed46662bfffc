"""One call from a molecule to a model of its conformers: MMFF94 alone, no dynamics, rings included."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import numpy as np
from rdkit import Chem

from dig_core.dig import Card, DiG
from dig_core.energy import Energy
from dig_core.montecarlo.analysis import metropolis_acceptance
from dig_core.montecarlo.chain import Pool
from dig_core.montecarlo.wells import Wells
from dig_core.progress import Show
from dig_core.random import as_seed
from dig_core.training.fit import Fitted
from dig_core.training.frames import frames_of
from dig_core.training.molecule import fit_molecule as fit_one
from dig_core.training.molecule import internal_model, width_of
from dig_core.training.plan import Plan, seconds_of

from ..progress import pictures
from .check import MAX_ATOMS, check_molecule
from .convert import describe, embed, reference_structure, to_geometry
from .coordinates import internal_coordinates
from .energy import MMFFEnergy
from .given import check_energy, name_of
from .wells import wells_of

__all__ = ["Fitted", "fit_molecule"]

_CONFORMERS = 200
_REFINING = 1600  # energies that correct a well
_SHARE = 0.1  # of the budget for wells
_ACCEPTED = 0.02  # of their proposals, so that chains go between them


def fit_molecule(
    mol: Chem.Mol,
    temperature: float = 300.0,
    *,
    energy: Energy | None = None,
    variant: str = "MMFF94s",
    budget: str | float = "5min",
    conformers: int = _CONFORMERS,
    out: str | Path | None = None,
    name: str = "unnamed",
    seed: int | None = None,
    progress: Show = None,
    max_atoms: int = MAX_ATOMS,
) -> Fitted:
    """Train a DiG of one free molecule on its energy, MMFF94 unless another is given, which is all it learns from.

    Distance geometry (ETKDG) gives ``conformers`` rough structures, and these wells about minima (:func:`.wells.wells_of`). Where their
    proposals are accepted, chains of them and of Langevin steps, which have the right weights, give the frames that the model learns from.
    Where they are not, in large molecules, a population of walkers that starts from the rough structures, four times as hot, is annealed
    to exp(-E/kT) with Metropolis moves and resampling; the model learns from it, then twice from its own samples by their exact weights.
    What distance geometry gets wrong is thus corrected; a basin that no structure leads to may be missed.

    Parameters
    ----------
    mol: with all hydrogens and stereochemistry; its first 3D conformer is the reference, or one is made.
    temperature: K. variant: of MMFF94, see :class:`.energy.MMFFEnergy`.
    energy: E/kT at this temperature of the molecule's atoms in their order, such as ``OpenMMEnergy(System, temperature)`` of
        :mod:`dig_plugins.openmm`; MMFF94 of RDKit if None. The coordinates' widths are MMFF94's all the same.
    budget: wall time on this machine, as ``"5min"`` or seconds. Half of it more if the annealing takes long.
    out: directory for checkpoints, logs, ``progress.png``, ``model.safetensors`` and ``run.json``. A call that was cut off goes on there.
    name: of the model, in its card. seed: recorded in the card.

    Raises
    ------
    IncompatibleError, UnsupportedError: what :func:`.check.check_molecule` refuses, atoms without parameters.
    StateError: no 3D structure found. CheckpointError: ``out`` holds another training.
    """
    began, seconds, out = time.monotonic(), seconds_of(budget), None if out is None else Path(out)
    check_molecule(mol, max_atoms)
    numbers = [a.GetAtomicNum() for a in mol.GetAtoms()]
    plan = Plan.of(out, as_seed(seed), numbers, float(temperature))
    if not any(c.Is3D() for c in mol.GetConformers()):
        mol = reference_structure(mol, seed=plan.seed, max_atoms=max_atoms)
    descriptor, mmff = describe(mol, max_atoms=max_atoms), MMFFEnergy(mol, temperature, variant=variant)
    called, energy = (f"{variant} (RDKit)", mmff) if energy is None else (name_of(energy), check_energy(energy, temperature))
    rough = embed(mol, conformers, seed=plan.seed)
    coordinates = internal_coordinates(mol, to_geometry(rough), temperature, variant)
    build = functools.partial(internal_model, width=width_of(coordinates), seed=plan.seed % 2**31)
    smiles = Chem.MolToSmiles(Chem.RemoveHs(mol))
    card = Card(name=name, system=smiles, energy=called, temperature=float(temperature), steps=32)
    dig = DiG(build(coordinates), coordinates, descriptor, card)
    wells = _worth_having(dig, rough, energy, plan, seconds, variant)
    start = frames_of(coordinates, descriptor, to_geometry(rough)) if wells is None else wells
    return fit_one(dig, energy, build, plan, seconds, start=start, out=out, progress=progress, watch=pictures(out), began=began)


def _worth_having(dig: DiG, rough: Chem.Mol, energy: Energy, plan: Plan, seconds: float, variant: str) -> Wells | None:
    """Wells, as many as the budget allows, or None where hardly any of their proposals would be accepted. Decided once for ``plan``."""
    if plan.held.get("start") == "structures":
        return None
    each = (2 * sum(part.space.dim for part in dig.process.values()) + _REFINING) * plan.sizes(dig, energy, seconds)["energy"]
    most = int(min(300, max(4, _SHARE * seconds / max(each, 1e-9))))
    wells = wells_of(dig, rough, energy, variant=variant, most=most, seed=plan.seed)
    log_weight = Pool(wells, energy, seed=plan.seed, batch=512).take(512).log_weight
    good = bool(np.isfinite(log_weight).any()) and metropolis_acceptance(log_weight) > _ACCEPTED
    plan.keep("start", "wells" if good else "structures")
    return wells if good else None
