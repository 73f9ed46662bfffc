"""Exactness: chains on the alanine dipeptide against the long parallel-tempering reference, observable by observable."""

from __future__ import annotations

import math

import numpy as np
from common import REFERENCE, Figure, Findings, Options, Table, command_line

from dig_core.montecarlo.analysis import block_average
from dig_plugins.openmm.convert import reduced_unit, to_geometry
from dig_plugins.openmm.montecarlo import DiGMonteCarlo
from dig_plugins.openmm.observables import dipeptide_observables
from dig_plugins.openmm.systems import ModelSystem, model_system

BLOCKS = 40


def measure(options: Options) -> Findings:
    """z-scores of both kinds of chain."""
    dig, system = options.load(), model_system("alanine-dipeptide")
    chains = {
        "proposals alone": series(
            dig, system, options.seed, options.size(40, 4), md_steps=0, proposals=options.size(1024, 64)
        ),
        "MD and proposals": series(dig, system, options.seed + 1, options.size(1200, 8), md_steps=500, proposals=32),
    }
    with np.load(REFERENCE) as held:
        names, means, errors = ([*held[k]] for k in ("names", "means", "stderr"))
        nanoseconds = float(held["aggregate_ns"])
    reference = {str(n): (float(m), float(e)) for n, m, e in zip(names, means, errors, strict=True)}
    scores = {kind: compared(observed, reference, options.size(BLOCKS, 4)) for kind, observed in chains.items()}
    rows = [
        [name, digits(mean, error), *(x for kind in chains for x in row(*scores[kind][name]))]
        for name, (mean, error) in reference.items()
    ]
    header = ["observable", "parallel tempering", *(x for kind in chains for x in (kind, "z"))]
    figures = [
        figure(kind, [s[2] for s in scores[kind].values()], len(next(iter(chains[kind].values())))) for kind in chains
    ]
    notes = [
        f"Reference: parallel tempering, {nanoseconds:.0f} ns over 8 temperatures, made without the model (benchmarks/reference.py).",
        f"Errors on both sides from {BLOCKS} blocks; z is the difference over the two errors together. Lengths in nm, angles in "
        "radians, energies in kJ/mol. The observables are correlated with each other.",
    ]
    return Findings(figures, [Table("Averages against parallel tempering", header, rows)], notes)


def series(dig, system: ModelSystem, seed: int, blocks: int, *, md_steps: int, proposals: int) -> dict[str, np.ndarray]:
    """Every observable along a chain, one value a proposal, after a tenth of the blocks that is not counted."""
    chain = DiGMonteCarlo(system.simulation(seed=seed), dig, md_steps=md_steps, proposals=proposals, seed=seed)
    chain.step(max(1, blocks // 10))
    parts = []
    for _ in range(blocks):
        positions = chain.step().positions
        parts.append(dipeptide_observables(system.topology, positions))
        parts[-1]["energy"] = energies(chain, positions)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def energies(chain: DiGMonteCarlo, positions: np.ndarray) -> np.ndarray:
    """(F,) kJ/mol; consecutive states are mostly the same one, evaluated once."""
    fresh = np.append(True, (positions[1:] != positions[:-1]).any(axis=(1, 2)))
    values = chain.energy(to_geometry(positions[fresh])).numpy() * reduced_unit(chain.temperature)
    return values[np.cumsum(fresh) - 1]


def compared(
    observed: dict[str, np.ndarray], reference: dict[str, tuple[float, float]], blocks: int
) -> dict[str, tuple[float, ...]]:
    """(mean, error, z) by name."""
    found = {}
    for name, (mean, error) in reference.items():
        here = block_average(observed[name], blocks)
        found[name] = (here.value, here.stderr, (here.value - mean) / float(np.hypot(here.stderr, error)))
    return found


def digits(value: float, error: float) -> str:
    """A value to two figures of its error."""
    places = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 4
    return f"{value:.{places}f} ± {error:.{places}f}"


def row(value: float, error: float, z: float) -> list[str]:
    """What a chain found, and how far off in standard errors."""
    return [digits(value, error), f"{z:.2f}"]


def figure(kind: str, z: list[float], n: int) -> Figure:
    """The largest of the z-scores."""
    squares = float(np.square(z).mean())
    note = f"{len(z)} observables, {n} states; mean z squared {squares:.2f} (1 is expected), {sum(abs(x) > 2 for x in z)} above 2."
    worst = float(np.abs(z).max())
    return Figure(
        f"largest |z| against parallel tempering, {kind}", worst, "", None, 3.0, None, False, "parallel tempering", note
    )


if __name__ == "__main__":
    command_line(__doc__, "exactness", measure)
