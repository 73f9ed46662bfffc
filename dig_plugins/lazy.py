"""Packages whose modules are read when a name is first used: importing them is cheap, and what is missing is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["check_hdf5", "lazily"]


def check_hdf5() -> None:
    """Before work whose result is to be HDF5: ImportError that says what to install where it cannot be written."""
    if not (find_spec("mdtraj") and find_spec("tables")):
        raise ImportError("HDF5 needs MDTraj and PyTables: pip install 'dig-plugins[hdf5]', or write .xtc or .dcd.")


def lazily(package: str, home: Mapping[str, str], engine: str, title: str) -> Callable[[str], Any]:
    """The ``__getattr__`` (PEP 562) of ``package``: ``home`` says which of its modules a name is in.

    ``engine``: the module that all of it needs and the name of the extra that brings it; ``title``: its name in words. The
    function raises AttributeError for other names, ImportError where the engine is not installed.
    """

    def read(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"{package} has no {name!r}; it has {', '.join(sorted(home))}.")
        try:
            module = import_module(f".{home[name]}", package)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != engine:
                raise
            root = ".".join(package.split(".")[:2])
            raise ImportError(f"{root} needs {title}: pip install 'dig-plugins[{engine}]'.") from error
        return getattr(module, name)

    return read
