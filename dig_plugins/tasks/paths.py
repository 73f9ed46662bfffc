"""Paths between two structures through a model's latent space, for molecules in OpenMM and for proteins."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dig_core.errors import IncompatibleError
from dig_core.montecarlo.chain import reduced_energy
from dig_core.types import Geometry

from ..record import empty_directory, of_checkpoint, of_software
from ..report import Report
from ..scene import superposed
from .reports import path_report
from .result import Run, recorded
from .subjects import Given, Subject, subject

__all__ = ["interpolate"]


def interpolate(
    model: str | Path, start: str | Path, end: str | Path, out: str | Path = "path", *, n: int = 20, given: Given | None = None,
    steps: int | None = None, path: str = "spherical", report: bool = True,
) -> Run:  # fmt: skip
    """``n`` structures from ``start`` to ``end``, ends included, in a new directory: ``path.xtc``, ``.pdb``, ``run.json`` and, if wanted,
    its ``report.html`` and ``.png``.

    ``start``, ``end``: files of which the first structure is taken. ``given``: the system, where the model does not bring it. ``steps``:
    of the probability flow, the model's own if None. ``path``: "spherical", or "linear" as in the article. Of a molecule the record holds
    the energy of each structure, in kT, and how far it is from both ends; of a protein what :class:`dig_plugins.mdtraj.BackbonePath` says.

    Raises
    ------
    IncompatibleError: a directory that is not empty, structures of another system, fewer than 2, a model of something else.
    """
    directory, began = empty_directory(out), time.perf_counter()
    if n < 2:
        raise IncompatibleError(f"expected at least 2 structures, the ends, got n = {n}.")
    asked = subject(model, given)
    if asked.kind not in ("molecule", "protein"):
        raise IncompatibleError(f"{model} is a model of {asked.kind}s: paths are for molecules in OpenMM and for proteins.")
    ends = [Geometry(asked.read(file).positions[:1]) for file in (start, end)]
    make = _molecule if asked.kind == "molecule" else _protein
    result, about, said = make(asked, ends, n, steps, path, directory)
    record = {
        **of_software(*asked.packages), **of_checkpoint(model), "kind": asked.kind, "start": str(start), "end": str(end), "path": path,
        "steps": asked.dig.card.steps if steps is None else steps, "temperature_K": asked.temperature, "energy": asked.energy_name,
        **about, "seconds": time.perf_counter() - began,
    }  # fmt: skip
    page = (lambda: _report(asked, result, record)) if report else None
    return recorded(result, record, f"{said}\npath: {directory}", directory, page)


def _report(asked: Subject, result: Any, record: dict) -> Report:
    rmsd = np.stack([record["rmsd_to_start"], record["rmsd_to_end"]], 1)
    if asked.kind == "molecule":
        return path_report(asked, result.positions.numpy(), record, rmsd, np.array(record["energies"]), None)
    broken = ~result.validity.ok.numpy()
    return path_report(asked, result.geometry.positions.numpy(), record, rmsd, result.energies, broken)


def _molecule(asked: Subject, ends: list[Geometry], n: int, steps: int | None, path: str, out: Path) -> tuple[Geometry, dict, str]:
    from ..openmm.files import write_frames

    frames = asked.dig.interpolate(*ends, n, steps=steps, path=path)
    frames = Geometry(torch.from_numpy(_in_a_row(frames.positions.detach().double().numpy())))
    with torch.no_grad():
        u = reduced_energy(asked.energy, frames).numpy()
        given = [float(reduced_energy(asked.energy, end)[0]) for end in ends]
    out.mkdir(parents=True, exist_ok=True)
    write_frames(out / "path.xtc", asked.system.topology, frames.positions.numpy() / 10)
    highest = float(u.max() - u.min())
    rmsd = _apart(frames.positions.numpy(), [end.positions[0].numpy() for end in ends], asked.dig.descriptor.numbers.numpy())
    about = {
        "frames": n, "energies": u.tolist(), "energies_of_given_ends": given, "rmsd_to_start": rmsd[:, 0].tolist(),
        "rmsd_to_end": rmsd[:, 1].tolist(), "units": "nm in path.xtc, energies in kT, RMSD in Angstrom",
    }  # fmt: skip
    said = f"{n} structures; the highest is {highest:.1f} kT above the lowest. The given ends have {given[0]:.1f} and {given[1]:.1f} kT."
    return frames, about, said


def _protein(asked: Subject, ends: list[Geometry], n: int, steps: int | None, path: str, out: Path) -> tuple:
    from ..mdtraj import interpolate_backbones
    from ..mdtraj.write import write_backbones

    found = interpolate_backbones(asked.dig, *ends, n, steps=steps, path=path)
    out.mkdir(parents=True, exist_ok=True)
    write_backbones(out / "path.xtc", found.geometry, found.descriptor)
    about = {key: value for key, value in found.report().items() if key not in ("model", "model_sha256", "command", "versions", "device")}
    return found, about, found.summary()


def _in_a_row(positions: np.ndarray) -> np.ndarray:
    """Each structure (n, N, 3) on the one before it, centred."""
    placed = positions - positions.mean(1, keepdims=True)
    for i in range(1, len(placed)):
        placed[i] = superposed(placed[i - 1 : i + 1])[1]
    return placed


def _apart(positions: np.ndarray, ends: list[np.ndarray], numbers: np.ndarray) -> np.ndarray:
    """(n, 2) Angstrom, RMSD of the heavy atoms, or of all where there are few, of (n, N, 3) to both ends (N, 3), superposed."""
    heavy = np.flatnonzero(numbers > 1)
    chosen = heavy if len(heavy) > 2 else np.arange(len(numbers))
    columns = []
    for end in ends:
        placed = superposed(np.concatenate([end[None], positions])[:, chosen])
        columns.append(np.sqrt(np.square(placed[1:] - placed[0]).sum(-1).mean(-1)))
    return np.stack(columns, 1)
