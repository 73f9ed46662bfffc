"""Laws with known answers, fixed seeds, z-score limits: whatever the network, path weights give the right averages.

A chain whose start is drawn from the target must still be in it after a step; many short chains test that without mixing or
autocorrelation in the way, and a step that forgets its density is shown to fail the same test.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dig_core.coordinates import Cartesian
from dig_core.diffusion import SO3, Diffusion, Euclidean, Geometric, Joint, Lattice, LogSNR, Torus, ZeroCentroid
from dig_core.dig import DiG
from dig_core.energy import AnalyticScore, DoubleWell, GaussianMixture, WrappedMixture
from dig_core.montecarlo.analysis import effective_sample_size
from dig_core.montecarlo.chain import Candidates, MonteCarlo, Pool, independence_metropolis, isir
from dig_core.montecarlo.proposals import PathProposal
from dig_core.nn.mlp import ResidualMLP
from dig_core.random import Streams
from dig_core.sampling.solvers import SOLVERS
from dig_core.score import NoiseScore
from dig_core.system.descriptor import molecule
from dig_core.testing import ALL_PROCESSES, ALL_SOLVERS, LawEnergy, Sabotaged, check_proposal, example_model, toy
from dig_core.types import Geometry

DOUBLE, LIMIT = torch.float64, 4.0


def stiff_covariance() -> torch.Tensor:
    """12 x 12, condition number 100, along no axis."""
    rng = torch.Generator().manual_seed(0)
    axes, _ = torch.linalg.qr(torch.randn(12, 12, generator=rng, dtype=DOUBLE))
    return axes @ torch.diag(torch.logspace(-2, 0, 12, dtype=DOUBLE)) @ axes.T


def laws(case: str):
    """Process, target law and a model's law that has the modes, but not their weights or widths."""
    if case == "plane":
        means = [[-1.0, 0.5], [1.2, -0.4]]
        target = GaussianMixture([0.2, 0.8], means, [[0.05, 0.3], [0.2, 0.1]])
        return Diffusion(Euclidean(2), LogSNR()), target, GaussianMixture([0.7, 0.3], means, [[0.1, 0.3], [0.3, 0.15]])
    if case == "torus":
        means = [[2.5, -3.0], [-0.5, 1.0]]
        target = WrappedMixture([0.2, 0.8], means, [[0.1, 0.2], [0.3, 0.1]])
        return Diffusion(Torus(2), Geometric()), target, WrappedMixture([0.7, 0.3], means, [[0.2, 0.2], [0.3, 0.2]])
    covariance, far = stiff_covariance(), torch.full((12,), 0.8, dtype=DOUBLE)
    means = torch.stack([far, -far])
    target = GaussianMixture([0.2, 0.8], means, torch.stack([covariance, covariance]))
    return (
        Diffusion(Euclidean(12), LogSNR()),
        target,
        GaussianMixture([0.5, 0.5], means, 1.2 * torch.stack([covariance] * 2)),
    )


def untrained(process: Joint) -> NoiseScore:
    sizes = {name: part.space.dim for name, part in process.items()}
    return NoiseScore(
        ResidualMLP(sizes, [n for n, p in process.items() if p.space.periodic], width=16, blocks=1), process
    )


def setting(case: str, kind: str) -> tuple[AnalyticScore, PathProposal]:
    """The target as an analytic model, and proposals of a model of that kind."""
    process, target, law = laws(case)
    joint = Joint(x=process)
    near = AnalyticScore(joint, {"x": law})
    model = {
        "analytic": near,
        "untrained": untrained(joint),
        "sabotaged": Sabotaged(near, 0.06 if case == "stiff" else 0.3),
    }[kind]
    return AnalyticScore(joint, {"x": target}), PathProposal(toy(model), steps=20 if case == "stiff" else 12)


def observables(state) -> torch.Tensor:
    """(B, 3): which mode, and two smooth functions."""
    x = state["x"]
    return torch.stack([(x[:, 0] > 0.5).double(), torch.cos(x[:, 0]), torch.sin(x[:, -1])], dim=1)


def z_scores(found: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Of the means of found (n, k) against those of exact draws (m, k)."""
    error = (found.var(0) / len(found) + exact.var(0) / len(exact)).sqrt()
    return (found.mean(0) - exact.mean(0)) / error


def step(target: AnalyticScore, proposal: PathProposal, n: int, scheme, tries: int, blind: bool = False):
    """``tries`` proposals to each of n chains that start in the target; (observables after, share that moved)."""
    energy, coordinates = LawEnergy(target), proposal.dig.coordinates
    start = coordinates.decode(target.sample(n, torch.Generator().manual_seed(5)))
    log_q = proposal.log_q(start, Streams(7, range(n)))
    weights = (-energy(start) - (0 if blind else log_q)).numpy()
    pool = Pool(proposal, energy, seed=11, batch=n * tries)
    drawn = pool.take(n * tries)
    if blind:
        drawn = drawn._replace(log_q=np.zeros_like(drawn.log_q))
    rng, positions, moved = Streams.chain(3), start.positions.clone(), 0
    for i in range(n):
        mine = Candidates(*(field[i * tries : (i + 1) * tries] for field in drawn))
        path, _ = scheme(weights[i], mine, rng)
        if path[-1] >= 0:
            positions[i] = torch.from_numpy(mine.positions[path[-1]])
            moved += 1
    state, _ = coordinates.encode(Geometry(positions))
    return observables(state), moved / n


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("plane", "analytic"),
        ("plane", "untrained"),
        ("plane", "sabotaged"),
        ("torus", "analytic"),
        ("torus", "sabotaged"),
        ("stiff", "analytic"),
        ("stiff", "sabotaged"),
        pytest.param("torus", "untrained", marks=pytest.mark.slow),
        pytest.param("stiff", "untrained", marks=pytest.mark.slow),
    ],
)
def test_metropolis_steps_leave_the_target_alone(case, kind):
    target, proposal = setting(case, kind)
    after, moved = step(target, proposal, 1000, independence_metropolis, 6)
    exact = observables(target.sample(200_000, torch.Generator().manual_seed(9)))
    assert z_scores(after, exact).abs().max() < LIMIT
    # An untrained network cannot guess a stiff law; everything else has to move for the test to say anything.
    assert moved > (0.3 if kind == "analytic" else 0.05) or (case, kind) == ("stiff", "untrained")


@pytest.mark.parametrize("kind", ["untrained", "sabotaged"])
def test_multiple_try_step_leaves_the_target_alone(kind):
    target, proposal = setting("plane", kind)
    after, moved = step(target, proposal, 1000, isir, 6)
    exact = observables(target.sample(200_000, torch.Generator().manual_seed(9)))
    assert z_scores(after, exact).abs().max() < LIMIT and moved > 0.2


def test_a_step_without_densities_is_caught():
    """The test above has the power it needs: what a symmetric-Metropolis base class would do is seen at once."""
    target, proposal = setting("plane", "analytic")
    after, _ = step(target, proposal, 1000, independence_metropolis, 6, blind=True)
    exact = observables(target.sample(200_000, torch.Generator().manual_seed(9)))
    assert z_scores(after, exact).abs().max() > LIMIT


@pytest.mark.parametrize("case", ["plane", "torus"])
@pytest.mark.parametrize("kind", ["analytic", "untrained", "sabotaged"])
def test_chain_from_a_wrong_start_finds_the_weights_of_the_modes(case, kind):
    target, proposal = setting(case, kind)
    energy, n = LawEnergy(target), 6000
    start = proposal.dig.coordinates.decode({"x": target.laws["x"].means[:1]})
    weight = float(-energy(start) - proposal.log_q(start, Streams(1, [0])))
    drawn = Pool(proposal, energy, seed=2, batch=n).take(n)
    path, records = independence_metropolis(weight, drawn, Streams.chain(4))
    state, _ = proposal.dig.coordinates.encode(Geometry(torch.from_numpy(drawn.positions[path[path >= 0]])))
    after = observables(state)
    blocks = torch.stack([chunk.mean(0) for chunk in after.chunk(20)])
    exact = observables(target.sample(200_000, torch.Generator().manual_seed(9)))
    assert z_scores(blocks, exact).abs().max() < LIMIT
    assert records.accepted.mean() > 0.05


@pytest.mark.parametrize("case", ["plane", "torus", "stiff"])
@pytest.mark.parametrize("kind", ["analytic", "untrained", "sabotaged"])
def test_path_weights_average_to_the_partition_function(case, kind):
    target, proposal = setting(case, kind)
    if (case, kind) == ("stiff", "untrained"):
        pytest.skip("a unit normal law cannot cover a stiff one with a few thousand draws")
    # Weights of structures have thin tails only where the proposals are as wide as the target: the analytic ones are.
    structures = target.sample(1500, torch.Generator().manual_seed(1)) if kind == "analytic" else None
    geometry = None if structures is None else proposal.dig.coordinates.decode(structures)
    check_proposal(proposal, LawEnergy(target), 0.0, n=4000, structures=geometry)


def test_exact_model_on_a_fine_grid_weighs_all_alike():
    process, target, _ = laws("torus")
    model = AnalyticScore(Joint(x=process), {"x": target})
    spread = []
    for steps in (10, 40, 160):
        samples = PathProposal(toy(model), steps=steps).draw(400, Streams(0, range(400)))
        spread.append(float((-LawEnergy(model)(samples.geometry) - samples.log_q).std()))
    assert spread[0] > 1.5 * spread[1] > 2.2 * spread[2] and spread[2] < 0.2


@pytest.mark.parametrize("scheme", ["metropolis", pytest.param("isir", marks=pytest.mark.slow)])
def test_chain_with_local_moves_samples_a_double_well_molecule(scheme):
    """A dimer in Angstrom, an untrained model, redrawn paths and somebody else's moves in between: p(far) by quadrature."""
    well, near = DoubleWell(height=1.5, near=1.0, far=2.0), 1.5
    r = torch.linspace(1e-3, 6, 20_001, dtype=DOUBLE)
    density = r**2 * torch.exp(-well.profile(r))
    wanted = float(density[r > near].sum() / density.sum())
    descriptor = molecule([1, 1], [(0, 1)], positions=[[0.0, 0, 0], [1.0, 0, 0]])
    joint = Joint(pos=Diffusion(ZeroCentroid(2), LogSNR()))
    model = AnalyticScore(joint, {"pos": GaussianMixture([1.0], [[0.0] * 3], [[1.0] * 3])})
    dig = DiG(Sabotaged(model, 0.1), Cartesian(0.7), descriptor)

    def shake(positions: np.ndarray, block: int) -> np.ndarray:
        """A symmetric random-walk step with its own numbers, exact by itself."""
        rng = np.random.default_rng([17, block])
        trial = positions + rng.normal(scale=0.2, size=positions.shape)
        u = well(Geometry(torch.from_numpy(np.stack([positions, trial]))))
        return trial if math.log(rng.random()) < float(u[0] - u[1]) else positions

    chain = MonteCarlo(dig.proposal(steps=6), well, descriptor.reference, seed=0, batch=400, scheme=scheme, local=shake)
    visited = np.concatenate([chain.block(8)[0] for _ in range(160)])
    far = np.linalg.norm(visited[:, 1] - visited[:, 0], axis=1) > near
    blocks = far.reshape(20, -1).mean(1)
    assert abs(blocks.mean() - wanted) < LIMIT * blocks.std(ddof=1) / math.sqrt(20)


def means_and_variances(state, process) -> torch.Tensor:
    """(B, k): first and second moments on R^d, first two harmonics on the torus."""
    x = state["x"].flatten(1)
    if process.space.periodic:
        return torch.cat([x.sin(), x.cos(), (2 * x).cos()], dim=1)
    flat = x @ process.space.basis().flatten(1).T
    return torch.cat([flat, flat**2], dim=1)


def quick_first(processes):
    """All processes; spaces that differ in their basis alone, and those that take longest, see two schedules in the quick tests."""
    found = []
    for process in processes:
        slow = isinstance(process.space, ZeroCentroid) and type(process.schedule).__name__ not in ("LogSNR", "Linear")
        slow = slow or (isinstance(process.space, SO3 | Lattice) and process.schedule.config["high"] > 10)
        name = "-".join(
            [type(process.space).__name__, type(process.schedule).__name__, *map(str, process.schedule.config.values())]
        )
        found.append(pytest.param(process, id=name, marks=[pytest.mark.slow] * slow))
    return found


@pytest.mark.parametrize("solver", [name for name in ALL_SOLVERS if name != "cold"])
@pytest.mark.parametrize("process", quick_first(ALL_PROCESSES))
def test_every_solver_reproduces_the_moments_on_every_process(process, solver):
    """Up to 4 standard errors and a discretisation error that is each solver's own."""
    model, n = example_model(x=process), 800
    # The SDE with the article's noise forgets nothing but learns slowly: first order in the step.
    steps, allowed = (80, 0.12) if solver == "sde" else (30, 0.05)
    grid = torch.linspace(0, 1, steps + 1, dtype=DOUBLE)
    found = means_and_variances(SOLVERS[solver](model, None, grid, Streams(0, range(n))), process)
    exact = means_and_variances(model.sample(100_000, torch.Generator().manual_seed(0)), process)
    error = LIMIT * found.std(0) / math.sqrt(n)
    gap = (found.mean(0) - exact.mean(0)).abs()
    assert (gap < error + allowed * exact.std(0)).all(), f"{gap} against {error} + {allowed * exact.std(0)}"


@pytest.mark.parametrize("kind", ["analytic", "sabotaged"])
def test_several_paths_a_structure_are_exact(kind):
    target, proposal = setting("plane", kind)
    several = PathProposal(proposal.dig, grid=proposal.grid, paths=3)
    exact = observables(target.sample(200_000, torch.Generator().manual_seed(1)))
    found, moved = step(target, several, 2000, independence_metropolis, tries=3)
    assert moved > 0.05
    assert float(z_scores(found, exact).abs().max()) < LIMIT


def test_several_paths_narrow_the_weights():
    """Averaging paths takes the paths' own noise out of the weights; what is left is the error of the marginal."""
    target, proposal = setting("plane", "sabotaged")
    spread = []
    for paths in (1, 8):
        pool = Pool(PathProposal(proposal.dig, grid=proposal.grid, paths=paths), LawEnergy(target), seed=2, batch=1000)
        spread.append(effective_sample_size(pool.take(1000).log_weight))
    assert spread[1] > 1.1 * spread[0]
