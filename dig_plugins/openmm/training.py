"""One call from an OpenMM System to a model: what is given, the coordinates that it makes, and the training of one molecule."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import numpy as np
import openmm as mm
import torch
from openmm import app

from dig_core.coordinates import Internal
from dig_core.dig import Card, DiG
from dig_core.errors import IncompatibleError
from dig_core.progress import Show
from dig_core.random import as_seed
from dig_core.training.fit import Fitted
from dig_core.training.frames import frames_of
from dig_core.training.losses import Frames
from dig_core.training.molecule import fit_molecule, internal_model, width_of
from dig_core.training.plan import Plan, seconds_of
from dig_core.types import Geometry

from ..progress import pictures
from .convert import describe, kelvin, thermal_widths, to_geometry
from .energy import OpenMMEnergy
from .systems import file_system

__all__ = ["Fitted", "fit", "fit_files"]


def fit(
    simulation_or_system: app.Simulation | mm.System,
    topology: app.Topology | None = None,
    temperature=None,
    *,
    positions=None,
    frames=None,
    budget: str | float = "30min",
    out: str | Path | None = None,
    name: str = "unnamed",
    seed: int | None = None,
    progress: Show = None,
) -> Fitted:
    """Train a DiG of one free molecule from its force field alone, or from its force field and frames.

    Coordinates are internal ones with the force field's own widths. Without frames a population of structures is annealed
    from the model's prior to exp(-E/kT), no molecular dynamics is run at all. The model is trained on those frames, then
    twice on independent ones that it makes itself, with its own exact weights.

    Parameters
    ----------
    simulation_or_system: a Simulation (topology, positions and temperature are taken from it), or a System without
        constraints, with ``topology``, ``temperature`` (K) and ``positions`` (N, 3) nm, which fix the handedness of
        stereocentres.
    frames: (F, N, 3) nm of the equilibrium ensemble at this temperature, if there are any; rough ones help too, since
        what follows reweights.
    budget: wall time on this machine, as ``"30min"``, ``"2h"`` or seconds. Half of it more if the annealing takes long.
    out: directory for checkpoints, logs, early pictures (``progress.png``), ``model.safetensors`` and ``run.json``. A
        call that was cut off goes on from there.
    name: of the model, in its card. seed: recorded in the card.

    Raises
    ------
    IncompatibleError, UnsupportedError: what cannot be trained on, with the reason and what to do instead.
    CheckpointError: ``out`` holds another training.
    """
    began, seconds = time.monotonic(), seconds_of(budget)
    system, topology, temperature, positions = _given(simulation_or_system, topology, temperature, positions)
    descriptor, energy = describe(topology, system, positions), OpenMMEnergy(system, temperature)
    out = None if out is None else Path(out)
    plan = Plan.of(out, as_seed(seed), descriptor.numbers.tolist(), temperature)
    card = Card(name=name, system=f"{descriptor.n_atoms} atoms", energy="OpenMM System", temperature=temperature, steps=32)
    coordinates, data = Internal.from_reference(descriptor, thermal_widths(system, temperature)), None
    if frames is not None:
        coordinates, data = _from_frames(descriptor, frames, energy)
    build = functools.partial(internal_model, width=width_of(coordinates), seed=plan.seed % 2**31)
    dig = DiG(build(coordinates), coordinates, descriptor, card)
    return fit_molecule(dig, energy, build, plan, seconds, data=data, out=out, progress=progress, watch=pictures(out), began=began)


def fit_files(pdb: str | Path, force_field: list[str], temperature, **options) -> Fitted:
    """:func:`fit` of a PDB structure and force-field files; ``options`` as there.

    No cutoff, no constraints. Raises IncompatibleError for a structure that the force field does not know, or a missing file.
    """
    made = file_system(pdb, force_field, temperature)
    options.setdefault("name", Path(pdb).stem)
    return fit(made.system, made.topology, made.temperature, positions=made.positions, **options)


def _given(source, topology, temperature, positions):
    """(system, topology, kelvin, positions nm) of a Simulation or of separate parts."""
    if isinstance(source, app.Simulation):
        topology = source.topology if topology is None else topology
        if temperature is None and hasattr(source.integrator, "getTemperature"):
            temperature = source.integrator.getTemperature()
        if positions is None:
            positions = source.context.getState(positions=True).getPositions(asNumpy=True)
        source = source.system
    missing = [n for n, value in (("topology", topology), ("temperature", temperature), ("positions", positions)) if value is None]
    if missing:
        raise IncompatibleError(f"expected {', '.join(missing)} beside the System: pass them, or pass a Simulation that has them.")
    return source, topology, kelvin(temperature), positions


def _from_frames(descriptor, frames, energy: OpenMMEnergy) -> tuple[Internal, tuple[Frames, Frames]]:
    """Coordinates of the frames; training and validation data, the last twentieth being the latter."""
    geometry = to_geometry(np.asarray(frames))
    total = len(geometry.positions)
    if total < 100:
        raise IncompatibleError(f"expected at least 100 frames, got {total}: leave frames out to train from the energy alone.")
    count = max(2, total // 20)
    coordinates = Internal.from_frames(descriptor, Geometry(geometry.positions[:-count]))
    data = frames_of(coordinates, descriptor, geometry, energy)
    order = torch.arange(total)
    return coordinates, (data.take(order[:-count]), data.take(order[-count:]))
