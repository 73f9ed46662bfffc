"""A Monte Carlo chain of Atoms: independent proposals of a DiG, mixed with any ASE MD or with moves of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.constraints import Hookean
from ase.optimize.optimize import BaseDynamics

from dig_core.dig import DiG
from dig_core.energy import Energy
from dig_core.errors import IncompatibleError, StateError, UnsupportedError
from dig_core.montecarlo.chain import MonteCarlo, Records, Statistics, reduced_energy
from dig_core.random import as_seed
from dig_core.types import Geometry

from .convert import check_atoms, check_held, kT, model_temperature, to_geometry
from .energy import ASEEnergy

__all__ = ["Block", "DiGDynamics"]

_MD, _VELOCITIES = 2**31, 2**31 + 1  # separate their random numbers from each other and from those of decisions
_SHIFT, _FELT = 0.2, 0.05  # Angstrom along each axis, and kT of difference that is more than noise


class Block(NamedTuple):
    """What a step did: ``positions`` (M, N, 3) Angstrom, the state after each test; ``records``, one row a proposal.

    ``cell`` (M, 3, 3) Angstrom where proposals come with cells, else None.
    """

    positions: np.ndarray
    records: Records
    cell: np.ndarray | None = None


class DiGDynamics(BaseDynamics):
    """Samples exp(-E/kT) of ``atoms.calc`` whatever the model's quality; runs like any ASE dynamics::

        chain = DiGDynamics(atoms, dig, seed=1, md=partial(Langevin, timestep=fs, temperature_K=300, friction=0.01 / fs, fixcm=False),
                            trajectory="chain.traj", logfile="-")
        chain.run(1000)

    A step is a stretch of MD or a local move, if there is one, and a block of proposals, each tested with
    :func:`~dig_core.montecarlo.chain.independence_metropolis`. Observers, log and trajectory see the state after the block;
    ``block`` holds those after every test. Atoms held by FixAtoms must be those that the model does not move. E is the
    energy that belongs to the forces, with Hookean and ExternalForce; proposals whose energy fails are counted and refused.

    Parameters
    ----------
    atoms: with a calculator, unless ``energy`` is given and there is no MD. dig: a model of these atoms, in this order.
    temperature: K; the model's own if None. Another is refused unless ``allow_temperature_mismatch``.
    proposals: a step. batch: prepared at a time; as many as a step's if None, so that no energy is spent ahead.
    md: makes the MD, called once as ``md(atoms, rng=generator)``; it must keep exp(-E/kT) (Langevin, Andersen, Bussi; not
        Berendsen). ``md_steps`` a step. Velocities are drawn anew after an acceptance and left alone otherwise.
    local: instead of MD, maps (positions (N, 3) Angstrom, step number) to positions, leaving exp(-E/kT) invariant by itself.
    energy: another Energy than the calculator's. executor: evaluates proposals; see :class:`ASEEnergy`.
    seed: of everything; fresh, and kept in ``seed``, if None. The state after step n depends on it alone, so that a chain
        that goes on from :meth:`state_dict` is the one that ran through (MD with variables of its own, Nose-Hoover's, apart).
    scheme: "metropolis" or "isir". steps: of the model's paths.
    logfile, trajectory, append_trajectory, loginterval: as everywhere in ASE.

    Raises
    ------
    IncompatibleError, UnsupportedError, StateError: what does not fit, by name.
    """

    def __init__(
        self,
        atoms: Atoms,
        dig: DiG,
        *,
        temperature: float | None = None,
        proposals: int = 16,
        md: Callable[..., Any] | None = None,
        md_steps: int = 100,
        local: Callable[[np.ndarray, int], np.ndarray] | None = None,
        energy: Energy | None = None,
        executor: Executor | None = None,
        seed: int | None = None,
        scheme: str = "metropolis",
        batch: int | None = None,
        steps: int | None = None,
        allow_temperature_mismatch: bool = False,
        logfile: Any = None,
        trajectory: Any = None,
        append_trajectory: bool = False,
        loginterval: int = 1,
    ):
        if proposals < 1 or md_steps < 1 or (md is not None and local is not None):
            raise IncompatibleError(
                f"expected at least 1 proposal, at least 1 MD step, and MD or local moves, not both; got proposals = {proposals}, "
                f"md_steps = {md_steps}" + ("." if md is None or local is None else ", md and local.")
            )
        if atoms.calc is None and (energy is None or md is not None):
            raise IncompatibleError("the Atoms have no calculator: set atoms.calc to the one whose exp(-E/kT) is wanted.")
        check_atoms(atoms, dig)
        check_held(atoms, dig)
        self.dig, self.seed, self.proposals, self.md_steps = dig, as_seed(seed), int(proposals), int(md_steps)
        self.temperature = model_temperature(dig, temperature, allow_temperature_mismatch)
        self._floating = "translation" in dig.coordinates.gauge
        if energy is None:
            energy = ASEEnergy(atoms.calc, atoms, self.temperature, executor=executor, keep_centroid=self._floating)
        self.energy, self._cell = energy, atoms.cell.array.copy()
        self.statistics, self.block = Statistics(), Block(atoms.positions[None].copy(), _NOTHING)
        self._rng = np.random.default_rng(0)
        super().__init__(atoms, logfile, trajectory, append_trajectory, loginterval=loginterval)
        self._logs_every = None if logfile is None else int(loginterval)
        if self._floating:
            self._check_floating()
        self.md = None if md is None else self._made(md)
        self._chain = MonteCarlo(
            dig.proposal(steps=steps), energy, to_geometry(atoms), seed=self.seed, batch=self.proposals if batch is None else batch,
            scheme=scheme, local=local if md is None else self._integrate,
        )  # fmt: skip

    def run(self, steps: int = 50) -> bool:
        """``steps`` steps; True when they are done, as ASE's MD says it."""
        for _ in self.irun(steps):
            pass
        return True

    def irun(self, steps: int = 50) -> Iterator[bool]:
        """The same as a generator, which yields whether it is done before the first step and after each."""
        self.max_steps = self.nsteps + steps
        if self.nsteps == 0:
            self._report()
        yield self.nsteps == self.max_steps
        while self.nsteps < self.max_steps:
            self.step()
            self.nsteps += 1
            self._report()
            yield self.nsteps == self.max_steps

    def step(self) -> None:
        """MD or a local move, then a block of proposals. Raises StateError if the current structure cannot be used."""
        atoms, chain = self.atoms, self._chain
        chain.positions = atoms.positions.copy()
        chain.cell = None if chain.cell is None else atoms.cell.array.copy()
        number = chain.blocks
        try:
            visited, records = chain.block(self.proposals)
        except StateError as error:
            trace = getattr(self.energy, "first_traceback", None)
            raise StateError(f"{error} The energy first failed with:\n{trace}" if trace else str(error)) from error
        atoms.set_positions(visited[-1], apply_constraint=False)
        self._keep_cell()
        if records.accepted.any() and self.md is not None:
            self._draw_velocities(number)
        self.statistics = self.statistics.after(records)
        self.block = Block(visited, records, chain.cells)

    def _keep_cell(self) -> None:
        """The chain's cell is that of the atoms: a crystal's proposals change it."""
        if self._chain.cells is not None:
            self.atoms.set_cell(self._chain.cell)
            self._cell = self.atoms.cell.array.copy()

    def state_dict(self) -> dict:
        """Positions, momenta, counters; numbers, arrays and dicts."""
        momenta = self.atoms.get_momenta() if self.md is not None else None
        md_steps = 0 if self.md is None else int(self.md.nsteps)
        chain = {**self._chain.state_dict(), "positions": self.atoms.positions.copy()}
        return {
            "chain": chain, "statistics": self.statistics._asdict(), "momenta": momenta, "nsteps": self.nsteps, "md_nsteps": md_steps,
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Go on from :meth:`state_dict` of a chain of the same seed, made the same way."""
        self._chain.load_state_dict(state["chain"])
        self.atoms.set_positions(self._chain.positions, apply_constraint=False)
        if "cell" in state["chain"]:
            self.atoms.set_cell(self._chain.cell)
            self._cell = self.atoms.cell.array.copy()
        self.statistics, self.nsteps = Statistics(**state["statistics"]), int(state["nsteps"])
        if self.md is not None:
            self.atoms.set_momenta(state["momenta"], apply_constraint=False)
            self.md.nsteps = int(state["md_nsteps"])

    def todict(self) -> dict:
        """What a trajectory says of how it was made."""
        return {
            "type": "monte-carlo", "mc-type": type(self).__name__, "model": self.dig.card.name, "temperature": self.temperature,
            "seed": self.seed, "proposals": self.proposals, "md_steps": self.md_steps if self.md is not None else 0,
        }  # fmt: skip

    def log(self) -> None:
        """A line: step, energy in eV, acceptance, longest rejection run, failed energies, all since the beginning."""
        counts = self.statistics
        if self.nsteps == 0:
            self.logfile.write(f"{type(self).__name__}:  {'step':>8} {'energy':>15} {'acceptance':>11} {'run':>6} {'failed':>7}\n")
        line = f"{self.nsteps:8d} {self._energy_now():15.6f} {counts.acceptance:11.4f} {counts.longest_rejection_run:6d}"
        self.logfile.write(f"{type(self).__name__}:  {line} {counts.failed['energy']:7d}\n")

    def _report(self) -> None:
        if self.atoms.calc is not None and self.observers:
            # For whoever looks; the next block asks for the same energy and finds it in the calculator.
            self.atoms.get_potential_energy()
        if self._logs_every is not None and self.nsteps % self._logs_every == 0:
            self.log()
        self.call_observers()

    def _energy_now(self) -> float:
        with torch.no_grad():
            return float(reduced_energy(self.energy, Geometry(to_geometry(self.atoms).positions))) * kT(self.temperature)

    def _integrate(self, positions: np.ndarray, number: int) -> np.ndarray:
        """A stretch of MD; its random numbers are those of the seed and the step."""
        self._rng.bit_generator.state = np.random.default_rng([self.seed, _MD, number]).bit_generator.state
        self.md.run(self.md_steps)
        if not np.array_equal(self.atoms.cell.array, self._cell):
            raise UnsupportedError("MD changed the cell: expected dynamics at constant volume, since proposals keep it. Use NVT.")
        return self.atoms.positions.copy()

    def _made(self, md: Callable[..., Any]) -> Any:
        made = md(self.atoms, rng=self._rng)
        if not hasattr(made, "run") or getattr(made, "atoms", None) is not self.atoms:
            raise IncompatibleError(
                f"md(atoms, rng=generator) returned a {type(made).__name__}: expected an ASE dynamics of these atoms, such as "
                "partial(Langevin, timestep=1 * fs, temperature_K=300, friction=0.01 / fs, fixcm=False)."
            )
        if "Berendsen" in type(made).__name__:
            raise UnsupportedError(f"{type(made).__name__} does not keep exp(-E/kT): expected Langevin, Andersen, Bussi or the like.")
        thermostat, kt = getattr(made, "temp", None), kT(self.temperature)
        if isinstance(thermostat, int | float) and abs(thermostat / kt - 1) > 1e-3:
            found = thermostat / kT(1)
            raise IncompatibleError(f"the MD runs at {found:g} K, the chain at {self.temperature:g} K: expected one temperature.")
        if not self.atoms.get_momenta().any():
            self._draw_velocities(-1)
        return made

    def _draw_velocities(self, number: int) -> None:
        rng = np.random.default_rng([self.seed, _VELOCITIES, number + 1])
        widths = np.sqrt(self.atoms.get_masses() * kT(self.temperature))
        self.atoms.set_momenta(widths[:, None] * rng.standard_normal((len(self.atoms), 3)))

    def _check_floating(self) -> None:
        """The model forgets where the molecule is: an energy that does not would be sampled wrongly."""
        found = [type(c).__name__ for c in self.atoms.constraints if _anchored(c)]
        here = to_geometry(self.atoms).positions
        if not found:
            with torch.no_grad():
                u = [float(reduced_energy(self._free(), Geometry(here + shift))) for shift in (0.0, _SHIFT)]
            if abs(u[1] - u[0]) > _FELT:
                found = [f"the calculator ({u[1] - u[0]:.3g} kT after a shift of {_SHIFT} Angstrom along each axis)"]
        if found:
            raise UnsupportedError(
                f"{found[0]}: the energy depends on where the molecule is, and the model {self.dig.card.name!r} forgets it. Remove what "
                "holds it, or take a model whose coordinates keep the place."
            )

    def _free(self) -> Energy:
        if not isinstance(self.energy, ASEEnergy):
            return self.energy
        return ASEEnergy(self.energy.calculator, self.atoms, self.temperature, executor=self.energy.executor)


def _anchored(constraint: Any) -> bool:
    return isinstance(constraint, Hookean) and constraint._type != "two atoms"


_NOTHING = Records(*(np.empty(0) for _ in range(3)), np.empty(0, dtype=bool), np.empty(0, dtype=np.uint8))
