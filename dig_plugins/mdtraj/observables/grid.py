"""Which part of a map is visited: accuracy, precision, recall and F1 on a grid over the reference's range."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .inputs import Vector, as_points, as_weights

__all__ = ["Coverage", "cell_edges", "coverage", "share_map"]


class Coverage(NamedTuple):
    """Cells visited by samples, judged by those that a reference visits; each from 0 to 1.

    ``accuracy``: cells on which both agree, visited or not; ``precision``: of the cells that samples visit, those that the reference
    visits; ``recall``: the other way round; ``f1``: their harmonic mean; ``outside``: samples beyond the grid, which the rest ignores.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    outside: float


def cell_edges(reference: np.ndarray, cells: int) -> list[np.ndarray]:
    """``cells`` equal cells along each column of ``reference`` (G, 2), from its least to its largest value."""
    low, high = reference.min(0), reference.max(0)
    return [np.linspace(a, b if b > a else a + 1, cells + 1) for a, b in zip(low, high, strict=True)]


def share_map(points: np.ndarray, edges: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """(K, L) share of ``weights`` (F,) in each cell of ``points`` (F, 2); what is outside is in none."""
    return np.histogram2d(points[:, 0], points[:, 1], bins=edges, weights=weights)[0]


def coverage(samples: Vector, reference: Vector, *, cells: int = 50) -> Coverage:
    """Coverage of ``reference`` (G, 2) by ``samples`` (F, 2), coordinates on the same map, on ``cells`` x ``cells`` over its range.

    Zheng et al., doi:10.1038/s42256-024-00837-3, for proteins. It grows with F: compare at equal numbers of samples.
    """
    x, y = as_points(samples, "samples", 2), as_points(reference, "the reference", 2)
    edges = cell_edges(y, cells)
    mine, true = (share_map(p, edges, as_weights(None, len(p))) for p in (x, y))
    both, visited = float(((mine > 0) & (true > 0)).sum()), float((mine > 0).sum())
    recall, precision = both / float((true > 0).sum()), both / visited if visited else 0.0
    f1 = 2 * precision * recall / (precision + recall) if both else 0.0
    return Coverage(float(((mine > 0) == (true > 0)).mean()), precision, recall, f1, max(0.0, 1.0 - float(mine.sum())))
