"""Blocks of independent proposals for what an OpenMM Context holds: the one move behind every way of using it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import openmm as mm
import torch
from openmm import app, unit

from dig_core.dig import DiG
from dig_core.energy import Energy
from dig_core.errors import IncompatibleError
from dig_core.montecarlo.chain import MonteCarlo, Records, Statistics
from dig_core.types import Geometry

from .constraints import BondLift, LiftedEnergy, without_constraints
from .convert import NM_PER_ANGSTROM, check_supported, check_topology, kelvin
from .energy import OpenMMEnergy
from .subset import EnvironmentPool, SubsetEnergy, check_environment, check_subset, subtopology

__all__ = ["Block", "ContextMove", "Statistics", "model_temperature"]

_LIFT = 2**31  # separates the random numbers of bond lengths from those of decisions


class Block(NamedTuple):
    """What a block of proposals did: ``positions`` (M, N, 3) nm of the model's atoms, the state after each test; ``records``
    one row a proposal; ``md_positions`` (N, 3) nm, what the block began from."""

    positions: np.ndarray
    records: Records
    md_positions: np.ndarray


class ContextMove:
    """Tests proposals of a DiG on the positions of a Context, and writes what was accepted back, velocities and all.

    Constrained bonds to end atoms are lifted before the proposals and projected after them (:class:`.constraints.BondLift`);
    ``atoms`` of a larger System move with everything else where it is. Velocities are drawn anew from the Maxwell-Boltzmann
    law after an acceptance; a block without one leaves the Context untouched.

    Parameters
    ----------
    dig: a model of the moved atoms. system, topology: of the whole; ``temperature`` K of the law to sample.
    proposals: a block. seed: of proposals, decisions and velocities. scheme, batch, steps: see :class:`.DiGMonteCarlo`.
    atoms: (n,) indices the model moves, in its order; all if None.
    allow_explicit_solvent: see :func:`.subset.check_environment`. box: (3, 3) nm.
    energy: of the whole molecule without its constraints, where another than the System's own is wanted (another platform, say).
    """

    def __init__(
        self,
        dig: DiG,
        system: mm.System,
        topology: app.Topology,
        temperature: float,
        *,
        seed: int,
        proposals: int = 32,
        scheme: str = "metropolis",
        batch: int = 1024,
        steps: int | None = None,
        atoms: Sequence[int] | None = None,
        allow_explicit_solvent: bool = False,
        box: np.ndarray | None = None,
        energy: Energy | None = None,
    ):
        if proposals < 1:
            raise IncompatibleError(f"proposals must be at least 1, got {proposals}.")
        self.dig, self.temperature, self.proposals, self.seed = dig, float(temperature), int(proposals), int(seed)
        self.atoms = None if atoms is None else np.array([int(a) for a in atoms])
        self.lift: BondLift | None = None
        self.statistics = Statistics()
        if self.atoms is None:
            check_topology(dig.descriptor, topology)
            self._surroundings = None
            self.energy = self._own(system, topology, energy)
        else:
            self._surroundings = self._subset(system, topology, box, allow_explicit_solvent)
            self.energy = self._surroundings if self.lift is None else LiftedEnergy(self._surroundings, self.lift)
        origin = Geometry(torch.zeros(1, dig.descriptor.n_atoms, 3, dtype=torch.float64))
        self._chain = MonteCarlo(dig.proposal(steps=steps), self.energy, origin, seed=self.seed, batch=batch, scheme=scheme)
        if self._surroundings is not None:
            self._chain.pool = EnvironmentPool(self._chain.proposal, self.energy, seed=self.seed, batch=batch)
        self._virtual = any(system.isVirtualSite(i) for i in range(system.getNumParticles()))

    @property
    def blocks(self) -> int:
        """Blocks done since the chain began."""
        return self._chain.blocks

    def attempt(self, context: mm.Context) -> Block:
        """A block of proposals on the Context's positions. Raises StateError if those cannot be used."""
        before = self._read(context)
        self._chain.positions = before if self.lift is None else self._lifted(before)
        visited, records = self._chain.block(self.proposals)
        if self.lift is not None:
            visited = self.lift.project(torch.from_numpy(visited)).numpy()
        if records.accepted.any():
            self._write(context, visited[-1])
        self.statistics = self.statistics.after(records)
        return Block(visited * NM_PER_ANGSTROM, records, before * NM_PER_ANGSTROM)

    @property
    def next_proposal(self) -> int:
        """Index of the next proposal among those of the seed."""
        return self._chain.pool.next

    def go_on(self, blocks: int, next_proposal: int, statistics: Statistics) -> None:
        """Random numbers and counts from where another move of the same seed left off."""
        self._chain.blocks, self._chain.pool.next, self.statistics = int(blocks), int(next_proposal), statistics

    def state_dict(self) -> dict:
        """Chain and statistics; numbers and small arrays only."""
        return {"chain": self._chain.state_dict(), "statistics": self.statistics._asdict()}

    def load_state_dict(self, state: dict) -> None:
        """Go on from :meth:`state_dict` of a move of the same seed."""
        self._chain.load_state_dict(state["chain"])
        self.statistics = Statistics(**state["statistics"])

    def _own(self, system: mm.System, topology: app.Topology, given: Energy | None) -> Energy:
        """The System's energy, or the ``given`` one, lifted where the System has constraints."""
        free = without_constraints(system) if system.getNumConstraints() else system
        check_supported(free, topology)
        energy = OpenMMEnergy(free, self.temperature) if given is None else given
        if free is system:
            return energy
        self.lift = BondLift.from_system(system, self.temperature, topology=topology)
        return LiftedEnergy(energy, self.lift)

    def _subset(self, system: mm.System, topology: app.Topology, box, allow_explicit_solvent: bool) -> SubsetEnergy:
        atoms = self.atoms.tolist()  # type: ignore[union-attr]
        check_subset(system, topology, atoms)
        check_topology(self.dig.descriptor, subtopology(topology, atoms))
        if not allow_explicit_solvent:
            check_environment(topology, atoms, box)
        inside = set(atoms)
        if any({*system.getConstraintParameters(k)[:2]} & inside for k in range(system.getNumConstraints())):
            self.lift = BondLift.from_system(system, self.temperature, topology=topology, atoms=atoms)
        return SubsetEnergy(system, self.temperature, atoms, self.dig.descriptor.bonds.tolist())

    def _read(self, context: mm.Context) -> np.ndarray:
        """(N, 3) Angstrom of the model's atoms; the energy takes over the Context's parameters."""
        if self._surroundings is not None:
            return self._surroundings.observe(context) / NM_PER_ANGSTROM
        # The energy's own Context follows the parameters of the simulation's (alchemical ones, say).
        follow = getattr(self.energy, "follow", None)
        if follow is not None and follow(context):
            self._chain.pool.forget()
        positions = context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        return np.asarray(positions, dtype=np.float64) / NM_PER_ANGSTROM

    def _lifted(self, positions: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng([self.seed, _LIFT, self._chain.blocks])
        return self.lift.lift(torch.from_numpy(positions)[None], rng)[0].numpy()  # type: ignore[union-attr]

    def _write(self, context: mm.Context, positions: np.ndarray) -> None:
        whole = positions * NM_PER_ANGSTROM
        if self.atoms is not None:
            everything = context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer).copy()
            everything[self.atoms] = whole
            whole = everything
        context.setPositions(whole)
        if self._virtual:
            context.computeVirtualSites()
        seed = 1 + (self.seed * 1_000_003 + self._chain.blocks) % (2**31 - 2)
        context.setVelocitiesToTemperature(self.temperature * unit.kelvin, seed)


def model_temperature(dig: DiG, found, allow_mismatch: bool = False) -> float:
    """``found`` in K (a number or a Quantity) if it is the model's own; IncompatibleError otherwise, unless allowed."""
    temperature, wanted = kelvin(found), dig.card.temperature
    if wanted is not None and abs(temperature - wanted) > 0.1 and not allow_mismatch:
        raise IncompatibleError(
            f"the simulation runs at {temperature:g} K, the model {dig.card.name!r} was trained at {wanted:g} K. Sampling would stay "
            f"exact but few proposals would be accepted. Run at {wanted:g} K, or pass allow_temperature_mismatch=True."
        )
    return temperature
