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

__all__ = ["ANOMALIES", "anomalies"]

ANOMALIES = ("adsorbate_dissociated", "adsorbate_desorbed", "surface_changed", "adsorbate_intercalated")

_BONDED = 1.25  # within molecules
_TOUCHING = 1.1  # within slabs


def anomalies(initial: Atoms, final: Atoms, slab: Atoms, *, factor: float = 1.5) -> tuple[str, ...]:
    """The labels that apply, in the order of :data:`ANOMALIES`; empty if all is well.

    Parameters
    ----------
    initial, final: before and after, slab atoms first in the order of ``slab``, the adsorbate's last.
    slab: the clean slab, relaxed. factor: of the sum of covalent radii, see above.

    Raises IncompatibleError if the three do not have the same slab.
    """
    n = len(slab)
    for name, atoms in (("initial", initial), ("final", final)):
        if len(atoms) <= n or (atoms.numbers[:n] != slab.numbers).any():
            raise IncompatibleError(
                f"expected {name} to hold the slab's {n} atoms first and the adsorbate after them, got {atoms.symbols}."
            )
    if len(initial) != len(final) or (initial.numbers != final.numbers).any():
        raise IncompatibleError(f"expected the same atoms before and after, got {initial.symbols} and {final.symbols}.")
    guest = np.arange(n, len(final))
    before, after = _relative(initial, guest, guest), _relative(final, guest, guest)
    clean, covered = _relative(slab, np.arange(n), np.arange(n)), _relative(final, np.arange(n), np.arange(n))
    frame = slab_frame(final, adsorbate=guest)
    found = (
        bool(((before < _BONDED) & (after > factor)).any()),
        bool((_relative(final, guest, np.arange(n)) > factor).all()),
        bool((((clean < _TOUCHING) & (covered > factor)) | ((covered < _TOUCHING) & (clean > factor))).any()),
        bool(buried(final[:n], frame, final.numbers[guest], final.positions[guest]).any()),
    )
    return tuple(label for label, holds in zip(ANOMALIES, found, strict=True) if holds)


def _relative(atoms: Atoms, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(r, c) minimum-image distances in units of the sum of covalent radii, infinite between an atom and itself."""
    vectors = atoms.positions[columns][None] - atoms.positions[rows][:, None]
    _, distance = find_mic(vectors.reshape(-1, 3), atoms.cell, atoms.pbc)
    size = radii(atoms.numbers)
    relative = distance.reshape(len(rows), len(columns)) / (size[rows][:, None] + size[columns][None])
    return np.where(rows[:, None] == columns[None], np.inf, relative)
