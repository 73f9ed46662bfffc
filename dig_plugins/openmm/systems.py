"""The OpenMM side of the shipped models: topology, System and start of the molecule a model was trained on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import openmm as mm
from openmm import app, unit

from .. import models

__all__ = ["ModelSystem", "model_system"]


class ModelSystem(NamedTuple):
    """``topology``, ``system`` (no constraints, no cutoff), ``positions`` (N, 3) nm of a minimum, ``temperature`` K."""

    topology: app.Topology
    system: mm.System
    positions: np.ndarray
    temperature: float

    def simulation(self, *, timestep: float = 1.0, friction: float = 1.0, seed: int = 0, platform: str | None = None, threads: int = 1):
        """A Simulation with Langevin dynamics (fs, 1/ps) at the model's temperature, started at ``positions``.

        ``platform``: by name, or None for the one that runs this system fastest.
        """
        from .energy import OpenMMEnergy

        integrator = mm.LangevinMiddleIntegrator(self.temperature * unit.kelvin, friction / unit.picosecond, timestep * unit.femtosecond)
        integrator.setRandomNumberSeed(1 + seed % (2**31 - 2))
        name = platform or OpenMMEnergy(self.system, self.temperature).platform_name
        properties = {"Threads": str(threads)} if name == "CPU" else {}
        simulation = app.Simulation(self.topology, self.system, integrator, mm.Platform.getPlatformByName(name), properties)
        simulation.context.setPositions(self.positions)
        simulation.context.setVelocitiesToTemperature(self.temperature * unit.kelvin, 1 + seed % (2**31 - 2))
        return simulation


def model_system(name: str) -> ModelSystem:
    """The system that the shipped model ``name`` was trained on, from its structure and force-field files.

    Raises :class:`CheckpointError` for a name that is not shipped.
    """
    checkpoint = models.path(name)
    entry = models.index()[name]
    pdb = app.PDBFile(str(checkpoint.with_name(entry["structure"])))
    system = app.ForceField(*entry["force_field"]).createSystem(pdb.topology, nonbondedMethod=app.NoCutoff, constraints=None)
    positions = pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    return ModelSystem(pdb.topology, system, np.asarray(positions), float(entry["temperature"]))
