"""DiG as an independent-proposal Metropolis move beside MD, for plain OpenMM scripts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import openmm as mm
from openmm import app, unit

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError, StateError
from dig_core.montecarlo.analysis import longest_rejection_run
from dig_core.montecarlo.chain import MonteCarlo, Reason, Records
from dig_core.random import as_seed
from dig_core.types import Geometry

from .convert import check_supported, check_topology, kelvin, to_geometry
from .energy import OpenMMEnergy

__all__ = ["Block", "DiGMonteCarlo", "Statistics"]


class Block(NamedTuple):
    """What a block of proposals did: ``positions`` (M, N, 3) nm, the state after each test; ``records`` one row a proposal;
    ``md_positions`` (N, 3) nm, where the MD before it ended."""

    positions: np.ndarray
    records: Records
    md_positions: np.ndarray


class Statistics(NamedTuple):
    """Counts since the chain began. ``failed`` maps a reason to how many proposals could not be accepted for it."""

    proposed: int
    accepted: int
    longest_rejection_run: int
    failed: dict[str, int]

    @property
    def acceptance(self) -> float:
        return self.accepted / max(self.proposed, 1)


class DiGMonteCarlo:
    """Alternate MD with blocks of independent proposals from a DiG; the chain samples exp(-E/kT) whatever the model's quality.

    Use it in place of ``simulation.step``::

        monte_carlo = DiGMonteCarlo(simulation, dig, seed=1)
        monte_carlo.step(100)

    Parameters
    ----------
    simulation: an ``openmm.app.Simulation`` of one free molecule without constraints, with a thermostatted integrator.
    dig: a model of the same molecule at the same temperature.
    temperature: K; the integrator's if not given. A model of another temperature is refused, since its proposals are exact
        but seldom accepted, unless ``allow_temperature_mismatch``.
    md_steps, proposals: time steps and proposals a block. At least one of the two acts.
    seed: of proposals, decisions and velocities; drawn from the operating system and kept in ``seed`` if not given.
    scheme: ``"metropolis"`` tests the proposals one after the other, ``"isir"`` picks among all of them at once.
    batch: proposals prepared at a time.
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
        energy: OpenMMEnergy | None = None,
    ):
        check_topology(dig.descriptor, simulation.topology)
        check_supported(simulation.system, simulation.topology)
        self.simulation, self.dig = simulation, dig
        self.temperature = _temperature(simulation, dig, temperature, allow_temperature_mismatch)
        self.md_steps, self.proposals = int(md_steps), int(proposals)
        if self.proposals < 1 or self.md_steps < 0:
            raise IncompatibleError(f"proposals must be at least 1 and md_steps at least 0, got {proposals} and {md_steps}.")
        self.seed = as_seed(seed)
        self.energy = OpenMMEnergy.from_simulation(simulation, self.temperature) if energy is None else energy
        self.reporters: list = []
        self._chain = MonteCarlo(
            dig.proposal(steps=steps), self.energy, self._geometry(), seed=self.seed, batch=batch, scheme=scheme, local=self._md
        )
        self._accepted = [np.zeros(0, dtype=bool)]
        self._failed = dict.fromkeys((r.name.lower() for r in Reason if r), 0)

    def step(self, blocks: int = 1) -> Block:
        """``blocks`` times MD and a block of proposals; returns the last block. The simulation ends at the chain's state.

        Raises :class:`StateError` if the current positions cannot be used: MD that blew up, atoms on top of each other.
        """
        if blocks < 1:
            raise IncompatibleError(f"expected to do at least 1 block, got {blocks}.")
        for _ in range(blocks):
            visited, records = self._chain.block(self.proposals)
            if records.accepted.any():
                context = self.simulation.context
                context.setPositions(self._chain.positions / 10)  # Angstrom to nm
                context.setVelocitiesToTemperature(self.temperature * unit.kelvin, self._velocity_seed())
            self._accepted.append(records.accepted)
            for reason in Reason:
                if reason:
                    self._failed[reason.name.lower()] += int((records.reason == reason).sum())
            block = Block(visited / 10, records, self._after_md / 10)
            for reporter in self.reporters:
                reporter(self, block)
        return block

    @property
    def blocks(self) -> int:
        """Blocks done since the chain began."""
        return self._chain.blocks

    @property
    def statistics(self) -> Statistics:
        """Counts over the whole chain."""
        accepted = np.concatenate(self._accepted)
        longest = longest_rejection_run(accepted) if len(accepted) else 0
        return Statistics(len(accepted), int(accepted.sum()), longest, dict(self._failed))

    def state_dict(self) -> dict:
        """The chain, its statistics and the Context (positions, velocities, random numbers of its integrator)."""
        return {
            "chain": self._chain.state_dict(),
            "accepted": np.concatenate(self._accepted),
            "failed": dict(self._failed),
            "context": self.simulation.context.createCheckpoint(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from :meth:`state_dict` of a chain of the same seed, on the same platform."""
        self._chain.load_state_dict(state["chain"])
        self._accepted, self._failed = [np.array(state["accepted"])], dict(state["failed"])
        self.simulation.context.loadCheckpoint(state["context"])

    def _geometry(self) -> Geometry:
        return to_geometry(self.simulation.context.getState(positions=True).getPositions(asNumpy=True))

    def _md(self, positions: np.ndarray, block: int) -> np.ndarray:
        if self.md_steps:
            try:
                self.simulation.step(self.md_steps)
            except mm.OpenMMException as error:
                raise StateError(f"MD failed in block {block}: {error}. Minimise first, or shorten the time step.") from error
        # Read back even without MD: the Context is where the user may have put other positions.
        self._after_md = self._geometry().positions[0].numpy()
        return self._after_md

    def _velocity_seed(self) -> int:
        return 1 + (self.seed * 1_000_003 + self._chain.blocks) % (2**31 - 2)


def _temperature(simulation: app.Simulation, dig: DiG, given, allow_mismatch: bool) -> float:
    integrator = simulation.integrator
    if given is not None:
        temperature = kelvin(given)
    elif hasattr(integrator, "getTemperature"):
        temperature = kelvin(integrator.getTemperature())
    else:
        raise IncompatibleError(f"a {type(integrator).__name__} has no temperature: pass temperature= in kelvin.")
    wanted = dig.card.temperature
    if wanted is not None and abs(temperature - wanted) > 0.1 and not allow_mismatch:
        raise IncompatibleError(
            f"the simulation runs at {temperature:g} K, the model {dig.card.name!r} was trained at {wanted:g} K. Sampling would stay "
            f"exact but few proposals would be accepted. Run at {wanted:g} K, or pass allow_temperature_mismatch=True."
        )
    return temperature
