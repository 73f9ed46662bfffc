"""Samples of any model, by the engine that its system belongs to, as files that this engine's users open."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError
from dig_core.files import read_json
from dig_core.progress import Show
from dig_core.random import as_seed

from .. import models
from ..claim import kept_seed, part_of
from ..record import of_checkpoint, of_software, record_of
from .reports import sample_report
from .result import Run, recorded, writable
from .subjects import Given, kind_of, subject, temperature_of
from .thinned import Thinned, thinned

__all__ = ["sample"]


def sample(
    model: str | Path, n: int = 1000, out: str | Path | None = None, *, given: Given | None = None, steps: int | None = None,
    seed: int | None = None, progress: Show = None, report: bool = True,
) -> Run:  # fmt: skip
    """``n`` independent structures with their exact weights where the model has an energy, and a record (``.json``) beside them.

    Molecules are written as they come: memory holds a batch, and the same call goes on with a run that was cut off
    (:func:`dig_plugins.openmm.write_samples`).

    Parameters
    ----------
    model: a name or a checkpoint.
    out: of molecules ``.xtc``, ``.dcd`` (with a .pdb beside it) or ``.h5``, weights in a .npz beside, ``.pdb`` or ``.npz``; of proteins
        ``.xtc``, ``.dcd``, ``.h5`` or ``.pdb``; of conformers ``.sdf``; of crystals ``.extxyz`` or ``.cif``. The first of them, called
        "samples", if None.
    given: the system, where the model does not bring it. steps: of the sampler, the model's own if None.
    seed: that of the run that was cut off, or drawn and recorded, if None; structure i depends on (seed, i) alone.
    progress: a bar; None shows it on terminals only. report: a page (``.html``) and a picture (``.png``) beside the record.

    Raises
    ------
    IncompatibleError: another ending, no directory, a system that is missing or is not the model's; models of adsorbates, which have a
    verb of their own. CheckpointError: the run that was cut off had other settings. And what the engines' functions raise.
    """
    dig, given, began = models.load(model), given or Given(), time.perf_counter()
    kind = kind_of(dig)
    if kind not in _DRAWN:
        raise IncompatibleError(f"{model} is a model of adsorbates: sample it by dig_plugins.ase.adsorption.adsorb (the verb adsorb).")
    suffixes, draw = _DRAWN[kind]
    out = writable(Path(f"samples{suffixes[0]}") if out is None else out, suffixes)
    seed = as_seed(kept_seed(part_of(out)) if seed is None else seed)
    result, said, packages = draw(dig, str(model), given, n, out, {"seed": seed, "steps": steps}, progress)
    size = result.effective_sample_size
    size = size() if callable(size) else size
    record = {
        **of_software(*packages), **of_checkpoint(model), "kind": kind, "system": dig.card.system, "of": given.of, "samples": n,
        "seed": seed, "steps": dig.card.steps if steps is None else steps,
        "temperature_K": getattr(result, "temperature", dig.card.temperature), "energy": dig.card.energy,
        "effective_sample_size": size, "seconds": time.perf_counter() - began, "files": out.name, "units": _UNITS[kind],
    }  # fmt: skip
    if kind == "protein":  # whose ensembles write a record of their own
        record = {**record, **read_json(record_of(out))}
    if kind == "conformers":
        from ..rdkit.pictures import population_rows

        record["populations"] = population_rows(result)
    page = (lambda: sample_report(subject(model, given), result, _some(kind, result, out), record)) if report else None
    return recorded(result, record, f"{said}, seed {seed}: {out}", out, page, write=kind != "protein")


def _some(kind: str, found: Any, out: Path) -> Thinned | None:
    """What is drawn of the structures."""
    if kind == "molecule":
        return thinned(out, found.log_weights)
    if kind == "protein":
        return Thinned(found.geometry.positions.numpy(), found.log_weight)
    if kind == "conformers":
        from ..rdkit.pictures import positions_of

        return Thinned(positions_of(found.mol), found.log_weight)
    return None


def _molecule(dig: DiG, model: str, given: Given, n: int, out: Path, options: dict, progress: Show):
    from ..openmm import write_samples

    if given.of is None and "structure" in models.index().get(model, {}):
        found = write_samples(model, n, out, progress=progress, **options)
    else:
        system = subject(model, given).system
        found = write_samples(dig, n, out, simulation=system.simulation(seed=options["seed"]), progress=progress, **options)
    return found, f"{n} structures worth {found.effective_sample_size:.0f} equilibrium samples", ("openmm",)


def _protein(dig: DiG, model: str, given: Given, n: int, out: Path, options: dict, progress: Show):
    from ..mdtraj import sample_backbones

    found = sample_backbones(subject(model, given).dig, n, progress=progress, **options)
    found.write(out)
    return found, f"{n} backbones ({found.counts})", ("mdtraj",)


def _conformers(dig: DiG, model: str, given: Given, n: int, out: Path, options: dict, progress: Show):
    from ..rdkit import sample_conformers

    asked = subject(model, given)
    options |= {"model": dig, "variant": asked.energy_name, "progress": progress}
    found = sample_conformers(asked.system, n, temperature_of(dig, given), **options)
    found.write_sdf(out)
    return found, f"{n} conformers worth {found.effective_sample_size():.0f} equilibrium samples", ("rdkit",)


def _crystal(dig: DiG, model: str, given: Given, n: int, out: Path, options: dict, progress: Show):
    from ..pymatgen import design

    if given.of is None:
        raise IncompatibleError(f"the model {model} is one of crystals: give a composition, such as C8.")
    found = design(given.of, n, model=dig, **options)
    found.write(out)
    return found, f"{len(found)} crystals, {found.failed} draws without a structure", ("pymatgen",)


_DRAWN: dict[str, tuple[tuple[str, ...], Callable]] = {
    "molecule": ((".xtc", ".dcd", ".h5", ".pdb", ".npz"), _molecule),
    "protein": ((".xtc", ".dcd", ".h5", ".pdb"), _protein),
    "conformers": ((".sdf",), _conformers),
    "crystal": ((".extxyz", ".cif"), _crystal),
}
_UNITS = {
    "molecule": "positions nm, energies kT, log weights nats",
    "protein": "trajectories in their format's, log_weight in nats",
    "conformers": "Angstrom, energies kcal/mol, log weights nats",
    "crystal": "Angstrom, log q in nats",
}
