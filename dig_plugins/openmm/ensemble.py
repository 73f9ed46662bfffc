"""Equilibrium samples with their exact weights: draw, average, save."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from openmm import app
from tqdm.auto import tqdm

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError
from dig_core.files import write_atomically
from dig_core.montecarlo.analysis import effective_sample_size, metropolis_acceptance, normalised_weights
from dig_core.montecarlo.chain import Candidates, weighed
from dig_core.random import as_seed

from .. import models
from .convert import check_supported, check_topology
from .energy import OpenMMEnergy
from .files import XTC, writable, write_frames
from .systems import model_system

__all__ = ["Ensemble", "Weighed", "Written", "sample", "writable", "write_samples"]


class Weighed:
    """What ``log_weights`` (F,) say, raw."""

    log_weights: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """(F,) normalised to one."""
        return normalised_weights(self.log_weights)

    @property
    def effective_sample_size(self) -> float:
        """Raw Kish size, in samples."""
        return effective_sample_size(self.log_weights) * len(self.log_weights)

    @property
    def acceptance(self) -> float:
        """What a Metropolis chain on these proposals would accept."""
        return metropolis_acceptance(self.log_weights)


@dataclass(frozen=True)
class Written(Weighed):
    """What :func:`write_samples` has written to ``path``, without the positions; fields as of :class:`Ensemble`."""

    path: Path
    log_weights: np.ndarray
    energies: np.ndarray
    seed: int


@dataclass(frozen=True)
class Ensemble(Weighed):
    """``positions`` (F, N, 3) nm; ``log_weights`` (F,) = -E/kT - log q, never clipped; ``energies`` (F,) reduced; ``seed``.

    Averages with :attr:`weights` are those of exp(-E/kT) whatever the model's quality; ``effective_sample_size`` says how
    many independent equilibrium samples they are worth.
    """

    topology: app.Topology
    positions: np.ndarray
    log_weights: np.ndarray
    energies: np.ndarray
    seed: int

    def average(self, observable: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Equilibrium average of ``observable(positions)`` (F, ...)."""
        return np.tensordot(self.weights, observable(self.positions), axes=1)

    def resample(self, n: int | None = None) -> np.ndarray:
        """(n, N, 3) nm structures of equal weight, drawn systematically; n is the effective size if not given."""
        n = max(1, int(self.effective_sample_size)) if n is None else int(n)
        edges = (np.arange(n) + np.random.default_rng(self.seed).random()) / n
        return self.positions[np.searchsorted(np.cumsum(self.weights), edges).clip(max=len(self.positions) - 1)]

    def save(self, path: str | Path) -> None:
        """``.xtc`` (with a .pdb topology and a .npz of weights beside it), ``.pdb`` (resampled models), or ``.npz`` alone."""
        path = writable(path)
        if path.suffix == ".pdb":
            write_frames(path, self.topology, self.resample())
            return
        buffer = io.BytesIO()
        np.savez(buffer, log_weights=self.log_weights, energies=self.energies, positions=self.positions.astype(np.float32), seed=self.seed)
        write_atomically(path.with_suffix(".npz"), buffer.getvalue())
        if path.suffix == ".xtc":
            write_frames(path, self.topology, self.positions)


def sample(
    model: str | DiG,
    n: int,
    *,
    simulation: app.Simulation | None = None,
    seed: int | None = None,
    steps: int | None = None,
    batch: int = 1024,
    progress: bool | None = None,
    executor: Executor | None = None,
) -> Ensemble:
    """``n`` independent structures with their exact weights.

    ``model``: a shipped name (its system comes with it) or a DiG together with the ``simulation`` of its molecule. ``executor``: processes
    that draw and evaluate a batch each; the same seed gives the same ensemble.
    """
    seed = as_seed(seed)
    topology, made = _drawn(model, n, simulation, seed, steps, batch, progress, executor)
    log_weights, u, positions = (np.concatenate(parts) for parts in zip(*((p.log_weight, p.u, p.positions) for p in made), strict=True))
    return Ensemble(topology, positions / 10, log_weights, u, seed)


def write_samples(
    model: str | DiG,
    n: int,
    path: str | Path,
    *,
    simulation: app.Simulation | None = None,
    seed: int | None = None,
    steps: int | None = None,
    batch: int = 1024,
    progress: bool | None = None,
    executor: Executor | None = None,
) -> Written:
    """The structures of :func:`sample` to an ``.xtc`` file as they come, so that memory holds a batch of them.

    Beside it the first structure (``.pdb``) and ``log_weights``, ``energies``, ``seed`` (``.npz``). All are there at the end, or none.
    """
    path, seed = writable(path), as_seed(seed)
    if path.suffix != ".xtc":
        raise IncompatibleError(f"expected a file name ending in .xtc to write structures to as they come, got {path.name!r}.")
    topology, made = _drawn(model, n, simulation, seed, steps, batch, progress, executor)
    columns = []
    with XTC(path, topology) as trajectory:
        for part in made:
            trajectory.write(part.positions / 10)
            columns.append((part.log_weight, part.u))
        log_weights, energies = (np.concatenate(parts) for parts in zip(*columns, strict=True))
        buffer = io.BytesIO()
        np.savez(buffer, log_weights=log_weights, energies=energies, seed=seed)
        write_atomically(path.with_suffix(".npz"), buffer.getvalue())
    return Written(path, log_weights, energies, seed)


def _drawn(
    model: str | DiG, n: int, simulation: app.Simulation | None, seed: int, steps: int | None, batch: int, progress: bool | None,
    executor: Executor | None,
) -> tuple[app.Topology, Iterator[Candidates]]:  # fmt: skip
    """The topology of the molecule, and weighed structures of it a batch at a time."""
    dig = models.load(model) if isinstance(model, str) else model
    if simulation is not None:
        topology, system = simulation.topology, simulation.system
    elif isinstance(model, str) and model in models.index():
        topology, system, *_ = model_system(model)
    else:
        raise IncompatibleError("pass simulation=: only shipped models know their System.")
    if n < 1:
        raise IncompatibleError(f"expected to draw at least 1 sample, got n = {n}.")
    check_topology(dig.descriptor, topology)
    check_supported(system, topology)
    if dig.card.temperature is None:
        raise IncompatibleError(f"the model {dig.card.name!r} has no temperature in its card: its weights are undefined.")
    energy = OpenMMEnergy(system, dig.card.temperature)
    made = weighed(dig.proposal(steps=steps), energy, n, seed=seed, batch=batch, executor=executor)
    return topology, tqdm(made, total=-(-n // batch), desc="samples", disable=None if progress is None else not progress)
