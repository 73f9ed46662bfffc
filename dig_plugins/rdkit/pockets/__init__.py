"""Ligands in pockets: pockets from PDB files, poses with probabilities, MMFF94 in a pocket, checks of poses."""

from ...lazy import lazily

_HOME = {
    "Cluster": "ensemble",
    "ComplexEnergy": "whole",
    "Flexible": "flexible",
    "FlexibleProposal": "flexible",
    "Form": "describe",
    "HybridMoves": "moves",
    "Induced": "induced",
    "Overlap": "walls",
    "Pocket": "pocket",
    "PocketEnergy": "energy",
    "PocketLaw": "flexible",
    "PoseChecks": "checks",
    "PoseEnsemble": "ensemble",
    "PoseMoves": "moves",
    "PoseProposal": "proposal",
    "Tethered": "whole",
    "avoid_overlaps": "walls",
    "bound_to": "proposal",
    "check_place": "describe",
    "check_poses": "checks",
    "describe_complex": "describe",
    "induced_fit": "induced",
    "nearest_form": "data",
    "overlaps": "describe",
    "pose_rmsd": "ensemble",
    "pocket_law": "flexible",
    "posed": "data",
    "read_pocket": "pocket",
    "relax": "minimise",
    "ring_forms": "describe",
    "sample_poses": "sample",
    "side_chains": "flexible",
    "stiffness_factor": "moves",
}

__all__ = sorted(_HOME)
__getattr__ = lazily(__name__, _HOME, "rdkit", "RDKit")


def __dir__() -> list[str]:
    return __all__
