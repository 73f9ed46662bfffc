"""The models that ship: an index of checkpoints, loaded by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dig_core.dig import DiG
from dig_core.errors import CheckpointError

__all__ = ["index", "load", "path"]

_HERE = Path(__file__).parent


def index() -> dict[str, dict]:
    """Name -> entry of every shipped model: file, sha256, licence, system, temperature, structure, force field, recipe."""
    return json.loads((_HERE / "index.json").read_text())


def path(name: str) -> Path:
    """The checkpoint file of a shipped model. Raises CheckpointError for a name that is not shipped or a file that changed."""
    entries = index()
    if name not in entries:
        raise CheckpointError(f"no model is called {name!r}; shipped models: {', '.join(sorted(entries))}. A file path loads any other.")
    file = _HERE / entries[name]["file"]
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != entries[name]["sha256"]:
        raise CheckpointError(f"the checkpoint of {name!r} is missing or differs from the one released: install dig-plugins again.")
    return file


def load(name_or_path: str | Path) -> DiG:
    """A model by shipped name, or from a checkpoint file (anything with a suffix or a directory in it)."""
    given = Path(name_or_path)
    if given.suffix or len(given.parts) > 1:
        return DiG.load(given)
    return DiG.load(path(str(name_or_path)))
