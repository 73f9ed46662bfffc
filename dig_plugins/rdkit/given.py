"""Energies that a caller brings in place of MMFF94: an OpenMM System, an ASE calculator, anything that keeps the contract."""

from __future__ import annotations

from dig_core.energy import Energy
from dig_core.errors import IncompatibleError

__all__ = ["check_energy", "name_of"]


def check_energy(energy: Energy, temperature: float) -> Energy:
    """``energy`` as it is. IncompatibleError where it is none, or where it says that it is of another temperature (K)."""
    if not callable(energy):
        kind = type(energy).__name__
        raise IncompatibleError(f"expected an energy, Geometry -> u (B,) = E/kT, got {kind}; of a System make an OpenMMEnergy.")
    own = getattr(energy, "temperature", None)
    if isinstance(own, float) and abs(own - temperature) > 0.1:
        raise IncompatibleError(f"the energy is E/kT at {own:g} K, asked for are {temperature:g} K: give both the same temperature.")
    return energy


def name_of(energy: Energy) -> str:
    """What a model's card calls an energy that is not MMFF94."""
    return type(energy).__name__
