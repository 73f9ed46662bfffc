"""How often and how well structures match a reference set, beside controls; coverage of it, uniqueness, novelty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pymatgen.core import Structure

from ..tables import markdown, percent
from .library import MANY, NEAREST, Library, classes, match
from .matcher import TOLERANCES, Tolerance, rms_distance

__all__ = [
    "Coverage",
    "Diversity",
    "MatchReport",
    "MatchRow",
    "assign",
    "coverage",
    "diversity",
    "match_report",
    "random_coordinates",
]


@dataclass(frozen=True)
class MatchRow:
    """Of ``n`` structures ``matched`` had a reference within ``tolerance``.

    ``nrmsd``: mean over those of the best distance found, NaN if there is none; ``crmse``: over all n, the tolerance's stol where
    nothing matched (the one to compare, since the first looks better the less is matched).
    """

    who: str
    name: str
    tolerance: Tolerance
    primitive_cell: bool
    n: int
    matched: int
    nrmsd: float
    crmse: float

    @property
    def rate(self) -> float:
        """Share matched."""
        return self.matched / self.n


@dataclass(frozen=True)
class MatchReport:
    """Rows of samples and controls. Rates are those of trying all references; distances are the best of the ``nearest`` by fingerprint,
    or of the first that matched where none of those did.
    """

    rows: tuple[MatchRow, ...]
    nearest: int | None = NEAREST

    def row(self, who: str, name: str, primitive_cell: bool) -> MatchRow:
        """The one of these; KeyError if there is none."""
        for row in self.rows:
            if (row.who, row.name, row.primitive_cell) == (who, name, primitive_cell):
                return row
        raise KeyError((who, name, primitive_cell))

    def to_markdown(self) -> str:
        """A table, 95 % intervals in brackets."""
        head = ["", "ltol/stol/angle", "primitive cells", "n", "matched", "nRMSD", "cRMSE"]
        rows = []
        for r in self.rows:
            cells = "yes" if r.primitive_cell else "no"
            rows.append(
                [r.who, str(r.tolerance), cells, str(r.n), percent(r.matched, r.n), f"{r.nrmsd:.3f}", f"{r.crmse:.3f}"]
            )
        return markdown(head, rows)


def match_report(
    structures: Sequence[Structure], training: Sequence[Structure], *, held_out: Sequence[Structure] | None = None,
    tolerances: Mapping[str, Tolerance] = TOLERANCES, primitive_cells: Sequence[bool] = (True, False), nearest: int | None = NEAREST,
    controls: int = 200, seed: int = 0,
) -> MatchReport:  # fmt: skip
    """Match rate and normalised distance of ``structures`` to the training set at each tolerance, beside three controls.

    The controls, ``controls`` structures each: uniformly random coordinates in lattices of the training set, with the compositions of
    ``structures``; ``held_out`` data; training data, each against all others. A rate means something by its distance from the first
    and the second. Errors are those of :class:`Library`.
    """
    rng = np.random.default_rng(seed)
    sets: dict[str, list[Structure]] = {
        "samples": list(structures),
        "random": random_coordinates(structures, training, controls, rng),
    }
    if held_out is not None:
        sets["held out"] = _some(held_out, controls, rng)[1]
    rows = []
    chosen, sets["training"] = _some(training, controls, rng)
    references = Library(training)
    for primitive in primitive_cells:
        library = references.with_cells(primitive)
        for who, members in sets.items():
            if not members:
                continue
            if who == "training":
                found = _others(library, chosen, tolerances, nearest)
            else:
                found = match(Library(members, primitive), library, tolerances, nearest=nearest, rest=True).rms
            rows += [
                _row(who, name, tolerance, primitive, found[:, level])
                for level, (name, tolerance) in enumerate(tolerances.items())
            ]
    return MatchReport(tuple(rows), nearest)


def random_coordinates(
    like: Sequence[Structure], lattices: Sequence[Structure], n: int, rng: np.random.Generator
) -> list[Structure]:  # fmt: skip
    """Uniformly random coordinates in cells of ``lattices``, with compositions drawn from ``like`` where ``lattices`` has them."""
    homes: dict[str, list[Structure]] = {}
    for structure in lattices:
        homes.setdefault(structure.composition.formula, []).append(structure)
    known = [structure for structure in like if structure.composition.formula in homes] or list(lattices)
    found = []
    for pick in rng.integers(len(known), size=n):
        home = homes[known[pick].composition.formula]
        cell = home[rng.integers(len(home))]
        found.append(Structure(cell.lattice, [site.specie for site in cell], rng.random((len(cell), 3))))
    return found


def assign(
    structures: Library, references: Library, tolerance: Tolerance = TOLERANCES["tight"], nearest: int = MANY
) -> np.ndarray:
    """(n,) index of the reference that each structure matches best, -1 for none."""
    return match(structures, references, {"": tolerance}, nearest=nearest).index[:, 0]


@dataclass(frozen=True, eq=False)
class Coverage:
    """``covered`` (n,) bool: which references one of ``samples`` structures matches within ``tolerance``; ``sizes`` (n,) their atoms.

    ``known`` (n,) bool: which of them the training set itself matches, so that copying it covers them; None if it was not given.
    """

    covered: np.ndarray
    sizes: np.ndarray
    samples: int
    tolerance: Tolerance
    known: np.ndarray | None = None

    @property
    def share(self) -> float:
        """Of the references."""
        return float(self.covered.mean())

    @property
    def share_unknown(self) -> float:
        """Of the references that the training set does not match; NaN if there are none, or it was not given."""
        new = np.zeros(0, dtype=bool) if self.known is None else self.covered[~self.known]
        return float(new.mean()) if len(new) else math.nan

    def to_markdown(self) -> str:
        """A table by the number of atoms, beside what the training set covers."""
        head = ["atoms", "references", f"found by {self.samples} samples at {self.tolerance}"]
        head += [] if self.known is None else ["matched by the training set", "found of the others"]
        rows = [self._row(str(n), self.sizes == n) for n in np.unique(self.sizes)]
        return markdown(head, [*rows, self._row("all", np.ones(len(self.covered), dtype=bool))])

    def _row(self, name: str, member: np.ndarray) -> list[str]:
        row = [name, str(int(member.sum())), percent(int(self.covered[member].sum()), int(member.sum()))]
        if self.known is not None:
            new = member & ~self.known
            row += [
                percent(int(self.known[member].sum()), int(member.sum())),
                percent(int(self.covered[new].sum()), int(new.sum())),
            ]
        return row


def coverage(
    references: Library, samples: Library, training: Library | None = None, *, tolerance: Tolerance = TOLERANCES["tight"],
    nearest: int = MANY,
) -> Coverage:  # fmt: skip
    """Which of the references were found; for references never trained on, recall of the sampler.

    ``training``: what it was trained on. A random search finds some minima many times over, a little deformed, so that a part of
    those held out is in the training set all the same; the others are the ones to look at.
    """
    known = None if training is None else _found(references, training, tolerance, nearest)
    sizes = np.array([len(structure) for structure in references.structures])
    return Coverage(_found(references, samples, tolerance, nearest), sizes, len(samples), tolerance, known)


def _found(references: Library, samples: Library, tolerance: Tolerance, nearest: int) -> np.ndarray:
    """(n,) bool: which references a sample matches."""
    found = match(references, samples, {"": tolerance}, nearest=nearest, first=True).hit[:, 0]
    # Among many samples a reference's own may not be its nearest; it is among the sample's.
    for i, candidates in enumerate(samples.nearest(references, nearest)):
        for j in candidates[~found[candidates]]:
            found[j] = not math.isnan(rms_distance(references[j], samples[i], tolerance))
    return found


@dataclass(frozen=True)
class Diversity:
    """Of ``n`` structures ``unique`` are valid and different, ``known`` match the training set; ``novel`` of the unique ones do not."""

    n: int
    unique: int
    known: int
    novel: int
    tolerance: Tolerance

    def to_markdown(self) -> str:
        """One row."""
        head = ["n", f"valid and unique at {self.tolerance}", "in the training set", "valid, unique and new"]
        return markdown(head, [[str(self.n), *(percent(k, self.n) for k in (self.unique, self.known, self.novel))]])


def diversity(
    samples: Library, training: Library, valid: np.ndarray | None = None, tolerance: Tolerance = TOLERANCES["tight"], nearest: int = MANY
) -> Diversity:  # fmt: skip
    """Uniqueness and novelty; a class of samples is new if none of them matches the training set.

    ``valid`` (n,) bool: those that are not count as neither, since every broken structure is a new one.
    """
    kinds = classes(samples, tolerance, nearest)
    known = match(samples, training, {"": tolerance}, nearest=nearest, first=True).hit[:, 0]
    unique = np.unique(kinds if valid is None else kinds[valid])
    novel = np.setdiff1d(unique, kinds[known])
    return Diversity(len(samples), len(unique), int(known.sum()), len(novel), tolerance)


def _some(structures: Sequence[Structure], n: int, rng: np.random.Generator) -> tuple[np.ndarray, list[Structure]]:
    index = np.sort(rng.permutation(len(structures))[:n])
    return index, [structures[i] for i in index]


def _others(
    library: Library, chosen: np.ndarray, tolerances: Mapping[str, Tolerance], nearest: int | None
) -> np.ndarray:
    """(m, T) best distance of each of the chosen members to all others."""
    return match(library.part(chosen), library, tolerances, nearest=nearest, apart=chosen, rest=True).rms


def _row(who: str, name: str, tolerance: Tolerance, primitive: bool, rms: np.ndarray) -> MatchRow:
    hit = np.isfinite(rms)
    mean = float(rms[hit].mean()) if hit.any() else float("nan")
    filled = float(np.where(hit, rms, tolerance.stol).mean())
    return MatchRow(who, name, tolerance, primitive, len(rms), int(hit.sum()), mean, filled)
