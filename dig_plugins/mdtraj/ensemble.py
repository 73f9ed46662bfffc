"""Backbones that a model drew, with weights and counts, and as files that MDTraj, PyMOL and ChimeraX open."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dig_core.errors import CheckpointError, IncompatibleError
from dig_core.files import read_arrays, read_json, understood, write_atomically
from dig_core.montecarlo.analysis import normalised_weights
from dig_core.system.descriptor import Descriptor
from dig_core.system.protein import residues
from dig_core.types import Geometry

from ..models.cache import digest
from .record import of_protein, of_software, protein_of
from .write import KINDS, write_backbones

__all__ = ["BackboneEnsemble", "Counts"]



class Counts(NamedTuple):
    """Of ``drawn`` structures: how many are ``whole``, ``broken``, ``clashing`` (both is possible), and ``undefined``, with
    atoms that are not finite."""

    drawn: int
    whole: int
    broken: int
    clashing: int
    undefined: int

    def __str__(self) -> str:
        named = f"{self.broken} broken, {self.clashing} clashing, {self.undefined} undefined"
        return f"of {self.drawn} draws {self.whole} are whole, {named}"


@dataclass(frozen=True, eq=False)
class BackboneEnsemble:
    """n backbones of one protein.

    Parameters
    ----------
    geometry: (n, A, 3) Angstrom. descriptor: the protein. index: (n,) of each draw in the stream of ``seed``.
    valid: (n,) bool, whether it is whole; one that is not has no weight. counts: of the draws 0 to the last one kept.
    log_weight: (n,) makes guided draws exact for the model's law times the likelihood of the condition, None for equal weights.
    properties: name -> (n,) what the condition read off each structure.
    made: how: model, method, steps, as ``run.json`` holds it.
    """

    geometry: Geometry
    descriptor: Descriptor
    index: np.ndarray
    valid: np.ndarray
    counts: Counts
    seed: int
    log_weight: np.ndarray | None = None
    properties: dict[str, np.ndarray] = field(default_factory=dict)
    made: dict = field(default_factory=dict)

    def __post_init__(self):
        n = len(self.geometry.positions)
        given = {"index": self.index, "valid": self.valid, "log_weight": self.log_weight} | self.properties
        wrong = {name: len(x) for name, x in given.items() if x is not None and len(x) != n}
        if wrong:
            raise IncompatibleError(f"expected {n} numbers for {n} structures, got {wrong}.")

    def __len__(self) -> int:
        return len(self.index)

    @property
    def weights(self) -> np.ndarray:
        """(n,) sum one: those of ``log_weight``, equal without; zero where not valid, all zero if none has weight."""
        log_weight = np.where(self.valid, 0.0 if self.log_weight is None else self.log_weight, -np.inf)
        return normalised_weights(log_weight) if (log_weight > -np.inf).any() else np.zeros(len(self))

    def effective_sample_size(self) -> float:
        """Raw Kish size of the weights, in structures."""
        square = float(np.square(self.weights).sum())
        return 1 / square if square else 0.0

    def trajectory(self):
        """mdtraj.Trajectory of N, CA, C, O and CB, all structures."""
        from .convert import to_trajectory

        return to_trajectory(self.geometry, self.descriptor)

    def summary(self) -> str:
        """What was drawn, what was left out, and what it is worth."""
        size = len(residues(self.descriptor).kind)
        how = f"{self.made.get('model', 'unknown model')}, {self.made.get('method', '?')}, {self.made.get('steps', '?')} steps"
        lines = [f"{len(self)} backbones of {size} residues: {how}, seed {self.seed}; {self.counts}."]
        lines += [f"Effective sample size {self.effective_sample_size():.1f}."] if self.log_weight is not None else []
        if self.made.get("guidance") and self.log_weight is None:
            lines.append('Guided without weights: the condition is met roughly; draw with method="path" for exact ones.')
        return "\n".join(lines)

    def write(self, path: str | Path) -> None:
        """A trajectory, ``.xtc``, ``.dcd``, ``.h5`` or ``.pdb``, with a PDB, weights (``.npz``) and a record (``.json``) of the same name
        beside it; for a name without a suffix a directory with ``backbones.xtc``, ``backbones.pdb``, ``samples.npz`` and ``run.json``.

        XTC holds 0.01 Angstrom. Raises IncompatibleError for other names, StateError for atoms that are not finite.
        """
        trajectory, numbers, record = _files(path)
        trajectory.parent.mkdir(parents=True, exist_ok=True)
        write_backbones(trajectory, self.geometry, self.descriptor)
        buffer = io.BytesIO()
        own = {"index": self.index, "valid": self.valid, "seed": np.uint64(self.seed)}
        own |= {} if self.log_weight is None else {"log_weight": self.log_weight}
        np.savez(buffer, **own, **{f"property {name}": x for name, x in self.properties.items()})
        write_atomically(numbers, buffer.getvalue())
        about = {**self._record(), "trajectory_sha256": digest(trajectory)}
        write_atomically(record, json.dumps(about, indent=2).encode())

    def _record(self) -> dict:
        return {
            **self.made, "samples": len(self), **self.counts._asdict(), "seed": self.seed, **of_protein(self.descriptor),
            "effective_sample_size": self.effective_sample_size(), **of_software(),
            "units": "trajectories in their format's, log_weight in nats",
        }  # fmt: skip

    @classmethod
    def read(cls, path: str | Path) -> BackboneEnsemble:
        """What :meth:`write` wrote; the descriptor has no reference and no embeddings. Raises IncompatibleError where files are
        missing, CheckpointError for others and for damaged ones."""
        from .convert import read_frames

        trajectory, numbers, record = _files(path)
        missing = [x.name for x in (trajectory, numbers, record) if not x.is_file()]
        if missing:
            raise IncompatibleError(f"{trajectory.parent} has no {', '.join(missing)}: read what BackboneEnsemble.write made.")
        held, columns, head = read_json(record), read_arrays(numbers), "property "
        with understood(record, "is no record of backbones", "read what BackboneEnsemble.write made"):
            descriptor, counts = protein_of(held), Counts(*(int(held[name]) for name in Counts._fields))
        # MDTraj's readers in C take the process with them on some damaged files.
        if held.get("trajectory_sha256", digest(trajectory)) != digest(trajectory):
            raise CheckpointError(f"{trajectory} is not the trajectory that {record.name} describes: it is damaged or another.")
        frames = read_frames(trajectory, descriptor.n_atoms, np.arange(descriptor.n_atoms), 1)
        with understood(numbers, "does not belong to the trajectory", "read what BackboneEnsemble.write made"):
            return cls(
                Geometry(torch.from_numpy(frames.positions)), descriptor, columns["index"], columns["valid"],
                counts, int(columns["seed"]), columns.get("log_weight"),
                {name.removeprefix(head): x for name, x in columns.items() if name.startswith(head)},
                {name: held[name] for name in _MADE if name in held},
            )  # fmt: skip


_MADE = ("model", "model_sha256", "temperature_K", "method", "steps", "pace", "guidance", "conditions")


def _files(path: str | Path) -> tuple[Path, Path, Path]:
    """Trajectory, numbers and record of an ensemble."""
    path = Path(path)
    if not path.suffix:
        return path / "backbones.xtc", path / "samples.npz", path / "run.json"
    if path.suffix.lower() not in KINDS:
        raise IncompatibleError(f"expected a directory, or a file name ending in {', '.join(KINDS)}, got {path.name!r}.")
    return path, path.with_suffix(".npz"), path.with_suffix(".json")
