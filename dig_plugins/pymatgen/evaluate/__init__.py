"""Evaluation of designed crystals: matches beside controls, coverage, frequencies, validity, relaxation, gaps by a judge; figures."""

from ...lazy import lazily

_HOME = {
    "TOLERANCES": "matcher",
    "Coordination": "quality",
    "Coverage": "rates",
    "Diversity": "rates",
    "Evaluation": "report",
    "Frequencies": "counts",
    "HitRate": "quality",
    "Library": "library",
    "MatchReport": "rates",
    "Matches": "library",
    "Relaxation": "relaxation",
    "Tolerance": "matcher",
    "Validity": "quality",
    "assign": "rates",
    "classes": "library",
    "coordination": "quality",
    "coverage": "rates",
    "diversity": "rates",
    "draw": "figures",
    "energy_gap": "figures",
    "evaluate": "report",
    "frequencies": "counts",
    "gallery": "figures",
    "gap_histogram": "figures",
    "hit_rate": "quality",
    "jensen_shannon": "counts",
    "joint": "quality",
    "judged": "quality",
    "match": "library",
    "match_report": "rates",
    "random_coordinates": "rates",
    "relax": "relaxation",
    "validity": "quality",
}

__all__ = sorted(_HOME)
__getattr__ = lazily(__name__, _HOME, "pymatgen", "pymatgen")


def __dir__() -> list[str]:
    return __all__
