"""What a run says of itself in ``run.json``: command, versions, device, model, seed, units. The one writer of such records."""

from __future__ import annotations

import json
import math
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dig_core.errors import IncompatibleError
from dig_core.files import write_atomically

from . import models

__all__ = ["SCHEMA", "empty_directory", "of_checkpoint", "of_software", "plain", "record_of", "versions", "write_record"]

SCHEMA = 1

_WORKS = {
    "dig-plugins": "Zheng et al., Nat. Mach. Intell. 6, 558 (2024), doi:10.1038/s42256-024-00837-3",
    "torch": "Ansel et al., ASPLOS 2024, doi:10.1145/3620665.3640366",
    "openmm": "Eastman et al., J. Phys. Chem. B 128, 109 (2024), doi:10.1021/acs.jpcb.3c06662",
    "ase": "Larsen et al., J. Phys.: Condens. Matter 29, 273002 (2017), doi:10.1088/1361-648X/aa680e",
    "pymatgen": "Ong et al., Comput. Mater. Sci. 68, 314 (2013), doi:10.1016/j.commatsci.2012.10.028",
    "mdtraj": "McGibbon et al., Biophys. J. 109, 1528 (2015), doi:10.1016/j.bpj.2015.08.015",
    "rdkit": "RDKit: open-source cheminformatics, doi:10.5281/zenodo.591637",
}


def versions(*packages: str) -> dict[str, str]:
    """Version of Python, of this package, torch, numpy, and of ``packages``; "not installed" where there is none."""
    found = {"python": platform.python_version()}
    for package in ("dig-plugins", "torch", "numpy", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def of_software(*packages: str) -> dict:
    """The command, the versions of what it runs on, and what to cite for it."""
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    cite = {name: _WORKS[name] for name in ("dig-plugins", "torch", *packages) if name in _WORKS}
    return {"schema": SCHEMA, "command": command, "device": "cpu", "versions": versions(*packages), "cite": cite}


def of_checkpoint(source: str | Path) -> dict:
    """Name or path of a checkpoint, and its sha256. Raises CheckpointError where there is none."""
    return {"model": str(source), "model_sha256": models.sha256(source)}


def record_of(out: str | Path) -> Path:
    """Where the record of ``out`` is: ``run.json`` in a directory; beside a file, which has a suffix, the same name in ``.json``."""
    out = Path(out)
    return out.with_suffix(".json") if out.suffix else out / "run.json"


def write_record(out: str | Path, record: Mapping[str, Any]) -> Path:
    """Write ``record`` where :func:`record_of` says, complete or not at all. Numbers that JSON has not, NaN and infinities, are null."""
    place = record_of(out)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, json.dumps(plain(record), indent=2, allow_nan=False).encode())
    return place


def empty_directory(out: str | Path) -> Path:
    """``out`` if it is new or empty; IncompatibleError otherwise, so that no earlier run is overwritten. It is not made."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise IncompatibleError(f"{out} is not empty: choose a new directory, so that no earlier run is overwritten.")
    return out


def plain(value: Any) -> Any:
    """``value`` as the record holds it: of what JSON has."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item") and not getattr(value, "ndim", 0):  # numbers of numpy and torch
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
