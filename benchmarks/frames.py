"""Samplers of frames on exact scores: variances of positions and orientations and weights of shapes, beside the released code's loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from common import Figure, Findings, Options, Table, command_line, number
from frames_laws import DOUBLE, Impulses, Noise, Shapes, algorithm_5, angles, released, swing_squared
from torch import Tensor

from dig_core.diffusion import SO3, Cosine, Diffusion, Geometric, Joint, LogSNR, Sigmoid, ZeroCentroid
from dig_core.diffusion.rotations import rotation_matrix
from dig_core.diffusion.schedules import Schedule
from dig_core.energy import AnalyticScore, GaussianMixture
from dig_core.random import Streams
from dig_core.sampling.flow import flow_times
from dig_core.sampling.solvers import SOLVERS
from dig_core.types import State

SCALE, SEEDS = 10.0, 3
CODE = "Brownian, 0.1 to 35 Å", "Brownian, 0.02 to 1.65"
"""The processes of the released code; its sigma squared is half the variance an axis of orientations."""

POSITIONS: dict[str, Schedule] = {
    "OU, LogSNR(12, -10)": LogSNR(12.0, -10.0), "OU, Cosine": Cosine(), "OU, Sigmoid": Sigmoid(), "OU, LogSNR(10, -6)": LogSNR(10.0, -6.0),
    CODE[0]: Geometric(0.1 / SCALE, 35 / SCALE), "Brownian, 0.03 to 3500 Å": Geometric(0.03 / SCALE, 3500 / SCALE),
}  # fmt: skip
ORIENTATIONS: dict[str, Schedule] = {
    "Brownian, 0.01 to 3 rad": Geometric(0.01, 3.0), CODE[1]: Geometric(0.02 * math.sqrt(2), 1.65 * math.sqrt(2)),
}  # fmt: skip
STEPS = 25, 50, 100, 200, 400
QUOTED = {"ancestral": 100, "ddpm": 400, "sde": 800, "heun": 100, "rk4": 50, "dpm++": 400}
RANDOM = "ancestral", "ddpm", "sde"
"""Solvers that draw as they go; the others are functions of their latent."""
ADVISED = "OU, LogSNR(12, -10)", "OU, Cosine", "OU, Sigmoid", "Brownian, 0.01 to 3 rad"
REFERENCES = {"released loop": released, "algorithm 5": algorithm_5}

WIDTH, SWING = 0.1, 0.3  # over the scale; radians an axis
WEIGHTS, WIDTHS, SWINGS, RESIDUES, BUDGET = (0.3, 0.7), (0.1, 0.2), (0.25, 0.4), 3, 100
MIXED, LARGE = ("OU, Cosine", CODE[0]), 214


def measure(options: Options) -> Findings:
    """Variances of single laws, then shapes, then what the last noise leaves of a large one."""
    errors = [*position_errors(options), *orientation_errors(options)]
    mixed = mixture_table(options)
    tables = [variance_table("positions", POSITIONS, errors), variance_table("orientations", ORIENTATIONS, errors), released_table(options),
              mixed, large_table(options)]  # fmt: skip
    figures = [variance_figure(name, errors, among) for among in (ADVISED, CODE) for name in SOLVERS]
    notes = [
        f"Positions: a normal law of {WIDTH * SCALE:g} Å an axis. Solvers are linear there, and unit impulses of each draw add up to the "
        "variance without sampling error.",
        f"Orientations: Brownian motion of {SWING} rad an axis about a mean. Flows keep the axis of their latent, so Gauss's formula over "
        f"its angle gives E[angle²]; ancestral, ddpm and sde by sampling, {SEEDS} seeds, sampling errors as told.",
        "Known, of flows: the noise of their first time stays in, and a prior with the variance of unit data is too wide for a narrow law. "
        "Both are of the schedule's ends, not of the integration. Orientations: what is left of the noise alone; that the uniform law is "
        "not yet reached at the code's last noise adds 0.7 %.",
        f"Shapes: two, of {RESIDUES} residues, apart, of weights 0.3 and 0.7, widths 1 and 2 Å and swings 0.25 and 0.4 rad, positions and "
        f"orientations coupled, orientations by {ADVISED[-1]}; {SEEDS} seeds, as many evaluations of the score for each solver.",
        f"A shape of {LARGE} residues: two domains 17 Å apart, or 27 Å, with the radii of gyration of adenylate kinase, in any "
        "pose, half of each. Signal is |alpha x|² / sigma² at t = 1, all coordinates together: a prior that does not know it draws wrong "
        "amounts, whatever the solver and however good the score.",
        "Released loop: all of the reverse drift and no noise. Algorithm 5, the article's: half of it, the flow's, by Euler's method.",
    ]
    return Findings([*figures, *mixture_figures(mixed)], tables, notes)


class Error(NamedTuple):
    """Relative errors of a variance, and their sampling errors, by the number of steps; ``known`` is not of the integration."""

    process: str
    solver: str
    found: dict[int, tuple[float, float]]
    known: float


def even(steps: int) -> Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=DOUBLE)


def counts(name: str, options: Options) -> list[int]:
    """Numbers of steps to try: those of all solvers, and the one that is quoted."""
    every = sorted({*STEPS, QUOTED.get(name, STEPS[0])})
    return every[: options.size(len(every), 2)]


def percent(value: float, error: float = 0.0) -> str:
    return f"{100 * value:+.2f}" + (f" ± {100 * error:.2f}" if error else "")


# Variances -----------------------------------------------------------------------------------------------------------------


def position_errors(options: Options) -> list[Error]:
    """Every solver on every process, references on those of their kind."""
    found = []
    for kind, schedule in POSITIONS.items():
        for name, solver in (SOLVERS | (REFERENCES if kind == CODE[0] else {})).items():
            errors = {k: ((spread_of(solver, schedule, WIDTH, k) / WIDTH) ** 2 - 1, 0.0) for k in counts(name, options)}
            found.append(Error(kind, name, errors, added(name, schedule)))
    return found


def spread_of(solver: Callable, schedule: Schedule, width: float, steps: int) -> float:
    """The standard deviation that a solver gives a normal law."""
    space = ZeroCentroid(2)
    law = GaussianMixture([1.0], [[0.0] * 3], [[width**2] * 3])
    model = AnalyticScore(Joint(pos=Diffusion(space, schedule)), {"pos": law})
    return float(solver(model, None, even(steps), Impulses(steps + 1, space.basis()[0]))["pos"].norm())


def added(name: str, schedule: Schedule) -> float:
    """What the prior and the first time add to the variance of a flow; dpm++ goes on to the denoised state."""
    if name not in ("heun", "rk4", "dpm++"):
        return 0.0
    alpha, sigma = (float(level(torch.ones(1, dtype=DOUBLE))) for level in (schedule.alpha, schedule.sigma))
    first = flow_times(even(STEPS[0]))[:1]
    left = 0.0 if name == "dpm++" else float(schedule.sigma(first) / schedule.alpha(first)) / WIDTH
    return (alpha**2 + sigma**2) / ((alpha * WIDTH) ** 2 + sigma**2) * (1 + left**2) - 1


def orientation_errors(options: Options) -> list[Error]:
    """As for positions, about a mean that is the identity."""
    found = []
    for kind, schedule in ORIENTATIONS.items():
        for name, solver in (SOLVERS | REFERENCES).items():
            errors = {k: swing_error(name, solver, schedule, k, options) for k in counts(name, options)}
            left = (schedule.config["low"] / SWING) ** 2 if name in ("heun", "rk4") else 0.0
            found.append(Error(kind, name, errors, left))
    return found


def swing_error(name: str, solver: Callable, schedule: Schedule, steps: int, options: Options) -> tuple[float, float]:
    """The relative error of E[angle^2] and its sampling error."""
    process = Joint(rot=Diffusion(SO3(1), schedule))
    model = Shapes(process, (1.0,), {"rot": torch.zeros(1, 1, 3, dtype=DOUBLE)}, {"rot": (SWING,)})
    if name in RANDOM:
        n = options.size(30_000 if steps == QUOTED[name] else 8_000, 200)
        drawn = [solver(model, None, even(steps), Noise(n, SEEDS * options.seed + seed))["rot"] for seed in range(SEEDS)]
        ratio = torch.cat(drawn).square().sum((1, 2)) / swing_squared(SWING)
        return float(ratio.mean()) - 1, float(ratio.std()) / math.sqrt(len(ratio))
    at, weights = angles()
    start = {"rot": at[:, None, None] * torch.tensor([0.0, 0.0, 1.0], dtype=DOUBLE)}
    found = solver(model, None, even(steps), Noise(len(at), 0), start=start)["rot"]
    return float((weights * found.square().sum((1, 2))).sum()) / swing_squared(SWING) - 1, 0.0


def variance_table(what: str, processes: dict[str, Schedule], errors: list[Error]) -> Table:
    shown = sorted({*STEPS, *QUOTED.values()})
    rows = [[e.process, e.solver, *(percent(*e.found[k]) if k in e.found else "" for k in shown), percent(e.known)]
            for e in errors if e.process in processes]  # fmt: skip
    return Table(f"Variance of {what}, error in %", ["process", "solver", *(f"{k} steps" for k in shown), "known"], rows)


def variance_figure(name: str, errors: list[Error], among: tuple[str, ...]) -> Figure:
    """The largest error of a solver over some processes."""
    steps, kind = QUOTED[name], "the released code's" if among is CODE else "advised"
    at = [(abs(value), error, e) for e in errors if e.solver == name and e.process in among
          for value, error in [e.found.get(steps, (math.nan, 0.0))]]  # fmt: skip
    value, error, worst = max(at, key=lambda each: each[0])
    note = f"largest over {', '.join(among)}: {worst.process}; of which known {percent(worst.known)} %."
    what = f"variance of frames, {kind} processes, {name}, {steps} steps"
    return Figure(what, 100 * value, "%", 100 * error or None, 2.0, 0.5, False, "exact law", note)


def released_table(options: Options) -> Table:
    """Laws of several widths by the released loop, with its process and number of steps, beside the solvers here."""
    steps, rows = options.size(500, 20), []
    solvers = {name: (solver, steps) for name, solver in REFERENCES.items()}
    solvers |= {name: (solver, min(steps, QUOTED[name])) for name, solver in SOLVERS.items()}
    for width in (0.3, 1.0, 3.0, 10.0):
        found = [SCALE * spread_of(solver, POSITIONS[CODE[0]], width / SCALE, k) for solver, k in solvers.values()]
        rows.append([number(width), *map(number, found)])
    header = ["law", *(f"{name}, {k} steps" for name, (_, k) in solvers.items())]
    return Table(f"Standard deviations that come out, Å; {CODE[0]}", header, rows)


# Shapes --------------------------------------------------------------------------------------------------------------------


def mixture_table(options: Options) -> Table:
    """Variances about the means, and the weight of the first shape, by sampling."""
    rows = []
    for kind in MIXED:
        model = shapes(POSITIONS[kind], options.seed)
        for name, solver in (SOLVERS | (REFERENCES if kind == CODE[0] else {})).items():
            steps, n = options.size(BUDGET, 8) // {"heun": 2, "rk4": 4}.get(name, 1), options.size(5000, 60)
            drawn = [solver(model, None, even(steps), Noise(n, SEEDS * options.seed + seed)) for seed in range(SEEDS)]
            state = {key: torch.cat([each[key] for each in drawn]) for key in model.process}
            rows.append([kind, name, steps, *(percent(*each) for each in departures(model, state))])
    header = ["position process", "solver", "steps", "positions, %", "orientations, %", "weight of 0.3, points"]
    return Table(f"Shapes, {BUDGET} evaluations", header, rows)


def shapes(schedule: Schedule, seed: int) -> Shapes:
    """Two, of unit variance a coordinate over the scale, turned at random."""
    rng, space = torch.Generator().manual_seed(seed), SO3(RESIDUES)
    pos, rot = (torch.randn(2, RESIDUES, 3, generator=rng, dtype=DOUBLE) for _ in range(2))
    pos = pos - pos.mean(1, keepdim=True)
    pos = pos * (3 * (RESIDUES - 1) / pos.square().sum((1, 2), keepdim=True)).sqrt()
    process = Joint(pos=Diffusion(ZeroCentroid(RESIDUES), schedule), rot=Diffusion(space, ORIENTATIONS[ADVISED[-1]]))
    return Shapes(process, WEIGHTS, {"pos": pos, "rot": space.exp(torch.zeros_like(rot), 2 * rot)}, {"pos": WIDTHS, "rot": SWINGS})


def departures(model: Shapes, state: State) -> list[tuple[float, float]]:
    """Errors and sampling errors of the variances of positions and orientations over both shapes, and of the first one's weight."""
    which, found = model.which(state), []
    for name, process in model.process.items():
        gap = process.space.log(model.means[name][which], state[name]).square().sum((1, 2))
        each = [process.space.dim * w**2 if name == "pos" else RESIDUES * swing_squared(w) for w in model.widths[name]]
        ratio = gap / torch.tensor(each, dtype=DOUBLE)[which]
        found.append((float(ratio.mean()) - 1, float(ratio.std()) / math.sqrt(len(ratio))))
    share = float((which == 0).double().mean())
    return [*found, (share - WEIGHTS[0], math.sqrt(WEIGHTS[0] * WEIGHTS[1] / len(which)))]


def mixture_figures(table: Table) -> list[Figure]:
    """Of the ancestral solver."""
    figures = []
    for column, what, unit in ((3, "variance of positions", "%"), (4, "variance of orientations", "%"), (5, "weight", "points")):
        cells = [[float(x) for x in row[column].split(" ± ")] for row in table.rows if row[1] == "ancestral"]
        value, error = max(cells, key=lambda cell: abs(cell[0]))
        what, note = f"{what} of two shapes, ancestral, {BUDGET} steps", f"largest over {', '.join(MIXED)}."
        figures.append(Figure(what, abs(value), unit, error, 2.0, 0.5, False, "exact law", note))
    return figures


def large_table(options: Options) -> Table:
    """Weights of a closed and an open shape of two domains, whatever their pose, as the exact reverse process draws them.

    Along it the share of a shape given the state keeps its mean, so that weights are those of the prior's draws: no solver is run.
    """
    rng, rows, n = torch.Generator().manual_seed(options.seed), [], options.size(400, 20)
    domains = _ball(rng), _ball(rng)
    turns = rotation_matrix(SO3().uniform(Streams(options.seed, range(options.size(20_000, 500))))).flatten(1)
    x = ZeroCentroid(LARGE).project(Noise(n, options.seed).normal(LARGE, 3, dtype=DOUBLE))
    for kind, schedule in (POSITIONS | {"OU, the article's Sigmoid": Sigmoid.paper()}).items():
        alpha, sigma = (float(level(torch.ones(1, dtype=DOUBLE))) for level in (schedule.alpha, schedule.sigma))
        logs, signals = [], []
        for apart in (17.0, 27.0):
            shape = torch.cat([domains[0], domains[1] + torch.tensor([apart, 0.0, 0.0])]) / SCALE
            shape = shape - shape.mean(0)
            pull = alpha / sigma**2 * math.sqrt(alpha**2 + sigma**2) * torch.einsum("bni,nj->bij", x, shape).flatten(1)
            signals.append((alpha / sigma) ** 2 * float(shape.square().sum()))
            logs.append(torch.logsumexp(pull @ turns.T, 1) - 0.5 * signals[-1])
        share = torch.softmax(torch.stack(logs), 0)[0]
        told = f"{float(share.mean()):.4f} ± {float(share.std()) / math.sqrt(n):.4f}"
        rows.append([kind, f"{number(signals[0])}, {number(signals[1])}", told])
    return Table(f"A shape of {LARGE} residues, closed or open", ["position process", "signal of each", "closed, for 0.5"], rows)


def _ball(rng: torch.Generator) -> Tensor:
    """Half of the residues, evenly in a ball of 18 Angstrom."""
    way = torch.randn(LARGE // 2, 3, generator=rng, dtype=DOUBLE)
    return 18 * torch.rand(LARGE // 2, 1, generator=rng, dtype=DOUBLE) ** (1 / 3) * way / way.norm(dim=1, keepdim=True)


if __name__ == "__main__":
    command_line(__doc__, "frames", measure, "none")
