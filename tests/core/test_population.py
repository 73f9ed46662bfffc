"""Population annealing: the law of every rung, weights of states kept, overlaps survived, costs counted, resumed as it was."""

from __future__ import annotations

import math

import pytest
import torch

from dig_core.diffusion import Diffusion, Euclidean, Geometric, Joint, LogSNR, Torus
from dig_core.dig import Card
from dig_core.energy import AnalyticScore, GaussianMixture, WrappedMixture
from dig_core.errors import IncompatibleError, StateError
from dig_core.nn import ResidualMLP
from dig_core.score import NoiseScore
from dig_core.testing import Bare, LawEnergy, toy
from dig_core.training.basins import langevin_step
from dig_core.training.fit import Progress, Task, fit
from dig_core.training.frames import with_forces
from dig_core.training.loop import LoopConfig
from dig_core.training.losses import Frames
from dig_core.training.population import Population, spread_out
from dig_core.training.stages import Reweight
from dig_core.types import Geometry

PROCESS = Joint(flat=Diffusion(Euclidean(1), LogSNR(6.0, -6.0)), turn=Diffusion(Torus(1), Geometric(0.05, 3.5)))
LAW = {
    "flat": GaussianMixture([0.3, 0.7], [[-1.2], [1.0]], [[0.05], [0.05]]),
    "turn": WrappedMixture([0.7, 0.3], [[0.5], [-2.5]], [[0.15], [0.1]]),
}
EXACT = AnalyticScore(PROCESS, LAW)


class Counted:
    """An energy that counts the structures it was asked for."""

    def __init__(self, energy):
        self.energy, self.asked = energy, 0

    def __call__(self, geometry: Geometry) -> torch.Tensor:
        self.asked += len(geometry.positions)
        return self.energy(geometry)


def fresh():
    network = ResidualMLP({"flat": 1, "turn": 1}, ["turn"], width=8, blocks=1, frequencies=2)
    return toy(NoiseScore(network, PROCESS).requires_grad_(False), card=Card(steps=4))


def averages(frames) -> dict[str, float]:
    flat, turn = frames.state["flat"][:, 0].double(), frames.state["turn"][:, 0].double()
    found = {"left": flat < 0, "flat squared": flat**2, "cos": torch.cos(turn), "sin": torch.sin(turn)}
    return {name: float(x.double().mean()) for name, x in found.items()}


def wanted() -> dict[str, float]:
    flat = {"left": 0.3, "flat squared": 0.3 * 1.44 + 0.7 * 1.0 + 0.05}
    damped = [w * math.exp(-v / 2) for w, v in ((0.7, 0.15), (0.3, 0.1))]
    return flat | {
        "cos": damped[0] * math.cos(0.5) + damped[1] * math.cos(-2.5), "sin": damped[0] * math.sin(0.5) + damped[1] * math.sin(-2.5)
    }  # fmt: skip


def test_frames_are_of_the_target():
    """Wells 20 kT apart: no walker crosses at the end, so the weights must come from the way there."""
    runs = [fit(fresh(), [Population(2000, 6)], energy=LawEnergy(EXACT), seed=s, progress=False) for s in range(8)]
    found = [averages(run.frames) for run in runs]
    for name, value in wanted().items():
        seen = torch.tensor([x[name] for x in found])
        error = float(seen.std()) / math.sqrt(len(seen))
        assert error < 0.02 and abs(float(seen.mean()) - value) < 4.5 * error, name


def test_forces_are_those_of_the_target():
    frames = fit(fresh(), [Population(500, 4, harvest=4, stride=2)], energy=LawEnergy(EXACT), seed=1, progress=False).frames
    for name, x in frames.state.items():
        assert torch.allclose(frames.force[name].double(), EXACT.laws[name].score(x.double()), atol=2e-3, rtol=2e-3)


def test_every_energy_is_counted():
    energy = Counted(LawEnergy(EXACT))
    run = fit(fresh(), [Population(300, 3, harvest=8, stride=2)], energy=energy, seed=1, progress=False)
    assert run.evaluations == energy.asked and len(run.frames) == 4 * 300


def test_the_way_is_resumed_as_it_was(tmp_path):
    options = {"energy": LawEnergy(EXACT), "seed": 3, "progress": False}
    whole = fit(fresh(), [Population(300, 3, floor=0.9)], **options)
    energy = Counted(LawEnergy(EXACT))

    def cut(geometry):
        if energy.asked > 3000:
            raise KeyboardInterrupt
        return energy(geometry)

    task = Task(cut, tmp_path, 3, False)
    with pytest.raises(KeyboardInterrupt):
        Population(300, 3, floor=0.9).run(Progress(fresh()), task)
    resumed = Population(300, 3, floor=0.9).run(Progress(fresh()), Task(options["energy"], tmp_path, 3, False))
    assert torch.equal(whole.frames.state["flat"], resumed.frames.state["flat"]) and whole.evaluations == resumed.evaluations


def test_a_step_does_not_depend_on_the_order_of_names():
    def law(state):
        return -0.5 * sum(x.square().sum(1) for x in state.values()), {name: -x for name, x in state.items()}

    found = []
    for names in (("flat", "turn"), ("turn", "flat")):
        here = {name: torch.full((5, 1), 0.3 if name == "flat" else -0.4, dtype=torch.float64) for name in names}
        scale = {name: torch.full((1,), 0.5, dtype=torch.float64) for name in names}
        found.append(langevin_step(PROCESS, here, law(here), law, scale, torch.Generator().manual_seed(6))[0])
    assert all(torch.equal(found[0][name], found[1][name]) for name in PROCESS)


def test_walkers_from_structures_get_their_weights_on_the_way():
    """Both wells are in the frames, one of them hardly; hot walkers cross, the cold end has the weights, and every energy is counted."""
    start = {"flat": torch.where(torch.arange(100) < 97, -1.2, 1.0)[:, None], "turn": torch.full((100, 1), 0.5)}
    runs = []
    for seed in range(5):
        energy = Counted(LawEnergy(EXACT))
        stage = Population(600, 6, first=0.05, settle=100)
        runs.append(fit(fresh(), [stage], energy=energy, frames=Frames(start), seed=seed, progress=False))
        assert runs[-1].evaluations == energy.asked
    assert all(run.history[0]["rungs"][0]["beta"] > 0.05 for run in runs)
    found = [averages(run.frames) for run in runs]
    for name, value in wanted().items():
        seen = torch.tensor([x[name] for x in found])
        error = float(seen.std()) / math.sqrt(len(seen))
        assert error < 0.04 and abs(float(seen.mean()) - value) < 4.5 * error, name
    with pytest.raises(IncompatibleError, match="first beta"):
        Population(first=1.0)


def test_overlaps_and_failures_die_out():
    """Energies of 1e10 kT and none at all in most of the space."""

    def hard(geometry: Geometry) -> torch.Tensor:
        x, u = geometry.positions.flatten(1)[:, 0], LawEnergy(EXACT)(geometry)
        u = u + 1e10 * torch.relu(x.abs() - 1.5)
        return torch.where(x > 2.0, math.inf, u)

    run = fit(fresh(), [Population(2000, 6)], energy=hard, seed=2, progress=False)
    flat = run.frames.state["flat"]
    assert float(flat.abs().max()) < 1.51 and abs(float((flat < 0).double().mean()) - 0.3) < 0.08
    assert len(run.history[-1]["rungs"]) < 40


def test_a_ring_closes_on_the_way_and_not_all_at_once():
    """A stiff bond far away, among loose coordinates: many walkers find it, and not the heirs of a few."""
    process = Joint(x=Diffusion(Euclidean(24), LogSNR(6.0, -6.0)))
    network = ResidualMLP({"x": 24}, [], width=8, blocks=1, frequencies=2)
    dig, there = toy(NoiseScore(network, process).requires_grad_(False), card=Card(steps=4)), torch.tensor([2.0, -1.0, 1.5])

    def energy(geometry: Geometry) -> torch.Tensor:
        x = Bare(process).encode(geometry)[0]["x"]
        return 500 * (x[:, :3] - there).square().sum(1) + 0.5 * x[:, 3:].square().sum(1)

    run = fit(dig, [Population(1000, 6)], energy=energy, seed=1, progress=False)
    assert run.history[-1]["families"] > 0.02
    ring, loose = run.frames.state["x"].split([3, 21], dim=1)
    assert float((ring - there).square().mean()) == pytest.approx(1e-3, rel=0.1)
    assert float(loose.square().mean()) == pytest.approx(1, rel=0.1)


def test_langevin_steps_keep_their_law():
    """From exact samples, with steps so large that without the test their law would change."""
    state = {name: law.sample(20_000, torch.Generator().manual_seed(seed)) for seed, (name, law) in enumerate(LAW.items())}

    def law(x):
        log_p = sum(EXACT.laws[name].log_prob(v) for name, v in x.items())
        return log_p, {name: EXACT.laws[name].score(v) for name, v in x.items()}

    held, rng, moved = law(state), torch.Generator().manual_seed(3), 0.0
    for _ in range(30):
        scale = {name: torch.full((1,), 0.3, dtype=torch.float64) for name in state}
        state, held, accept = langevin_step(PROCESS, state, held, law, scale, rng)
        moved += float(accept.double().mean()) / 30
    assert 0.3 < moved < 0.95
    assert torch.allclose(held[0], law(state)[0])
    flat, turn = state["flat"][:, 0], state["turn"][:, 0]
    for value, exact, spread in ((flat**2, 1.182, 0.6), (torch.cos(turn), wanted()["cos"], 0.75), ((flat < 0) * 1.0, 0.3, 0.46)):
        assert abs(float(value.mean()) - exact) < 4.5 * spread / math.sqrt(20_000)


def test_spreading_leaves_weights_of_states_and_fills_their_basins():
    """Two structures, a hundred times each, become their wells, as many frames each."""
    few = Frames({"flat": torch.tensor([[-1.2], [1.0]]).repeat(100, 1), "turn": torch.full((200, 1), 0.5)})
    energy = Counted(LawEnergy(EXACT))
    found, spent = spread_out(fresh(), energy, few, 4000, seed=1, stride=10)
    flat = found.state["flat"][:, 0]
    assert len(found) == 4000 and spent == energy.asked == 200 * 201 and float((flat < 0).double().mean()) == 0.5
    assert float(flat[flat > 0].var()) == pytest.approx(0.05, rel=0.25)


def test_reweighting_that_is_worth_little_is_spread_beside_the_frames_at_hand():
    dig, energy = fresh(), Counted(LawEnergy(EXACT))
    state = {name: law.sample(300, torch.Generator().manual_seed(1)).float() for name, law in LAW.items()}
    frames = with_forces(dig.coordinates, dig.descriptor, Frames(state), LawEnergy(EXACT))
    stage = Reweight(400, config=LoopConfig(steps=5, batch=32, every=5), least=1000)
    run = fit(dig, [stage], energy=energy, frames=frames, seed=1, progress=False)
    assert len(run.frames) >= 1300 and run.evaluations == energy.asked
    enough = Reweight(400, config=LoopConfig(steps=5, batch=32, every=5), least=2)
    assert len(fit(fresh(), [enough], energy=energy, frames=frames, seed=1, progress=False).frames) < 400


def test_a_harvest_has_at_least_one_frame():
    with pytest.raises(IncompatibleError, match="harvest of at least stride = 20 moves, got 4"):
        Population(harvest=4)


def test_walkers_that_have_not_arrived_give_no_frames():
    with pytest.raises(StateError, match="after 1 rungs, expected 1"):
        fit(fresh(), [Population(300, 2, floor=0.9, rungs=1)], energy=LawEnergy(EXACT), seed=1, progress=False)


def test_an_energy_is_needed():
    with pytest.raises(IncompatibleError, match="energy"):
        fit(fresh(), [Population()], progress=False)
