"""DiG as an independent-proposal Metropolis move beside MD, for plain OpenMM scripts: owner of the loop, or a reporter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openmm as mm
from openmm import app, unit

from dig_core.dig import DiG
from dig_core.energy import Energy
from dig_core.errors import IncompatibleError, StateError
from dig_core.random import as_seed

from .target import Block, ContextMove, Statistics, model_temperature

__all__ = ["Block", "DiGMonteCarlo", "Statistics"]


class DiGMonteCarlo:
    """Alternate MD with blocks of independent proposals from a DiG; the chain samples exp(-E/kT) whatever the model's quality.

    Use it in place of ``simulation.step``::

        monte_carlo = DiGMonteCarlo(simulation, dig, seed=1)
        monte_carlo.step(100)

    or leave the script as it is and add it as a reporter: a block of proposals every ``md_steps`` steps::

        simulation.reporters.append(DiGMonteCarlo(simulation, dig))
        simulation.step(1_000_000)

    Other reporters of a step see the state before the block or after it, by their place in the list; both are samples.

    Parameters
    ----------
    simulation: an ``openmm.app.Simulation`` with a thermostatted integrator. Constraints of bonds to end atoms (HBonds) are
        handled exactly, others are refused.
    dig: a model of the same molecule at the same temperature.
    temperature: K; the integrator's if not given. A model of another temperature is refused, since its proposals are exact
        but seldom accepted, unless ``allow_temperature_mismatch``.
    md_steps, proposals: time steps and proposals a block. At least one of the two acts.
    seed: of proposals, decisions and velocities; drawn from the operating system and kept in ``seed`` if not given.
    scheme: ``"metropolis"`` tests the proposals one after the other, ``"isir"`` picks among all of them at once.
    batch: proposals prepared at a time.
    atoms: indices of the molecule that the model moves, in the model's order, where the System holds others too. A solvent is
        refused, with what to do instead, unless ``allow_explicit_solvent``.
    velocities are redrawn from the Maxwell-Boltzmann law whenever a proposal was accepted and left alone otherwise.

    Raises
    ------
    IncompatibleError, UnsupportedError: the model and the simulation do not fit; the message says what to do.
    """

    def __init__(
        self,
        simulation: app.Simulation,
        dig: DiG,
        *,
        temperature=None,
        md_steps: int = 500,
        proposals: int = 32,
        seed: int | None = None,
        scheme: str = "metropolis",
        batch: int = 1024,
        steps: int | None = None,
        allow_temperature_mismatch: bool = False,
        energy: Energy | None = None,
        atoms: Sequence[int] | None = None,
        allow_explicit_solvent: bool = False,
    ):
        self.simulation, self.dig = simulation, dig
        self.md_steps, self.proposals = int(md_steps), int(proposals)
        if self.proposals < 1 or self.md_steps < 0:
            raise IncompatibleError(f"proposals must be at least 1 and md_steps at least 0, got {proposals} and {md_steps}.")
        self.seed = as_seed(seed)
        box = None
        if simulation.system.usesPeriodicBoundaryConditions():
            vectors = simulation.context.getState().getPeriodicBoxVectors(asNumpy=True)
            box = np.asarray(vectors.value_in_unit(unit.nanometer))

        self.temperature = model_temperature(dig, _temperature(simulation, temperature), allow_temperature_mismatch)
        self._move = ContextMove(
            dig, simulation.system, simulation.topology, self.temperature, seed=self.seed, proposals=self.proposals, scheme=scheme,
            batch=batch, steps=steps, atoms=atoms, allow_explicit_solvent=allow_explicit_solvent, box=box, energy=energy,
        )  # fmt: skip
        self.energy = self._move.energy
        self.reporters: list = []

    def step(self, blocks: int = 1) -> Block:
        """``blocks`` times MD and a block of proposals; returns the last block. The simulation ends at the chain's state.

        Raises :class:`StateError` if the current positions cannot be used: MD that blew up, atoms on top of each other.
        """
        if blocks < 1:
            raise IncompatibleError(f"expected to do at least 1 block, got {blocks}.")
        if self in self.simulation.reporters:
            raise IncompatibleError("this chain is a reporter of its simulation: call simulation.step(), or take it off the list.")
        for _ in range(blocks):
            if self.md_steps:
                try:
                    self.simulation.step(self.md_steps)
                except mm.OpenMMException as error:
                    raise StateError(f"MD failed in block {self.blocks}: {error}. Minimise first, or shorten the time step.") from error
            block = self._attempt()
        return block

    def describeNextReport(self, simulation: app.Simulation) -> dict:
        """For ``Simulation``: when the next block is due. The Context is read by the block itself."""
        interval = max(1, self.md_steps)
        return {"steps": interval - simulation.currentStep % interval, "periodic": None, "include": []}

    def report(self, simulation: app.Simulation, state: mm.State) -> None:
        """For ``Simulation``: a block of proposals on the Context as it is now."""
        self._attempt()

    @property
    def blocks(self) -> int:
        """Blocks done since the chain began."""
        return self._move.blocks

    @property
    def statistics(self) -> Statistics:
        """Counts over the whole chain."""
        return self._move.statistics

    def state_dict(self) -> dict:
        """The chain, its statistics and the Context (positions, velocities, random numbers of its integrator)."""
        return {**self._move.state_dict(), "context": self.simulation.context.createCheckpoint()}

    def load_state_dict(self, state: dict) -> None:
        """Go on from :meth:`state_dict` of a chain of the same seed, on the same platform."""
        self._move.load_state_dict(state)
        self.simulation.context.loadCheckpoint(state["context"])

    def _attempt(self) -> Block:
        block = self._move.attempt(self.simulation.context)
        for reporter in self.reporters:
            reporter(self, block)
        return block


def _temperature(simulation: app.Simulation, given):
    if given is not None:
        return given
    if hasattr(simulation.integrator, "getTemperature"):
        return simulation.integrator.getTemperature()
    raise IncompatibleError(f"a {type(simulation.integrator).__name__} has no temperature: pass temperature= in kelvin.")
