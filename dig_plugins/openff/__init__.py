"""OpenMM Systems of RDKit molecules: OpenFF Sage for ligands, Amber ff14SB for the pockets that they bind to."""

from ..lazy import lazily

_HOME = {
    "complex_system": "complex",
    "ligand_system": "ligand",
    "partial_charges": "ligand",
}

__all__ = sorted(_HOME)
__getattr__ = lazily(__name__, _HOME, "openff", "the OpenFF toolkit, OpenMM and RDKit")


def __dir__() -> list[str]:
    return __all__
