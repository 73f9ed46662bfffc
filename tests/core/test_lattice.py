"""R^d modulo a lattice: home cell, shortest images, wrapped normal laws by images and by waves, paths and flows over skew cells."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dig_core.diffusion import Diffusion, Geometric, Joint, Karras, Lattice, LogSNR, Torus
from dig_core.diffusion.kernels import Heat, Normal
from dig_core.energy import AnalyticScore
from dig_core.errors import IncompatibleError
from dig_core.nn import ScalarMLP
from dig_core.random import Streams
from dig_core.sampling.density import flow_log_prob
from dig_core.sampling.solvers import SOLVERS
from dig_core.score import EnergyScore
from dig_core.testing import (
    HeatMixture,
    LawEnergy,
    Sabotaged,
    check_proposal,
    check_space,
    example_law,
    example_model,
    toy,
)

DOUBLE = torch.float64
HEXAGONAL = [[2.77, 0.0], [1.385, 2.3989]]
SKEW = [[2.8, 0.0], [7.3, 1.9]]
CELLS = {
    "chain": [[3.1]], "hexagonal": HEXAGONAL, "skew": SKEW, "long": [[2.0, 0.0], [0.3, 18.0]],
    "turned": [[0.0, 3.0], [-4.0, 0.5]], "triclinic": [[2.0, 0.0, 0.0], [0.9, 2.5, 0.0], [0.3, -0.8, 4.0]],
}  # fmt: skip
cells = pytest.mark.parametrize("vectors", CELLS.values(), ids=CELLS)


def points(space: Lattice, n: int, seed: int = 0, scale: float = 20.0) -> torch.Tensor:
    return scale * torch.randn(n, space.dim, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def mesh(space: Lattice, n: int) -> torch.Tensor:
    """Points evenly over the cell: sums over them of waves the cell holds are exact."""
    axes = [torch.arange(n, dtype=DOUBLE) / n - 0.5] * space.dim
    return torch.cartesian_prod(*axes).reshape(-1, space.dim) @ space.vectors


def shifts(space: Lattice, reach: int) -> torch.Tensor:
    counts = torch.tensor(list(itertools.product(range(-reach, reach + 1), repeat=space.dim)), dtype=DOUBLE)
    return counts @ space.vectors


@cells
def test_space(vectors):
    check_space(Lattice(vectors))


@cells
def test_points_are_kept_in_the_home_cell(vectors):
    space = Lattice(vectors)
    x = points(space, 500)
    home = space.exp(torch.zeros_like(x), x)
    fractions = home @ torch.linalg.inv(space.vectors)
    assert (fractions >= -0.5 - 1e-9).all() and (fractions < 0.5 + 1e-9).all()
    whole = (x - home) @ torch.linalg.inv(space.vectors)
    torch.testing.assert_close(whole, whole.round(), atol=1e-9, rtol=0)
    torch.testing.assert_close(space.fractions(home), fractions)
    torch.testing.assert_close(space.exp(home, torch.zeros_like(home)), home)


@cells
def test_log_is_the_shortest_of_all_images(vectors):
    space = Lattice(vectors)
    x, y = points(space, 100, 1, 2.0), points(space, 100, 2, 2.0)
    images = (space.wrap(y) - space.wrap(x))[:, None] + shifts(space, 9 if space.dim < 3 else 4)
    torch.testing.assert_close(space.log(x, y).norm(dim=1), images.norm(dim=-1).amin(1), atol=1e-10, rtol=0)


@cells
@pytest.mark.parametrize("sigma", [0.1, 0.6, 1.1, 2.5, 10.0])
def test_wrapped_normal_is_a_density_of_unit_volume(vectors, sigma):
    """Quadrature over the cell, with equal variances and with one of each axis's own."""
    space = Lattice(vectors)
    grid = mesh(space, ({1: 400, 2: 200, 3: 40} if sigma < 0.5 else {1: 100, 2: 40, 3: 12})[space.dim])
    for stretch in (0.0, 0.4):
        variance = (sigma**2 * (1 + stretch * torch.arange(space.dim, dtype=DOUBLE))).expand(1, -1)
        gap = space.log(torch.full_like(grid, 0.3), grid)
        log_prob = torch.cat([space.log_normal(part, variance.expand_as(part)) for part in gap.split(2000)])
        # What the quadrature leaves out is exp(-2 pi^2 sigma^2 / spacing^2).
        assert abs(float(log_prob.exp().mean()) - 1) < 1e-7


@pytest.mark.parametrize("vectors", [HEXAGONAL, SKEW], ids=["hexagonal", "skew"])
@pytest.mark.parametrize("sigma", [1e-3, 0.3, 0.9, 1.0, 2.0, 5.0])
def test_images_and_waves_agree_with_plain_sums(vectors, sigma):
    """Against every image within many standard deviations."""
    space = Lattice(vectors)
    gap = space.log(torch.zeros(16, 2, dtype=DOUBLE), points(space, 16))
    if sigma < 0.1:
        gap = gap * sigma
    images = shifts(space, 120)
    for ratio in (1.0, 1.7):
        variance = torch.tensor([[sigma**2, sigma**2 * ratio]], dtype=DOUBLE)
        terms = -0.5 * ((gap[:, None] + images) ** 2 / variance).sum(-1)
        wanted = torch.logsumexp(terms, dim=1) - 0.5 * torch.log(2 * math.pi * variance).sum() + space.log_volume
        torch.testing.assert_close(space.log_normal(gap, variance.expand_as(gap)), wanted, atol=1e-12, rtol=1e-12)
        share = torch.softmax(terms, dim=1)
        slope = -(share[..., None] * (gap[:, None] + images)).sum(1) / variance
        found = space.heat_score(gap, variance)
        torch.testing.assert_close(found * sigma, slope * sigma, atol=1e-12, rtol=1e-10)


@cells
def test_score_is_the_gradient_of_the_log_density(vectors):
    space = Lattice(vectors)
    x = space.wrap(points(space, 40)).requires_grad_()
    for sigma in (0.2, 1.0, 3.0) if space.dim < 3 else (0.2, 1.0):
        variance = torch.full((40, space.dim), sigma**2, dtype=DOUBLE)
        kernel = Heat(space, torch.full_like(x, 0.2).detach(), variance)
        slope = torch.autograd.grad(kernel.log_prob(x).sum(), x)[0]
        torch.testing.assert_close(space.heat_score(space.log(kernel.mean, x), variance), slope, atol=1e-9, rtol=1e-8)
    assert not space.heat_score(torch.zeros(1, space.dim, dtype=DOUBLE), torch.full((1, space.dim), 1e-6, dtype=DOUBLE)).any()


def test_angles_are_the_lattice_of_whole_turns():
    torus, lattice = Torus(2), Lattice((2 * math.pi * torch.eye(2, dtype=DOUBLE)).tolist())
    x, y = (points(lattice, 30, seed, 3.0) for seed in (1, 2))
    gap = torus.log(x, y)
    torch.testing.assert_close(lattice.log(x, y), gap)
    for sigma in (0.1, 1.0, 4.0):
        variance = torch.full_like(gap, sigma**2)
        torch.testing.assert_close(lattice.log_normal(gap, variance), torus.log_normal(gap, variance), atol=1e-11, rtol=1e-11)
        torch.testing.assert_close(lattice.heat_score(gap, variance), torus.heat_score(gap, variance), atol=1e-11, rtol=1e-9)
    assert lattice.log_volume == pytest.approx(torus.log_volume) and lattice.spectral_gap == pytest.approx(torus.spectral_gap)


def test_kernels_draw_from_their_density():
    """Waves of the lattice, whose means are known: exp(-k . V k / 2), of each kernel and of two in a row."""
    space, n = Lattice(SKEW), 4000
    waves = 2 * math.pi * torch.linalg.inv(space.vectors).T
    mean = torch.tensor([[0.4, -0.2]], dtype=DOUBLE).expand(n, -1)
    variance = torch.tensor([[0.3, 0.5]], dtype=DOUBLE)
    once = Normal(space, mean, variance).sample(Streams(0, range(n)))
    twice = Heat(space, once, torch.full((1, 2), 0.1, dtype=DOUBLE)).sample(Streams(1, range(n)))
    for y, spread in ((once, variance), (twice, variance + 0.1)):
        phase = (y - mean) @ waves.T
        wanted = torch.exp(-0.5 * (waves**2 * spread).sum(1))
        z = (torch.cos(phase).mean(0) - wanted) / (torch.cos(phase).std(0) / math.sqrt(n))
        assert z.abs().max() < 4
        assert (torch.sin(phase).mean(0) / (torch.sin(phase).std(0) / math.sqrt(n))).abs().max() < 4


def test_uniform_law_fills_the_cell_evenly():
    space = Lattice(SKEW)
    x = space.uniform(Streams(0, range(4000)))
    phase = x @ (2 * math.pi * torch.linalg.inv(space.vectors))
    assert (torch.cat([torch.cos(phase), torch.sin(phase)], dim=1).mean(0) * math.sqrt(2 * 4000)).abs().max() < 4


# Models over a cell --------------------------------------------------------------------------------------------------------

PROCESS = Diffusion(Lattice(SKEW), Karras(0.05, 3.0))
MODEL = example_model(place=PROCESS)


def even(steps: int) -> torch.Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=DOUBLE)


@pytest.mark.parametrize(("solver", "steps"), [("ancestral", 30), ("sde", 100), ("rk4", 25), ("heun", 40), ("dpm++", 60)])
def test_solvers_reproduce_a_mixture(solver, steps):
    """Waves of the samples against those of the law itself, which are sums of exponentials."""
    law, n, space = MODEL.laws["place"], 600, PROCESS.space
    found = SOLVERS[solver](MODEL, None, even(steps), Streams(2, range(n)))["place"]
    waves = 2 * math.pi * torch.linalg.inv(space.vectors).T
    phase, centre = found @ waves.T, law.means @ waves.T
    decay = torch.exp(-0.5 * law.variances[:, None] * (waves**2).sum(1))
    for part in (torch.cos, torch.sin):
        wanted = (law.weights[:, None] * decay * part(centre)).sum(0)
        z = (part(phase).mean(0) - wanted) / (part(phase).std(0) / math.sqrt(n))
        assert z.abs().max() < 4


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_path_weights_have_the_normalising_constant_as_their_mean(strength):
    dig = toy(Sabotaged(MODEL, strength) if strength else MODEL)
    energy = LawEnergy(MODEL)
    structures = dig.coordinates.decode(MODEL.sample(600, torch.Generator().manual_seed(0)), dig.descriptor)
    check_proposal(dig.proposal(steps=12), energy, 0.0, n=1500, structures=structures)


def test_flow_density_integrates_to_one_over_the_cell():
    model = example_model(place=Diffusion(Lattice([[3.1]]), Karras(0.05, 2.0)))
    grid = mesh(model.process["place"].space, 60)
    for kind, steps, tolerance in (("map", 10, 1e-6), ("trace", 30, 1e-4)):
        density = flow_log_prob(model, None, {"place": grid}, even(steps), kind=kind).value
        assert abs(float(density.exp().mean()) - 1) < tolerance


def test_silent_network_is_exact_for_the_uniform_law():
    t, x = torch.tensor([0.3], dtype=DOUBLE), points(PROCESS.space, 5)
    scale = PROCESS.scale(t)
    assert not (scale.skip * x).any() and (scale.spread == 1).all()
    silent = EnergyScore(ScalarMLP({"place": 2}, [], width=8, blocks=1).double(), Joint(place=PROCESS))
    assert not silent({"place": x}, t, None)["place"].any()


def test_what_does_not_fit_is_refused():
    for vectors in ([[1.0, 0.0]], [[1.0, 2.0], [2.0, 4.0]], torch.eye(4), [[math.nan, 0.0], [0.0, 1.0]]):
        with pytest.raises(IncompatibleError, match="lattice vectors"):
            Lattice(vectors)
    with pytest.raises(IncompatibleError, match="alpha = 1"):
        Diffusion(Lattice(SKEW), LogSNR())
    with pytest.raises(IncompatibleError, match="closed space"):
        HeatMixture(Lattice(SKEW), [1.0], [[0.0]], [0.1])
    with pytest.raises(IncompatibleError):
        AnalyticScore(Joint(x=Diffusion(Lattice(SKEW), Geometric())), {"x": example_law(Lattice([[1.0]]))})
