"""Everything that can be measured of a set of designs with what is given, in one call and one page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pymatgen.core import Structure
from torch import Tensor

from dig_core.errors import IncompatibleError
from dig_core.files import write_atomically
from dig_core.types import Geometry

from ..designs import Designs
from .counts import Frequencies, frequencies
from .library import Library
from .quality import Coordination, HitRate, Validity, coordination, hit_rate, judged, validity
from .rates import Coverage, Diversity, MatchReport, assign, coverage, diversity, match_report
from .relaxation import Relaxation, relax

__all__ = ["Evaluation", "evaluate"]

_TITLES = {
    "matches": "Matches with the training set, beside controls",
    "coverage": "Minima that were never trained on",
    "diversity": "Different and new structures",
    "frequencies": "Frequencies of minima against the search's own",
    "validity": "Room for atoms",
    "coordination": "Coordination",
    "hits": "Target met, by the judge",
    "relaxation": "Relaxation",
}


@dataclass(frozen=True)
class Evaluation:
    """What was measured of ``n`` structures; None for what nothing was given for."""

    n: int
    validity: Validity
    coordination: Coordination
    matches: MatchReport | None = None
    coverage: Coverage | None = None
    diversity: Diversity | None = None
    frequencies: Frequencies | None = None
    hits: HitRate | None = None
    relaxation: Relaxation | None = None

    def to_markdown(self) -> str:
        """All tables, each under its title."""
        parts = [f"{self.n} structures, none left out before measuring."]
        for name, title in _TITLES.items():
            found = getattr(self, name)
            parts += [] if found is None else [f"## {title}", found.to_markdown()]
        return "\n\n".join(parts) + "\n"

    def write(self, path: str | Path) -> None:
        """The tables as a Markdown file."""
        write_atomically(Path(path), self.to_markdown().encode())


def evaluate(
    structures: Designs | Sequence[Structure], training: Sequence[Structure] | None = None, *,
    held_out: Sequence[Structure] | None = None, hits: Sequence[int] | None = None,
    judge: Callable[[Geometry], Tensor] | None = None, target: float | tuple[float, float] | None = None, base: np.ndarray | None = None,
    calculator=None, pressure: float | None = None, relaxed: int = 50, controls: int = 200, seed: int = 0,
) -> Evaluation:  # fmt: skip
    """Measure ``structures``; nothing is filtered first.

    Parameters
    ----------
    training: what the model was trained on: matches, uniqueness, novelty. held_out: minima it never saw: coverage.
    hits: how often a search found each structure of ``training``: frequencies.
    judge: a function of a Geometry, not the one that guided; ``target`` what was asked for, ``base`` its values for unguided data.
    calculator: of ASE; the first ``relaxed`` structures are relaxed, at ``pressure`` GPa or in their own cells.
    controls, seed: see :func:`match_report`.
    """
    structures = list(structures.structures if isinstance(structures, Designs) else structures)
    if not structures:
        raise IncompatibleError("expected at least one structure to evaluate, got none.")
    if hits is not None and (training is None or len(hits) != len(training)):
        raise IncompatibleError("expected one number of hits for each training structure.")
    found = {"validity": validity(structures), "coordination": coordination(structures)}
    if training is not None:
        found["matches"] = match_report(structures, training, held_out=held_out, controls=controls, seed=seed)
    library = Library(structures)
    if training is not None:
        known = Library(training)
        found["diversity"] = diversity(library, known, found["validity"].valid(max(found["validity"].limits)))
        found |= (
            {} if hits is None else {"frequencies": frequencies(assign(library, known), np.asarray(hits), seed=seed)}
        )
    if held_out is not None:
        found["coverage"] = coverage(Library(held_out), library, None if training is None else Library(training))
    if judge is not None and target is not None:
        found["hits"] = hit_rate(judged(structures, judge), target, base=base)
    if calculator is not None:
        found["relaxation"] = relax(structures[:relaxed], calculator, pressure=pressure)
    return Evaluation(len(structures), **found)
