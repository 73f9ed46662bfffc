"""Modes by mean shift with the denoiser: fixed points have no slope, states end in their own basin, noise merges what is closer; modes
that no barrier parts are one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dig_core.diffusion import Diffusion, Euclidean, Geometric, Joint, LogSNR
from dig_core.energy import AnalyticScore, GaussianMixture
from dig_core.errors import IncompatibleError
from dig_core.sampling.modes import climb, heights, lasting, profile
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


@pytest.mark.parametrize("space", ALL_SPACES, ids=lambda s: type(s).__name__)
def test_a_profile_is_the_difference_of_log_densities(space):
    """Whatever the space and the way, there and back."""
    model = example_model(x=Diffusion(space, Geometric(0.05, 6.0)))
    drawn = model.sample(16, torch.Generator().manual_seed(2))
    start, end = {"x": drawn["x"][:8]}, {"x": drawn["x"][8:]}
    rise, back = (profile(model, None, *way, T, points=200) for way in ((start, end), (end, start)))
    known = model.log_prob(end, T) - model.log_prob(start, T)
    assert torch.allclose(rise[:, -1], known, atol=0.01) and torch.equal(rise[:, 0], torch.zeros(8).double())
    if space.flat:
        assert torch.allclose(rise - rise[:, -1:], back.flip(1), atol=0.02)


def test_a_profile_knows_how_noise_shrinks_states():
    law = GaussianMixture([0.3, 0.7], [[-1.0], [1.5]], [[0.1], [0.12]])
    model = AnalyticScore(Joint(x=Diffusion(Euclidean(1), LogSNR(8.0, -6.0))), {"x": law})
    alpha = model.process["x"].levels(T)[0]
    ends = [{"x": torch.full((1, 1), x, dtype=torch.float64)} for x in (-1.0, 1.5)]
    known = [model.log_prob({"x": alpha * end["x"]}, T) for end in ends]
    assert float(profile(model, None, *ends, T, points=100)[0, -1]) == pytest.approx(float(known[1] - known[0]), abs=1e-3)


def _partition(model, tops, t, barrier):
    """Of tops (n, d): what :func:`lasting` says of them, every pair considered."""
    pairs = [(i, j) for j in range(len(tops)) for i in range(j)]
    start, end = ({"x": tops[[pair[k] for pair in pairs]]} for k in (0, 1))
    return lasting(len(tops), pairs, profile(model, None, start, end, t, points=40).numpy(), barrier)


@pytest.mark.parametrize("gap", [1.1, 1.3, 2.0])
def test_two_wells_are_two_sites_if_the_barrier_between_them_is_as_high_as_asked(gap):
    """The height from the lesser well, of the law in closed form: a little less asked for leaves two, a little more one, the denser."""
    law = GaussianMixture([0.45, 0.55], [[-gap / 2], [gap / 2]], [[0.09], [0.09]])
    model = AnalyticScore(Joint(x=Diffusion(Euclidean(1), Geometric(0.02, 6.0))), {"x": law})
    tops = climb(model, None, {"x": torch.tensor([[-gap / 2], [gap / 2]], dtype=torch.float64)}, 0.1, iterations=500)["x"]
    between = torch.linspace(float(tops[0]), float(tops[1]), 2001, dtype=torch.float64)[:, None]
    values = model.log_prob({"x": between}, torch.tensor([0.1], dtype=torch.float64))
    height = float(values[0] - values.min())
    assert height > 0.02
    assert _partition(model, tops, 0.1, 0.9 * height).tolist() == [0, 1]
    assert _partition(model, tops, 0.1, 1.1 * height).tolist() == [1, 1]


@pytest.mark.parametrize("t", [0.02, 0.2, 0.4])
def test_a_flat_well_is_one_site_however_little_noise_smooths_it(t):
    """Mean shift stalls all over a level floor; what it stalls at are no sites."""
    floor = torch.linspace(-1, 1, 21)[:, None]
    model = AnalyticScore(
        Joint(x=Diffusion(Euclidean(1), Geometric(0.02, 6.0))),
        {"x": GaussianMixture([1 / 21] * 21, floor, torch.full((21, 1), 0.01))},
    )
    start = torch.linspace(-1.2, 1.2, 13, dtype=torch.float64)[:, None]
    tops = climb(model, None, {"x": start}, t, iterations=30)["x"]
    assert float(tops.max() - tops.min()) > 0.3
    assert len(set(_partition(model, tops, t, 0.05))) == 1


def _chain(tops, passes):
    """Pairs of neighbours in a row, and profiles over the pass between them."""
    pairs = [(i, i + 1) for i in range(len(passes))]
    return pairs, np.array([[0.0, low - tops[i], tops[i + 1] - tops[i]] for (i, _), low in zip(pairs, passes, strict=True)])


def test_a_shallow_mode_between_two_deep_ones_joins_one_of_them_and_not_both():
    tops, passes = [3.0, 1.5, 2.5], [1.3, 1.0]
    assert lasting(3, *_chain(tops, passes), 1.0).tolist() == [0, 0, 2]
    assert lasting(3, *_chain(tops, passes), 1.6).tolist() == [0, 0, 0]


def test_what_lasts_depends_on_no_order_and_grows_less_with_the_barrier():
    rng = np.random.default_rng(3)
    tops = rng.normal(size=12)
    pairs, rise = _chain(tops, np.minimum(tops[1:], tops[:-1]) - rng.exponential(size=11))
    order = rng.permutation(12)
    turned = [(order[j], order[i]) for i, j in pairs]
    numbers = []
    for barrier in (0.0, 0.3, 1.0, 3.0, 99.0):
        found, other = lasting(12, pairs, rise, barrier), lasting(12, turned, rise[:, ::-1] - rise[:, -1:], barrier)
        assert (order[found] == other[order]).all()
        numbers.append(len(set(found)))
    assert numbers[0] == 12 and numbers[-1] == 1 and numbers == sorted(numbers, reverse=True)
    assert lasting(2, [], np.zeros((0, 1)), 1.0).tolist() == [0, 1]


def test_heights_are_those_that_the_ways_between_modes_agree_on():
    """Up to a constant for all that are connected; a way that says otherwise is outvoted the more, the longer it is."""
    tops = np.array([0.0, 2.0, -1.0, 0.5, 3.0])
    pairs, rise = _chain(tops, np.minimum(tops[1:], tops[:-1]) - 0.2)
    found = heights(5, pairs, rise)
    np.testing.assert_allclose(found - found[0], tops, atol=1e-12)
    both = heights(5, [*pairs, (0, 4)], np.concatenate([rise, [[0.0, -90.0, 5.0]]]))
    np.testing.assert_allclose(both - both[0], tops, atol=0.2)
    apart = heights(5, pairs[:2], rise[:2])
    np.testing.assert_allclose(apart[:3] - apart[0], tops[:3], atol=1e-12)
    assert heights(3, [], np.zeros((0, 1))).tolist() == [0, 0, 0]
