"""Observables of protein ensembles, from plain arrays in Angstrom: superposition, TM-score, maps, coverage, contacts, clusters."""

from ...lazy import lazily

_HOME = {
    "Coverage": "grid",
    "Divergence": "divergence",
    "Map": "maps",
    "Motion": "superposition",
    "aligned": "features",
    "apart": "features",
    "assign": "clusters",
    "backbone_torsions": "features",
    "best_motion": "superposition",
    "contact_map": "ensemble",
    "correlation": "ensemble",
    "coverage": "grid",
    "distances": "features",
    "euclidean": "clusters",
    "jensen_shannon": "divergence",
    "k_centres": "clusters",
    "k_means": "clusters",
    "map_divergence": "divergence",
    "mean_structure": "ensemble",
    "pairwise_rmsd": "superposition",
    "pca": "maps",
    "populations": "clusters",
    "radius_of_gyration": "ensemble",
    "rmsd": "superposition",
    "rmsf": "ensemble",
    "superpose": "superposition",
    "tica": "maps",
    "tm_scale": "tm",
    "tm_score": "tm",
    "torsions": "features",
}

__all__ = sorted(_HOME)
__getattr__ = lazily(__name__, _HOME, "mdtraj", "MDTraj")


def __dir__() -> list[str]:
    return __all__
