"""Many processes give the numbers of one, bit by bit; where memory runs out, batches are halved and nothing is lost."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dig_core.coordinates import Internal
from dig_core.diffusion import Diffusion, Euclidean, Geometric, Joint, LogSNR, Torus
from dig_core.dig import Card, DiG
from dig_core.energy import Springs
from dig_core.errors import CheckpointError, IncompatibleError, UnsupportedError
from dig_core.montecarlo.chain import Pool, weighed
from dig_core.nn import ResidualMLP
from dig_core.parallel import ParallelEnergy, halving, in_order
from dig_core.score import NoiseScore
from dig_core.system.descriptor import molecule
from dig_core.types import Geometry

PEROXIDE = molecule(
    [1, 8, 8, 1], [(0, 1), (1, 2), (2, 3)],
    positions=[[-0.3, 0.9, 0.2], [0.0, 0.0, 0.0], [1.45, 0.0, 0.0], [1.7, 0.4, -0.8]],
)  # fmt: skip
ENERGY = Springs([(0, 1), (1, 2), (2, 3)], [0.95, 1.45, 0.95], [300.0, 300.0, 300.0])


def made(network=None) -> DiG:
    """A model whose weights all count."""
    coordinates = Internal.from_reference(PEROXIDE)
    sizes = {"shape": len(coordinates.centre), "torsion": len(coordinates.torsion_atoms)}
    network = network or ResidualMLP(sizes, ["torsion"], width=32, blocks=2)
    rng = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    process = Joint(shape=Diffusion(Euclidean(sizes["shape"]), LogSNR()), torsion=Diffusion(Torus(sizes["torsion"]), Geometric()))
    return DiG(NoiseScore(network, process).eval().requires_grad_(False), coordinates, PEROXIDE, Card(steps=6, temperature=300.0))


@pytest.fixture(scope="module")
def workers() -> Iterator[Executor]:
    """Two processes."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs fork to begin quickly")
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        yield pool


def same(one, other) -> bool:
    """Bit by bit."""
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


# Executors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["path", "ancestral"])
def test_samples_of_two_processes_are_those_of_one(workers, method):
    dig, options = made(), {"seed": 3, "method": method, "batch": 8}
    assert same(dig.sample(30, **options), dig.sample(30, **options, executor=workers))


def test_a_part_of_the_samples(workers):
    dig = made()
    parts = [list(dig.stream(12, seed=3, batch=4, start=5, executor=executor)) for executor in (None, workers)]
    assert len(parts[0]) == 3 and same(tuple(parts[0]), tuple(parts[1]))


def test_weighing_goes_on_from_any_batch():
    whole, rest = (list(weighed(made().proposal(), ENERGY, 21 - start, seed=4, batch=8, start=start)) for start in (0, 8))
    assert same(tuple(whole[1:]), tuple(rest)) and sum(len(part.u) for part in rest) == 13


@pytest.mark.parametrize("n", [1, 8, 21])
def test_weighed_proposals_of_two_processes_are_those_of_one(workers, n):
    proposal = made().proposal(paths=2)
    alone, elsewhere = (list(weighed(proposal, ENERGY, n, seed=4, batch=8, executor=e)) for e in (None, workers))
    assert same(tuple(alone), tuple(elsewhere)) and sum(len(part.u) for part in alone) == n
    pool = Pool(proposal, ENERGY, seed=4, batch=8).take(n)
    assert same(tuple(np.concatenate(x) for x in zip(*alone, strict=True)), tuple(pool))


def some(n: int) -> torch.Tensor:
    return PEROXIDE.reference.positions + 0.1 * torch.randn(n, 4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_energies_and_forces_of_two_processes_are_those_of_one(workers, n):
    parallel = ParallelEnergy(ENERGY, workers, batch=3)
    assert torch.equal(parallel(Geometry(some(n))), ENERGY(Geometry(some(n))))
    slopes = []
    for energy in (ENERGY, parallel):
        positions = some(n).requires_grad_()
        slopes.append(torch.autograd.grad(energy(Geometry(positions)).sum(), positions)[0])
    assert torch.equal(*slopes)


def volume(geometry: Geometry) -> torch.Tensor:
    """Of a crystal: an energy that feels its cell, and refuses one structure."""
    u = torch.linalg.det(geometry.cell) + geometry.positions.square().sum((1, 2))
    return torch.where(geometry.positions[:, 0, 0] > 5, torch.inf, u)


def test_cells_are_strained_and_failures_have_no_force(workers):
    positions, cell = some(5), 3 * torch.eye(3, dtype=torch.float64).repeat(5, 1, 1) + 0.1
    positions[2, 0, 0] = 9.0
    found = []
    for energy in (volume, ParallelEnergy(volume, workers, batch=2)):
        leaves = [positions.clone().requires_grad_(), cell.clone().requires_grad_()]
        u = energy(Geometry(*leaves))
        found.append((u.detach(), *torch.autograd.grad(torch.where(u.isfinite(), u, 0.0).sum(), leaves)))
    assert same(*found) and bool(torch.isinf(found[0][0][2])) and not found[1][1][2].any()
    with pytest.raises(UnsupportedError, match="once"):
        x = positions.clone().requires_grad_()
        (slope,) = torch.autograd.grad(ParallelEnergy(volume, workers)(Geometry(x, cell)).sum(), x, create_graph=True)
        slope.square().sum().backward()


def failing(geometry: Geometry) -> torch.Tensor:
    raise OSError("the program is not installed")


def test_what_a_worker_raises_is_raised_here(workers):
    with pytest.raises(OSError, match="not installed"):
        ParallelEnergy(failing, workers)(Geometry(some(3)))
    with pytest.raises(OSError, match="not installed"):
        list(weighed(made().proposal(), failing, 9, seed=1, batch=3, executor=workers))


def test_a_model_travels_as_its_checkpoint():
    dig = made()
    sent = pickle.dumps(dig)
    assert b"torch" not in sent, "tensors are in the checkpoint"
    assert same(dig.sample(5, seed=1), pickle.loads(sent).sample(5, seed=1))
    assert b"torch" not in pickle.dumps(dig.proposal(steps=3))
    guided = dig.guided(lambda state, t, descriptor: state)
    with pytest.raises(CheckpointError, match="Guided"):
        pickle.dumps(guided)
    twin = copy.deepcopy(guided)
    assert twin.model is not guided.model and type(twin.model) is type(guided.model)


def test_conditions_do_not_travel(workers):
    with pytest.raises(UnsupportedError, match="without executor"):
        made().sample(3, seed=1, guidance=lambda state, t, descriptor: state, executor=workers)


class Counting(Executor):
    """Does nothing before it is asked for, and counts how many tasks wait."""

    def __init__(self):
        self.waiting = self.most = self.done = 0

    def submit(self, function, /, *args, **options):
        future, executor = Future(), self
        self.waiting += 1
        self.most = max(self.most, self.waiting)

        def result(timeout=None):
            executor.waiting, executor.done = executor.waiting - 1, executor.done + 1
            return function(*args, **options)

        future.result = result
        return future


def test_few_tasks_wait_at_a_time_and_in_order():
    executor = Counting()
    found = in_order(executor, abs, range(-10, 0), ahead=3)
    assert next(found) == 10 and executor.done == 1
    assert list(found) == list(range(9, 0, -1)) and executor.most == 3


def test_tasks_that_nobody_waits_for_are_cancelled():
    with ThreadPoolExecutor(1) as executor:
        found = in_order(executor, lambda i: i, range(1000), ahead=20)
        assert next(found) == 0
        found.close()
    with pytest.raises(IncompatibleError, match="batch = 0"):
        ParallelEnergy(ENERGY, executor, batch=0)


@pytest.mark.slow
def test_fresh_processes_and_dask_give_the_same_numbers():
    """As on other machines: nothing is inherited, everything is sent. Alanine dipeptide with its energy."""
    pytest.importorskip("openmm")
    distributed = pytest.importorskip("distributed")
    from dig_plugins.openmm import sample

    alone = sample("alanine-dipeptide", 100, seed=5, batch=32, progress=False)

    def check(executor: Executor) -> None:
        found = sample("alanine-dipeptide", 100, seed=5, batch=32, progress=False, executor=executor)
        assert np.array_equal(found.positions, alone.positions) and np.array_equal(found.log_weights, alone.log_weights)

    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        check(pool)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        check(client.get_executor())
        own = os.getpid()
        assert own not in client.run(os.getpid).values()


# Memory ------------------------------------------------------------------------------------------------------------------


class Narrow(ResidualMLP):
    """A network for which memory suffices for so many rows; elementwise, so that rows do not depend on their batch at all."""

    rows, error = 5, MemoryError("no room")

    def forward(self, state, t, descriptor):
        if len(state["shape"]) > self.rows:
            raise self.error
        noise = {name: torch.tanh(0.3 * x + t.reshape(-1, 1)).float() for name, x in state.items()}
        return noise, {name: -torch.ones_like(x) for name, x in noise.items()}


def narrow(rows: int, error: Exception) -> DiG:
    network = Narrow(made().model.network.config["sizes"], ["torsion"], width=4, blocks=1)
    network.rows, network.error = rows, error
    return made(network)


ERRORS = [
    MemoryError("no room"), torch.cuda.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*at once")
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ["path", "ancestral"])
def test_halved_batches_change_nothing(error, method):
    plenty = narrow(100, error).sample(23, seed=2, method=method, batch=16)
    with pytest.warns(RuntimeWarning, match="16 at once, 8 are tried"):
        scarce = narrow(5, error).sample(23, seed=2, method=method, batch=16)
    assert same(plenty, scarce)


@pytest.mark.filterwarnings("ignore:.*at once")
def test_halved_proposals_change_nothing():
    plenty = Pool(narrow(100, ERRORS[0]).proposal(), ENERGY, seed=2, batch=16).take(23)
    with pytest.warns(RuntimeWarning, match="at once"):
        scarce = Pool(narrow(5, ERRORS[0]).proposal(), ENERGY, seed=2, batch=16).take(23)
    assert same(tuple(plenty), tuple(scarce))


@pytest.mark.filterwarnings("ignore:.*at once")
def test_one_row_that_does_not_fit_and_other_errors_are_raised():
    with pytest.raises(MemoryError, match="no room"):
        narrow(0, ERRORS[0]).sample(4, seed=1)
    with pytest.raises(RuntimeError, match="something else"):
        narrow(2, RuntimeError("something else")).sample(4, seed=1)


@pytest.mark.filterwarnings("ignore:.*at once")
@pytest.mark.parametrize("fits", [1, 2, 3, 7, 50])
def test_every_row_is_done_once(fits):
    def function(rows: range) -> list[int]:
        if len(rows) > fits:
            raise MemoryError
        return list(rows)

    assert [i for part in halving(function, range(7, 40)) for i in part] == list(range(7, 40))
