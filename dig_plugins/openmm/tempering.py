"""Parallel tempering: reference ensembles and training frames, on OpenMM's own replica exchange with a seeded generator."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from openmm import app, unit

from dig_core.progress import Show, bar

__all__ = ["TemperedFrames", "parallel_tempering"]


class TemperedFrames(NamedTuple):
    """Frames of the coldest state, one an iteration, in time order.

    ``positions`` (F, N, 3) nm; ``energies`` (F,) kJ/mol; ``replica`` (F,) which replica held the coldest state;
    ``swap_rate`` the fraction of accepted neighbour exchanges.
    """

    positions: np.ndarray
    energies: np.ndarray
    replica: np.ndarray
    swap_rate: float


class _SeededExchange(app.ReplicaExchangeSampler):
    """OpenMM's sampler with neighbour exchanges drawn from a generator of its own instead of the global one."""

    def __init__(self, *args, rng: np.random.Generator, **kwargs):
        super().__init__(*args, **kwargs)
        self._rng = rng
        self.attempts = self.swaps = 0

    def exchangeReplicas(self):
        replica_at = np.argsort(self.replicaStateIndex)
        for low in range(self.currentIteration % 2, len(self.states) - 1, 2):
            i, j = int(replica_at[low]), int(replica_at[low + 1])
            energy_i, energy_j = self.replicaStateEnergy[i][low], self.replicaStateEnergy[j][low]
            beta_gap = 1 / self._kT[low] - 1 / self._kT[low + 1]
            self.attempts += 1
            if math.log(1.0 - self._rng.random()) < (energy_i - energy_j) * beta_gap:
                self.replicaStateIndex[i], self.replicaStateIndex[j] = low + 1, low
                self.swaps += 1


def parallel_tempering(
    simulation: app.Simulation,
    temperatures,
    iterations: int,
    *,
    steps: int = 500,
    seed: int,
    discard: int = 100,
    progress: Show = None,
) -> TemperedFrames:
    """Sample the coldest temperature (K) by temperature replica exchange, ``steps`` time steps an iteration.

    The first ``discard`` iterations are not returned. ``simulation`` supplies the System, the integrator (its time step
    and friction) and the starting positions (nm). The cost is ``len(temperatures) * (iterations + discard) * steps``
    force evaluations. Neighbour exchanges alternate between even and odd pairs (Okabe et al.,
    doi:10.1016/S0009-2614(01)00055-0).
    """
    simulation.integrator.setRandomNumberSeed(seed % (2**31 - 1) + 1)
    simulation.context.reinitialize(preserveState=True)
    simulation.context.setVelocitiesToTemperature(temperatures[0] * unit.kelvin, seed % (2**31 - 1) + 1)
    states = [{"temperature": t * unit.kelvin} for t in temperatures]
    sampler = _SeededExchange(states, simulation, steps, rng=np.random.default_rng(seed))
    positions, energies, replica = [], [], []
    for iteration in bar(range(iterations + discard), label="parallel tempering", progress=progress):
        sampler.simulate(1)
        if iteration < discard:
            continue
        # Exchanges happen at the end of an iteration; the frame belongs to whoever holds the coldest state now.
        cold = sampler.replicaStateIndex.index(0)
        state = sampler.replicaConformation[cold]
        positions.append(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
        energies.append(sampler.replicaStateEnergy[cold][0].value_in_unit(unit.kilojoule_per_mole))
        replica.append(cold)
    return TemperedFrames(np.array(positions), np.array(energies), np.array(replica), sampler.swaps / max(sampler.attempts, 1))
