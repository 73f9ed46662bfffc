"""Tasks from files to files: what the verbs of the command line call, and Python may call as well, with the same defaults."""

from importlib import import_module

_HOME = {
    "Given": "subjects",
    "Run": "result",
    "Subject": "subjects",
    "Verdict": "verdicts",
    "density": "densities",
    "design": "crystals",
    "doctor": "machine",
    "interpolate": "paths",
    "mc": "chains",
    "sample": "samples",
    "subject": "subjects",
    "train_adsorption": "trainings",
    "train_crystal": "trainings",
    "train_molecule": "trainings",
    "train_openmm": "trainings",
    "train_protein": "trainings",
    "validate": "validation",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    """Names are imported when they are first used."""
    if name not in _HOME:
        raise AttributeError(f"{__name__} has no {name!r}; it has {', '.join(__all__)}.")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
