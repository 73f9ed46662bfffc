"""The main job: a shipped model's molecule by MD mixed with DiG proposals, beside plain MD given the same wall time."""

from __future__ import annotations

import io
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from openmm import unit

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError
from dig_core.files import write_atomically
from dig_core.montecarlo.analysis import count_visits, effective_sample_size
from dig_core.progress import Show, bar
from dig_core.random import as_seed

from .. import models
from ..record import empty_directory, of_checkpoint, of_software, write_record
from ..report import write_report
from .demo_report import demo_report
from .montecarlo import Block, DiGMonteCarlo
from .observables import LEFT_HANDED, Backbone, backbone_dihedrals
from .pictures import reference_profile
from .reporter import DiGReporter, TrajectoryReporter
from .systems import ModelSystem, model_system

__all__ = ["DemoRun", "demo"]

_TIMESTEP = 1e-3  # ps


class DemoRun(NamedTuple):
    """``summary`` is what ``run.json`` holds; ``directory`` where everything is; ``report`` the HTML page, if any."""

    summary: dict
    directory: Path
    report: Path | None


class _Recorder:
    """Keeps what the report needs: positions after each test, records, MD ends."""

    def __init__(self):
        self.positions, self.records = [], []

    def __call__(self, chain: DiGMonteCarlo, block: Block) -> None:
        self.positions.append(block.positions.astype(np.float32))
        self.records.append(block.records)

    def field(self, name: str) -> np.ndarray:
        return np.concatenate([getattr(r, name) for r in self.records])


def demo(
    directory: str | Path,
    *,
    model: str = "alanine-dipeptide",
    seconds: float = 20.0,
    seed: int | None = None,
    md_steps: int = 100,
    proposals: int = 64,
    progress: Show = None,
    report: bool = True,
) -> DemoRun:
    """Run for ``seconds`` with proposals and as long without, and write everything to ``directory``.

    Files: ``trajectory.xtc`` + ``.pdb`` (the chain, one frame a proposal), ``samples.npz``, ``proposals.csv``, ``run.json``,
    ``report.png`` and ``report.html`` unless ``report`` is False. The directory must be new or empty.
    """
    if not 0 < seconds < math.inf:
        raise IncompatibleError(f"expected a positive number of seconds, got {seconds}.")
    seed = as_seed(seed)
    dig, system = models.load(model), model_system(model)
    directory = empty_directory(directory)
    directory.mkdir(parents=True, exist_ok=True)
    recorder, chain, mixed_seconds = _mixed(directory, dig, system, seconds, seed, md_steps, proposals, progress)
    md_positions, md_seconds, md_picoseconds = _plain(system, mixed_seconds, seed, progress)
    return _write(directory, model, dig, system, recorder, chain, mixed_seconds, md_positions, md_seconds, md_picoseconds, report)


def _mixed(directory, dig, system, seconds, seed, md_steps, proposals, progress):
    simulation = system.simulation(seed=seed)
    chain = DiGMonteCarlo(simulation, dig, seed=seed, md_steps=md_steps, proposals=proposals)
    recorder = _Recorder()
    log, trajectory = DiGReporter(directory / "proposals.csv"), TrajectoryReporter(directory / "trajectory.xtc", system.topology)
    chain.reporters += [recorder, log, trajectory]
    with _Clock(seconds, f"MD + DiG, {seconds:g} s", progress) as clock:
        while clock.running():
            chain.step()
            clock.show(acceptance=f"{chain.statistics.acceptance:.2f}")
    log.close()
    return recorder, chain, clock.spent


def _plain(system: ModelSystem, seconds: float, seed: int, progress) -> tuple[np.ndarray, float, float]:
    simulation, frames = system.simulation(seed=seed + 1), []
    with _Clock(seconds, f"plain MD, {seconds:.0f} s", progress) as clock:
        while clock.running():
            simulation.step(100)
            state = simulation.context.getState(positions=True)
            frames.append(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer).astype(np.float32))
            clock.show()
    return np.array(frames), clock.spent, 0.1 * len(frames)


def _write(directory, name, dig: DiG, system: ModelSystem, recorder, chain, seconds, md_positions, md_seconds, md_ps, pages) -> DemoRun:
    backbone = backbone_dihedrals(system.topology)
    positions, accepted = np.concatenate(recorder.positions), recorder.field("accepted")
    u, log_q, reason = (recorder.field(f) for f in ("u", "log_q", "reason"))
    log_weight = np.where(reason == 0, -u - log_q, -np.inf)
    statistics = chain.statistics
    inside, outside = (_left(backbone, x) for x in (positions, md_positions))
    summary = {
        **of_software("openmm"), **of_checkpoint(name),
        "system": dig.card.system, "energy": dig.card.energy, "temperature_K": system.temperature, "seed": chain.seed,
        "acceptance": statistics.acceptance, "raw_ess": effective_sample_size(log_weight), "proposals": statistics.proposed,
        "proposals_per_second": statistics.proposed / seconds, "longest_rejection_run": statistics.longest_rejection_run,
        "failed": statistics.failed, "steps": dig.card.steps, "md_steps_per_block": chain.md_steps, "proposals_per_block": chain.proposals,
        # Every accepted proposal is a fresh draw; without proposals, only an entry from outside is a new visit.
        "visits_to_positive_phi": int((inside & accepted).sum()), "share_of_positive_phi": float(inside.mean()),
        "picoseconds": chain.blocks * chain.md_steps * _TIMESTEP, "seconds": seconds,
        "plain_md": {
            "seconds": md_seconds, "picoseconds": md_ps, "visits_to_positive_phi": count_visits(outside),
            "share_of_positive_phi": float(outside.mean()),
        },
        "energy_platform": chain.energy.platform_name, "units": "trajectory nm, samples.npz positions nm, energies kT",
    }  # fmt: skip
    buffer = io.BytesIO()
    np.savez(buffer, positions=positions, u=u, log_q=log_q, log_weights=log_weight, accepted=accepted, reason=reason, seed=chain.seed)
    write_atomically(directory / "samples.npz", buffer.getvalue())
    write_record(directory, summary)
    report = None
    if pages:
        made = demo_report(system, backbone, positions, md_positions, accepted, log_weight, reference_profile(name), summary)
        report = write_report(directory, made, summary)
    return DemoRun(summary, directory, report)


def _left(backbone: Backbone, positions: np.ndarray) -> np.ndarray:
    """(F,) bool: in the left-handed states, of the first residue."""
    phi = backbone.measure(positions)[0][:, 0]
    return (phi > LEFT_HANDED[0]) & (phi < LEFT_HANDED[1])


class _Clock:
    """A progress bar that runs for a number of seconds."""

    def __init__(self, seconds: float, label: str, progress: Show):
        self.seconds, self._label, self._progress = seconds, label, progress

    def __enter__(self):
        looks = "{desc}: {percentage:3.0f}% |{bar}| {postfix}"
        self._bar = bar(label=self._label, progress=self._progress, total=100, bar_format=looks)
        self._began, self.spent = time.perf_counter(), 0.0
        return self

    def running(self) -> bool:
        """True the first time, however short the time, so that there is something to report."""
        first, self.spent = self.spent == 0.0, time.perf_counter() - self._began
        return first or self.spent < self.seconds

    def show(self, **figures) -> None:
        self._bar.set_postfix(figures, refresh=False)
        self._bar.update(min(100, 100 * (time.perf_counter() - self._began) / self.seconds) - self._bar.n)

    def __exit__(self, *_):
        self.spent = time.perf_counter() - self._began
        self._bar.close()
