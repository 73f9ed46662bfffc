"""How far structures are from the minima of an energy: relaxation with any ASE calculator, at fixed cell or at a pressure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pymatgen.core import Structure

from ..convert import from_atoms, to_atoms
from ..tables import markdown

__all__ = ["Relaxation", "relax"]

_FAILURES = (RuntimeError, ValueError, ArithmeticError, np.linalg.LinAlgError)
"""What calculators raise on one structure; ASE's own errors are RuntimeErrors. Others are bugs, and travel on."""


@dataclass(frozen=True, eq=False)
class Relaxation:
    """``gain`` (n,) eV/atom, what relaxation won of energy (of enthalpy at ``pressure`` GPa; None for a fixed cell); NaN where it failed.

    ``energy`` (n,) eV/atom after it, ``converged`` (n,) bool, ``structures`` after it (None where it failed), ``calls`` of the
    calculator, those of failures included.
    """

    gain: np.ndarray
    energy: np.ndarray
    converged: np.ndarray
    structures: tuple[Structure | None, ...]
    calls: int
    pressure: float | None = None

    def to_markdown(self) -> str:
        """One row; of those that did not fail."""
        gain = self.gain[np.isfinite(self.gain)]
        where = "fixed cell" if self.pressure is None else f"{self.pressure:g} GPa"
        head = ["relaxed at", "n", "failed", "converged", "mean gain, meV/atom", "median", "calls"]
        numbers = [f"{1000 * x:.0f}" for x in (gain.mean(), np.median(gain))] if len(gain) else ["", ""]
        counts = [str(len(self.gain)), str(len(self.gain) - len(gain)), str(int(self.converged.sum()))]
        return markdown(head, [[where, *counts, *numbers, str(self.calls)]])


def relax(
    structures: Sequence[Structure], calculator, *, pressure: float | None = None, fmax: float = 0.05, steps: int = 200
) -> Relaxation:
    """BFGS with ``calculator`` (energies eV, forces eV/Angstrom, stress for a pressure) to forces below ``fmax`` or ``steps`` steps.

    ``pressure`` GPa: the cell relaxes with the atoms, and energies are enthalpies; None holds the cell. A structure on which the
    calculator fails is marked, the others go on. Minima of a search at 10 GPa swell at any other pressure: hold their cells.
    """
    from ase import units
    from ase.filters import FrechetCellFilter
    from ase.optimize import BFGS

    n, calls = len(structures), 0
    gain, energy, converged = np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, dtype=bool)
    relaxed: list[Structure | None] = [None] * n
    for i, structure in enumerate(structures):
        atoms = to_atoms(structure)
        atoms.calc = calculator
        outside = 0.0 if pressure is None else pressure * units.GPa
        moving = atoms if pressure is None else FrechetCellFilter(atoms, scalar_pressure=outside)
        with BFGS(moving, maxstep=0.1, logfile=None) as optimiser:
            try:
                before = atoms.get_potential_energy() + outside * atoms.get_volume()
                done = optimiser.run(fmax=fmax, steps=steps)
                after = atoms.get_potential_energy() + outside * atoms.get_volume()
            except _FAILURES:
                continue
            finally:
                calls += optimiser.nsteps + 1
        if np.isfinite(before) and np.isfinite(after):
            gain[i], energy[i], converged[i] = (before - after) / len(atoms), after / len(atoms), bool(done)
            relaxed[i] = from_atoms(atoms)
    return Relaxation(gain, energy, converged, tuple(relaxed), calls, pressure)
