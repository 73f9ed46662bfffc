"""Physics-informed training (article, eq. 4): exact scores leave no residual, wrong ones do, squares are unbiased, forces are enough."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dig_core.diffusion import Diffusion, Euclidean, Geometric, Joint, Linear, LogSNR, Torus, ZeroCentroid
from dig_core.dig import Card
from dig_core.energy import AnalyticScore, GaussianMixture
from dig_core.errors import IncompatibleError
from dig_core.montecarlo.analysis import effective_sample_size
from dig_core.montecarlo.chain import Pool
from dig_core.nn import ResidualMLP, ScalarMLP
from dig_core.score import EnergyScore, NoiseScore
from dig_core.testing import ALL_PROCESSES, LawEnergy, Sabotaged, example_model, toy
from dig_core.testing.diffusion import close
from dig_core.training.draws import target_law
from dig_core.training.fit import Task, fit
from dig_core.training.loop import LoopConfig
from dig_core.training.losses import Frames
from dig_core.training.pidp import PIDP, noise_times, pidp_loss, stiffness
from dig_core.training.residuals import density_residual, fokker_planck_residual, score_mismatch
from dig_core.training.stages import Denoise, Physics
from dig_core.types import Geometry

DOUBLE = torch.float64
PARTS = {"x": Diffusion(Euclidean(2), LogSNR()), "pos": Diffusion(ZeroCentroid(2), Linear()), "a": Diffusion(Torus(1), Geometric())}
JOINT = example_model(**PARTS)
TIMES = torch.tensor([0.02, 0.1, 0.35, 0.7, 1.0], dtype=DOUBLE)


class Scaled(nn.Module):
    """A score times a number: what matching directions alone cannot tell from the right one."""

    def __init__(self, model, factor: float):
        super().__init__()
        self.model, self.process, self.factor = model, model.process, factor

    def forward(self, state, t, descriptor=None):
        return {name: self.factor * s for name, s in self.model(state, t, descriptor).items()}


class Exact(nn.Module):
    """The potential that makes an :class:`EnergyScore` exact, up to a constant that depends on t alone, times ``factor``."""

    def __init__(self, model: AnalyticScore, factor: float = 1.0):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, state, t, descriptor=None):
        total = -self.factor * self.model.log_prob(state, t) + torch.sin(3 * t)
        for name, part in self.model.process.items():
            if not part.space.periodic:
                alpha, sigma = part.levels(t)
                total = total - 0.5 * (state[name] ** 2 / (alpha**2 + sigma**2)).flatten(1).sum(1)
        return total


def noised(model, copies: int = 1, t: torch.Tensor = TIMES):
    """Points of the model's own noised law, one at each time, ``copies`` of them one after the other."""
    rng = torch.Generator().manual_seed(0)
    state = model.process.noise(model.sample(len(t), rng), t, rng).state
    return {name: x.repeat(copies, *[1] * (x.dim() - 1)) for name, x in state.items()}, t.repeat(copies)


def rms(vectors) -> float:
    return float(torch.cat([v.flatten() for v in vectors.values()]).square().mean().sqrt())


# The equation ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ALL_PROCESSES, ids=lambda p: f"{type(p.space).__name__}-{type(p.schedule).__name__}")
def test_exact_scores_solve_the_equation_on_every_space_and_schedule(process):
    model = example_model(x=process)
    state, t = noised(model)
    assert fokker_planck_residual(model, state, t, None).first["x"].abs().max() < 1e-12
    for wrong in (Scaled(model, 1.1), Sabotaged(model, 0.1)):
        assert rms(fokker_planck_residual(wrong, state, t, None).first) > 1e-3


def test_joint_law_solves_it_with_the_components_in_any_order():
    state, t = noised(JOINT)
    found = fokker_planck_residual(JOINT, dict(reversed(state.items())), t, None)
    assert all(v.abs().max() < 1e-12 for v in found.first.values())
    assert rms(fokker_planck_residual(Scaled(JOINT, 1.1), state, t, None).first) > 0.01


def test_components_feel_each_other():
    """A slip in the score of x that depends on a shows in the equation of a, whose own score is right."""

    class Leaning(Scaled):
        def forward(self, state, t, descriptor=None):
            score = self.model(state, t, descriptor)
            return {**score, "x": score["x"] + 0.1 * torch.sin(state["a"])}

    state, t = noised(JOINT)
    found = fokker_planck_residual(Leaning(JOINT, 1.0), state, t, None).first
    assert rms({"a": found["a"]}) > 1e-3


def test_diagonal_is_that_of_the_jacobian():
    state, t = noised(JOINT)
    found = fokker_planck_residual(JOINT, state, t, None).diagonal
    for name in ("x", "a"):
        sigma = JOINT.process[name].levels(t)[1]
        close(1 + sigma**2 * found[name], JOINT.moments(state, t).spread[name], 1e-12, f"variance of the noise of {name}")


@pytest.mark.parametrize("residual", ["equation", "boundary", "density"])
def test_two_probes_square_without_bias_and_one_does_not(residual):
    model = EnergyScore(Exact(JOINT, 1.3), JOINT.process) if residual == "density" else Sabotaged(JOINT, 0.1)
    copies = 1500

    def found(n: int, trace: str):
        state, t = noised(JOINT, n)
        options = {"trace": trace, "rng": torch.Generator().manual_seed(1)}
        if residual == "equation":
            return fokker_planck_residual(model, state, t, None, **options)
        if residual == "density":
            return density_residual(model, state, t, None, **options)
        force = {name: torch.zeros_like(x) for name, x in state.items()}
        return score_mismatch(model, state, force, torch.tensor([0.3], dtype=DOUBLE), None, **options)

    def squares(pair, left, right):
        if residual == "density":
            return pair[left] * pair[right]
        return sum((pair[left][name] * pair[right][name]).flatten(1).sum(1) for name in pair[left])

    exact = squares(found(1, "exact"), 0, 0)
    probed = found(copies, "two-probe")
    two, one = (squares(probed, 0, k).reshape(copies, -1) for k in (1, 0))
    error = two.std(0) / math.sqrt(copies)
    assert ((two.mean(0) - exact).abs() < 4 * error + 1e-9).all()
    assert (one.mean(0) - exact > 4 * one.std(0) / math.sqrt(copies)).any()


# The density -----------------------------------------------------------------------------------------------------------------


def test_exact_energies_solve_both_equations_whatever_their_normalisation():
    model, run = EnergyScore(Exact(JOINT), JOINT.process), 8
    state, t = noised(JOINT, t=torch.tensor([0.05, 0.3, 0.9], dtype=DOUBLE).repeat_interleave(run))
    assert all(v.abs().max() < 1e-11 for v in fokker_planck_residual(model, state, t, None).first.values())
    found = density_residual(model, state, t, None)
    assert found.first.abs().min() > 1e-2, "the constant moves with t"
    assert found.variance(run).max() < 1e-20
    wrong = EnergyScore(Exact(JOINT, 1.1), JOINT.process)
    assert density_residual(wrong, state, t, None).variance(run).min() > 1e-4


def test_equation_of_the_score_is_the_gradient_of_that_of_the_density():
    model = EnergyScore(Exact(JOINT, 1.3), JOINT.process)
    state, t = noised(JOINT)
    state = {name: x.requires_grad_() for name, x in state.items()}
    pace = sum(p.space.dim * p.weight(t) for p in JOINT.process.values()) / JOINT.process.dim
    slope = torch.autograd.grad((pace * density_residual(model, state, t, None).first).sum(), list(state.values()))
    found = fokker_planck_residual(model, state, t, None).first
    for (name, part), gradient in zip(JOINT.process.items(), slope, strict=True):
        alpha, sigma = part.levels(t)
        rows = [-1] + [1] * (gradient.dim() - 1)
        wanted = part.space.project(gradient) * (alpha**2 + sigma**2).sqrt() / part.weight(t).reshape(rows)
        close(found[name], wanted, 1e-10, f"residual of {name}")


def test_variance_is_unbiased_and_blind_to_what_is_not_weighed():
    found = density_residual(EnergyScore(Exact(JOINT, 1.3), JOINT.process), *noised(JOINT, t=TIMES[2:3].repeat(6)), None)
    close(found.variance(6)[0], found.first.var(), 1e-12, "variance of six")
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0], dtype=DOUBLE)
    close(5 * found.variance(6, weight)[0], 3 * found.first[:4].var(), 1e-12, "sum of squares of four of six")
    assert found.variance(6, 0 * weight) == 0


# The boundary ----------------------------------------------------------------------------------------------------------------


def early(process: Joint, low_noise: float) -> Joint:
    """The same spaces with this little noise at t -> 0."""
    high = -2 * math.log(low_noise)
    return Joint(**{n: Diffusion(p.space, Geometric(low_noise, 3.5) if p.space.periodic else LogSNR(high)) for n, p in process.items()})


def test_right_forces_leave_nothing_and_magnitude_and_temperature_count():
    state = JOINT.sample(20, torch.Generator().manual_seed(1))
    start = torch.tensor([1e-6], dtype=DOUBLE)
    missed = []
    for noise in (0.04, 0.02):
        model = AnalyticScore(early(JOINT.process, noise), JOINT.laws)
        force = {n: (law.score(model._flat(state, n)) @ model._bases[n]).reshape(state[n].shape) for n, law in JOINT.laws.items()}
        missed.append(rms(score_mismatch(model, state, force, start, None).first))
    assert missed[1] < 2e-2 and missed[0] / missed[1] > 8, "what is left goes with sigma^4"
    half = {n: 0.5 * f for n, f in force.items()}
    assert rms(score_mismatch(model, state, half, start, None).first) == pytest.approx(0.5 * rms(force), rel=0.05)


def test_temperature_is_told_by_the_boundary_alone():
    """A law of another temperature solves the equation as well as the right one does: forces set the scale."""

    def normal(kt: float) -> AnalyticScore:
        return AnalyticScore(Joint(x=Diffusion(Euclidean(1), LogSNR(12.0, -6.0))), {"x": GaussianMixture([1.0], [[0.4]], [[0.3 * kt]])})

    state, t = noised(normal(1.0))
    assert rms(fokker_planck_residual(normal(2.0), state, t, None).first) < 1e-12
    force = {"x": -(state["x"] - 0.4) / 0.3}
    start = torch.tensor([1e-6], dtype=DOUBLE)
    assert rms(score_mismatch(normal(1.0), state, force, start, None).first) < 1e-3
    assert rms(score_mismatch(normal(2.0), state, force, start, None).first) == pytest.approx(0.5 * rms(force), rel=1e-3)


# Losses ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [PARTS["x"], PARTS["pos"], Diffusion(Euclidean(1), Geometric(0.02, 20.0))])
def test_noise_times_see_every_e_fold_alike(process):
    t = noise_times(Joint(x=process), 1000, torch.Generator().manual_seed(0))
    assert (t.diff() >= 0).all() and t.min() >= 1e-3 and t.max() <= 1
    fold = 2 * (process.schedule.sigma(t.double()) / process.schedule.alpha(t.double())).log()
    even = torch.linspace(float(fold[0]), float(fold[-1]), 1000, dtype=DOUBLE)
    assert (fold - even).abs().max() < 3 * float(even[1] - even[0])


def data(n: int = 200, dtype=torch.float32) -> Frames:
    state = JOINT.sample(n, torch.Generator().manual_seed(3))
    force = JOINT(state, torch.tensor([1e-3], dtype=DOUBLE))
    return Frames({k: x.to(dtype) for k, x in state.items()}, {k: x.to(dtype) for k, x in force.items()})


def test_loss_is_small_for_the_exact_score_alone():
    frames, rng = data(dtype=DOUBLE), torch.Generator().manual_seed(0)
    t = noise_times(JOINT.process, 200, rng).double()
    right, wrong = (pidp_loss(m, frames, None, t, rng, trace="exact") for m in (JOINT, Sabotaged(JOINT, 0.1)))
    assert right["residual"] < 1e-20 and wrong["residual"] > 0.01
    assert right["boundary"] < 0.1 * wrong["boundary"] and right["spread"] < wrong["spread"]


def test_overlaps_count_for_little():
    """A force of 1e30 weighs like ten usual ones a coordinate, and a coordinate of no force at all has a unit."""
    frames, t = data(), torch.full((200,), 0.4)
    frames.force["x"][0] = 1e30
    found = pidp_loss(JOINT, frames, None, t, torch.Generator().manual_seed(0))
    wanted = pidp_loss(JOINT, data(), None, t, torch.Generator().manual_seed(0))
    assert 0 < found["boundary"] - wanted["boundary"] < 0.5 * 10 * 9 / 200
    assert stiffness({"free": torch.zeros(9, 1)})["free"] > 0


def test_mean_forces_are_learned_where_all_frames_count_alike():
    """A normal law seen through forces of which it is known only what they are on average: skewed, most of them on one side.

    The loss is a parabola of where the law is said to stand; weights that look at the forces move its lowest point.
    """
    n, rng = 20_000, torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, generator=rng, dtype=DOUBLE)
    hidden = 2 * (torch.empty(n, 1, dtype=DOUBLE).exponential_(generator=rng) - 1)
    frames, t = Frames({"x": x}, {"x": -x + hidden}), torch.full((n,), 0.5, dtype=DOUBLE)
    process = Joint(x=Diffusion(Euclidean(1), LogSNR()))

    def lowest(trust: float | None) -> float:
        laws = [AnalyticScore(process, {"x": GaussianMixture([1.0], [[m]], [[1.0]])}) for m in (-0.5, 0.0, 0.5)]
        left, middle, right = (
            float(pidp_loss(law, frames, None, t, torch.Generator().manual_seed(0), trust=trust)["boundary"]) for law in laws
        )
        return 0.25 * (left - right) / (left + right - 2 * middle)

    error = 2 / math.sqrt(n)
    assert abs(lowest(None)) < 4 * error
    assert abs(lowest(10.0)) > 10 * error


def test_low_precision_is_read_in_full_and_trains_the_same_weights():
    def network(precision: str) -> NoiseScore:
        net = ResidualMLP({"x": 3}, [], width=16, blocks=1, precision=precision, seed=1)
        net.leave.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
        return NoiseScore(net, Joint(x=Diffusion(Euclidean(3), LogSNR())))

    x, t = {"x": torch.randn(8, 3, generator=torch.Generator().manual_seed(0))}, torch.full((8,), 0.5)
    low, full = network("bfloat16"), network("float32")
    found, wanted = (fokker_planck_residual(m, x, t, None).first["x"] for m in (low, full))
    assert torch.equal(found, wanted)
    found.square().sum().backward()
    assert all(p.grad is not None for p in (low.network.enter, low.network.leave, low.network.film))


def test_losses_say_what_they_lack():
    frames, rng = data(), torch.Generator()
    with pytest.raises(IncompatibleError, match="forces"):
        PIDP(Frames(frames.state), None)
    with pytest.raises(IncompatibleError, match="forces"):
        pidp_loss(JOINT, Frames(frames.state), None, torch.ones(200), rng)
    with pytest.raises(IncompatibleError, match="trace"):
        PIDP(frames, None, trace="hutchinson")
    with pytest.raises(IncompatibleError, match="positive"):
        PIDP(frames, None, trust=0.0)
    with pytest.raises(IncompatibleError, match="not finite"):
        PIDP(Frames(frames.state, {k: f / 0 for k, f in frames.force.items()}), None)
    with pytest.raises(IncompatibleError, match="rng"):
        fokker_planck_residual(JOINT, frames.state, torch.ones(200), None, trace="two-probe")
    with pytest.raises(IncompatibleError, match="needs an energy"):
        fit(toy(untrained("noise")), [Physics()])


# Training --------------------------------------------------------------------------------------------------------------------

WELL = Joint(x=Diffusion(Euclidean(1), LogSNR(6.0, -5.0)))


def well(geometry: Geometry) -> torch.Tensor:
    """Two wells, 3 kT deep and tilted."""
    x = geometry.positions[:, 0, 0]
    return 3 * (x**2 - 1) ** 2 + 0.5 * x


def untrained(kind: str):
    if kind == "noise":
        return NoiseScore(ResidualMLP({"x": 1}, [], width=64, blocks=2), WELL).requires_grad_(False)
    return EnergyScore(ScalarMLP({"x": 1}, [], width=64, blocks=2), WELL).requires_grad_(False)


def worth(dig) -> float:
    return effective_sample_size(Pool(dig.proposal(), well, seed=7, batch=1024).take(4096).log_weight)


@pytest.mark.parametrize(("kind", "steps"), [pytest.param("noise", 280, marks=pytest.mark.slow), ("energy", 180)])
def test_forces_alone_teach_a_double_well(kind, steps):
    """No frame is of the ensemble, the model starts from nothing, and its proposals become worth twice as much."""
    dig = toy(untrained(kind), card=Card(steps=64))
    before = worth(dig)
    config = LoopConfig(steps=steps, batch=256, rate=5e-3, warmup=50, average=0.98, every=steps)
    broad = torch.linspace(-1.7, 1.7, 1000, dtype=DOUBLE)[:, None, None] * torch.tensor([1.0, 0.0, 0.0], dtype=DOUBLE)
    found = fit(dig, [Physics(config, structures=Geometry(broad))], energy=well, progress=False)
    assert found.evaluations == 1000 and found.frames is None
    assert before < 0.35 and worth(found.dig) > 0.65
    if kind == "energy":
        # The equation of log q sees the weights of wells everywhere; that of the score through the barrier alone, and slowly.
        x = torch.linspace(-3, 3, 3001, dtype=DOUBLE)
        left = torch.softmax(-well(Geometry(x[:, None, None].expand(-1, 1, 3))), 0)[x < 0].sum()
        share = (found.dig.sample(4000, seed=1, batch=1000).state["x"] < 0).double().mean()
        assert float(share) == pytest.approx(float(left), abs=0.08)


def test_stage_looks_at_its_own_hot_chains_and_counts_them(tmp_path):
    """Without structures: frames that carry forces of the target, wider than its law, their energies counted."""
    asked = []

    def counted(geometry):
        asked.append(len(geometry.positions))
        return well(geometry)

    stage = Physics(LoopConfig(steps=2, batch=32, every=2), draws=2000)
    found = fit(toy(untrained("noise")), [stage], energy=counted, progress=False)
    assert found.evaluations == sum(asked) <= 2000
    frames, _ = stage._frames(found, Task(well, None, 0, False))
    _, force = target_law(found.dig, well, frames.state)
    assert torch.allclose(frames.force["x"].double(), force["x"], atol=1e-3, rtol=1e-3)
    assert 0.5 < float(frames.state["x"].std()) < 1.5


def test_data_with_an_energy_are_learned_from_with_forces():
    """Frames that come without forces get them where there is an energy, once, and every evaluation is counted."""
    model = example_model(x=Diffusion(Euclidean(2), LogSNR()))
    energy, asked = LawEnergy(model), []

    def counted(geometry):
        asked.append(len(geometry.positions))
        return energy(geometry)

    def dig():
        return toy(NoiseScore(ResidualMLP({"x": 2}, [], width=16, blocks=1), model.process).requires_grad_(False))

    state = {"x": model.sample(60, torch.Generator().manual_seed(0))["x"].float()}
    stages = [Denoise(LoopConfig(steps=3, batch=16, every=3))] * 2
    given = {"frames": Frames(state).take(torch.arange(50)), "validation": Frames(state).take(torch.arange(50, 60))}
    found = fit(dig(), stages, energy=counted, progress=False, **given)
    assert found.evaluations == sum(asked) == 60
    wanted = model.laws["x"].score(state["x"].double())
    assert torch.allclose(found.frames.force["x"].double(), wanted[:50], atol=1e-4)
    assert torch.allclose(found.validation.force["x"].double(), wanted[50:], atol=1e-4)
    plain = fit(dig(), stages, progress=False, **given)
    assert plain.frames.force is None and plain.evaluations == 0
    assert any(not torch.equal(a, b) for a, b in zip(found.dig.model.parameters(), plain.dig.model.parameters(), strict=True))
