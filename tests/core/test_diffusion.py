"""Spaces, schedules, kernels, processes, exact scores, and that their checks bite."""

from __future__ import annotations

import math

import pytest
import torch

from dig_core.diffusion import Diffusion, Euclidean, Geometric, Joint, Linear, LogSNR, Torus, ZeroCentroid
from dig_core.diffusion.kernels import Normal, Uniform
from dig_core.energy import AnalyticScore, DoubleWell, GaussianMixture, MuellerBrown, Springs, WrappedMixture
from dig_core.errors import IncompatibleError
from dig_core.random import Streams
from dig_core.testing import (
    ALL_PROCESSES,
    ALL_SCHEDULES,
    ALL_SPACES,
    Sabotaged,
    check_energy,
    check_fokker_planck,
    check_process,
    check_schedule,
    check_score_model,
    check_space,
    check_streams,
    example_law,
    example_model,
)
from dig_core.testing.diffusion import random_state
from dig_core.types import Geometry

DOUBLE = torch.float64


def name_of(part) -> str:
    if isinstance(part, Diffusion):
        return f"{name_of(part.space)}-{name_of(part.schedule)}"
    return type(part).__name__ + "".join(f"_{value:g}" for value in part.config.values() if not isinstance(value, list))


def times(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=DOUBLE)


@pytest.mark.parametrize("space", ALL_SPACES, ids=name_of)
def test_space(space):
    check_space(space)


@pytest.mark.parametrize("schedule", ALL_SCHEDULES, ids=name_of)
def test_schedule(schedule):
    check_schedule(schedule)


@pytest.mark.parametrize("process", ALL_PROCESSES, ids=name_of)
def test_process(process):
    check_process(process)


@pytest.mark.parametrize("process", ALL_PROCESSES, ids=name_of)
def test_along_a_grid_a_process_is_the_same(process):
    """At times on it, asked twice, off it, and many at once."""
    grid = torch.linspace(0, 1, 5, dtype=DOUBLE)
    tabulated = Joint(x=process).tabulated(grid)["x"]
    for s, t in [(grid[1:2], grid[3:4])] * 2 + [(times(0.3), times(0.7)), (grid[:3], grid[1:4])]:
        for call, given in (("levels", (t,)), ("scale", (t,)), ("between", (s, t))):
            for found, plain in zip(getattr(tabulated, call)(*given), getattr(process, call)(*given), strict=True):
                assert torch.equal(found, plain)


def test_the_end_of_noise_is_judged_in_total_and_by_the_data():
    """A twentieth of a nat a dimension is far too much of 600; points that each end a little off may be of a law that does not."""
    check_process(Diffusion(Euclidean(200), LogSNR(4.5, -4.0)))
    with pytest.raises(AssertionError, match="in total"):
        check_process(Diffusion(ZeroCentroid(200), LogSNR(6.0, -2.2)))
    whole, rng = Diffusion(Euclidean(60), LogSNR(6.0, -4.0)), torch.Generator().manual_seed(0)
    wide = torch.randn(100, 1, generator=rng, dtype=DOUBLE) * torch.full((60,), 2.2, dtype=DOUBLE)
    check_process(whole)
    with pytest.raises(AssertionError, match="in total"):
        check_process(whole, data=wide)


@pytest.mark.parametrize("process", ALL_PROCESSES, ids=name_of)
def test_exact_score_solves_the_fokker_planck_equation(process):
    model = example_model(x=process)
    check_fokker_planck(model, random_state(model.process, 12), torch.linspace(0.02, 1, 12))


@pytest.mark.parametrize("process", ALL_PROCESSES, ids=name_of)
def test_exact_score_model(process):
    model = example_model(x=process)
    check_score_model(model, random_state(model.process, 6))
    check_score_model(Sabotaged(model), random_state(model.process, 6))


@pytest.mark.parametrize("process", ALL_PROCESSES, ids=name_of)
def test_exact_score_is_the_gradient_of_the_log_density(process):
    model = example_model(x=process)
    state, t = random_state(model.process, 8), torch.linspace(0.02, 1, 8, dtype=DOUBLE)
    still = model.process.still(state)
    gradient = torch.autograd.grad(model.log_prob(model.process.exp(state, still), t).sum(), still["x"])[0]
    wanted = process.space.project(gradient)
    torch.testing.assert_close(model(state, t)["x"], wanted, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("process", ALL_PROCESSES, ids=name_of)
def test_forward_draws_have_the_density_of_the_noised_law(process):
    """E over q_t of f(x_t) two ways: noised draws against the analytic law's own curvature identity E[score^2] = -E[curvature]."""
    model, t = example_model(x=process), times(0.4)
    clean = model.sample(4000, torch.Generator().manual_seed(1))
    noised = model.process.noise(clean, t, torch.Generator().manual_seed(2)).state
    alpha, sigma = (level.reshape(1, 1) for level in process.levels(t))
    flat = noised["x"].flatten(1) @ process.space.basis().flatten(1).T
    law = model.laws["x"]
    gap = law.score(flat, alpha, sigma) ** 2 + law.curvature(flat, alpha, sigma)
    z = gap.mean(0) / (gap.std(0) / math.sqrt(len(gap)))
    assert z.abs().max() < 4


@pytest.mark.parametrize("schedule", [LogSNR(), Geometric(0.02, 10.0)], ids=name_of)
@pytest.mark.parametrize("time", [0.4, 0.7, 0.95])
def test_moments_are_those_of_the_noise_given_the_noised_point(schedule, time):
    """Against the definition: clean points weighed by how well they explain x_t."""
    law = example_law(Euclidean(2))
    model = AnalyticScore(Joint(x=Diffusion(Euclidean(2), schedule)), {"x": law})
    t = times(time)
    alpha, sigma = (float(level) for level in model.process["x"].levels(t))
    clean = law.sample(200_000, torch.Generator().manual_seed(0))
    point = alpha * torch.tensor([[-0.6, 0.3]], dtype=DOUBLE)
    noise = (point - alpha * clean) / sigma
    weight = torch.softmax(-0.5 * (noise**2).sum(1), dim=0)[:, None]
    mean = (weight * noise).sum(0)
    moments = model.moments({"x": point}, t)
    torch.testing.assert_close(moments.noise["x"][0], mean, atol=0.02, rtol=0)
    torch.testing.assert_close(moments.spread["x"][0], (weight * (noise - mean) ** 2).sum(0), atol=0.02, rtol=0)


@pytest.mark.parametrize("time", [0.3, 0.7, 0.95])
def test_moments_on_the_torus_count_whole_turns(time):
    """The noise that reverse kernels undo includes the turns it made, of which x_t knows nothing."""
    law = example_law(Torus(1))
    model, t = AnalyticScore(Joint(a=Diffusion(Torus(1), Geometric())), {"a": law}), times(time)
    clean = torch.linspace(-math.pi, math.pi, 2001, dtype=DOUBLE)[:-1]
    turns = 2 * math.pi * torch.arange(-5, 6, dtype=DOUBLE)
    sigma, point = float(model.process["a"].levels(t)[1]), 1.0
    noise = (point - clean[:, None] - turns) / sigma
    weight = torch.softmax((law.log_prob(clean[:, None])[:, None] - 0.5 * noise**2).flatten(), dim=0).reshape(
        noise.shape
    )
    mean = (weight * noise).sum()
    moments = model.moments({"a": torch.tensor([[point]], dtype=DOUBLE)}, t)
    torch.testing.assert_close(moments.noise["a"].squeeze(), mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(moments.spread["a"].squeeze(), (weight * (noise - mean) ** 2).sum(), atol=1e-6, rtol=0)
    drawn = model.process.noise(
        {"a": law.sample(100_000, torch.Generator().manual_seed(0))}, t, torch.Generator().manual_seed(1)
    )
    found = model.moments(drawn.state, t)
    left = (drawn.drawn["a"] - found.noise["a"]) ** 2 - found.spread["a"]
    assert abs(float(left.mean() / (left.std() / math.sqrt(len(left))))) < 4


@pytest.mark.parametrize("schedule", ALL_SCHEDULES, ids=name_of)
def test_reverse_kernel_is_bayes_rule_for_normal_data(schedule):
    """With exact moments, one step of any length has the exact mean and variance."""
    process, variance = Diffusion(Euclidean(1), schedule), 0.3
    model = AnalyticScore(Joint(x=process), {"x": GaussianMixture([1.0], [[0.7]], [[variance]])})
    x, s, t = torch.tensor([[0.4], [-1.5]], dtype=DOUBLE), times(0.2), times(0.9)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = process.levels(s), process.levels(t)
    ratio = alpha_t / alpha_s
    at_s = alpha_s**2 * variance + sigma_s**2
    step = sigma_t**2 - (ratio * sigma_s) ** 2
    gain = ratio * at_s / (ratio**2 * at_s + step)
    kernel = process.reverse(x, t, s, model({"x": x}, t)["x"], model.moments({"x": x}, t).spread["x"])
    torch.testing.assert_close(kernel.mean, 0.7 * alpha_s + gain * (x - 0.7 * alpha_t), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(kernel.variance, (at_s - gain * ratio * at_s).expand(2, 1), atol=1e-9, rtol=1e-9)


def test_silent_network_is_exact_for_unit_normal_data_and_for_the_uniform_law():
    for schedule in ALL_SCHEDULES:
        process = Diffusion(Euclidean(2), schedule)
        exact = AnalyticScore(Joint(x=process), {"x": GaussianMixture([1.0], [[0.0, 0.0]], [[1.0, 1.0]])})
        x, t = torch.randn(4, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)), times(0.4)
        scale, moments = process.scale(t), exact.moments({"x": x}, t)
        torch.testing.assert_close(scale.skip * x, moments.noise["x"])
        torch.testing.assert_close(scale.spread.expand(4, 2), moments.spread["x"])


def test_torus_refuses_schedules_that_pull_to_zero():
    with pytest.raises(IncompatibleError, match="alpha = 1"):
        Diffusion(Torus(2), Linear())
    with pytest.raises(IncompatibleError):
        Joint()


def test_normal_kernel_has_the_density_of_the_zero_centroid_subspace():
    space = ZeroCentroid(3)
    mean = random_state(Joint(x=Diffusion(space, LogSNR())), 5)["x"]
    kernel = Normal(space, mean, torch.tensor(0.3, dtype=DOUBLE))
    y = kernel.sample(Streams(0, range(5)))
    assert y.mean(1).abs().max() < 1e-12
    flat = (y - mean).flatten(1) @ space.basis().flatten(1).T
    wanted = torch.distributions.Normal(0.0, math.sqrt(0.3)).log_prob(flat).sum(1)
    torch.testing.assert_close(kernel.log_prob(y), wanted)


@pytest.mark.parametrize("width", [0.05, 0.8, 3.0, 6.0])
def test_wrapped_normal_is_a_density_and_knows_its_score(width):
    grid = torch.linspace(-math.pi, math.pi, 4001, dtype=DOUBLE)[:-1, None].requires_grad_()
    kernel = Normal(Torus(1), torch.full((4000, 1), 2.9, dtype=DOUBLE), torch.tensor(width**2, dtype=DOUBLE))
    log_prob = kernel.log_prob(grid)
    assert abs(float(log_prob.detach().exp().mean()) - 1) < 1e-9
    gradient = torch.autograd.grad(log_prob.sum(), grid)[0]
    score = Torus(1).heat_score(grid - 2.9, torch.tensor(width**2, dtype=DOUBLE))
    torch.testing.assert_close(score, gradient, atol=1e-9, rtol=1e-8)


def test_laws_integrate_to_one():
    law, grid = example_law(Torus(1)), torch.linspace(-math.pi, math.pi, 2001, dtype=DOUBLE)[:-1, None]
    for sigma in (0.0, 0.5, 3.5):
        assert abs(float(law.log_prob(grid, 1.0, sigma).exp().mean()) - 1) < 1e-9
    line = torch.linspace(-12, 12, 6001, dtype=DOUBLE)[:, None]
    mixture = GaussianMixture([0.2, 0.8], [[-1.0], [2.0]], [[0.1], [0.5]])
    for alpha, sigma in ((1.0, 0.0), (0.6, 0.8)):
        assert abs(float(mixture.log_prob(line, alpha, sigma).exp().sum()) * 24 / 6000 - 1) < 1e-9


def test_laws_draw_from_their_density():
    """Curvature identity at clean data, as for the noised ones."""
    for law in (example_law(Euclidean(3)), example_law(Torus(2))):
        x = law.sample(5000, torch.Generator().manual_seed(3))
        gap = law.score(x) ** 2 + law.curvature(x)
        assert (gap.mean(0) / (gap.std(0) / math.sqrt(len(gap)))).abs().max() < 4


def test_priors_and_kernels_draw_by_streams():
    for process in ALL_PROCESSES:
        joint = Joint(x=process)
        check_streams(lambda rng, joint=joint: joint.prior(joint.empty(len(rng), DOUBLE)).sample(rng))
    uniform = Uniform(Torus(1), torch.zeros(4000, 1, dtype=DOUBLE)).sample(Streams(0, range(4000)))
    assert abs(float(uniform.mean())) < 4 * math.pi / math.sqrt(3 * 4000)


@pytest.mark.parametrize(
    ("energy", "atoms", "translation"),
    [
        (DoubleWell(), 2, True),
        (Springs([(0, 1), (1, 2)], [1.0, 1.2], [50.0, 20.0]), 3, True),
        (MuellerBrown(), 1, False),
    ],
    ids=["DoubleWell", "Springs", "MuellerBrown"],
)
def test_energies(energy, atoms, translation):
    rng = torch.Generator().manual_seed(0)
    check_energy(energy, Geometry(torch.randn(5, atoms, 3, generator=rng, dtype=DOUBLE)), translation=translation)


def test_mueller_brown_has_its_known_minima():
    minima = torch.tensor([[-0.558, 1.442], [0.623, 0.028], [-0.050, 0.467]], dtype=DOUBLE).requires_grad_()
    u = MuellerBrown(kt=1.0).plane(minima)
    torch.testing.assert_close(u.detach(), torch.tensor([-146.70, -108.17, -80.77], dtype=DOUBLE), atol=0.01, rtol=0)
    assert torch.autograd.grad(u.sum(), minima)[0].abs().max() < 1


def test_double_well_is_symmetric_about_its_middle():
    well = DoubleWell(height=3.0, near=1.5, far=3.0)
    r = torch.tensor([1.5, 3.0, 2.25], dtype=DOUBLE)
    torch.testing.assert_close(well.profile(r), torch.tensor([0.0, 0.0, 3.0], dtype=DOUBLE))


# The checks must see what they are for.


class TiltedSpace(ZeroCentroid):
    def project(self, v):
        return v - 0.9 * v.mean(dim=-2, keepdim=True)


class LeakySchedule(Linear):
    def beta(self, t):
        return 1.01 * super().beta(t)


class ForgetfulProcess(Diffusion):
    def forward(self, x, s, t):
        kernel = super().forward(x, s, t)
        return Normal(self.space, kernel.mean, 0.9 * kernel.variance)


class Offset(AnalyticScore):
    """A score that is a little off: by a constant, by its batch, or by writing to its input."""

    def __init__(self, fault: str):
        process = Diffusion(Euclidean(2), LogSNR())
        super().__init__(Joint(x=process), {"x": example_law(process.space)})
        self.fault = fault

    def __call__(self, state, t, descriptor=None):
        score = super().__call__(state, t)["x"]
        if self.fault == "constant":
            return {"x": score + 0.01 * t[:, None]}
        if self.fault == "batch":
            return {"x": score + 0.01 * state["x"].mean()}
        if self.fault == "writes":
            state["x"] += 1e-3
        return {"x": score}


def test_checks_bite():
    with pytest.raises(AssertionError, match="project"):
        check_space(TiltedSpace(3))
    with pytest.raises(AssertionError, match="drift"):
        check_schedule(LeakySchedule())
    with pytest.raises(AssertionError, match="variance"):
        check_process(ForgetfulProcess(Euclidean(2), LogSNR()))
    with pytest.raises(AssertionError, match="prior"):
        check_process(Diffusion(Torus(2), Geometric(high=0.5)))
    exact = random_state(Offset("").process, 6)
    with pytest.raises(AssertionError, match="Fokker-Planck"):
        check_fokker_planck(Offset("constant"), exact, torch.linspace(0.3, 1, 6))
    with pytest.raises(AssertionError, match="batch|alone|moments"):
        check_score_model(Offset("batch"), exact)
    with pytest.raises(AssertionError, match="wrote"):
        check_score_model(Offset("writes"), exact)
    with pytest.raises(AssertionError, match="alone|batch"):
        check_streams(lambda rng: rng.normal(2) + len(rng))
    with pytest.raises(AssertionError, match="differences"):
        check_energy(Wrong(), Geometry(torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)))


class Wrong(DoubleWell):
    def __call__(self, geometry):
        return super().__call__(geometry) + 0.1 * geometry.positions.detach()[:, 0, 0] ** 2


def test_mixtures_refuse_shapes_that_do_not_fit():
    with pytest.raises(IncompatibleError):
        GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0]]])
    with pytest.raises(IncompatibleError):
        WrappedMixture([0.5, 0.5], [[0.0]], [[1.0]])
    with pytest.raises(IncompatibleError):
        AnalyticScore(Joint(x=Diffusion(Euclidean(2), LogSNR())), {"x": GaussianMixture([1.0], [[0.0]], [[1.0]])})
