"""Streams: a sample's noise depends on (seed, index) alone, whatever the batch, the portions or the other samples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from dig_core.errors import IncompatibleError
from dig_core.random import Streams, fresh_seed

SEED = 20240508


def ks_distance(u: np.ndarray) -> float:
    """Kolmogorov's distance of a sample from the uniform law, in units of its scale 1 / sqrt(n)."""
    u, n = np.sort(u), len(u)
    ranks = np.arange(n)
    return math.sqrt(n) * max(np.max(u - ranks / n), np.max((ranks + 1) / n - u))


def correlations(rows: torch.Tensor) -> np.ndarray:
    """z-scores of the correlation of every pair of ``rows`` (M, n)."""
    matrix = np.corrcoef(rows.double().numpy())
    return matrix[np.triu_indices(len(rows), 1)] * math.sqrt(rows.shape[1])


def test_sample_is_independent_of_its_batch():
    whole = Streams(SEED, range(12)).normal(7, 3)
    alone = torch.cat([Streams(SEED, [i]).normal(7, 3) for i in range(12)])
    shuffled = Streams(SEED, [5, 11, 0]).normal(7, 3)
    assert torch.equal(whole, alone)
    assert torch.equal(whole[[5, 11, 0]], shuffled)


@pytest.mark.parametrize("portions", [[9000], [1, 8999], [4095, 2, 4903], [3000, 3000, 3000], [4096, 4096, 808]])
def test_numbers_do_not_depend_on_the_portions_they_are_asked_for_in(portions):
    rng = Streams(SEED, range(3))
    pieces = torch.cat([rng.normal(n) for n in portions], dim=1)
    one_by_one = Streams(SEED, range(3))
    assert torch.equal(pieces, torch.cat([one_by_one.normal(1500) for _ in range(6)], dim=1))


@pytest.mark.parametrize("block", [1, 16, 10_000])
def test_numbers_do_not_depend_on_how_many_are_made_ahead(block, monkeypatch):
    expected = Streams(SEED, range(3)).normal(5000)
    monkeypatch.setattr("dig_core.random._BLOCK", block)
    rng = Streams(SEED, range(3))
    assert torch.equal(torch.cat([rng.normal(n) for n in (7, 1, 30, 4962)], dim=1), expected)


def test_reserved_numbers_are_the_same():
    rng, plain = Streams(SEED, range(3)), Streams(SEED, range(3))
    first = rng.normal(7)
    rng.reserve(3000)
    rng.reserve(20)
    found = torch.cat([first, *(rng.normal(n) for n in (1000, 1999, 1, 700))], dim=1)
    assert torch.equal(found, plain.normal(3707))


def test_shape_only_arranges_the_same_numbers():
    assert torch.equal(Streams(SEED, range(2)).normal(4, 5).flatten(1), Streams(SEED, range(2)).normal(20))


def test_uniform_consumes_the_normal_stream_in_step():
    rng, other = Streams(SEED, range(4)), Streams(SEED, range(4))
    rng.uniform(17)
    other.normal(17)
    assert torch.equal(rng.normal(8), other.normal(8))


def test_dtype_converts_and_does_not_redraw():
    single, double = Streams(SEED, [3]).normal(50), Streams(SEED, [3]).normal(50, dtype=torch.float64)
    assert double.dtype == torch.float64
    assert torch.equal(single.double(), double)


def test_noise_is_not_shared_by_later_draws():
    rng = Streams(SEED, range(2))
    first = rng.normal(5)
    kept = first.clone()
    first.zero_()
    again = Streams(SEED, range(2)).normal(5)
    assert torch.equal(again, kept)


def test_seeds_and_indices_are_uncorrelated():
    n = 20_000
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2**62), (1, 2**62), (2**32, 0), (SEED, 0), (SEED, 1), (SEED + 1, 0)]
    rows = torch.cat([Streams(seed, [i]).normal(n) for seed, i in keys])
    assert np.abs(correlations(rows)).max() < 4
    # Nor is one stream another one shifted by a few places.
    for shift, (a, b) in itertools.product((1, 2, 3), itertools.combinations(rows, 2)):
        assert abs(correlations(torch.stack([a[shift:], b[:-shift]]))[0]) < 5


def test_successive_samples_are_uncorrelated_number_by_number():
    block = Streams(SEED, range(3000)).normal(2)
    lagged = torch.stack([block[:-1, 0], block[1:, 0], block[:-1, 1], block[1:, 1]])
    assert np.abs(correlations(lagged)).max() < 4


def test_chain_generator_is_none_of_the_sample_streams():
    indices = [*range(200), 2**62, 2**62 + 1, 2**63 - 1]
    for index in (0, 1, 2):
        found = np.float32(Streams.chain(SEED, index).standard_normal(6, dtype=np.float32))
        drawn = Streams(SEED, indices).normal(6).numpy()
        assert not np.isclose(drawn, found).any(axis=1).any()


def test_chain_generator_repeats_and_differs_by_block_and_seed():
    numbers = {key: tuple(Streams.chain(*key).random(4)) for key in [(1, 0), (1, 1), (2, 0), (2, 1)]}
    assert len(set(numbers.values())) == 4
    assert numbers[1, 1] == tuple(Streams.chain(1, 1).random(4))


def test_uniform_law():
    u = Streams(SEED, range(4000)).uniform(5)
    assert u.dtype == torch.float64 and float(u.min()) >= 0 and float(u.max()) < 1
    assert ks_distance(u.flatten().numpy()) < 1.95  # exceeded by chance once in a thousand
    assert ks_distance(u[:, 0].numpy()) < 1.95


def test_normal_law():
    x = Streams(SEED, range(50)).normal(2000).double().flatten()
    n = len(x)
    for moment, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((x**moment).mean()) - expected) < 4 * math.sqrt(variance / n)


def test_length_and_record_of_the_seed():
    rng = Streams(7, range(3, 9))
    assert len(rng) == 6 and rng.seed == 7 and rng.indices == [3, 4, 5, 6, 7, 8]


def test_empty_batch():
    assert Streams(SEED, []).normal(4, 3).shape == (0, 4, 3)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_that_no_generator_takes_is_refused(seed):
    with pytest.raises(IncompatibleError, match=str(seed)):
        Streams(seed, range(2))
    with pytest.raises(IncompatibleError, match=str(seed)):
        Streams.chain(seed)


def test_fresh_seeds_differ_and_fit():
    seeds = {fresh_seed() for _ in range(20)}
    assert len(seeds) > 15
    assert all(0 <= seed < 2**32 for seed in seeds)
