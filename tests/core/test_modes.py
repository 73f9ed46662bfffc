"""Modes by mean shift with the denoiser: fixed points have no slope, states end in their own basin, noise merges what is closer."""

from __future__ import annotations

import pytest
import torch

from dig_core.diffusion import Diffusion, Euclidean, Geometric, Joint, LogSNR
from dig_core.energy import AnalyticScore, GaussianMixture
from dig_core.errors import IncompatibleError
from dig_core.sampling.modes import climb
from dig_core.testing.parts import ALL_SPACES, example_model

T = torch.tensor([0.3], dtype=torch.float64)


@pytest.mark.parametrize("space", ALL_SPACES, ids=lambda s: type(s).__name__)
def test_states_stop_where_the_smoothed_density_is_level(space):
    """No slope is left, and there are no more modes than the law has."""
    model = example_model(x=Diffusion(space, Geometric(0.05, 6.0)))
    start = model.sample(64, torch.Generator().manual_seed(1))
    top = climb(model, None, start, T, iterations=400, tolerance=1e-6)
    sigma = float(model.process["x"].levels(T)[1])
    assert float(model(top, T, None)["x"].abs().max()) * sigma < 1e-4
    together = torch.cdist(top["x"], top["x"]) < 0.05
    assert 1 <= len(together.unique(dim=0)) <= 2


@pytest.mark.parametrize("schedule", [Geometric(0.02, 6.0), LogSNR(8.0, -6.0)])
def test_each_state_ends_in_its_own_basin(schedule):
    """Of two wells seven widths apart, with variance-preserving schedules as with exploding ones."""
    law = GaussianMixture([0.3, 0.7], [[-1.0], [1.5]], [[0.1], [0.12]])
    model = AnalyticScore(Joint(x=Diffusion(Euclidean(1), schedule)), {"x": law})
    start = {"x": torch.tensor([-1.5, -1.0, -0.4, 0.9, 1.4, 2.1], dtype=torch.float64)[:, None]}
    top = climb(model, None, start, 0.4, iterations=300)["x"]
    assert torch.allclose(top, torch.where(start["x"] < 0, -1.0, 1.5).double(), atol=0.03)


def test_noise_wider_than_the_gap_merges_two_modes():
    law = GaussianMixture([0.5, 0.5], [[-0.5], [0.5]], [[0.05], [0.05]])
    model = AnalyticScore(Joint(x=Diffusion(Euclidean(1), Geometric(0.02, 6.0))), {"x": law})
    start = {"x": torch.tensor([[-0.6], [0.7]], dtype=torch.float64)}
    apart, merged = (climb(model, None, start, t, iterations=500)["x"] for t in (0.1, 0.75))
    assert float(apart[1] - apart[0]) > 0.9 and float(merged.abs().max()) < 0.02


@pytest.mark.parametrize("t", [0.0, 1.5])
def test_times_without_noise_are_refused(t):
    model = example_model(x=Diffusion(Euclidean(2), Geometric()))
    with pytest.raises(IncompatibleError, match="noise time"):
        climb(model, None, {"x": torch.zeros(1, 2)}, t)


def test_a_state_climbs_alike_alone_and_in_company():
    """States that have arrived are not asked for again: the others do not notice."""
    law = GaussianMixture([0.3, 0.7], [[-1.0], [1.5]], [[0.1], [0.12]])
    model = AnalyticScore(Joint(x=Diffusion(Euclidean(1), Geometric(0.02, 6.0))), {"x": law})
    start = torch.tensor([-1.5, -1.0, 0.2, 1.5, 2.1], dtype=torch.float64)[:, None]
    together = climb(model, None, {"x": start}, 0.1, iterations=300)["x"]
    alone = torch.cat([climb(model, None, {"x": x[None]}, 0.1, iterations=300)["x"] for x in start])
    assert torch.equal(together, alone)
