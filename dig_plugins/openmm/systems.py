"""The OpenMM side of the shipped models: topology, System and start of the molecule a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openmm as mm
from openmm import app, unit

from dig_core.errors import CheckpointError, IncompatibleError

from .. import models
from .convert import kelvin
from .files import read_pdb

__all__ = ["ModelSystem", "file_system", "model_system"]


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

    Raises :class:`CheckpointError` for a name that is not shipped, or a model of something else than a molecule in OpenMM.
    """
    checkpoint = models.path(name)
    entry = models.index().get(name, {})
    if "structure" not in entry:
        raise CheckpointError(f"the model {name!r} is of {entry.get('system', 'a system')} that no force field comes with.")
    return file_system(checkpoint.with_name(entry["structure"]), entry["force_field"], entry["temperature"])


def file_system(pdb: str | Path, force_field: Sequence[str], temperature) -> ModelSystem:
    """The system of a PDB structure and force-field files of OpenMM or of one's own, at ``temperature`` K; no cutoff, no constraints.

    Raises IncompatibleError for a file that is missing or cannot be read, or a structure that the force field does not know.
    """
    structure = read_pdb(pdb)
    try:
        system = app.ForceField(*force_field).createSystem(structure.topology, nonbondedMethod=app.NoCutoff, constraints=None)
    except Exception as error:  # OpenMM raises nothing narrower for files and templates that it does not know
        raise IncompatibleError(f"{', '.join(force_field)} cannot describe {pdb}: {error}") from error
    positions = structure.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    return ModelSystem(structure.topology, system, np.asarray(positions), kelvin(temperature))
