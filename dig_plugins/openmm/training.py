"""One call from a molecule and its force field to a model: coordinates, network, stages and sizes chosen, progress shown."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from pathlib import Path

import numpy as np
import openmm as mm
import torch
from openmm import app

from dig_core.coordinates import Coordinates, Internal
from dig_core.diffusion import Diffusion, Euclidean, Joint, Karras, LogSNR, Torus
from dig_core.dig import Card, DiG
from dig_core.errors import IncompatibleError
from dig_core.files import write_atomically
from dig_core.montecarlo.analysis import effective_sample_size, metropolis_acceptance
from dig_core.montecarlo.chain import Pool
from dig_core.nn import ResidualMLP
from dig_core.random import as_seed
from dig_core.score import NoiseScore
from dig_core.training.fit import Fitted, Progress, Stage
from dig_core.training.fit import fit as run_stages
from dig_core.training.frames import frames_of
from dig_core.training.loop import LoopConfig
from dig_core.training.losses import Frames
from dig_core.training.population import Population
from dig_core.training.stages import Denoise, Reweight, Standardise
from dig_core.types import Geometry

from .convert import describe, kelvin, thermal_widths, to_geometry
from .energy import OpenMMEnergy
from .plan import Plan, seconds_of

__all__ = ["Fitted", "fit", "fit_files", "internal_model"]


def internal_model(coordinates: Coordinates, *, width: int = 256, blocks: int = 4, seed: int = 0) -> NoiseScore:
    """An untrained score model in internal coordinates: torsions on a torus, the rest standardised, a residual network."""
    shape, torsion = len(coordinates.centre), len(coordinates.torsion_atoms)  # type: ignore[attr-defined]
    process = Joint(
        shape=Diffusion(Euclidean(shape), LogSNR(4.5, -4.0)), torsion=Diffusion(Torus(torsion), Karras(0.05, 2.5))
    )
    sizes = {"shape": shape, "torsion": torsion}
    network = ResidualMLP(sizes, ["torsion"], width=width, blocks=blocks, precision="bfloat16", seed=seed)
    return NoiseScore(network, process).requires_grad_(False)


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
    progress: bool | None = None,
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
    build = functools.partial(internal_model, width=256 if len(coordinates.centre) < 150 else 384, seed=plan.seed % 2**31)
    dig = DiG(build(coordinates), coordinates, descriptor, card)
    directory = None if out is None else out / "stages"
    run = functools.partial(
        run_stages, dig, energy=energy, directory=directory, seed=plan.seed % 2**31, progress=progress, watch=_pictures(out)
    )
    if data is not None:
        run = functools.partial(run, frames=data[0], validation=data[1])
    sizes = plan.sizes(dig, energy, seconds)
    stages: list[Stage] = [] if data is not None else [Population(**sizes["population"]), Standardise(build)]
    here = run(stages) if stages else Progress(dig)
    if here.finished:
        left = plan.rest(seconds - (time.monotonic() - began), sizes, seconds)
        stages += [Denoise(LoopConfig(**left["denoise"]))]
        stages += [Reweight(draws, 1, LoopConfig(**config), left["least"]) for draws, config in left["reweight"]]
        here = run(stages)
    return _finish(here, energy, plan, out, time.monotonic() - began)


def fit_files(pdb: str | Path, force_field: list[str], temperature, **options) -> Fitted:
    """:func:`fit` of a PDB structure and force-field files; ``options`` as there.

    No cutoff, no constraints. Raises IncompatibleError for a structure that the force field does not know, or a missing file.
    """
    if not Path(pdb).is_file():
        raise IncompatibleError(f"there is no structure {pdb}: expected a PDB file with all hydrogens.")
    structure = app.PDBFile(str(pdb))
    try:
        system = app.ForceField(*force_field).createSystem(structure.topology, nonbondedMethod=app.NoCutoff, constraints=None)
    except (ValueError, OSError) as error:
        raise IncompatibleError(f"{', '.join(force_field)} cannot describe {pdb}: {error}") from error
    options.setdefault("name", Path(pdb).stem)
    positions = structure.getPositions(asNumpy=True)
    return fit(system, structure.topology, temperature, positions=positions, **options)


def _finish(here: Progress, energy: OpenMMEnergy, plan: Plan, out: Path | None, seconds: float) -> Fitted:
    """Measure the finished model, write it with what it cost."""
    seconds += plan.held.get("seconds", 0.0)
    plan.keep("seconds", seconds)
    if not here.finished:
        return Fitted(here.dig, 0.0, 0.0, here.evaluations, seconds, here.history, False)
    log_weight = Pool(here.dig.proposal(), energy, seed=plan.seed + 1, batch=512).take(4096).log_weight
    ess, acceptance = effective_sample_size(log_weight), metropolis_acceptance(log_weight)
    measured = {"raw_ess": round(ess, 4), "acceptance": round(acceptance, 4), "proposals": len(log_weight), "steps": here.dig.card.steps}
    history = [{"seed": plan.seed, "evaluations": here.evaluations, "seconds": round(seconds)}, *here.history]
    dig = dataclasses.replace(here.dig, card=dataclasses.replace(here.dig.card, measured=measured, history=history))
    if out is not None:
        dig.save(out / "model.safetensors")
        about = {**measured, "evaluations": here.evaluations, "seconds": seconds, "seed": plan.seed, "history": here.history}
        write_atomically(out / "run.json", json.dumps(about, indent=1).encode())
    return Fitted(dig, ess, acceptance, here.evaluations, seconds, history, True)


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


def _pictures(out: Path | None):
    """A callback that draws ``progress.png`` where there is a directory and matplotlib."""
    if out is None:
        return lambda progress: None

    def watch(progress: Progress) -> None:
        try:
            from ..progress import training_picture

            frames = progress.frames
            torsions = np.zeros((0, 0)) if frames is None else frames.state["torsion"].numpy()
            write_atomically(out / "progress.png", training_picture(progress.history, torsions))
        except ImportError:  # no matplotlib: training goes on without pictures
            return

    return watch
