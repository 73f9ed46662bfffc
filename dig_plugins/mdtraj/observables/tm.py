"""TM-score of structures with the same residues: Zhang and Skolnick, doi:10.1002/prot.20264."""

from __future__ import annotations

import numpy as np

from dig_core.errors import IncompatibleError

from .inputs import Vector, as_frames, as_target
from .superposition import rotations

__all__ = ["tm_scale", "tm_score"]

_SHORTEST, _HALVINGS = 4, 5
# The best so many starts are improved so many times, then the best of these.
_STAGES, _GAIN = ((40, 5), (5, 40)), 1e-6
_ENTRIES = 2_000_000


def tm_scale(length: int) -> float:
    """d0 in Angstrom, the distance at which a residue counts half, of a protein of ``length`` residues; 0.5 below 22 residues."""
    return max(1.24 * max(length - 15, 0) ** (1 / 3) - 1.8, 0.5)


def tm_score(frames: Vector, target: Vector, *, length: int | None = None) -> np.ndarray:
    """(F,) in (0, 1]: the largest mean of 1 / (1 + (d / d0)^2) over superpositions of ``frames`` (F, N, 3) on ``target``.

    Residue i of a frame belongs to residue i of ``target``, (N, 3) or (F, N, 3), Angstrom, C-alpha. ``length``: residues of the
    whole target, where N are those that both have.

    The search starts, as programs do, from the superposition of fragments: all residues, halves, quarters, eighths, sixteenths, four
    at least, each moved on by a quarter of its length. The 40 best starts are improved, then the 5 best of these. 1 / (1 + u) is
    convex in u = (d / d0)^2, so superposing with weights 1 / (1 + u)^2 never lowers the score (majorisation): repeated until none
    gains 1e-6.
    What is found is a lower bound of the maximum.

    IncompatibleError for less than three residues, shapes that do not fit, or a ``length`` below N.
    """
    x = as_frames(frames)
    y, n = as_target(target, x), x.shape[1]
    length = n if length is None else length
    if n < 3 or length < n:
        raise IncompatibleError(f"expected at least three residues and a length of at least {n}, got {n} residues, length {length}.")
    starts, scale = _fragments(n), tm_scale(length)
    y = np.broadcast_to(y, x.shape)
    rows = max(1, _ENTRIES // starts.size)
    found = [_search(x[i : i + rows], y[i : i + rows], starts, scale) for i in range(0, len(x), rows)]
    return np.concatenate(found) * (n / length)


def _search(x: np.ndarray, y: np.ndarray, starts: np.ndarray, scale: float) -> np.ndarray:
    """(F,) best mean over residues from the fragments ``starts`` (S, N)."""
    table, square = _table(x, y)
    u = _deviations(table, square, starts) / scale**2
    score = (1 / (1 + u)).mean(-1)
    for best, rounds in _STAGES:
        kept = np.argsort(-score, axis=1)[:, :best, None]
        u, score = np.take_along_axis(u, kept, 1), np.take_along_axis(score, kept[..., 0], 1)
        for _ in range(rounds):
            u = _deviations(table, square, 1 / (1 + u) ** 2) / scale**2
            before, score = score, (1 / (1 + u)).mean(-1)
            if (score - before).max() < _GAIN:
                break
    return score.max(1)


def _fragments(n: int) -> np.ndarray:
    """(S, N) zeros and ones: the residues of each fragment that is superposed at the start."""
    masks = []
    for length in sorted({max(n // 2**k, min(_SHORTEST, n)) for k in range(_HALVINGS)}):
        for first in sorted({*range(0, n - length, max(1, length // 4)), n - length}):
            masks.append((np.arange(n) >= first) & (np.arange(n) < first + length))
    return np.array(masks, dtype=np.float64)


def _table(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(F, N, 16) the products 1, x, y, y x^T of each residue, and (F, N) x^2 + y^2.

    Sums over residues that fix a superposition, and square distances after one, are linear in them: two matrix products a step.
    """
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    outer = (y[..., :, None] * x[..., None, :]).reshape(*x.shape[:2], 9)
    return np.concatenate([np.ones((*x.shape[:2], 1)), x, y, outer], -1), np.square(x).sum(-1) + np.square(y).sum(-1)


def _deviations(table: np.ndarray, square: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(F, S, N) square distances after the superpositions that are best for ``weights`` (F, S, N) or (S, N)."""
    sums = weights @ table
    means = sums[..., 1:] / sums[..., :1]
    x, y, outer = means[..., :3], means[..., 3:6], means[..., 6:].reshape(*means.shape[:-1], 3, 3)
    turn = rotations(outer - y[..., :, None] * x[..., None, :])
    shift = y - (turn @ x[..., None])[..., 0]
    back = (shift[..., None, :] @ turn)[..., 0, :]
    flat = turn.reshape(*turn.shape[:-2], 9)
    # |R x + t - y|^2 = x^2 + y^2 + t^2 + 2 (R^T t) x - 2 t y - 2 R : y x^T
    factors = np.concatenate([np.square(shift).sum(-1, keepdims=True), 2 * back, -2 * shift, -2 * flat], -1)
    return np.maximum(factors @ table.swapaxes(1, 2) + square[:, None], 0)
