"""pymatgen: crystals in and out, designed to a property; :mod:`.evaluate` says what designs are worth, :mod:`.gap` predicts gaps."""

from ..lazy import lazily

_HOME = {
    "Designs": "designs",
    "check_structure": "convert",
    "design": "sample",
    "from_atoms": "convert",
    "grouped": "convert",
    "read_structures": "files",
    "to_atoms": "convert",
    "to_geometry": "convert",
    "to_structures": "convert",
    "write_structures": "files",
}

__all__ = sorted(_HOME)
__getattr__ = lazily(__name__, _HOME, "pymatgen", "pymatgen")


def __dir__() -> list[str]:
    return __all__
