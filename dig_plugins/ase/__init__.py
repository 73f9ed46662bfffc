"""ASE: any Calculator as the energy, a sampler and a calculator made of a DiG, and a Monte Carlo chain beside any ASE MD.

What is drawn is plain Atoms with ``info["dig_*"]``; extended XYZ, .traj and ASE databases hold it, and ``ase gui`` opens it.
"""

from ..lazy import lazily

_HOME = {
    "ASEEnergy": "energy",
    "Block": "dynamics",
    "CrystalEnergy": "crystal",
    "DiGCalculator": "calculator",
    "DiGDynamics": "dynamics",
    "DiGSampler": "sampler",
    "calculator_named": "calculators",
    "check_atoms": "convert",
    "describe": "convert",
    "fit_crystal": "crystal",
    "kT": "convert",
    "read": "convert",
    "to_atoms": "convert",
    "to_geometry": "convert",
    "write": "convert",
}

__all__ = sorted(_HOME)
__getattr__ = lazily(__name__, _HOME, "ase", "ASE")


def __dir__() -> list[str]:
    return __all__
