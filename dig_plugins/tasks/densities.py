"""Log-densities of given structures under a model, their energies, and what the two say of each other."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dig_core.errors import IncompatibleError
from dig_core.files import write_atomically
from dig_core.montecarlo.chain import reduced_energy
from dig_core.random import Streams, as_seed
from dig_core.types import Geometry

from ..record import of_checkpoint, of_software
from .reports import density_report
from .result import Run, recorded, writable
from .subjects import Given, Subject, subject

__all__ = ["DENSITIES", "Densities", "density"]

DENSITIES = ("path", "trace", "map", "hutchinson")


class Densities(NamedTuple):
    """Of n structures: ``log_q`` (n,) in 1/Angstrom^D and its ``stderr``, nan where it is not known; ``energy`` (n,) u = E/kT and
    ``log_weight`` (n,) = -u - log q, nan without an energy."""

    log_q: np.ndarray
    stderr: np.ndarray
    energy: np.ndarray
    log_weight: np.ndarray


def density(
    model: str | Path, structures: str | Path, out: str | Path = "density.npz", *, given: Given | None = None, kind: str = "path",
    steps: int | None = None, paths: int | None = None, seed: int | None = None, batch: int = 256,
    report: bool = True,
) -> Run:  # fmt: skip
    """Log q and weights of the structures in a file, written to ``out`` (``.npz`` or ``.csv``) with a record (``.json``) beside it.

    Parameters
    ----------
    model: a name or a checkpoint. structures: what the model's kind is read from: ``.pdb``, ``.npz`` or a trajectory for molecules, PDB,
        mmCIF or a trajectory for proteins, SDF for conformers, CIF or extended XYZ for crystals, anything of ASE for adsorbates.
    given: the system, where the model does not bring it.
    kind: "path", an estimate over ``paths`` noising paths a structure, as samples are weighed by: its scatter falls with their number;
        "trace" or "map", the probability flow's density without noise, and "hutchinson", the same with noise and a standard error: those
        take a hundred evaluations of the network's derivative a structure and more.
    steps, paths: the model's own if None. batch: structures at a time.
    report: a page (``.html``) and a picture (``.png``) beside the record.

    Raises
    ------
    IncompatibleError: another kind, structures of another system; and what the system's readers raise.
    """
    if kind not in DENSITIES:
        raise IncompatibleError(f"expected kind to be one of {', '.join(DENSITIES)}, got {kind!r}.")
    out, seed, began = writable(out, (".npz", ".csv")), as_seed(seed), time.perf_counter()
    asked = subject(model, given)
    geometry = asked.read(structures)
    parts = []
    for low in range(0, len(geometry.positions), batch):
        some = Geometry(*(x[low : low + batch] if x is not None else None for x in geometry))
        parts.append(_densities(asked, some, kind, steps, paths, seed, low))
    found = Densities(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    _write(out, found)
    steps = asked.dig.card.steps if steps is None else steps
    record = {
        **of_software(*asked.packages), **of_checkpoint(model), "structures": str(structures), "n": len(found.log_q), "kind": kind,
        "steps": steps, "paths": (asked.dig.card.paths if paths is None else paths) if kind == "path" else None, "seed": seed,
        "energy": asked.energy_name, "temperature_K": asked.temperature, "mean_log_q": _mean(found.log_q),
        "mean_log_weight": _mean(found.log_weight), "spread_log_weight": _spread(found.log_weight),
        "seconds": time.perf_counter() - began, "units": "log q: nats, density in 1/Angstrom^D; energy: kT; log weight: nats",
    }  # fmt: skip
    page = (lambda: density_report(asked, geometry.positions.numpy(), found, record)) if report else None
    return recorded(found, record, _said(found, kind, out), out, page)


def _densities(asked: Subject, geometry: Geometry, kind: str, steps: int | None, paths: int | None, seed: int, first: int) -> Densities:
    count = len(geometry.positions)
    with torch.no_grad():
        if kind == "path":
            rng = Streams(seed, range(first, first + count))
            log_q = asked.dig.proposal(steps=steps, paths=paths).log_q(geometry, rng).numpy()
            stderr = np.full(count, np.nan)
        else:
            made = asked.dig.log_prob(geometry, steps=steps, kind=kind, seed=seed + first)
            log_q, stderr = made.value.numpy(), made.stderr.numpy()
        u = np.full(count, np.nan) if asked.energy is None else reduced_energy(asked.energy, geometry).numpy()
    return Densities(log_q, stderr, u, np.where(u == np.inf, -np.inf, -u - log_q))


def _write(out: Path, found: Densities) -> None:
    if out.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez(buffer, **found._asdict())
        write_atomically(out, buffer.getvalue())
        return
    lines = [",".join(("structure", *Densities._fields))]
    lines += [",".join((str(i), *(repr(float(x)) for x in row))) for i, row in enumerate(zip(*found, strict=True))]
    write_atomically(out, ("\n".join(lines) + "\n").encode())


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values))


def _spread(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else float("nan")


def _said(found: Densities, kind: str, out: Path) -> str:
    lines = [f"{len(found.log_q)} structures: log q from {found.log_q.min():.2f} to {found.log_q.max():.2f} ({kind})."]
    if np.isfinite(found.energy).any():
        mean, spread = _mean(found.log_weight), _spread(found.log_weight)
        lines.append(f"-E/kT - log q: mean {mean:.2f}, standard deviation {spread:.2f}; of a perfect model it has one value.")
    lines.append(f"numbers: {out}")
    return "\n".join(lines)
