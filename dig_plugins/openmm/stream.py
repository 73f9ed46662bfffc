"""Samples written as they come: memory holds a batch of them, and the same call goes on with a run that was cut off."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openmm
from openmm import app

from dig_core.checkpoint import dumps
from dig_core.dig import DiG
from dig_core.errors import CheckpointError, StateError
from dig_core.files import read_arrays, understood, write_atomically
from dig_core.montecarlo.chain import Candidates
from dig_core.progress import Show
from dig_core.random import as_seed

from ..claim import claimed, kept_seed, part_of, settings
from .ensemble import Source, Weighed, check_counts
from .files import TRAJECTORIES, Trajectory, writable, write_arrays, write_models

__all__ = ["Written", "write_samples"]


@dataclass(frozen=True)
class Written(Weighed):
    """What :func:`write_samples` has written to ``path``, without the positions; fields as of :class:`~.ensemble.Ensemble`."""

    path: Path
    log_weights: np.ndarray
    energies: np.ndarray
    seed: int


def write_samples(
    model: str | DiG,
    n: int,
    path: str | Path,
    *,
    simulation: app.Simulation | None = None,
    seed: int | None = None,
    steps: int | None = None,
    batch: int = 1024,
    progress: Show = None,
    executor: Executor | None = None,
) -> Written:
    """The structures of :func:`~.ensemble.sample` to a file as they come, so that memory holds a batch of them.

    ``path``: as of :meth:`.Ensemble.save`; beside a trajectory the first structure (``.pdb``; HDF5 needs none) and ``log_weights``,
    ``energies``, ``seed`` (``.npz``). All files are there at the end, or none. Until then what is drawn is kept in the directory ``path``
    + ".part": after a kill the same call goes on with it, with its seed if none is given, and ends as if it had never stopped.

    Raises
    ------
    IncompatibleError: what cannot be drawn or written, or another process draws it. CheckpointError: the run that was cut off had other
    settings, or its files are damaged. StateError: positions that are not finite, which trajectories do not hold.
    """
    path = writable(path)
    check_counts(n, batch)
    source, part = Source.of(model, simulation), part_of(path)
    seed, platform = _begun(part, seed)
    energy = source.energy(**platform)
    about = {
        "model_sha256": _identity(source.dig), "system_sha256": _sha256(openmm.XmlSerializer.serialize(source.system).encode()),
        "n": n, "seed": seed, "steps": len(source.dig.grid(steps)) - 1, "batch": batch, "platform": energy.platform_name,
        "threads": energy.threads,
    }  # fmt: skip
    options = {"seed": seed, "steps": steps, "batch": batch, "progress": progress, "executor": executor}
    run = _Run(path, part, source.topology)
    with claimed(part, about, "run"):
        done = run.begin()
        if done * batch < n:
            run.keep(source.drawn(n, energy, start=done * batch, **options), done)
        written = run.finish(seed)
    shutil.rmtree(part, ignore_errors=True)
    return written


class _Run:
    """A directory with a file a batch, and what becomes of them at the end.

    Batch k is there if all of 0 to k are; a file is written whole or not at all, so that what a killed process leaves is a whole number
    of batches.
    """

    def __init__(self, path: Path, part: Path, topology: app.Topology):
        self._path, self._part, self._topology = path, part, topology

    def begin(self) -> int:
        """How many batches there are."""
        (self._part / "batches").mkdir(exist_ok=True)
        return next(number for number in itertools.count() if not self._file(number).is_file())

    def keep(self, made: Iterator[Candidates], number: int) -> None:
        """Write batches as they come, from that ``number`` on."""
        for found in made:
            if self._path.suffix in TRAJECTORIES and not np.isfinite(found.positions).all():
                raise StateError(f"expected finite positions for {self._path.name}, got NaN or infinity: write an .npz, which holds them.")
            buffer = io.BytesIO()
            positions = (found.positions / 10).astype(np.float32)
            np.savez(buffer, positions=positions, log_weights=found.log_weight, energies=found.u)
            write_atomically(self._file(number), buffer.getvalue())
            number += 1

    def finish(self, seed: int) -> Written:
        """The files that were asked for, from all batches: made beside those, then moved to where they belong."""
        columns = [(held["log_weights"], held["energies"]) for held in self._batches()]
        log_weights, energies = (np.concatenate(parts) for parts in zip(*columns, strict=True))
        written = Written(self._path, log_weights, energies, seed)
        place, weights = self._part / self._path.name, {"log_weights": log_weights, "energies": energies, "seed": seed}
        positions = (held["positions"] for held in self._batches())
        made = [place]
        if place.suffix == ".npz":
            write_arrays(place, positions, (len(energies), self._topology.getNumAtoms(), 3), **weights)
        elif place.suffix == ".pdb":
            picks = written.picks()
            write_models(place, self._topology, _picked(positions, picks), len(picks))
        else:
            with Trajectory(place, self._topology) as trajectory:
                for part in positions:
                    trajectory.write(part)
            write_arrays(place.with_suffix(".npz"), **weights)
            made = [file for file in (place.with_suffix(".pdb"), place.with_suffix(".npz")) if file.exists()] + [place]
        for file in made:
            os.replace(file, self._path.with_suffix(file.suffix))
        return written

    def _batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Each batch, checked. Raises CheckpointError for a damaged one."""
        for number in range(self.begin()):
            held = read_arrays(self._file(number))
            with understood(self._file(number), "is not a batch of samples", "delete it, and it is drawn again"):
                count = len(held["energies"])
                if held["log_weights"].shape != (count,) or held["positions"].shape != (count, self._topology.getNumAtoms(), 3):
                    raise ValueError("arrays of other shapes")
            yield held

    def _file(self, number: int) -> Path:
        return self._part / "batches" / f"{number:06d}.npz"


def _picked(positions: Iterator[np.ndarray], picks: np.ndarray) -> Iterator[np.ndarray]:
    """The structures whose rising numbers are ``picks``."""
    low = 0
    for part in positions:
        here = picks[(picks >= low) & (picks < low + len(part))] - low
        yield from part[here]
        low += len(part)


def _begun(part: Path, seed: int | None) -> tuple[int, dict]:
    """The seed, and on what energies are computed: those of the run that was cut off, where there is one."""
    held = settings(part)
    with understood(part / "settings.json", "is not of a run of samples", f"delete {part.name}"):
        platform = {"platform": str(held["platform"]), "threads": held["threads"] and int(held["threads"])} if held else {}
    return as_seed(kept_seed(part) if seed is None else seed), platform


def _identity(dig: DiG) -> str:
    try:
        return _sha256(dumps(dig))
    except CheckpointError:  # a guided model, which nothing tells from another: no run goes on with it
        return os.urandom(16).hex()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
