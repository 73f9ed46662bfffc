"""Geometric guesses of adsorption sites: top, bridge and hollow sites of the mesh that a slab's exposed atoms span.

Works on any slab and either side and asks neither for its name nor for symmetry, so small displacements change nothing but
places. The mesh is the periodic Delaunay triangulation of the exposed atoms (as in Montoya and Persson,
10.1038/s41524-017-0017-z); two triangles whose corners lie on one circle are one four-fold hollow. A guess stands off its
corners along the normal of their own facet, which on steps is not that of the surface.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np
from ase import Atoms

from .contact import contact_height, images, radii
from .frame import SlabFrame, slab_frame
from .plane import wrap

__all__ = ["SiteGuess", "enumerate_sites", "exposed_atoms", "label_at"]

_PROBE = 0.7  # Angstrom, about the radius of C, N, O: how high a guess stands
_FEELER = 2.0  # Angstrom, a ball too large for the gaps of closed surfaces: what it touches is exposed
_CIRCLE = np.radians(150)  # opposite angles of two triangles on one circle add up to 180 degrees; to 120 on fcc(111)
_RIDGE = 1.0  # Angstrom
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
    for corners, up in mesh.cells():
        centre = mesh.points[list(corners)].mean(0)
        fractions = centre[:2] @ np.linalg.inv(frame.lattice)
        if len(corners) > max_coordination or (fractions < -1e-4).any() or (fractions >= 1 - 1e-4).any():
            continue
        key = (*np.round(centre[:2], 3), *sorted(mesh.index[list(corners)]))
        found.setdefault(key, _guess(slab, frame, mesh, corners, centre, up))
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
    return _name(len(bound), corners, np.concatenate([xy, height[:, None]], 1)), len(bound)


def _guess(
    slab: Atoms, frame: SlabFrame, mesh: _Mesh, corners: tuple[int, ...], centre: np.ndarray, up: np.ndarray
) -> SiteGuess:
    """A probe lowered along the facet's own normal ``up`` onto the middle of its corners."""
    towards = mesh.points[list(corners)] - centre
    along = towards @ up
    rest = (mesh.size[list(corners)] + _PROBE) ** 2 - (towards**2).sum(1) + along**2
    lift = (along + np.sqrt(np.maximum(rest, 0))).max()
    place = centre + lift * up
    position = frame.point(place[:2], place[2])
    label, coordination = _name(len(corners), mesh.points[list(corners)], mesh.all_points), len(corners)
    if coordination == 1:  # at the bottom of a trough four higher atoms are as close: such a top is a hollow
        around = label_at(slab, frame, position, reach=1.35)
        label, coordination = around if around[1] > 3 else (label, coordination)
    return SiteGuess(place[:2], position, label, coordination, tuple(int(i) for i in mesh.index[list(corners)]))


def _name(coordination: int, corners: np.ndarray, atoms: np.ndarray) -> str:
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

    def cells(self) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """Tuples of indices into ``points``, and the outward normal (3,) of the facets that meet there."""
        triangles = self._triangles()
        around: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for triangle in triangles:
            for part in chain.from_iterable(combinations(triangle, k) for k in (1, 2)):
                around.setdefault(part, []).append(triangle)
        merged: set[tuple[int, ...]] = set()
        edges = [part for part in around if len(part) == 2]
        found: list[tuple[tuple[int, ...], list[tuple[int, ...]]]] = [
            (p, near) for p, near in around.items() if len(p) == 1
        ]
        for edge in sorted(edges, key=lambda e: -self._opposite(e, around[e])):
            both = around[edge]
            if self._opposite(edge, both) > _CIRCLE and not merged & set(both) and self._flat(both):
                merged.update(both)
                found.append((tuple(sorted({*both[0], *both[1]})), both))
            elif self._bridged(edge):
                found.append((edge, both))
        found += [(t, [t]) for t in triangles if t not in merged and all(map(self._bridged, combinations(t, 2)))]
        for corners, facets in found:
            up = self._up(corners, facets)
            if np.isfinite(up).all():  # at the margin, far from the cell, triangles degenerate
                yield corners, up

    def _triangles(self) -> list[tuple[int, ...]]:
        """Delaunay triangles by the convex hull of the lifted points. Raised atoms are lifted less: where both diagonals of a square
        would do, as on bcc(100), the ridge is taken and not the valley."""
        from scipy.spatial import ConvexHull

        # Ties of a perfect lattice are broken the same way every time; the displacement is far below any tolerance.
        noise = np.random.default_rng(0).normal(size=(len(self.points), 2)) * 1e-7
        flat = self.points[:, :2] - self.points[:, :2].mean(0) + noise
        hull = ConvexHull(np.column_stack([flat, (flat**2).sum(1) - _RIDGE * self.points[:, 2]]))
        return [tuple(sorted(map(int, t))) for t in hull.simplices[hull.equations[:, 2] < -1e-9]]

    def _up(self, corners: tuple[int, ...], facets: list[tuple[int, ...]]) -> np.ndarray:
        """(3,) mean outward normal; around an atom by the angles there, which do not ask how a facet was cut into triangles."""
        total = np.zeros(3)
        for facet in facets:
            a, b, c = self.points[list(facet)]
            normal = np.cross(b - a, c - a)
            weight = self._angle(facet, corners[0]) if len(corners) == 1 else 1.0
            length = np.linalg.norm(normal)
            total += weight * np.sign(normal[2]) * normal / length if length > 1e-6 else 0.0
        with np.errstate(invalid="ignore"):
            return total / np.linalg.norm(total)

    def _angle(self, triangle: tuple[int, ...], corner: int) -> float:
        """Radians, in space, at one corner of a triangle."""
        u, v = (self.points[i] - self.points[corner] for i in triangle if i != corner)
        return float(np.arccos(np.clip(u @ v / np.linalg.norm(u) / np.linalg.norm(v), -1, 1)))

    def _opposite(self, edge: tuple[int, int], both: list[tuple[int, ...]]) -> float:
        """Sum of the angles that face an edge in its two triangles."""
        return sum(self._angle(t, next(iter(set(t) - set(edge)))) for t in both) if len(both) == 2 else 0.0

    def _flat(self, both: list[tuple[int, ...]]) -> bool:
        """Whether two triangles are one facet: within 30 degrees, which leaves room for displaced atoms."""
        a, b = (self._up((0, 0, 0), [triangle]) for triangle in both)
        return bool(a @ b > np.cos(np.radians(30)))

    def _bridged(self, edge: tuple[int, int]) -> bool:
        a, b = edge
        return bool(np.linalg.norm(self.points[a] - self.points[b]) < _LONG_BRIDGE * (self.size[a] + self.size[b]))
