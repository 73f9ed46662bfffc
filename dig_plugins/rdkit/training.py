"""One call from a molecule to a model of its conformers: MMFF94 alone, no dynamics, rings included."""

from __future__ import annotations

import functools
import time
from pathlib import Path

from rdkit import Chem

from dig_core.dig import Card, DiG
from dig_core.energy import Energy
from dig_core.random import as_seed
from dig_core.training.fit import Fitted
from dig_core.training.frames import frames_of
from dig_core.training.molecule import fit_molecule as fit_one
from dig_core.training.molecule import internal_model, width_of
from dig_core.training.plan import Plan, seconds_of

from ..progress import pictures
from .check import MAX_ATOMS
from .convert import describe, embed, reference_structure, to_geometry
from .coordinates import internal_coordinates
from .energy import MMFFEnergy
from .given import check_energy, name_of

__all__ = ["Fitted", "fit_molecule"]

_CONFORMERS = 300


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
    progress: bool | None = None,
    max_atoms: int = MAX_ATOMS,
) -> Fitted:
    """Train a DiG of one free molecule on its energy, MMFF94 unless another is given, which is all it learns from.

    Distance geometry (ETKDG) gives ``conformers`` rough structures; a population of walkers that starts from them, four times as hot,
    is annealed to exp(-E/kT) with Metropolis moves and resampling; the model learns from it, then twice from its own samples by their
    exact weights. What distance geometry gets wrong is thus corrected; a basin that no structure leads to may be missed.

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
    numbers = [a.GetAtomicNum() for a in mol.GetAtoms()]
    plan = Plan.of(out, as_seed(seed), numbers, float(temperature))
    if not any(c.Is3D() for c in mol.GetConformers()):
        mol = reference_structure(mol, seed=plan.seed, max_atoms=max_atoms)
    descriptor, mmff = describe(mol, max_atoms=max_atoms), MMFFEnergy(mol, temperature, variant=variant)
    called, energy = (f"{variant} (RDKit)", mmff) if energy is None else (name_of(energy), check_energy(energy, temperature))
    rough = to_geometry(embed(mol, conformers, seed=plan.seed))
    coordinates = internal_coordinates(mol, rough, temperature, variant)
    build = functools.partial(internal_model, width=width_of(coordinates), seed=plan.seed % 2**31)
    smiles = Chem.MolToSmiles(Chem.RemoveHs(mol))
    card = Card(name=name, system=smiles, energy=called, temperature=float(temperature), steps=32)
    dig = DiG(build(coordinates), coordinates, descriptor, card)
    start = frames_of(coordinates, descriptor, rough)
    return fit_one(dig, energy, build, plan, seconds, start=start, out=out, progress=progress, watch=pictures(out), began=began)
