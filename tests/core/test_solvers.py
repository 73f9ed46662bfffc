"""Solvers: order of convergence, streams, where they start and stop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dig_core.diffusion import Cosine, Diffusion, Euclidean, Geometric, Joint, Linear, LogSNR, Torus, ZeroCentroid
from dig_core.energy import AnalyticScore, GaussianMixture
from dig_core.errors import IncompatibleError
from dig_core.random import Streams
from dig_core.sampling.flow import Flow, flow_times
from dig_core.sampling.solvers import SOLVERS, denoised
from dig_core.testing import ALL_SOLVERS, check_streams, example_model, toy

DOUBLE = torch.float64
MODEL = example_model(
    x=Diffusion(Euclidean(2), LogSNR()), pos=Diffusion(ZeroCentroid(3), Linear()), a=Diffusion(Torus(2), Geometric())
)


def grid(steps: int, first: float | None = None) -> torch.Tensor:
    """An even grid, or one whose first step is the same for every number of steps."""
    if first is None:
        return torch.linspace(0, 1, steps + 1, dtype=DOUBLE)
    return torch.cat([torch.zeros(1, dtype=DOUBLE), torch.linspace(first, 1, steps + 1, dtype=DOUBLE)])


def latent(model: AnalyticScore, n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    return model.process.prior(model.process.empty(n, DOUBLE)).sample(Streams(seed, range(n)))


def run(model, name: str, steps: torch.Tensor, n: int = 8, **options):
    return SOLVERS[name](model, None, steps, Streams(0, range(n)), **options)


@pytest.mark.parametrize("name", ALL_SOLVERS)
def test_sample_depends_on_its_stream_alone(name):
    check_streams(lambda rng: SOLVERS[name](MODEL, None, grid(6), rng), tolerance=1e-8)


@pytest.mark.parametrize("name", ALL_SOLVERS)
def test_states_are_float64_on_their_spaces_and_inputs_stay(name):
    start, steps = latent(MODEL, 8), grid(6)
    before = {key: x.clone() for key, x in start.items()}
    found = run(MODEL, name, steps, start=start)
    assert all(x.dtype == DOUBLE and x.isfinite().all() and x.shape == start[key].shape for key, x in found.items())
    assert found["pos"].mean(1).abs().max() < 1e-9
    assert found["a"].abs().max() <= torch.pi
    assert all(torch.equal(start[key], x) for key, x in before.items())
    assert torch.equal(steps, grid(6))


@pytest.mark.parametrize("name", ["heun", "rk4", "dpm++"])
def test_flows_are_maps_of_the_latent(name):
    """The same latent gives the same state, drawn or handed over."""
    start = latent(MODEL, 4)
    drawn, given = (
        run(MODEL, name, grid(8), n=4),
        SOLVERS[name](MODEL, None, grid(8), Streams(99, range(4)), start=start),
    )
    for key, x in drawn.items():
        torch.testing.assert_close(given[key], x)


@pytest.mark.parametrize(("name", "order"), [("heun", 2), ("rk4", 4), ("dpm++", 2)])
@pytest.mark.parametrize("schedule", [LogSNR(), Cosine(), Geometric(0.02, 20.0)], ids=lambda s: type(s).__name__)
def test_order_of_convergence(name, order, schedule):
    """Twice the steps, an error 2^order smaller."""
    model = example_model(x=Diffusion(Euclidean(2), schedule))
    fine = run(model, name, grid(240, 0.02))["x"]
    coarse, half = (float((run(model, name, grid(steps, 0.02))["x"] - fine).norm()) for steps in (15, 30))
    assert coarse / half > 0.7 * 2**order


@pytest.mark.parametrize("name", ["heun", "rk4", "dpm++"])
def test_flow_of_normal_data_is_the_linear_map(name):
    """x_t = alpha m + sqrt(v_t / v_1) (x_1 - alpha_1 m), in closed form, at the flow's last time; no noise is left by dpm++."""
    law = GaussianMixture([1.0], [[0.5, -1.0]], [[0.3, 2.0]])
    model = AnalyticScore(Joint(x=Diffusion(Euclidean(2), LogSNR())), {"x": law})
    start, last = latent(model, 6), flow_times(grid(120))[:1]
    (alpha_1, sigma_1), (alpha, sigma) = (
        model.process["x"].levels(torch.ones(1, dtype=DOUBLE)),
        model.process["x"].levels(last),
    )
    variance = law.covariances[0].diagonal()
    gain = ((alpha**2 * variance + sigma**2) / (alpha_1**2 * variance + sigma_1**2)).sqrt()
    wanted = law.means + gain * (start["x"] - alpha_1 * law.means) / alpha
    found = run(model, name, grid(120), start=start)["x"]
    torch.testing.assert_close(found, wanted, atol={"heun": 1e-4, "rk4": 1e-7, "dpm++": 0.02}[name], rtol=0)


def test_a_card_has_a_pace_of_its_own_and_steps_that_are_asked_for_are_even():
    dig = toy(MODEL)
    paced = replace(dig, card=replace(dig.card, steps=7, pace=[[0.3, 4], [1, 3]]))
    torch.testing.assert_close(paced.grid().diff(), torch.tensor([0.075] * 4 + [0.7 / 3] * 3, dtype=torch.float64))
    assert torch.equal(paced.grid(7), dig.grid(7)) and paced.grid()[0] == 0 and paced.grid()[-1] == 1
    samples = paced.sample(3, seed=3, method="ancestral")
    torch.testing.assert_close(samples.state["x"], SOLVERS["ancestral"](MODEL, None, paced.grid(), Streams(3, range(3)))["x"])
    for bad in ([[0.3, 4], [0.9, 3]], [[0.3, 4], [1, 4]], [[0.6, 4], [0.3, 2], [1, 1]]):
        with pytest.raises(IncompatibleError, match="pace that rises to time 1"):
            replace(dig, card=replace(dig.card, steps=7, pace=bad)).grid()


def test_ancestral_draws_what_the_path_proposal_draws():
    dig, rng = toy(MODEL), Streams(3, range(5))
    proposed = dig.proposal(steps=7).draw(5, Streams(3, range(5))).state
    for key, x in SOLVERS["ancestral"](MODEL, None, dig.grid(7), rng).items():
        torch.testing.assert_close(x, proposed[key])
    samples = dig.sample(5, seed=3, steps=7, batch=2)
    torch.testing.assert_close(samples.state["x"], proposed["x"])


def test_cold_samples_are_narrower_about_the_same_states():
    """Two wells of one weight: both are visited as often, each by less than its width and about its own mean."""
    law = GaussianMixture([0.5, 0.5], [[-3.0, 0.5], [3.0, -0.5]], [[0.3, 0.3], [0.3, 0.3]])
    model, n = AnalyticScore(Joint(x=Diffusion(Euclidean(2), LogSNR())), {"x": law}), 2000
    found = run(model, "cold", grid(60), n)["x"]
    right = found[:, 0] > 0
    assert abs(float(right.double().mean()) - 0.5) < 4 * 0.5 / n**0.5
    for side, mean in ((right, law.means[1]), (~right, law.means[0])):
        well = found[side]
        assert (well.var(0) < 0.8 * 0.3).all()
        assert ((well.mean(0) - mean).abs() < 0.25 * 0.3**0.5).all()


def test_ddpm_ends_at_what_ancestral_draws_about():
    # All but the last step are the same, so the mean over many last draws is where ddpm ends.
    steps, n = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64), 4000
    first = {name: x[:1] for name, x in MODEL.process.prior(MODEL.process.empty(1, torch.float64)).sample(Streams(8, [0])).items()}
    start = {name: x.expand(n, *x.shape[1:]) for name, x in first.items()}
    late = torch.tensor([0.0, 1.0], dtype=torch.float64)
    drawn = SOLVERS["ancestral"](MODEL, None, late, Streams(1, range(n)), start=start)
    ended = SOLVERS["ddpm"](MODEL, None, late, Streams(1, range(1)), start=first)
    for name, part in MODEL.process.items():
        gap = part.space.log(ended[name].expand_as(drawn[name]), drawn[name])
        if not part.space.periodic:
            assert (gap.mean(0).abs() < 4 * gap.std(0) / n**0.5 + 1e-9).all()
    assert all(x.isfinite().all() for x in SOLVERS["ddpm"](MODEL, None, steps, Streams(1, range(3))).values())


def test_denoised_is_the_mean_of_the_clean_points():
    """Against Bayes' rule for a normal law."""
    law = GaussianMixture([1.0], [[0.5]], [[0.3]])
    model = AnalyticScore(Joint(x=Diffusion(Euclidean(1), Linear())), {"x": law})
    t, x = torch.tensor([0.4], dtype=DOUBLE), torch.tensor([[1.0], [-2.0]], dtype=DOUBLE)
    alpha, sigma = model.process["x"].levels(t)
    wanted = 0.5 + alpha * 0.3 / (alpha**2 * 0.3 + sigma**2) * (x - 0.5 * alpha)
    torch.testing.assert_close(denoised(model, {"x": x}, t, None)["x"], wanted)


@pytest.mark.parametrize("method", ["heun", "rk4"])
def test_inverse_step_undoes_the_step(method):
    flow, (s, t) = Flow(MODEL, None, method), torch.tensor([0.3, 0.4], dtype=DOUBLE).split(1)
    state = latent(MODEL, 4)
    found, gap = flow.inverse(flow.step(state, t, s), t, s)
    assert gap.abs().max() < 1e-12
    assert flow.gap(found, state).abs().max() < 1e-11


@pytest.mark.parametrize("method", ["heun", "rk4"])
def test_jacobian_of_a_step_is_that_of_central_differences(method):
    flow, (s, t) = Flow(MODEL, None, method), torch.tensor([0.3, 0.4], dtype=DOUBLE).split(1)
    state, h = latent(MODEL, 3), 1e-5
    image, jacobian = flow.step_jacobian(state, t, s)
    torch.testing.assert_close(flow.gap(flow.step(state, t, s), image), torch.zeros(3, flow.dim, dtype=DOUBLE))
    for column, way in enumerate(torch.eye(flow.dim, dtype=DOUBLE)):
        ahead, behind = (flow.step(flow.shift(state, sign * h * way.expand(3, -1)), t, s) for sign in (1, -1))
        torch.testing.assert_close(jacobian[..., column], flow.gap(behind, ahead) / (2 * h), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("name", ALL_SOLVERS)
@pytest.mark.parametrize("bad", [[0.0, 0.5, 0.5, 1.0], [0.1, 1.0], [0.0, 0.9], [1.0, 0.0], [0.0]])
def test_bad_grids_are_refused(name, bad):
    with pytest.raises(IncompatibleError, match="grid"):
        run(MODEL, name, torch.tensor(bad, dtype=DOUBLE))


def test_facade_knows_every_solver():
    dig = toy(MODEL)
    for name in ALL_SOLVERS:
        samples = dig.sample(3, seed=0, steps=4, method=name)
        assert samples.valid.all() and samples.log_q is None
    with pytest.raises(IncompatibleError, match="method"):
        dig.sample(3, seed=0, steps=4, method="euler")
