"""Many structures against many: a fingerprint says which few are near, the matcher's measure decides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from pymatgen.core import Structure

from dig_core.errors import IncompatibleError

from ..convert import check_structure
from ..distances import fingerprint
from .matcher import NOTHING, TOLERANCES, Reduced, Tolerance, reduce, rms_distance

__all__ = ["Library", "Matches", "classes", "match"]

_NOT_REDUCED = (
    ValueError,
    RuntimeError,
    ArithmeticError,
    np.linalg.LinAlgError,
)  # what pymatgen raises for broken structures
NEAREST, MANY = 30, 100
"""References tried a structure: where distances are wanted, and where a tight match is, of which the first 30 miss some.

What they miss is measured by ``benchmarks/crystal_matching.py``.
"""


class Library:
    """Structures that are compared with others, each reduced once and only when it is needed.

    ``primitive_cell``: as in StructureMatcher. With True a supercell is its primitive cell; with False structures match only others
    of as many atoms, but noise does not hide a smaller cell.

    Raises what :func:`check_structure` raises, by name; atoms may overlap. IncompatibleError for no structure. What has no reduced
    cell matches nothing.
    """

    def __init__(self, structures: Sequence[Structure], primitive_cell: bool = True):
        self.structures, self.primitive_cell = list(structures), bool(primitive_cell)
        if not self.structures:
            raise IncompatibleError("expected at least one structure to compare, got none.")
        for i, structure in enumerate(self.structures):
            check_structure(structure, i, shortest=0.0)
        self._reduced: list[Reduced | None] = [None] * len(self.structures)

    def __len__(self) -> int:
        return len(self.structures)

    def __getitem__(self, index: int) -> Reduced:
        found = self._reduced[index]
        if found is None:
            try:
                found = reduce(self.structures[index], self.primitive_cell)
            except _NOT_REDUCED:
                found = NOTHING
            self._reduced[index] = found
        return found

    def with_cells(self, primitive_cell: bool) -> Library:
        """The same structures, matched with or without reduction to primitive cells; fingerprints are shared."""
        if primitive_cell == self.primitive_cell:
            return self
        other = Library.__new__(Library)
        other.structures, other.primitive_cell = self.structures, bool(primitive_cell)
        other._reduced, other.__dict__["vectors"] = [None] * len(self), self.vectors
        return other

    @cached_property
    def vectors(self) -> list[np.ndarray]:
        """Fingerprint of each structure."""
        return [fingerprint(structure) for structure in self.structures]

    @cached_property
    def kinds(self) -> dict[str, np.ndarray]:
        """Indices by what can match at all: the formula, reduced if cells are."""
        kinds: dict[str, list[int]] = {}
        for i, structure in enumerate(self.structures):
            composition = structure.composition.element_composition
            formula = composition.reduced_formula if self.primitive_cell else composition.formula
            kinds.setdefault(formula, []).append(i)
        return {formula: np.array(index) for formula, index in kinds.items()}

    def part(self, index: Sequence[int] | np.ndarray) -> Library:
        """Some of the structures; what was computed of them is kept."""
        found = Library.__new__(Library)
        found.structures, found.primitive_cell = [self.structures[i] for i in index], self.primitive_cell
        found._reduced, found.__dict__["vectors"] = [self._reduced[i] for i in index], [self.vectors[i] for i in index]
        return found

    def nearest(self, references: Library, count: int, apart: np.ndarray | None = None) -> list[np.ndarray]:
        """For each structure up to ``count`` references, the nearest fingerprint first, without number ``apart`` (n,) of them."""
        found: list[np.ndarray] = [np.zeros(0, dtype=int)] * len(self)
        for formula, own in self.kinds.items():
            index = references.kinds.get(formula)
            if index is None:
                continue
            table = np.array([references.vectors[j] for j in index])
            for part in np.array_split(own, math.ceil(len(own) / 256)):
                square = _squares(np.array([self.vectors[i] for i in part]), table)
                order = np.argsort(square, axis=1, kind="stable")[:, : count + 1]
                for i, row in zip(part, order, strict=True):
                    near = index[row]
                    found[i] = near[:count] if apart is None else near[near != apart[i]][:count]
        return found


class Matches(NamedTuple):
    """``rms`` (n, T) of the best of the references tried at each of T tolerances, NaN for none; ``index`` (n, T) which one, -1 for none."""

    rms: np.ndarray
    index: np.ndarray

    @property
    def hit(self) -> np.ndarray:
        """(n, T) bool."""
        return self.index >= 0


def match(
    structures: Library, references: Library, tolerances: Mapping[str, Tolerance] = TOLERANCES, *, nearest: int | None = NEAREST,
    apart: np.ndarray | None = None, first: bool = False, rest: bool = False,
) -> Matches:  # fmt: skip
    """The best match of each structure among the ``nearest`` references by fingerprint (None: among all), at each tolerance.

    Parameters
    ----------
    tolerances: the loosest first, each within the one before: a pair that fails one is not tried at the next.
    apart: (n,) the reference that each structure is not compared with: itself, where structures are among the references.
    first: be content with the first match at the tightest tolerance: distances are upper bounds.
    rest: where the nearest do not match, go on through all others to the first that does. Whether there is a match is then known
        for certain; its distance is an upper bound.

    Raises IncompatibleError for libraries that reduce cells differently, or tolerances out of order.
    """
    levels = list(tolerances.values())
    if structures.primitive_cell != references.primitive_cell:
        raise IncompatibleError("expected both libraries with the same primitive_cell: use with_cells().")
    if any(a < b for loose, tight in zip(levels, levels[1:], strict=False) for a, b in zip(loose, tight, strict=True)):
        raise IncompatibleError(f"expected tolerances from loose to tight, got {[str(level) for level in levels]}.")
    found = Matches(np.full((len(structures), len(levels)), np.nan), np.full((len(structures), len(levels)), -1))
    count = len(references) if nearest is None else nearest
    candidates = structures.nearest(references, len(references) if rest else count, apart)
    for i, ordered in enumerate(candidates):
        for k, j in enumerate(ordered):
            missing = int(found.hit[i].sum())
            if (first or k >= count) and missing == len(levels):
                break
            # What is loose enough for an earlier reference is settled, once only hits are asked for.
            _try(found, i, j, structures[i], references[j], levels, missing if k >= count else 0)
    return found


def _try(found: Matches, i: int, j: int, one: Reduced, other: Reduced, levels: Sequence[Tolerance], start: int) -> None:
    """Note where a pair matches better than those before it, from level ``start`` on."""
    for level in range(start, len(levels)):
        rms = rms_distance(one, other, levels[level])
        if math.isnan(rms):
            return
        if not rms >= found.rms[i, level]:
            found.rms[i, level], found.index[i, level] = rms, j


def classes(structures: Library, tolerance: Tolerance = TOLERANCES["tight"], nearest: int = MANY) -> np.ndarray:
    """(n,) class of each structure, numbered in order of first appearance: connected through pairs that match."""
    parent = np.arange(len(structures))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, candidates in enumerate(structures.nearest(structures, nearest, apart=parent.copy())):
        for j in candidates:
            if root(i) != root(j) and not math.isnan(rms_distance(structures[i], structures[j], tolerance)):
                a, b = sorted((root(i), root(j)))
                parent[b] = a
    _, found = np.unique([root(i) for i in range(len(structures))], return_inverse=True)
    return found


def _squares(rows: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(n, m) squared distances. Centred first, so that the products do not cancel."""
    middle = table.mean(0)
    rows, table = rows - middle, table - middle
    return (rows**2).sum(1)[:, None] - 2 * rows @ table.T + (table**2).sum(1)
