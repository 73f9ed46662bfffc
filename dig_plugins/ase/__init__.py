"""ASE: any Calculator as the energy, a sampler and a calculator made of a DiG, and a Monte Carlo chain beside any ASE MD.

What is drawn is plain Atoms with ``info["dig_*"]``; extended XYZ, .traj and ASE databases hold it, and ``ase gui`` opens it.
"""

from importlib import import_module

_HOME = {
    "ASEEnergy": "energy",
    "Block": "dynamics",
    "DiGCalculator": "calculator",
    "DiGDynamics": "dynamics",
    "DiGSampler": "sampler",
    "check_atoms": "convert",
    "describe": "convert",
    "kT": "convert",
    "read": "convert",
    "to_atoms": "convert",
    "to_geometry": "convert",
    "write": "convert",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    """Modules are read when a name is first used: importing this package is cheap, and errors name what to install."""
    if name not in _HOME:
        raise AttributeError(f"dig_plugins.ase has no {name!r}; it has {', '.join(__all__)}.")
    try:
        module = import_module(f".{_HOME[name]}", __name__)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "ase":
            raise
        raise ImportError("dig_plugins.ase needs ASE: pip install 'dig-plugins[ase]'.") from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return __all__
