"""How often each minimum is drawn, against how often a random search hit it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import jensenshannon

from dig_core.errors import IncompatibleError

from ..tables import markdown, percent

__all__ = ["Frequencies", "frequencies", "jensen_shannon"]


@dataclass(frozen=True)
class Frequencies:
    """Jensen-Shannon distance of class frequencies from the search's, over what its own halves are apart.

    ``distance``: samples against a half of the search's hits; ``floor``: the other half against it, each with ``size`` hits; means
    over random halves, ``spread`` of their ratio. A sampler with the search's frequencies has ratio 1. ``assigned`` of ``n`` samples
    belong to a class.
    """

    distance: float
    floor: float
    spread: float
    size: int
    assigned: int
    n: int

    @property
    def ratio(self) -> float:
        """``distance`` over ``floor``."""
        return self.distance / self.floor

    def to_markdown(self) -> str:
        """One row."""
        head = ["samples in a known class", "hits compared", "distance", "half against half", "ratio"]
        numbers = [f"{self.distance:.3f}", f"{self.floor:.3f}", f"{self.ratio:.2f} +- {self.spread:.2f}"]
        return markdown(head, [[percent(self.assigned, self.n), str(self.size), *numbers]])


def frequencies(assigned: np.ndarray, hits: np.ndarray, *, halves: int = 100, seed: int = 0) -> Frequencies:
    """Compare samples' classes with the number of times that a search found each.

    Parameters
    ----------
    assigned: (n,) class of each sample, -1 for none, as from :func:`assign`. hits: (K,) how often the search found each class.
    halves: random splittings of the hits. Distances depend on the number of hits, so all sets are thinned to the smallest.

    Raises IncompatibleError for classes that are not there, or too few samples or hits for a comparison (two of each).
    """
    assigned, hits = np.asarray(assigned), np.asarray(hits)
    known = assigned[assigned >= 0]
    if len(known) and known.max() >= len(hits):
        raise IncompatibleError(
            f"expected classes below {len(hits)}, got {known.max()}: assign to the structures that were hit."
        )
    found = np.repeat(np.arange(len(hits)), hits)
    size = min(len(found) // 2, len(known))
    if size < 2:
        raise IncompatibleError(
            f"expected at least 2 samples in known classes and 4 hits, got {len(known)} and {len(found)}."
        )
    rng = np.random.default_rng(seed)
    distance, floor = np.empty(halves), np.empty(halves)
    for k in range(halves):
        order = rng.permutation(found)
        half, other, drawn = order[:size], order[size : 2 * size], rng.permutation(known)[:size]
        counts = [np.bincount(x, minlength=len(hits)) for x in (half, other, drawn)]
        distance[k], floor[k] = jensen_shannon(counts[0], counts[2]), jensen_shannon(counts[0], counts[1])
    spread = float((distance / floor.mean()).std())
    return Frequencies(float(distance.mean()), float(floor.mean()), spread, size, len(known), len(assigned))


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """Distance of two distributions, (K,) of any scale: square root of the divergence in bits, 0 to 1 (doi:10.1109/TIT.2003.813506)."""
    return float(jensenshannon(p, q, base=2))
