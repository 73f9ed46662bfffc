"""Property guidance against posteriors that are known, as drawn and as weighed; what must not matter to the network of crystals."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from common import Figure, Findings, Options, Table, command_line
from torch import Tensor

from dig_core.diffusion import Diffusion, Euclidean, Joint, LogSNR
from dig_core.dig import DiG
from dig_core.energy import AnalyticScore, GaussianMixture
from dig_core.montecarlo.analysis import effective_sample_size, normalised_weights
from dig_core.nn import CrystalGraphormer
from dig_core.random import Streams
from dig_core.sampling.guidance import Property, PropertyGuidance
from dig_core.sampling.likelihoods import Range, Value
from dig_core.system.crystal import crystal
from dig_core.testing import example_model, toy
from dig_core.types import Geometry, State
from dig_plugins import models

DOUBLE = torch.float64
SEEDS, STEPS, FIGURED = 3, (25, 50, 100, 200), 100
EXACT, OTHERS = 40_000, 10_000
SCHEDULE = LogSNR(8, -8)
TIMES, PATH = (0.05, 0.25, 0.5, 0.75, 1.0), 20
BASES = {"sheared": ((1, 0, 0), (2, 1, 0), (0, 1, 1)), "doubled": ((2, 0, 0), (0, 1, 0), (0, 0, 1)),
         "doubled and sheared": ((1, 1, 0), (-1, 1, 0), (0, 3, 1))}  # fmt: skip


def measure(options: Options) -> Findings:
    """Both halves."""
    analytic, posteriors = analytic_test(options)
    dig = crystal_model()
    rng = Streams(options.seed, range(options.size(16, 2)))
    crystals = dig.coordinates.decode(dig.process.prior(dig.process.empty(len(rng), DOUBLE)).sample(rng), dig.descriptor)
    same, symmetries = symmetry_test(dig, dig.coordinates.pose(crystals, rng), options.seed)
    forces, bases = basis_test(dig, crystals)
    sizes = [options.size(n, 200) for n in (EXACT, OTHERS)]
    exact, others = (f"{100 * math.sqrt(2 / SEEDS / n):.2f}" for n in sizes)
    notes = [
        "Exact cases: normal data and linear properties, where the guided score is the posterior's. Of mixtures guidance is an "
        "approximation on any number of steps; their posteriors are by quadrature.",
        "Raw: paths as drawn. Reweighted: by the returned log-weights, which are against the unguided model's paths on the same steps and "
        "keep what error those have. Errors of means are relative to the posterior's standard deviation, the others to what they are "
        "errors of: the largest over coordinates, with its sampling error.",
        f"{SEEDS} seeds of {sizes[0]} paths for exact cases, {sizes[1]} for mixtures: sampling errors of {exact} and {others} % of a "
        "variance, where the aim is 1 and the target 3 %; half of that of a standard deviation; over sqrt(ESS) where reweighted.",
        "Crystals: the shipped model carbon, eight atoms, in float64; random atoms in random cells, turned at random; "
        "over paths of noise that goes with the move.",
        "Another basis is another state, on which the noise is uneven in another way, and a crystal of other composition is another system "
        "with a law of its own: neither score nor density has to stay. What can be asked is that forces on atoms do, if features are "
        "told the same unevenness and, in larger cells, see nothing of the number of atoms.",
    ]
    return Findings([*analytic, *same, forces], [posteriors, symmetries, bases], notes)


class Case(NamedTuple):
    """A law, what is wanted of it, and mean and covariance of its posterior, all components in a row."""

    name: str
    model: AnalyticScore
    wanted: list[Property]
    mean: Tensor
    covariance: Tensor
    size: int


def analytic_test(options: Options) -> tuple[list[Figure], Table]:
    """Every case at every number of steps."""
    rows, errors, sizes = [], {}, []
    for case in cases():
        for steps in STEPS:
            drawn = [draw(case, steps, options, seed) for seed in range(SEEDS)]
            x, log_weight = (torch.cat(part) for part in zip(*drawn, strict=True))
            found, exact = [departures(x, torch.full_like(log_weight, 1 / len(x)), case)], case.size == EXACT
            size = [effective_sample_size(part) for _, part in drawn]
            if case.wanted:
                found.append(departures(x, torch.from_numpy(normalised_weights(log_weight)), case))
                sizes += [min(size)] * (exact and steps == FIGURED)
                for way, (mean, _, variance) in zip(("raw", "reweighted"), found, strict=True):
                    errors.setdefault((exact, way, steps), []).extend([mean, variance])
            told = [f"{100 * value:+.2f} ± {100 * error:.2f}" for each in found for value, error in each]
            rows.append([case.name, steps, *told, *([f"{min(size):.3f} to {max(size):.3f}"] if case.wanted else [""] * 4)])

    def figure(exact: bool, way: str, steps: int) -> Figure:
        value, error = max(errors[exact, way, steps], key=lambda each: abs(each[0]))
        what = f"guidance of {'exact cases' if exact else 'mixtures'}, {way}, {steps} steps"
        targets, note = (3.0, 1.0) if exact else (None, None), "largest error of a mean or variance over cases and coordinates."
        return Figure(what, 100 * abs(value), "%", 100 * error, *targets, False, "closed form" if exact else "quadrature", note)

    figures = [*(figure(True, "raw", steps) for steps in STEPS), figure(True, "reweighted", FIGURED)]
    figures += [Figure(f"effective sample size of exact cases, {FIGURED} steps", min(sizes), note="smallest over cases and seeds.")]
    figures += [figure(False, way, FIGURED) for way in ("raw", "reweighted")]
    moments = [f"{way}: {name}, %" for way in ("raw", "reweighted") for name in ("mean", "standard deviation", "variance")]
    return figures, Table("Errors of posteriors", ["case", "steps", *moments, "ESS"], rows)


def cases() -> list[Case]:
    """Normal data with no, one and two properties, positions and cell together, and a mixture."""
    plane = Joint(x=Diffusion(Euclidean(2), SCHEDULE))
    both = Joint(pos=Diffusion(Euclidean(3), SCHEDULE), cell=Diffusion(Euclidean(2), SCHEDULE))
    first, second = ((1.0, 0.5), Value(1.2, math.sqrt(0.1))), ((0.2, 1.0), Value(-0.9, 0.5))
    x = {"x": GaussianMixture([1.0], [[0.3, -0.5]], [[[0.6, 0.3], [0.3, 0.5]]])}
    pos = GaussianMixture([1.0], [[0.4, -0.2, 0.1]], [[[0.5, 0.2, 0.0], [0.2, 0.4, 0.1], [0.0, 0.1, 0.7]]])
    crystals = {"pos": pos, "cell": GaussianMixture([1.0], [[-0.3, 0.5]], [[[0.8, -0.2], [-0.2, 0.4]]])}
    return [
        normal("normal data, unguided", plane, x),
        normal("normal data, one property", plane, x, first),
        normal("normal data, two properties", plane, x, first, second),
        normal("positions and cell, unguided", both, crystals),
        normal("positions and cell, one property of both", both, crystals, ((0.6, -0.3, 0.4, 0.8, 0.5), Value(1.5, 0.3))),
        mixture("mixture, a value", Value(-0.5, 0.2)),
        mixture("mixture, a range", Range(-1.0, -0.5, 0.1)),
    ]


def linear(way: tuple[float, ...], likelihood, name: str = "property") -> Property:
    """way . x."""
    return Property(lambda state, _: flat(state) @ torch.tensor(way, dtype=DOUBLE), likelihood, name, of="state")


def flat(state: State) -> Tensor:
    return torch.cat([x.flatten(1) for x in state.values()], 1)


def normal(name: str, process: Joint, laws: dict, *observed: tuple[tuple[float, ...], Value]) -> Case:
    """The law given every way . x + width noise = target is normal too."""
    mean = torch.cat([law.means[0] for law in laws.values()])
    covariance = torch.block_diag(*(law.covariances[0] for law in laws.values()))
    for numbers, wanted in observed:
        way = torch.tensor(numbers, dtype=DOUBLE)
        gain = covariance @ way / (way @ covariance @ way + wanted.width**2)
        mean, covariance = mean + gain * (wanted.target - way @ mean), covariance - torch.outer(gain, way @ covariance)
    properties = [linear(*each, name=str(k)) for k, each in enumerate(observed)]
    return Case(name, AnalyticScore(process, laws), properties, mean, covariance, EXACT)


def mixture(name: str, likelihood) -> Case:
    """Two normal laws in the plane, their posterior by quadrature."""
    model, wanted = example_model(x=Diffusion(Euclidean(2), SCHEDULE)), linear((1.0, 0.5), likelihood)
    line = torch.linspace(-5, 5, 601, dtype=DOUBLE)
    state = {"x": torch.cartesian_prod(line, line)}
    found = PropertyGuidance(wanted).likelihood(state, None, None).log_likelihood
    share = torch.softmax(model.log_prob(state) + found, 0)
    mean = share @ state["x"]
    gap = state["x"] - mean
    return Case(name, model, [wanted], mean, gap.T @ (share[:, None] * gap), OTHERS)


def draw(case: Case, steps: int, options: Options, seed: int) -> tuple[Tensor, Tensor]:
    """States of one seed and their log-weights, even of what is not guided."""
    n, dig = options.size(case.size, 200), toy(case.model)
    dig = dig.guided(PropertyGuidance(*case.wanted)) if case.wanted else dig
    samples = dig.proposal(steps=steps).draw(n, Noise(n, SEEDS * options.seed + seed))
    return flat(samples.state), torch.zeros(n, dtype=DOUBLE) if samples.log_weight is None else samples.log_weight


class Noise:
    """Normal numbers of one generator, since a stream for each sample would cost as much as the sampling; they go along with a move."""

    def __init__(self, n: int, seed: int, move: Move | None = None):
        self.n, self.move, self.generator = n, move, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.n

    def normal(self, *shape: int, dtype: torch.dtype) -> Tensor:
        drawn = torch.randn(self.n, *shape, generator=self.generator, dtype=dtype)
        return drawn if self.move is None else self.move.cell(drawn) if shape == (6,) else self.move.frac(drawn)


def departures(x: Tensor, weights: Tensor, case: Case) -> list[tuple[float, float]]:
    """Relative errors of mean, standard deviation and variance, in the coordinate where they are largest, and their sampling errors."""
    variance, mean = case.covariance.diagonal(), weights @ x
    shift, square = (mean - case.mean) / variance.sqrt(), (x - mean) ** 2 / variance
    ratio, weights = weights @ square, weights[:, None] ** 2
    shifting, changing = (weights * square).sum(0).sqrt(), (weights * (square - ratio) ** 2).sum(0).sqrt()
    found = [(shift, shifting), (ratio.sqrt() - 1, changing / (2 * ratio.sqrt())), (ratio - 1, changing)]
    return [(float(error[k]), float(width[k])) for error, width in found for k in [int(error.abs().argmax())]]


def crystal_model() -> DiG:
    """The shipped model for eight atoms, in float64."""
    dig = models.load("carbon")
    dig = dig.on(crystal([6] * 8, conditions=dig.descriptor.conditions))
    return dataclasses.replace(dig, model=copy.deepcopy(dig.model).double())


class Move(NamedTuple):
    """What leaves a crystal what it is: how its geometry changes, how components of tangents go along, the new order of its atoms."""

    name: str
    geometry: Callable[[Geometry], Geometry]
    frac: Callable[[Tensor], Tensor] = torch.clone
    cell: Callable[[Tensor], Tensor] = torch.clone
    order: list[int] | None = None


def moves(dig: DiG, seed: int) -> list[Move]:
    """Those that must not matter."""
    n, rng, coordinates = dig.descriptor.n_atoms, torch.Generator().manual_seed(seed), dig.coordinates
    part, order = torch.tensor([0.31, 0.17, -0.74], dtype=DOUBLE), torch.randperm(n, generator=rng)
    whole = torch.randint(-3, 4, (n, 3), generator=rng).double()
    axes = torch.tensor([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]], dtype=DOUBLE)

    def cell_turned(cell: Tensor) -> Tensor:
        tensor = axes @ coordinates.tensor(cell[:, 1:]) @ axes.T
        return torch.cat([cell[:, :1], coordinates.components(tensor)[:, 1:] / coordinates.shape], 1)

    def atoms(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda frac: change(frac.unflatten(1, (-1, 3))).flatten(1)

    reordered, turned = atoms(lambda x: x[:, order]), atoms(lambda x: x @ axes.T)
    return [
        Move("all atoms moved by a fraction of the lattice", lambda g: Geometry(g.positions + part @ g.cell[:, None], g.cell)),
        Move("each atom moved by whole lattice vectors", lambda g: Geometry(g.positions + whole @ g.cell, g.cell)),
        Move("atoms in another order", lambda g: Geometry(g.positions[:, order], g.cell), reordered, order=order.tolist()),
        Move("the whole turned", lambda g: coordinates.pose(g, Streams(seed + 1, range(len(g.positions))))),
        Move("lattice vectors in another order and sign", lambda g: Geometry(g.positions, axes @ g.cell), turned, cell_turned),
    ]


@torch.no_grad()
def symmetry_test(dig: DiG, before: Geometry, seed: int) -> tuple[list[Figure], Table]:
    """Scores at several times and log q of paths, before and after each move."""
    rows, (scores, log_q) = [], seen(dig, before, Move("nothing", lambda g: g), seed)
    for move in moves(dig, seed):
        found, other = seen(dig, move.geometry(before), move, seed)
        wanted = [{"frac": move.frac(score["frac"]), "cell": move.cell(score["cell"])} for score in scores]
        score = max(float((a[k] - b[k]).abs().max() / b[k].abs().max()) for a, b in zip(found, wanted, strict=True) for k in a)
        gap = (other - log_q).abs()
        rows.append([move.name, score, float(gap.max()), float((gap / log_q.abs()).max())])
    targets, note = (1e-5, 1e-6, False, "the same crystal before"), f"log q from {float(log_q.min()):.0f} to {float(log_q.max()):.0f}."
    scored = f"largest difference over the largest score, over {len(log_q)} crystals, times {', '.join(map(str, TIMES))} and moves."
    figures = [
        Figure("score of crystals under their symmetries, relative", max(row[1] for row in rows), "", None, *targets, scored),
        Figure(f"log q of paths of {PATH} steps, relative", max(row[3] for row in rows), "", None, *targets, note),
    ]
    return figures, Table("Symmetries", ["move", "score, relative", "path log q, nat", "path log q, relative"], rows)


def seen(dig: DiG, geometry: Geometry, move: Move, seed: int) -> tuple[list[State], Tensor]:
    """Scores at all times, and log q over paths of noise that went with the move."""
    if move.order:
        dig = dig.on(crystal(dig.descriptor.numbers[move.order], conditions=dig.descriptor.conditions))
    state, _ = dig.coordinates.encode(geometry, dig.descriptor)
    scores = [dig.model(state, torch.tensor([t], dtype=DOUBLE), dig.descriptor) for t in TIMES]
    return scores, dig.proposal(steps=PATH, paths=1).log_q(geometry, Noise(len(geometry.positions), seed, move))


@torch.no_grad()
def basis_test(dig: DiG, small: Geometry) -> tuple[Figure, Table]:
    """Forces on atoms in other bases of the lattice and in larger cells against those in ``small``, whose cells are symmetric."""
    rows, network, blind = [], dig.model.network, copy.deepcopy(dig.model.network)
    blind.given.weight[:, :2] = 0  # of the number of atoms, and of the noise in a cell of the usual size for it
    for name, vectors in BASES.items():
        count = round(float(torch.linalg.det(change := torch.tensor(vectors, dtype=DOUBLE))))
        # Whole first vectors lead to all copies of an atom in these.
        large = Geometry(torch.cat([small.positions + k * small.cell[:, :1] for k in range(count)], 1), change @ small.cell)
        system = crystal(dig.descriptor.numbers.repeat(count), conditions=dig.descriptor.conditions)
        by = network if count == 1 else blind
        found, wanted = felt(by, large, system, small), felt(by, small, dig.descriptor, small).repeat(1, count, 1)
        rows.append([name, system.n_atoms, float((found - wanted).abs().max() / wanted.abs().max())])
    what, note = "forces in other bases and larger cells, relative", "of features told the same unevenness of the noise."
    figure = Figure(what, max(row[2] for row in rows), "", None, 1e-5, 1e-6, False, "the given cell", note)
    return figure, Table("Other bases of the lattice", ["cell", "atoms", "forces, relative"], rows)


def felt(network: CrystalGraphormer, geometry: Geometry, system, told: Geometry) -> Tensor:
    """(B, N, 3) how atoms are pushed at the middle of the noise, in the frame of ``told``, whose cells' shape is what features see."""
    t = torch.tensor([0.5], dtype=DOUBLE)
    state, _ = network.coordinates.encode(geometry, system)
    # The pose in which the cell is symmetric is another one.
    turn = torch.linalg.solve(network.coordinates.decode(state, system).cell, geometry.cell)
    single, _ = network.coordinates.encode(Geometry(torch.zeros(len(turn), 1, 3, dtype=DOUBLE), told.cell), crystal([6]))
    shape = turn @ network.coordinates.tensor(single["cell"][:, 1:]) @ turn.transpose(1, 2)
    x, active = network._start(state, shape, t, system)
    noise, _ = network._read(*network._look(x, active, shape, state, system), shape, t, system)
    # The scale of the answer is that of the noise on fractions, which larger cells have less of.
    scale = network.process(system)["frac"].schedule.sigma(t) / (1 + (network.sharpness / network._noise(t, system)) ** 2).sqrt()
    return (scale * noise["frac"]).unflatten(1, (-1, 3)) @ turn


if __name__ == "__main__":
    command_line(__doc__, "guidance", measure, "carbon")
