"""Training frames by MD: a tempered ensemble fanned out into short trajectories."""

from __future__ import annotations

import numpy as np
import openmm as mm
from openmm import app, unit

from dig_core.progress import Show, bar

__all__ = ["fan_out", "heavy_hydrogens"]


def heavy_hydrogens(topology: app.Topology, system: mm.System, mass: float = 8.0) -> mm.System:
    """A copy of ``system`` with hydrogens of ``mass`` dalton: twice the time step at the same accuracy.

    Positions at equilibrium do not depend on masses, so the ensemble is the same; nothing is taken off the heavy atoms.
    """
    copy = mm.XmlSerializer.deserialize(mm.XmlSerializer.serialize(system))
    for atom in topology.atoms():
        if atom.element is not None and atom.element.atomic_number == 1:
            copy.setParticleMass(atom.index, mass)
    return copy


def fan_out(
    simulation: app.Simulation, positions: np.ndarray, frames: int, *, steps: int = 25, seed: int, progress: Show = None
) -> np.ndarray:
    """(F * frames, N, 3) nm: from each of F equilibrium structures, ``frames`` snapshots ``steps`` time steps apart.

    Fast motions (bonds, angles, methyl groups) are sampled anew at every snapshot; slow ones stay as well sampled as in
    ``positions`` (F, N, 3) nm. Velocities start from the Maxwell-Boltzmann law at the integrator's temperature.
    """
    temperature = simulation.integrator.getTemperature()
    simulation.integrator.setRandomNumberSeed(1 + seed % (2**31 - 2))
    simulation.context.reinitialize(preserveState=True)
    out = np.empty((len(positions), frames, *positions.shape[1:]), dtype=np.float32)
    for number, start in enumerate(bar(positions, label="short trajectories", progress=progress)):
        simulation.context.setPositions(start.astype(float))
        simulation.context.setVelocitiesToTemperature(temperature, 1 + (seed + number) % (2**31 - 2))
        for k in range(frames):
            simulation.integrator.step(steps)
            state = simulation.context.getState(positions=True)
            out[number, k] = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    return out.reshape(-1, *positions.shape[1:])
