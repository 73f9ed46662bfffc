"""Models by name: those that ship, were pulled into the user's cache, or come with other packages. Only pull() touches the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dig_core.errors import CheckpointError
from dig_core.plugins import offer, offers
from dig_core.progress import Show

from .cache import cache_directory, cached, digest, fetch, intact, name_in

if TYPE_CHECKING:
    from dig_core.dig import DiG

__all__ = ["OFFERS", "cache_directory", "cached", "find", "index", "load", "offered", "path", "pull", "sha256"]

OFFERS = "dig_plugins.models"
"""Entry points of other packages: a model's name -> the path of its checkpoint."""

_HERE = Path(__file__).parent


def index() -> dict[str, dict]:
    """Name -> entry of every model of the registry.

    Entries say ``file``, ``sha256``, ``size`` (bytes), ``licence``, ``system``, ``energy`` (in words), ``temperature`` (K, None for models
    of no single one), ``recipe``; of a molecule in OpenMM ``structure`` and ``force_field``; ``raw_ess`` and ``acceptance`` of its
    proposals where that was measured; ``url`` if it does not ship but can be pulled.
    """
    return json.loads((_HERE / "index.json").read_text(encoding="utf-8"))


def offered() -> dict[str, str]:
    """Name -> package, of models that other installed packages bring; names of the registry and the cache come first."""
    known = {*index(), *cached()}
    return {name: found.dist.name if found.dist else found.value for name, found in offers(OFFERS).items() if name not in known}


def path(name: str) -> Path:
    """The verified checkpoint file of a model that ships or is in the cache, or the file of one that another package brings.

    Raises CheckpointError for an unknown name, a file that is missing or is not the one that was released or pulled; UnsupportedError for
    a package that cannot be imported.
    """
    entries = index()
    if name in entries and (_HERE / entries[name]["file"]).is_file():
        file = _HERE / entries[name]["file"]
        if digest(file) == entries[name]["sha256"]:
            return file
    elif (record := cached().get(name)) is not None:
        if not intact(record) or record["sha256"] != entries.get(name, record)["sha256"]:
            raise CheckpointError(f"{record['file']} is damaged: pull {name!r} again from {record['url']}.")
        return Path(record["file"])
    elif "url" in entries.get(name, {}):
        raise CheckpointError(f"the model {name!r} is not on this machine: dig-plugins models pull {name}.")
    if name in entries:
        raise CheckpointError(f"the checkpoint of {name!r} is missing or differs from the one released: install dig-plugins again.")
    if name in (others := offered()):
        file = Path(offer(OFFERS, name))
        if not file.is_file():
            raise CheckpointError(f"{others[name]} offers the model {name!r}, but there is no file {file}: install it again.")
        return file
    more = "".join(f"; {how}: {', '.join(names)}" for how, names in (("pulled", cached()), ("of other packages", others)) if names)
    raise CheckpointError(f"no model is called {name!r}; shipped models: {', '.join(sorted(entries))}{more}. A file path loads any other.")


def find(name_or_path: str | Path) -> Path:
    """The checkpoint file that :func:`load` reads: a path if it has a suffix or a directory in it, else a model's name."""
    given = Path(name_or_path)
    return given if given.suffix or len(given.parts) > 1 else path(str(name_or_path))


def load(name_or_path: str | Path, device: str | None = None) -> DiG:
    """A model by name, its sha256 verified, or from a checkpoint file (anything with a suffix or a directory in it).

    ``device``: "cpu", "cuda", "cuda:1", ..., or "auto", a GPU where there is one; if None what ``DIG_PLUGINS_DEVICE`` says, or the
    processor. Raises UnsupportedError for a device that is not there.
    """
    from dig_core.devices import device_of, put
    from dig_core.dig import DiG

    place = device_of(device)
    dig = DiG.load(find(name_or_path))
    put(dig.model, place)
    return dig


def sha256(name_or_path: str | Path) -> str:
    """Of the checkpoint that :func:`load` reads. Raises CheckpointError where there is none."""
    file = find(name_or_path)
    if not file.is_file():
        raise CheckpointError(f"no checkpoint at {file}: expected a .safetensors file that DiG.save has written.")
    return digest(file)


def pull(source: str, *, name: str | None = None, sha256: str | None = None, progress: Show = None) -> Path:
    """Fetch a checkpoint into the cache, where :func:`load` finds it by name from then on, without a network; returns its file.

    ``source``: a name of the registry (what ships is there already), or an address, ``https://``, ``http://``, ``file://`` or
    ``hf://OWNER/REPOSITORY[@REVISION]/FILE``. ``name``: the file's own if not given. ``sha256``: what the file must have; without it the
    one that came is recorded. ``progress``: a bar; None shows it on terminals only. Errors are those of :func:`.cache.fetch`.
    """
    entries = index()
    if "://" not in source:
        entry = entries.get(source, {})
        if "url" not in entry or (_HERE / entry["file"]).is_file():
            return path(source)
        return fetch(entry["url"], source, entry["sha256"], progress=progress)
    name = name_in(source) if name is None else name
    if name in entries:
        raise CheckpointError(f"{name!r} is a model of the registry: choose another name for what is at {source}.")
    return fetch(source, name, sha256, progress=progress)
