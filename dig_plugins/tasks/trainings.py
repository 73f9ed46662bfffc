"""Trainings from files: a model of a molecule, of a protein, of conformers, of an adsorbate or of crystals, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dig_core.files import understood
from dig_core.progress import Show
from dig_core.random import as_seed
from dig_core.training.fit import Fitted

from ..record import of_software, record_of
from .makers import mol_of
from .reports import training_report
from .result import Run, recorded

__all__ = ["train_adsorption", "train_crystal", "train_molecule", "train_openmm", "train_protein"]


def train_openmm(
    pdb: str | Path, force_field: Sequence[str], temperature: float, *, frames: str | Path | None = None, budget: str | float = "30min",
    out: str | Path = "training", seed: int | None = None, progress: Show = None,
    report: bool = True,
) -> Run:  # fmt: skip
    """:func:`dig_plugins.openmm.fit_files`; ``frames``: a trajectory of the equilibrium ensemble that MDTraj reads, if there is one."""
    from ..openmm import fit_files

    seed, positions = _seed(out, seed), None
    if frames is not None:
        from ..mdtraj import read_positions

        positions = read_positions(frames, pdb)
    found = fit_files(pdb, list(force_field), temperature, frames=positions, budget=budget, out=out, seed=seed, progress=progress)
    about = {"structure": str(pdb), "force_field": list(force_field), "frames": frames and str(frames), "budget": budget}
    return _done(found, out, {**about, "temperature_K": temperature, "seed": seed}, "openmm", report=report)


def train_protein(
    files: Sequence[str | Path], *, structure: str | Path | None = None, chain: str | None = None, model: str | None = None,
    steps: int = 3000, batch: int = 8, apart: int = 0, out: str | Path = "training", seed: int | None = None, progress: Show = None,
    report: bool = True,
) -> Run:  # fmt: skip
    """:func:`dig_plugins.mdtraj.fit_backbones` on the structures and trajectories in ``files``: one protein, or several.

    Files of the same residues are frames of one protein; others are proteins of their own, and the model serves any. ``structure``: what
    the atoms of trajectories are. ``chain``: which to read, all if None. ``model``: to go on from.
    """
    from ..mdtraj import fit_backbones, read_backbones

    seed = _seed(out, seed)
    proteins = _merged([read_backbones(file, structure, chain=chain) for file in files])
    found = fit_backbones(proteins, model, steps=steps, batch=batch, apart=apart, out=out, seed=seed, progress=progress)
    about = {"files": [str(file) for file in files], "proteins": len(proteins), "structures": [len(p.geometry.positions) for p in proteins]}
    notes = [note for protein in proteins for note in protein.notes]
    return _done(found, out, {**about, "steps_of_training": steps, "from": model, "seed": seed, "notes": notes}, "mdtraj", report=report)


def train_molecule(
    molecule: str, temperature: float = 300.0, *, variant: str = "MMFF94s", budget: str | float = "5min", out: str | Path = "training",
    seed: int | None = None, progress: Show = None,
    report: bool = True,
) -> Run:  # fmt: skip
    """:func:`dig_plugins.rdkit.fit_molecule` of a molecule given as SMILES or as an SDF or MOL file."""
    from ..rdkit import fit_molecule

    seed, mol = _seed(out, seed), mol_of(molecule)
    name = Path(molecule).stem if Path(molecule).suffix in (".sdf", ".mol") else molecule
    options = {"variant": variant, "budget": budget, "out": out, "seed": seed, "progress": progress}
    found = fit_molecule(mol, temperature, name=name, **options)
    about = {"molecule": molecule, "variant": variant, "budget": budget, "temperature_K": temperature, "seed": seed}
    return _done(found, out, about, "rdkit", report=report)


def train_adsorption(
    slab: str | Path, adsorbate: str, *, calculator: str | None = None, frames: str | Path | None = None, model: str | None = None,
    temperature: float = 300.0, evaluations: int = 100_000, steps: int = 1500, yielding: bool = False, out: str | Path = "training",
    seed: int | None = None, progress: Show = None,
    report: bool = True,
) -> Run:  # fmt: skip
    """:func:`dig_plugins.ase.adsorption.fit_adsorption` on the last structure of the file ``slab``.

    ``adsorbate``: an element, a g2 name or a structure file. ``calculator``: by name, see
    :func:`~dig_plugins.ase.calculator_named`; ``frames``: a file of structures from the ensemble. One of the two at least.
    """
    from ..ase import calculator_named
    from ..ase.adsorption import fit_adsorption, read_images

    seed = _seed(out, seed)
    guest = read_images(adsorbate)[0] if Path(adsorbate).suffix else adsorbate
    energy = None if calculator is None else calculator_named(calculator)
    images = None if frames is None else read_images(frames)
    found = fit_adsorption(
        read_images(slab)[-1], guest, energy, model, temperature=temperature, frames=images, evaluations=evaluations, steps=steps, out=out,
        seed=seed, progress=progress, yielding=yielding,
    )  # fmt: skip
    about = {"slab": str(slab), "adsorbate": adsorbate, "calculator": calculator, "frames": frames and str(frames), "from": model}
    return _done(found, out, {**about, "temperature_K": temperature, "steps_of_training": steps, "seed": seed}, "ase", report=report)


def train_crystal(
    composition: str, calculator: str, temperature: float, *, pressure: float = 0.0, evaluations: int = 100_000, steps: int = 1500,
    out: str | Path = "training", seed: int | None = None, progress: Show = None,
    report: bool = True,
) -> Run:  # fmt: skip
    """:func:`dig_plugins.ase.fit_crystal` with a calculator by name; ``pressure`` GPa."""
    from ..ase import calculator_named, fit_crystal

    seed = _seed(out, seed)
    options = {"pressure": pressure, "evaluations": evaluations, "steps": steps, "out": out, "seed": seed, "progress": progress}
    found = fit_crystal(composition, calculator_named(calculator), temperature=temperature, **options)
    about = {"composition": composition, "calculator": calculator, "temperature_K": temperature, "pressure_GPa": pressure, "seed": seed}
    return _done(found, out, about, "ase", report=report)


def _merged(read: list) -> list:
    """Backbones of the same residues as one."""
    import torch

    from dig_core.types import Geometry

    merged: list = []
    for one in read:
        for i, known in enumerate(merged):
            if torch.equal(known.descriptor.numbers, one.descriptor.numbers) and torch.equal(known.descriptor.node, one.descriptor.node):
                positions = torch.cat([known.geometry.positions, one.geometry.positions])
                merged[i] = known._replace(geometry=Geometry(positions), notes=known.notes + one.notes)
                break
        else:
            merged.append(one)
    return merged


def _seed(out: str | Path, seed: int | None) -> int:
    """The one that is asked for, or that the training in ``out`` was begun with, or a fresh one."""
    return as_seed(_kept(out) if seed is None else seed)


def _kept(out: str | Path) -> int | None:
    """The seed of the training in ``out``: of its plan, which holds whatever is asked for, or of its record."""
    for place in (Path(out) / "plan.json", record_of(out)):
        if place.is_file():
            with understood(place, "is not that of a training", "choose another directory"):
                held = json.loads(place.read_text(encoding="utf-8")).get("seed")
                return None if held is None else as_seed(held)
    return None


def _done(found: Fitted, out: str | Path, about: dict, *packages: str, report: bool) -> Run:
    """Record a training, finished or not."""
    from ..models.cache import digest

    out, kept = Path(out), _kept(out)
    about = about if kept is None else {**about, "seed": kept}
    place = out / "model.safetensors"
    model = {"model": str(place), "model_sha256": digest(place)} if found.finished and place.is_file() else {}
    record = {
        **of_software(*packages), **model, **about, "finished": found.finished, "raw_ess": found.raw_ess, "acceptance": found.acceptance,
        "evaluations": found.evaluations, "seconds": found.seconds, "history": found.history, **found.dig.card.measured,
        "units": "Angstrom, kT",
    }  # fmt: skip
    said = f"{found}\nmodel: {place}" if found.finished else f"{found}"
    return recorded(found, record, said, out, (lambda: training_report(out, record)) if report else None)
