"""Damage to files: of bytes, as disks and networks do it, and of JSON, as people and other programs do it."""

from __future__ import annotations

import copy
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dig_core.errors import DiGError

ODD = [None, -1, 0, 3, 2.5, 1e308, float("nan"), "x", "", True, [], [1], {}, {"type": "Torus"}, [[0, 1]], "\u00e9\u4e16"]


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """``content`` with one to three accidents, mostly near its beginning, where headers are."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        n = max(1, len(data))
        low = int(rng.integers(min(n, 400) if rng.random() < 0.5 else n))
        size, kind = int(rng.integers(1, 17)), rng.integers(6)
        if kind == 0 and data:
            data[low % len(data)] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[low:]
        elif kind == 2:
            data[low:low] = rng.bytes(size)
        elif kind == 3:
            del data[low : low + size]
        elif kind == 4:
            data[low : low + size] = data[n // 2 : n // 2 + size]
        else:
            data[low : low + 8] = bytes([int(rng.choice([0, 127, 255]))] * 8)
    return bytes(data)


def altered(value: Any, rng: np.random.Generator) -> Any:
    """A JSON value with one entry, at any depth, replaced by something odd or left out."""
    value = copy.deepcopy(value)
    here, places = value, []
    while isinstance(here, dict | list) and here:
        key = list(here)[rng.integers(len(here))] if isinstance(here, dict) else int(rng.integers(len(here)))
        places.append((here, key))
        here = here[key]
    if not places:
        return ODD[rng.integers(len(ODD))]
    holder, key = places[rng.integers(len(places))]
    if rng.random() < 0.3:
        del holder[key]
    else:
        holder[key] = ODD[rng.integers(len(ODD))]
    return value


def json_mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage of either kind."""
    if rng.random() < 0.4:
        return mutated(content, rng)
    return json.dumps(altered(json.loads(content), rng)).encode()


class Late(BaseException):
    """No answer in time: an error that no reader takes for one of its own."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Late for what hangs."""

    def late(*_):
        raise Late(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def survives(
    read: Callable[[], Any], place: Path, count: int, damage: Callable = mutated, *,
    same: Callable[[Any, Any], bool] | None = None, seed: int = 1,
) -> None:  # fmt: skip
    """``read`` of ``count`` damaged contents of ``place`` is a DiGError, an OSError, or ``same`` as of the whole file."""
    whole, intact, rng = place.read_bytes(), read(), np.random.default_rng(seed)
    refused = 0
    for number in range(count):
        place.write_bytes(damage(whole, rng))
        try:
            with within(20):
                found = read()
        except (DiGError, OSError) as error:
            assert str(error), number
            refused += 1
            continue
        except (Exception, Late) as error:
            raise AssertionError(f"case {number} of seed {seed}: {type(error).__name__}: {error}") from error
        assert same is None or same(intact, found), f"case {number} of seed {seed}: a wrong answer"
    place.write_bytes(whole)
    assert refused > 0, "the damage was never noticed"
