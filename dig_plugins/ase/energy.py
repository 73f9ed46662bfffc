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
from ase import Atoms
from torch import Tensor

from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.types import Geometry

from .convert import held_atoms, kT, to_atoms

__all__ = ["ASEEnergy"]

_STILL = 1e-6  # Angstrom; smaller moves of a centroid are round-off


class ASEEnergy:
    """u = E / kT of an ASE calculator for structures of ``atoms``: its elements, cell, pbc, constraints, charges, info.

    Calling it with a Geometry (N atoms, Angstrom; its own cell if it has one) gives u (B,) float64, differentiable once. E is
    the energy that belongs to the forces (``free_energy`` where the calculator has one), with the terms of Hookean and
    ExternalForce. Atoms held by FixAtoms stand where the geometry has them and have no gradient. A structure that the
    calculator cannot evaluate (any exception, NaN or infinite energy, forces or positions) has u = +inf and zero gradient.

    Calculators that evaluate many structures at once may have a method ``calculate_batch(images: list[Atoms]) -> (energies (B,)
    eV, forces (B, N, 3) eV/Angstrom)`` (energies those of the forces, constraints left to the caller); a batch that fails is
    tried again one by one. Otherwise structures go one after another, or ``chunk`` at a time to an ``executor``.

    Parameters
    ----------
    calculator: an ASE calculator, or a picklable function without arguments that makes one: called once here, or once a task of
        the executor. Programs that write files need one that gives each its own directory.
    atoms: the template; copied. temperature: K.
    executor: any ``concurrent.futures.Executor``; each task works on its own copy of the calculator.
    keep_centroid: put each structure where ``atoms`` is before it is evaluated, for models that forget where a molecule is.

    Attributes
    ----------
    n_evaluations, n_failures: structures asked of the calculator so far, and those among them with u = +inf.
    failures: what went wrong -> how often. first_traceback: of the first exception, or None.

    Raises
    ------
    UnsupportedError: a constraint that makes another law. IncompatibleError: no calculator, no valid temperature.
    """

    def __init__(
        self,
        calculator: Any,
        atoms: Atoms,
        temperature: float,
        *,
        executor: Executor | None = None,
        chunk: int = 8,
        keep_centroid: bool = False,
    ):
        if calculator is None:
            raise IncompatibleError("expected an ASE calculator, got None: set atoms.calc, or pass the calculator.")
        if chunk < 1:
            raise IncompatibleError(f"expected at least 1 structure a task, got chunk = {chunk}.")
        self.held = held_atoms(atoms)
        self.kt, self.temperature = kT(temperature), float(temperature)
        self.template, self.keep_centroid = atoms.copy(), bool(keep_centroid)
        self.executor, self.chunk = executor, int(chunk)
        self.calculator = calculator if _is_made(calculator) or executor is not None else calculator()
        self.n_evaluations = self.n_failures = 0
        self.failures: Counter[str] = Counter()
        self.first_traceback: str | None = None

    def __call__(self, geometry: Geometry) -> Tensor:
        """u (B,) float64 of (B, N, 3) Angstrom. IncompatibleError if N is not the template's."""
        positions = geometry.positions
        if positions.requires_grad and torch.is_grad_enabled():
            return _Evaluate.apply(positions, geometry.cell, self)
        energies, _ = self._evaluate(geometry, gradient=False)
        return torch.from_numpy(energies).to(positions.device)

    def energy_and_gradient(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """u (B,) float64 and du/dx (B, N, 3) float64, 1/Angstrom, without autograd. Raises as a call does."""
        energies, gradients = self._evaluate(geometry, gradient=True)
        device = geometry.positions.device
        return torch.from_numpy(energies).to(device), torch.from_numpy(gradients).to(device)

    def _evaluate(self, geometry: Geometry, *, gradient: bool) -> tuple[np.ndarray, np.ndarray]:
        """u (B,) and du/dx (B, N, 3) 1/Angstrom; the second is zero throughout unless ``gradient``."""
        shape = tuple(geometry.positions.shape)
        if len(shape) != 3 or shape[1:] != (len(self.template), 3):
            raise IncompatibleError(f"expected positions (B, {len(self.template)}, 3) for this ASEEnergy, got {shape}.")
        images = to_atoms(geometry, self.template)
        if self.keep_centroid:
            for image in images:
                _put(image, self.template.positions.mean(axis=0))
        energies, forces = np.full(shape[0], np.inf), np.zeros(shape)
        for i, found in enumerate(self._all(images, gradient)):
            if found.kind is None:
                energies[i], forces[i] = found.energy, found.forces
            else:
                self.n_failures += 1
                self.failures[found.kind] += 1
                self.first_traceback = self.first_traceback or found.trace
        self.n_evaluations += shape[0]
        return energies / self.kt, -forces / self.kt

    def _all(self, images: list[Atoms], gradient: bool) -> list[_Found]:
        if self.executor is not None:
            parts = [images[low : low + self.chunk] for low in range(0, len(images), self.chunk)]
            n = len(parts)
            done = self.executor.map(_in_task, [self.calculator] * n, parts, [gradient] * n)
            return [found for part in done for found in part]
        return _evaluate_images(self.calculator, images, gradient)

    def __getstate__(self) -> dict:
        # Executors cannot be pickled; what is sent to a worker works there by itself.
        return {**self.__dict__, "executor": None}


class _WrongShapeError(IncompatibleError):
    """Of what a calculator returns: a mistake in it, and no structure's fault."""


class _Found(NamedTuple):
    """One structure: eV, eV/Angstrom; ``kind`` of failure and its traceback, or None."""

    energy: float
    forces: np.ndarray | float
    kind: str | None = None
    trace: str | None = None


def _in_task(calculator: Any, images: list[Atoms], gradient: bool) -> list[_Found]:
    """In a worker: a thread must not share a calculator, which holds its last structure."""
    return _evaluate_images(copy.deepcopy(calculator) if _is_made(calculator) else calculator(), images, gradient)


def _is_made(calculator: Any) -> bool:
    """Whether it is a calculator, and not something that makes one (its class, say)."""
    works = hasattr(calculator, "get_potential_energy") or hasattr(calculator, "calculate_batch")
    return works and not isinstance(calculator, type)


def _evaluate_images(calculator: Any, images: list[Atoms], gradient: bool) -> list[_Found]:
    batched = getattr(calculator, "calculate_batch", None)
    usable = [image for image in images if np.isfinite(image.positions).all()]
    done = None
    if batched is not None and usable:
        done = _attempt(lambda: [_checked(*x) for x in _many(batched, usable)])
    if not isinstance(done, list):
        done = []
        for image in usable:
            traced = any(found.trace for found in done)
            done.append(_attempt(lambda image=image: _checked(*_one(calculator, batched, image, gradient)), traced))
    rest = iter(done)
    lost = _Found(np.inf, 0.0, "positions are not finite")
    return [next(rest) if np.isfinite(image.positions).all() else lost for image in images]


def _attempt(evaluate: Callable[[], Any], traced: bool = False) -> Any:
    """What ``evaluate`` returns, or the failure as a _Found, with its traceback unless there is one already: they take time."""
    try:
        return evaluate()
    except _WrongShapeError:
        raise
    except Exception as error:  # noqa: BLE001  calculators raise what they like, programs that did not converge among it
        return _Found(np.inf, 0.0, type(error).__name__, None if traced else traceback.format_exc())


def _one(calculator: Any, batched: Callable | None, image: Atoms, gradient: bool) -> tuple[float, np.ndarray | float]:
    if batched is not None:
        return _many(batched, [image])[0]
    image.calc = calculator
    # Forces first: most calculators make the energy on the way.
    forces = image.get_forces() if gradient else 0.0
    consistent = "free_energy" in getattr(calculator, "implemented_properties", ())
    return image.get_potential_energy(force_consistent=consistent), forces


def _many(batched: Callable, images: Sequence[Atoms]) -> list[tuple[float, np.ndarray]]:
    energies, forces = batched(images)
    energies, forces = np.array(energies, dtype=np.float64), np.array(forces, dtype=np.float64)
    wanted = (len(images), len(images[0]), 3)
    if energies.shape != wanted[:1] or forces.shape != wanted:
        raise _WrongShapeError(
            f"calculate_batch returned energies {energies.shape} and forces {forces.shape}, expected {wanted[:1]} and {wanted}."
        )
    for i, image in enumerate(images):
        for constraint in image.constraints:
            if hasattr(constraint, "adjust_potential_energy"):
                energies[i] += constraint.adjust_potential_energy(image)
            constraint.adjust_forces(image, forces[i])
    return list(zip(energies.tolist(), forces, strict=True))


def _checked(energy, forces) -> _Found:
    energy = float(energy)
    for value, what in ((energy, "energy"), (forces, "forces")):
        if not np.isfinite(value).all():
            return _Found(np.inf, 0.0, f"{'NaN' if np.isnan(value).any() else 'infinite'} {what}")
    return _Found(energy, forces)


def _put(image: Atoms, centroid: np.ndarray) -> None:
    shift = centroid - image.positions.mean(axis=0)
    # Not for round-off: a calculator recognises a structure that it has just evaluated by its positions.
    if np.abs(shift).max() > _STILL:
        image.positions += shift


class _Evaluate(torch.autograd.Function):
    """Positions (B, N, 3) Angstrom -> u (B,), with the calculator's forces as the derivative."""

    @staticmethod
    def forward(ctx, positions: Tensor, cell: Tensor | None, energy: ASEEnergy) -> Tensor:
        u, gradient = energy.energy_and_gradient(Geometry(positions, cell))
        ctx.save_for_backward(positions, gradient.to(positions.dtype), u.isfinite())
        return u

    @staticmethod
    def backward(ctx, grad_u: Tensor) -> tuple[Tensor, None, None]:
        positions, gradient, ok = ctx.saved_tensors
        # Whatever a loss makes of u = +inf, a failed structure has no gradient.
        scale = torch.where(ok, grad_u, 0.0).to(gradient.dtype)
        return _NoFurther.apply(positions, scale[:, None, None] * gradient), None, None


class _NoFurther(torch.autograd.Function):
    """The gradient as it is; differentiating it raises, where ``once_differentiable`` might take it for a constant."""

    @staticmethod
    def forward(ctx, positions: Tensor, gradient: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx, _):
        raise UnsupportedError("ASEEnergy is differentiable only once: ASE calculators have no second derivatives.")
