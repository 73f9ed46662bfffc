"""Reduced energies and gradients from any ASE calculator: failures counted, batches and executors where there are some."""

from __future__ import annotations

import copy
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from torch import Tensor

from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.gradients import with_gradients
from dig_core.types import Geometry

from .convert import held_atoms, kT, to_atoms

__all__ = ["ASEEnergy"]

_ONCE = "ASEEnergy is differentiable only once: ASE calculators have no second derivatives."
_STILL = 1e-6  # Angstrom; smaller moves of a centroid are round-off


class ASEEnergy:
    """u = E / kT of an ASE calculator for structures of ``atoms``: its elements, cell, pbc, constraints, charges, info.

    Calling it with a Geometry (N atoms, Angstrom; its own cell if it has one) gives u (B,) float64, differentiable once. E is
    the energy that belongs to the forces (``free_energy`` where the calculator has one), with the terms of Hookean and
    ExternalForce. Atoms held by FixAtoms stand where the geometry has them and have no gradient. A structure that the
    calculator cannot evaluate (any exception, NaN or infinite energy, forces, positions or cell) has u = +inf and zero gradient.

    Where the cell requires a gradient, positions and lattice vectors are independent: du/dcell at fixed positions comes from the
    calculator's stress, with ``pressure`` in it. With a pressure p, u = (E + pV) / kT, the reduced enthalpy.

    Calculators that evaluate many structures at once may have a method ``calculate_batch(images: list[Atoms]) -> (energies (B,)
    eV, forces (B, N, 3) eV/Angstrom[, stresses (B, 3, 3) eV/Angstrom^3])`` (energies those of the forces, constraints left to the
    caller); a batch that fails is tried again one by one. Otherwise structures go one after another, or ``chunk`` at a time to an
    ``executor``.

    Parameters
    ----------
    calculator: an ASE calculator, or a picklable function without arguments that makes one: called once here, or once a task of
        the executor. Programs that write files need one that gives each its own directory.
    atoms: the template; copied. temperature: K. pressure: GPa, for templates that are periodic along all three vectors.
    executor: any ``concurrent.futures.Executor``; each task works on its own copy of the calculator.
    keep_centroid: put each structure where ``atoms`` is before it is evaluated, for models that forget where a molecule is.

    Attributes
    ----------
    n_evaluations, n_failures: structures asked of the calculator so far, and those among them with u = +inf.
    failures: what went wrong -> how often. first_traceback: of the first exception, or None.

    Raises
    ------
    UnsupportedError: a constraint that makes another law; at a call, a gradient of the cell from a calculator without stress, or
    under any constraint. IncompatibleError: no calculator, no valid temperature, a pressure on what is not periodic.
    """

    def __init__(
        self,
        calculator: Any,
        atoms: Atoms,
        temperature: float,
        *,
        pressure: float = 0.0,
        executor: Executor | None = None,
        chunk: int = 8,
        keep_centroid: bool = False,
    ):
        if calculator is None:
            raise IncompatibleError("expected an ASE calculator, got None: set atoms.calc, or pass the calculator.")
        if chunk < 1:
            raise IncompatibleError(f"expected at least 1 structure a task, got chunk = {chunk}.")
        self.held = held_atoms(atoms)
        if pressure and not atoms.pbc.all():
            raise IncompatibleError(f"a pressure of {pressure:g} GPa needs pbc along all three vectors, got pbc = {atoms.pbc.tolist()}.")
        self.pressure = float(pressure)
        self.kt, self.temperature = kT(temperature), float(temperature)
        self.template, self.keep_centroid = atoms.copy(), bool(keep_centroid)
        self.executor, self.chunk = executor, int(chunk)
        self.calculator = calculator if _is_made(calculator) or executor is not None else calculator()
        self.n_evaluations = self.n_failures = 0
        self.failures: Counter[str] = Counter()
        self.first_traceback: str | None = None

    def __call__(self, geometry: Geometry) -> Tensor:
        """u (B,) float64 of (B, N, 3) Angstrom. IncompatibleError if N is not the template's."""
        positions, cell = geometry
        if torch.is_grad_enabled() and (positions.requires_grad or _moving(cell)):
            return with_gradients(lambda x, strain: self._evaluate(x, gradient=True, strain=strain), geometry, _ONCE)
        return self._evaluate(geometry)[0].to(positions.device)

    def energy_and_gradient(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """u (B,) float64 and du/dx (B, N, 3) float64, 1/Angstrom, without autograd. Raises as a call does."""
        u, gradient, _ = self._evaluate(geometry, gradient=True)
        return u.to(geometry.positions.device), gradient.to(geometry.positions.device)

    def _evaluate(self, geometry: Geometry, *, gradient: bool = False, strain: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """u (B,), du/dx (B, N, 3) and du/dcell (B, 3, 3) 1/Angstrom; these are zero throughout unless asked for."""
        shape = tuple(geometry.positions.shape)
        if len(shape) != 3 or shape[1:] != (len(self.template), 3):
            raise IncompatibleError(f"expected positions (B, {len(self.template)}, 3) for this ASEEnergy, got {shape}.")
        if strain and self.template.constraints:
            raise UnsupportedError("gradients of the cell are not those of a structure under constraints: remove them, or hold the cell.")
        images = to_atoms(geometry, self.template)
        if self.keep_centroid:
            for image in images:
                _put(image, self.template.positions.mean(axis=0))
        energies, slopes, pull = np.full(shape[0], np.inf), np.zeros(shape), np.zeros((shape[0], 3, 3))
        pressure = self.pressure * units.GPa
        for i, (image, found) in enumerate(zip(images, self._all(images, gradient, strain), strict=True)):
            if found.kind is None:
                energies[i] = found.energy + (pressure * image.get_volume() if pressure else 0.0)
                slopes[i] = -found.forces
                if strain:
                    pull[i] = _cell_gradient(image, found, pressure)
            else:
                self.n_failures += 1
                self.failures[found.kind] += 1
                self.first_traceback = self.first_traceback or found.trace
        self.n_evaluations += shape[0]
        u, dx, dcell = (torch.from_numpy(x / self.kt) for x in (energies, slopes, pull))
        return u, dx, dcell

    def _all(self, images: list[Atoms], gradient: bool, strain: bool) -> list[_Found]:
        if self.executor is not None:
            parts = [images[low : low + self.chunk] for low in range(0, len(images), self.chunk)]
            n = len(parts)
            done = self.executor.map(_in_task, [self.calculator] * n, parts, [gradient] * n, [strain] * n)
            return [found for part in done for found in part]
        return _evaluate_images(self.calculator, images, gradient, strain)

    def __getstate__(self) -> dict:
        # Executors cannot be pickled; what is sent to a worker works there by itself.
        return {**self.__dict__, "executor": None}


class _WrongShapeError(IncompatibleError):
    """Of what a calculator returns: a mistake in it, and no structure's fault."""


class _NoStressError(UnsupportedError):
    """A calculator that cannot say what the cell feels."""


_STRESSLESS = "{} has no stress, which the gradient of the cell needs: take a calculator with stress, or hold the cell."


class _Found(NamedTuple):
    """One structure: eV, eV/Angstrom, eV/Angstrom^3; ``kind`` of failure and its traceback, or None."""

    energy: float
    forces: np.ndarray | float
    stress: np.ndarray | float = 0.0
    kind: str | None = None
    trace: str | None = None


def _in_task(calculator: Any, images: list[Atoms], gradient: bool, strain: bool) -> list[_Found]:
    """In a worker: a thread must not share a calculator, which holds its last structure."""
    return _evaluate_images(copy.deepcopy(calculator) if _is_made(calculator) else calculator(), images, gradient, strain)


def _is_made(calculator: Any) -> bool:
    """Whether it is a calculator, and not something that makes one (its class, say)."""
    works = hasattr(calculator, "get_potential_energy") or hasattr(calculator, "calculate_batch")
    return works and not isinstance(calculator, type)


def _evaluate_images(calculator: Any, images: list[Atoms], gradient: bool, strain: bool) -> list[_Found]:
    batched = getattr(calculator, "calculate_batch", None)
    broken = [_not_finite(image) for image in images]
    usable = [image for image, kind in zip(images, broken, strict=True) if kind is None]
    done = None
    if batched is not None and usable:
        done = _attempt(lambda: [_checked(*x) for x in _many(batched, usable, strain)])
    if not isinstance(done, list):
        done = []
        for image in usable:
            traced = any(found.trace for found in done)
            done.append(_attempt(lambda image=image: _checked(*_one(calculator, batched, image, gradient, strain)), traced))
    rest = iter(done)
    return [next(rest) if kind is None else _Found(np.inf, 0.0, kind=kind) for kind in broken]


def _not_finite(image: Atoms) -> str | None:
    if not np.isfinite(image.positions).all():
        return "positions are not finite"
    return None if np.isfinite(image.cell.array).all() else "cell is not finite"


def _attempt(evaluate: Callable[[], Any], traced: bool = False) -> Any:
    """What ``evaluate`` returns, or the failure as a _Found, with its traceback unless there is one already: they take time."""
    try:
        # Sampling is without gradients, by which calculators of neural networks make their forces.
        with torch.inference_mode(False), torch.enable_grad():
            return evaluate()
    except (_WrongShapeError, _NoStressError):
        raise
    except Exception as error:  # noqa: BLE001  calculators raise what they like, programs that did not converge among it
        return _Found(np.inf, 0.0, kind=type(error).__name__, trace=None if traced else traceback.format_exc())


def _one(calculator: Any, batched: Callable | None, image: Atoms, gradient: bool, strain: bool) -> tuple:
    if batched is not None:
        return _many(batched, [image], strain)[0]
    image.calc = calculator
    # Forces first: most calculators make the energy on the way.
    forces, stress = image.get_forces() if gradient else 0.0, 0.0
    if strain:
        try:
            stress = image.get_stress(voigt=False)
        except PropertyNotImplementedError as error:
            raise _NoStressError(_STRESSLESS.format(type(calculator).__name__)) from error
    consistent = "free_energy" in getattr(calculator, "implemented_properties", ())
    return image.get_potential_energy(force_consistent=consistent), forces, stress


def _many(batched: Callable, images: Sequence[Atoms], strain: bool) -> list[tuple]:
    energies, forces, *stresses = (np.array(x, dtype=np.float64) for x in batched(images))
    wanted = (len(images), len(images[0]), 3)
    if energies.shape != wanted[:1] or forces.shape != wanted:
        raise _WrongShapeError(
            f"calculate_batch returned energies {energies.shape} and forces {forces.shape}, expected {wanted[:1]} and {wanted}."
        )
    if strain and not stresses:
        raise _NoStressError(_STRESSLESS.format("calculate_batch"))
    if stresses and stresses[0].shape != (len(images), 3, 3):
        raise _WrongShapeError(f"calculate_batch returned stresses {stresses[0].shape}, expected {(len(images), 3, 3)}.")
    for i, image in enumerate(images):
        for constraint in image.constraints:
            if hasattr(constraint, "adjust_potential_energy"):
                energies[i] += constraint.adjust_potential_energy(image)
            constraint.adjust_forces(image, forces[i])
    return list(zip(energies.tolist(), forces, stresses[0] if stresses else [0.0] * len(images), strict=True))


def _checked(energy, forces, stress) -> _Found:
    energy = float(energy)
    for value, what in ((energy, "energy"), (forces, "forces"), (stress, "stress")):
        if not np.isfinite(value).all():
            return _Found(np.inf, 0.0, kind=f"{'NaN' if np.isnan(value).any() else 'infinite'} {what}")
    return _Found(energy, forces, stress)


def _cell_gradient(image: Atoms, found: _Found, pressure: float) -> np.ndarray:
    """(3, 3) dH/dcell at fixed positions, eV/Angstrom: a strain moves both, and V (stress + p) is the sum of what it does to each."""
    strained = image.get_volume() * (found.stress + pressure * np.eye(3)) + image.positions.T @ found.forces
    return np.linalg.solve(image.cell.array.T, strained)


def _moving(cell: Tensor | None) -> bool:
    return cell is not None and cell.requires_grad


def _put(image: Atoms, centroid: np.ndarray) -> None:
    shift = centroid - image.positions.mean(axis=0)
    # Not for round-off: a calculator recognises a structure that it has just evaluated by its positions.
    if np.abs(shift).max() > _STILL:
        image.positions += shift
