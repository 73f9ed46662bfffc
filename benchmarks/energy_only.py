"""Training from an energy alone: planar wells, Mueller-Brown, a temperature sweep, alanine dipeptide. Half an hour.

Not part of ``make bench`` for its length. No structure of the ensemble is given to any training here.
"""

from __future__ import annotations

import math
import tempfile
import time

import numpy as np
import torch
from common import REFERENCE, Figure, Findings, Options, Table, command_line, number
from exactness import compared, digits, series
from rates import ChainTally, DynamicsTally, place, run_chain, run_escapes, run_freely, tempered
from reference import heavy_simulation

from dig_core.diffusion import Diffusion, Euclidean, Joint, LogSNR
from dig_core.dig import Card, DiG
from dig_core.energy import MuellerBrown
from dig_core.montecarlo.analysis import effective_sample_size, metropolis_acceptance, normalised_weights
from dig_core.montecarlo.chain import Pool
from dig_core.nn import ResidualMLP
from dig_core.score import NoiseScore
from dig_core.testing import toy
from dig_core.training.anneal import Anneal
from dig_core.training.fit import Progress, fit
from dig_core.training.loop import LoopConfig
from dig_core.training.stages import Reweight
from dig_core.types import Geometry
from dig_plugins.openmm import Fitted
from dig_plugins.openmm import fit as fit_molecule
from dig_plugins.openmm.energy import OpenMMEnergy
from dig_plugins.openmm.systems import ModelSystem, model_system

TEMPERATURES = (0.8, 1.0, 1.5, 2.0)


def measure(options: Options) -> Findings:
    """Toys, sweep, molecule."""
    toys, table = planar(options)
    sweep, sweep_table = temperatures(options)
    molecule, tables = dipeptide(options)
    notes = [
        "Annealing: from the process's prior to exp(-u) by the model's own exact weights; then training on its own reweighted samples.",
        "Energy evaluations are all there are, those of trial structures that were thrown away included.",
    ]
    return Findings([*toys, sweep, *molecule], [table, sweep_table, *tables], notes)


def wells(geometry: Geometry, kt: float = 1.0) -> torch.Tensor:
    """Four wells at (+-1, +-1), 6 kT deep at kt = 1 and tilted along both axes."""
    x = geometry.positions.flatten(1)[:, :2]
    return (6 * ((x**2 - 1) ** 2).sum(1) + 0.5 * x[:, 0] - 0.3 * x[:, 1]) / kt


def mueller_brown(geometry: Geometry) -> torch.Tensor:
    """The plane alone, at kT = 15."""
    return MuellerBrown(15.0).plane(geometry.positions.flatten(1)[:, :2])


def train(energy, options: Options) -> Progress:
    """A small network from the energy alone."""
    process = Joint(x=Diffusion(Euclidean(2), LogSNR(7.0, -5.0)))
    model = NoiseScore(ResidualMLP({"x": 2}, [], width=128, blocks=3, seed=options.seed), process).requires_grad_(False)
    draws, steps = options.size(50_000, 2000), options.size(4000, 20)
    stages = [
        Anneal(draws=options.size(5000, 1000), steps=options.size(300, 20), batch=512, floor=0.3, goal=0.5, rungs=options.size(40, 4)),
        Reweight(draws=draws, config=LoopConfig(steps=steps, batch=2048, rate=2e-3)),
    ]
    return fit(toy(model, card=Card(steps=64)), stages, energy=energy, seed=options.seed, progress=False)


def weights(dig: DiG, energy, options: Options, *, steps: int | None = None, paths: int = 1, n: int = 20_480):
    """Log weights of fresh proposals."""
    proposal = dig.proposal(steps=steps, paths=paths)
    return Pool(proposal, energy, seed=options.seed + 7, batch=1024).take(options.size(n, 1024)).log_weight


def planar(options: Options) -> tuple[list[Figure], Table]:
    """Raw effective sample size on two surfaces, at several numbers of steps and paths."""
    figures, rows = [], []
    for what, energy in (("planar wells", wells), ("Mueller-Brown", mueller_brown)):
        began = time.process_time()
        found = train(energy, options)
        cost = time.process_time() - began
        shares = {}
        for steps, paths in ((64, 1), (256, 1), (256, 4)):
            shares[steps, paths] = effective_sample_size(weights(found.dig, energy, options, steps=steps, paths=paths))
            rows.append([what, steps, paths, round(shares[steps, paths], 4), found.evaluations, round(cost)])
        note = f"256 steps, four paths a structure ({shares[256, 1]:.1%} with one, {shares[64, 1]:.1%} with 64 steps)."
        name = f"raw ESS from the energy alone, {what}"
        figures.append(Figure(name, shares[256, 4], "", None, 0.95, 0.99, True, "exact samples: 1", note))
    header = ["surface", "steps", "paths", "raw ESS", "energy evaluations", "training, CPU-s"]
    return figures, Table("Planar surfaces", header, rows)


def temperatures(options: Options) -> tuple[Figure, Table]:
    """Population of the deepest well in unweighted samples of models trained at several temperatures, against quadrature."""
    axis = torch.linspace(-3, 3, 1201, dtype=torch.float64)
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    grid = Geometry(torch.stack([x.flatten(), y.flatten(), torch.zeros(x.numel())], 1)[:, None])
    rows, worst = [], 0.0
    for kt in TEMPERATURES:
        found = train(lambda geometry, kt=kt: wells(geometry, kt), options)
        exact = torch.softmax(-wells(grid, kt), 0)
        deep = (grid.positions[:, 0, 0] < 0) & (grid.positions[:, 0, 1] > 0)
        shallow = (grid.positions[:, 0, 0] > 0) & (grid.positions[:, 0, 1] < 0)
        drawn = found.dig.sample(options.size(40_000, 1000), seed=options.seed, steps=256, batch=2000).geometry.positions.flatten(1)
        counts = [int(((sign * drawn[:, 0] < 0) & (sign * drawn[:, 1] > 0)).sum()) for sign in (1, -1)]
        wanted = float(exact[deep].sum() / exact[shallow].sum())
        ratio = counts[0] / max(counts[1], 1)
        worst = max(worst, abs(ratio / wanted - 1))
        rows.append([kt, round(wanted, 3), round(ratio, 3), round(ratio / wanted - 1, 4)])
    figure = Figure(
        "largest error of a ratio of populations over a temperature sweep", worst, "", None, 0.10, None, False, "quadrature",
        "deepest over shallowest well, unweighted samples of models trained at each temperature.",
    )  # fmt: skip
    return figure, Table("Temperature sweep", ["kT", "exact ratio", "model's ratio", "relative error"], rows)


def dipeptide(options: Options) -> tuple[list[Figure], list[Table]]:
    """Alanine dipeptide in implicit solvent by the one call that users have, then chains with its proposals."""
    system = model_system("alanine-dipeptide")
    with tempfile.TemporaryDirectory() as place:
        found = fit_molecule(
            system.system, system.topology, system.temperature, positions=system.positions, out=place, seed=options.seed,
            budget="20min" if not options.quick else "20s", progress=False,
        )  # fmt: skip
    energy = OpenMMEnergy(system.system, system.temperature)
    one, four = (weights(found.dig, energy, options, paths=paths) for paths in (1, 4))
    blocks = options.size(40, 4)
    chain = series(found.dig, system, options.seed, blocks, md_steps=0, proposals=options.size(1024, 64))
    with np.load(REFERENCE) as held:
        reference = {str(n): (float(m), float(e)) for n, m, e in zip(held["names"], held["means"], held["stderr"], strict=True)}
    scores = compared(chain, reference, blocks)
    worst = max(abs(z) for *_, z in scores.values())
    rows = [[n, digits(m, e), digits(*scores[n][:2]), f"{scores[n][2]:.2f}"] for n, (m, e) in reference.items()]
    compared_with = "best published: 97.7 % with 1e8 evaluations on GPUs (arXiv:2510.18460)"
    figures = [
        Figure("raw ESS from the force field alone, alanine dipeptide", effective_sample_size(four), "", None, 0.35, 0.90, True,
               compared_with, f"four paths a structure; {effective_sample_size(one):.3f} with one. The heaviest of {len(four)} "
               f"proposals holds {normalised_weights(four).max():.1e} of the weight."),
        Figure("raw acceptance, the same", metropolis_acceptance(four), "", None, None, None, True, "",
               f"{metropolis_acceptance(one):.3f} with one path."),
        Figure("energy evaluations of that training", found.evaluations, "", None, 2e7, 2e6, False, compared_with),
        Figure("wall time of that training, one core", found.seconds / 60, "min", None, 240, 30, False),
        Figure("largest |z| against parallel tempering, the same model", worst, "", None, 3.0, None, False, "53 ns of parallel tempering",
               f"{len(scores)} observables, populations of phi and psi regions among them; a chain of proposals alone."),
    ]  # fmt: skip
    figures += break_even(found, system, options)
    table = Table("Force field alone, against parallel tempering", ["observable", "parallel tempering", "chain", "z"], rows)
    history = [[stage.get("stage", "all"), *(str(stage.get(k, "")) for k in ("evaluations", "frames", "ess"))] for stage in found.history]
    return figures, [table, Table("Stages of that training", ["stage", "evaluations", "frames", "raw ESS"], history)]


def break_even(found: Fitted, system: ModelSystem, options: Options) -> list[Figure]:
    """Hours until p(phi > 0) is known to a tenth, a hundred independent visits, training included; and those of its rivals."""
    tally, heavy = ChainTally("proposals alone"), DynamicsTally("MD, 2 fs, heavy hydrogens", 2.0)
    run_chain(tally, found.dig, system, options.seed, blocks=options.size(20, 2), md_steps=0, proposals=options.size(1024, 256))
    simulation = heavy_simulation(system, options.seed)
    place(simulation, system.positions, options.seed)
    run_freely(heavy, simulation, options.size(10, 1))
    run_escapes(heavy, simulation, tally.found, options.size(60, 1), options.seed)
    reference = tempered(heavy)
    dynamics = heavy.rate(tally.population, upper=True)
    rates = {"DiG": tally.visits / tally.cpu, "MD": dynamics, "parallel tempering": reference.visits / reference.cpu}
    hours = {name: 100 / rate / 3600 if rate else math.inf for name, rate in rates.items()}
    whole = hours["DiG"] + found.seconds / 3600
    crossing = {name: number(whole * 3600 * rates[name]) for name in ("MD", "parallel tempering")}
    note = (
        f"MD alone {number(hours['MD'])} h (at the 95 % upper limit of its rate), parallel tempering "
        f"{number(hours['parallel tempering'])} h, DiG without its training {number(3600 * hours['DiG'])} s. In the whole of that time MD "
        f"makes {crossing['MD']} visits, parallel tempering {crossing['parallel tempering']}: from there on DiG is ahead."
    )
    what = "hours to 10 % error of p(phi > 0), training included"
    return [Figure(what, whole, "h", None, None, 1.0, False, "MD, parallel tempering", note)]


if __name__ == "__main__":
    command_line(__doc__, "energy_only", measure)
