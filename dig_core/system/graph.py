"""Bond-graph helpers: neighbours, shortest paths, equivalence of atoms by refinement."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

__all__ = ["neighbours", "refine", "shortest_paths"]


def neighbours(n: int, bonds: Tensor) -> list[list[int]]:
    """For each of ``n`` atoms its bonded atoms in increasing order; ``bonds`` (M, 2)."""
    lists: list[set[int]] = [set() for _ in range(n)]
    for i, j in bonds.tolist():
        lists[i].add(j)
        lists[j].add(i)
    return [sorted(found) for found in lists]


def shortest_paths(n: int, bonds: Tensor) -> Tensor:
    """(n, n) number of bonds between atoms, ``n`` where there is no path (breadth-first search from every atom)."""
    bonded = neighbours(n, bonds)
    paths = torch.full((n, n), n, dtype=torch.long)
    for start in range(n):
        reached = {start: 0}
        queue = deque([start])
        while queue:
            here = queue.popleft()
            for there in bonded[here]:
                if there not in reached:
                    reached[there] = reached[here] + 1
                    queue.append(there)
        paths[start, list(reached)] = torch.tensor(list(reached.values()))
    return paths


def refine(numbers: Tensor, bonds: Tensor) -> list[int]:
    """Class of each atom under colour refinement of the bond graph (Weisfeiler and Leman, 1968): equal for symmetric atoms."""
    n = len(numbers)
    bonded = neighbours(n, bonds)
    colour = numbers.tolist()
    for _ in range(n):
        keys = [(colour[i], tuple(sorted(colour[j] for j in bonded[i]))) for i in range(n)]
        ranks = {key: rank for rank, key in enumerate(sorted(set(keys)))}
        refined = [ranks[key] for key in keys]
        if len(set(refined)) == len(set(colour)):
            return refined
        colour = refined
    return colour
