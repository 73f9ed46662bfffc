"""Directories of work that outlives a process: begun with settings that are kept, gone on with by one process at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dig_core.errors import CheckpointError, IncompatibleError
from dig_core.files import read_json, understood, write_atomically
from dig_core.random import as_seed

__all__ = ["claimed", "kept_seed", "part_of", "settings"]


def part_of(path: str | Path) -> Path:
    """Where the work on a file is kept until the file is there."""
    path = Path(path)
    return path.with_name(path.name + ".part")


def settings(directory: Path) -> dict:
    """What the work in ``directory`` was begun with; nothing where there is none. Raises CheckpointError if it cannot be read."""
    place = directory / "settings.json"
    return read_json(place) if place.is_file() else {}


def kept_seed(directory: Path) -> int | None:
    """The seed among :func:`settings`. Raises CheckpointError if that is none."""
    held = settings(directory)
    with understood(directory / "settings.json", "cannot be read", f"delete {directory.name}"):
        return as_seed(held["seed"]) if "seed" in held else None


@contextmanager
def claimed(directory: Path, about: dict, what: str) -> Iterator[None]:
    """``directory`` is that of this ``what``, and of this process while it works.

    Raises CheckpointError, saying what differs, if it was begun with other settings than ``about``; IncompatibleError while another
    process works on it.
    """
    if (directory / "settings.json").is_file():
        held = settings(directory)
        odd = [f"{key} {held.get(key)}, not {value}" for key, value in about.items() if held.get(key) != value]
        if odd:
            advice = "choose another place, go on with the same settings, or delete it"
            raise CheckpointError(f"the {what} in {directory} was begun with {'; '.join(odd)}: {advice}.")
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "settings.json", json.dumps(about, indent=2).encode())
    lock = FileLock(directory / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise IncompatibleError(f"another process works on the {what} in {directory}: wait for it, or choose another place.") from error
    try:
        for left in directory.rglob(".*.tmp.*"):  # of processes that were killed
            left.unlink()
        yield
    finally:
        lock.release()
