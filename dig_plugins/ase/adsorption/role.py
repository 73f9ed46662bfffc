"""Roles of a slab's atoms: frozen, free, adsorbate. Nothing is guessed: indices or a named tag convention say which is which."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms

from dig_core.errors import IncompatibleError, UnsupportedError

from .contact import buried
from .frame import SlabFrame, narrowest, slab_frame

__all__ = ["Roles", "check_slab", "roles"]

_CONVENTIONS = {"ase": 0, "ocp": 2}
"""Tag of adsorbate atoms: ase.build counts layers from 1; the Open Catalyst Project marks them with 2 (arXiv:2010.09990)."""


class Roles(NamedTuple):
    """Index arrays, ascending, that together name every atom once."""

    frozen: np.ndarray
    free: np.ndarray
    adsorbate: np.ndarray


def roles(atoms: Atoms, adsorbate_indices=None, *, convention: str | None = None) -> Roles:
    """Who may move and who is the adsorbate.

    Parameters
    ----------
    atoms: slab and adsorbate; atoms under ``FixAtoms`` are frozen.
    adsorbate_indices: the adsorbate's atoms (negative ones count from the end); none of them may be fixed.
    convention: ``"ase"`` (tag 0 is the adsorbate) or ``"ocp"`` (tag 2), instead of indices. With neither there is no adsorbate.

    Raises
    ------
    IncompatibleError: indices out of range or twice, both ways at once, no atom of that tag, a fixed adsorbate.
    UnsupportedError: a constraint other than FixAtoms.
    """
    n = len(atoms)
    if convention is None:
        adsorbate = _indices(adsorbate_indices, n)
    elif adsorbate_indices is not None:
        raise IncompatibleError("pass adsorbate_indices or convention, not both.")
    else:
        adsorbate = _tagged(atoms, convention)
    fixed = np.zeros(n, dtype=bool)
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            raise UnsupportedError(
                f"expected FixAtoms only, got the constraint {type(constraint).__name__}: remove it or fix whole atoms."
            )
        fixed[constraint.index] = True
    if fixed[adsorbate].any():
        raise IncompatibleError(
            f"adsorbate atom {adsorbate[fixed[adsorbate]][0]} is held by FixAtoms: take it out of the constraint."
        )
    guest = np.zeros(n, dtype=bool)
    guest[adsorbate] = True
    return Roles(np.flatnonzero(fixed), np.flatnonzero(~fixed & ~guest), adsorbate)


def check_slab(atoms: Atoms, roles: Roles, *, cutoff: float | None = None) -> SlabFrame:
    """The slab's frame on the adsorbate's side, if everything is fit for sampling.

    ``cutoff``: Angstrom at which the plane may not repeat. Raises IncompatibleError: no vacuum (see :func:`slab_frame`), an
    adsorbate inside the slab, or a cell smaller than the cutoff.
    """
    frame = slab_frame(atoms, adsorbate=roles.adsorbate)
    if cutoff is not None and narrowest(frame.lattice) < cutoff:
        raise IncompatibleError(
            f"the cell repeats every {narrowest(frame.lattice):.2f} Angstrom in the plane, which is less than the cutoff of {cutoff}: "
            "repeat the slab (atoms.repeat((2, 2, 1)))."
        )
    if len(roles.adsorbate):
        slab = atoms[np.setdiff1d(np.arange(len(atoms)), roles.adsorbate)]
        inside = buried(slab, frame, atoms.numbers[roles.adsorbate], atoms.positions[roles.adsorbate])
        if inside.any():
            i = roles.adsorbate[inside][0]
            raise IncompatibleError(
                f"adsorbate atom {i} ({atoms.symbols[i]}) stands inside the slab, {-frame.height(atoms.positions[i]):.2f} "
                "Angstrom below its outermost atom: place it on one side (place_adsorbate)."
            )
    return frame


def _indices(given, n: int) -> np.ndarray:
    if given is None:
        return np.zeros(0, dtype=int)
    index = np.atleast_1d(np.asarray(given))
    if index.dtype == bool and index.shape == (n,):
        index = np.flatnonzero(index)
    if index.ndim != 1 or (index.size and not np.issubdtype(index.dtype, np.integer)):
        raise IncompatibleError(f"expected adsorbate_indices as a list of integers, got {given!r}.")
    outside = index[(index < -n) | (index >= n)]
    if outside.size:
        raise IncompatibleError(f"adsorbate index {outside[0]} is out of range: the structure has atoms 0 to {n - 1}.")
    index = np.sort(index.astype(int) % n)
    if len(np.unique(index)) < len(index):
        raise IncompatibleError(f"an adsorbate index occurs twice in {given!r}.")
    if len(index) == n:
        raise IncompatibleError(f"all {n} atoms are named as adsorbate: there is no slab.")
    return index


def _tagged(atoms: Atoms, convention: str) -> np.ndarray:
    if convention not in _CONVENTIONS:
        raise IncompatibleError(f"expected convention to be one of {sorted(_CONVENTIONS)}, got {convention!r}.")
    tag = _CONVENTIONS[convention]
    if convention == "ocp" and not set(atoms.get_tags()) <= {0, 1, 2}:
        raise IncompatibleError(
            f"in the 'ocp' convention tags are 0, 1 and 2, got {sorted(set(atoms.get_tags()))}: pass adsorbate_indices."
        )
    index = np.flatnonzero(atoms.get_tags() == tag)
    if not 0 < len(index) < len(atoms):
        raise IncompatibleError(
            f"in the {convention!r} convention adsorbate atoms have tag {tag}, which {len(index)} of {len(atoms)} atoms have: "
            "pass adsorbate_indices."
        )
    return index
