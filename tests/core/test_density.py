"""Flow densities: closed forms, quadrature, agreement of the kinds, round trips, error bars."""

from __future__ import annotations

import math

import pytest
import torch

from dig_core.diffusion import Diffusion, Euclidean, Geometric, Joint, Linear, LogSNR, Sigmoid, Torus, ZeroCentroid
from dig_core.energy import AnalyticScore, GaussianMixture
from dig_core.errors import IncompatibleError
from dig_core.nn.mlp import ResidualMLP
from dig_core.random import Streams
from dig_core.sampling.density import flow_log_prob, flow_sample
from dig_core.sampling.flow import Flow, flow_times
from dig_core.sampling.solvers import SOLVERS
from dig_core.score import EnergyScore, NoiseScore
from dig_core.testing import Sabotaged, example_model, toy

DOUBLE = torch.float64
SCHEDULES = [LogSNR(), Linear(), Sigmoid.paper(), Geometric(0.02, 20.0)]
MODEL = example_model(
    x=Diffusion(Euclidean(2), LogSNR()), pos=Diffusion(ZeroCentroid(2), Linear()), a=Diffusion(Torus(1), Geometric())
)
SMALL = example_model(x=Diffusion(Euclidean(2), LogSNR()))
by_name = pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(s, id=type(s).__name__, marks=[pytest.mark.slow] * isinstance(s, Linear | Sigmoid))
        for s in SCHEDULES
    ],
)


def grid(steps: int) -> torch.Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=DOUBLE)


def draw(model, n: int, seed: int = 0):
    return model.sample(n, torch.Generator().manual_seed(seed))


def network(seed: int = 0) -> NoiseScore:
    """An MLP with random heads, so that it says something, in float32."""
    net = ResidualMLP({"x": 5, "a": 2}, ["a"], width=32, blocks=2, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    for weights in (net.leave, net.film):
        weights.data = 0.05 * torch.randn(weights.shape, generator=rng)
    return NoiseScore(net, Joint(x=Diffusion(Euclidean(5), LogSNR()), a=Diffusion(Torus(2), Geometric())))


def normal_flow_log_prob(model: AnalyticScore, x: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """The flow of a normal law is linear, so what it makes of its normal prior is known."""
    law, process, last = model.laws["x"], model.process["x"], flow_times(steps)[:1]
    (alpha_1, sigma_1), (alpha, sigma) = (
        tuple(float(level) for level in process.levels(t)) for t in (torch.ones(1, dtype=DOUBLE), last)
    )
    values, axes = torch.linalg.eigh(law.covariances[0])
    gain = ((alpha**2 * values + sigma**2) / (alpha_1**2 * values + sigma_1**2)).sqrt() / alpha
    mean = law.means[0] @ axes - gain * alpha_1 * (law.means[0] @ axes)
    width = gain * math.sqrt(alpha_1**2 + sigma_1**2)
    return torch.distributions.Normal(mean, width).log_prob(x @ axes).sum(1)


@pytest.mark.parametrize(
    ("schedule", "kind"),
    [*((schedule, "trace") for schedule in SCHEDULES), (SCHEDULES[0], "map")],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_normal_law_in_closed_form(schedule, kind):
    law = GaussianMixture([1.0], [[0.5, -0.3]], [[[0.5, 0.2], [0.2, 0.3]]])
    model = AnalyticScore(Joint(x=Diffusion(Euclidean(2), schedule)), {"x": law})
    x, steps = draw(model, 8), grid({"trace": 120, "map": 70}[kind])
    found = flow_log_prob(model, None, x, steps, kind=kind)
    wanted = normal_flow_log_prob(model, x["x"], steps)
    # The map is exact for what RK4 makes of the grid; the closed form is that of the flow itself.
    assert ((found.value - wanted) / wanted.abs().clamp_min(1)).abs().max() < {"trace": 1e-6, "map": 1e-5}[kind]
    assert found.kind == kind and found.value.dtype == DOUBLE and not found.stderr.any()


def test_kinds_agree_on_a_fine_grid():
    state = draw(SMALL, 6)
    trace, discrete = (flow_log_prob(SMALL, None, state, grid(100), kind=kind).value for kind in ("trace", "map"))
    assert (trace - discrete).abs().max() < 1e-5


@pytest.mark.parametrize("method", ["rk4", "heun"])
def test_trace_converges_with_the_order_of_the_method(method):
    state = draw(SMALL, 6)
    fine = flow_log_prob(SMALL, None, state, grid(120)).value
    errors = [(flow_log_prob(SMALL, None, state, grid(k), method=method).value - fine).abs().max() for k in (20, 40)]
    assert errors[0] / errors[1] > {"rk4": 9, "heun": 3}[method]


@by_name
def test_density_of_the_map_integrates_to_one_on_a_coarse_grid(schedule):
    """Quadrature in one dimension: whatever the grid, and for a model that is wrong."""
    law = GaussianMixture([0.3, 0.7], [[-1.0], [1.2]], [[0.1], [0.3]])
    # Bent more than this, the map of so wide a noise folds on this grid.
    strength = 0.002 if isinstance(schedule, Geometric) else 0.1
    model = Sabotaged(AnalyticScore(Joint(x=Diffusion(Euclidean(1), schedule)), {"x": law}), strength)
    line = torch.linspace(-9, 9, 601, dtype=DOUBLE)[:, None]
    mass = flow_log_prob(model, None, {"x": line}, grid(12), kind="map").value.exp().sum() * 18 / 600
    assert abs(float(mass) - 1) < 1e-5


def test_density_on_a_torus_integrates_to_one_over_the_uniform_law():
    model = example_model(a=Diffusion(Torus(1), Geometric()))
    circle = torch.linspace(-math.pi, math.pi, 401, dtype=DOUBLE)[:-1, None]
    for kind, steps, tolerance in (("map", 10, 1e-8), ("trace", 40, 1e-5)):
        mass = flow_log_prob(model, None, {"a": circle}, grid(steps), kind=kind).value.exp().mean()
        assert abs(float(mass) - 1) < tolerance


def test_density_of_a_mixture_by_quadrature():
    """The flow's own law against the exact noised law it stops at; the prior's mismatch is 1e-5 at this schedule."""
    law = GaussianMixture([0.3, 0.7], [[-1.0], [1.2]], [[0.1], [0.3]])
    model = AnalyticScore(Joint(x=Diffusion(Euclidean(1), LogSNR(6, -20))), {"x": law})
    x = torch.linspace(-2, 3, 11, dtype=DOUBLE)[:, None]
    last = flow_times(grid(150))[:1]
    alpha = model.process["x"].levels(last)[0]
    wanted = model.log_prob({"x": alpha * x}, last) + alpha.log().squeeze()
    found = flow_log_prob(model, None, {"x": x}, grid(150)).value
    assert ((found - wanted) / wanted.abs().clamp_min(1)).abs().max() < 1e-4


def test_sampler_and_map_density_are_one_law():
    for method in ("rk4", "heun"):
        state, drawn = flow_sample(MODEL, None, grid(8), Streams(0, range(4)), method=method)
        for name, x in SOLVERS[method](MODEL, None, grid(8), Streams(0, range(4))).items():
            torch.testing.assert_close(state[name], x, atol=1e-12, rtol=0)
        found = flow_log_prob(MODEL, None, state, grid(8), kind="map", method=method)
        torch.testing.assert_close(found.value, drawn.value, atol=1e-9, rtol=0)


def test_importance_weights_of_flow_samples_average_to_one():
    """On eight steps, where the trace would be biased."""
    model = example_model(x=Diffusion(Euclidean(2), LogSNR()))
    state, log_q = flow_sample(model, None, grid(8), Streams(0, range(3000)))
    weight = (model.log_prob(state) - log_q.value).exp()
    assert abs(float((weight.mean() - 1) / (weight.std() / math.sqrt(3000)))) < 4
    assert weight.sum() ** 2 / (weight**2).sum() > 500


def test_states_that_the_map_does_not_reach_have_no_density():
    """A step that folds: where two latents would give one state, or none, the density is zero rather than wrong."""

    class Folding(AnalyticScore):
        def __call__(self, state, t, descriptor=None):
            return {"x": super().__call__(state, t)["x"] + 40 * torch.sin(6 * state["x"])}

    process = Joint(x=Diffusion(Euclidean(1), LogSNR()))
    model = Folding(process, {"x": GaussianMixture([1.0], [[0.0]], [[1.0]])})
    x = torch.linspace(-3, 3, 61, dtype=DOUBLE)[:, None]
    found = flow_log_prob(model, None, {"x": x}, grid(3), kind="map").value
    assert (found == -math.inf).any() and not found.isnan().any()


def test_hutchinson_is_unbiased_and_says_how_sure_it_is():
    state = draw(MODEL, 8)
    exact = flow_log_prob(MODEL, None, state, grid(20)).value
    found = flow_log_prob(MODEL, None, state, grid(20), kind="hutchinson", rng=Streams(1, range(8)), probes=200)
    assert found.kind == "hutchinson" and (found.stderr > 0).all()
    assert ((found.value - exact) / found.stderr).abs().max() < 4
    few = flow_log_prob(MODEL, None, state, grid(20), kind="hutchinson", rng=Streams(1, range(8)), probes=4)
    assert (few.stderr > 2 * found.stderr).float().mean() > 0.5


def test_probes_follow_the_streams():
    state = draw(MODEL, 4)
    whole = flow_log_prob(MODEL, None, state, grid(5), kind="hutchinson", rng=Streams(1, range(4))).value
    third = {name: x[2:3] for name, x in state.items()}
    alone = flow_log_prob(MODEL, None, third, grid(5), kind="hutchinson", rng=Streams(1, [2])).value
    torch.testing.assert_close(alone, whole[2:3])


def test_network_in_float32_agrees_with_itself_in_float64():
    model, rng = network(), Streams(0, range(4))
    state = SOLVERS["rk4"](model, None, grid(6), rng)
    single = {kind: flow_log_prob(model, None, state, grid(6), kind=kind).value for kind in ("trace", "map")}
    model.double()
    for kind, value in single.items():
        double = flow_log_prob(model, None, state, grid(6), kind=kind).value
        assert (value - double).abs().max() < 1e-4
    exact, log_q = flow_sample(model, None, grid(6), Streams(0, range(4)))
    torch.testing.assert_close(
        flow_log_prob(model, None, exact, grid(6), kind="map").value, log_q.value, atol=1e-9, rtol=0
    )


def test_energy_parametrised_score_has_a_density():
    """Its score is a gradient taken inside the model."""

    class Well(torch.nn.Module):
        def forward(self, state, t, descriptor):
            return (0.3 * torch.cos(2 * state["x"]) * t[:, None]).sum(1)

    model = EnergyScore(Well(), Joint(x=Diffusion(Euclidean(2), LogSNR())))
    state, log_q = flow_sample(model, None, grid(20), Streams(0, range(5)))
    for kind, tolerance in (("map", 1e-9), ("trace", 1e-3)):
        torch.testing.assert_close(
            flow_log_prob(model, None, state, grid(20), kind=kind).value, log_q.value, atol=tolerance, rtol=0
        )


def test_long_batches_are_split_and_gradients_left_alone(monkeypatch):
    state = draw(MODEL, 5)
    whole = flow_log_prob(MODEL, None, state, grid(4)).value
    monkeypatch.setattr("dig_core.sampling.flow._ROWS", 7)
    torch.testing.assert_close(flow_log_prob(MODEL, None, state, grid(4)).value, whole)
    assert not any(x.requires_grad for x in state.values())
    assert not whole.requires_grad


def test_facade_carries_the_density_to_angstrom():
    dig = toy(MODEL)
    samples = dig.sample(4, seed=0, steps=6, method="rk4")
    found = dig.log_prob(samples.geometry, steps=6, kind="map")
    _, log_q = flow_sample(MODEL, None, grid(6), Streams(0, range(4)))
    torch.testing.assert_close(found.value, log_q.value - math.log(2 * math.pi), atol=1e-9, rtol=0)


def test_what_cannot_be_done_is_refused():
    state = draw(MODEL, 2)
    with pytest.raises(IncompatibleError, match="kind"):
        flow_log_prob(MODEL, None, state, grid(4), kind="exact")
    with pytest.raises(IncompatibleError, match="method"):
        flow_log_prob(MODEL, None, state, grid(4), method="euler")
    with pytest.raises(IncompatibleError, match="probes"):
        flow_log_prob(MODEL, None, state, grid(4), kind="hutchinson")
    with pytest.raises(IncompatibleError, match="probes"):
        flow_log_prob(MODEL, None, state, grid(4), kind="hutchinson", rng=Streams(0, range(2)), probes=1)
    with pytest.raises(IncompatibleError, match="method"):
        Flow(MODEL, None, "midpoint")
