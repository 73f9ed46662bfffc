"""Hard spheres on a slab: at what height something touches it, and what lies buried in it. Radii: Cordero, 10.1039/b801115j."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from dig_core.errors import UnsupportedError

from .frame import SlabFrame

__all__ = ["buried", "contact_height", "images", "radii"]

_RAYS = 48


def radii(numbers) -> np.ndarray:
    """Angstrom, covalent radii of atomic ``numbers``. Raises UnsupportedError for an element that has none."""
    values = covalent_radii[np.asarray(numbers, dtype=int)]
    missing = np.atleast_1d(np.asarray(numbers, dtype=int))[np.atleast_1d(np.isnan(values) | (np.asarray(numbers) < 1))]
    if missing.size:
        raise UnsupportedError(
            f"there is no covalent radius for atomic number {missing[0]}: replace ghost atoms by real ones."
        )
    return values


def images(slab: Atoms, frame: SlabFrame, reach: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All atoms whose in-plane place is in the cell or within ``reach`` Angstrom of it: index (m,), xy (m, 2), height (m,)."""
    inverse = np.linalg.inv(frame.lattice)
    xy = frame.xy(slab.positions)
    shift = np.floor(xy @ inverse + 1e-9)
    # Heights of the cell, from the reciprocal vectors, say how many cells the reach spans.
    cells = np.ceil(reach * np.linalg.norm(inverse, axis=0)).astype(int)
    steps = np.stack(np.meshgrid(*(np.arange(-c, c + 1) for c in cells), indexing="ij"), -1).reshape(-1, 2)
    fractions = (xy @ inverse - shift)[None] + steps[:, None]
    margin = reach * np.linalg.norm(inverse, axis=0)
    keep = ((fractions > -margin) & (fractions < 1 + margin)).all(-1)
    _, index = np.nonzero(keep)
    return index, (fractions @ frame.lattice)[keep], frame.height(slab.positions)[index]


def contact_height(points: np.ndarray, spheres: np.ndarray, height: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """(n, m) height at which a ball over ``points`` (n, 2) touches each sphere at ``spheres`` (m, 2), -inf where it never does.

    ``distance`` (m,) or (n, m): of the centres in contact.
    """
    lateral = ((points[:, None] - spheres[None]) ** 2).sum(-1)
    rest = np.broadcast_to(np.asarray(distance) ** 2, lateral.shape) - lateral
    return np.where(rest >= 0, height[None] + np.sqrt(np.maximum(rest, 0)), -np.inf)


def buried(slab: Atoms, frame: SlabFrame, numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(n,) whether atoms of atomic ``numbers`` (n,) at ``positions`` (n, 3) have no straight way out to the vacuum.

    Ways out are rays up to 60 degrees from the normal; one is barred if it passes a slab atom closer than the sum of covalent radii.
    """
    index, xy, height = images(slab, frame, 2.5 * (frame.thickness + 4.0))
    sphere = np.concatenate([xy, height[:, None]], 1)
    size_of, own = radii(slab.numbers)[index], radii(numbers)
    turns = np.arange(_RAYS) * np.pi * (3 - np.sqrt(5))
    cosine = 1 - 0.5 * (np.arange(_RAYS) + 0.5) / _RAYS
    sine = np.sqrt(1 - cosine**2)
    rays = np.stack([sine * np.cos(turns), sine * np.sin(turns), cosine], 1)
    inside = np.zeros(len(positions), dtype=bool)
    inverse = np.linalg.inv(frame.lattice)
    for k, position in enumerate(np.asarray(positions, dtype=float)):
        place = frame.xy(position)
        place = place - np.floor(place @ inverse + 1e-9) @ frame.lattice
        towards = sphere - np.array([*place, frame.height(position)])
        size = size_of + own[k]
        near = towards[:, 2] > -size
        along = towards[near] @ rays.T
        miss = (towards[near] ** 2).sum(1)[:, None] - along**2
        blocked = ((along > 0) & (miss < (size[near] ** 2)[:, None])).any(0)
        inside[k] = bool(blocked.all())
    return inside
