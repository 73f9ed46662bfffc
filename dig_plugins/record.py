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
    """The command, and the versions of what it runs on."""
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {"schema": SCHEMA, "command": command, "device": "cpu", "versions": versions(*packages)}


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
