"""Annealing from an energy alone: weights of every rung are exact, the ladder goes up, the right law comes out, lost basins return."""

from __future__ import annotations

import math

import pytest
import torch

from dig_core.coordinates import Internal
from dig_core.diffusion import Diffusion, Euclidean, Geometric, Joint, LogSNR, Torus
from dig_core.dig import Card, DiG
from dig_core.energy import AnalyticScore, GaussianMixture, Springs, WrappedMixture
from dig_core.errors import CheckpointError, IncompatibleError
from dig_core.montecarlo.analysis import effective_sample_size
from dig_core.montecarlo.chain import Pool
from dig_core.nn import ResidualMLP
from dig_core.score import NoiseScore
from dig_core.system.descriptor import molecule
from dig_core.testing import LawEnergy, toy
from dig_core.training.anneal import Anneal, merged_frames, next_rung
from dig_core.training.basins import lost, relax
from dig_core.training.draws import Draws, draw, prior_law, target_law
from dig_core.training.fit import fit
from dig_core.training.frames import frames_of, join_frames, read_frames, write_frames
from dig_core.training.loop import LoopConfig
from dig_core.training.losses import Frames
from dig_core.training.stages import Denoise, Reweight
from dig_core.types import Geometry

PROCESS = Joint(flat=Diffusion(Euclidean(1), LogSNR(6.0, -6.0)), turn=Diffusion(Torus(1), Geometric(0.05, 3.5)))
LAW = {
    "flat": GaussianMixture([0.3, 0.7], [[-1.2], [1.0]], [[0.05], [0.05]]),
    "turn": WrappedMixture([0.7, 0.3], [[0.5], [-2.5]], [[0.15], [0.1]]),
}
EXACT = AnalyticScore(PROCESS, LAW)
ENERGY = LawEnergy(EXACT)


def fresh(seed: int = 0, steps: int = 30):
    """An untrained model: it samples the prior."""
    network = ResidualMLP({"flat": 1, "turn": 1}, ["turn"], width=48, blocks=2, frequencies=8, seed=seed)
    return toy(NoiseScore(network, PROCESS).requires_grad_(False), card=Card(steps=steps))


def expected_left(beta: float) -> tuple[float, float]:
    """E[flat < 0] and E[cos turn] under target^beta prior^(1 - beta), by quadrature."""
    x = torch.linspace(-6, 6, 20_001, dtype=torch.float64)[:, None]
    log_p = beta * LAW["flat"].log_prob(x) - (1 - beta) * 0.5 * x[:, 0] ** 2
    flat = float(torch.softmax(log_p, 0)[x[:, 0] < 0].sum())
    a = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)[:-1, None]
    turn = float((torch.softmax(beta * LAW["turn"].log_prob(a), 0) * torch.cos(a[:, 0])).sum())
    return flat, turn


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_weights_of_a_rung_give_its_averages(beta):
    found = draw(fresh(), ENERGY, 6000, seed=1, progress=False)
    log_weight = found.log_weight(beta)
    share = torch.softmax(log_weight, 0)
    count = len(found) * effective_sample_size(log_weight)
    for value, wanted in zip((found.state["flat"][:, 0] < 0, torch.cos(found.state["turn"][:, 0])), expected_left(beta), strict=True):
        assert abs(float((share * value).sum()) - wanted) < 4 / math.sqrt(count)


def test_untrained_model_has_even_weights_at_the_prior():
    assert draw(fresh(), ENERGY, 500, seed=1, progress=False).effective_fraction(0.0) > 0.999


def test_forces_are_the_gradient_of_each_rungs_law():
    dig = fresh()
    frames = draw(dig, ENERGY, 400, seed=2, progress=False).frames(PROCESS, 0.4, 50, seed=1)
    for name, x in frames.state.items():
        law = EXACT.laws[name].score(x.double())
        prior = -x.double() if name == "flat" else torch.zeros_like(law)
        assert torch.allclose(frames.force[name].double(), 0.4 * law + 0.6 * prior, atol=1e-3, rtol=1e-3)


def test_draws_do_not_depend_on_the_batch():
    one, other = (draw(fresh(), ENERGY, 70, seed=5, batch=b, progress=False) for b in (70, 16))
    assert torch.allclose(one.log_q, other.log_q, atol=1e-4) and torch.allclose(one.log_target, other.log_target, atol=1e-4)


def test_next_rung_keeps_the_floor_and_goes_no_further():
    found = draw(fresh(), ENERGY, 4000, seed=3, progress=False)
    beta = next_rung(found, 0.0, 0.5, 0.5)
    assert 0 < beta < 1
    assert found.effective_fraction(beta) == pytest.approx(0.5, abs=0.02)
    assert next_rung(found, 0.0, 0.45, 0.1) > beta
    assert next_rung(found, 0.0, 1e-4, 1e-5) == 1.0


def test_rung_stays_where_the_draws_are_worth_too_little():
    found = draw(fresh(), ENERGY, 2000, seed=3, progress=False)
    beta = 0.9
    floor = 0.5 * (1 + found.effective_fraction(beta))
    assert next_rung(found, beta, floor, floor) == beta
    further = next_rung(found, beta, floor, 0.0)
    assert further > beta, "half of what there is may be lost"
    assert found.effective_fraction(further) >= 0.49 * found.effective_fraction(beta)


def test_failed_energies_have_no_weight_and_no_force():
    def energy(geometry: Geometry) -> torch.Tensor:
        u = ENERGY(geometry)
        return torch.where(geometry.positions[:, 0, 0] > 0, u, torch.full_like(u, math.inf))

    found = draw(fresh(), energy, 200, seed=1, progress=False)
    bad = found.state["flat"][:, 0] <= 0
    assert bool((found.log_weight(1.0)[bad] == -math.inf).all()) and bool((found.force["turn"][bad] == 0).all())
    assert bool((found.frames(PROCESS, 1.0, 100, 1).state["flat"] > 0).all())
    assert bool((found.log_weight(1e-9)[bad] == -math.inf).all()), "a failed energy stays failed at any temperature"


def test_no_weight_at_all_is_a_fraction_of_zero():
    nothing = Draws({"x": torch.zeros(3, 1)}, {"x": torch.zeros(3, 1)}, torch.full((3,), -math.inf), torch.zeros(3), torch.zeros(3))
    assert nothing.effective_fraction(1.0) == 0.0


def test_merged_frames_count_what_the_draws_are_worth():
    buffer = [draw(fresh(), ENERGY, n, seed=n, progress=False) for n in (500, 1500)]
    frames = merged_frames(fresh(), buffer, 0.3, seed=1)
    wanted = sum(int(len(d) * d.effective_fraction(0.3)) for d in buffer)
    assert len(frames) == wanted and frames.force is not None


WATER = molecule([1, 8, 1], [(0, 1), (1, 2)], positions=[[0.96, 0.0, 0.0], [0.0, 0.0, 0.0], [-0.24, 0.93, 0.0]])
SPRINGS = Springs([(0, 1), (1, 2), (0, 2)], [0.96, 0.96, 1.5], [600.0, 600.0, 60.0])


def water(seed: int = 0) -> DiG:
    """An untrained model that checkpoints can hold."""
    process = Joint(shape=Diffusion(Euclidean(3), LogSNR()), torsion=Diffusion(Torus(0), Geometric()))
    network = ResidualMLP({"shape": 3, "torsion": 0}, ["torsion"], width=16, blocks=1, seed=seed)
    return DiG(NoiseScore(network, process).requires_grad_(False), Internal.from_reference(WATER), WATER, Card(steps=10))


ANNEAL = Anneal(draws=1500, steps=150, batch=256, rate=3e-3, floor=0.3, goal=0.7, rungs=20)


def test_annealing_finds_the_law_without_data():
    found = fit(fresh(), [ANNEAL], energy=ENERGY, seed=1, progress=False)
    history = found.history[0]["rungs"]
    assert [rung["next"] for rung in history] == sorted(rung["next"] for rung in history) and history[-1]["beta"] == 1.0
    assert found.finished and found.evaluations == 1500 * len(history)
    pool = Pool(found.dig.proposal(), ENERGY, seed=3, batch=1000).take(4000)
    assert effective_sample_size(pool.log_weight) > 0.5
    state = found.dig.sample(4000, seed=4, batch=1000).state
    flat, turn = expected_left(1.0)
    assert float((state["flat"] < 0).double().mean()) == pytest.approx(flat, abs=0.06)
    assert float(torch.cos(state["turn"]).mean()) == pytest.approx(turn, abs=0.06)


def test_interrupted_annealing_goes_on_as_if_nothing_had_been(tmp_path):
    short = Anneal(draws=400, steps=20, batch=64, rungs=4, floor=0.3, goal=2.0)
    through = fit(water(), [short], energy=SPRINGS, directory=tmp_path / "through", seed=2, progress=False)

    class Stop(Exception):
        pass

    def stop(progress):
        if len(progress.history[-1]["rungs"]) == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(water(), [short], energy=SPRINGS, directory=tmp_path / "pieces", seed=2, progress=False, watch=stop)
    found = fit(water(seed=7), [short], energy=SPRINGS, directory=tmp_path / "pieces", seed=2, progress=False)
    assert found.history == through.history and found.evaluations == through.evaluations
    ours, theirs = found.dig.model.state_dict(), through.dig.model.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


# Lost basins -----------------------------------------------------------------------------------------------------------------


def collapsed():
    """A model that knows the left well alone."""
    dig = fresh()
    state = EXACT.sample(3000, torch.Generator().manual_seed(1))
    left = state["flat"][:, 0] < 0
    state = {name: x[left].float() for name, x in state.items()}
    force = {name: law.score(state[name].double()).float() for name, law in EXACT.laws.items()}
    stage = Denoise(LoopConfig(steps=300, batch=256, rate=3e-3, every=300))
    return fit(dig, [stage], frames=Frames(state, force), progress=False).dig


def test_lost_basin_is_seen_and_refilled():
    dig = collapsed()
    found = draw(dig, ENERGY, 1000, seed=1, progress=False)
    assert float((found.state["flat"] < 0).double().mean()) > 0.99, "the model has lost the right well"
    seeds = {"flat": torch.tensor([[-1.2], [1.0]], dtype=torch.float64), "turn": torch.tensor([[0.5], [0.5]], dtype=torch.float64)}
    log_target, _ = target_law(dig, ENERGY, seeds)
    assert lost(dig, found, seeds, log_target, 1.0, seed=1).tolist() == [False, True]
    right = {name: x[1:] for name, x in seeds.items()}
    frames, evaluations = relax(dig, ENERGY, right, 1.0, steps=60, seed=1)
    assert evaluations == 61 and len(frames) == 30
    assert bool((frames.state["flat"] > 0).all()) and float(frames.state["flat"].std()) > 0.05


def test_local_chains_have_the_law_of_the_basin():
    """Long chains in one normal well: its mean and variance."""
    dig = fresh()
    seeds = {"flat": torch.full((200, 1), 1.0, dtype=torch.float64), "turn": torch.full((200, 1), 0.5, dtype=torch.float64)}
    frames, _ = relax(dig, ENERGY, seeds, 1.0, steps=300, seed=2)
    x = frames.state["flat"][:, 0].double()
    inside = x > 0
    assert float(inside.double().mean()) > 0.95
    assert float(x[inside].mean()) == pytest.approx(1.0, abs=0.05)
    assert float(x[inside].var()) == pytest.approx(0.05, rel=0.15)


def test_seeded_annealing_keeps_its_basins():
    seeds = Geometry(torch.tensor([[[1.0, 0.5, 0.0]], [[-1.2, -2.5, 0.0]]], dtype=torch.float64))
    stage = Anneal(draws=400, steps=10, batch=64, rungs=2, floor=0.3, seeds=seeds, seed_steps=4)
    found = fit(fresh(), [stage], energy=ENERGY, seed=1, progress=False)
    assert found.evaluations >= 2 * (400 + 2), "the seeds' own energies are counted"


# Stages ----------------------------------------------------------------------------------------------------------------------


def test_stages_resume_after_the_last_that_finished(tmp_path):
    stages = [
        Anneal(draws=400, steps=20, batch=64, rungs=3, floor=0.3),
        Reweight(draws=500, config=LoopConfig(steps=10, batch=32, every=10)),
    ]
    first = fit(water(), stages[:1], energy=SPRINGS, directory=tmp_path, seed=1, progress=False)
    calls = []

    def counted(geometry):
        calls.append(len(geometry.positions))
        return SPRINGS(geometry)

    second = fit(water(), stages, energy=counted, directory=tmp_path, seed=1, progress=False)
    assert sum(calls) == 500 and second.evaluations == first.evaluations + 500
    assert [stage["stage"] for stage in second.history] == ["anneal", "reweight"]


def test_stage_says_what_it_lacks(tmp_path):
    with pytest.raises(IncompatibleError, match="needs an energy"):
        fit(fresh(), [ANNEAL])
    with pytest.raises(IncompatibleError, match="needs frames"):
        fit(fresh(), [Denoise()])
    with pytest.raises(IncompatibleError, match="at least one stage"):
        fit(fresh(), [])
    (tmp_path / "0-anneal.json").write_text("{")
    with pytest.raises(CheckpointError, match="delete 0-anneal"):
        fit(fresh(), [ANNEAL], energy=ENERGY, directory=tmp_path)


def test_frames_survive_the_disk(tmp_path):
    frames = draw(fresh(), ENERGY, 50, seed=1, progress=False).frames(PROCESS, 1.0, 20, 1)
    write_frames(tmp_path / "x.frames", frames)
    found = read_frames(tmp_path / "x.frames")
    assert all(torch.equal(found.state[k], frames.state[k]) and torch.equal(found.force[k], frames.force[k]) for k in frames.state)
    assert found.weight is None


def test_frames_with_and_without_forces_are_not_mixed():
    frames = draw(fresh(), ENERGY, 50, seed=1, progress=False).frames(PROCESS, 1.0, 20, 1)
    with pytest.raises(IncompatibleError, match="forces in all"):
        join_frames([frames, Frames(frames.state)])
    assert len(join_frames([frames, frames])) == 40


def test_prior_law_is_the_untrained_models():
    state = {"flat": torch.tensor([[0.7]]), "turn": torch.tensor([[1.0]])}
    value, force = prior_law(PROCESS, state)
    assert float(value) == pytest.approx(-0.5 * 0.7**2 - 0.5 * math.log(2 * math.pi), abs=1e-3)  # the torus has unit volume
    assert float(force["flat"]) == pytest.approx(-0.7, abs=1e-3) and float(force["turn"]) == 0


def test_annealed_frames_are_usable_as_data():
    dig = fresh()
    geometry = dig.sample(30, seed=1).geometry
    assert len(frames_of(dig.coordinates, dig.descriptor, geometry, ENERGY)) == 30


def test_softened_law_agrees_where_there_is_weight_and_keeps_its_forces():
    """log p_soft is continuous, equal above the cap, and its gradient is the softened force."""
    log_target = torch.tensor([-1.0, -4.9, -5.1, -1e10, -math.inf], dtype=torch.float64)
    found = Draws({"x": torch.zeros(5, 1)}, {"x": torch.ones(5, 1)}, log_target, torch.zeros(5), torch.zeros(5)).softened(0.0, 5.0)
    assert found.log_target[:2].tolist() == [-1.0, -4.9] and found.log_target[4] == -math.inf
    assert float(found.log_target[2]) == pytest.approx(-5 - 5 * math.log(1.02)) and -120 < float(found.log_target[3]) < -5
    slope = [5 / (5 + max(0.0, -float(e) - 5.0)) for e in log_target[:4]]
    assert found.force["x"][:4, 0].tolist() == pytest.approx(slope, rel=1e-5)
