"""Models trained from their force fields alone: quality of their proposals, slow modes against Langevin dynamics. Ten minutes.

Not part of ``make bench`` for its length.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from common import Figure, Findings, Options, Table, command_line, number
from rates import _CHUNK, ChainTally, DynamicsTally, advance, place

from dig_core.coordinates.measure import dihedral
from dig_core.dig import DiG
from dig_core.montecarlo.analysis import effective_sample_size, metropolis_acceptance, normalised_weights
from dig_core.montecarlo.chain import Pool
from dig_plugins import models
from dig_plugins.openmm.energy import OpenMMEnergy
from dig_plugins.openmm.frames import heavy_hydrogens
from dig_plugins.openmm.montecarlo import DiGMonteCarlo
from dig_plugins.openmm.observables import LEFT_HANDED, backbone_dihedrals
from dig_plugins.openmm.systems import ModelSystem, model_system

CORE = np.radians((-160.0, -40.0))


class Mode(NamedTuple):
    """A slow torsion: ``angle(positions)`` (F,) rad; ``inside`` and ``outside`` the cores of its two states."""

    name: str
    angle: Callable[[np.ndarray], np.ndarray]
    inside: Callable[[np.ndarray], np.ndarray]
    outside: Callable[[np.ndarray], np.ndarray]


def modes_of(system: ModelSystem) -> list[Mode]:
    """phi > 0 of each residue whose phi can turn; cis peptide bonds before prolines."""
    backbone, found = backbone_dihedrals(system.topology), []
    residues = [r for r in system.topology.residues() if {"N", "CA", "C"} <= {a.name for a in r.atoms()}]
    for number_, residue in enumerate(residues):
        if residue.name != "PRO":
            found.append(
                Mode(
                    f"phi {number_ + 1} > 0",
                    lambda x, k=number_: backbone.measure(x)[0][:, k],
                    lambda a: (a > LEFT_HANDED[0]) & (a < LEFT_HANDED[1]),
                    lambda a: (a > CORE[0]) & (a < CORE[1]),
                )
            )
            continue
        atoms = {a.name: a for a in residue.atoms()}
        before = next(b for b in system.topology.bonds() if atoms["N"] in b and {a.residue for a in b} != {residue})
        carbonyl = next(a for a in before if a.residue is not residue)
        methyl = next(a for b in system.topology.bonds() for a in b if carbonyl in b and a.name in ("CH3", "CA"))
        omega = [(methyl.index, carbonyl.index, atoms["N"].index, atoms["CA"].index)]
        found.append(
            Mode(
                f"cis before {residue.name} {number_ + 1}",
                lambda x, omega=omega: dihedral(torch.as_tensor(x, dtype=torch.float64), omega)[:, 0].numpy(),
                lambda a: np.abs(a) < 0.5 * np.pi,
                lambda a: np.abs(a) > 0.8 * np.pi,
            )
        )
    return found


def measure(options: Options) -> Findings:
    """Every shipped model of that recipe."""
    quality, rates, figures = [], [], []
    names = [n for n, entry in models.index().items() if entry["recipe"].endswith("force_field.py")]
    for name in names[: options.size(len(names), 1)]:
        dig, system = models.load(name), model_system(name)
        energy = OpenMMEnergy(system.system, system.temperature)
        figures += proposals(name, dig, energy, options, quality)
        figures += slow_modes(name, dig, system, options, rates)
    tables = [
        Table("Proposals", ["model", "paths", "raw ESS", "acceptance", "heaviest weight", "ms a proposal", "energies to train"], quality),
        Table(
            "Slow modes",
            ["model", "mode", "population", "visits / CPU-s", "MD, visits / CPU-s", "MD, 95 % limit", "escapes", "ratio to limit"],
            rates,
        ),
    ]
    return Findings(figures, tables, _NOTES)


_NOTES = [
    "Visits and the rate of MD are those of benchmarks/rates.py: population times effective samples, and flux balance over escapes from "
    "structures that the chain drew; MD with 2 fs steps and hydrogens of 8 dalton, on the fastest platform.",
    "Chains are of proposals alone; everything they do is timed.",
]


def proposals(name: str, dig: DiG, energy: OpenMMEnergy, options: Options, rows: list) -> list[Figure]:
    """Raw quality with one and four paths a structure."""
    n, found = options.size(10_240, 256), {}
    for paths in (1, 4):
        began = time.process_time()
        log_weight = Pool(dig.proposal(paths=paths), energy, seed=options.seed, batch=min(n, 1024)).take(n).log_weight
        spent = time.process_time() - began
        found[paths] = (effective_sample_size(log_weight), metropolis_acceptance(log_weight))
        heaviest = f"{normalised_weights(log_weight).max():.1e}"
        trained = next((h["evaluations"] for h in dig.card.history if "evaluations" in h), "")
        rows.append([name, paths, *(round(x, 3) for x in found[paths]), heaviest, round(1e3 * spent / n, 2), trained])
    note = f"{found[4][1]:.3f} with four paths a structure; raw ESS {found[1][0]:.3f} and {found[4][0]:.3f}; {n} proposals."
    floor, aim = (0.15, 0.60) if name == "alanine-tetrapeptide" else (None, None)
    return [Figure(f"raw acceptance, {name}", found[1][1], "", None, floor, aim, True, "", note)]


def slow_modes(name: str, dig: DiG, system: ModelSystem, options: Options, rows: list) -> list[Figure]:
    """Independent visits to each mode's rarer state per CPU-second, of a chain and of dynamics."""
    modes, blocks = modes_of(system), options.size(40, 2)
    chain = DiGMonteCarlo(system.simulation(seed=options.seed), dig, md_steps=0, proposals=options.size(1024, 64), seed=options.seed)
    chain.step(max(1, blocks // 10))
    tallies, cpu = [ChainTally(mode.name) for mode in modes], 0.0
    for _ in range(blocks):
        began = time.process_time()
        block = chain.step()
        cpu += time.process_time() - began
        for mode, tally in zip(modes, tallies, strict=True):
            inside = mode.inside(mode.angle(block.positions))
            tally.inside.append(inside)
            tally.found += list(block.positions[inside])
    figures = []
    for mode, tally in zip(modes, tallies, strict=True):
        inside = np.concatenate(tally.inside)
        tally.inside, tally.cpu = [inside], cpu
        if tally.population in (0.0, 1.0):
            rows.append([name, mode.name, tally.population, 0.0, "", "", 0, ""])
            continue
        dynamics = escapes(mode, tally, system, options)
        point, limit = (dynamics.rate(tally.population, upper=u) for u in (False, True))
        rate = tally.visits / cpu
        row = [number(x) for x in (rate, point, limit)]
        rows.append([name, mode.name, round(tally.population, 4), *row, dynamics.escapes, number(rate / limit)])
        figures.append((rate, rate / limit, mode.name, dynamics))
    if not figures:
        return []
    rate, ratio, worst, dynamics = min(figures)
    known = {"alanine-dipeptide-vacuum": (1.0, None), "alanine-tetrapeptide": (None, None)}.get(name, (None, None))
    wanted = (30, 3000) if name == "alanine-tetrapeptide" else (None, None)
    note = f"{worst}, the slowest; {dynamics.escapes} escapes in {dynamics.dwelt / 1000:.1f} ns."
    return [
        Figure(f"independent visits to the slowest mode per CPU-second, {name}", rate, "/s", None, *known, True, "", worst),
        Figure(f"the same, ratio to Langevin MD, {name}", ratio, "x", None, *wanted, True, "95 % upper limit of its rate", note),
    ]


def escapes(mode: Mode, tally: ChainTally, system: ModelSystem, options: Options) -> DynamicsTally:
    """Dynamics from structures in the mode's rarer state until they leave it."""
    heavy = system._replace(system=heavy_hydrogens(system.topology, system.system))
    simulation, dynamics = heavy.simulation(timestep=2.0, seed=options.seed), DynamicsTally(mode.name, 2.0)
    order, seconds = np.random.default_rng(options.seed).permutation(len(tally.found)), options.size(40, 1)
    for start in order:
        place(simulation, tally.found[start], 1000 + int(start))
        while dynamics.cpu < seconds:
            spent, positions = advance(simulation, dynamics.timestep)
            dynamics.cpu, dynamics.dwelt = dynamics.cpu + spent, dynamics.dwelt + _CHUNK
            if mode.outside(mode.angle(positions))[0]:
                dynamics.escapes += 1
                break
    dynamics.picoseconds = dynamics.dwelt
    return dynamics


if __name__ == "__main__":
    command_line(__doc__, "molecules", measure)
