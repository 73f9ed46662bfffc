"""What a task returns: the thing itself, what is recorded of it, what is said of it, and where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from dig_core.errors import IncompatibleError

__all__ = ["Run", "writable"]


class Run(NamedTuple):
    """``result``: what was made, an ensemble or a model; ``record``: what ``run.json`` holds; ``said``: in words; ``out``: where it is."""

    result: Any
    record: dict
    said: str
    out: Path


def writable(out: str | Path, suffixes: tuple[str, ...]) -> Path:
    """``out`` if a file of that name can be written: ask before the work. Raises IncompatibleError."""
    out = Path(out)
    if out.suffix not in suffixes:
        raise IncompatibleError(f"expected a file name ending in {', '.join(suffixes)}, got {out.name!r}.")
    if not out.parent.is_dir():
        raise IncompatibleError(f"there is no directory {out.parent} to write {out.name} in: make it, or choose another.")
    return out
