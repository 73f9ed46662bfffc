"""RDKit: molecules from SMILES and SDF, MMFF94 as the energy, conformers with exact weights, ligands in pockets."""

from ..lazy import lazily

_HOME = {
    "ConformerEnsemble": "ensemble",
    "Fitted": "training",
    "MMFFEnergy": "energy",
    "Pocket": "pockets.pocket",
    "PocketEnergy": "pockets.energy",
    "PoseEnsemble": "pockets.ensemble",
    "check_molecule": "check",
    "check_poses": "pockets.checks",
    "conformer_rmsd": "compare",
    "conformer_wells": "wells",
    "describe": "convert",
    "distinct_minima": "minima",
    "embed": "convert",
    "enumerate_stereo": "facts",
    "fit_molecule": "training",
    "internal_coordinates": "coordinates",
    "inverting_nitrogens": "facts",
    "of_sdf": "convert",
    "of_smiles": "convert",
    "on_molecule": "transfer",
    "pose_rmsd": "pockets.ensemble",
    "read_pocket": "pockets.pocket",
    "reference_structure": "convert",
    "ring_atoms": "facts",
    "rotatable_bonds": "facts",
    "sample_conformers": "conformers",
    "sample_poses": "pockets.sample",
    "stereo_bonds": "facts",
    "stereo_centres": "facts",
    "symmetry_classes": "facts",
    "thermal_widths": "energy",
    "to_geometry": "convert",
    "torsion_states": "ensemble",
    "torsions_of": "ensemble",
    "unspecified_stereo": "facts",
    "with_conformers": "convert",
}

__all__ = sorted(_HOME)
__getattr__ = lazily(__name__, _HOME, "rdkit", "RDKit")


def __dir__() -> list[str]:
    return __all__
