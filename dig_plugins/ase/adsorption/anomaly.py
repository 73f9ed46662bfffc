"""What went wrong with an adsorbate: the four labels of OC20 (Chanussot et al., 10.1021/acscatal.0c04525; arXiv:2211.16486).

Definitions, with s the sum of two covalent radii. The originals read the slab's layers from tags; here an atom is below the
surface if it sees no vacuum, so that any slab will do.

adsorbate_dissociated: two adsorbate atoms that were bonded (closer than 1.25 s) are farther apart than ``factor`` s.
adsorbate_desorbed: no adsorbate atom is within ``factor`` s of any slab atom.
surface_changed: a bond of the relaxed clean slab (1.1 s) is longer than ``factor`` s under the adsorbate, or the other way round.
adsorbate_intercalated: an adsorbate atom lies inside the slab: every straight way out, up to 60 degrees from the normal, passes
a slab atom closer than s.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.geometry import find_mic

from dig_core.errors import IncompatibleError

from .contact import buried, radii
from .frame import slab_frame

__all__ = ["ANOMALIES", "anomalies", "anomalies_of"]

ANOMALIES = ("adsorbate_dissociated", "adsorbate_desorbed", "surface_changed", "adsorbate_intercalated")

_BONDED = 1.25  # within molecules
_TOUCHING = 1.1  # within slabs
_TOGETHER = 256  # structures at a time


def anomalies(initial: Atoms, final: Atoms, slab: Atoms, *, factor: float = 1.5) -> tuple[str, ...]:
    """The labels that apply, in the order of :data:`ANOMALIES`; empty if all is well.

    Parameters
    ----------
    initial, final: before and after, slab atoms first in the order of ``slab``, the adsorbate's last.
    slab: the clean slab, relaxed. factor: of the sum of covalent radii, see above.

    Raises IncompatibleError if the three do not have the same slab.
    """
    return _found(initial, final, final.positions[None], slab, factor)[0]


def anomalies_of(initial: Atoms, positions: np.ndarray, slab: Atoms, *, factor: float = 1.5) -> list[tuple[str, ...]]:
    """The same of every structure (F, N, 3) Angstrom that ``initial`` became; fast where the slab stays as it is."""
    return _found(initial, initial, positions, slab, factor)


def _found(initial: Atoms, final: Atoms, positions: np.ndarray, slab: Atoms, factor: float) -> list[tuple[str, ...]]:
    n = len(slab)
    if len(initial) <= n or (initial.numbers[:n] != slab.numbers).any():
        raise IncompatibleError(f"expected the slab's {n} atoms first and the adsorbate after them, got {initial.symbols}.")
    if len(initial) != len(final) or (initial.numbers != final.numbers).any():
        raise IncompatibleError(f"expected the same atoms before and after, got {initial.symbols} and {final.symbols}.")
    final = Atoms(final.numbers, positions=final.positions, cell=final.cell, pbc=final.pbc)
    size, mine, theirs = radii(final.numbers), slab.positions[None], initial.positions[None, n:]
    known = _relative(initial, theirs, theirs, size[n:], size[n:]) < _BONDED, _relative(slab, mine, mine, size[:n], size[:n])
    count = _TOGETHER if (positions[:, :n] == positions[:1, :n]).all() else 1
    groups = (positions[k : k + count] for k in range(0, len(positions), count))
    return [labels for group in groups for labels in _of_one_slab(final, group, n, *known, factor)]


def _of_one_slab(
    final: Atoms, positions: np.ndarray, n: int, bonded: np.ndarray, clean: np.ndarray, factor: float
) -> list[tuple[str, ...]]:
    """Of ``positions`` (F, N, 3) whose ``n`` slab atoms are the same; ``bonded`` (1, a, a) before, ``clean`` (1, n, n) distances."""
    final.positions, guest, rest = positions[0], positions[:, n:], positions[:1, :n]
    size = radii(final.numbers)
    after, touch = _relative(final, guest, guest, size[n:], size[n:]), _relative(final, guest, rest, size[n:], size[:n])
    covered = _relative(final, rest, rest, size[:n], size[:n])
    changed = ((clean < _TOUCHING) & (covered > factor)) | ((covered < _TOUCHING) & (clean > factor))
    found = (
        (bonded & (after > factor)).any((1, 2)), (touch > factor).all((1, 2)),
        np.full(len(positions), (changed & ~np.eye(n, dtype=bool)).any()), _inside(final, positions, n),
    )  # fmt: skip
    return [tuple(label for label, holds in zip(ANOMALIES, row, strict=True) if holds) for row in np.stack(found, 1)]


def _inside(final: Atoms, positions: np.ndarray, n: int) -> np.ndarray:
    """(F,) whether an atom of the adsorbate is buried, seen from the side of the slab that it is on."""
    found, frames = np.zeros(len(positions), dtype=bool), []
    for place in positions:
        final.positions = place
        frames.append(slab_frame(final, adsorbate=np.arange(n, len(final))))
    up = np.array([frame.normal @ frames[0].normal > 0 for frame in frames])
    for side in np.unique(up):
        rows, frame = np.flatnonzero(up == side), frames[int((up == side).argmax())]
        guest, numbers = positions[rows, n:].reshape(-1, 3), np.tile(final.numbers[n:], len(rows))
        found[rows] = buried(final[:n], frame, numbers, guest).reshape(len(rows), -1).any(1)
    return found


def _relative(atoms: Atoms, rows: np.ndarray, columns: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(F, r, c) minimum-image distances from ``rows`` (F, r, 3) to ``columns`` (F or 1, c, 3) in units of the sum of covalent radii."""
    vectors = columns[:, None] - rows[:, :, None]
    _, distance = find_mic(vectors.reshape(-1, 3), atoms.cell, atoms.pbc)
    return distance.reshape(vectors.shape[:3]) / (own[:, None] + other)
