"""OpenMM: any System as the energy, DiG as a Metropolis move beside MD, reporters, parallel tempering for references."""

from importlib import import_module

_HOME = {
    "Block": "montecarlo",
    "BondLift": "constraints",
    "DemoRun": "demonstration",
    "DiGMonteCarlo": "montecarlo",
    "DiGMove": "move",
    "DiGReplicaExchangeSampler": "exchange",
    "DiGReporter": "reporter",
    "Ensemble": "ensemble",
    "Fitted": "training",
    "LearnedForce": "force",
    "LiftedEnergy": "constraints",
    "ModelSystem": "systems",
    "OpenMMEnergy": "energy",
    "Statistics": "montecarlo",
    "SubsetEnergy": "subset",
    "TorchPotential": "potential",
    "TrajectoryReporter": "reporter",
    "backbone_dihedrals": "observables",
    "check_supported": "convert",
    "check_topology": "convert",
    "decouple": "coupling",
    "demo": "demonstration",
    "describe": "convert",
    "dipeptide_observables": "observables",
    "fit": "training",
    "fit_files": "training",
    "make_force": "force",
    "model_system": "systems",
    "parallel_tempering": "tempering",
    "peptide_observables": "observables",
    "sample": "ensemble",
    "thermal_widths": "convert",
    "to_geometry": "convert",
    "to_nanometers": "convert",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    """Modules are read when a name is first used: importing this package is cheap, and errors name what to install."""
    if name not in _HOME:
        raise AttributeError(f"dig_plugins.openmm has no {name!r}; it has {', '.join(__all__)}.")
    try:
        module = import_module(f".{_HOME[name]}", __name__)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "openmm":
            raise
        raise ImportError("dig_plugins.openmm needs OpenMM: pip install 'dig-plugins[openmm]'.") from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return __all__
