"""Paths between two structures through a model's latent space, for molecules in OpenMM and for proteins."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from dig_core.errors import IncompatibleError
from dig_core.files import write_atomically
from dig_core.montecarlo.chain import reduced_energy
from dig_core.types import Geometry

from ..record import empty_directory, of_checkpoint, of_software, write_record
from .result import Run
from .subjects import Given, Subject, subject

__all__ = ["interpolate"]


def interpolate(
    model: str | Path, start: str | Path, end: str | Path, out: str | Path = "path", *, n: int = 20, given: Given | None = None,
    steps: int | None = None, path: str = "spherical",
) -> Run:  # fmt: skip
    """``n`` structures from ``start`` to ``end``, ends included, in a new directory: ``path.xtc``, ``.pdb`` and ``.png``, and ``run.json``.

    ``start``, ``end``: files of which the first structure is taken. ``given``: the system, where the model does not bring it. ``steps``:
    of the probability flow, the model's own if None. ``path``: "spherical", or "linear" as in the article. Of a molecule the record holds
    the energy of each structure, in kT; of a protein what :class:`dig_plugins.mdtraj.BackbonePath` says; the picture needs matplotlib.

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
    write_record(directory, record)
    return Run(result, record, f"{said}\npath: {directory}", directory)


def _molecule(asked: Subject, ends: list[Geometry], n: int, steps: int | None, path: str, out: Path) -> tuple[Geometry, dict, str]:
    from ..openmm.files import write_frames

    frames = asked.dig.interpolate(*ends, n, steps=steps, path=path)
    frames = Geometry(_superposed(frames.positions.detach().double()))
    with torch.no_grad():
        u = reduced_energy(asked.energy, frames).numpy()
        given = [float(reduced_energy(asked.energy, end)[0]) for end in ends]
    out.mkdir(parents=True, exist_ok=True)
    write_frames(out / "path.xtc", asked.system.topology, frames.positions.numpy() / 10)
    _picture(out, lambda axes: _energies(axes, u))
    highest = float(u.max() - u.min())
    about = {"frames": n, "energies": u.tolist(), "energies_of_given_ends": given, "units": "nm in path.xtc, energies in kT"}
    said = f"{n} structures; the highest is {highest:.1f} kT above the lowest. The given ends have {given[0]:.1f} and {given[1]:.1f} kT."
    return frames, about, said


def _protein(asked: Subject, ends: list[Geometry], n: int, steps: int | None, path: str, out: Path) -> tuple:
    from ..mdtraj import interpolate_backbones
    from ..mdtraj.write import write_backbones

    found = interpolate_backbones(asked.dig, *ends, n, steps=steps, path=path)
    out.mkdir(parents=True, exist_ok=True)
    write_backbones(out / "path.xtc", found.geometry, found.descriptor)
    _picture(out, found.plot)
    about = {key: value for key, value in found.report().items() if key not in ("model", "model_sha256", "command", "versions", "device")}
    return found, about, found.summary()


def _superposed(positions: torch.Tensor) -> torch.Tensor:
    """Each structure on the one before it, centred (Kabsch)."""
    placed = positions - positions.mean(1, keepdim=True)
    for i in range(1, len(placed)):
        u, _, vt = torch.linalg.svd(placed[i].T @ placed[i - 1])
        flip = torch.diag(torch.tensor([1.0, 1.0, float(torch.linalg.det(u @ vt))], dtype=placed.dtype))
        placed[i] = placed[i] @ (u @ flip @ vt)
    return placed


def _energies(axes, u: np.ndarray) -> None:
    from ..panels import BLUE

    axes.plot(np.arange(len(u)), u - u.min(), "o-", ms=3, color=BLUE)
    axes.set(xlabel="frame", ylabel="energy above the lowest (kT)", xlim=(0, len(u) - 1))


def _picture(out: Path, draw) -> None:
    try:
        from ..panels import new_figure, to_png

        figure = new_figure(6, 4)
        draw(figure.add_subplot())
    except ImportError:  # no matplotlib: a path without a picture
        return
    write_atomically(out / "path.png", to_png(figure, dpi=150))
