"""What other installed packages offer by entry points; a package is imported when something of it is asked for by name."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .errors import UnsupportedError

__all__ = ["PARTS", "offer", "offers"]

PARTS = "dig_core.plugins"
"""Networks, coordinates, spaces and schedules that checkpoints may hold: the class's name -> the class."""


def offers(group: str) -> dict[str, EntryPoint]:
    """Name -> entry point of what is installed. Nothing is imported."""
    return {found.name: found for found in entry_points(group=group)}


def offer(group: str, name: str) -> Any:
    """What a package offers in ``group`` by this name; None if none does.

    Raises UnsupportedError where it cannot be imported, which names the package.
    """
    found = offers(group).get(name)
    if found is None:
        return None
    try:
        return found.load()
    except Exception as error:  # whatever a package does when it is imported
        package = found.dist.name if found.dist else found.value
        raise UnsupportedError(
            f"{package} offers {name!r}, but {found.value} cannot be imported ({type(error).__name__}: {error}): install or mend it."
        ) from error
