"""Training: the loss has the true moments as its minimum, force blending keeps it there, and a run goes on where it stopped."""

from __future__ import annotations

import csv
import math
import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dig_core.coordinates import Cartesian, Internal
from dig_core.coordinates.measure import angle, bond
from dig_core.diffusion import Diffusion, Euclidean, Geometric, Joint, LogSNR, Torus, ZeroCentroid
from dig_core.diffusion.processes import Noised
from dig_core.dig import Card, DiG
from dig_core.energy import AnalyticScore, GaussianMixture, Springs, WrappedMixture
from dig_core.errors import CheckpointError, IncompatibleError, StateError
from dig_core.nn import CartesianGraphormer, InternalGraphormer, ResidualMLP
from dig_core.score import Moments, NoiseScore
from dig_core.system.descriptor import molecule
from dig_core.testing import Sabotaged
from dig_core.training import losses as losses_module
from dig_core.training.draws import reweighted_frames
from dig_core.training.fit import fit
from dig_core.training.frames import frames_of
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Denoising, Frames, averaged, blend, denoising_loss, fisher_information
from dig_core.training.stages import Denoise
from dig_core.types import Geometry

PROCESS = Joint(flat=Diffusion(Euclidean(2), LogSNR(6.0, -6.0)), turn=Diffusion(Torus(1), Geometric(0.05, 3.5)))
LAW = {
    "flat": GaussianMixture([0.4, 0.6], [[-1.0, 0.3], [0.8, -0.3]], [[0.1, 0.3], [0.3, 0.1]]),
    "turn": WrappedMixture([0.7, 0.3], [[0.5], [-2.5]], [[0.15], [0.1]]),
}
EXACT = AnalyticScore(PROCESS, LAW)
WATER = molecule([1, 8, 1], [(0, 1), (1, 2)], positions=[[0.96, 0.0, 0.0], [0.0, 0.0, 0.0], [-0.24, 0.93, 0.0]])
CONFIG = LoopConfig(steps=60, batch=32, rate=3e-3, warmup=5, average=0.9, every=20, seed=4)


def frames(n: int, seed: int, exact: AnalyticScore = EXACT, dtype=torch.float32) -> Frames:
    """Draws of the law with their forces."""
    state = exact.sample(n, torch.Generator().manual_seed(seed))
    force = {name: law.score(state[name]) for name, law in exact.laws.items()}
    return Frames(*({name: x.to(dtype) for name, x in part.items()} for part in (state, force)))


TRAINING, VALIDATION = frames(2000, 1), frames(1000, 2)


def untrained(seed: int = 0, width: int = 16) -> NoiseScore:
    return NoiseScore(
        ResidualMLP({"flat": 2, "turn": 1}, ["turn"], width=width, blocks=1, frequencies=4, seed=seed), PROCESS
    )


def times(n: int) -> Tensor:
    return (torch.arange(n) + 0.5) / n


def losses(model, data: Frames = VALIDATION, **options) -> dict[str, float]:
    with torch.no_grad():
        found = denoising_loss(model, data, WATER, times(len(data)), torch.Generator().manual_seed(9), **options)
    return {name: float(x) for name, x in found.items()}


# The loss ----------------------------------------------------------------------------------------------------------------


class Altered:
    """The exact moments, changed."""

    def __init__(self, noise=lambda name, x, state: x, spread=lambda name, x: x, exact: AnalyticScore = EXACT):
        self.process, self.noise, self.spread, self.exact = exact.process, noise, spread, exact

    def moments(self, state, t, descriptor) -> Moments:
        noise, spread = self.exact.moments(state, t, descriptor)
        return Moments(
            {name: self.noise(name, x, state[name]) for name, x in noise.items()},
            {name: self.spread(name, x) for name, x in spread.items()},
        )


@pytest.mark.parametrize("blended", [False, True])
@pytest.mark.parametrize("component", ["flat", "turn"])
@pytest.mark.parametrize("step", [0.05, -0.05])
@pytest.mark.parametrize(
    "direction",
    [lambda x, state: x, lambda x, state: torch.ones_like(x), lambda x, state: torch.sin(state)],
    ids=["scale", "shift", "bend"],
)
def test_exact_noise_minimises_the_noise_loss(blended, component, step, direction):
    def altered(name, x, state):
        return x + step * direction(x, state) if name == component else x

    data = frames(20_000, 3, dtype=torch.float64)
    options = {"fisher": fisher_information(data.force)} if blended else {}
    assert losses(Altered(noise=altered), data, **options)["noise"] > losses(EXACT, data, **options)["noise"]


@pytest.mark.parametrize("component", ["flat", "turn"])
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_exact_variance_minimises_the_spread_loss(component, factor):
    data = frames(20_000, 3, dtype=torch.float64)
    altered = Altered(spread=lambda name, x: factor * x if name == component else x)
    assert losses(altered, data)["spread"] > losses(EXACT, data)["spread"]


@pytest.mark.parametrize("blended", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_company_leaves_the_mean_of_the_target_and_takes_its_noise(blended, weighted):
    """Targets averaged over company are those of the exact noise, whatever they are multiplied with, and nearer to it than one frame's."""
    n, others = 4000, 24
    data = frames(n * (1 + others), 3, dtype=torch.float64)
    weight = 0.5 + torch.rand(n * (1 + others), generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    own = data.take(torch.arange(n))
    rest = data.take(torch.arange(n, n * (1 + others)).view(n, others))
    if weighted:
        own, rest = replace(own, weight=weight[:n]), replace(rest, weight=weight[n:].view(n, others))
    fisher = fisher_information(data.force) if blended else None
    t = times(n)
    noised = PROCESS.noise(own.state, t, torch.Generator().manual_seed(5))
    exact = EXACT.moments(noised.state, t, WATER).noise
    alone = blend(EXACT, own, noised, t, fisher)
    found = averaged(EXACT, own, rest, noised, t, fisher)
    factor = own.weight if weighted else torch.ones(n, dtype=torch.float64)
    for name, x in exact.items():
        for probe in (torch.ones_like(x), x, noised.state[name], torch.sin(noised.state[name])):
            left = ((found[name] - x) * probe).sum(1) * factor
            assert abs(float(left.mean())) < 4 * float(left.std()) / math.sqrt(n), name
        # Where there is little noise a state can only have come from its own frame.
        noisy = t > 0.5
        assert float((found[name] - x)[noisy].square().mean()) < 0.35 * float((alone[name] - x)[noisy].square().mean())


def test_company_is_what_denoising_and_its_stage_say():
    """The exact moments have a smaller loss in company: what is left of it is not theirs."""
    losses = [
        float(Denoising(TRAINING, WATER, company=k)(EXACT, 2000, *(torch.Generator().manual_seed(s) for s in (1, 2)))["noise"])
        for k in (0, 32)
    ]
    assert losses[1] < 0.8 * losses[0]
    assert Denoise(CONFIG, company=3).company == 3


def test_a_stage_trains_only_what_it_is_told_to():
    network = CartesianGraphormer({"width": 16, "heads": 2, "layers": 1})
    model = NoiseScore(network, Joint(pos=Diffusion(ZeroCentroid(3), LogSNR()))).requires_grad_(False)
    dig = DiG(model, Cartesian(), WATER, Card(name="water"))
    data = Frames({"pos": torch.randn(20, 3, 3, generator=torch.Generator().manual_seed(1))})
    name = "network." + next(name for name, _ in network.named_parameters())
    before = {k: x.clone() for k, x in dig.model.state_dict().items()}
    fit(dig, [Denoise(LoopConfig(steps=3, batch=16, every=3), only=name)], frames=data)
    assert {k for k, x in dig.model.state_dict().items() if not torch.equal(x, before[k])} <= {name}
    assert not any(p.requires_grad for p in dig.model.parameters())
    fit(dig, [Denoise(LoopConfig(steps=3, batch=16, every=3))], frames=data)
    assert len([k for k, x in dig.model.state_dict().items() if not torch.equal(x, before[k])]) > 3
    with pytest.raises(IncompatibleError, match="no parameters"):
        fit(dig, [Denoise(CONFIG, only="heads")], frames=data)


def test_spread_loss_does_not_move_the_mean():
    model = untrained()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    loss = denoising_loss(model, VALIDATION, WATER, times(len(VALIDATION)), torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(loss["spread"], model.network.leave_bias, retain_graph=True)
    assert (gradient[:3] == 0).all() and (gradient[3:] != 0).all()
    (gradient,) = torch.autograd.grad(loss["noise"], model.network.leave_bias)
    assert (gradient[:3] != 0).all() and (gradient[3:] == 0).all()


def test_padded_values_count_for_nothing():
    """Whatever is said of them: what is real and what is not add up to the whole."""
    real = torch.rand(len(VALIDATION), 2, generator=torch.Generator().manual_seed(3)) < 0.5
    nothing = {name: torch.zeros_like(x, dtype=torch.bool) for name, x in VALIDATION.state.items()}
    seen, padded, whole = (losses(EXACT, real=mask) for mask in ({"flat": real}, nothing | {"flat": ~real}, {}))
    assert all(seen[name] + padded[name] == pytest.approx(whole[name], rel=1e-5) for name in whole)
    wrong = Altered(noise=lambda name, x, state: torch.where(real, x, 7.0) if name == "flat" else x)
    assert losses(wrong, real={"flat": real}) == seen != losses(wrong, real={})


def test_emphasis_is_on_the_error_of_a_component():
    whole, flat, turn = (losses(EXACT, emphasis=e) for e in ({}, {"turn": 0.0}, {"flat": 0.0}))
    assert flat["noise"] + 0.5 * turn["noise"] == pytest.approx(losses(EXACT, emphasis={"turn": 0.5})["noise"], rel=1e-5)
    assert flat["noise"] + turn["noise"] == pytest.approx(whole["noise"], rel=1e-5)
    assert whole["spread"] == flat["spread"] == turn["spread"]


def test_frames_weigh_as_their_weights_say():
    n = len(VALIDATION)
    first = torch.rand(n, generator=torch.Generator().manual_seed(1))
    parts = [losses(untrained(), replace(VALIDATION, weight=w)) for w in (first, 1 - first, torch.ones(n), None)]
    for name in ("noise", "spread"):
        assert parts[0][name] + parts[1][name] == pytest.approx(parts[2][name], rel=1e-5)
        assert parts[2][name] == parts[3][name]
        assert parts[0][name] != pytest.approx(parts[1][name], rel=1e-3)


def test_take_keeps_frames_together():
    data = replace(TRAINING, weight=torch.arange(2000.0))
    taken = data.take(torch.tensor([7, 3, 7]))
    assert len(taken) == 3 and taken.weight.tolist() == [7, 3, 7]
    assert torch.equal(taken.state["flat"][1], data.state["flat"][3])
    assert torch.equal(taken.force["turn"][0], data.force["turn"][7])


# Targets blended from forces -----------------------------------------------------------------------------------------------


def targets(exact: AnalyticScore, data: Frames, t: Tensor, fisher) -> tuple[dict, dict, dict]:
    """Noised states, plain and blended targets."""
    noised = exact.process.noise(data.state, t, torch.Generator().manual_seed(6))
    return noised.state, noised.noise, blend(exact, data, noised, t, fisher)


@pytest.mark.parametrize("t", [0.05, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("component", ["flat", "turn"])
def test_blended_targets_have_the_exact_conditional_mean(t, component):
    """What is left of either target is uncorrelated with every function of the noised state."""
    data, at = frames(40_000, 5, dtype=torch.float64), torch.full((40_000,), t, dtype=torch.float64)
    state, plain, blended = targets(EXACT, data, at, fisher_information(data.force))
    mean, x = EXACT.moments(state, at).noise[component], state[component]
    tests = {"1": torch.ones_like(x), "sin": torch.sin(x), "cos": torch.cos(x), "sin 2": torch.sin(2 * x), "mean": mean}
    for kind, target in (("plain", plain), ("blended", blended)):
        for name, f in tests.items():
            left = (f * (target[component] - mean)).mean(1)
            z = float(left.mean() / (left.std() / math.sqrt(len(left))))
            assert abs(z) < 4.5, f"{kind}, {name}: z = {z:.1f}"


def normal_law(centre: list[float], variance: list[float]) -> AnalyticScore:
    return AnalyticScore(Joint(flat=PROCESS["flat"]), {"flat": GaussianMixture([1.0], [centre], [variance])})


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_regression_on_normal_data_finds_the_known_line(t):
    """E[noise | x] = sigma (x - alpha m) / (alpha^2 s^2 + sigma^2), by least squares on plain and on blended targets."""
    centre, variance = torch.tensor([0.7, -1.2]), torch.tensor([0.5, 2.0])
    exact = normal_law(centre.tolist(), variance.tolist())
    n = 20_000
    data, at = frames(n, 7, exact, torch.float64), torch.full((n,), t, dtype=torch.float64)
    wrong = {"flat": 1.7 * fisher_information(data.force)["flat"]}  # any weights are right, these leave some variance
    state, plain, blended = targets(exact, data, at, wrong)
    alpha, sigma = (float(level[0]) for level in exact.process["flat"].levels(at))
    slope = sigma / (alpha**2 * variance + sigma**2)
    for target in (plain["flat"], blended["flat"]):
        for column in (0, 1):
            design = torch.stack([state["flat"][:, column], torch.ones(n, dtype=torch.float64)], dim=1)
            found = torch.linalg.lstsq(design, target[:, column, None]).solution[:, 0]
            left = target[:, column] - design @ found
            stderr = (torch.linalg.inv(design.T @ design).diagonal() * left.var()).sqrt()
            wanted = torch.stack([slope[column], -slope[column] * alpha * centre[column]])
            assert float(((found - wanted) / stderr).abs().max()) < 4


@pytest.mark.parametrize("variance", [1.0, 0.3, 4.0])
@pytest.mark.parametrize("t", [0.02, 0.4, 0.9])
def test_blended_targets_of_normal_data_have_no_variance(variance, t):
    exact = normal_law([0.4, -0.1], [variance, variance])
    data, at = frames(500, 8, exact, torch.float64), torch.full((500,), t, dtype=torch.float64)
    fisher = {"flat": torch.full((2,), 1 / variance, dtype=torch.float64)}
    state, plain, blended = targets(exact, data, at, fisher)
    mean = exact.moments(state, at).noise["flat"]
    assert torch.allclose(blended["flat"], mean, atol=1e-12)
    assert float((plain["flat"] - mean).std()) > 0.05


def test_frames_without_forces_keep_their_targets():
    noise = {"flat": torch.randn(5, 2), "turn": torch.randn(5, 1)}
    plain = Frames({name: torch.zeros_like(x) for name, x in noise.items()})
    assert blend(EXACT, plain, Noised({}, noise, noise), torch.rand(5), fisher_information(TRAINING.force)) is noise
    assert blend(EXACT, TRAINING.take(torch.arange(5)), Noised({}, noise, noise), torch.rand(5), None) is noise


def test_fisher_information_is_the_mean_square_force():
    force = {"flat": torch.tensor([[1.0, 2.0], [3.0, -4.0]])}
    assert fisher_information(force)["flat"].tolist() == [5.0, 10.0]


# Frames and forces of a molecule -------------------------------------------------------------------------------------------

SPRINGS = Springs([(0, 1), (1, 2), (0, 2)], [0.96, 0.96, 1.5], [600.0, 600.0, 60.0])


def bent(n: int, seed: int = 0) -> Geometry:
    noise = np.random.default_rng(seed).normal(0, 0.04, (n, 3, 3))
    return Geometry(WATER.reference.positions + torch.from_numpy(noise))


@pytest.mark.parametrize("coordinates", [Internal.from_reference(WATER), Cartesian(2.0)], ids=["internal", "cartesian"])
def test_forces_are_the_gradient_of_the_density_in_the_coordinates(coordinates):
    geometry = bent(4)
    found = frames_of(coordinates, WATER, geometry, SPRINGS)
    state, _ = coordinates.encode(geometry, WATER)

    def log_density(state):
        return coordinates.log_volume(state, WATER) - SPRINGS(coordinates.decode(state, WATER))

    for name, x in state.items():
        for column in np.ndindex(*x.shape[1:]):
            ahead, behind = (x.clone() for _ in range(2))
            ahead[(..., *column)] += 1e-5
            behind[(..., *column)] -= 1e-5
            slope = (log_density({**state, name: ahead}) - log_density({**state, name: behind})) / 2e-5
            assert torch.allclose(found.force[name][(..., *column)].double(), slope, rtol=1e-4, atol=1e-3)


def test_frames_do_not_depend_on_the_batch():
    coordinates, geometry = Internal.from_reference(WATER), bent(10)
    whole, pieces = (frames_of(coordinates, WATER, geometry, SPRINGS, batch=b) for b in (10, 3))
    assert all(torch.equal(whole.force[name], pieces.force[name]) for name in whole.force)
    assert all(torch.equal(whole.state[name], pieces.state[name]) for name in whole.state)
    assert frames_of(coordinates, WATER, geometry).force is None
    assert whole.state["shape"].dtype == torch.float32


def test_frame_without_finite_energy_is_named():
    geometry = bent(7)
    geometry.positions[5] = math.nan
    with pytest.raises(IncompatibleError, match="frame 5"):
        frames_of(Internal.from_reference(WATER), WATER, geometry, SPRINGS, batch=2)


def water_model() -> DiG:
    coordinates = Internal.from_reference(WATER)
    process = Joint(shape=Diffusion(Euclidean(3), LogSNR()), torsion=Diffusion(Torus(0), Geometric()))
    model = NoiseScore(ResidualMLP({"shape": 3, "torsion": 0}, ["torsion"], width=8, blocks=1), process)
    return DiG(Sabotaged(model, strength=0.1), coordinates, WATER, Card(steps=10))


def test_reweighted_frames_have_the_law_of_the_energy():
    """Stiff bonds and a stiff angle, densities b^2 exp(-u) and sin(a) exp(-u), from a model that is spoilt and knows neither."""
    dig, ends = water_model(), [(0, 1), (1, 2)]
    rest, stiffness, bend = (0.98, 0.94), 900.0, (1.9, 200.0)

    def energy(geometry: Geometry) -> Tensor:
        gap = angle(geometry.positions, [(0, 1, 2)]) - bend[0]
        return Springs(ends, rest, [stiffness] * 2)(geometry) + 0.5 * bend[1] * gap[:, 0] ** 2

    found = reweighted_frames(dig, energy, 4000, seed=3, progress=False)
    positions = dig.coordinates.decode(found.frames.state, WATER).positions
    measured = torch.cat([bond(positions, ends), angle(positions, [(0, 1, 2)])], dim=1)
    axis = np.linspace(0.5, 2.6, 10_001)
    densities = [axis**2 * np.exp(-0.5 * stiffness * (axis - b) ** 2) for b in rest]
    densities.append(np.sin(axis) * np.exp(-0.5 * bend[1] * (axis - bend[0]) ** 2))
    for density, values in zip(densities, measured.T, strict=True):
        mean = (axis * density).sum() / density.sum()
        spread = math.sqrt(((axis - mean) ** 2 * density).sum() / density.sum())
        # The frames are worth ess * n independent ones.
        assert abs(float(values.mean()) - mean) < 4 * spread / math.sqrt(found.ess * 4000)
        assert float(values.std()) == pytest.approx(spread, rel=0.15)
    assert 0.05 < found.ess < 1 and len(found.frames) == int(found.ess * 4000)
    assert found.evaluations == 4000
    assert found.frames.force is not None


def test_reweighting_with_no_finite_weight_is_an_error():
    with pytest.raises(StateError, match="only -inf"):
        reweighted_frames(
            water_model(), lambda g: torch.full((len(g.positions),), math.inf), 20, seed=1, progress=False
        )


# The loop ------------------------------------------------------------------------------------------------------------------


def quiet_fit(model, data: Frames = TRAINING, config: LoopConfig = CONFIG, validation: Frames | None = None, **options):
    held_out = None if validation is None else Denoising(validation, WATER)
    return optimise(model, Denoising(data, WATER), config, validation=held_out, progress=False, **options)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_training_approaches_the_exact_loss():
    best, first = losses(EXACT), losses(untrained())
    config = LoopConfig(steps=300, batch=128, rate=5e-3, warmup=20, average=0.98, every=150)
    found = quiet_fit(untrained(width=32), config=config, validation=VALIDATION)
    last = losses(found.model)
    assert found.finished and found.steps == 300 and len(found.history) == 2
    for name in ("noise", "spread"):
        gap = (last[name] - best[name]) / (first[name] - best[name])
        assert -0.02 < gap < 0.35, f"{name}: {first[name]:.3f} -> {last[name]:.3f}, exact {best[name]:.3f}"
    assert found.history[1]["validation"] < found.history[0]["validation"]
    assert found.history[1]["training"] < found.history[0]["training"]


def test_model_is_trained_in_place_and_ready():
    model = untrained()
    found = quiet_fit(model)
    assert found.model is model and not model.training
    assert not same_weights(model, untrained())


def test_seed_decides():
    runs = [quiet_fit(untrained(), config=replace(CONFIG, steps=20, seed=s)).model for s in (4, 4, 5)]
    assert same_weights(runs[0], runs[1]) and not same_weights(runs[0], runs[2])


def test_validation_does_not_disturb_the_training():
    plain, watched = quiet_fit(untrained()), quiet_fit(untrained(), validation=VALIDATION)
    assert same_weights(plain.model, watched.model)
    assert all(math.isnan(row["validation"]) for row in plain.history)
    assert all(math.isfinite(row["validation"]) for row in watched.history)


def test_pictures_are_of_a_copy_with_averaged_weights():
    shown = []

    def ruin(model, step):
        shown.append((step, losses(model)["noise"], model.training))
        for parameter in model.parameters():
            parameter.data.zero_()

    found = quiet_fit(untrained(), picture=ruin)
    assert same_weights(found.model, quiet_fit(untrained()).model)
    assert [step for step, _, _ in shown] == [20, 40, 60] and not any(training for *_, training in shown)
    assert shown[-1][1] == losses(found.model)["noise"]


def interrupt_at(monkeypatch, *steps: int) -> None:
    """Ctrl-C arrives in the middle of these steps, counted over all runs of the test."""
    calls = []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) in steps:
            os.kill(os.getpid(), signal.SIGINT)
        return denoising_loss(*args, **options)

    monkeypatch.setattr(losses_module, "denoising_loss", interrupted)


def rows_of(path) -> list[dict]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("stops", [[1], [20], [33], [59], [7, 41]])
def test_resumed_run_equals_an_uninterrupted_one(stops, tmp_path, monkeypatch):
    """Bitwise, wherever it stops; the model that goes on may have been made with other weights."""
    through = quiet_fit(untrained(), directory=tmp_path / "through", validation=VALIDATION)
    interrupt_at(monkeypatch, *stops)
    for seed, stop in enumerate(stops):
        found = quiet_fit(untrained(seed), directory=tmp_path / "pieces", validation=None)
        assert not found.finished and found.steps == stop
    monkeypatch.undo()
    found = quiet_fit(untrained(seed=99), directory=tmp_path / "pieces", validation=VALIDATION)
    assert found.finished and found.steps == 60
    assert same_weights(found.model, through.model)
    files = [(tmp_path / name / "resume.safetensors") for name in ("through", "pieces")]
    rows = [rows_of(file.with_name("log.csv")) for file in files]
    assert [row["step"] for row in rows[1]] == ["20", "40", "60"] == [row["step"] for row in rows[0]]
    assert [row["training"] for row in rows[0]] == [row["training"] for row in rows[1]]
    assert rows[0][-1] == rows[1][-1]
    assert [row["step"] for row in found.history] == [20, 40, 60]


def test_control_c_finishes_the_step_writes_and_returns(tmp_path):
    def press(model, step):
        os.kill(os.getpid(), signal.SIGINT)

    # Jobs that a shell runs in the background are started deaf to Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        found = quiet_fit(untrained(), directory=tmp_path, picture=press)
        assert not found.finished and found.steps == 20
        assert (tmp_path / "resume.safetensors").exists() and len(rows_of(tmp_path / "log.csv")) == 1
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupted_run_returns_the_average_so_far(monkeypatch):
    interrupt_at(monkeypatch, 20)
    stopped = quiet_fit(untrained())
    monkeypatch.undo()
    shown = []
    quiet_fit(untrained(), picture=lambda model, step: shown.append(model))
    assert stopped.steps == 20 and same_weights(stopped.model, shown[0])


def test_finished_run_is_not_done_again(tmp_path):
    first = quiet_fit(untrained(), directory=tmp_path, validation=VALIDATION)
    again = quiet_fit(untrained(seed=9), directory=tmp_path, validation=VALIDATION)
    assert again.finished and again.steps == 60 and same_weights(first.model, again.model)
    assert again.history == first.history
    assert len(rows_of(tmp_path / "log.csv")) == 3


def test_longer_run_appends_to_the_log(tmp_path):
    quiet_fit(untrained(), directory=tmp_path)
    before = (tmp_path / "log.csv").read_text()
    quiet_fit(untrained(), config=replace(CONFIG, steps=80), directory=tmp_path)
    after = (tmp_path / "log.csv").read_text()
    assert after.startswith(before) and len(after.splitlines()) == len(before.splitlines()) + 1
    assert after.count("step") == 1


def test_fit_runs_in_a_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(quiet_fit(untrained(), config=replace(CONFIG, steps=3))))
    thread.start()
    thread.join()
    assert found[0].steps == 3


@pytest.mark.parametrize("content", ["other model", b"garbage", b""])
def test_resume_file_of_another_run_is_refused(content, tmp_path):
    path = tmp_path / "resume.safetensors"
    if content == "other model":
        quiet_fit(untrained(width=8), config=replace(CONFIG, steps=1), directory=tmp_path)
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="(?s)not of this run.*delete it") as caught:
        quiet_fit(untrained(), directory=tmp_path)
    assert str(path) in str(caught.value)


def spoilt(kind: str, value: float) -> Frames:
    """One bad number among two thousand frames."""
    data = replace(frames(2000, 1), weight=torch.ones(2000))
    target = data.weight if kind == "weight" else getattr(data, kind)["turn"]
    target[1234] = value
    return data


@pytest.mark.parametrize("kind", ["state", "force", "weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_frames_with_a_bad_number_are_refused_before_the_first_step(kind, value):
    with pytest.raises(IncompatibleError, match="frame 1234"):
        quiet_fit(untrained(), spoilt(kind, value))


@pytest.mark.parametrize("kind", ["state", "force"])
def test_validation_frames_are_looked_at_too(kind):
    with pytest.raises(IncompatibleError, match="frame 1234"):
        quiet_fit(untrained(), validation=spoilt(kind, math.nan))


def test_negative_weights_are_refused():
    with pytest.raises(IncompatibleError, match="frame 1234"):
        quiet_fit(untrained(), spoilt("weight", -1.0))


def test_loss_that_explodes_is_an_error_with_advice():
    config = replace(CONFIG, rate=1e30, warmup=1, clip=1e30)
    with pytest.raises(IncompatibleError, match="lower the rate"):
        quiet_fit(untrained(), config=config)


def test_one_frame_is_too_few():
    with pytest.raises(IncompatibleError, match="at least 2 frames"):
        quiet_fit(untrained(), frames(1, 1))


def test_no_warmup():
    assert quiet_fit(untrained(), config=replace(CONFIG, warmup=0, steps=2)).finished


@pytest.mark.parametrize("kind", ["internal", "cartesian"])
def test_networks_with_buffers_train_and_resume(kind, tmp_path, monkeypatch):
    encoder = {"width": 8, "layers": 1, "heads": 2, "basis": 4}
    coordinates = Internal.from_reference(WATER) if kind == "internal" else Cartesian()

    def model(seed):
        if kind == "internal":
            process = Joint(shape=Diffusion(Euclidean(3), LogSNR()), torsion=Diffusion(Torus(0), Geometric()))
            return NoiseScore(InternalGraphormer.of(coordinates, **encoder, seed=seed), process)
        return NoiseScore(
            CartesianGraphormer({**encoder, "seed": seed}), Joint(pos=Diffusion(ZeroCentroid(3), LogSNR()))
        )

    data = frames_of(coordinates, WATER, bent(50), SPRINGS)
    config = replace(CONFIG, steps=6, batch=8, every=3)
    through = quiet_fit(model(0), data, config, directory=tmp_path / "a")
    interrupt_at(monkeypatch, 2)
    quiet_fit(model(0), data, config, directory=tmp_path / "b")
    found = quiet_fit(model(1), data, config, directory=tmp_path / "b")
    assert found.finished and same_weights(found.model, through.model)
    if kind == "internal":
        assert torch.equal(found.model.network.coordinates.centre, coordinates.centre)
