"""Path proposals of the shipped model: raw acceptance and effective sample size, rejection runs, cost, number of steps, precision."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import torch
from common import Figure, Findings, Options, Table, command_line, per_call

from dig_core.dig import DiG
from dig_core.montecarlo.analysis import (
    block_average,
    bootstrap,
    effective_sample_size,
    largest_weight_share,
    longest_rejection_run,
    metropolis_acceptance,
)
from dig_core.montecarlo.chain import MonteCarlo, Pool
from dig_core.random import Streams
from dig_plugins.openmm.convert import to_geometry
from dig_plugins.openmm.energy import OpenMMEnergy
from dig_plugins.openmm.systems import model_system

VARIANTS = (
    *(("bfloat16", steps, paths) for steps in (8, 16, 32, 64, 160) for paths in (1, 2, 4) if steps * paths <= 160),
    *(("float32", steps, 1) for steps in (8, 16, 32, 64, 160)),
)
BATCH = 1024  # what DiGMonteCarlo prepares at a time


def measure(options: Options) -> Findings:
    """All figures of the proposals."""
    dig, system = options.load(), model_system("alanine-dipeptide")
    energy = OpenMMEnergy(system.system, system.temperature)
    runs = rejection_runs(options, dig, energy, system.positions)
    figures = [*quality(options, dig, energy), *cost(options, dig, energy), runs]
    notes = [
        f"Default steps: {dig.card.steps}, paths a structure: {dig.card.paths}; precision of matrix products: {_precision(dig)}; "
        f"energies: {energy.platform_name} platform.",
        "Acceptance is what an independence Metropolis sampler on these proposals accepts, over all pairs of draws; the effective "
        "sample size is Kish's, as a fraction of the draws. Both are of raw weights, at equilibrium.",
        "A proposal's cost is the path with its log-density, the structure and its energy, in processor time on one core, in batches of "
        f"{BATCH}.",
    ]
    return Findings(figures, [steps_and_precision(options, dig, energy)], notes)


def quality(options: Options, dig: DiG, energy: OpenMMEnergy) -> list[Figure]:
    """Raw acceptance and effective sample size at the default number of steps."""
    n = options.size(20_480, 256)
    log_weight = Pool(dig.proposal(), energy, seed=options.seed, batch=BATCH).take(n).log_weight
    rng = np.random.default_rng(options.seed)
    acceptance = bootstrap(metropolis_acceptance, log_weight, n=options.size(200, 10), rng=rng)
    size = bootstrap(effective_sample_size, log_weight, n=options.size(200, 10), rng=rng)
    share = largest_weight_share(log_weight)
    return [
        Figure(
            "raw acceptance of path proposals", float(acceptance.value), "", float(acceptance.stderr), 0.55, 0.85,
            compared="every proposal accepted: 1", note=f"{n} proposals, errors from the bootstrap.",
        ),
        Figure(
            "raw effective sample size of path proposals", float(size.value), "", float(size.stderr), 0.45, 0.80,
            compared="independent samples of the target: 1", note=f"the same {n} proposals; the heaviest holds {share:.1e} of the weight.",
        ),
    ]  # fmt: skip


def cost(options: Options, dig: DiG, energy: OpenMMEnergy) -> list[Figure]:
    """Milliseconds a proposal, all in and without the energy."""
    proposal, repeats = dig.proposal(), options.size(15, 2)
    drawn = proposal.draw(BATCH, Streams(options.seed, range(BATCH)))
    path = per_call(lambda: proposal.draw(BATCH, Streams(options.seed, range(BATCH))), repeats) / BATCH
    evaluation = per_call(lambda: energy(drawn.geometry), repeats) / BATCH
    note = f"path and structure {1e3 * path:.3f} ms, energy {1e3 * evaluation:.3f} ms; median of {repeats} batches."
    return [Figure("cost of a proposal, one core", 1e3 * (path + evaluation), "ms", None, 3.0, 0.5, False, "", note)]


def rejection_runs(options: Options, dig: DiG, energy: OpenMMEnergy, start: np.ndarray) -> Figure:
    """The longest run of rejections, the worst of three chains; every chain is one block, so no fresh path helps it on."""
    n, warm_up, found, rates = options.size(10_000, 256), options.size(1000, 64), [], []
    for seed in range(options.seed, options.seed + 3):
        chain = MonteCarlo(dig.proposal(), energy, to_geometry(start), seed=seed, batch=BATCH)
        chain.block(warm_up)
        accepted = chain.block(n)[1].accepted
        found.append(longest_rejection_run(accepted))
        rates.append(block_average(accepted, 2).value)
    note = (
        f"three chains, seeds {options.seed} to {options.seed + 2}, {n} proposals each in one block: runs of {found}; they accepted "
        f"{', '.join(f'{100 * r:.1f} %' for r in rates)}."
    )
    return Figure(
        "longest run of rejections in 10,000 proposals", float(max(found)), "", None, 200, 50, False, "", note
    )


def steps_and_precision(options: Options, dig: DiG, energy: OpenMMEnergy) -> Table:
    """The table that decided the defaults: quality and cost over precision, number of steps and paths a structure."""
    n, rows = options.size(4 * BATCH, 64), []
    for precision, steps, paths in VARIANTS[: options.size(len(VARIANTS), 2)]:
        proposal = with_precision(dig, precision).proposal(steps=steps, paths=paths)
        batch = min(BATCH, n)
        log_weight = Pool(proposal, energy, seed=options.seed + 1, batch=batch).take(n).log_weight
        repeats = options.size(3, 1)
        spent = per_call(lambda p=proposal, b=batch: _draw_and_weigh(p, energy, b, options.seed), repeats) / batch
        ess, acceptance = effective_sample_size(log_weight), metropolis_acceptance(log_weight)
        rounded = [round(x, 3) for x in (ess, acceptance, 1e3 * spent)]
        rows.append([precision, steps, paths, *rounded, round(ess / spent), round(acceptance / spent)])
    header = [
        "precision",
        "steps",
        "paths",
        "raw ESS",
        "acceptance",
        "ms a proposal",
        "effective samples / CPU-s",
        "accepted / CPU-s",
    ]
    return Table(f"Precision, steps and paths: the table that decided the defaults ({n} proposals a row)", header, rows)


def with_precision(dig: DiG, precision: str) -> DiG:
    """The same model with hidden matrix products in ``precision``."""
    model = copy.deepcopy(dig.model)
    model.network.precision = getattr(torch, precision)
    return dataclasses.replace(dig, model=model)


def _draw_and_weigh(proposal, energy: OpenMMEnergy, n: int, seed: int) -> None:
    energy(proposal.draw(n, Streams(seed, range(n))).geometry)


def _precision(dig: DiG) -> str:
    return str(getattr(dig.model.network, "precision", "float32")).removeprefix("torch.")


if __name__ == "__main__":
    command_line(__doc__, "proposals", measure)
