"""Which OpenMM platform is the fastest for a System, by timing those that are there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np
import openmm

__all__ = ["ACCELERATORS", "candidates", "fastest", "present"]

# Accelerators compute in float32 unless told otherwise; energies go into Monte Carlo weights.
ACCELERATORS = {"CUDA": {"Precision": "mixed"}, "HIP": {"Precision": "mixed"}, "OpenCL": {"Precision": "mixed"}}
_EVALUATIONS, _SECONDS = 20, 1.0
_SMALL = 500  # particles


def present() -> set[str]:
    """Names of the platforms of this installation."""
    return {openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())}


def candidates(n_atoms: int, threads: int | None) -> list[tuple[str, dict[str, str]]]:
    """Platforms worth timing for ``n_atoms`` particles, with their properties; ``threads`` of the CPU platform or None for a choice."""
    if threads is not None:
        counts = [{"Threads": str(threads)}]
    else:
        # Hand-offs between threads cost more than they save on small molecules.
        counts = [{"Threads": "1"}] + ([{}] if n_atoms > 100 else [])
    found = [*(("CPU", properties) for properties in counts), *ACCELERATORS.items()]
    if n_atoms <= _SMALL:
        # Beyond that it takes seconds for what others do in milliseconds, and is not worth the wait to find out.
        found = [("Reference", {}), *found]
    installed = present()
    return [(name, properties) for name, properties in found if name in installed]


def fastest(
    build: Callable[[str, dict[str, str]], openmm.Context],
    among: Iterable[tuple[str, dict[str, str]]],
    positions: np.ndarray,
    *,
    forces: bool,
) -> tuple[str, dict[str, str], openmm.Context | None]:
    """The platform that evaluates ``positions`` (N, 3) nm soonest, its properties and its Context, made by ``build``.

    ("Reference", {}, None) if none of them can evaluate the System.
    """
    best, chosen = np.inf, ("Reference", {}, None)
    for name, properties in among:
        try:
            context = build(name, properties)
            seconds = _seconds(context, positions, forces)
        except openmm.OpenMMException:
            # A platform may be installed without its device, or not know one of the forces.
            continue
        if seconds < best:
            best, chosen = seconds, (name, properties, context)
    return chosen


def _seconds(context: openmm.Context, positions: np.ndarray, forces: bool) -> float:
    """Seconds an evaluation takes: the least of a few, since other work on the machine only ever adds."""
    best, started = np.inf, time.perf_counter()
    for _ in range(_EVALUATIONS):
        begin = time.perf_counter()
        context.setPositions(positions)
        state = context.getState(energy=True, forces=forces)
        if forces:
            state.getForces(asNumpy=True)
        best = min(best, time.perf_counter() - begin)
        if begin - started > _SECONDS:
            break
    return best
