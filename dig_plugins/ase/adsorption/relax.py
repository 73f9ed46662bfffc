"""Relaxations with any ASE calculator: every call counted, failures marked, minima told from saddles."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.optimize import BFGS

from dig_core.errors import StateError

__all__ = ["STIFF", "Counted", "Relaxed", "hessian", "is_minimum", "relax", "relax_clean"]

_FAILURES = (RuntimeError, ValueError, ArithmeticError, np.linalg.LinAlgError)
"""What calculators raise on one configuration; ASE's own errors are RuntimeErrors. Others are bugs, and travel on."""


STIFF = 70.0
"""eV/Angstrom^2 of every direction to begin with, unless something better is known: ASE's own, that of molecules."""

_SADDLE = -0.02  # eV/Angstrom^2
_ASIDE, _FALL = 0.15, 0.002  # Angstrom along the softest direction, and eV by which the energy of a saddle falls there


class Counted(Calculator):
    """Passes energies and forces of another calculator on; ``calls`` structures were evaluated, ``failures`` of them in vain;
    ``reason`` of the last failure.

    Raises StateError where the calculator fails or returns numbers that are not finite.
    """

    implemented_properties = ["energy", "forces"]

    def __init__(self, calculator):
        super().__init__()
        self.inner, self.calls, self.failures, self.reason = calculator, 0, 0, ""

    def calculate(self, atoms=None, properties=("energy",), system_changes=None):
        """One call, whichever properties are asked for."""
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        copy = self.atoms.copy()
        copy.calc = self.inner
        try:
            energy, forces = float(copy.get_potential_energy()), np.array(copy.get_forces(apply_constraint=False))
        except _FAILURES as error:
            raise self._failed(f"the calculator failed on {copy.symbols}: {error}") from error
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise self._failed(
                f"the calculator returned numbers that are not finite for {copy.symbols}: keep this structure out."
            )
        self.results = {"energy": energy, "forces": forces}

    def _failed(self, reason: str) -> StateError:
        self.failures, self.reason = self.failures + 1, reason
        return StateError(reason)


class Relaxed(NamedTuple):
    """A structure where the optimiser stopped; ``energy`` eV; ``forces`` (N, 3) eV/Angstrom; ``converged`` if they are below fmax;
    ``curvature`` (3N, 3N) eV/Angstrom^2 that the optimiser has gathered, None if it took no step."""

    atoms: Atoms
    energy: float
    forces: np.ndarray
    converged: bool
    curvature: np.ndarray | None = None


def relax(
    atoms: Atoms, calculator: Counted, *, fmax: float, steps: int, curvature: float | np.ndarray = STIFF,
    enough: Callable[[Atoms], bool] | None = None,
) -> Relaxed | None:  # fmt: skip
    """BFGS under the structure's own constraints, steps of 0.15 Angstrom at most; None if the calculator failed on the way.

    Parameters
    ----------
    curvature: eV/Angstrom^2 to begin with, of every direction or as a (3N, 3N) matrix, such as that of a like relaxation before.
    enough: asked of the structure after every step; where it says so the relaxation ends, unconverged.
    """
    moved, converged = atoms.copy(), False
    moved.calc = calculator
    try:
        with BFGS(moved, maxstep=0.15, logfile=None) as optimiser:
            optimiser.H0 = curvature * np.eye(3 * len(atoms)) if np.ndim(curvature) == 0 else np.array(curvature)
            for converged in optimiser.irun(fmax=fmax, steps=steps):
                if enough is not None and not converged and enough(moved):
                    break
        energy, forces = float(moved.get_potential_energy()), moved.get_forces(apply_constraint=False)
    except StateError:
        return None
    moved.calc = None
    if not np.isfinite(moved.positions).all():
        return None
    # ASE has no matrix before the first step.
    return Relaxed(moved, energy, forces, bool(converged), getattr(optimiser, "H", None))


def relax_clean(slab: Atoms, calculator: Counted, *, fmax: float, steps: int) -> Relaxed:
    """The bare slab, relaxed: the zero of adsorption energies. Raises StateError if the calculator fails on it."""
    clean = relax(slab, calculator, fmax=fmax, steps=steps)
    if clean is None:
        raise StateError(f"the clean slab has no energy: {calculator.reason} Check the calculator's elements and settings.")
    return clean


def hessian(end: Relaxed, index: np.ndarray, calculator: Counted, step: float = 0.02) -> np.ndarray | None:
    """(3k, 3k) eV/Angstrom^2 of the atoms ``index`` (k,), all others held, in 3 k calls; None on failure.

    Differences to the forces where the relaxation ended, of first order in ``step`` Angstrom: central ones would cost twice the calls.
    """
    moved = end.atoms.copy()
    moved.set_constraint()
    moved.calc = calculator
    rows = []
    try:
        for i in index:
            for axis in range(3):
                moved.positions[i, axis] = end.atoms.positions[i, axis] + step
                rows.append((end.forces[index] - moved.get_forces()[index]).ravel() / step)
                moved.positions[i, axis] = end.atoms.positions[i, axis]
    except StateError:
        return None
    matrix = np.array(rows)
    return (matrix + matrix.T) / 2


def is_minimum(end: Relaxed, index: np.ndarray, calculator: Counted) -> bool | None:
    """Whether the atoms ``index`` (k,) are in a minimum: by their curvature, and where that is negative by the energy along it, since
    second differences of a network's forces are too rough to tell a shallow minimum from a saddle. None where the calculator failed."""
    matrix = hessian(end, index, calculator)
    if matrix is None:
        return None
    curvatures, directions = np.linalg.eigh(matrix)
    if curvatures[0] > _SADDLE:
        return True
    moved = end.atoms.copy()
    moved.set_constraint()
    moved.calc = calculator
    shift, energies = _ASIDE * directions[:, 0].reshape(-1, 3), []
    try:
        for sign in (1, -1):
            moved.positions[index] = end.atoms.positions[index] + sign * shift
            energies.append(moved.get_potential_energy())
    except StateError:
        return None
    return bool(min(energies) > end.energy - _FALL)
