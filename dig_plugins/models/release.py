"""Enter a checkpoint into the registry: ``python -m dig_plugins.models.release FILE ...`` after a recipe has made it anew."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dig_core.dig import DiG
from dig_core.files import write_atomically

from .cache import digest

__all__ = ["entry_of", "release"]

_ORDER = (
    "system", "energy", "temperature", "licence", "file", "sha256", "size", "url", "raw_ess", "acceptance", "structure", "force_field",
    "reference", "recipe",
)  # fmt: skip
_MEASURED = ("raw_ess", "acceptance")


def entry_of(file: Path) -> dict:
    """What a registry entry says that the file itself knows: sha256, size, licence, temperature, energy, what was measured."""
    card = DiG.load(file).card
    measured = {name: card.measured[name] for name in _MEASURED if name in card.measured}
    about = {"file": file.name, "sha256": digest(file), "size": file.stat().st_size, "licence": card.licence}
    return {**about, "temperature": card.temperature, "energy": card.energy, **measured}


def release(files: list[Path]) -> None:
    """Bring the entries of checkpoints up to date in the ``index.json`` beside them; what the files do not know is kept."""
    for file in files:
        place = file.with_name("index.json")
        entries = json.loads(place.read_text(encoding="utf-8"))
        known = {"system": DiG.load(file).card.system, "recipe": ""} | entries.get(file.stem, {})
        for name in _MEASURED:
            known.pop(name, None)
        known |= entry_of(file)
        entries[file.stem] = {key: known[key] for key in sorted(known, key=_ORDER.index)}
        write_atomically(place, (json.dumps(entries, indent=2, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    release([Path(name).resolve() for name in sys.argv[1:]])
