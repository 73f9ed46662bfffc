"""Guidance: exact posteriors where they are known, weights that are exact where they are not, and that a guided model is a score model."""

from __future__ import annotations

import math

import pytest
import torch

from dig_core.diffusion import Diffusion, Euclidean, Geometric, Joint, LogSNR, Torus, ZeroCentroid
from dig_core.energy import AnalyticScore, GaussianMixture, WrappedMixture
from dig_core.errors import IncompatibleError
from dig_core.montecarlo.analysis import effective_sample_size, normalised_weights
from dig_core.random import Streams
from dig_core.sampling.guidance import Fit, Guided, Property, PropertyGuidance, Pull
from dig_core.sampling.likelihoods import Bins, Range, Value, joint_slopes
from dig_core.sampling.solvers import SOLVERS, denoised
from dig_core.testing import (
    ALL_SOLVERS,
    Bare,
    LawEnergy,
    Sabotaged,
    check_fokker_planck,
    check_proposal,
    check_score_model,
    example_model,
    toy,
)
from dig_core.testing.diffusion import random_state

DOUBLE = torch.float64
MEAN, COVARIANCE = torch.tensor([0.3, -0.5], dtype=DOUBLE), torch.tensor([[0.6, 0.3], [0.3, 0.5]], dtype=DOUBLE)
WAY, ACROSS, WIDTH = torch.tensor([1.0, 0.5], dtype=DOUBLE), torch.tensor([0.2, 1.0], dtype=DOUBLE), math.sqrt(0.1)
PROCESS = Joint(x=Diffusion(Euclidean(2), LogSNR(8, -8)))
PRIOR = AnalyticScore(PROCESS, {"x": GaussianMixture([1.0], [MEAN.tolist()], COVARIANCE[None])})
MIXTURE = example_model(x=Diffusion(Euclidean(2), LogSNR(8, -8)))
RING = AnalyticScore(
    Joint(a=Diffusion(Torus(1), Geometric(high=8.0))), {"a": WrappedMixture([0.3, 0.7], [[2.0], [-0.5]], [[0.1], [0.3]])}
)


def along(way, likelihood, name="property"):
    """The linear property way . x."""
    return Property(lambda state, descriptor: state["x"] @ way, likelihood, name, of="state")


def square(state, descriptor=None):
    return state["x"].square().sum(1)


FIRST, SECOND = along(WAY, Value(1.2, WIDTH), "first"), along(ACROSS, Value(-0.9, 0.5), "second")


def posterior(*observed: tuple[torch.Tensor, float, float]) -> AnalyticScore:
    """The exact score of the normal law of x given way . x + width noise = value, for each (way, value, width)."""
    mean, covariance = MEAN, COVARIANCE
    for way, value, width in observed:
        gain = covariance @ way / (way @ covariance @ way + width**2)
        mean, covariance = mean + gain * (value - way @ mean), covariance - torch.outer(gain, way @ covariance)
    return AnalyticScore(PROCESS, {"x": GaussianMixture([1.0], [mean.tolist()], covariance[None])})


def quadrature(model: AnalyticScore, weight, name="x", edge=5.0):
    """Mean and standard deviation (d,) of the model's law times exp(weight(state)), and the log of the mean of the latter."""
    line = torch.linspace(-edge, edge, 601, dtype=DOUBLE)[:-1] if name == "a" else torch.linspace(-edge, edge, 601, dtype=DOUBLE)
    points = torch.cartesian_prod(line, line) if model.process.dim == 2 else line[:, None]
    clean, state = model.log_prob({name: points}), {name: points}
    share = torch.softmax(clean + weight(state), 0)[:, None]
    mean = (share * points).sum(0)
    log_z = torch.logsumexp(clean + weight(state), 0) - torch.logsumexp(clean, 0)
    return mean, (share * (points - mean) ** 2).sum(0).sqrt(), float(log_z)


def clean_weight(guidance):
    return lambda state: guidance.likelihood(state, None, None).log_likelihood


class Known:
    """Guidance from a score that is known already."""

    through = False

    def __init__(self, exact: AnalyticScore):
        self.exact = exact

    def __call__(self, seen):
        score, plain = self.exact(seen.state, seen.t)["x"], PRIOR(seen.state, seen.t)["x"]
        narrow = PRIOR.moments(seen.state, seen.t).spread["x"] - self.exact.moments(seen.state, seen.t).spread["x"]
        return Pull({"x": score - plain}, {"x": narrow})

    def likelihood(self, state, descriptor, coordinates):
        return Fit(torch.zeros(len(state["x"]), dtype=DOUBLE), {})


class Misled:
    """One guidance's likelihood with another one's pull: wrong on purpose."""

    def __init__(self, right, wrong):
        self.right, self.wrong, self.through = right, wrong, wrong.through

    def __call__(self, seen):
        return self.wrong(seen)

    def likelihood(self, state, descriptor, coordinates):
        return self.right.likelihood(state, descriptor, coordinates)


# Score models --------------------------------------------------------------------------------------------------------


def test_a_guided_model_is_a_score_model():
    exact, state = posterior((WAY, 1.2, WIDTH)), random_state(PROCESS, 6)
    t = torch.linspace(0.1, 1, 6, dtype=DOUBLE)
    guided = Guided(PRIOR, Known(exact))
    torch.testing.assert_close(guided(state, t, None)["x"], exact(state, t)["x"], atol=1e-8, rtol=1e-8)
    check_score_model(guided, state)
    check_fokker_planck(guided, state, t)
    assert guided.process is PROCESS
    with pytest.raises(IncompatibleError, match="at least one"):
        Guided(PRIOR)


def test_guidances_add_up():
    state, t = random_state(PROCESS, 4), torch.tensor([0.5], dtype=DOUBLE)
    one = PropertyGuidance(FIRST)
    plain, once, twice = (model(state, t, None)["x"] for model in (PRIOR, Guided(PRIOR, one), Guided(PRIOR, one, one)))
    torch.testing.assert_close(twice - once, once - plain)


@pytest.mark.parametrize("properties, observed", [
    ([FIRST], [(WAY, 1.2, WIDTH)]),
    ([FIRST, SECOND], [(WAY, 1.2, WIDTH), (ACROSS, -0.9, 0.5)]),
])  # fmt: skip
def test_linear_properties_of_normal_data_are_exact(properties, observed):
    """Score and variance, at every time: for one property, and for two that hang together."""
    guided, exact = Guided(PRIOR, PropertyGuidance(*properties)), posterior(*observed)
    state, t = random_state(PROCESS, 30), torch.linspace(0.02, 1, 30, dtype=DOUBLE)
    torch.testing.assert_close(guided(state, t, None)["x"], exact(state, t)["x"], atol=1e-8, rtol=1e-8)
    # Never less than three quarters of the model's own, which weights against it need.
    spread = exact.moments(state, t).spread["x"].maximum(0.75 * PRIOR.moments(state, t).spread["x"])
    torch.testing.assert_close(guided.moments(state, t, None).spread["x"], spread, atol=1e-8, rtol=1e-8)


def test_slope_through_the_spread_is_exact_for_independent_noise():
    """And not where the noise of coordinates hangs together; then its weights show it."""
    apart = AnalyticScore(PROCESS, {"x": GaussianMixture([1.0], [MEAN.tolist()], [[0.6, 0.2]])})
    state, t = random_state(PROCESS, 8), torch.linspace(0.05, 1, 8, dtype=DOUBLE)
    for model, same in ((apart, True), (PRIOR, False)):
        full, cheap = (Guided(model, PropertyGuidance(FIRST, SECOND, through=way))(state, t, None)["x"] for way in ("model", "spread"))
        assert torch.allclose(full, cheap, atol=1e-8) == same


def test_the_pull_is_the_gradient_along_every_component():
    """Of a likelihood that does not widen: finite differences of the denoised state, on open, centred and closed spaces."""
    model = example_model(
        x=Diffusion(Euclidean(2), LogSNR()),
        pos=Diffusion(ZeroCentroid(2), LogSNR()),
        a=Diffusion(Torus(1), Geometric()),
    )

    def value(state, descriptor=None):
        return (
            state["x"].sin().sum(1) + state["a"].cos().sum(1) + (state["pos"][:, 0] - state["pos"][:, 1]).norm(dim=-1)
        )

    def likelihood(values, variance=None):
        return -5.0 * (values - 1.2) ** 2

    guidance = PropertyGuidance(Property(value, likelihood, of="state"), strength=2.0, limit=math.inf)
    state, t = random_state(model.process, 3), torch.tensor([0.4], dtype=DOUBLE)
    guided, score = Guided(model, guidance)(state, t, None), model(state, t)
    for name, part in model.process.items():
        for way in part.space.basis():
            ahead, behind = (
                2.0 * likelihood(value(denoised(model, state | {name: part.space.exp(state[name], h * way)}, t, None)))
                for h in (1e-5, -1e-5)
            )
            slope = ((guided[name] - score[name]) * way).flatten(1).sum(1)
            torch.testing.assert_close(slope, (ahead - behind) / 2e-5, atol=1e-6, rtol=1e-5)
    for through in ("model", "spread"):
        check_score_model(Guided(model, PropertyGuidance(Property(value, Value(1.0, 0.2), of="state"), through=through)), state)
    with torch.no_grad():
        assert not Guided(model, guidance)(state, t, None)["x"].requires_grad


@pytest.mark.parametrize("through", ["model", "spread"])
def test_guided_scores_can_be_differentiated(through):
    """As densities along the flow do: against central differences."""
    guided = Guided(MIXTURE, PropertyGuidance(Property(square, Range(1.0, 2.0, 0.3), of="state"), through=through))
    t, way, h = torch.tensor([0.5], dtype=DOUBLE), torch.tensor([0.6, -0.8], dtype=DOUBLE), 1e-5
    x = random_state(PROCESS, 5)["x"].requires_grad_()
    slope = torch.autograd.grad((guided({"x": x}, t, None)["x"] @ way).sum(), x)[0] @ way
    ahead, behind = ((guided({"x": x.detach() + s * way}, t, None)["x"] @ way).detach() for s in (h, -h))
    torch.testing.assert_close(slope, (ahead - behind) / (2 * h), atol=1e-6, rtol=1e-5)


def test_no_pull_is_longer_than_its_limit():
    state, t = random_state(PROCESS, 9, scale=3.0), torch.linspace(0.05, 1, 9, dtype=DOUBLE)
    far = along(WAY, Value(50.0, 0.01))
    lengths = []
    for limit in (math.inf, 2.0):
        shift = Guided(PRIOR, PropertyGuidance(far, limit=limit)).moments(state, t, None).noise["x"] - PRIOR.moments(state, t).noise["x"]
        lengths.append(shift.norm(dim=1))
    torch.testing.assert_close(lengths[1], lengths[0].clamp_max(2.0))
    assert lengths[0].max() > 2


# Samples -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ALL_SOLVERS if name != "cold"])
def test_every_solver_draws_the_posterior(name):
    n, law = 2500, posterior((WAY, 1.2, WIDTH)).laws["x"]
    grid = torch.linspace(0, 1, 101 if name == "sde" else 51, dtype=DOUBLE)
    found = SOLVERS[name](Guided(PRIOR, PropertyGuidance(FIRST)), None, grid, Streams(0, range(n)))["x"]
    z = (found.mean(0) - law.means[0]) / (law.covariances[0].diagonal() / n).sqrt()
    assert z.abs().max() < 4
    # The SDE's noise is the article's and widens on a finite grid.
    torch.testing.assert_close(torch.cov(found.T), law.covariances[0], atol=0.03 if name == "sde" else 0.02, rtol=0)


def test_posterior_of_normal_data_and_a_linear_property():
    """Mean and variance within 3 % (of the posterior's own spread), as drawn and as weighed."""
    law = posterior((WAY, 1.2, WIDTH)).laws["x"]
    samples = toy(PRIOR).sample(8000, seed=0, steps=50, method="path", batch=4000, guidance=PropertyGuidance(FIRST))
    x, variance = samples.state["x"], law.covariances[0].diagonal()
    assert effective_sample_size(samples.log_weight) > 0.9
    for weights in (torch.full((8000,), 1 / 8000, dtype=DOUBLE), torch.from_numpy(normalised_weights(samples.log_weight))):
        mean = weights @ x
        assert ((mean - law.means[0]) / variance.sqrt()).abs().max() < 0.03
        assert ((weights @ (x - mean) ** 2) / variance - 1).abs().max() < 0.04


@pytest.mark.parametrize("model, linear, wanted", [
    (MIXTURE, True, [along(WAY, Value(-0.5, 0.2))]),
    (MIXTURE, True, [along(WAY, Range(-1.0, -0.5, 0.1))]),
    (MIXTURE, True, [along(WAY, Bins([-1.0, 0.0, 1.0, math.inf], [1.0, 0.0, 0.3], 0.1))]),
    (MIXTURE, False, [along(WAY, Range(0.2, math.inf, 0.1), "one"), Property(square, Value(2.0, 0.4), "two", "state")]),
    (RING, False, [Property(lambda state, d: state["a"].cos().sum(1), Value(0.4, 0.15), of="state")]),
], ids=["value", "range", "bins", "two properties", "torus"])  # fmt: skip
def test_weighted_samples_are_exact(model, linear, wanted):
    """For an energy, on a coarse grid, with the probability of the condition; pulls right, weak or wrong."""
    right, (name,) = PropertyGuidance(*wanted), model.process
    mean, _, log_z = quadrature(model, clean_weight(right), name, math.pi if name == "a" else 5.0)
    wrong = PropertyGuidance(Property(lambda s, d: s[name].sum(1), Value(0.5, 1.0), of="state"))
    weak = PropertyGuidance(*wanted, strength=0.5, through="spread")
    cases = [(right, 0.6 if linear else 0.01), (weak, 0.2), (Misled(right, wrong), 0.01)]
    for guidance, least in cases:
        samples = toy(model).sample(2000, seed=2, steps=30, method="path", batch=2000, guidance=guidance)
        log_weight = samples.log_likelihood - LawEnergy(model)(samples.geometry) - samples.log_q
        assert effective_sample_size(log_weight) > least
        assert effective_sample_size(samples.log_weight) > 0.6 * least
        ratio = (log_weight - log_z).exp()
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(2000)
        weights, x = torch.from_numpy(normalised_weights(log_weight))[:, None], samples.state[name]
        error = (weights**2 * (x - mean) ** 2).sum(0).sqrt()
        assert (((weights * x).sum(0) - mean) / error).abs().max() < 4


def test_weights_are_against_the_model_however_bad_it_is():
    """A spoilt model on ten steps: weighted guided samples average what unguided ones do with their likelihood as the weight."""
    spoilt, guidance = toy(Sabotaged(MIXTURE)), PropertyGuidance(along(WAY, Value(-0.5, 0.4)))
    plain, guided = (
        spoilt.sample(8000, seed=seed, steps=10, method="path", batch=8000, guidance=wanted)
        for seed, wanted in ((1, ()), (2, guidance))
    )
    assert plain.log_weight is None and plain.properties is None and plain.log_likelihood is None
    averages = []
    for samples, log_weight in ((plain, guidance.likelihood(plain.state, None, None).log_likelihood), (guided, guided.log_weight)):
        weight, value = log_weight.exp(), samples.state["x"] @ ACROSS
        mean = (weight * value).sum() / weight.sum()
        error = (weight**2 * (value - mean) ** 2).sum().sqrt() / weight.sum()
        averages.append((weight.mean(), weight.std() / math.sqrt(8000), mean, error))
    (z_plain, dz_plain, m_plain, dm_plain), (z_guided, dz_guided, m_guided, dm_guided) = averages
    assert abs(z_plain - z_guided) < 4 * math.hypot(dz_plain, dz_guided)
    assert abs(m_plain - m_guided) < 4 * math.hypot(dm_plain, dm_guided)


def test_guided_proposals_are_exact():
    """As of any model, for an energy less the log-likelihood: draws, and log q of given structures."""
    guidance = PropertyGuidance(along(WAY, Value(-0.5, 0.3)))
    coordinates, energy = Bare(MIXTURE.process), LawEnergy(MIXTURE)
    *_, log_z = quadrature(MIXTURE, clean_weight(guidance))

    def target(geometry):
        return energy(geometry) - guidance.likelihood(coordinates.encode(geometry)[0], None, None).log_likelihood

    state = MIXTURE.sample(4000, torch.Generator().manual_seed(0))
    kept = guidance.likelihood(state, None, None).log_likelihood.exp() > torch.rand(4000, generator=torch.Generator().manual_seed(1))
    structures = coordinates.decode({"x": state["x"][kept]})
    proposal = toy(MIXTURE).guided(guidance).proposal(steps=20)
    check_proposal(proposal, target, log_z, n=1000, structures=structures)


def test_tweedie_beats_the_likelihood_that_does_not_widen():
    """Plain diffusion posterior sampling, which takes the denoised state for the clean one, wastes its samples."""
    sharp = Value(-0.5, 0.2)
    narrow = along(WAY, lambda value, variance: sharp(value, torch.zeros_like(variance)))
    sizes = []
    for wanted in (narrow, along(WAY, sharp)):
        samples = toy(MIXTURE).sample(1000, seed=0, steps=50, method="path", batch=1000, guidance=PropertyGuidance(wanted))
        sizes.append(effective_sample_size(samples.log_weight))
    assert sizes[1] > 0.6 and sizes[0] < 0.1


def test_calibration_finds_nothing_to_correct_in_normal_data_and_linear_properties():
    state, guidance = PRIOR.sample(4000, torch.Generator().manual_seed(0)), PropertyGuidance(FIRST, SECOND)
    first, again, other = (guidance.calibrated(PRIOR, state, None, seed=seed, levels=6) for seed in (1, 1, 2))
    assert torch.equal(first.calibration.slope, again.calibration.slope)
    assert not torch.equal(first.calibration.slope, other.calibration.slope)
    at, t = random_state(PROCESS, 60), torch.linspace(0.02, 1, 60, dtype=DOUBLE)
    corrected, exact = (Guided(PRIOR, each).moments(at, t, None).noise["x"] for each in (first, guidance))
    assert (exact - PRIOR.moments(at, t).noise["x"]).abs().max() > 1
    torch.testing.assert_close(corrected, exact, atol=0.1, rtol=0)


@pytest.mark.parametrize("model, wanted, before, after", [
    (MIXTURE, Property(square, Value(2.0, 0.2), of="state"), 0.15, 0.4),
    (RING, Property(lambda state, d: state["a"].cos().sum(1), Value(0.4, 0.15), of="state"), 0.25, 0.4),
], ids=["square", "torus"])  # fmt: skip
@pytest.mark.parametrize("through", ["model", "spread"])
def test_calibration_raises_the_sample_size_of_bent_properties(model, wanted, before, after, through):
    plain, (name,) = PropertyGuidance(wanted, through=through), model.process
    known = plain.calibrated(model, model.sample(500, torch.Generator().manual_seed(5)), None, seed=0)
    sizes, n = [], 2000
    for guidance in (plain, known):
        samples = toy(model).sample(n, seed=2, steps=30, method="path", batch=n, guidance=guidance)
        log_weight = samples.log_likelihood - LawEnergy(model)(samples.geometry) - samples.log_q
        sizes.append(effective_sample_size(log_weight))
    assert sizes[0] < before and sizes[1] > after
    *_, log_z = quadrature(model, clean_weight(plain), name, math.pi if name == "a" else 5.0)
    ratio = (log_weight - log_z).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(n)


def test_strength_takes_samples_nearer_and_pulls_no_one_else():
    model = example_model(x=Diffusion(Euclidean(2), LogSNR()), a=Diffusion(Torus(1), Geometric()))
    misses, others = [], []
    for strength in (0.0, 1.0, 3.0):
        guidance = PropertyGuidance(along(WAY, Value(1.2, WIDTH)), strength=strength)
        samples = toy(model).sample(300, seed=0, steps=50, guidance=(guidance,))
        torch.testing.assert_close(samples.properties["property"], samples.state["x"] @ WAY)
        assert samples.log_weight is None and samples.log_q is None
        misses.append(float((samples.state["x"] @ WAY - 1.2).abs().mean()))
        others.append(samples.state["a"])
    assert misses[0] > 2 * misses[1] and misses[1] > 1.3 * misses[2]
    assert misses[1] < WIDTH
    torch.testing.assert_close(others[0], others[2])


def test_properties_of_geometries():
    """Through the coordinates, with the descriptor beside them: the same as of states."""
    dig, seen = toy(PRIOR), []

    def first(geometry, descriptor):
        seen.append(descriptor)
        return geometry.positions[:, 0, 0] + 0.5 * geometry.positions[:, 0, 1]

    made, known = (
        dig.sample(20, seed=3, steps=8, method="path", guidance=PropertyGuidance(wanted))
        for wanted in (Property(first, FIRST.likelihood, "first"), FIRST)
    )
    torch.testing.assert_close(made.log_weight, known.log_weight)
    torch.testing.assert_close(made.properties["first"], known.properties["first"])
    assert all(descriptor is dig.descriptor for descriptor in seen)
    with pytest.raises(IncompatibleError, match="coordinates"):
        Guided(PRIOR, PropertyGuidance(Property(first, Value(0.0, 1.0))))(random_state(PROCESS, 2), torch.ones(1, dtype=DOUBLE), None)


def test_samples_do_not_depend_on_their_batch():
    dig, guidance = toy(MIXTURE), PropertyGuidance(FIRST, Property(square, Range(0.0, 2.0, 0.2), "square", "state"))
    whole, parts, again, other = (
        dig.sample(12, seed=seed, steps=10, method="path", batch=batch, guidance=guidance)
        for seed, batch in ((5, 12), (5, 5), (5, 12), (6, 12))
    )
    for field in ("log_q", "log_weight", "log_likelihood"):
        torch.testing.assert_close(getattr(whole, field), getattr(parts, field), rtol=1e-9, atol=1e-9)
        assert torch.equal(getattr(whole, field), getattr(again, field)) and not torch.equal(getattr(whole, field), getattr(other, field))
    torch.testing.assert_close(whole.properties, parts.properties)


@pytest.mark.parametrize("through", ["model", "spread"])
@pytest.mark.parametrize("failure", [math.nan, math.inf])
def test_a_predictor_that_fails_is_left_alone_and_marked(failure, through):
    """One sample fails at its every step, some at their end; the rest are what they are without it, and the weights say the truth."""

    def fails(state, descriptor):
        return square(state) + torch.where(state["x"][:, 0] > 0.5, failure, 0.0)

    wanted, t = Value(1.0, 0.5), torch.tensor([0.3], dtype=DOUBLE)
    sound, broken = (PropertyGuidance(Property(f, wanted, of="state"), through=through) for f in (square, fails))
    state = random_state(PROCESS, 40)
    bad = denoised(MIXTURE, state, t, None)["x"][:, 0] > 0.5
    assert 5 < bad.sum() < 35
    plain, guided, found = (m(state, t, None)["x"] for m in (MIXTURE, Guided(MIXTURE, sound), Guided(MIXTURE, broken)))
    torch.testing.assert_close(found, torch.where(bad[:, None], plain, guided))

    samples = toy(MIXTURE).sample(2000, seed=0, steps=20, method="path", batch=2000, guidance=broken)
    lost = samples.state["x"][:, 0] > 0.5
    assert torch.equal(samples.properties["property"].isnan(), lost) and 0 < lost.sum() < 2000
    assert (samples.log_weight[lost] == -math.inf).all() and samples.log_weight[~lost].isfinite().all()
    *_, log_z = quadrature(MIXTURE, clean_weight(broken))
    ratio = (samples.log_likelihood - LawEnergy(MIXTURE)(samples.geometry) - samples.log_q - log_z).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(2000)


# Likelihoods ---------------------------------------------------------------------------------------------------------

LIKELIHOODS = [
    Value(0.5, 0.3), Range(-0.4, 0.8, 0.1), Range(-math.inf, 0.2, 0.1), Range(0.1, math.inf, 0.1), Range(-math.inf, math.inf, 1.0),
    Bins([-1.0, 0.0, 1.0, math.inf], [0.5, 0.0, 1.0], 0.2),
]  # fmt: skip


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_likelihoods_widen_by_averaging(likelihood):
    value = torch.linspace(-2, 2, 9, dtype=DOUBLE)
    nodes = torch.linspace(-8, 8, 4001, dtype=DOUBLE)
    for deviation in (0.3, 1.5):
        shifted = (value[:, None] + deviation * nodes).reshape(-1)
        clean = likelihood(shifted, torch.zeros_like(shifted)).exp().reshape(9, -1)
        average = clean @ torch.exp(-0.5 * nodes**2) * (nodes[1] - nodes[0]) / math.sqrt(2 * math.pi)
        torch.testing.assert_close(likelihood(value, torch.full_like(value, deviation**2)).exp(), average, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("variance", [0.0, 1.0, 1e4])
def test_slopes_neither_fade_nor_burst(likelihood, variance):
    """Right by finite differences; far out, of the size of the distance over the variance, and never bent more than that."""
    value = torch.cat([x * torch.logspace(-1, 4, 26, dtype=DOUBLE) for x in (1, -1)])
    spread = torch.full_like(value, variance)
    first, second = joint_slopes([likelihood], value[:, None], spread[:, None, None])
    h = 1e-4 * (1 + value.abs())
    ahead, behind = (likelihood(value + s * h, spread) for s in (1, -1))
    torch.testing.assert_close(first[:, 0], (ahead - behind) / (2 * h), rtol=2e-3, atol=1e-6)
    assert (second >= 0).all() and (variance == 0 or (second <= 1.000001 / variance).all())
    width = getattr(likelihood, "width", 1.0)
    assert (first[:, 0].abs() <= (value.abs() + 2.0) / (variance + width**2) + 1 / math.sqrt(variance + width**2)).all()
    if isinstance(likelihood, Value) or (isinstance(likelihood, Range) and likelihood.high < math.inf):
        assert first[25, 0] < -0.99 * (1e4 - 1) / (variance + width**2)


def test_bins_with_one_wanted_are_a_range_and_all_wanted_alike_ask_for_nothing():
    value = torch.linspace(-3, 3, 13, dtype=DOUBLE)
    for variance in (torch.zeros_like(value), torch.ones_like(value)):
        torch.testing.assert_close(Bins([0, 1, 2, 3], [0, 7, 0], 0.2)(value, variance), Range(1, 2, 0.2)(value, variance))
        even = Bins([-math.inf, 0, 1, math.inf], [2, 2, 2], 0.2)(value, variance)
        torch.testing.assert_close(even, torch.zeros_like(value), atol=1e-12, rtol=0)


@pytest.mark.parametrize("make", [
    lambda: Value(math.nan, 1.0),
    lambda: Value(0.0, 0.0),
    lambda: Range(1.0, 1.0, 0.1),
    lambda: Range(0.0, 1.0, -0.1),
    lambda: Bins([0, 1], [1, 1], 0.1),
    lambda: Bins([0, 0, 1], [1, 1], 0.1),
    lambda: Bins([0, 1, 2], [1, -1], 0.1),
    lambda: Bins([0, 1, 2], [0, 0], 0.1),
    lambda: PropertyGuidance(),
    lambda: PropertyGuidance(FIRST, FIRST),
    lambda: PropertyGuidance(FIRST, through="nothing"),
    lambda: PropertyGuidance(FIRST, limit=0.0),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(make):
    with pytest.raises(IncompatibleError, match="expected|must be"):
        make()


def test_a_predictor_of_another_shape_is_refused():
    guidance = PropertyGuidance(Property(lambda state, descriptor: state["x"], Value(0.0, 1.0), of="state"))
    with pytest.raises(IncompatibleError, match="one property for each of 3"):
        Guided(PRIOR, guidance)(random_state(PROCESS, 3), torch.ones(1, dtype=DOUBLE), None)
