"""Interpolation: ends come back, paths are what they are called, torus components take the shorter arc."""

from __future__ import annotations

import math

import pytest
import torch

from dig_core.diffusion import SO3, Diffusion, Euclidean, Geometric, Joint, Karras, LogSNR, Torus, ZeroCentroid
from dig_core.energy import AnalyticScore, GaussianMixture
from dig_core.errors import IncompatibleError
from dig_core.sampling.interpolate import interpolate
from dig_core.testing import example_model, toy
from dig_core.types import Geometry

DOUBLE = torch.float64
GRID = torch.linspace(0, 1, 16, dtype=DOUBLE)
MODEL = example_model(
    x=Diffusion(Euclidean(3), LogSNR()), pos=Diffusion(ZeroCentroid(2), LogSNR()), a=Diffusion(Torus(1), Geometric())
)


def ends(model, seed: int = 0):
    both = model.sample(2, torch.Generator().manual_seed(seed))
    return tuple({name: x[i : i + 1] for name, x in both.items()} for i in range(2))


@pytest.mark.parametrize("path", ["spherical", "linear"])
def test_ends_come_back(path):
    a, b = ends(MODEL)
    states = interpolate(MODEL, None, a, b, 5, grid=GRID, path=path)
    for name, part in MODEL.process.items():
        assert states[name].shape == (5, *part.space.shape) and states[name].isfinite().all()
        assert part.space.log(states[name][:1], a[name]).abs().max() < 1e-8
        assert part.space.log(states[name][-1:], b[name]).abs().max() < 1e-8


def unit_model(dim: int) -> AnalyticScore:
    """Unit normal data under a variance-preserving process: the flow is the identity, so latents are seen directly."""
    law = GaussianMixture([1.0], [[0.0] * dim], [[1.0] * dim])
    return AnalyticScore(Joint(x=Diffusion(Euclidean(dim), LogSNR())), {"x": law})


def test_spherical_paths_turn_and_linear_ones_cut_through():
    model = unit_model(40)
    a, b = ends(model)
    b = {"x": b["x"] * a["x"].norm() / b["x"].norm()}
    spherical = interpolate(model, None, a, b, 5, grid=GRID)["x"]
    linear = interpolate(model, None, a, b, 5, grid=GRID, path="linear")["x"]
    torch.testing.assert_close(linear[2], 0.5 * (a["x"] + b["x"])[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(spherical.norm(dim=1), a["x"].norm().expand(5), atol=1e-6, rtol=0)
    assert float(linear[2].norm() / a["x"].norm()) < 0.85
    cosine = torch.nn.functional.cosine_similarity(spherical[:-1], spherical[1:])
    torch.testing.assert_close(cosine, cosine[:1].expand(4), atol=1e-6, rtol=0)


def test_torus_components_take_the_shorter_arc():
    model = example_model(a=Diffusion(Torus(1), Geometric(high=5.0)))
    model.laws["a"].weights = torch.tensor([0.5, 0.5], dtype=DOUBLE)
    a, b = {"a": torch.tensor([[3.0]], dtype=DOUBLE)}, {"a": torch.tensor([[-3.0]], dtype=DOUBLE)}
    angles = interpolate(model, None, a, b, 9, grid=GRID)["a"][:, 0]
    steps = model.process["a"].space.log(angles[:-1], angles[1:])
    assert abs(float(steps.sum())) < math.pi
    assert angles.abs().min() > 2.0


def test_close_and_opposite_ends_do_not_divide_by_zero():
    model = unit_model(2)
    a = {"x": torch.tensor([[0.7, -0.2]], dtype=DOUBLE)}
    for b in (a, {"x": -a["x"]}):
        states = interpolate(model, None, a, b, 4, grid=GRID)["x"]
        assert states.isfinite().all() and (states[-1] - b["x"][0]).abs().max() < 1e-8


def test_several_pairs_go_the_ways_of_each_alone():
    model = example_model(x=Diffusion(Euclidean(2), LogSNR()), turn=Diffusion(SO3(), Karras(0.05, 2.5)), a=Diffusion(Torus(1), Geometric()))
    several = model.sample(4, torch.Generator().manual_seed(3))
    starts, stops = ({name: x[part] for name, x in several.items()} for part in (slice(0, 2), slice(2, 4)))
    starts["x"][1] = stops["x"][1]  # a pair without an angle between its ends
    together = interpolate(model, None, starts, stops, 3, grid=GRID[::5])
    for k in range(2):
        one, other = ({name: x[k : k + 1] for name, x in end.items()} for end in (starts, stops))
        for name, x in interpolate(model, None, one, other, 3, grid=GRID[::5]).items():
            torch.testing.assert_close(together[name][3 * k : 3 * k + 3], x, atol=1e-8, rtol=0)


def euclidean(x, y):
    return (x["x"] - y["x"]).norm(dim=1)


def test_steps_are_even_where_latents_are_not():
    """Two narrow states: nearly all of the way between them is in a small part of the latents."""
    law = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [[0.15, 0.3]] * 2)
    model = AnalyticScore(Joint(x=Diffusion(Euclidean(2), LogSNR())), {"x": law})
    a = {"x": torch.tensor([[-1.1, 0.2], [0.9, 0.0], [0.5, 0.1]], dtype=DOUBLE)}
    b = {"x": torch.tensor([[1.1, -0.1], [-1.0, 0.1], [0.5, 0.1]], dtype=DOUBLE)}
    ways = (interpolate(model, None, a, b, 9, grid=GRID, apart=distance)["x"] for distance in (None, euclidean))
    latent, spaced = (way.unflatten(0, (3, 9)) for way in ways)
    before, after = ((x[:2, 1:] - x[:2, :-1]).norm(dim=2) for x in (latent, spaced))
    assert (before.amax(1) / before.mean(1)).min() > 2 and (after.amax(1) / after.mean(1)).max() < 1.1
    torch.testing.assert_close(spaced[:, [0, -1]], latent[:, [0, -1]], atol=0, rtol=0)
    torch.testing.assert_close(spaced[2], latent[2], atol=0, rtol=0)  # a pair whose ends are one


def test_facade_interpolates_structures():
    dig = toy(MODEL)
    a, b = (dig.coordinates.decode(end) for end in ends(MODEL))
    path = dig.interpolate(a, b, 4, steps=15)
    assert isinstance(path, Geometry) and path.positions.shape == (4, dig.coordinates.n_atoms, 3)
    torch.testing.assert_close(path.positions[:1], a.positions, atol=1e-8, rtol=0)
    ways = dig.interpolate(Geometry(torch.cat([a.positions, b.positions])), Geometry(torch.cat([b.positions, a.positions])), 4, steps=15)
    torch.testing.assert_close(ways.positions[[0, 7]], a.positions.expand(2, -1, -1), atol=1e-8, rtol=0)


def test_facade_asks_for_distances_of_structures_and_keeps_a_jump_that_stays():
    asked = []

    def apart(x, y):
        asked.append(x.positions.shape)
        return (x.positions - y.positions).flatten(1).norm(dim=1)

    dig = toy(MODEL)
    a, b = (dig.coordinates.decode(end) for end in ends(MODEL))
    even, spaced = (dig.interpolate(a, b, 8, steps=15, apart=distance).positions for distance in (None, apart))
    assert set(asked) == {(7, dig.coordinates.n_atoms, 3)} and len(asked) == 5
    torch.testing.assert_close(spaced, even, atol=0, rtol=0)


def test_what_makes_no_path_is_refused():
    a, b = ends(MODEL)
    for bad in ({"n": 1}, {"path": "straight"}, {"a": MODEL.sample(2, torch.Generator().manual_seed(0))}):
        with pytest.raises(IncompatibleError):
            interpolate(MODEL, None, **({"a": a, "b": b, "n": 3, "grid": GRID} | bad))
