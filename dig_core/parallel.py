"""Work in other processes through any ``concurrent.futures.Executor``, and in smaller portions where memory runs out."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .energy import Energy
from .errors import IncompatibleError
from .gradients import with_gradients
from .types import Geometry

__all__ = ["ParallelEnergy", "as_here", "halving", "in_order"]

_AHEAD = 64
_ONCE = "energies from other processes are differentiable only once: call the energy itself."

Item = TypeVar("Item")
Found = TypeVar("Found")


def in_order(executor: Executor, function: Callable[[Item], Found], items: Iterable[Item], ahead: int = _AHEAD) -> Iterator[Found]:
    """``function`` of each of ``items`` in the executor, in their order; never more than ``ahead`` tasks wait, so that memory stays flat.

    What is left of them is cancelled where the caller stops asking, or one of them fails.
    """
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def as_here(function: Callable[[Item], Found]) -> Callable[[Item], Found]:
    """``function``, in whatever process on as many threads as here: matrix products of another number round differently."""
    return partial(_on_threads, torch.get_num_threads(), function)


def _on_threads(threads: int, function: Callable[[Item], Found], item: Item) -> Found:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return function(item)


def halving(function: Callable[[range], Found], rows: range) -> list[Found]:
    """``function(rows)``; where memory runs out, that of both halves, with a warning. What fails with one row alone is raised.

    Samples that depend on their index alone are the same either way.
    """
    try:
        return [function(rows)]
    except (MemoryError, RuntimeError) as error:
        if len(rows) < 2 or not _out_of_memory(error):
            raise
        said = f"{type(error).__name__} with {len(rows)} at once, {len(rows) // 2} are tried: a smaller batch saves the time for trying."
        warnings.warn(said, RuntimeWarning, stacklevel=2)
    # Out of the handler: the traceback holds on to what filled the memory.
    middle = len(rows) // 2
    return [*halving(function, rows[:middle]), *halving(function, rows[middle:])]


def _out_of_memory(error: Exception) -> bool:
    # Of processors torch has no error of its own.
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "can't allocate memory" in str(error)


class ParallelEnergy:
    """``energy`` evaluated in an executor, ``batch`` structures a task: an :class:`~dig_core.energy.Energy` like any other.

    Differentiable once. ``energy`` travels as executors send objects, so it has to be picklable for processes
    (:class:`~dig_plugins.openmm.energy.OpenMMEnergy` sends its System as XML); structures and results are plain arrays. A thread pool
    needs an energy that threads may share.

    Raises
    ------
    IncompatibleError: a batch below 1.
    """

    def __init__(self, energy: Energy, executor: Executor, *, batch: int = 256):
        if batch < 1:
            raise IncompatibleError(f"expected at least 1 structure a task, got batch = {batch}.")
        self.energy, self.executor, self.batch = energy, executor, int(batch)

    def __call__(self, geometry: Geometry) -> Tensor:
        """u (B,) float64 on the device of the positions (B, N, 3) Angstrom."""
        positions, cell = geometry
        if torch.is_grad_enabled() and (positions.requires_grad or (cell is not None and cell.requires_grad)):
            return with_gradients(self._with_gradients, geometry, _ONCE)
        return self._all(geometry, False, False)[0].to(positions.device)

    def _with_gradients(self, geometry: Geometry, strain: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        u, dx, dcell = self._all(geometry, True, strain)
        return u, dx, dcell if strain else None

    def _all(self, geometry: Geometry, gradient: bool, strain: bool) -> list[Tensor]:
        held = [None if x is None else x.detach().cpu().numpy() for x in geometry]
        lows = range(0, len(geometry.positions), self.batch)
        tasks = [(self.energy, *(None if x is None else x[low : low + self.batch] for x in held), gradient, strain) for low in lows]
        parts = list(in_order(self.executor, _evaluated, tasks)) or [_evaluated((self.energy, *held, gradient, strain))]
        return [torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True)]


def _evaluated(task: tuple[Any, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In a worker: u (B,), and du/dx and du/dcell where they are asked for, else empty."""
    energy, positions, cell, gradient, strain = task
    x, lattice = torch.tensor(positions), None if cell is None else torch.tensor(cell)
    nothing = np.zeros((len(x), 0))
    if not gradient:
        with torch.no_grad():
            return energy(Geometry(x, lattice)).double().cpu().numpy(), nothing, nothing
    leaves = [leaf.requires_grad_() for leaf in (x, lattice if strain else None) if leaf is not None]
    with torch.enable_grad():
        u = energy(Geometry(x, lattice)).double()
        good = torch.isfinite(u)
        slopes = torch.autograd.grad(torch.where(good, u, 0.0).sum(), leaves, materialize_grads=True)
    dx, *dcell = [slope.double().cpu().numpy() for slope in slopes]
    return u.detach().cpu().numpy(), dx, dcell[0] if dcell else nothing
