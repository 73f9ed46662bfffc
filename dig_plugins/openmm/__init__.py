"""OpenMM: any System as the energy, DiG as a Metropolis move beside MD, reporters, parallel tempering for references."""

from ..lazy import lazily

_HOME = {
    "BackboneFrames": "residues",
    "Block": "montecarlo",
    "BondLift": "constraints",
    "Completed": "completion",
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
    "ProteinAtoms": "residues",
    "Statistics": "montecarlo",
    "SubsetEnergy": "subset",
    "TorchPotential": "potential",
    "TrajectoryReporter": "reporter",
    "backbone_descriptor": "residues",
    "backbone_dihedrals": "observables",
    "check_supported": "convert",
    "check_topology": "convert",
    "complete": "completion",
    "decouple": "coupling",
    "demo": "demonstration",
    "describe": "convert",
    "dipeptide_observables": "observables",
    "file_system": "systems",
    "fit": "training",
    "fit_files": "training",
    "frame_forces": "residues",
    "make_force": "force",
    "model_system": "systems",
    "native_born": "born",
    "parallel_tempering": "tempering",
    "peptide_observables": "observables",
    "sample": "ensemble",
    "thermal_widths": "convert",
    "to_geometry": "convert",
    "to_nanometers": "convert",
    "write_samples": "stream",
}

__all__ = sorted(_HOME)
__getattr__ = lazily(__name__, _HOME, "openmm", "OpenMM")


def __dir__() -> list[str]:
    return __all__
