"""Ablation table: denoising only / force-blended / PIDP only / anneal only / PIDP + anneal / population / all, same wall time.

``--minutes M`` is the wall time of a row, its data and energy evaluations included; fourteen rows. What the rows that need data
get: for the planar wells 5000 exact, independent frames (by quadrature, free of charge: better than any dynamics would be);
for the alanine dipeptide the frames of a short parallel tempering of this very System, which takes a third of the row's time
(a sixth where everything is used). The averages shipped beside the model are of no use here: they hold no frames.
PIDP sees no data: short hot chains from the untrained model tell it where to look. Not part of ``make bench`` for its length.
"""

from __future__ import annotations

import argparse
import copy
import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from common import Figure, Findings, Options, Table, command_line
from energy_only import wells
from reference import TEMPERATURES, heavy_simulation

from dig_core.coordinates import Internal
from dig_core.diffusion import Diffusion, Euclidean, Joint, LogSNR
from dig_core.dig import Card, DiG
from dig_core.energy import Energy
from dig_core.montecarlo.analysis import effective_sample_size, metropolis_acceptance
from dig_core.montecarlo.chain import Pool
from dig_core.nn import ResidualMLP
from dig_core.score import NoiseScore
from dig_core.testing import toy
from dig_core.training.anneal import Anneal
from dig_core.training.draws import draw, target_law
from dig_core.training.fit import Progress, Stage, Task
from dig_core.training.frames import frames_of
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Denoising, Frames, Objective
from dig_core.training.pidp import PIDP
from dig_core.training.population import Population
from dig_core.training.stages import Denoise, Physics, Reweight
from dig_core.types import Geometry
from dig_plugins.openmm.convert import describe, thermal_widths, to_geometry
from dig_plugins.openmm.energy import OpenMMEnergy
from dig_plugins.openmm.systems import model_system
from dig_plugins.openmm.tempering import parallel_tempering
from dig_plugins.openmm.training import internal_model

BATCH, PHYSICS_BATCH = 1024, 256
RUNGS = 24  # that a share of an annealing is cut into; it stops where its time is up


@dataclass(frozen=True)
class Problem:
    """An untrained model, its energy, and where data come from: ``data(seconds, seed)`` structures."""

    name: str
    build: Callable[[], DiG]
    energy: Energy
    data: Callable[[float, int], Geometry]


class Enough(Exception):
    """The time of a stage is up; carries how far it came."""


class Row:
    """One training against the clock: every part takes its share of ``seconds``."""

    def __init__(self, problem: Problem, seconds: float, seed: int):
        self.problem, self.seconds, self.seed = problem, seconds, seed
        self.began, self.here, self.used = time.monotonic(), Progress(problem.build()), 0.0

    def data(self, share: float, forces: bool) -> None:
        """Frames of the ensemble, with forces or without."""
        dig, geometry = self.here.dig, self.problem.data(share * self.seconds, self.seed)
        frames = frames_of(dig.coordinates, dig.descriptor, geometry, self.problem.energy if forces else None)
        self.here = replace(self.here, frames=frames)
        self._spent(len(frames) * forces)
        self.used = max(self.used, (time.monotonic() - self.began) / self.seconds)

    def denoise(self, share: float) -> None:
        until = self._until(share)
        step = step_time(self.here.dig, Denoising(self.here.frames, self.here.dig.descriptor), BATCH)
        self._run(Denoise(self._config(until - time.monotonic(), step, BATCH)), until)

    def physics(self, share: float) -> None:
        """On the frames at hand if they have forces, else on hot chains."""
        until, dig = self._until(share), self.here.dig
        tried = draw(dig, self.problem.energy, 256, seed=self.seed, progress=False)
        step = step_time(dig, PIDP(Frames(tried.state, tried.force), dig.descriptor), PHYSICS_BATCH)
        self._spent(len(tried))
        self._run(Physics(self._config(0.95 * (until - time.monotonic()), step, PHYSICS_BATCH)), until)

    def anneal(self, share: float) -> None:
        """Up to the target, or until the time is up; what is left of the row then goes to the model's own reweighted frames."""
        until = self._until(share)
        step, one = self._times()
        rung = (until - time.monotonic()) / RUNGS
        stage = Anneal(draws=max(500, int(0.4 * rung / one)), steps=max(20, int(0.6 * rung / step)), batch=BATCH)
        self._run(stage, until)

    def population(self, share: float) -> None:
        """Walkers from the prior to the target; 400 energies each, as ``dig_plugins.openmm.fit`` reckons."""
        until, dig = self._until(share), self.here.dig
        tried = draw(dig, self.problem.energy, 512, seed=self.seed, progress=False)
        began = time.monotonic()
        target_law(dig, self.problem.energy, tried.state)
        one = (time.monotonic() - began) / 512
        self._spent(1024)
        walkers = max(100, min(16_000, int((until - time.monotonic()) / (400 * one))))
        self._run(Population(walkers), until)

    def reweight(self) -> None:
        until = self._until(1.0)
        step, one = self._times()
        left = until - time.monotonic()
        draws = max(500, int(0.3 * left / one))
        self._run(Reweight(draws, 1, self._config(0.7 * left, step, BATCH)), until)

    def judged(self) -> list:
        """Raw figures of fresh proposals, in the table's order."""
        seconds = time.monotonic() - self.began
        log_weight = np.asarray(Pool(self.here.dig.proposal(), self.problem.energy, seed=self.seed + 7, batch=512).take(8192).log_weight)
        mean = np.logaddexp.reduce(log_weight) - np.log(len(log_weight))
        short = mean - np.median(log_weight)
        ess, acceptance = effective_sample_size(log_weight), metropolis_acceptance(log_weight)
        return [round(ess, 5), round(acceptance, 4), round(float(short), 2), self.here.evaluations, round(seconds)]

    def _spent(self, evaluations: int) -> None:
        self.here = replace(self.here, evaluations=self.here.evaluations + evaluations)

    def _until(self, share: float) -> float:
        self.used = min(1.0, self.used + share)
        return self.began + self.used * self.seconds

    def _times(self) -> tuple[float, float]:
        """Seconds of a training step and of a weighed draw."""
        dig, energy = self.here.dig, self.problem.energy
        tried = draw(dig, energy, 256, seed=self.seed, progress=False)
        began = time.monotonic()
        draw(dig, energy, 256, seed=self.seed, progress=False)
        one = (time.monotonic() - began) / 256
        self._spent(512)
        return step_time(dig, Denoising(Frames(tried.state, tried.force), dig.descriptor), BATCH), one

    def _config(self, seconds: float, step: float, batch: int) -> LoopConfig:
        steps = max(10, int(seconds / step))
        return LoopConfig(steps=steps, batch=batch, rate=2e-3, warmup=min(100, steps // 5), average=0.995, every=steps, seed=self.seed)

    def _run(self, stage: Stage, until: float) -> None:
        def watch(progress: Progress) -> None:
            if time.monotonic() > until:
                raise Enough(progress)

        try:
            self.here = stage.run(self.here, Task(self.problem.energy, None, self.seed, False, watch))
        except Enough as stopped:
            self.here = stopped.args[0]


def step_time(dig: DiG, objective: Objective, batch: int, steps: int = 4) -> float:
    """Seconds of a training step, on a copy of the model; the first run pays for what is paid once."""
    for _ in range(2):
        model = copy.deepcopy(dig.model).requires_grad_(True)
        began = time.monotonic()
        optimise(model, objective, LoopConfig(steps=steps, batch=batch, every=steps), progress=False)
    return (time.monotonic() - began) / steps


def denoising_only(row: Row) -> None:
    row.data(1 / 3, forces=False)
    row.denoise(1.0)


def force_blended(row: Row) -> None:
    row.data(1 / 3, forces=True)
    row.denoise(1.0)


def pidp_only(row: Row) -> None:
    row.physics(1.0)


def anneal_only(row: Row) -> None:
    row.anneal(2 / 3)
    row.reweight()


def pidp_anneal(row: Row) -> None:
    row.physics(1 / 3)
    row.anneal(1 / 3)
    row.reweight()


def population(row: Row) -> None:
    row.population(1 / 4)
    row.denoise(1 / 4)
    row.reweight()


def everything(row: Row) -> None:
    row.data(1 / 6, forces=True)
    row.physics(1 / 6)  # pre-training, as in the article
    row.denoise(1 / 6)
    row.anneal(1 / 4)
    row.reweight()


ROWS = {
    "denoising only": denoising_only, "force-blended": force_blended, "PIDP only": pidp_only, "anneal only": anneal_only,
    "PIDP + anneal": pidp_anneal, "population (what fit does)": population, "all": everything,
}  # fmt: skip


def planar() -> Problem:
    """Four wells in a plane."""
    process = Joint(x=Diffusion(Euclidean(2), LogSNR(7.0, -5.0)))

    def build() -> DiG:
        return toy(NoiseScore(ResidualMLP({"x": 2}, [], width=128, blocks=3), process).requires_grad_(False), card=Card(steps=64))

    def data(seconds: float, seed: int) -> Geometry:
        axis = torch.linspace(-3, 3, 1201, dtype=torch.float64)
        x, y = torch.meshgrid(axis, axis, indexing="ij")
        grid = torch.stack([x.flatten(), y.flatten(), torch.zeros(x.numel())], 1)[:, None]
        share = torch.softmax(-wells(Geometry(grid)), 0).cumsum(0)
        place = torch.rand(5000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return Geometry(grid[torch.searchsorted(share, place).clamp(max=len(grid) - 1)])

    return Problem("planar wells", build, wells, data)


def dipeptide() -> Problem:
    """Alanine dipeptide in implicit solvent, in internal coordinates with the force field's own widths in every row."""
    system = model_system("alanine-dipeptide")
    descriptor = describe(system.topology, system.system, system.positions)
    coordinates = Internal.from_reference(descriptor, thermal_widths(system.system, system.temperature))

    def build() -> DiG:
        return DiG(internal_model(coordinates), coordinates, descriptor, Card(temperature=system.temperature, steps=32))

    def data(seconds: float, seed: int) -> Geometry:
        simulation = heavy_simulation(system, seed)
        simulation.minimizeEnergy()
        began = time.monotonic()
        parallel_tempering(simulation, TEMPERATURES, 10, steps=100, seed=seed, discard=0, progress=False)
        one = (time.monotonic() - began) / 10
        count = max(40, int((seconds - 10 * one) / one))
        found = parallel_tempering(simulation, TEMPERATURES, count - count // 10, steps=100, seed=seed, discard=count // 10, progress=False)
        return to_geometry(found.positions)

    return Problem("alanine dipeptide", build, OpenMMEnergy(system.system, system.temperature), data)


def measure(options: Options, minutes: float) -> Findings:
    """Every row on both problems."""
    header = ["training", "raw ESS", "raw acceptance", "median shortfall, nats", "energy evaluations", "seconds"]
    figures, tables = [], []
    for problem in (planar(), dipeptide()):
        rows = []
        for name, train in ROWS.items():
            row = Row(problem, 3.0 if options.quick else 60 * minutes, options.seed)
            train(row)
            rows.append([name, *row.judged()])
            print(problem.name, *rows[-1], flush=True)
            figures.append(Figure(f"raw ESS, {problem.name}, {name}", rows[-1][1]))
        tables.append(Table(f"Ablation: {problem.name}", header, rows))
    notes = [
        f"{minutes:g} minutes of wall time a row (--minutes {minutes:g}); one path of 32 (dipeptide) or 64 (wells) steps a proposal.",
        "Median shortfall: log of the mean weight minus the median log weight, 0 for an exact model; for models too bad for an ESS.",
        "Data: exact frames, free of charge, for the wells; parallel tempering within the row's time for the dipeptide, whose own "
        "force evaluations are not in the column.",
    ]
    return Findings(figures, tables, notes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--minutes", type=float, default=1.5, help="wall time of a row")
    given, sys.argv[1:] = parser.parse_known_args()
    command_line(__doc__, "ablation", functools.partial(measure, minutes=given.minutes))
