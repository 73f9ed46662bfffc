"""Laws of rotations: IGSO(3) and the wrapped normal integrate to one, have the right score, moments and limits, and compose."""

from __future__ import annotations

import math

import pytest
import torch

from dig_core.diffusion import SO3, Diffusion, Geometric
from dig_core.diffusion.rotations import rotation_matrix, rotation_vector
from dig_core.random import Streams

DOUBLE = torch.float64
SPACE = SO3()
AXIS = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8], dtype=DOUBLE), dim=0)


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.5, 0.9, 1.0, 1.5, 3.0, 10.0])
def test_heat_kernel_integrates_to_one(sigma):
    """Over angles, whose law under the Haar measure is (1 - cos a) / pi."""
    edge = min(math.pi, 12 * sigma)
    angle = (torch.arange(20_000, dtype=DOUBLE) + 0.5) / 20_000 * edge
    density = SPACE.log_heat(angle[:, None] * AXIS, torch.tensor(sigma**2, dtype=DOUBLE)).exp()
    total = float((density * (1 - angle.cos()) / math.pi).sum() * edge / 20_000)
    assert abs(total - 1) < 1e-6


@pytest.mark.parametrize("variance", [[0.3, 0.3, 0.3], [0.05, 0.4, 1.0], [4.0, 2.0, 9.0]])
def test_wrapped_normal_integrates_to_one(variance):
    """Over uniform rotations, within the error of so many of them."""
    n = 40_000
    gap = SPACE.uniform(Streams(1, range(n)))
    value = SPACE.log_normal(gap, torch.tensor(variance, dtype=DOUBLE).expand(n, 3)).exp()
    assert abs(float(value.mean()) - 1) < 4 * float(value.std()) / math.sqrt(n)


def test_narrow_laws_are_normal():
    """In units of the tangents, 8 pi^2 of them to the whole."""
    sigma = 1e-3
    gap = sigma * torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    variance = torch.tensor(sigma**2, dtype=DOUBLE)
    normal = -0.5 * gap.square().sum(-1) / variance - 1.5 * torch.log(2 * math.pi * variance) + math.log(8 * math.pi**2)
    assert torch.allclose(SPACE.log_heat(gap, variance), normal, atol=1e-5)
    assert torch.allclose(SPACE.log_normal(gap, variance.expand(50, 3)), normal, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 0.9, 1.1, 2.5])
def test_score_of_the_heat_kernel_is_its_slope(sigma):
    start = SPACE.uniform(Streams(2, range(20)))
    variance = torch.tensor(sigma**2, dtype=DOUBLE)
    drawn = SPACE.exp(start, SPACE.heat_step(Streams(3, range(20)).normal(3, dtype=DOUBLE), torch.tensor(sigma, dtype=DOUBLE)))
    score, step = SPACE.heat_score(SPACE.log(start, drawn), variance), 1e-5
    for axis in torch.eye(3, dtype=DOUBLE):
        ends = [SPACE.log_heat(SPACE.log(start, SPACE.exp(drawn, s * step * axis.expand(20, 3))), variance) for s in (1, -1)]
        assert torch.allclose(score @ axis, (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("first", "second"), [(0.2, 0.5), (0.6, 1.0)])
def test_brownian_motion_has_the_right_character_and_composes(first, second):
    """E[trace R] of IGSO(3) with variance s a axis is 3 exp(-s), drawn at once or in two steps."""
    n = 6_000
    process = Diffusion(SPACE, Geometric(0.02, 2.0))
    times = [torch.tensor([math.log(s / 0.02) / math.log(100)], dtype=DOUBLE) for s in (first, second)]
    zero, still = torch.zeros(1, dtype=DOUBLE), torch.zeros(n, 3, dtype=DOUBLE)
    once = process.forward(still, zero, times[1]).sample(Streams(4, range(n)))
    half = process.forward(still, zero, times[0]).sample(Streams(5, range(n)))
    twice = process.forward(half, times[0], times[1]).sample(Streams(6, range(n)))
    for drawn in (once, twice):
        trace = rotation_matrix(drawn).diagonal(dim1=1, dim2=2).sum(-1)
        assert abs(float(trace.mean()) - 3 * math.exp(-(second**2))) < 4 * float(trace.std()) / math.sqrt(n)


def test_reverse_kernel_draws_what_its_density_says():
    """E[q uniform / q] over draws of the kernel is one: its density is that of its draws, and misses nothing."""
    n = 20_000
    process = Diffusion(SPACE, Geometric(0.02, 2.0))
    x, score = SPACE.uniform(Streams(7, [0])).expand(n, 3), torch.tensor([[0.4, -0.2, 0.1]], dtype=DOUBLE).expand(n, 3)
    s, t = (torch.tensor([value], dtype=DOUBLE) for value in (0.85, 1.0))
    kernel = process.reverse(x, t, s, score, torch.tensor([[0.9, 0.5, 0.7]], dtype=DOUBLE).expand(n, 3))
    inverse = (-kernel.log_prob(kernel.sample(Streams(8, range(n))))).exp()
    assert abs(float(inverse.mean()) - 1) < 4 * float(inverse.std()) / math.sqrt(n)


def test_vectors_and_matrices_agree_up_to_half_turns():
    angle = torch.tensor([0.0, 1e-9, 1e-3, 1.0, 3.0, math.pi - 1e-7], dtype=DOUBLE)
    vector = angle[:, None] * AXIS
    matrix = rotation_matrix(vector)
    assert torch.allclose(matrix @ matrix.transpose(1, 2), torch.eye(3, dtype=DOUBLE).expand(6, 3, 3), atol=1e-12)
    assert torch.allclose(rotation_vector(matrix), vector, atol=1e-7)
    back = SPACE.exp(vector, SPACE.log(vector, vector.flip(0)))
    assert torch.allclose(rotation_matrix(back), matrix.flip(0), atol=1e-10)


@pytest.mark.parametrize("sigma", [1e-3, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("angle", [0.0, 1e-6, math.pi - 1e-9, math.pi])
def test_nothing_breaks_at_the_identity_and_at_half_turns(sigma, angle):
    gap, variance = angle * AXIS[None], torch.tensor(sigma**2, dtype=DOUBLE)
    assert bool(SPACE.heat_score(gap, variance).isfinite().all())
    assert bool(SPACE.log_heat(gap, variance).isfinite().all() or sigma < 0.01)
    assert not bool(SPACE.log_normal(gap, variance.expand(1, 3)).isnan().any())
