"""Where networks are put that are loaded by name, or arrive in another process: what an environment variable says."""

from __future__ import annotations

import os
from typing import Any, Protocol

import torch

from .errors import UnsupportedError

__all__ = ["DEVICE", "device_of", "put", "take_device"]

DEVICE = "DIG_PLUGINS_DEVICE"
"""The environment variable: cpu, cuda, cuda:1, ..., or auto, a GPU where there is one."""


class _Places(Protocol):
    def get(self) -> str: ...


def device_of(asked: str | None = None) -> str:
    """``asked``, or what ``DIG_PLUGINS_DEVICE`` says, or the processor, as a device that is there. Raises UnsupportedError for others."""
    place = asked or os.environ.get(DEVICE) or "cpu"
    there = ["cpu"]
    if place != "cpu" and torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    found = there[min(1, len(there) - 1)] if place == "auto" else place
    if found not in there:
        raise UnsupportedError(f"there is no device {place!r} here: expected auto or one of {', '.join(there)}, by device= or {DEVICE}.")
    return found


def put(model: Any, place: str) -> None:
    """A model's network on a device of :func:`device_of`, in place."""
    if place != "cpu":
        model.to(place)


def take_device(places: _Places) -> None:
    """For the workers of an executor, as they start (``initializer=``): each takes one of ``places``, a queue of devices by name, and
    the models that it is sent go there."""
    os.environ[DEVICE] = places.get()
