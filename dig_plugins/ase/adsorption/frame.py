"""Which way is up: the vacuum, the normal, the plane and the outermost atoms of a slab, whatever the order of its cell vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from ase import Atoms

from dig_core.errors import IncompatibleError, StateError

from .plane import reduce

__all__ = ["MIN_VACUUM", "SlabFrame", "narrowest", "slab_frame"]

MIN_VACUUM = 5.0
"""Angstrom without atoms that make a vacuum; layers of a crystal are closer together."""


@dataclass(frozen=True)
class SlabFrame:
    """The surface's own coordinates.

    ``axis``: the cell vector that crosses the vacuum; ``normal`` (3,) unit vector out of the slab on the side in use;
    ``axes`` (2, 3) orthonormal, in the plane, the same for both sides (x and y for a slab that lies in the xy plane);
    ``lattice`` (2, 2) Angstrom, the in-plane cell vectors in these axes; ``base`` Angstrom, ``normal @ position`` of the
    outermost slab atom; ``thickness`` of the slab and ``vacuum``, Angstrom (infinite if not periodic).
    """

    axis: int
    normal: np.ndarray
    axes: np.ndarray
    lattice: np.ndarray
    base: float
    thickness: float
    vacuum: float

    def xy(self, positions: np.ndarray) -> np.ndarray:
        """(..., 2) Angstrom, in-plane coordinates, not wrapped."""
        return np.asarray(positions) @ self.axes.T

    def height(self, positions: np.ndarray) -> np.ndarray:
        """(...) Angstrom above the outermost slab atom; atoms beyond the middle of the vacuum belong to the other side."""
        height = np.asarray(positions) @ self.normal - self.base
        if not np.isfinite(self.vacuum):
            return height
        period = self.thickness + self.vacuum
        return height - period * np.floor((height + self.thickness + self.vacuum / 2) / period)

    def point(self, xy: np.ndarray, height: np.ndarray | float) -> np.ndarray:
        """(..., 3) Angstrom, the position at in-plane ``xy`` (..., 2) and ``height`` above the outermost slab atom."""
        return np.asarray(xy) @ self.axes + (np.asarray(height) + self.base)[..., None] * self.normal

    def to_cartesian(self, vectors: np.ndarray) -> np.ndarray:
        """(..., 3) in-plane vectors (..., 2) as Cartesian ones."""
        return np.asarray(vectors) @ self.axes

    @property
    def turn(self) -> np.ndarray:
        """(3, 3) proper rotation that takes a molecule that stands on the xy plane onto this side of the slab."""
        handed = np.sign(np.linalg.det([*self.axes, self.normal]))
        return np.array([self.axes[0], handed * self.axes[1], self.normal]).T


def slab_frame(slab: Atoms, *, adsorbate: np.ndarray | None = None, normal=None) -> SlabFrame:
    """The frame of a slab, on the side of its ``adsorbate`` (indices into ``slab``) or of ``normal`` (3,); + if neither is given.

    Raises
    ------
    IncompatibleError: no vacuum, more than one, or an in-plane cell vector that is missing or not periodic.
    StateError: positions that are not finite.
    """
    guest = np.zeros(len(slab), dtype=bool)
    guest[[] if adsorbate is None else np.asarray(adsorbate, dtype=int)] = True
    positions = slab.positions[~guest]
    if not len(positions):
        raise IncompatibleError("expected a slab, got no atoms besides the adsorbate.")
    if not np.isfinite(slab.positions).all():
        atom = int(np.isfinite(slab.positions).all(1).argmin())
        raise StateError(f"atom {atom} has a position that is not finite: repair the structure.")
    axis = _vacuum_axis(slab, positions)
    up = _normal(slab, axis)
    extent = _extent(slab, positions, axis, up)
    axes = _in_plane_axes(slab, axis, up)
    lattice = np.delete(slab.cell.array, axis, 0) @ axes.T
    top = SlabFrame(axis, up, axes, lattice, extent.top, extent.thickness, extent.gap)
    if _side(top, slab.positions[guest], normal) > 0:
        return top
    return SlabFrame(axis, -up, axes, lattice, -extent.bottom, extent.thickness, extent.gap)


def _vacuum_axis(slab: Atoms, positions: np.ndarray) -> int:
    missing = [i for i in range(3) if not slab.pbc[i]]
    if len(missing) > 1:
        raise IncompatibleError(
            f"expected a slab that repeats along two cell vectors, got pbc={slab.pbc.tolist()}: set atoms.pbc."
        )
    if missing and np.linalg.norm(np.delete(slab.cell.array, missing[0], 0), axis=1).min() < 1e-6:
        raise IncompatibleError(f"an in-plane cell vector of {slab.cell.array.tolist()} is zero: set atoms.cell.")
    gaps = [_extent(slab, positions, i, _normal(slab, i)).gap if slab.pbc[i] else np.inf for i in range(3)]
    open_axes = [i for i in range(3) if gaps[i] >= MIN_VACUUM]
    if len(open_axes) == 1:
        return open_axes[0]
    widths = ", ".join(f"{gap:.1f}" for gap in gaps)
    if not open_axes:
        raise IncompatibleError(
            f"expected a slab with a vacuum of at least {MIN_VACUUM} Angstrom, got gaps of {widths} along the three cell vectors: "
            "add vacuum (atoms.center(vacuum=8, axis=2))."
        )
    raise IncompatibleError(
        f"expected one vacuum, got gaps of {widths} Angstrom along the cell vectors with pbc={slab.pbc.tolist()}: "
        "the cell vector that crosses the vacuum may be periodic or not, the other two must be periodic and filled with atoms."
    )


def _normal(slab: Atoms, axis: int) -> np.ndarray:
    a, b = slab.cell.array[(axis + 1) % 3], slab.cell.array[(axis + 2) % 3]
    normal = np.cross(a, b)
    if not np.linalg.norm(normal) > 1e-6:
        raise IncompatibleError(f"the cell vectors {a.tolist()} and {b.tolist()} do not span a plane: set atoms.cell.")
    normal = normal / np.linalg.norm(normal)
    return -normal if slab.cell.array[axis] @ normal < 0 else normal


class _Extent(NamedTuple):
    """Height of the lowest and of the highest atom where they stand, the slab's thickness and the gap outside it, Angstrom."""

    bottom: float
    top: float
    thickness: float
    gap: float


def _extent(slab: Atoms, positions: np.ndarray, axis: int, normal: np.ndarray) -> _Extent:
    height = positions @ normal
    if not slab.pbc[axis]:
        return _Extent(float(height.min()), float(height.max()), float(np.ptp(height)), np.inf)
    # The slab may be cut by the cell's edge: it starts where the widest gap ends.
    period = float(slab.cell.array[axis] @ normal)
    order = np.argsort(height % period)
    folded = (height % period)[order]
    gaps = np.diff(folded, append=folded[0] + period)
    last = int(gaps.argmax())
    bottom, top = height[order[(last + 1) % len(order)]], height[order[last]]
    return _Extent(float(bottom), float(top), period - float(gaps[last]), float(gaps[last]))


def _in_plane_axes(slab: Atoms, axis: int, up: np.ndarray) -> np.ndarray:
    along = np.abs(up) > 1 - 1e-9
    if along.any():
        cartesian = int(along.argmax())
        return np.eye(3)[[(cartesian + 1) % 3, (cartesian + 2) % 3]]
    first = slab.cell.array[(axis + 1) % 3] / np.linalg.norm(slab.cell.array[(axis + 1) % 3])
    return np.array([first, np.cross(up, first)])


def _side(top: SlabFrame, guest: np.ndarray, normal) -> int:
    if normal is not None:
        given = np.asarray(normal, dtype=float)
        if given.shape != (3,) or not np.linalg.norm(given) > 0:
            raise IncompatibleError(f"expected a normal of three numbers, got {normal!r}.")
        cosine = float(given @ top.normal / np.linalg.norm(given))
        if abs(cosine) < 0.7:
            own = top.normal.round(3).tolist()
            raise IncompatibleError(f"the normal {given.tolist()} lies in the surface plane; the slab's own is {own}.")
        return 1 if cosine > 0 else -1
    if not len(guest):
        return 1
    return 1 if float(top.height(guest).mean()) > -top.thickness / 2 else -1


def narrowest(lattice: np.ndarray) -> float:
    """Angstrom, the shortest distance at which the plane repeats."""
    return float(np.linalg.norm(reduce(lattice), axis=1).min())
