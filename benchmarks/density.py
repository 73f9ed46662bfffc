"""Flow densities: against closed forms, and the exact trace against the discrete map on the shipped model."""

from __future__ import annotations

import copy
import math
import time

import torch
from common import Figure, Findings, Options, Table, command_line
from torch import Tensor

from dig_core.diffusion import Diffusion, Euclidean, Geometric, Joint, LogSNR, Torus
from dig_core.energy import AnalyticScore, GaussianMixture, WrappedMixture
from dig_core.random import Streams
from dig_core.sampling.density import flow_log_prob
from dig_core.sampling.flow import flow_times
from dig_core.types import State

DOUBLE = torch.float64


def measure(options: Options) -> Findings:
    """Both comparisons."""
    laws = closed_forms(options)
    trace, table = trace_against_map(options)
    worst = max(row[-1] for row in laws.rows)
    figures = [
        Figure(
            "flow density against closed forms, relative", worst, "", None, 1e-6, None, False, "exact densities of the same flow",
            "largest |q / q_exact - 1| over laws, kinds and structures.",
        ),
        trace,
    ]  # fmt: skip
    notes = [
        "Closed forms include what the flow leaves in by stopping at its first time, and for the normal law the mismatch of the prior.",
        "The shipped network is run in float64: rounding in its float32 and bfloat16 products would be all that is seen.",
    ]
    return Findings(figures, [laws, table], notes)


def closed_forms(options: Options) -> Table:
    """A correlated normal law, a mixture in the plane and a mixture on a torus, by both kinds."""
    normal = GaussianMixture([1.0], [[0.5, -0.3, 0.1]], [[[0.5, 0.2, 0.0], [0.2, 0.3, 0.1], [0.0, 0.1, 0.8]]])
    mixture = GaussianMixture([0.4, 0.6], [[-1.0, 0.2], [1.2, -0.3]], [[0.3, 0.5], [0.4, 0.2]])
    wrapped = WrappedMixture([0.3, 0.7], [[-1.5, 2.8], [1.0, 0.3]], [[0.2, 0.3], [0.4, 0.25]])
    plane, circle = Diffusion(Euclidean(2), LogSNR(6, -32)), Diffusion(Torus(2), Geometric(0.1, 7.0))
    cases = [
        (
            "normal law, 3 dimensions",
            AnalyticScore(Joint(x=Diffusion(Euclidean(3), LogSNR())), {"x": normal}),
            normal_flow_log_prob,
            200,
        ),
        ("mixture, plane", AnalyticScore(Joint(x=plane), {"x": mixture}), noised_log_prob, 400),
        ("wrapped mixture, torus", AnalyticScore(Joint(x=circle), {"x": wrapped}), noised_log_prob, 200),
    ]
    rows = []
    for name, model, exact, steps in cases:
        state = model.sample(options.size(32, 4), torch.Generator().manual_seed(options.seed))
        grid = torch.linspace(0, 1, options.size(steps, 20) + 1, dtype=DOUBLE)
        for kind in ("trace", "map"):
            found = flow_log_prob(model, None, state, grid, kind=kind).value
            rows.append([name, kind, len(grid) - 1, float(torch.expm1(found - exact(model, state, grid)).abs().max())])
    return Table("Closed forms", ["law", "kind", "steps", "largest relative error"], rows)


def normal_flow_log_prob(model: AnalyticScore, state: State, grid: Tensor) -> Tensor:
    """The flow of a normal law is linear, so what it makes of its normal prior is known."""
    law, process = model.laws["x"], model.process["x"]
    (alpha_1, sigma_1), (alpha, sigma) = (
        tuple(float(level) for level in process.levels(t)) for t in (torch.ones(1, dtype=DOUBLE), flow_times(grid)[:1])
    )
    values, axes = torch.linalg.eigh(law.covariances[0])
    gain = ((alpha**2 * values + sigma**2) / (alpha_1**2 * values + sigma_1**2)).sqrt() / alpha
    mean = law.means[0] @ axes * (1 - gain * alpha_1)
    width = gain * math.sqrt(alpha_1**2 + sigma_1**2)
    return torch.distributions.Normal(mean, width).log_prob(state["x"] @ axes).sum(1)


def noised_log_prob(model: AnalyticScore, state: State, grid: Tensor) -> Tensor:
    """The noised law at the flow's first time, scaled back; its schedule ends where the law is the prior."""
    last = flow_times(grid)[:1]
    alpha = model.process["x"].levels(last)[0]
    return model.log_prob({"x": alpha * state["x"]}, last) + model.process["x"].space.dim * alpha.log().squeeze()


def trace_against_map(options: Options) -> tuple[Figure, Table]:
    """Both densities of the shipped model's own samples, on finer and finer grids."""
    dig = options.load()
    model = copy.deepcopy(dig.model).double()
    n, grids = options.size(4, 1), (20, 40, 80, 160)[: options.size(4, 1)]
    state = dig.proposal().draw(n, Streams(options.seed, range(n))).state
    rows = []
    for steps in grids:
        grid, values, seconds = dig.grid(steps), [], []
        for kind in ("trace", "map"):
            began = time.process_time()
            values.append(flow_log_prob(model, dig.descriptor, state, grid, kind=kind).value)
            seconds.append((time.process_time() - began) / n)
        gap = (values[0] - values[1]).abs()
        rows.append([steps, float(gap.max()), float((gap / values[1].abs()).max()), *(round(x, 2) for x in seconds)])
    header = [
        "steps",
        "largest gap in log q",
        "relative to log q",
        "trace, CPU-s a structure",
        "map, CPU-s a structure",
    ]
    note = f"largest gap of {n} structures drawn from the model, {rows[-1][0]} steps of RK4; {rows[-1][2]:.1e} relative to log q."
    figure = Figure(
        "trace and map densities agree, shipped model", rows[-1][1], "nat", None, 1e-5, None, False, "each other", note
    )
    return figure, Table(f"Trace against map, {model.process.dim} dimensions", header, rows)


if __name__ == "__main__":
    command_line(__doc__, "density", measure)
