"""What using DiG costs beyond the network and the energies: a move of openmmtools, a reporter that is not due."""

from __future__ import annotations

import time

import numpy as np
from common import MODEL, Figure, Findings, Options, Table, command_line
from openmm import unit
from openmmtools import cache, states

from dig_core.montecarlo.chain import Pool
from dig_core.random import Streams
from dig_plugins.openmm import DiGMonteCarlo, DiGMove, OpenMMEnergy, model_system
from dig_plugins.openmm.convert import to_geometry


def measure(options: Options) -> Findings:
    """Both overheads."""
    move, rows = openmmtools_move(options)
    reporter, steps = idle_reporter(options)
    notes = [
        "The move: one application tests 32 proposals of which 1,024 at a time are prepared ahead. What it must cost is measured "
        "beside it: the same proposals with their energies, and the density of the current state over a fresh path.",
        f"The reporter: {steps:,} steps of MD with and without a chain on the list that is never due, in alternation.",
    ]
    return Findings([move, reporter], [Table("An application of DiGMove", ["part", "CPU-ms"], rows)], notes)


def openmmtools_move(options: Options) -> tuple[Figure, list[list]]:
    """Processor time of ``DiGMove.apply`` against that of its proposals, energies and density."""
    system, dig, blocks = model_system(MODEL), options.load(), options.size(256, 4)
    cache.global_context_cache.platform = system.simulation().context.getPlatform()
    thermodynamic = states.ThermodynamicState(system.system, system.temperature * unit.kelvin)
    sampler = states.SamplerState(system.positions * unit.nanometer)
    move = DiGMove(options.model, system.topology, seed=options.seed)
    move.apply(thermodynamic, sampler)
    wholes, parts = [], {"proposals and energies": [], "density of the current state": []}
    energy, proposal = OpenMMEnergy(system.system, system.temperature), dig.proposal()
    pool = Pool(proposal, energy, seed=options.seed, batch=1024)
    for _ in range(3):
        began = time.process_time()
        for _ in range(blocks):
            move.apply(thermodynamic, sampler)
        wholes.append((time.process_time() - began) / blocks)
        began = time.process_time()
        for _ in range(blocks):
            pool.take(32)
        parts["proposals and energies"].append((time.process_time() - began) / blocks)
        here = to_geometry(sampler.positions)
        began = time.process_time()
        for number in range(blocks):
            proposal.log_q(here, Streams(options.seed, [number]))
            energy(here)
        parts["density of the current state"].append((time.process_time() - began) / blocks)
    whole, own = float(np.median(wholes)), {name: float(np.median(x)) for name, x in parts.items()}
    share = whole / sum(own.values()) - 1
    rows = [[name, round(1e3 * x, 2)] for name, x in {**own, "DiGMove.apply": whole}.items()]
    return Figure("overhead of a move in openmmtools", share, "", None, 0.05, None, False, "its proposals, energies and densities"), rows


def idle_reporter(options: Options) -> tuple[Figure, int]:
    """Processor time of MD with a chain on the list of reporters that does not act, over that without."""
    steps, dig = options.size(40_000, 400), options.load()
    system = model_system(MODEL)
    plain, watched = system.simulation(seed=1), system.simulation(seed=2)
    watched.reporters.append(DiGMonteCarlo(watched, dig, md_steps=10**9, seed=1))
    ratios = []
    for _ in range(options.size(9, 2)):
        seconds = []
        for simulation in (plain, watched):
            began = time.process_time()
            simulation.step(steps)
            seconds.append(time.process_time() - began)
        ratios.append(seconds[1] / seconds[0] - 1)
    error = float(np.std(ratios, ddof=1) / np.sqrt(len(ratios)))
    return Figure("overhead of an idle reporter", float(np.median(ratios)), "", error, 0.01, None, False, "the same MD without it"), steps


if __name__ == "__main__":
    command_line(__doc__, "overheads", measure)
