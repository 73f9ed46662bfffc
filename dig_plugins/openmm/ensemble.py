"""Equilibrium samples with their exact weights: draw, average, save."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openmm
from openmm import app

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError
from dig_core.files import write_atomically
from dig_core.montecarlo.analysis import effective_sample_size, metropolis_acceptance, normalised_weights
from dig_core.montecarlo.chain import Candidates, weighed
from dig_core.progress import Show, bar
from dig_core.random import as_seed

from .. import models
from .convert import check_supported, check_topology
from .energy import OpenMMEnergy
from .files import TRAJECTORIES, writable, write_frames
from .systems import model_system

__all__ = ["Ensemble", "Source", "Weighed", "check_counts", "sample", "writable"]


class Weighed:
    """What ``log_weights`` (F,) of the samples of ``seed`` say, raw."""

    log_weights: np.ndarray
    seed: int

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

    def picks(self, n: int | None = None) -> np.ndarray:
        """(n,) rising numbers of structures, systematically resampled to equal weight; n is the effective size if not given."""
        n = max(1, int(self.effective_sample_size)) if n is None else int(n)
        edges = (np.arange(n) + np.random.default_rng(self.seed).random()) / n
        return np.searchsorted(np.cumsum(self.weights), edges).clip(max=len(self.log_weights) - 1)


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
        return self.positions[self.picks(n)]

    def save(self, path: str | Path) -> None:
        """A trajectory (``.xtc``, ``.dcd`` with a .pdb topology, or ``.h5``) with a .npz of weights beside it, ``.pdb`` (resampled models),
        or ``.npz`` alone."""
        path = writable(path)
        if path.suffix == ".pdb":
            write_frames(path, self.topology, self.resample())
            return
        buffer = io.BytesIO()
        np.savez(buffer, log_weights=self.log_weights, energies=self.energies, positions=self.positions.astype(np.float32), seed=self.seed)
        write_atomically(path.with_suffix(".npz"), buffer.getvalue())
        if path.suffix in TRAJECTORIES:
            write_frames(path, self.topology, self.positions)


def sample(
    model: str | DiG,
    n: int,
    *,
    simulation: app.Simulation | None = None,
    seed: int | None = None,
    steps: int | None = None,
    batch: int = 1024,
    progress: Show = None,
    executor: Executor | None = None,
) -> Ensemble:
    """``n`` independent structures with their exact weights.

    ``model``: a shipped name (its system comes with it) or a DiG together with the ``simulation`` of its molecule. ``executor``: processes
    that draw and evaluate a batch each; the same seed gives the same ensemble.
    """
    seed = as_seed(seed)
    source = Source.of(model, simulation)
    made = source.drawn(n, source.energy(), seed=seed, steps=steps, batch=batch, progress=progress, executor=executor)
    log_weights, u, positions = (np.concatenate(parts) for parts in zip(*((p.log_weight, p.u, p.positions) for p in made), strict=True))
    return Ensemble(source.topology, positions / 10, log_weights, u, seed)


def check_counts(n: int, batch: int) -> None:
    """Raises IncompatibleError for no samples, or none at a time."""
    if n < 1 or batch < 1:
        raise IncompatibleError(f"expected to draw at least 1 sample, in batches of at least 1, got n = {n} and batch = {batch}.")


class Source(NamedTuple):
    """A model and the molecule that it draws."""

    dig: DiG
    topology: app.Topology
    system: openmm.System

    @classmethod
    def of(cls, model: str | DiG, simulation: app.Simulation | None) -> Source:
        """Raises IncompatibleError where they do not fit, or there is no temperature or no System."""
        dig = models.load(model) if isinstance(model, str) else model
        if simulation is not None:
            topology, system = simulation.topology, simulation.system
        elif isinstance(model, str) and model in models.index():
            topology, system, *_ = model_system(model)
        else:
            raise IncompatibleError("pass simulation=: only shipped models know their System.")
        check_topology(dig.descriptor, topology)
        check_supported(system, topology)
        if dig.card.temperature is None:
            raise IncompatibleError(f"the model {dig.card.name!r} has no temperature in its card: its weights are undefined.")
        return cls(dig, topology, system)

    def energy(self, **options) -> OpenMMEnergy:
        """Options as of the constructor."""
        return OpenMMEnergy(self.system, self.dig.card.temperature, **options)

    def drawn(
        self, n: int, energy: OpenMMEnergy, *, seed: int, steps: int | None, batch: int, start: int = 0, progress: Show,
        executor: Executor | None,
    ) -> Iterator[Candidates]:  # fmt: skip
        """Weighed structures ``start`` to ``n``, a batch at a time."""
        check_counts(n, batch)
        made = weighed(self.dig.proposal(steps=steps), energy, n - start, seed=seed, batch=batch, start=start, executor=executor)
        return bar(made, label="samples", progress=progress, total=-(-n // batch), initial=start // batch)
