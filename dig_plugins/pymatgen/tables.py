"""Markdown tables, and intervals for shares."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["markdown", "percent", "wilson"]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with ``head`` over ``rows``."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def wilson(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson, doi:10.1080/01621459.1927.10502953); (0, 1) of nothing."""
    if not total:
        return 0.0, 1.0
    share, spread = hits / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def percent(hits: int, total: int) -> str:
    """A share with its 95 % interval, "88.0 % (84.1-91.0)"."""
    low, high = wilson(hits, total)
    share = hits / total if total else math.nan
    return f"{100 * share:.1f} % ({100 * low:.1f}-{100 * high:.1f})"
