"""Reduced energies and gradients from OpenMM Contexts: every force OpenMM has, differentiable once."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import openmm
import torch
from openmm import unit
from torch import Tensor

from dig_core.errors import IncompatibleError
from dig_core.gradients import with_gradients
from dig_core.types import Geometry

from .convert import NM_PER_ANGSTROM, check_supported, helix, kelvin, reduced_unit, to_nanometers
from .platforms import ACCELERATORS, candidates, fastest, present

__all__ = ["OpenMMEnergy"]

_ONCE = "OpenMMEnergy is differentiable only once: OpenMM has no second derivatives. Use TorchPotential.from_system."


class OpenMMEnergy:
    """u = E / kT of an OpenMM System, one Context, one conformation after another.

    Calling it with a Geometry (N atoms, Angstrom) gives u (B,) float64 on the device of the positions, differentiable
    once; :class:`~dig_plugins.openmm.potential.TorchPotential` is differentiable twice. A conformation that OpenMM
    cannot evaluate (an exception, NaN or infinite energy, forces or positions) has u = +inf and zero gradient. The
    System is copied; pickles hold its XML, and the Context is rebuilt where it is first needed. Not to be shared by
    threads.

    Parameters
    ----------
    system: free of what :func:`~dig_plugins.openmm.convert.check_supported` refuses (constraints, periodic boxes, ...).
    temperature: K or a Quantity.
    platform: a platform's name, or ``"auto"``: the fastest of those present on this machine, timed on this System.
        Platforms agree to about 1e-3 kJ/mol; name one ("Reference" is float64) where runs must agree to the last bit.
    threads: of the CPU platform; None lets ``"auto"`` choose, and otherwise is OpenMM's default.

    Attributes
    ----------
    n_evaluations, n_failures: conformations evaluated so far, and those among them with u = +inf.
    last_error: what OpenMM last said to a conformation it refused, or None.

    Raises
    ------
    UnsupportedError: what ``check_supported`` refuses. IncompatibleError: an unknown platform, no valid temperature.
    """

    def __init__(self, system: openmm.System, temperature, *, platform: str = "auto", threads: int | None = None):
        check_supported(system)
        self._xml = openmm.XmlSerializer.serialize(system)
        self.n_atoms = system.getNumParticles()
        self.temperature = kelvin(temperature)
        self.n_evaluations = self.n_failures = 0
        self.last_error: str | None = None
        self._parameters: dict[str, float] = {}
        self._context: openmm.Context | None = None
        if platform == "auto":
            # The time does not depend on the conformation.
            chosen = fastest(self._build, candidates(self.n_atoms, threads), helix(self.n_atoms), forces=True)
            self._platform, self._properties, self._context = chosen
        else:
            self._platform = platform
            per_platform = ACCELERATORS if threads is None else {**ACCELERATORS, "CPU": {"Threads": str(threads)}}
            self._properties = per_platform.get(platform, {})
        if self._context is None:
            self._context = self._build(self._platform, self._properties)

    @classmethod
    def from_simulation(cls, simulation: openmm.app.Simulation, temperature=None, **options) -> OpenMMEnergy:
        """The energy a Simulation samples, with its Context's parameters.

        ``temperature`` is the integrator's if None; ``options`` as in the constructor. Raises IncompatibleError if none
        is given and the integrator has none.
        """
        if temperature is None:
            if not hasattr(simulation.integrator, "getTemperature"):
                raise IncompatibleError(
                    f"expected an integrator with a temperature, got {type(simulation.integrator).__name__}. "
                    "Pass temperature=."
                )
            temperature = simulation.integrator.getTemperature()
        energy = cls(simulation.system, temperature, **options)
        energy._parameters = dict(simulation.context.getParameters())
        energy._context = None
        return energy

    def follow(self, context: openmm.Context) -> bool:
        """Take over a Context's parameters; True if any of those that this System has was different."""
        known = self._ready().getParameters()
        given = {name: value for name, value in dict(context.getParameters()).items() if name in known}
        changed = any(known[name] != value for name, value in given.items())
        if changed:
            self._parameters = given
            for name, value in given.items():
                self._ready().setParameter(name, value)
        return changed

    @property
    def platform_name(self) -> str:
        """Name of the platform in use."""
        return self._platform

    @property
    def threads(self) -> int | None:
        """Of the CPU platform, None where it is left to OpenMM."""
        return int(self._properties["Threads"]) if "Threads" in self._properties else None

    def __call__(self, geometry: Geometry) -> Tensor:
        """u (B,) float64 of (B, N, 3) Angstrom. IncompatibleError if N is not the System's, or if there is a cell."""
        positions = geometry.positions
        if positions.requires_grad and torch.is_grad_enabled():
            self._check(geometry)
            return with_gradients(lambda x, _: (*self.energy_and_gradient(x), None), geometry, _ONCE)
        energies, _ = self._evaluate(geometry, gradient=False)
        return torch.from_numpy(energies).to(positions.device)

    def energy_and_gradient(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """u (B,) float64 and du/dx (B, N, 3) float64, 1/Angstrom, without autograd. Raises as a call does."""
        energies, gradients = self._evaluate(geometry, gradient=True)
        device = geometry.positions.device
        return torch.from_numpy(energies).to(device), torch.from_numpy(gradients).to(device)

    def _evaluate(self, geometry: Geometry, *, gradient: bool) -> tuple[np.ndarray, np.ndarray]:
        """u (B,) and du/dx (B, N, 3) 1/Angstrom; the second is zero throughout unless ``gradient``."""
        self._check(geometry)
        positions = to_nanometers(geometry)
        energies, forces = np.full(len(positions), np.inf), np.zeros_like(positions)
        context = self._ready()
        usable = np.flatnonzero(np.isfinite(positions).all(axis=(1, 2)))
        for i, placed in zip(usable, self._placed(positions[usable]), strict=True):
            try:
                context.setPositions(placed)
                state = context.getState(energy=True, forces=gradient)
            except openmm.OpenMMException as error:
                self.last_error = str(error)
                continue
            energies[i] = state.getPotentialEnergy()._value
            if gradient:
                self._read_forces(state, forces[i])
        failed = ~(np.isfinite(energies) & np.isfinite(forces).all(axis=(1, 2)))
        energies[failed], forces[failed] = np.inf, 0.0
        self.n_evaluations += len(energies)
        self.n_failures += int(failed.sum())
        kt = reduced_unit(self.temperature)
        return energies / kt, forces * (-NM_PER_ANGSTROM / kt)

    def _placed(self, positions: np.ndarray) -> Iterable[np.ndarray]:
        """Structures (B, N, 3) nm as the Context is given them, one after the other."""
        # Platforms with float32 positions lose all precision far from the origin, and silently.
        return positions - positions.mean(axis=1, keepdims=True)

    def _read_forces(self, state: openmm.State, out: np.ndarray) -> None:
        """Forces on a structure's atoms, kJ/mol/nm, written to ``out`` (N, 3)."""
        # State.getForces(asNumpy=True) looks attributes up and builds units: longer than a small molecule's forces take.
        if hasattr(state, "_getVectorAsNumpy"):
            state._getVectorAsNumpy(openmm.State.Forces, out)
        else:
            out[:] = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)

    def _check(self, geometry: Geometry) -> None:
        shape = tuple(geometry.positions.shape)
        if len(shape) != 3 or shape[1:] != (self.n_atoms, 3):
            raise IncompatibleError(f"expected positions (B, {self.n_atoms}, 3) for this System, got {shape}.")
        if geometry.cell is not None:
            raise IncompatibleError("expected a free molecule, got a geometry with a cell. Pass Geometry(positions).")

    def _ready(self) -> openmm.Context:
        if self._context is None:
            self._context = self._build(self._platform, self._properties)
        return self._context

    def _build(self, platform: str, properties: dict[str, str]) -> openmm.Context:
        if platform not in present():
            raise IncompatibleError(f"expected a platform among {sorted(present())} or 'auto', got {platform!r}.")
        system = openmm.XmlSerializer.deserialize(self._xml)
        integrator = openmm.VerletIntegrator(1.0 * unit.femtosecond)
        context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform), properties)
        for name, value in self._parameters.items():
            context.setParameter(name, value)
        return context

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_context": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
