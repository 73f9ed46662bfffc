"""One call from a molecule and its force field to a model: coordinates, network, stages and sizes chosen, progress shown."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openmm as mm
import torch
from openmm import app

from dig_core.coordinates import Coordinates, Internal
from dig_core.diffusion import Diffusion, Euclidean, Joint, Karras, LogSNR, Torus
from dig_core.dig import Card, DiG
from dig_core.errors import CheckpointError, IncompatibleError
from dig_core.files import write_atomically
from dig_core.montecarlo.analysis import effective_sample_size, metropolis_acceptance
from dig_core.montecarlo.chain import Pool
from dig_core.nn import ResidualMLP
from dig_core.random import as_seed
from dig_core.score import NoiseScore
from dig_core.training.draws import draw, target_law
from dig_core.training.fit import Progress, Stage
from dig_core.training.fit import fit as run_stages
from dig_core.training.frames import frames_of
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Denoising, Frames
from dig_core.training.population import Population
from dig_core.training.stages import Denoise, Reweight, Standardise
from dig_core.types import Geometry

from .convert import describe, kelvin, thermal_widths, to_geometry
from .energy import OpenMMEnergy

__all__ = ["Fitted", "fit", "fit_files", "internal_model"]

_UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "hour": 3600, "hours": 3600, "d": 86400}
_SHARE = 0.2  # of the budget for the population
_VISITS = 400  # evaluations a walker: some 15 rungs of 12 moves, and the harvest


class Fitted(NamedTuple):
    """``dig`` and what to expect of it: raw effective sample size and acceptance of its proposals, as fractions.

    ``evaluations`` of the energy and wall-clock ``seconds`` that the training took; ``history`` one dict a stage;
    ``finished`` False if it was interrupted: the same call goes on.
    """

    dig: DiG
    raw_ess: float
    acceptance: float
    evaluations: int
    seconds: float
    history: list[dict]
    finished: bool

    def __str__(self) -> str:
        cost = f"{self.evaluations:,} energy evaluations, {self.seconds / 60:.1f} minutes"
        if not self.finished:
            return f"interrupted after {cost}: run the same call again to go on."
        return f"expect an acceptance of {self.acceptance:.0%} and a raw effective sample size of {self.raw_ess:.0%}; {cost}."


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
    began, seconds = time.monotonic(), _seconds(budget)
    system, topology, temperature, positions = _given(simulation_or_system, topology, temperature, positions)
    descriptor, energy = describe(topology, system, positions), OpenMMEnergy(system, temperature)
    out = None if out is None else Path(out)
    plan = _Plan.of(out, as_seed(seed), descriptor.numbers.tolist(), temperature)
    card = Card(name=name, system=f"{descriptor.n_atoms} atoms", energy="OpenMM System", temperature=temperature, steps=32)
    coordinates = Internal.from_reference(descriptor, thermal_widths(system, temperature))
    size = 256 if len(coordinates.centre) < 150 else 384

    def build(coordinates: Coordinates) -> NoiseScore:
        return internal_model(coordinates, width=size, seed=plan.seed % 2**31)

    data = None
    if frames is not None:
        coordinates, data = _from_frames(descriptor, frames, energy)
    dig = DiG(build(coordinates), coordinates, descriptor, card)
    options = {
        "energy": energy, "directory": None if out is None else out / "stages", "seed": plan.seed % 2**31, "progress": progress,
        "watch": _pictures(out),
    }  # fmt: skip
    if data is not None:
        options |= {"frames": data[0], "validation": data[1]}
    sizes = plan.sizes(dig, energy, seconds)
    stages: list[Stage] = [] if data is not None else [Population(**sizes["population"]), Standardise(build)]
    here = run_stages(dig, stages, **options) if stages else Progress(dig)
    if here.finished:
        left = plan.rest(seconds - (time.monotonic() - began), sizes, seconds)
        stages += [Denoise(LoopConfig(**left["denoise"]))]
        stages += [Reweight(draws, 1, LoopConfig(**config), left["least"]) for draws, config in left["reweight"]]
        here = run_stages(dig, stages, **options)
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


class _Plan:
    """Sizes decided once and kept in ``plan.json``, so that a resumed training is the same training."""

    def __init__(self, path: Path | None, held: dict):
        self.path, self.held = path, held
        self.seed = int(held["seed"])

    @classmethod
    def of(cls, out: Path | None, seed: int, numbers: list[int], temperature: float) -> _Plan:
        fresh = {"seed": seed, "numbers": numbers, "temperature": temperature}
        if out is None:
            return cls(None, fresh)
        out.mkdir(parents=True, exist_ok=True)
        path = out / "plan.json"
        if not path.exists():
            write_atomically(path, json.dumps(fresh).encode())
            return cls(path, fresh)
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{path} cannot be read ({error}): delete the directory to start anew.") from error
        if held["numbers"] != numbers or held["temperature"] != temperature:
            raise CheckpointError(f"{out} holds the training of another molecule or temperature: choose another directory.")
        return cls(path, held)

    def sizes(self, dig: DiG, energy: OpenMMEnergy, seconds: float) -> dict:
        """Of the population, from measured times."""
        if "sizes" not in self.held:
            step, one = _step_time(dig), _draw_times(dig, energy)
            walkers = _between(_SHARE * seconds / (_VISITS * one["energy"]), 1000, 16_384)
            self._keep("sizes", {"population": {"walkers": walkers}, "step": step, **one})
        return self.held["sizes"]

    def rest(self, left: float, sizes: dict, seconds: float) -> dict:
        """Of what follows the population, from the time that is left: never less than half of the budget."""
        if "rest" not in self.held:
            left = max(left, seconds / 2)

            def steps(share: float) -> dict:
                count = _between(share * left / sizes["step"], 200, 100_000)
                return {"steps": count, "every": max(1, min(1000, count // 4))}

            def draws(share: float) -> int:
                return _between(share * left / sizes["draw"], 2000, 3_000_000)

            rounds = [(draws(0.06), steps(0.12)), (draws(0.24), steps(0.30))]
            least = _between(0.1 * left / (20 * sizes["energy"]), 1000, 200_000)  # twenty energies a frame
            self._keep("rest", {"denoise": steps(0.18), "reweight": rounds, "least": least})
        return self.held["rest"]

    def _keep(self, key: str, value: dict) -> None:
        self.held[key] = value
        if self.path is not None:
            write_atomically(self.path, json.dumps(self.held, indent=1).encode())


def _finish(here: Progress, energy: OpenMMEnergy, plan: _Plan, out: Path | None, seconds: float) -> Fitted:
    """Measure the finished model, write it with what it cost."""
    seconds += plan.held.get("seconds", 0.0)
    plan._keep("seconds", seconds)
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


def _seconds(budget: str | float) -> float:
    if isinstance(budget, (int, float)):
        value = float(budget)
    else:
        found = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]*)\s*", budget.lower())
        if not found or found[2] not in {*_UNITS, ""}:
            raise IncompatibleError(f"expected a budget such as '30min', '2h' or a number of seconds, got {budget!r}.")
        value = float(found[1]) * _UNITS.get(found[2], 1)
    if not value > 0:
        raise IncompatibleError(f"expected a positive budget, got {budget!r}.")
    return value


def _step_time(dig: DiG, steps: int = 10) -> float:
    """Seconds of a training step, on a copy of the untrained model; the first run pays for what is paid once."""
    model = internal_model(dig.coordinates, width=dig.model.network.config["width"])  # type: ignore[attr-defined]
    state = {n: torch.zeros(1024, *p.space.shape) for n, p in dig.process.items()}
    frames = Frames(state, {n: torch.zeros_like(x) for n, x in state.items()})
    model.requires_grad_(True)
    for _ in range(2):
        began = time.monotonic()
        optimise(model, Denoising(frames, dig.descriptor), LoopConfig(steps=steps, every=steps), progress=False)
    return (time.monotonic() - began) / steps


def _draw_times(dig: DiG, energy: OpenMMEnergy, n: int = 512) -> dict[str, float]:
    """Seconds of a weighed proposal, and of an energy with its gradient in the model's coordinates."""
    drawn = draw(dig, energy, n, seed=0, progress=False)
    began = time.monotonic()
    draw(dig, energy, n, seed=0, progress=False)
    halfway = time.monotonic()
    target_law(dig, energy, drawn.state)
    return {"draw": (halfway - began) / n, "energy": (time.monotonic() - halfway) / n}


def _between(value: float, low: int, high: int) -> int:
    return int(min(max(value, low), high))


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
