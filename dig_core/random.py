"""One noise stream per sample: sample i depends on (seed, i) alone, whatever the batch or the number of workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import IncompatibleError

__all__ = ["Streams", "as_seed", "fresh_seed"]

_BLOCK, _MORE = 512, 64


def fresh_seed() -> int:
    """A seed from the operating system, to be recorded with the output it makes."""
    return int(np.random.SeedSequence().generate_state(1, np.uint32)[0])


def as_seed(seed: int | None) -> int:
    """``seed`` if generators take it, a fresh one for None. Raises :class:`IncompatibleError` outside 0 to 2^64 - 1."""
    seed = fresh_seed() if seed is None else int(seed)
    if not 0 <= seed < 2**64:
        raise IncompatibleError(f"expected a seed from 0 to 2^64 - 1, got {seed}.")
    return seed


class Streams:
    """Independent counter-based generators, one for each sample index (Philox; Salmon et al., doi:10.1145/2063384.2063405).

    Numbers are consumed per sample in the order they are asked for, so a sample's noise does not depend on its batch.
    """

    def __init__(self, seed: int, indices: Sequence[int] | range):
        self.seed, self.indices = as_seed(seed), list(indices)
        # One generator takes the state of each stream in turn: to make one takes longer than some hundred numbers do.
        self._philox = np.random.Philox(0)
        self._generator = np.random.Generator(self._philox)
        self._states: list[Any] = [None] * len(self.indices)
        self._block = np.empty((len(self.indices), 0), dtype=np.float32)
        self._used = 0

    def __len__(self) -> int:
        return len(self.indices)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) standard normal numbers (drawn in float32), converted to ``dtype``."""
        need = math.prod(shape)
        if self._used + need > self._block.shape[1]:
            self._make(max(_BLOCK, need))
        taken = torch.from_numpy(self._block[:, self._used : self._used + need]).to(dtype, copy=True)
        self._used += need
        return taken.reshape(len(self), *shape)

    def reserve(self, count: int) -> None:
        """Make the next ``count`` numbers of each stream, and a few more, at once, which takes less time; they stay the same."""
        if self._used + count > self._block.shape[1]:
            self._make(count + _MORE)

    def _make(self, count: int) -> None:
        fresh = np.empty((len(self), count), dtype=np.float32)
        for number, row in enumerate(fresh):
            self._philox.state = self._states[number] or _start(self.seed, self.indices[number])
            self._generator.standard_normal(dtype=np.float32, out=row)
            self._states[number] = self._philox.state
        # What is left of the old block is used first, so that asking in other portions gives the same numbers.
        self._block = np.concatenate([self._block[:, self._used :], fresh], axis=1) if self._used < self._block.shape[1] else fresh
        self._used = 0

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) float64 numbers uniform on [0, 1): the normal stream through its distribution function."""
        return torch.special.ndtr(self.normal(*shape, dtype=torch.float64))

    @staticmethod
    def chain(seed: int, index: int = 0) -> np.random.Generator:
        """The generator of a Markov chain's accept/reject numbers, independent of every sample's stream."""
        return np.random.Generator(np.random.Philox(key=_key(as_seed(seed), 2**63 + int(index))))


def _key(seed: int, index: int) -> np.ndarray:
    # As uint64: a list that holds a number of 2^63 or more becomes float64, and neighbouring indices one and the same key.
    return np.array([seed, int(index)], dtype=np.uint64)


def _start(seed: int, index: int) -> Any:
    """The state of ``Philox(key=_key(seed, index))`` before its first number."""
    nothing = np.zeros(4, dtype=np.uint64)
    state = {"counter": nothing, "key": _key(seed, index)}
    return {"bit_generator": "Philox", "state": state, "buffer": nothing, "buffer_pos": 4, "has_uint32": 0, "uinteger": 0}
