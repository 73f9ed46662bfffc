"""MDTraj: proteins in and out of the formats that people have, models of their backbones; :mod:`.observables` says what ensembles are."""

from ..lazy import lazily

_HOME = {
    "BackboneEnsemble": "ensemble",
    "BackbonePath": "path",
    "Backbones": "backbones",
    "Counts": "ensemble",
    "Distance": "collective",
    "Embeddings": "embeddings",
    "Ends": "path",
    "Gyration": "collective",
    "NativeContacts": "collective",
    "Passed": "path",
    "RMSD": "collective",
    "Restraints": "collective",
    "Validity": "checks",
    "alpha_carbons": "collective",
    "check_backbones": "checks",
    "fit_backbones": "training",
    "interpolate_backbones": "path",
    "match": "backbones",
    "numbered": "collective",
    "of_trajectory": "backbones",
    "read_backbones": "backbones",
    "read_embeddings": "embeddings",
    "read_positions": "convert",
    "sample_backbones": "sample",
    "to_trajectory": "convert",
    "topology": "convert",
    "untrained_backbones": "training",
    "write_backbones": "write",
}

__all__ = sorted(_HOME)
__getattr__ = lazily(__name__, _HOME, "mdtraj", "MDTraj")


def __dir__() -> list[str]:
    return __all__
