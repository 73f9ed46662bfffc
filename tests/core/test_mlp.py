"""The residual perceptron and its scalar sibling."""

import math

import pytest
import torch

from dig_core.diffusion import Diffusion, Euclidean, Joint, Karras, LogSNR, Torus
from dig_core.energy import GaussianMixture
from dig_core.nn import ResidualMLP, ScalarMLP
from dig_core.score import EnergyScore, NoiseScore
from dig_core.system.descriptor import molecule
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Denoising, Frames

SIZES = {"x": 2, "a": 1}
NOTHING = molecule([1, 1, 1], [[0, 1], [1, 2]])


def process() -> Joint:
    return Joint(x=Diffusion(Euclidean(2), LogSNR()), a=Diffusion(Torus(1), Karras()))


def state(n: int) -> dict:
    rng = torch.Generator().manual_seed(0)
    return {"x": torch.randn(n, 2, generator=rng), "a": torch.rand(n, 1, generator=rng) * 6 - 3}


def noisy(network: torch.nn.Module) -> torch.nn.Module:
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng)
    return network


def test_an_untrained_network_is_silent():
    departure, log_spread = ResidualMLP(SIZES, ["a"], width=16)(state(5), torch.tensor([0.3]))
    assert not any(bool(v.any()) for v in [*departure.values(), *log_spread.values()])


def test_one_time_for_all_is_that_time_for_each():
    network = noisy(ResidualMLP(SIZES, ["a"], width=16)).double()
    one, each = network(state(5), torch.tensor([0.3])), network(state(5), torch.full((5,), 0.3))
    assert all(torch.allclose(a[n], b[n], atol=1e-6) for a, b in zip(one, each, strict=True) for n in SIZES)


def test_angles_are_periodic():
    network = noisy(ResidualMLP(SIZES, ["a"], width=16)).double()
    here = state(5)
    turned = here | {"a": here["a"].double() + 2 * math.pi}
    first, second = (network(s, torch.tensor([0.3]))[0] for s in (here | {"a": here["a"].double()}, turned))
    assert torch.allclose(first["x"], second["x"], atol=1e-10)


def test_energy_score_is_a_gradient():
    model = EnergyScore(noisy(ScalarMLP(SIZES, ["a"], width=16)), process()).double()

    def score(x):
        found = model({"x": x[None, :2], "a": x[None, 2:]}, torch.tensor([0.4], dtype=torch.float64), NOTHING)
        return torch.cat([found["x"], found["a"]], dim=1)[0]

    jacobian = torch.autograd.functional.jacobian(score, torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64))
    assert torch.allclose(jacobian, jacobian.T, atol=1e-10)
    assert float(jacobian.abs().max()) > 1e-3


@pytest.mark.parametrize("build", [lambda: NoiseScore(ResidualMLP(SIZES, ["a"], width=32), process()),
                                   lambda: EnergyScore(ScalarMLP(SIZES, ["a"], width=32), process())])  # fmt: skip
def test_both_kinds_of_score_learn_a_mixture(build):
    law = GaussianMixture([0.5, 0.5], [[-1.5, 0.0], [1.5, 0.0]], [[0.1, 0.3], [0.1, 0.3]])
    rng = torch.Generator().manual_seed(2)
    frames = Frames({"x": law.sample(4096, rng).float(), "a": 0.3 * torch.randn(4096, 1, generator=rng)})
    held_out = Denoising(frames.take(torch.arange(512)), NOTHING)

    def validation(steps: int) -> float:
        config = LoopConfig(steps=steps, batch=256, rate=5e-3 if steps > 1 else 1e-9, warmup=20, every=steps)
        found = optimise(build(), Denoising(frames, NOTHING), config, validation=held_out, progress=False)
        return found.history[-1]["validation"]

    assert validation(150) < 0.8 * validation(1)
