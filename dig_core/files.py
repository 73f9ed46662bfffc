"""Files that are either complete or not there, and directories that belong to one piece of work."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .errors import CheckpointError, IncompatibleError, StateError, UnsupportedError

__all__ = ["finished", "owned", "read_arrays", "read_json", "understood", "write_atomically"]


def write_atomically(path: Path, content: bytes) -> None:
    """Write through a temporary file beside ``path``, so that a full disk or a killed process leaves what was there before."""
    with finished(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def finished(path: Path) -> Iterator[Path]:
    """A file beside ``path``, of the same suffix, to write to; it takes the place of ``path`` when all went well, and is gone if not."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "r+b") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def owned(directory: str | Path | None, parts: Iterable[bytes], what: str) -> Path | None:
    """``directory``, made if need be and marked as that of work on ``parts``; None stays None.

    Raises CheckpointError if it holds the training of another ``what``.
    """
    if directory is None:
        return None
    out, mark = Path(directory), hashlib.sha256(b"".join(parts)).hexdigest()
    place = out / "system.sha256"
    if place.exists() and place.read_bytes() != mark.encode():
        raise CheckpointError(f"{out} holds the training of another {what}: choose another directory.")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(place, mark.encode())
    return out


@contextmanager
def understood(path: str | Path, verdict: str, advice: str) -> Iterator[None]:
    """Reading ``path``: whatever content that is damaged, or of another kind, leads to is a CheckpointError that says what to do.

    Other errors of ours, and those of the disk, speak for themselves.
    """
    try:
        yield
    except (IncompatibleError, OSError, StateError, UnsupportedError):
        raise
    except Exception as error:
        raise CheckpointError(f"{path} {verdict} ({type(error).__name__}: {error}): {advice}.") from error


def read_json(path: Path) -> dict:
    """A JSON object. Raises CheckpointError for anything else."""
    with understood(path, "cannot be read", "it is damaged or was edited, get it again or delete it"):
        held = json.loads(path.read_bytes())
        if not isinstance(held, dict):
            raise ValueError(f"expected an object, got a {type(held).__name__}")
        return held


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a ``.npz`` file, each checked against its checksum before it is looked at. Raises CheckpointError if one is damaged."""
    with understood(path, "cannot be read", "it is damaged, get it again or delete it"), zipfile.ZipFile(path) as archive:
        content = {name.removesuffix(".npy"): io.BytesIO(archive.read(name)) for name in archive.namelist()}
        return {name: np.lib.format.read_array(stream, allow_pickle=False) for name, stream in content.items()}
