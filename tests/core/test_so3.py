"""Rotations: vectors and matrices, Brownian motion as IGSO(3), wrapped normal reverse kernels, exact paths, flows and scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dig_core.diffusion import SO3, Diffusion, Euclidean, Geometric, Joint, Karras, Lattice, LogSNR, igso3
from dig_core.diffusion.kernels import Heat, Normal
from dig_core.diffusion.so3 import rotation_matrix, rotation_vector
from dig_core.energy import AnalyticScore
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.random import Streams
from dig_core.sampling.density import flow_log_prob
from dig_core.sampling.guidance import Guided, Property, PropertyGuidance
from dig_core.sampling.interpolate import interpolate
from dig_core.sampling.solvers import SOLVERS
from dig_core.score import EnergyScore
from dig_core.testing import (
    HeatMixture,
    LawEnergy,
    Sabotaged,
    check_proposal,
    check_streams,
    example_law,
    example_model,
    toy,
)
from dig_core.training.losses import Frames, blend, fisher_information
from dig_core.types import Geometry

DOUBLE = torch.float64
SPACE = SO3()
PROCESS = Diffusion(SPACE, Karras(0.03, 2.5))
MODEL = example_model(turn=PROCESS)
SIGMAS = [1e-3, 0.03, 0.3, 0.9, 1.0, 1.1, 2.0, 10.0]


def vectors(n: int, seed: int = 0, length: float | None = None) -> torch.Tensor:
    """Rotation vectors of all angles up to pi, or of one length."""
    rng = torch.Generator().manual_seed(seed)
    axis = torch.randn(n, 3, generator=rng, dtype=DOUBLE)
    angle = math.pi * torch.rand(n, 1, generator=rng, dtype=DOUBLE) if length is None else length
    return axis / axis.norm(dim=1, keepdim=True) * angle


def full(value: float, like: torch.Tensor) -> torch.Tensor:
    return torch.full_like(like, value)


def quadrature(angles: int = 100, poles: int = 30, longest: float = math.pi) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotation vectors and weights that integrate over the uniform law: axis on the sphere, angle with density (1 - cos a) / pi."""
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(angles))
    angle = 0.5 * longest * (nodes + 1)
    along = 0.5 * longest * weights * (1 - torch.cos(angle)) / math.pi
    height, share = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(poles))
    turn = 2 * math.pi * torch.arange(2 * poles, dtype=DOUBLE) / (2 * poles)
    ring = (1 - height**2).sqrt()[:, None] * torch.stack([turn.cos(), turn.sin()])[:, None]
    axis = torch.stack([*ring, height[:, None].expand(-1, 2 * poles)], dim=-1).reshape(-1, 3)
    around = (0.5 * share[:, None].expand(-1, 2 * poles) / (2 * poles)).reshape(-1)
    return (angle[:, None, None] * axis).reshape(-1, 3), (along[:, None] * around).reshape(-1)


def z_score(values: torch.Tensor, wanted) -> float:
    return float(((values.mean(0) - wanted) / (values.std(0) / math.sqrt(len(values))).clamp_min(1e-12)).abs().max())


def even(steps: int) -> torch.Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=DOUBLE)


# Rotations -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0.0, 1e-9, 1e-3, 0.19, 0.5, 2.0, math.pi - 1e-9, math.pi])
def test_vectors_and_matrices_are_one_rotation(length):
    x = vectors(50, length=length)
    # The matrix of v -> x cross v, column by column.
    generator = torch.linalg.cross(x[:, None], torch.eye(3, dtype=DOUBLE)[None]).transpose(1, 2)
    matrix = rotation_matrix(x)
    torch.testing.assert_close(matrix, torch.linalg.matrix_exp(generator), atol=1e-13, rtol=0)
    torch.testing.assert_close(rotation_matrix(rotation_vector(matrix)), matrix, atol=1e-13, rtol=0)
    if length < 3:
        torch.testing.assert_close(rotation_vector(matrix), x, atol=1e-14, rtol=1e-12)


def test_tangents_turn_further_about_axes_fixed_in_space():
    x, v = vectors(50), vectors(50, 1)
    torch.testing.assert_close(rotation_matrix(SPACE.exp(x, v)), rotation_matrix(v) @ rotation_matrix(x), atol=1e-13, rtol=0)
    y = SPACE.exp(x, v)
    torch.testing.assert_close(SPACE.transport(x, y, v), v, atol=1e-12, rtol=0)
    whole = rotation_matrix(vectors(1, 2))
    turned = rotation_vector(whole @ rotation_matrix(x))
    torch.testing.assert_close(SPACE.log(turned, rotation_vector(whole @ rotation_matrix(y))), v @ whole[0].T, atol=1e-12, rtol=0)


@pytest.mark.parametrize("length", [0.0, 1e-4, 0.3, 0.5, 2.5])
def test_maps_have_derivatives_everywhere(length):
    """By central differences, twice; at the identity too."""
    v = vectors(3, 3, length).requires_grad_()
    x = vectors(3, 4, 0.4)
    assert torch.autograd.gradcheck(lambda v: SPACE.exp(x, v), (v,), atol=1e-6)
    assert torch.autograd.gradgradcheck(lambda v: SPACE.exp(x, v), (v,), atol=1e-5)
    assert torch.autograd.gradcheck(lambda v: SPACE.log(v, x), (v,), atol=1e-6)


def test_rate_is_the_velocity_seen_from_the_start():
    u, v, x, h = vectors(20), vectors(20, 1), vectors(20, 2, 0.5), 1e-6
    u = 0.8 * u
    ahead, behind = (SPACE.log(x, SPACE.exp(SPACE.exp(x, u), s * h * v)) for s in (1, -1))
    torch.testing.assert_close(SPACE.rate(u, v), (ahead - behind) / (2 * h), atol=1e-7, rtol=1e-7)


# Brownian motion -----------------------------------------------------------------------------------------------------------


def test_both_sums_of_the_heat_kernel_agree():
    square = torch.linspace(0, math.pi, 200, dtype=DOUBLE) ** 2
    for variance in (0.7, 0.85, 1.0, 1.2):
        turns, waves = (f(square, full(variance, square)) for f in (igso3._by_turns, igso3._by_waves))
        torch.testing.assert_close(turns.log, waves.log, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(turns.slope, waves.slope, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_heat_kernel_is_a_density_whose_characters_fade(sigma):
    """E[chi_l] = (2 l + 1) exp(-l (l + 1) sigma^2 / 2): what makes steps add up, and variance per axis."""
    x, weight = quadrature(160, 2, min(math.pi, 12 * sigma))
    density = SPACE.log_heat(x, full(sigma**2, x)).exp() * weight
    angle = x.norm(dim=1)
    for degree in range(4):
        character = 1 + 2 * sum(torch.cos(m * angle) for m in range(1, degree + 1))
        wanted = (2 * degree + 1) * math.exp(-0.5 * degree * (degree + 1) * sigma**2)
        assert abs(float((density * character).sum()) - wanted) < 1e-10


@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_is_the_gradient_along_the_space(sigma):
    x = torch.cat([vectors(20) * min(1.0, 5 * sigma), vectors(4, 1, 0.0), vectors(4, 2, min(math.pi, 4 * sigma))])
    mean = vectors(28, 3)
    y, still = SPACE.exp(mean, x), torch.zeros(28, 3, dtype=DOUBLE, requires_grad=True)
    kernel = Heat(SPACE, mean, full(sigma**2, x))
    slope = torch.autograd.grad(kernel.log_prob(SPACE.exp(y, still)).sum(), still)[0]
    found = SPACE.heat_score(SPACE.log(mean, y), full(sigma**2, x))
    # At half a turn the angle has a kink, which autograd sees from one side.
    torch.testing.assert_close(sigma * found, sigma * slope, atol=1e-9, rtol=1e-7)
    h, way = 1e-5 * min(1.0, sigma), torch.tensor([[0.0, 0.6, 0.8]], dtype=DOUBLE)
    ahead, behind = (kernel.log_prob(SPACE.exp(y, s * h * way)) for s in (1, -1))
    torch.testing.assert_close(sigma * (found * way).sum(1), sigma * (ahead - behind) / (2 * h), atol=1e-4, rtol=1e-4)


def test_small_variances_are_normal_laws():
    v = vectors(100) * 1e-3
    for law in (SPACE.log_heat, SPACE.log_normal):
        wanted = torch.distributions.Normal(0.0, 1e-3).log_prob(v).sum(1) + math.log(8 * math.pi**2)
        torch.testing.assert_close(law(v, full(1e-6, v)), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(SPACE.heat_score(v, full(1e-6, v)), -1e6 * v, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(SPACE.heat_step(v, full(1e-3, v)), 1e-3 * v, atol=0, rtol=1e-6)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_nothing_is_lost_at_the_identity_and_at_half_turns(sigma):
    x = torch.cat([torch.zeros(1, 3, dtype=DOUBLE), vectors(3, 1, math.pi), vectors(3, 2, math.pi - 1e-12), vectors(3, 3, 1e-12)])
    variance = full(sigma**2, x)
    for found in (SPACE.log_heat(x, variance), SPACE.log_normal(x, variance), SPACE.heat_score(x, variance)):
        assert found.isfinite().all()
    assert SPACE.heat_step(torch.cat([x, 3 * x]), full(sigma, torch.cat([x, x]))).isfinite().all()


@pytest.mark.parametrize("sigma", SIGMAS)
def test_normal_noise_is_carried_to_equal_probabilities(sigma):
    """The share of Brownian motion within the angle, and beyond it, is that of the normal vector within its radius."""
    radius = torch.tensor([0.01, 0.3, 1.0, 1.6, 2.5, 4.0, 5.5], dtype=DOUBLE)
    angle = igso3.angle_step(radius, full(sigma, radius))
    assert (angle.diff() > 0).all() and (angle < math.pi).all()
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(120))
    half, variance = full(1.5, radius), torch.tensor(sigma**2, dtype=DOUBLE)
    for low, high, share in (
        (torch.zeros_like(angle), angle, torch.special.gammainc(half, radius**2 / 2)),
        (angle, full(min(math.pi, 14 * sigma), angle), torch.special.gammaincc(half, radius**2 / 2)),
    ):
        at = 0.5 * (low + high)[:, None] + 0.5 * (high - low)[:, None] * nodes
        density = SPACE.log_heat(at[..., None] * torch.tensor([1.0, 0.0, 0.0]), variance.expand(*at.shape, 3)).exp()
        mass = (0.5 * (high - low)[:, None] * weights * density * (1 - torch.cos(at)) / math.pi).sum(1)
        torch.testing.assert_close(mass, share, atol=0, rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.2, 0.8, 1.3])
def test_draws_and_two_steps_in_a_row_have_the_characters_of_the_law(sigma):
    n, start = 3000, vectors(1).expand(3000, 3)
    once = Heat(SPACE, start, full(sigma**2, start)).sample(Streams(0, range(n)))
    twice = Heat(SPACE, once, full(0.25, start)).sample(Streams(1, range(n)))
    for y, variance in ((once, sigma**2), (twice, sigma**2 + 0.25)):
        angle = SPACE.log(start, y).norm(dim=1)
        for degree in (1, 2):
            character = 1 + 2 * sum(torch.cos(m * angle) for m in range(1, degree + 1))
            assert z_score(character, (2 * degree + 1) * math.exp(-0.5 * degree * (degree + 1) * variance)) < 4
    assert z_score(SPACE.log(start, once), 0.0) < 4


def test_uniform_law_is_even():
    matrices = rotation_matrix(SPACE.uniform(Streams(0, range(3000)))).flatten(1)
    assert z_score(matrices, 0.0) < 4
    assert z_score(matrices**2, 1 / 3) < 4


# Reverse kernels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [[0.02, 0.03, 0.01], [0.2, 0.3, 0.1], [1.0, 0.5, 2.0], [4.0, 4.0, 9.0]])
def test_wrapped_normal_density_integrates_to_one(variance):
    variance = torch.tensor(variance, dtype=DOUBLE)
    x, weight = quadrature(120, 40, min(math.pi, 9 * float(variance.max().sqrt())))
    mass = (SPACE.log_normal(x, variance.expand_as(x)).exp() * weight).sum()
    assert abs(float(mass) - 1) < 1e-5


@pytest.mark.parametrize("variance", [[0.2, 0.3, 0.1], [1.0, 0.5, 2.0], [6.0, 4.0, 3.0]])
def test_wrapped_normal_draws_have_their_density(variance):
    """A histogram of the angle and of the axis's octant against quadrature, chi squared."""
    n, variance = 4000, torch.tensor(variance, dtype=DOUBLE)
    mean = vectors(1).expand(n, 3)
    gap = SPACE.log(mean, Normal(SPACE, mean, variance.expand(n, 3)).sample(Streams(3, range(n))))
    x, weight = quadrature(120, 40)
    density = SPACE.log_normal(x, variance.expand_as(x)).exp() * weight

    def bins(v):
        square = v**2 / v.square().sum(1, keepdim=True)
        return (5 * v.norm(dim=1) / math.pi).long().clamp(max=4) * 3 + square.argmax(1)

    wanted = torch.zeros(15, dtype=DOUBLE).index_add(0, bins(x), density)
    counts = torch.bincount(bins(gap), minlength=15)
    filled = wanted * n > 5
    chi = ((counts - n * wanted) ** 2 / (n * wanted).clamp_min(1e-9))[filled].sum()
    # The edges of bins on the sphere are not resolved by the quadrature beyond a part in a hundred.
    assert float(chi) < int(filled.sum()) + 4 * math.sqrt(2 * int(filled.sum())) + 6


# Models of orientations ----------------------------------------------------------------------------------------------------


def mean_matrix(law: HeatMixture) -> torch.Tensor:
    """E[R] of a mixture: each component's mean shrinks as the first character, exp(-variance)."""
    shrunk = torch.exp(-law.variances)[:, None, None] * rotation_matrix(law.means)
    return (law.weights[:, None, None] * shrunk).sum(0).flatten()


def test_law_integrates_to_one_and_draws_its_moments():
    law = MODEL.laws["turn"]
    x, weight = quadrature(80, 40)
    assert abs(float((law.log_prob(x).exp() * weight).sum()) - 1) < 1e-6
    assert z_score(rotation_matrix(law.sample(4000, torch.Generator().manual_seed(0))).flatten(1), mean_matrix(law)) < 4


@pytest.mark.parametrize(("solver", "steps"), [("ancestral", 25), ("sde", 80), ("rk4", 20), ("heun", 40), ("dpm++", 60)])
def test_solvers_reproduce_a_mixture(solver, steps):
    found = SOLVERS[solver](MODEL, None, even(steps), Streams(2, range(500)))["turn"]
    assert z_score(rotation_matrix(found).flatten(1), mean_matrix(MODEL.laws["turn"])) < 4


@pytest.mark.slow
def test_runge_kutta_keeps_its_order_on_rotations():
    latent = PROCESS.prior(torch.zeros(8, 3, dtype=DOUBLE)).sample(Streams(0, range(8)))

    def error(name: str, steps: int) -> float:
        coarse, fine = (SOLVERS[name](MODEL, None, even(k), Streams(0, range(8)), start={"turn": latent})["turn"] for k in (steps, 160))
        return float(SPACE.log(fine, coarse).norm())

    assert error("rk4", 20) / error("rk4", 40) > 0.6 * 2**4
    assert error("heun", 20) / error("heun", 40) > 0.7 * 2**2


@pytest.mark.slow
def test_multistep_solver_is_of_second_order_on_rotations():
    """Far from the data, where a clean state is a long turn away and turns do not commute, as near."""
    latent = vectors(8, 5)

    def end(steps: int) -> torch.Tensor:
        grid = torch.cat([torch.zeros(1, dtype=DOUBLE), torch.linspace(0.02, 1, steps + 1, dtype=DOUBLE)])
        return SOLVERS["dpm++"](MODEL, None, grid, Streams(0, range(8)), start={"turn": latent})["turn"]

    fine, coarse, half = end(240), end(30), end(60)
    assert float(SPACE.log(fine, coarse).norm()) > 0.8 * 2**2 * float(SPACE.log(fine, half).norm())


@pytest.mark.parametrize("strength", [0.0, 0.15])
def test_path_weights_have_the_normalising_constant_as_their_mean(strength):
    dig, energy = toy(Sabotaged(MODEL, strength) if strength else MODEL), LawEnergy(MODEL)
    structures = dig.coordinates.decode(MODEL.sample(600, torch.Generator().manual_seed(0)), dig.descriptor)
    check_proposal(dig.proposal(steps=10), energy, 0.0, n=1500, structures=structures)


def test_place_and_turn_together():
    """A molecule over a cell: one path through both, exact; samples by their streams."""
    parts = {"place": Diffusion(Lattice([[2.8, 0.0], [1.4, 2.4]]), Karras(0.05, 2.5)), "height": Diffusion(Euclidean(1), LogSNR())}
    model = example_model(**parts, turn=PROCESS)
    dig = toy(Sabotaged(model, 0.1))
    check_proposal(dig.proposal(steps=10), LawEnergy(model), 0.0, n=800)
    check_streams(lambda rng: SOLVERS["ancestral"](model, None, even(4), rng))


def test_flow_density_is_that_of_the_law():
    state = MODEL.sample(6, torch.Generator().manual_seed(1))
    found = [flow_log_prob(MODEL, None, state, even(k)).value for k in (15, 30, 60)]
    assert (found[1] - found[2]).abs().max() < 0.15 * (found[0] - found[2]).abs().max() + 1e-9
    last = torch.full((1,), 1e-3, dtype=DOUBLE)
    assert (found[2] - MODEL.log_prob(state, last)).abs().max() < 0.02
    with pytest.raises(UnsupportedError, match="trace"):
        flow_log_prob(MODEL, None, state, even(4), kind="map")


def test_interpolation_keeps_its_ends():
    ends = MODEL.sample(2, torch.Generator().manual_seed(2))["turn"]
    a, b = ({"turn": ends[k : k + 1]} for k in (0, 1))
    path = interpolate(MODEL, None, a, b, 5, grid=even(25))["turn"]
    assert SPACE.log(path[[0, 4]], ends).norm(dim=1).max() < 1e-6


class Lean(torch.nn.Module):
    """A potential that is minus a known log-density: what an energy score must differentiate along the space."""

    def forward(self, state, t, descriptor=None):
        return -MODEL.log_prob(state, t)


def test_energy_score_is_the_gradient_along_the_space():
    state, t = MODEL.sample(10, torch.Generator().manual_seed(3)), torch.tensor([0.4], dtype=DOUBLE)
    model = EnergyScore(Lean(), MODEL.process)
    torch.testing.assert_close(model(state, t, None)["turn"], MODEL(state, t)["turn"], atol=1e-9, rtol=1e-8)


def test_guidance_pulls_along_the_space():
    """A condition on the height of a body's axis: the pull is the torque of its log-likelihood."""
    at, t = MODEL.sample(5, torch.Generator().manual_seed(4)), torch.tensor([0.3], dtype=DOUBLE)
    height = Property(lambda state, d: rotation_matrix(state["turn"])[:, 2, 2], lambda value, var: -2 * (value - 1) ** 2, of="state")
    guidance = PropertyGuidance(height)
    pull = Guided(MODEL, guidance)(at, t, None)["turn"] - MODEL(at, t)["turn"]
    assert pull.isfinite().all() and pull.abs().max() > 0.01
    h = 1e-5
    for axis in torch.eye(3, dtype=DOUBLE):
        values = []
        for sign in (1, -1):
            x = {"turn": SPACE.exp(at["turn"], sign * h * axis.expand(5, 3))}
            clean = SPACE.exp(x["turn"], PROCESS.levels(t)[1] ** 2 * MODEL(x, t)["turn"])
            values.append(-2 * (rotation_matrix(clean)[:, 2, 2] - 1) ** 2)
        torch.testing.assert_close(pull @ axis, (values[0] - values[1]) / (2 * h), atol=1e-6, rtol=1e-6)


def test_forces_carried_along_have_the_score_as_their_mean():
    """Target score matching on a group: E[transported clean score given x_t] = score at x_t; so blends keep the mean of the noise."""
    n, t = 30_000, torch.tensor([0.35], dtype=DOUBLE)
    clean = MODEL.sample(n, torch.Generator().manual_seed(5))
    force = {"turn": MODEL.laws["turn"].score(clean["turn"])}
    noised = MODEL.process.noise(clean, t, torch.Generator().manual_seed(6))
    mean = MODEL.moments(noised.state, t).noise["turn"]
    blended = blend(MODEL, Frames(clean, force), noised, t, fisher_information(force))["turn"]
    # Conditional means show as correlations with functions of the noised point: here its matrix.
    seen = rotation_matrix(noised.state["turn"]).flatten(1)
    for target in (noised.noise["turn"], blended):
        for axis in range(3):
            assert z_score((target[:, axis] - mean[:, axis])[:, None] * seen, 0.0) < 4
    assert (blended - mean).square().mean() < (noised.noise["turn"] - mean).square().mean()


def test_reduced_force_is_the_torque_of_the_score():
    dig, h = toy(MODEL), 1e-5
    state = MODEL.sample(4, torch.Generator().manual_seed(7))
    geometry = dig.coordinates.decode(state, dig.descriptor)
    found = dig.reduced_force(geometry, t=0.3)[:, 0]
    # log q(x) of the noised law over the vector's own coordinates, whose Jacobian is part of the density.
    for axis in torch.eye(3, dtype=DOUBLE):
        values = []
        for sign in (1, -1):
            moved = Geometry(geometry.positions + sign * h * axis)
            x, log_det = dig.coordinates.encode(moved, dig.descriptor)
            values.append(MODEL.log_prob(x, torch.tensor([0.3], dtype=DOUBLE)) + log_det)
        torch.testing.assert_close(found @ axis, (values[0] - values[1]) / (2 * h), atol=1e-6, rtol=1e-6)


# Many bodies ---------------------------------------------------------------------------------------------------------------

MANY = SO3(3)
LEVELS = torch.tensor([0.02, 0.3, 0.99, 1.01, 2.5], dtype=DOUBLE)[:, None, None]
"""Standard deviations, one a sample, on either side of where sums change."""


def bodies(seed: int) -> torch.Tensor:
    return vectors(15, seed).reshape(5, 3, 3)


@pytest.mark.parametrize("call", ["exp", "log", "rate", "transport", "heat_score", "heat_step"])
def test_bodies_move_one_by_one(call):
    """Points and tangents of several are those of each; the batch may be broadcast from one level of noise a sample."""
    x, y, v = bodies(0), bodies(1), 0.9 * bodies(2)
    many, one = {
        "exp": ((x, v), (x, v)), "log": ((x, y), (x, y)), "rate": ((v, x), (v, x)), "transport": ((x, y, v), (x, y, v)),
        "heat_score": ((v, LEVELS**2), (v, (LEVELS**2).expand_as(v))), "heat_step": ((v, LEVELS), (v, LEVELS.expand_as(v))),
    }[call]  # fmt: skip
    found = getattr(MANY, call)(*many)
    wanted = torch.stack([getattr(SPACE, call)(*(a[:, k] for a in one)) for k in range(3)], 1)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("law", ["log_heat", "log_normal"])
def test_densities_of_bodies_multiply(law):
    gap, variance = bodies(3), (LEVELS**2).expand(5, 3, 3)
    wanted = sum(getattr(SPACE, law)(gap[:, k], variance[:, k]) for k in range(3))
    torch.testing.assert_close(getattr(MANY, law)(gap, variance), wanted)
    assert MANY.log_volume == 3 * SPACE.log_volume and MANY.dim == 9


def test_uniform_bodies_are_even_and_independent():
    matrices = rotation_matrix(MANY.uniform(Streams(0, range(2000)))).flatten(2)
    assert z_score(matrices.flatten(1), 0.0) < 4.5
    assert z_score((matrices[:, 0, :, None] * matrices[:, 1, None]).flatten(1), 0.0) < 4.5


@pytest.mark.parametrize(("solver", "steps"), [("ancestral", 12), ("rk4", 8)])
def test_solvers_turn_bodies_together(solver, steps):
    """Which component a sample is from shows in all of its bodies: means of products of their matrices."""
    space = SO3(2)
    model = example_model(turn=Diffusion(space, Karras(0.03, 2.5)))
    law = model.laws["turn"]
    shrunk = torch.exp(-law.variances)[:, None, None] * rotation_matrix(law.means.reshape(2, 2, 3)).flatten(2)
    found = SOLVERS[solver](model, None, even(steps), Streams(3, range(300)))["turn"]
    seen = rotation_matrix(found).flatten(2)
    assert z_score(seen.flatten(1), (law.weights[:, None, None] * shrunk).sum(0).flatten()) < 4.5
    wanted = (law.weights[:, None, None] * shrunk[:, 0, :, None] * shrunk[:, 1, None]).sum(0).flatten()
    assert z_score((seen[:, 0, :, None] * seen[:, 1, None]).flatten(1), wanted) < 4.5


def test_flow_density_of_bodies_is_that_of_the_law():
    model = example_model(turn=Diffusion(SO3(2), Karras(0.03, 3.5)))
    state = model.sample(2, torch.Generator().manual_seed(1))
    found = flow_log_prob(model, None, state, even(12)).value
    assert (found - model.log_prob(state, torch.full((1,), 1e-3, dtype=DOUBLE))).abs().max() < 0.05


def test_what_does_not_fit_is_refused():
    with pytest.raises(IncompatibleError, match="alpha = 1"):
        Diffusion(SO3(), LogSNR())
    with pytest.raises(IncompatibleError):
        AnalyticScore(Joint(x=Diffusion(SO3(), Geometric())), {"x": example_law(Euclidean(2))})
