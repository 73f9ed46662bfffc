"""Statistics against laws with known answers; fixed seeds, limits in standard errors."""

from __future__ import annotations

import math
import sys
import time

import numpy as np
import pytest
import torch

from dig_core.errors import IncompatibleError, StateError
from dig_core.montecarlo import analysis as an

INF = math.inf


def log_normal(rng: np.random.Generator, s: float, n: int) -> np.ndarray:
    """Log weights with mean weight one and variance s^2."""
    return s * rng.standard_normal(n) - s * s / 2


def ar1(rng: np.random.Generator, phi: float, n: int) -> np.ndarray:
    """A stationary autoregressive chain of unit variance: autocorrelation phi^k, tau = (1 + phi) / (1 - phi)."""
    noise = rng.standard_normal(n) * math.sqrt(1 - phi * phi)
    x = np.empty(n)
    x[0] = rng.standard_normal()
    for i in range(1, n):
        x[i] = phi * x[i - 1] + noise[i]
    return x


@pytest.mark.parametrize("s", [0.2, 0.5, 0.8])
def test_log_normal_weights_have_known_ess_and_acceptance(rng, s):
    batches = [log_normal(rng, s, 20_000) for _ in range(16)]
    for measure, expected in (
        (an.effective_sample_size, math.exp(-s * s)),
        (an.metropolis_acceptance, math.erfc(s / 2)),  # 2 Phi(-s / sqrt 2)
    ):
        found = np.array([measure(batch) for batch in batches])
        assert abs(found.mean() - expected) < 4 * found.std(ddof=1) / 4 + 1e-4


def test_acceptance_is_the_mean_over_all_pairs(rng):
    log_w = np.concatenate([log_normal(rng, 2.0, 60), [-INF, -INF]])
    w = np.exp(log_w)
    pairs = np.minimum(w[:, None], w[None, :])
    n = len(w)
    expected = (pairs.sum() - np.trace(pairs)) / (n - 1) / w.sum()
    assert an.metropolis_acceptance(log_w) == pytest.approx(expected, rel=1e-12)


def test_acceptance_predicts_the_chain(rng):
    log_w = log_normal(rng, 1.0, 40_000)
    current, accepted = log_w[0], np.zeros(len(log_w), bool)
    for i, new in enumerate(log_w):
        if rng.random() < math.exp(min(0.0, new - current)):
            current, accepted[i] = new, True
    rate = an.block_average(accepted, 40)
    assert abs(rate.value - an.metropolis_acceptance(log_w)) < 4 * rate.stderr


def test_weights_at_the_extremes():
    assert an.effective_sample_size(np.zeros(7)) == pytest.approx(1.0)
    assert an.metropolis_acceptance(np.full(7, 1e4)) == pytest.approx(1.0)
    assert an.effective_sample_size([800.0, -INF, -800.0, 0.0]) == pytest.approx(0.25)
    assert an.metropolis_acceptance([800.0, -INF, -800.0, 0.0]) == pytest.approx(0.0)
    assert an.largest_weight_share([0.0, math.log(3), -INF]) == pytest.approx(0.75)
    assert an.normalised_weights(torch.tensor([0.0, math.log(3)])).tolist() == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize("bad", [[-INF, -INF], [0.0, math.nan], [0.0, INF]])
def test_unusable_log_weights_are_refused(bad):
    for function in (
        an.normalised_weights,
        an.effective_sample_size,
        an.largest_weight_share,
        an.metropolis_acceptance,
    ):
        with pytest.raises(StateError, match="expected log weights"):
            function(bad)


def test_wrong_shapes_are_refused(rng):
    with pytest.raises(IncompatibleError, match="one-dimensional"):
        an.effective_sample_size(np.zeros((2, 2)))
    with pytest.raises(IncompatibleError, match="at least two"):
        an.metropolis_acceptance([0.0])
    with pytest.raises(IncompatibleError, match="3 of in_a, 2 of in_b"):
        an.free_energy_difference([1, 0, 1], [1, 0], rng=rng)
    with pytest.raises(IncompatibleError, match="block"):
        an.bootstrap(np.mean, np.zeros(3), block=4, rng=rng)
    with pytest.raises(StateError, match="finite series"):
        an.block_average([0.0, math.nan, 1.0], 2)


def test_acceptance_is_fast():
    start = time.process_time()
    an.metropolis_acceptance(np.random.default_rng(0).standard_normal(300_000))
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize(
    ("accepted", "longest", "visits"),
    [([1, 1, 1], 0, 1), ([0, 0, 0], 3, 0), ([1, 0, 0, 1, 0], 2, 2), ([0, 0, 0, 1, 0, 0, 1, 1], 3, 2)],
)
def test_runs(accepted, longest, visits):
    record = np.array(accepted, bool)
    assert an.longest_rejection_run(record) == longest
    assert an.longest_rejection_run(torch.from_numpy(record)) == longest
    assert an.count_visits(record) == visits


@pytest.mark.parametrize("phi", [-0.3, 0.0, 0.5, 0.9])
def test_autocorrelation_time_of_an_autoregressive_chain(rng, phi):
    exact, n = (1 + phi) / (1 - phi), 20_000
    found = np.array([an.integrated_autocorrelation_time(ar1(rng, phi, n)) for _ in range(8)])
    # Sokal: relative variance of an estimate 2 (2 M + 1) / n with a window of M = 5 tau; truncation biases by exp(-5) or less.
    relative = math.sqrt(2 * (10 * max(exact, 1.0) + 1) / n / 8)
    assert abs(found.mean() / exact - 1) < 4 * relative + 0.02


def test_autocorrelation_time_of_short_and_constant_chains():
    assert an.integrated_autocorrelation_time(np.full(50, 0.1)) == INF
    assert an.integrated_autocorrelation_time([0.0, 1.0]) == pytest.approx(0.0, abs=1e-12)


def test_bootstrap_error_of_a_mean(rng):
    x = 3.0 + 2.0 * rng.standard_normal(2000)
    found = an.bootstrap(np.mean, x, n=400, rng=rng)
    assert found.value == pytest.approx(x.mean())
    assert found.stderr == pytest.approx(x.std() / math.sqrt(2000), rel=4 / math.sqrt(2 * 400))
    again = [an.bootstrap(np.mean, x, rng=np.random.default_rng(5)).stderr for _ in range(2)]
    assert again[0] == again[1]


def test_block_errors_of_a_chain_see_its_correlation(rng):
    """Error of the mean of AR(1) is sqrt(tau / n); blocks recover it and single samples do not."""
    phi, n, chains = 0.8, 20_000, 12
    exact = math.sqrt((1 + phi) / (1 - phi) / n)
    blocks, average, naive = [], [], []
    for _ in range(chains):
        x = ar1(rng, phi, n)
        blocks.append(an.bootstrap(np.mean, x, block=200, n=100, rng=rng).stderr)
        naive.append(an.bootstrap(np.mean, x, n=50, rng=rng).stderr)
        average.append(an.block_average(x, 100).stderr)
    assert np.mean(blocks) == pytest.approx(exact, rel=0.12)
    assert np.mean(average) == pytest.approx(exact, rel=0.12)
    assert np.mean(naive) == pytest.approx(1 / math.sqrt(n), rel=0.1)


def flipping(rng, begin, length: int, rate: float) -> np.ndarray:
    """(chains, length) of chains between 0 and 1 that flip at ``rate`` a step: either has a half."""
    flips = rng.random((len(begin), length)) < rate
    return ((np.asarray(begin)[:, None] + flips.cumsum(1)) % 2).astype(float)


def test_chains_too_short_to_forget_have_errors_that_say_so(rng):
    """Begun in one state alone, their scatter is far too small; begun in two ways, they disagree, and the error covers the truth."""
    one, two = [], []
    for _ in range(20):
        begin = np.zeros(40)
        one.append(an.block_average(flipping(rng, begin, 100, 0.002).mean(1), 40))
        begin[1::2] = rng.integers(2, size=20)
        two.append(an.bootstrap(np.mean, flipping(rng, begin, 100, 0.002).reshape(-1), chains=40, n=50, rng=rng))
    assert np.mean([abs(x.value - 0.5) / x.stderr for x in one]) > 6
    assert max(abs(x.value - 0.5) / x.stderr for x in two) < 3


def test_chains_that_drift_have_errors_that_say_so(rng):
    """All begin at 1 and fall as exp(-t / 50) over as many steps: far from 0, where they end."""
    x = np.exp(-np.arange(50) / 50) + 0.01 * rng.normal(size=(20, 50))
    found = an.bootstrap(np.mean, x.reshape(-1), chains=20, n=50, rng=rng)
    assert found.stderr > 0.1 > 20 * x.mean(1).std(ddof=1) / math.sqrt(20)


def test_errors_of_long_chains_are_theirs(rng):
    """The largest of three is some 1.3 times the error, never much less: of statistics with one value and with several."""

    def both(x: np.ndarray) -> np.ndarray:
        return np.array([x.mean(), 1 - x.mean()])

    series = [flipping(rng, np.arange(20) % 2, 401, 0.3).reshape(-1) for _ in range(60)]
    found = [an.bootstrap(both, x, chains=20, n=50, rng=rng) for x in series]
    exact = math.sqrt(0.25 * (0.7 / 0.3) / (20 * 401))
    assert 1.1 < np.mean([x.stderr for x in found]) / exact < 1.6
    assert np.mean([((x.value - 0.5) / x.stderr) ** 2 for x in found]) < 1.2
    with pytest.raises(IncompatibleError, match="2 samples or more"):
        an.bootstrap(np.mean, np.zeros(7), chains=4, rng=rng)


def test_block_average_mean_uses_every_value():
    found = an.block_average([0.0, 0.0, 3.0, 3.0, 4.0], 2)
    assert found == (pytest.approx(2.0), pytest.approx((3.5 - 1.0) / 2))


def test_free_energy_of_a_harmonic_well(rng):
    x = rng.standard_normal(60_000)
    found = an.free_energy_profile(x, 24, limits=(-1.8, 1.8), n_bootstrap=100, rng=rng)
    edge = np.linspace(-1.8, 1.8, 25)
    mass = np.diff([math.erf(e / math.sqrt(2)) / 2 for e in edge])
    exact = -np.log(mass / mass.max())
    z = (found.free_energy - exact - (found.free_energy - exact).mean()) / found.stderr
    assert np.abs(z).max() < 4 and 0.5 < z.std() < 1.6
    assert found.free_energy.min() == 0.0
    # A bin of probability p has relative error sqrt((1 - p) / (p n)).
    assert found.stderr == pytest.approx(np.sqrt((1 - mass) / (mass * len(x))), rel=0.35)


def test_weights_turn_one_well_into_another(rng):
    x = rng.uniform(-4, 4, 80_000)
    weights = an.normalised_weights(-0.5 * x**2)
    found = an.free_energy_profile(x, np.linspace(-2, 2, 21), weights, n_bootstrap=60, rng=rng)
    error = found.free_energy - 0.5 * found.centres**2
    assert np.abs((error - error.mean()) / found.stderr).max() < 5


def test_periodic_profiles_wrap_and_empty_bins_are_infinite(rng):
    turns = rng.uniform(-math.pi, math.pi, 4000)
    plain = an.free_energy_profile(turns, 12, limits=(-math.pi, math.pi), periodic=True, n_bootstrap=2, rng=rng)
    moved = an.free_energy_profile(
        turns + 4 * math.pi, 12, limits=(-math.pi, math.pi), periodic=True, n_bootstrap=2, rng=rng
    )
    assert moved.free_energy == pytest.approx(plain.free_energy)
    hollow = an.free_energy_profile([0.5, 0.6, 2.5], [0.0, 1.0, 2.0, 3.0], n_bootstrap=50, rng=rng)
    assert hollow.free_energy.tolist() == [0.0, INF, pytest.approx(math.log(2))]
    assert np.isnan(hollow.stderr).tolist() == [False, True, False]
    with pytest.raises(StateError, match="widen"):
        an.free_energy_profile([5.0, 6.0], 3, limits=(0, 1), rng=rng)
    with pytest.raises(StateError, match="normalised_weights"):
        an.free_energy_profile([5.0, 6.0], 3, [0.0, -1.0], rng=rng)


def test_two_states(rng):
    p_b, n = 0.2, 30_000
    in_b = rng.random(n) < p_b
    found = an.free_energy_difference(~in_b, in_b, rng=rng)
    exact, error = math.log((1 - p_b) / p_b), 1 / math.sqrt(n * p_b * (1 - p_b))
    assert abs(found.value - exact) < 4 * found.stderr
    assert found.stderr == pytest.approx(error, rel=0.25)


def test_two_states_reweighted_and_correlated(rng):
    in_b = rng.random(20_000) < 0.5
    weights = np.where(in_b, 1.0, 3.0)
    found = an.free_energy_difference(~in_b, in_b, weights, rng=rng)
    assert abs(found.value - math.log(3)) < 4 * found.stderr
    held = np.repeat(rng.random(2000) < 0.5, 10)
    naive = an.free_energy_difference(~held, held, rng=rng).stderr
    blocked = an.free_energy_difference(~held, held, block=100, rng=rng).stderr
    assert blocked / naive == pytest.approx(math.sqrt(10), rel=0.25)


def test_states_never_visited(rng):
    yes, no = np.ones(5, bool), np.zeros(5, bool)
    assert an.free_energy_difference(yes, no, rng=rng).value == INF
    assert an.free_energy_difference(no, yes, rng=rng).value == -INF
    assert math.isnan(an.free_energy_difference(yes, no, rng=rng).stderr)
    with pytest.raises(StateError, match="neither"):
        an.free_energy_difference(no, no, rng=rng)


def test_mbar_finds_the_partition_function_of_a_gaussian(rng):
    """q = N(0, 1), target exp(-x^2 / (2 v)): F = -ln sqrt(2 pi v)."""
    pytest.importorskip("pymbar")
    variance, x = 0.6, rng.standard_normal(4000)

    def log_q(x):
        return -0.5 * x**2 - 0.5 * math.log(2 * math.pi)

    def u(x):
        return 0.5 * x**2 / variance

    exact = -0.5 * math.log(2 * math.pi * variance)
    one_sided = an.to_pymbar(log_q(x), u(x))
    assert one_sided.u_kn.shape == (2, 4000) and one_sided.N_k.tolist() == [4000, 0]
    found = an.mbar_free_energy(one_sided)
    assert found.value == pytest.approx(-math.log(np.exp(-u(x) - log_q(x)).mean()), abs=1e-9)
    assert abs(found.value - exact) < 4 * found.stderr
    y = torch.from_numpy(math.sqrt(variance) * rng.standard_normal(3000))
    two_sided = an.mbar_free_energy(an.to_pymbar(log_q(x), u(x), log_q(y), u(y)))
    assert abs(two_sided.value - exact) < 4 * two_sided.stderr < 4 * found.stderr


def test_mbar_accepts_failed_energies_and_refuses_halves(rng):
    pytest.importorskip("pymbar")
    u = np.zeros(1000)
    u[:500] = INF
    assert an.mbar_free_energy(an.to_pymbar(np.zeros(1000), u)).value == pytest.approx(math.log(2))
    with pytest.raises(IncompatibleError, match="together"):
        an.to_pymbar([0.0], [0.0], target_u=[0.0])


def test_missing_pymbar_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymbar", None)
    with pytest.raises(ImportError, match=r"dig-plugins\[analysis\]"):
        an.mbar_free_energy(an.to_pymbar([0.0], [0.0]))
