"""Geometric guesses of adsorption sites: top, bridge and hollow sites of the mesh that a slab's exposed atoms span.

Works on any slab and either side and asks neither for its name nor for symmetry, so small displacements change nothing but
places. The mesh is the periodic Delaunay triangulation of the exposed atoms (as in Montoya and Persson,
10.1038/s41524-017-0017-z); two triangles whose corners lie on one circle are one four-fold hollow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from .contact import contact_height, images, radii
from .frame import SlabFrame, slab_frame
from .plane import wrap

__all__ = ["SiteGuess", "enumerate_sites", "exposed_atoms", "label_at"]

_PROBE = 0.7  # Angstrom, about the radius of C, N, O: how high a guess stands
_FEELER = 2.0  # Angstrom, a ball too large for the gaps of closed surfaces: what it touches is exposed
_CIRCLE = np.radians(150)  # opposite angles of two triangles on one circle add up to 180 degrees; to 120 on fcc(111)
_BOND = 1.25  # of the sum of covalent radii
_LONG_BRIDGE = 1.5  # of the same sum: the long bridge of fcc(110) is one, the width of a missing row is none


@dataclass(frozen=True)
class SiteGuess:
    """``xy`` (2,) and ``position`` (3,) Angstrom; ``label`` top, bridge, fcc, hcp or hollow; ``coordination``; its ``atoms``."""

    xy: np.ndarray
    position: np.ndarray
    label: str
    coordination: int
    atoms: tuple[int, ...]


def enumerate_sites(slab: Atoms, *, depth: float = 1.0, max_coordination: int = 4, normal=None) -> list[SiteGuess]:
    """All sites of the cell on one side: tops, then bridges, then hollows.

    Parameters
    ----------
    slab: bare slab. normal: (3,) chooses the side; the + side if None.
    depth: Angstrom by which its neighbours may lift a ball of 2 Angstrom that rests on an exposed atom.
    max_coordination: corners of the hollows that are listed; an atom at the bottom of one is not a corner.

    Raises IncompatibleError for an unfit slab, see :func:`slab_frame`.
    """
    frame = slab_frame(slab, normal=normal)
    mesh = _Mesh(slab, frame, exposed_atoms(slab, frame, depth))
    found: dict[tuple, SiteGuess] = {}
    for corners in mesh.cells():
        centre = mesh.points[list(corners), :2].mean(0)
        fractions = centre @ np.linalg.inv(frame.lattice)
        if len(corners) > max_coordination or (fractions < -1e-4).any() or (fractions >= 1 - 1e-4).any():
            continue
        key = (*np.round(centre, 3), *sorted(mesh.index[list(corners)]))
        found.setdefault(key, _guess(slab, frame, mesh, corners, centre))
    return sorted(found.values(), key=lambda site: (site.coordination, site.label, *np.round(site.xy, 3)))


def exposed_atoms(slab: Atoms, frame: SlabFrame, depth: float = 1.0) -> np.ndarray:
    """Indices of the atoms on which a large ball can rest without being lifted by more than ``depth`` Angstrom."""
    size = radii(slab.numbers) + _FEELER
    index, xy, height = images(slab, frame, float(size.max()))
    places = wrap(frame.xy(slab.positions), frame.lattice)
    resting = contact_height(places, xy, height, size[index]).max(1)
    return np.flatnonzero(resting - (frame.height(slab.positions) + size) < depth)


def label_at(slab: Atoms, frame: SlabFrame, position: np.ndarray, reach: float = 1.25) -> tuple[str, int]:
    """Label and coordination of an atom at ``position`` (3,): slab atoms within ``reach`` of the distance, less radii, of the nearest.

    One atom is a top, two a bridge, three an fcc or hcp hollow by what lies beneath, other hollows are called hollow.
    """
    index, xy, height = images(slab, frame, 6.0)
    place = wrap(frame.xy(position), frame.lattice)
    towards = np.concatenate([xy - place, (height - frame.height(position))[:, None]], 1)
    distance = np.linalg.norm(towards, axis=1)
    size = radii(slab.numbers)[index]
    relative = distance / (size + _PROBE)
    bound = np.flatnonzero(relative < reach * relative.min())
    corners = np.concatenate([xy, height[:, None]], 1)[bound]
    return _name(len(bound), corners, np.concatenate([xy, height[:, None]], 1), size), len(bound)


def _guess(slab: Atoms, frame: SlabFrame, mesh: _Mesh, corners: tuple[int, ...], centre: np.ndarray) -> SiteGuess:
    size = radii(slab.numbers)[mesh.all_index]
    label = _name(len(corners), mesh.points[list(corners)], mesh.all_points, size)
    height = contact_height(centre[None], mesh.all_points[:, :2], mesh.all_points[:, 2], size + _PROBE).max()
    position = frame.point(centre, height)
    coordination = len(corners)
    if coordination == 1:  # over an atom of a lower row, the higher rows are as close: such a top is a hollow
        label, coordination = label_at(slab, frame, position)
    return SiteGuess(centre, position, label, coordination, tuple(int(i) for i in mesh.index[list(corners)]))


def _name(coordination: int, corners: np.ndarray, atoms: np.ndarray, size: np.ndarray) -> str:
    """Three-fold hollows are hcp with an atom close beneath them and fcc without, along the normal of their own triangle."""
    if coordination < 3:
        return {1: "top", 2: "bridge"}[coordination]
    if coordination > 3:
        return "hollow"
    normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
    normal *= (1 if normal[2] > 0 else -1) / max(np.linalg.norm(normal), 1e-9)
    below = (corners.mean(0) - atoms) @ normal
    aside = np.linalg.norm(corners.mean(0) - atoms - below[:, None] * normal, axis=1)
    edge = np.linalg.norm(np.roll(corners, 1, 0) - corners, axis=1).mean()
    beneath = (aside < 0.35 * edge) & (below > 0.4 * edge) & (below < 1.2 * edge)
    return "hcp" if beneath.any() else "fcc"


class _Mesh:
    """Exposed atoms with their periodic images, and the corners of every top, bridge and hollow among them."""

    def __init__(self, slab: Atoms, frame: SlabFrame, exposed: np.ndarray):
        index, xy, height = images(slab, frame, 9.0)
        self.all_points, self.all_index = np.concatenate([xy, height[:, None]], 1), index
        seen = np.isin(index, exposed)
        self.points, self.index = self.all_points[seen], index[seen]
        self.size = radii(slab.numbers)[self.index]

    def cells(self):
        """Tuples of indices into ``points``."""
        from scipy.spatial import Delaunay

        yield from ((i,) for i in range(len(self.points)))
        # Ties of a perfect lattice are broken the same way every time; the displacement is far below any tolerance.
        noise = np.random.default_rng(0).normal(size=(len(self.points), 2)) * 1e-7
        triangles = [tuple(sorted(t)) for t in Delaunay(self.points[:, :2] + noise).simplices]
        sides: dict[tuple[int, int], list[tuple[int, ...]]] = {}
        for triangle in triangles:
            for edge in ((triangle[0], triangle[1]), (triangle[0], triangle[2]), (triangle[1], triangle[2])):
                sides.setdefault(edge, []).append(triangle)
        merged: set[tuple[int, ...]] = set()
        quads: list[tuple[int, ...]] = []
        for edge, both in sorted(sides.items(), key=lambda item: -self._opposite(*item)):
            if self._opposite(edge, both) > _CIRCLE and not merged & set(both):
                merged.update(both)
                quads.append(tuple(sorted({*both[0], *both[1]})))
            elif self._bridged(edge):
                yield edge
        yield from quads
        yield from (t for t in triangles if t not in merged and self._filled(t))

    def _opposite(self, edge: tuple[int, int], both: list[tuple[int, ...]]) -> float:
        """Sum of the angles that face an edge in its two triangles, in space."""
        if len(both) < 2:
            return 0.0
        a, b = self.points[list(edge)]
        total = 0.0
        for triangle in both:
            (corner,) = set(triangle) - set(edge)
            u, v = a - self.points[corner], b - self.points[corner]
            total += np.arccos(np.clip(u @ v / np.linalg.norm(u) / np.linalg.norm(v), -1, 1))
        return float(total)

    def _bridged(self, edge: tuple[int, int]) -> bool:
        a, b = edge
        return bool(np.linalg.norm(self.points[a] - self.points[b]) < _LONG_BRIDGE * (self.size[a] + self.size[b]))

    def _filled(self, triangle: tuple[int, ...]) -> bool:
        """A triangle with a very long side is a seam of the mesh, no hollow."""
        pairs = ((0, 1), (0, 2), (1, 2))
        return all(self._bridged((triangle[i], triangle[j])) for i, j in pairs)
