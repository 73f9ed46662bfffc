"""Guidance: exact posteriors where they are known, gradients, and that a guided model is a score model."""

from __future__ import annotations

import math

import pytest
import torch

from dig_core.diffusion import Diffusion, Euclidean, Geometric, Joint, LogSNR, Torus, ZeroCentroid
from dig_core.energy import AnalyticScore, GaussianMixture
from dig_core.errors import IncompatibleError
from dig_core.random import Streams
from dig_core.sampling.guidance import Guided, PropertyGuidance
from dig_core.sampling.solvers import SOLVERS, denoised
from dig_core.testing import ALL_SOLVERS, check_fokker_planck, check_score_model, example_model, toy
from dig_core.testing.diffusion import random_state

DOUBLE = torch.float64
MEAN, COVARIANCE = torch.tensor([0.3, -0.5], dtype=DOUBLE), torch.tensor([[0.6, 0.3], [0.3, 0.5]], dtype=DOUBLE)
WAY, OBSERVED, NOISE = torch.tensor([1.0, 0.5], dtype=DOUBLE), 1.2, 0.1
PROCESS = Joint(x=Diffusion(Euclidean(2), LogSNR(8, -8)))
PRIOR = AnalyticScore(PROCESS, {"x": GaussianMixture([1.0], [MEAN.tolist()], COVARIANCE[None])})


def posterior() -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of x given WAY . x + noise = OBSERVED."""
    gain = COVARIANCE @ WAY / (WAY @ COVARIANCE @ WAY + NOISE)
    return MEAN + gain * (OBSERVED - WAY @ MEAN), COVARIANCE - torch.outer(gain, WAY @ COVARIANCE)


def measured(state, t, descriptor):
    """grad log q_t(observed | x_t) in closed form: x_0 given x_t is normal."""
    alpha, sigma = PROCESS["x"].levels(t)
    noised = alpha[..., None] ** 2 * COVARIANCE + sigma[..., None] ** 2 * torch.eye(2, dtype=DOUBLE)
    gain = alpha[..., None] * COVARIANCE @ torch.linalg.inv(noised)
    mean = MEAN + torch.einsum("bij,bj->bi", gain.expand(len(state["x"]), 2, 2), state["x"] - alpha * MEAN)
    left = WAY @ (COVARIANCE - alpha[..., None] * gain @ COVARIANCE) @ WAY + NOISE
    return {"x": ((OBSERVED - mean @ WAY) / left)[:, None] * (WAY @ gain)}


@pytest.mark.parametrize("name", ALL_SOLVERS)
def test_exact_guidance_draws_the_posterior(name):
    n, (mean, covariance) = 3000, posterior()
    found = SOLVERS[name](Guided(PRIOR, measured), None, torch.linspace(0, 1, 51, dtype=DOUBLE), Streams(0, range(n)))[
        "x"
    ]
    z = (found.mean(0) - mean) / (covariance.diagonal() / n).sqrt()
    assert z.abs().max() < 4
    # The spread stays the unconditional one, and the SDE's noise is the article's: both widen on a finite grid.
    torch.testing.assert_close(
        torch.cov(found.T), covariance, atol=0.05 if name in ("ancestral", "sde") else 0.02, rtol=0
    )


def test_guided_score_is_that_of_the_posterior():
    mean, covariance = posterior()
    exact = AnalyticScore(PROCESS, {"x": GaussianMixture([1.0], [mean.tolist()], covariance[None])})
    guided, state = Guided(PRIOR, measured), random_state(PROCESS, 6)
    t = torch.linspace(0.1, 1, 6, dtype=DOUBLE)
    torch.testing.assert_close(guided(state, t, None)["x"], exact(state, t)["x"], atol=1e-8, rtol=1e-8)
    check_score_model(guided, state)
    check_fokker_planck(guided, state, t)
    assert guided.conservative and guided.process is PROCESS


def test_guidances_add_up():
    state, t = random_state(PROCESS, 4), torch.tensor([0.5], dtype=DOUBLE)
    plain, once, twice = (
        model(state, t, None)["x"] for model in (PRIOR, Guided(PRIOR, measured), Guided(PRIOR, measured, measured))
    )
    torch.testing.assert_close(twice - once, once - plain)
    with pytest.raises(IncompatibleError):
        Guided(PRIOR)


def likelihood(values: torch.Tensor) -> torch.Tensor:
    return -0.5 * (values - OBSERVED) ** 2 / NOISE


def test_property_guidance_is_the_gradient_through_the_denoised_state():
    model = example_model(
        x=Diffusion(Euclidean(2), LogSNR()),
        pos=Diffusion(ZeroCentroid(2), LogSNR()),
        a=Diffusion(Torus(1), Geometric()),
    )

    def value(state):
        return (
            state["x"].sin().sum(1) + state["a"].cos().sum(1) + (state["pos"][:, 0] - state["pos"][:, 1]).norm(dim=-1)
        )

    guidance = PropertyGuidance(model, value, likelihood, strength=2.0)
    state, t = random_state(model.process, 3), torch.tensor([0.4], dtype=DOUBLE)
    pull = guidance(state, t, None)
    for name, part in model.process.items():
        for way in part.space.basis():
            ahead, behind = (
                2.0 * likelihood(value(denoised(model, state | {name: part.space.exp(state[name], h * way)}, t, None)))
                for h in (1e-5, -1e-5)
            )
            slope = (pull[name] * way).flatten(1).sum(1)
            torch.testing.assert_close(slope, (ahead - behind) / 2e-5, atol=1e-6, rtol=1e-5)
    check_score_model(Guided(model, guidance), random_state(model.process, 4))
    with torch.no_grad():
        assert not guidance(state, t, None)["x"].requires_grad


def test_property_guidance_takes_samples_to_the_property():
    """And with more strength nearer, through the facade, for components that the property does not touch as well."""
    model = example_model(x=Diffusion(Euclidean(2), LogSNR()), a=Diffusion(Torus(1), Geometric()))
    misses = []
    for strength in (0.0, 1.0, 3.0):
        guidance = PropertyGuidance(model, lambda state: state["x"] @ WAY, likelihood, strength)
        samples = toy(model).sample(300, seed=0, steps=50, guidance=(guidance,))
        misses.append(float((samples.state["x"] @ WAY - OBSERVED).abs().mean()))
    assert misses[0] > 2 * misses[1] and misses[1] > 1.3 * misses[2]
    assert misses[1] < math.sqrt(NOISE)
