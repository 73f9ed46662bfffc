"""Contact placement: an adsorbate is lowered onto a slab, on either side, until two covalent spheres touch."""

from __future__ import annotations

import numpy as np
from ase import Atom, Atoms
from ase.build import molecule
from ase.collections import g2
from ase.data import atomic_numbers

from dig_core.errors import IncompatibleError

from .contact import contact_height, images, radii
from .frame import SlabFrame, slab_frame
from .plane import reduce

__all__ = ["as_adsorbate", "binding_index", "place_adsorbate"]


def as_adsorbate(adsorbate: Atoms | Atom | str, anchor: int | None = None) -> tuple[Atoms, int]:
    """The molecule, standing on the xy plane, and its anchor.

    Atoms are taken as they are (anchor: the first atom unless given). A name is an element symbol or one of ASE's g2
    molecules; its anchor is the lightest atom heavier than hydrogen unless given (C in CO, N in NO, O in OH), and the
    molecule is turned so that its anchor points down. Raises IncompatibleError for an unknown name or a wrong anchor.
    """
    if isinstance(adsorbate, Atom):
        adsorbate = Atoms([adsorbate])
    if isinstance(adsorbate, Atoms):
        made = Atoms(adsorbate.numbers, positions=adsorbate.positions)
        anchor = 0 if anchor is None else anchor
    elif adsorbate in atomic_numbers and atomic_numbers[adsorbate] > 0:
        made, anchor = Atoms([adsorbate]), 0 if anchor is None else anchor
    elif adsorbate in g2.names:
        made = molecule(adsorbate)
        made = Atoms(made.numbers, positions=made.positions)
        anchor = binding_index(made.numbers) if anchor is None else anchor
        away = made.positions.mean(0) - made.positions[anchor % len(made)]
        if np.linalg.norm(away) > 0.1:
            made.rotate(away, "z")
    else:
        raise IncompatibleError(
            f"expected Atoms, an element or a molecule of ase.collections.g2, got {adsorbate!r}: pass Atoms."
        )
    if not len(made) or not -len(made) <= anchor < len(made):
        raise IncompatibleError(f"anchor {anchor} is not one of the adsorbate's {len(made)} atoms.")
    return made, anchor % len(made)


def binding_index(numbers: np.ndarray) -> int:
    """Of the atomic numbers (A,) of an adsorbate, the lightest that is heavier than hydrogen: the anchor unless one is given."""
    return int(np.where(np.asarray(numbers) > 1, numbers, 999).argmin())


def place_adsorbate(
    slab: Atoms, adsorbate, xy, *, rotation=None, gap: float = 0.0, normal=None, anchor: int | None = None
) -> Atoms:
    """Slab with the adsorbate appended last, lowered until the first pair of atoms is a sum of covalent radii apart.

    Parameters
    ----------
    slab: any slab; its constraints, tags and info are kept, its calculator is not.
    adsorbate: Atoms, an element symbol or a g2 name, see :func:`as_adsorbate`; its z axis becomes the surface normal.
    xy: (2,) Angstrom, in-plane place of the ``anchor`` atom in the axes of :func:`slab_frame`: Cartesian x and y for a slab
        that lies in the xy plane.
    rotation: (3, 3) matrix or anything with ``as_matrix()``, applied to the adsorbate before it is stood on the surface.
    gap: Angstrom added to the height of contact. normal: (3,) chooses the side; the slab's + side if None.

    Raises
    ------
    IncompatibleError: an unfit slab, adsorbate or rotation; images of the adsorbate that touch; a vacuum that is too thin.
    """
    frame = slab_frame(slab, normal=normal)
    guest, anchor = as_adsorbate(adsorbate, anchor)
    place = np.asarray(xy, dtype=float)
    if place.shape != (2,) or not np.isfinite(place).all():
        raise IncompatibleError(f"expected xy as two finite numbers in Angstrom, got {xy!r}.")
    body = (guest.positions - guest.positions[anchor]) @ _matrix(rotation).T
    _check_images(guest, frame.lattice)
    lateral = body[:, :2] * [1, np.sign(np.linalg.det([*frame.axes, frame.normal]))]
    height = _contact(slab, frame, guest.numbers, place + lateral, body[:, 2]) + gap
    above = height + float(body[:, 2].max())
    if above > frame.vacuum - 1.0:
        raise IncompatibleError(
            f"the adsorbate reaches {above:.1f} Angstrom above the surface and the vacuum is {frame.vacuum:.1f}: add vacuum."
        )
    guest.positions = frame.point(place + lateral, height + body[:, 2])
    guest.cell, guest.pbc = slab.cell, slab.pbc
    placed = slab.copy()
    placed.calc = None
    placed += guest
    return placed


def _contact(slab: Atoms, frame: SlabFrame, numbers: np.ndarray, points: np.ndarray, offset: np.ndarray) -> float:
    distance = radii(numbers)[:, None] + radii(slab.numbers)[None]
    index, spheres, heights = images(slab, frame, float(distance.max()))
    inverse = np.linalg.inv(frame.lattice)
    inside = points - np.floor(points @ inverse + 1e-9) @ frame.lattice
    touch = contact_height(inside, spheres, heights, distance[:, index]) - offset[:, None]
    if not np.isfinite(touch.max()):
        raise IncompatibleError(
            f"nothing lies below xy = {points[0].round(2).tolist()}: the slab has a hole there; choose another place."
        )
    return float(touch.max())


def _matrix(rotation) -> np.ndarray:
    if rotation is None:
        return np.eye(3)
    matrix = np.asarray(rotation.as_matrix() if hasattr(rotation, "as_matrix") else rotation, dtype=float)
    if matrix.shape != (3, 3) or not np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-6) or np.linalg.det(matrix) < 0:
        raise IncompatibleError("expected rotation as a proper 3x3 rotation matrix, or an object with as_matrix().")
    return matrix


def _check_images(guest: Atoms, lattice: np.ndarray) -> None:
    """Turning about the normal must never bring an adsorbate to its image: its width is that of its bounding sphere."""
    basis = reduce(lattice)
    steps = np.array([[i, j] for i in range(-1, 2) for j in range(-1, 2) if (i, j) > (0, 0)]) @ basis
    size = radii(guest.numbers)
    difference = guest.positions[:, None] - guest.positions[None]
    for step in steps:
        apart = np.linalg.norm(difference + [*step, 0.0], axis=-1)
        if (apart < size[:, None] + size[None]).any():
            raise IncompatibleError(
                f"the adsorbate touches its own image {np.linalg.norm(step):.2f} Angstrom away: repeat the slab (atoms.repeat((2, 2, 1)))."
            )
