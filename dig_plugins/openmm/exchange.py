"""Replica exchange of OpenMM with independent proposals in the states that a model was trained for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from openmm import app, unit

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError
from dig_core.random import as_seed

from .convert import kelvin
from .target import ContextMove, Statistics

__all__ = ["DiGReplicaExchangeSampler"]


class DiGReplicaExchangeSampler(app.ReplicaExchangeSampler):
    """``openmm.app.ReplicaExchangeSampler`` whose replicas test a block of proposals after their dynamics, in some states.

    ::

        states = [{"temperature": t} for t in np.geomspace(300, 600, 6)]
        sampler = DiGReplicaExchangeSampler(states, simulation, 500, dig)

    Parameters
    ----------
    states, simulation, stepsPerIteration, reinitializeVelocities: as in OpenMM. States that choose force groups are not
        covered: the energy of a proposal would be another one.
    dig: the model. move_states: indices of the states with moves; those at the model's temperature if None.
    proposals, seed, scheme, batch, steps, atoms, allow_explicit_solvent: see :class:`.DiGMonteCarlo`.

    Raises
    ------
    IncompatibleError: no state has the model's temperature, an index is out of range, or states have force groups.
    """

    def __init__(
        self,
        states: list[dict],
        simulation: app.Simulation,
        stepsPerIteration: int,
        dig: DiG,
        *,
        reinitializeVelocities: bool = False,
        move_states: Sequence[int] | None = None,
        proposals: int = 32,
        seed: int | None = None,
        scheme: str = "metropolis",
        batch: int = 1024,
        steps: int | None = None,
        atoms: Sequence[int] | None = None,
        allow_explicit_solvent: bool = False,
    ):
        super().__init__(states, simulation, stepsPerIteration, reinitializeVelocities)
        if any("groups" in state for state in states):
            raise IncompatibleError("expected states without force groups: proposals are weighed with the whole System's energy.")
        self.seed = as_seed(seed)
        temperatures = [kelvin(state.get("temperature", simulation.integrator.getTemperature())) for state in states]
        box = None
        if simulation.system.usesPeriodicBoundaryConditions():
            vectors = simulation.context.getState().getPeriodicBoxVectors(asNumpy=True)
            box = np.asarray(vectors.value_in_unit(unit.nanometer))
        # One move a state: each has its own temperature, parameters and random numbers.
        self.moves = {
            index: ContextMove(
                dig, simulation.system, simulation.topology, temperatures[index], seed=self.seed + 7919 * index, proposals=proposals,
                scheme=scheme, batch=batch, steps=steps, atoms=atoms, allow_explicit_solvent=allow_explicit_solvent, box=box,
            )
            for index in _chosen(move_states, temperatures, dig)
        }  # fmt: skip

    def simulateReplica(self, index: int, steps: int | None = None) -> None:
        """Dynamics, then proposals where the replica's present state has them."""
        super().simulateReplica(index, steps)
        move = self.moves.get(self.replicaStateIndex[index])
        if move is None:
            return
        context = self.simulation.context
        if move.attempt(context).records.accepted.any():
            self.replicaConformation[index] = context.getState(
                positions=True, velocities=True, parameters=True, integratorParameters=True
            )

    @property
    def statistics(self) -> dict[int, Statistics]:
        """Counts of each state that has moves."""
        return {index: move.statistics for index, move in self.moves.items()}


def _chosen(given: Sequence[int] | None, temperatures: list[float], dig: DiG) -> list[int]:
    if given is not None:
        wrong = [i for i in given if not 0 <= i < len(temperatures)]
        if wrong:
            raise IncompatibleError(f"expected move_states from 0 to {len(temperatures) - 1}, got {wrong}.")
        return sorted({int(i) for i in given})
    wanted = dig.card.temperature
    found = [i for i, t in enumerate(temperatures) if wanted is None or abs(t - wanted) <= 0.1]
    if not found:
        raise IncompatibleError(
            f"no state has the temperature of the model {dig.card.name!r}, {wanted:g} K; the states have "
            f"{', '.join(f'{t:g}' for t in temperatures)} K. Make one at the model's temperature, or name move_states."
        )
    return found
