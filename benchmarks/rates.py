"""Independent visits to the left-handed region per CPU-second: proposals against Langevin dynamics and parallel tempering."""

from __future__ import annotations

import dataclasses
import time
from typing import NamedTuple

import numpy as np
from common import REFERENCE, Figure, Findings, Options, Table, command_line, number, poisson_upper
from openmm import app, unit
from reference import heavy_simulation

from dig_core.montecarlo.analysis import block_average
from dig_plugins.openmm.montecarlo import DiGMonteCarlo
from dig_plugins.openmm.observables import LEFT_HANDED, backbone_dihedrals
from dig_plugins.openmm.systems import ModelSystem, model_system

OUTSIDE = np.radians((-160.0, -40.0))
"""phi of the core of the other states: whoever gets there from the left-handed region has left it."""

ROUNDS = 3
_CHUNK = 0.2  # picoseconds between looks at phi


@dataclasses.dataclass
class ChainTally:
    """A chain's record over the rounds: inside the region or not after each proposal, CPU seconds, structures found there."""

    name: str
    inside: list = dataclasses.field(default_factory=list)
    cpu: float = 0.0
    found: list = dataclasses.field(default_factory=list)

    @property
    def population(self) -> float:
        return float(np.concatenate(self.inside).mean())

    @property
    def visits(self) -> float:
        """Independent visits: population times effective number of samples, from the variance of block averages."""
        inside = np.concatenate(self.inside)
        mean, error = block_average(inside, min(100 * len(self.inside), len(inside) // 2))
        return mean**2 * (1 - mean) / error**2 if error > 0 else 0.0


@dataclasses.dataclass
class DynamicsTally:
    """Molecular dynamics over the rounds: CPU seconds and picoseconds run freely, entries; escapes from the region and their time."""

    name: str
    timestep: float
    cpu: float = 0.0
    picoseconds: float = 0.0
    entries: int = 0
    escapes: int = 0
    dwelt: float = 0.0
    outside: bool = True

    @property
    def speed(self) -> float:
        """Picoseconds a CPU-second."""
        return self.picoseconds / self.cpu

    @property
    def limit(self) -> float:
        """95 % upper limit of entries a CPU-second, from those counted."""
        return poisson_upper(self.entries) / self.cpu

    def rate(self, population: float, upper: bool) -> float:
        """Visits a CPU-second by flux balance: population times rate of escape is the rate of entry."""
        if not self.dwelt:
            return float("inf") if upper else 0.0
        events = poisson_upper(self.escapes) if upper else float(self.escapes)
        return population * events / self.dwelt * self.speed


def measure(options: Options) -> Findings:
    """Chains and dynamics in turn, round by round, then the ratios."""
    dig, system = options.load(), model_system("alanine-dipeptide")
    alone, mixed = ChainTally("proposals alone"), ChainTally("MD and proposals, as DiGMonteCarlo does by default")
    heavy, standard = DynamicsTally("MD, 2 fs, heavy hydrogens", 2.0), DynamicsTally("MD, 1 fs", 1.0)
    simulations = {
        heavy.name: heavy_simulation(system, options.seed),
        standard.name: system.simulation(seed=options.seed),
    }
    for seed in range(options.seed, options.seed + options.size(ROUNDS, 1)):
        run_chain(alone, dig, system, seed, blocks=options.size(15, 2), md_steps=0, proposals=options.size(1024, 256))
        run_chain(mixed, dig, system, seed, blocks=options.size(320, 2), md_steps=500, proposals=32)
        for tally, seconds in ((heavy, 60), (standard, 20)):
            simulation = simulations[tally.name]
            place(simulation, system.positions, seed)
            run_freely(tally, simulation, options.size(10, 1))
            run_escapes(tally, simulation, alone.found, options.size(seconds, 1), seed)
    tempering = tempered(heavy)
    return report(alone, mixed, [heavy, standard], tempering)


def run_chain(
    tally: ChainTally, dig, system: ModelSystem, seed: int, *, blocks: int, md_steps: int, proposals: int
) -> None:
    """``blocks`` blocks after a tenth of them that is not counted."""
    chain = DiGMonteCarlo(system.simulation(seed=seed), dig, md_steps=md_steps, proposals=proposals, seed=seed)
    chain.step(max(1, blocks // 10))
    inside = []
    for _ in range(blocks):
        began = time.process_time()
        block = chain.step()
        tally.cpu += time.process_time() - began
        inside.append(is_left(phi_of(system, block.positions)))
        tally.found += list(block.positions[inside[-1]])  # repeats and all: that is equilibrium in the region
    tally.inside.append(np.concatenate(inside))


def place(simulation: app.Simulation, positions: np.ndarray, seed: int) -> None:
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1 + seed)


def advance(simulation: app.Simulation, timestep: float) -> tuple[float, np.ndarray]:
    """CPU seconds of one chunk, without looking at it, and where it ended (1, N, 3) nm."""
    began = time.process_time()
    simulation.integrator.step(round(1000 * _CHUNK / timestep))
    spent = time.process_time() - began
    return spent, simulation.context.getState(positions=True).getPositions(asNumpy=True)._value[None]


def run_freely(tally: DynamicsTally, simulation: app.Simulation, seconds: float) -> None:
    """``seconds`` of processor time from an equilibrated start; entries are counted from the core of the other states."""
    phi_at = backbone_dihedrals(simulation.topology)
    for _ in range(50):
        advance(simulation, tally.timestep)
    spent = 0.0
    while spent < seconds:
        cpu, positions = advance(simulation, tally.timestep)
        spent, tally.picoseconds = spent + cpu, tally.picoseconds + _CHUNK
        phi = float(phi_at.measure(positions)[0][0, 0])
        if tally.outside and is_left(phi):
            tally.entries, tally.outside = tally.entries + 1, False
        elif is_outside(phi):
            tally.outside = True
    tally.cpu += spent
    tally.outside = True


def run_escapes(tally: DynamicsTally, simulation: app.Simulation, starts: list, seconds: float, seed: int) -> None:
    """From equilibrium structures in the region, drawn by the chain, until the core of the other states; for ``seconds`` in all."""
    phi_at, spent = backbone_dihedrals(simulation.topology), 0.0
    order = np.random.default_rng(seed).permutation(len(starts))
    for number_, start in enumerate(order):
        place(simulation, starts[start], 1000 * seed + number_)
        while spent < seconds:
            cpu, positions = advance(simulation, tally.timestep)
            spent, tally.dwelt = spent + cpu, tally.dwelt + _CHUNK
            if is_outside(float(phi_at.measure(positions)[0][0, 0])):
                tally.escapes += 1
                break


def is_left(phi):
    return (phi > LEFT_HANDED[0]) & (phi < LEFT_HANDED[1])


def is_outside(phi):
    return (phi > OUTSIDE[0]) & (phi < OUTSIDE[1])


def phi_of(system: ModelSystem, positions: np.ndarray) -> np.ndarray:
    return backbone_dihedrals(system.topology).measure(positions)[0][:, 0]


class Tempered(NamedTuple):
    """The reference run: independent visits, force evaluations, CPU seconds those take here, population, its nanoseconds."""

    visits: float
    evaluations: int
    cpu: float
    population: float
    nanoseconds: float


def tempered(tally: DynamicsTally) -> Tempered:
    """Independent visits of the reference run as of the chains, charged for its force evaluations at the cost of an MD step."""
    with np.load(REFERENCE) as held:
        row = list(held["names"]).index("region left")
        mean, error = float(held["means"][row]), float(held["stderr"][row])
        evaluations, nanoseconds = int(held["force_evaluations"]), float(held["aggregate_ns"])
    step = tally.timestep / 1000 / tally.speed
    return Tempered(mean**2 * (1 - mean) / error**2, evaluations, evaluations * step, mean, nanoseconds)


def report(alone: ChainTally, mixed: ChainTally, dynamics: list[DynamicsTally], tempering: Tempered) -> Findings:
    """Ratios, and the table they come from."""
    rows = [
        [
            t.name,
            round(t.cpu, 1),
            f"{len(np.concatenate(t.inside)):,} proposals",
            t.visits,
            t.visits / t.cpu,
            t.population,
        ]
        for t in (alone, mixed)
    ]
    for t in dynamics:
        point, upper = (t.rate(alone.population, upper=u) for u in (False, True))
        counted = f"≤ {number(t.limit)} (95 %, counted)"
        rows.append([t.name, round(t.cpu, 1), f"{t.picoseconds / 1000:.2f} ns freely", t.entries, counted, ""])
        ran = f"{t.escapes} escapes in {t.dwelt / 1000:.2f} ns"
        rows.append(
            [
                f"{t.name}, flux balance",
                round(t.dwelt / t.speed, 1),
                ran,
                "",
                f"{number(point)} (≤ {number(upper)}, 95 %)",
                "",
            ]
        )
    charge = f"{tempering.nanoseconds:.0f} ns, {tempering.evaluations / 1e6:.1f} million forces"
    last = [round(tempering.cpu, 1), charge, tempering.visits, tempering.visits / tempering.cpu, tempering.population]
    rows.append(["parallel tempering, 8 temperatures", *last])
    header = ["method", "CPU-s", "ran", "independent visits", "visits / CPU-s", "population"]
    table = Table("Visits to 0 < phi < 130 degrees at 300 K", header, rows)
    return Findings(_figures(alone, mixed, dynamics, tempering), [table], _NOTES)


_NOTES = [
    "The region is 0 < phi < 130 degrees. All of phi > 0 would count extended structures, which cross 180 degrees all the time.",
    "Chains and parallel tempering: independent visits are the population times the effective number of samples, which is "
    "population (1 - population) / variance of the mean, from blocks (100 a chain; 40 of the reference run, so its number is good "
    "to some 25 %).",
    "MD seldom or never gets there in the time given, so its rate is found by flux balance: in equilibrium the rate of entry is the "
    "population times the rate of escape, which is measured from structures that the chain drew in the region until phi is "
    "between -160 and -40 degrees. Every visit counts as independent. The ratio is to the 95 % upper limit (Poisson) of the faster "
    "of the two MDs. The ratio to the limit from entries counted in free MD is a figure of its own: it grows with the time given to MD.",
    "MD runs on the fastest platform, with 1 fs steps and with 2 fs steps and hydrogens of 8 dalton; only integrator steps are timed. "
    "Chains are charged for everything; parallel tempering for its forces alone, at the cost of an MD step measured in the same run.",
]


def _figures(alone: ChainTally, mixed: ChainTally, dynamics: list[DynamicsTally], tempering: Tempered) -> list[Figure]:
    rate = alone.visits / alone.cpu
    fastest = max(dynamics, key=lambda t: t.rate(alone.population, upper=False))
    counted = max(dynamics, key=lambda t: t.limit)
    point, upper = (fastest.rate(alone.population, upper=u) for u in (False, True))
    ratio = f"point estimate {number(rate / point) if point else 'none'} x; {fastest.escapes} escapes, {fastest.speed:.0f} ps a CPU-second."
    seen = f"{counted.entries} entries in {counted.picoseconds / 1000:.1f} ns, {counted.cpu:.0f} CPU-s; so short an MD can show no more."
    return [
        Figure("independent visits to phi > 0 per CPU-second", rate, "/s", note=f"proposals alone, {alone.visits:.0f} visits."),
        Figure(
            "the same, ratio to Langevin MD", rate / upper, "x", None, 3000, 20_000,
            compared=f"{fastest.name}: 95 % upper limit of its rate", note=ratio,
        ),
        Figure(
            "the same, ratio to the limit from entries counted", rate / counted.limit, "x",
            compared=f"{counted.name}: 95 % Poisson limit", note=seen,
        ),
        Figure(
            "the same, ratio to parallel tempering", rate * tempering.cpu / tempering.visits, "x", None, 60, 500,
            compared="8 temperatures 300-1000 K, charged for forces only",
            note=f"{tempering.visits:.0f} independent visits in {tempering.nanoseconds:.0f} ns.",
        ),
        Figure(
            "independent visits per CPU-second, MD and proposals mixed", mixed.visits / mixed.cpu, "/s",
            note="500 MD steps and 32 proposals a block.",
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    command_line(__doc__, "rates", measure)
