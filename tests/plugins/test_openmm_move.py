"""DiGMove in openmmtools and DiGReplicaExchangeSampler: exact whatever the model, resumable, small when stored."""

from __future__ import annotations

import copy
import math
import os

import numpy as np
import pytest

openmm = pytest.importorskip("openmm")
openmmtools = pytest.importorskip("openmmtools", reason="needs openmmtools: pip install 'dig-plugins[openmmtools]'")
from openmm import unit  # noqa: E402

yaml = pytest.importorskip("yaml")  # comes with openmmtools
from openmmtools import cache, mcmc, multistate, states  # noqa: E402

from dig_core.errors import CheckpointError, IncompatibleError, StateError  # noqa: E402
from dig_plugins.openmm.exchange import DiGReplicaExchangeSampler  # noqa: E402
from dig_plugins.openmm.move import DiGMove, DiGMoveError  # noqa: E402
from tests.plugins.known import KT, assert_exact, chain_molecule, model_of, simulation_of  # noqa: E402


@pytest.fixture(autouse=True)
def reference_platform(monkeypatch):
    """Small molecules are fastest there, and noise is made in small portions."""
    monkeypatch.setattr("dig_core.random._BLOCK", 256)
    monkeypatch.setattr(cache.global_context_cache, "_lru", cache.LRUCache(capacity=None))
    cache.global_context_cache.platform = openmm.Platform.getPlatformByName("Reference")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained model of the four-atom chain."""
    path = tmp_path_factory.mktemp("model") / "untrained.safetensors"
    model_of(*chain_molecule(4)).save(path)
    return str(path)


def made(checkpoint, **options) -> DiGMove:
    return DiGMove(checkpoint, chain_molecule(4)[0], **{"seed": 3, "proposals": 8, "batch": 64, **options})


def start(temperature: float = 300.0):
    _, system, positions = chain_molecule(4)
    state = states.ThermodynamicState(system, temperature * unit.kelvin)
    return state, states.SamplerState(positions * unit.nanometer)


def run(move, n: int, thermodynamic, sampler) -> tuple[np.ndarray, np.ndarray]:
    """(positions nm, u) after each application."""
    positions, energies = [], []
    context, _ = cache.global_context_cache.get_context(thermodynamic)
    for _ in range(n):
        move.apply(thermodynamic, sampler)
        positions.append(sampler.positions.value_in_unit(unit.nanometer).copy())
        context.setPositions(sampler.positions)
        energies.append(context.getState(energy=True).getPotentialEnergy()._value / KT)
    return np.array(positions), np.array(energies)


def langevin(n_steps: int = 10):
    return mcmc.LangevinDynamicsMove(1 * unit.femtosecond, 5 / unit.picosecond, n_steps, reassign_velocities=False)


def test_move_alone_samples_the_law(checkpoint):
    move = made(checkpoint)
    assert_exact(*run(move, 1500, *start()), stretches=30)
    assert move.n_proposed == 12_000 and 0.02 < move.fraction_accepted < 0.95


def test_move_in_a_sequence_with_dynamics_samples_the_law(checkpoint):
    move = mcmc.SequenceMove([made(checkpoint), langevin()])
    assert_exact(*run(move, 800, *start()), stretches=20)


def test_weighted_mixture_runs_and_counts(checkpoint):
    move = mcmc.WeightedMove([(made(checkpoint), 0.5), (langevin(), 0.5)])
    run(move, 20, *start())
    assert 0 < move.statistics[0]["proposed"] < 160


def test_copies_and_stored_moves_go_on_with_the_same_numbers(checkpoint):
    through = made(checkpoint)
    thermodynamic, sampler = start()
    wanted, _ = run(through, 12, thermodynamic, sampler)
    first = made(checkpoint)
    thermodynamic, sampler = start()
    pieces = [run(first, 5, thermodynamic, sampler)[0]]
    again = copy.deepcopy(first)
    pieces.append(run(again, 3, thermodynamic, sampler)[0])
    stored = yaml.safe_load(yaml.safe_dump(again.__getstate__()))
    last = DiGMove.__new__(DiGMove)
    last.__setstate__(stored)
    pieces.append(run(last, 4, thermodynamic, sampler)[0])
    assert np.array_equal(np.concatenate(pieces), wanted)
    assert last.statistics == through.statistics


def test_stored_move_is_small_and_plain(checkpoint):
    move = made(checkpoint)
    run(move, 2, *start())
    assert len(yaml.safe_dump(move.__getstate__())) < 5000  # safe_dump refuses anything but numbers, strings, lists


def test_changed_checkpoint_is_refused(checkpoint, tmp_path):
    path = tmp_path / "model.safetensors"
    model_of(*chain_molecule(4), wide=1.2).save(path)  # one that no other test has read: a process keeps what it has read
    move = made(str(path))
    model_of(*chain_molecule(4), wide=1.1).save(path)
    with pytest.raises(CheckpointError, match="has changed"):
        move.apply(*start())
    with pytest.raises(IncompatibleError, match="in memory"):
        made(model_of(*chain_molecule(4)))


def test_velocities_are_fresh_after_an_acceptance_and_kept_otherwise(checkpoint):
    move, (thermodynamic, sampler) = made(checkpoint, proposals=2), start()
    context, _ = cache.global_context_cache.get_context(thermodynamic)
    sampler.velocities = np.full((4, 3), 0.123) * unit.nanometer / unit.picosecond
    seen = {True: 0, False: 0}
    for _ in range(30):
        before, count = sampler.velocities.value_in_unit(unit.nanometer / unit.picosecond).copy(), move.n_accepted
        context.setVelocities(np.full((4, 3), 9.0))  # what another replica left there
        move.apply(thermodynamic, sampler)
        after, accepted = sampler.velocities.value_in_unit(unit.nanometer / unit.picosecond), move.n_accepted > count
        assert np.allclose(after, before) != accepted and np.abs(after).max() < 5
        seen[accepted] += 1
    assert min(seen.values()) > 2


def test_temperature_of_another_model_is_refused(checkpoint):
    with pytest.raises(IncompatibleError, match="450 K.*300 K"):
        made(checkpoint).apply(*start(450.0))
    move = made(checkpoint, allow_temperature_mismatch=True)
    move.apply(*start(450.0))
    assert move.n_proposed == 8


def test_state_that_is_not_finite_is_openmmtools_own_error(checkpoint):
    thermodynamic, sampler = start()
    sampler.positions = np.full((4, 3), math.nan) * unit.nanometer
    with pytest.raises(mcmc.IntegratorMoveError) as caught:
        made(checkpoint).apply(thermodynamic, sampler)
    assert isinstance(caught.value, DiGMoveError) and isinstance(caught.value, StateError)


@pytest.mark.slow
def test_move_survives_storage_in_replica_exchange(checkpoint, tmp_path):
    """Moves of their own in every state, NetCDF storage, resumed: statistics carried on."""
    thermodynamic, sampler = start()
    hot = states.ThermodynamicState(thermodynamic.system, 400 * unit.kelvin)
    moves = [mcmc.SequenceMove([made(checkpoint), langevin()]), langevin()]
    storage = os.fspath(tmp_path / "run.nc")
    exchange = multistate.ReplicaExchangeSampler(mcmc_moves=moves, number_of_iterations=3)
    reporter = multistate.MultiStateReporter(storage, checkpoint_interval=1)
    exchange.create([thermodynamic, hot], [sampler, sampler], reporter)
    exchange.run()
    del exchange
    reporter.close()
    again = multistate.ReplicaExchangeSampler.from_storage(multistate.MultiStateReporter(storage, open_mode="r+", checkpoint_interval=1))
    assert again._mcmc_moves[0].move_list[0].n_proposed == 24
    again.extend(2)
    assert again._mcmc_moves[0].move_list[0].n_proposed == 40
    assert os.path.getsize(storage) < 3_000_000


# OpenMM's own replica exchange -------------------------------------------------------------------------------------------------


def test_replica_exchange_samples_the_law():
    topology, system, positions = chain_molecule(4)
    simulation = simulation_of(topology, system, positions)
    dig = model_of(topology, system, positions, spoilt=True)
    sampler = DiGReplicaExchangeSampler(
        [{"temperature": t} for t in (300.0, 420.0)], simulation, 10, dig, proposals=16, batch=256, seed=2
    )
    states_seen, energies = [], []

    def record(sampler):
        replica = sampler.replicaStateIndex.index(0)
        states_seen.append(sampler.replicaConformation[replica].getPositions(asNumpy=True)._value)
        energies.append(sampler.replicaStateEnergy[replica][0]._value / KT)

    sampler.reporters.append(record)
    sampler.simulate(700)
    assert_exact(np.array(states_seen), np.array(energies), stretches=20)
    assert list(sampler.statistics) == [0] and sampler.statistics[0].proposed == 700 * 16
    assert 0.02 < sampler.statistics[0].acceptance < 0.95


def test_replica_exchange_says_what_does_not_fit():
    topology, system, positions = chain_molecule(4)
    dig = model_of(topology, system, positions)

    def sampler(temperatures, **options):
        return DiGReplicaExchangeSampler(
            [{"temperature": t} for t in temperatures], simulation_of(topology, system, positions), 5, dig, **options
        )

    with pytest.raises(IncompatibleError, match="no state has the temperature"):
        sampler([310.0, 400.0])
    with pytest.raises(IncompatibleError, match="from 0 to 1"):
        sampler([300.0, 400.0], move_states=[2])
    assert sorted(sampler([300.0, 400.0], move_states=[0, 1]).moves) == [0, 1]
    states_with_groups = [{"temperature": 300.0, "groups": {0}}] * 2
    with pytest.raises(IncompatibleError, match="force groups"):
        DiGReplicaExchangeSampler(states_with_groups, simulation_of(topology, system, positions), 5, dig)
