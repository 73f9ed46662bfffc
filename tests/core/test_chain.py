"""Chains: both schemes leave a known law invariant, failed proposals are never accepted, and a chain goes on where it stopped."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dig_core.errors import IncompatibleError, StateError
from dig_core.montecarlo.chain import Candidates, MonteCarlo, Pool, Reason, independence_metropolis, isir
from dig_core.random import Streams
from dig_core.testing import ALL_PROCESSES, example_model, toy
from dig_core.types import Geometry, Samples

SCHEMES = {"metropolis": independence_metropolis, "isir": isir}
SEED = 11


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """Noise made a few numbers at a time: the same numbers (test_random), sooner for samples that need two."""
    monkeypatch.setattr("dig_core.random._BLOCK", 8)


# A target in the plane: a mixture of two normal laws, cut at x + y > -3 -------------------------------------------------

WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[-1.5, 0.5], [1.0, -0.5]])
SIGMAS = np.array([[0.5, 1.0], [1.0, 0.6]])
CUT = -3.0


def energy_of(points: np.ndarray) -> np.ndarray:
    """u (n,) of points (n, 2), up to a constant; +inf beyond the cut and where a point is not a number."""
    x, y = points.T
    terms = [
        w / (a * b) * np.exp(-0.5 * ((x - mx) / a) ** 2 - 0.5 * ((y - my) / b) ** 2)
        for w, (mx, my), (a, b) in zip(WEIGHTS, MEANS, SIGMAS, strict=True)
    ]
    with np.errstate(divide="ignore"):
        return np.where(x + y > CUT, 7.0 - np.log(terms[0] + terms[1]), np.inf)


def draw_target(n: int, rng: np.random.Generator) -> np.ndarray:
    which = rng.choice(2, size=3 * n, p=WEIGHTS)
    points = MEANS[which] + SIGMAS[which] * rng.standard_normal((3 * n, 2))
    return points[points.sum(1) > CUT][:n]


OBSERVABLES = {
    "x": lambda p: p[:, 0],
    "y": lambda p: p[:, 1],
    "xx": lambda p: p[:, 0] ** 2,
    "yy": lambda p: p[:, 1] ** 2,
    "xy": lambda p: p[:, 0] * p[:, 1],
    "left": lambda p: (p[:, 0] < -0.5).astype(float),
    "near the cut": lambda p: (p.sum(1) < -1).astype(float),
    "inside": lambda p: np.hypot(p[:, 0], p[:, 1]) < 0.7,
}


def quadrature() -> dict[str, float]:
    """Exact averages of the observables, by the midpoint rule."""
    axis = np.arange(-7, 7, 0.02) + 0.01
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    weight = np.exp(-energy_of(points))
    return {name: float((f(points) * weight).sum() / weight.sum()) for name, f in OBSERVABLES.items()}


@pytest.fixture(scope="module")
def exact() -> dict[str, float]:
    return quadrature()


def assert_law(points: np.ndarray, exact: dict[str, float]) -> None:
    """Independent points have the target's averages: every |z| < 4."""
    for name, observable in OBSERVABLES.items():
        values = observable(points).astype(float)
        z = (values.mean() - exact[name]) / (values.std() / math.sqrt(len(values)))
        assert abs(z) < 4, f"{name}: {values.mean():.4f} instead of {exact[name]:.4f}, z = {z:.1f}"


def assert_chain(path: np.ndarray, exact: dict[str, float], stretches: int = 40) -> None:
    """Averages of a correlated series, with the error from means over long stretches: every |z| < 4."""
    length = len(path) // stretches
    for name, observable in OBSERVABLES.items():
        means = observable(path[: stretches * length]).astype(float).reshape(stretches, length).mean(1)
        z = (means.mean() - exact[name]) / (means.std(ddof=1) / math.sqrt(stretches))
        assert abs(z) < 4, f"{name}: {means.mean():.4f} instead of {exact[name]:.4f}, z = {z:.1f}"


# Proposals of known density: two atoms, whose difference (x, y, 0) is the point -----------------------------------------

SPREAD = 2.0


def positions_of(points: torch.Tensor) -> torch.Tensor:
    """(B, 2, 3) centred atoms of points (B, 2)."""
    half = torch.nn.functional.pad(points.double(), (0, 1)) / 2
    return torch.stack([-half, half], dim=1)


def points_of(positions) -> np.ndarray:
    positions = np.asarray(positions)
    return positions[..., 1, :2] - positions[..., 0, :2]


def normal_log_density(x: torch.Tensor, variance: float) -> torch.Tensor:
    return (-0.5 * x**2 / variance - 0.5 * math.log(2 * math.pi * variance)).sum(1)


class WideProposal:
    """Normal around the origin."""

    exact = True

    def __init__(self):
        self.drawn = 0

    def draw(self, n: int, rng: Streams) -> Samples:
        self.drawn += n
        points = SPREAD * rng.normal(2, dtype=torch.float64)
        return self.samples(points, normal_log_density(points, SPREAD**2), n)

    def samples(self, points, log_q, n) -> Samples:
        return Samples(
            Geometry(positions_of(points)), {"point": points}, log_q, torch.ones(n, dtype=torch.bool), "path"
        )

    def log_q(self, geometry: Geometry, rng: Streams) -> torch.Tensor:
        return normal_log_density(torch.from_numpy(points_of(geometry.positions)), SPREAD**2)


class HiddenProposal(WideProposal):
    """A path of two steps: hidden point, then point; log_q = log p(hidden) + log p(point | hidden) - log r(hidden | point).

    ``r`` is deliberately not the true law of the hidden point, so that weights of one and the same point scatter.
    """

    hidden, step, back = 1.6, 1.3, 1.1

    def draw(self, n: int, rng: Streams) -> Samples:
        hidden = self.hidden * rng.normal(2, dtype=torch.float64)
        points = hidden + self.step * rng.normal(2, dtype=torch.float64)
        return self.samples(points, self._path(hidden, points), n)

    def log_q(self, geometry: Geometry, rng: Streams) -> torch.Tensor:
        points = torch.from_numpy(points_of(geometry.positions))
        return self._path(0.4 * points + self.back * rng.normal(2, dtype=torch.float64), points)

    def _path(self, hidden, points):
        forward = normal_log_density(hidden, self.hidden**2) + normal_log_density(points - hidden, self.step**2)
        return forward - normal_log_density(hidden - 0.4 * points, self.back**2)


def plane_energy(geometry: Geometry) -> torch.Tensor:
    return torch.from_numpy(energy_of(points_of(geometry.positions)))


def start_at(x: float, y: float, centroid=(0.0, 0.0, 0.0)) -> Geometry:
    return Geometry(positions_of(torch.tensor([[x, y]])) + torch.tensor(centroid, dtype=torch.float64))


def candidates_from(rng: np.random.Generator, n: int) -> Candidates:
    points = SPREAD * rng.standard_normal((n, 2))
    u = energy_of(points)
    log_q = normal_log_density(torch.from_numpy(points), SPREAD**2).numpy()
    reason = np.where(np.isfinite(u), Reason.NONE, Reason.ENERGY).astype(np.uint8)
    return Candidates(positions_of(torch.from_numpy(points)).numpy(), u, log_q, reason)


def log_weight_of(point: np.ndarray) -> float:
    return float(-energy_of(point[None])[0] - normal_log_density(torch.from_numpy(point[None]), SPREAD**2)[0])


# The two schemes by themselves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("n", [1, 2, 9])
def test_scheme_leaves_the_target_invariant(scheme, n, exact):
    """States drawn from the target have the target's law after a step; each start has its own proposals."""
    rng = np.random.default_rng(SEED + n)
    ends, moved = [], 0
    for start in draw_target(2000, rng):
        candidates = candidates_from(rng, n)
        path, _ = SCHEMES[scheme](log_weight_of(start), candidates, rng)
        moved += path[-1] >= 0
        ends.append(points_of(candidates.positions[path[-1]]) if path[-1] >= 0 else start)
    assert moved > 300
    assert_law(np.array(ends), exact)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scheme_forgets_a_start_that_is_not_typical(scheme, exact):
    rng = np.random.default_rng(SEED)
    start = np.array([-2.0, 3.0])
    ends = []
    for _ in range(700):
        here = start
        for _ in range(1 if scheme == "metropolis" else 5):
            candidates = candidates_from(rng, 60 if scheme == "metropolis" else 12)
            path, _ = SCHEMES[scheme](log_weight_of(here), candidates, rng)
            here = points_of(candidates.positions[path[-1]]) if path[-1] >= 0 else here
        ends.append(here)
    assert_law(np.array(ends), exact)


def test_metropolis_accepts_as_often_as_it_says():
    rng = np.random.default_rng(SEED)
    _, records = independence_metropolis(log_weight_of(np.array([1.0, 0.0])), candidates_from(rng, 20_000), rng)
    said = np.exp(records.log_alpha)
    assert (records.log_alpha <= 0).all()
    assert abs((records.accepted - said).sum() / np.sqrt((said * (1 - said)).sum())) < 4


def test_isir_selects_as_often_as_it_says():
    candidates, here = candidates_from(np.random.default_rng(1), 4), log_weight_of(np.array([1.0, 0.0]))
    rng, chosen = np.random.default_rng(SEED), np.zeros(5)
    for _ in range(20_000):
        path, records = isir(here, candidates, rng)
        chosen[path[0]] += 1  # -1, the starting state, is the last
    said = np.append(np.exp(records.log_alpha), 1 - np.exp(records.log_alpha).sum())
    weights = np.exp(np.append(candidates.log_weight, here))
    assert np.allclose(said, weights / weights.sum())
    assert (np.abs(chosen - 20_000 * said) < 4 * np.sqrt(20_000 * said * (1 - said)) + 1e-9).all()


def test_path_and_records_tell_the_same_story():
    rng = np.random.default_rng(SEED)
    candidates = candidates_from(rng, 500)
    path, records = independence_metropolis(log_weight_of(np.array([1.0, 0.0])), candidates, rng)
    changed = np.diff(np.concatenate([[-1], path])) != 0
    assert np.array_equal(changed, records.accepted)
    assert np.array_equal(path[records.accepted], np.flatnonzero(records.accepted))
    assert np.array_equal(records.u, candidates.u) and np.array_equal(records.reason, candidates.reason)
    # Every test is against the state that was current then, with certainty for a heavier proposal.
    before = np.concatenate(
        [[log_weight_of(np.array([1.0, 0.0]))], np.append(candidates.log_weight, np.nan)[path[:-1]]]
    )
    before[np.concatenate([[-1], path[:-1]]) == -1] = before[0]
    assert np.array_equal(records.log_alpha, np.minimum(0.0, candidates.log_weight - before))
    assert 0 < records.accepted.sum() < 500


def failing(values: dict[str, float], reason: Reason) -> Candidates:
    """Twenty candidates that must not be accepted, however good the rest of their weight looks."""
    n = 20
    fields = {"u": np.full(n, -1e3), "log_q": np.full(n, -1e3)} | {name: np.full(n, x) for name, x in values.items()}
    return Candidates(np.zeros((n, 2, 3)), fields["u"], fields["log_q"], np.full(n, reason, dtype=np.uint8))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("reason", Reason)
@pytest.mark.parametrize(
    "values",
    [{"u": np.nan}, {"u": np.inf}, {"u": -np.inf}, {"log_q": np.nan}, {"log_q": np.inf}, {"log_q": -np.inf}],
    ids=str,
)
def test_failed_candidates_are_never_accepted(scheme, reason, values):
    for seed in range(20):
        path, records = SCHEMES[scheme](-700.0, failing(values, reason), np.random.default_rng(seed))
        assert (path == -1).all() and not records.accepted.any()
        assert (np.exp(records.log_alpha) == 0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("reason", [r for r in Reason if r])
def test_a_reason_alone_forbids_acceptance(scheme, reason):
    path, records = SCHEMES[scheme](-700.0, failing({}, reason), np.random.default_rng(0))
    assert (path == -1).all() and not records.accepted.any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_failed_candidates_do_not_disturb_the_others(scheme, exact):
    """NaN among good proposals: the law is the target's all the same."""
    rng = np.random.default_rng(SEED)
    ends = []
    for start in draw_target(1500, rng):
        good = candidates_from(rng, 6)
        u = good.u.copy()
        u[::2] = np.nan
        candidates = good._replace(u=u)
        path, _ = SCHEMES[scheme](log_weight_of(start), candidates, rng)
        ends.append(points_of(candidates.positions[path[-1]]) if path[-1] >= 0 else start)
    assert_law(np.array(ends), exact)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("weight", [-math.inf, math.nan])
def test_impossible_current_state_is_an_error(scheme, weight):
    with pytest.raises(StateError, match="current state"):
        SCHEMES[scheme](weight, candidates_from(np.random.default_rng(0), 3), np.random.default_rng(0))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_current_state_that_no_path_leads_to_is_kept(scheme):
    """log_q = -inf of the current state: its weight is infinite over any proposal's."""
    path, records = SCHEMES[scheme](math.inf, candidates_from(np.random.default_rng(0), 50), np.random.default_rng(0))
    assert (path == -1).all() and not records.accepted.any()
    assert (np.exp(records.log_alpha) == 0).all()


# Pool --------------------------------------------------------------------------------------------------------------------


class PartlyBroken(WideProposal):
    """Every eleventh sample has a failure of each kind; sample i fails the same way whatever the batch."""

    def draw(self, n: int, rng: Streams) -> Samples:
        samples = super().draw(n, rng)
        index = torch.tensor(rng.indices) % 11
        log_q, positions = samples.log_q.clone(), samples.geometry.positions.clone()
        positions[index == 1] = math.nan  # its energy is NaN
        positions[index == 2] = 1e6  # its energy is infinite
        log_q[index == 3], log_q[index == 4], log_q[index == 5] = math.nan, math.inf, -math.inf
        log_q[index == 6] = math.nan
        return samples._replace(geometry=Geometry(positions), log_q=log_q, valid=(index != 0) & (index != 6))


def broken_energy(geometry: Geometry) -> torch.Tensor:
    u = plane_energy(geometry)
    u = torch.where(u.isinf(), torch.full_like(u, 50.0), u)  # here infinite means failed
    u[geometry.positions.isnan().any(2).any(1)] = math.nan
    u[(geometry.positions == 1e6).all(2).all(1)] = math.inf
    return u


def same(a: Candidates, b: Candidates) -> bool:
    return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in zip(a, b, strict=True))


def joined(parts: list[Candidates]) -> Candidates:
    return Candidates(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


@pytest.mark.parametrize("batch", [1, 7, 16, 70, 256])
def test_taking_in_portions_equals_taking_at_once(batch):
    whole = Pool(PartlyBroken(), broken_energy, seed=SEED, batch=70).take(70)
    pool = Pool(PartlyBroken(), broken_energy, seed=SEED, batch=batch)
    assert same(joined([pool.take(7) for _ in range(10)]), whole)
    assert pool.next == 70


@pytest.mark.parametrize("start", [0, 1, 15, 16, 17, 40])
def test_pool_resumes_at_any_sample(start):
    whole = Pool(PartlyBroken(), broken_energy, seed=SEED, batch=16).take(70)
    rest = Pool(PartlyBroken(), broken_energy, seed=SEED, batch=16, start=start).take(70 - start)
    assert same(rest, Candidates(*(field[start:] for field in whole)))


def test_no_batch_is_made_twice_and_none_too_early():
    proposal = WideProposal()
    pool = Pool(proposal, plane_energy, seed=SEED, batch=16)
    assert proposal.drawn == 0
    for _ in range(8):
        pool.take(4)
    assert proposal.drawn == 32


def test_failures_are_counted_by_reason():
    taken = Pool(PartlyBroken(), broken_energy, seed=SEED, batch=32).take(110)
    kinds = {
        0: Reason.INVALID, 1: Reason.ENERGY, 2: Reason.ENERGY, 3: Reason.DENSITY, 4: Reason.DENSITY, 5: Reason.DENSITY, 6: Reason.INVALID,
    }  # fmt: skip
    assert taken.reason.tolist() == [kinds.get(i % 11, Reason.NONE) for i in range(110)]
    assert np.isfinite(taken.log_weight[taken.reason == Reason.NONE]).all()
    assert (taken.log_weight[taken.reason != Reason.NONE] == -np.inf).all()


def test_weights_average_to_the_partition_function():
    """E[exp(-u - log_q)] over proposals is the integral of exp(-u), hidden paths or not."""
    axis = np.arange(-7, 7, 0.02) + 0.01
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    integral = np.exp(-energy_of(points)).sum() * 0.02**2
    for proposal in (WideProposal(), HiddenProposal()):
        weights = np.exp(Pool(proposal, plane_energy, seed=SEED, batch=4096).take(20_000).log_weight)
        assert abs(weights.mean() - integral) < 4 * weights.std() / math.sqrt(len(weights))


@pytest.mark.parametrize("options", [{"batch": 0}, {"batch": -5}])
def test_pool_refuses_impossible_batches(options):
    with pytest.raises(IncompatibleError, match="batch"):
        Pool(WideProposal(), plane_energy, seed=1, **options)


def test_pool_refuses_to_take_nothing():
    with pytest.raises(IncompatibleError, match="at least 1"):
        Pool(WideProposal(), plane_energy, seed=1).take(0)


# The chain ---------------------------------------------------------------------------------------------------------------


def random_walk(positions: np.ndarray, block: int) -> np.ndarray:
    """Two Metropolis steps of a symmetric random walk: exact by itself."""
    rng = np.random.default_rng([SEED, block])
    here = (positions[1] - positions[0])[:2]
    for step, trial in zip(rng.normal(0, 0.5, (2, 2)), rng.random(2), strict=True):
        u, there = energy_of(np.stack([here, here + step]))
        here = here + step if math.log1p(-trial) < u - there else here
    half = np.append(here, 0.0) / 2
    return positions.mean(axis=0) + np.stack([-half, half])


def chain(**options) -> MonteCarlo:
    given = {
        "proposal": HiddenProposal(),
        "energy": plane_energy,
        "start": start_at(1.0, 0.0),
        "seed": SEED,
        "batch": 64,
    } | options
    return MonteCarlo(**given)


def run(monte_carlo: MonteCarlo, blocks: int, n: int = 7) -> np.ndarray:
    return np.concatenate([monte_carlo.block(n)[0] for _ in range(blocks)])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_chain_is_exact(scheme, exact):
    assert_chain(points_of(run(chain(scheme=scheme, batch=1024), 1500, 5)), exact)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_chain_with_local_moves_is_exact(scheme, exact):
    """After the proposals, and between the local move and the proposals."""
    between = []

    def local(positions, block):
        between.append(random_walk(positions, block))
        return between[-1]

    visited = run(chain(scheme=scheme, local=local, batch=1024), 2000, 3)
    assert_chain(points_of(visited), exact)
    assert_chain(points_of(np.array(between)), exact)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("stop", [1, 3, 8, 9, 10, 20])
def test_stopped_and_resumed_equals_run_through(scheme, stop):
    whole = chain(scheme=scheme, local=random_walk, batch=16)
    through = run(whole, 25)
    first = chain(scheme=scheme, local=random_walk, batch=16)
    before = run(first, stop)
    saved = first.state_dict()
    second = chain(scheme=scheme, local=random_walk, batch=16, start=start_at(-1.0, 1.0))
    second.load_state_dict(saved)
    assert np.array_equal(np.concatenate([before, run(second, 25 - stop)]), through)
    assert second.state_dict()["blocks"] == whole.state_dict()["blocks"] == 25
    assert second.state_dict()["next"] == whole.state_dict()["next"]
    assert np.array_equal(second.positions, whole.positions)


def test_records_of_a_resumed_chain_are_the_same():
    whole, first, second = chain(), chain(), chain()
    for _ in range(3):
        whole.block(5)
        first.block(5)
    second.load_state_dict(first.state_dict())
    for expected, found in zip(whole.block(5)[1], second.block(5)[1], strict=True):
        assert np.array_equal(expected, found)


def test_saved_state_is_a_copy():
    monte_carlo = chain()
    saved = monte_carlo.state_dict()
    before = saved["positions"].copy()
    run(monte_carlo, 10)
    assert np.array_equal(saved["positions"], before)
    other = chain()
    other.load_state_dict(saved)
    other.positions += 1
    assert np.array_equal(saved["positions"], before)


def test_batch_size_does_not_change_the_chain():
    assert np.array_equal(run(chain(batch=5), 12), run(chain(batch=1000), 12))


def test_seed_decides():
    assert np.array_equal(run(chain(), 5), run(chain(), 5))
    assert not np.array_equal(run(chain(), 5), run(chain(seed=SEED + 1), 5))


def test_state_of_another_seed_is_refused():
    with pytest.raises(IncompatibleError, match=f"seed {SEED + 1}.*{SEED}"):
        chain(seed=SEED + 1).load_state_dict(chain().state_dict())


def test_decisions_differ_from_block_to_block():
    """With weights that all tie but for a factor 1/2, a block's decisions are coin tosses: fresh ones in every block."""

    class Coin(WideProposal):
        def draw(self, n, rng):
            samples = super().draw(n, rng)
            return samples._replace(log_q=torch.full((n,), math.log(2.0), dtype=torch.float64))

        def log_q(self, geometry, rng):
            return torch.zeros(1, dtype=torch.float64)

    monte_carlo = chain(
        proposal=Coin(), energy=lambda g: torch.zeros(len(g.positions), dtype=torch.float64), batch=4096
    )
    # A block ends with its first acceptance, after which all weights tie: so one proposal a block.
    accepted = np.array([monte_carlo.block(1)[1].accepted[0] for _ in range(1500)])
    assert abs(accepted.mean() - 0.5) < 4 * 0.5 / math.sqrt(1500)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_chain_keeps_its_centroid(scheme):
    centroid = (12.0, -3.0, 7.5)
    monte_carlo = chain(start=start_at(1.0, 0.0, centroid), scheme=scheme, local=random_walk)
    visited = run(monte_carlo, 20)
    assert np.allclose(visited.mean(axis=1), centroid, atol=1e-12)
    assert len(np.unique(visited, axis=0)) > 10


def test_centroid_makes_no_difference():
    visited = [run(chain(start=start_at(1.0, 0.0, c)), 20) for c in ((0.0, 0.0, 0.0), (8.0, 4.0, -2.0))]
    assert np.allclose(points_of(visited[0]), points_of(visited[1]), atol=1e-12)


class AnchoredProposal:
    """One atom about a place in space: where it is belongs to the state, and nothing is forgotten."""

    exact, gauge = True, frozenset()
    place = torch.tensor([4.0, -2.0, 1.0], dtype=torch.float64)

    def draw(self, n: int, rng: Streams) -> Samples:
        points = self.place + rng.normal(3, dtype=torch.float64)
        log_q = normal_log_density(points - self.place, 1.0)
        return Samples(Geometry(points[:, None]), {"point": points}, log_q, torch.ones(n, dtype=torch.bool), "path")

    def log_q(self, geometry: Geometry, rng: Streams) -> torch.Tensor:
        return normal_log_density(geometry.positions[:, 0] - self.place, 1.0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_proposals_that_do_not_forget_translations_stay_where_they_are(scheme):
    """A well of its own centre and width, in absolute space: means and variances are known."""
    centre, width = AnchoredProposal.place + torch.tensor([0.5, 0.0, -0.5]), 0.8

    def well(geometry: Geometry) -> torch.Tensor:
        return 0.5 * ((geometry.positions[:, 0] - centre) ** 2).sum(1) / width**2

    monte_carlo = MonteCarlo(AnchoredProposal(), well, Geometry(centre.reshape(1, 1, 3)), seed=SEED, batch=512, scheme=scheme)
    visited = np.concatenate([monte_carlo.block(5)[0] for _ in range(2000)])[:, 0]
    means = (visited - centre.numpy()).reshape(40, -1, 3).mean(1)
    squares = ((visited - centre.numpy()) ** 2).reshape(40, -1, 3).mean(1)
    assert (abs(means.mean(0)) < 4 * means.std(0, ddof=1) / math.sqrt(40)).all()
    assert (abs(squares.mean(0) - width**2) < 4 * squares.std(0, ddof=1) / math.sqrt(40)).all()


def test_path_proposals_say_what_their_coordinates_forget():
    model = example_model(x=ALL_PROCESSES[0])
    assert toy(model).proposal(steps=4).gauge == frozenset()


def test_visited_states_are_the_proposals_that_were_accepted():
    monte_carlo = chain()
    before = monte_carlo.positions.copy()
    visited, records = monte_carlo.block(40)
    proposed = Pool(HiddenProposal(), plane_energy, seed=SEED, batch=64).take(40).positions
    here = before
    for state, candidate, accepted in zip(visited, proposed, records.accepted, strict=True):
        here = candidate if accepted else here
        assert np.allclose(state, here, atol=1e-12)
    assert np.array_equal(monte_carlo.positions, visited[-1])


def test_a_proposal_weighs_the_same_before_and_after_it_is_accepted():
    """Where log_q is a function of the structure: -u - log_q from the pool and from the chain's current state."""
    monte_carlo = chain(proposal=WideProposal())
    for _ in range(20):
        _, records = monte_carlo.block(3)
        if records.accepted.any():
            last = np.flatnonzero(records.accepted)[-1]
            expected = -records.u[last] - records.log_q[last]
            assert monte_carlo.log_weight(monte_carlo.positions) == pytest.approx(expected, abs=1e-10)
    assert monte_carlo.pool.next == 60


def test_multiple_try_returns_one_state_a_block():
    visited, records = chain(scheme="isir").block(13)
    assert visited.shape == (1, 2, 3) and len(records.u) == 13 and records.accepted.sum() <= 1


def test_start_of_infinite_energy_is_an_error():
    with pytest.raises(StateError, match="log weight -inf"):
        chain(start=start_at(-5.0, -5.0)).block(3)


def test_start_that_is_not_a_number_is_an_error():
    with pytest.raises(StateError, match="not finite"):
        chain(start=start_at(math.nan, 0.0)).block(3)


def test_local_move_that_blows_up_is_an_error():
    with pytest.raises(StateError, match="blown up"):
        chain(local=lambda positions, block: positions + math.nan).block(3)


@pytest.mark.parametrize("exact_mark", [False, None])
def test_approximate_proposals_are_refused(exact_mark):
    proposal = WideProposal()
    proposal.exact = exact_mark
    with pytest.raises(IncompatibleError, match="approximate"):
        chain(proposal=proposal)


def test_proposal_that_does_not_say_is_refused():
    with pytest.raises(IncompatibleError, match="approximate"):
        chain(proposal=object())


def test_unknown_scheme_is_refused():
    with pytest.raises(IncompatibleError, match=r"isir.*metropolis.*'gibbs'"):
        chain(scheme="gibbs")
