"""Which internal coordinates a molecule gets: a z-matrix grown over its bond graph, rings included."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..errors import UnsupportedError
from ..system.descriptor import Descriptor
from ..system.graph import neighbours, refine, shortest_paths
from .measure import angle

__all__ = ["Rotor", "ZMatrix", "build_zmatrix"]

_STRAIGHT = math.radians(160)


@dataclass(frozen=True)
class Rotor:
    """Equivalent end atoms that one torsion turns together, such as the hydrogens of a methyl group: ``atoms[0]`` carries the torsion."""

    atoms: tuple[int, ...]


@dataclass(frozen=True)
class ZMatrix:
    """Rows (atom, bonded to, angle with, torsion with), in an order in which references stand before their users; -1 is none.

    ``free[i]`` says that row i's torsion is a rotation about a bond (its own component, on the torus); the other torsions
    place an atom relative to a sibling on the same centre and are narrow. ``rotors`` lists symmetric end groups. ``straight``
    names the atoms behind a (nearly) straight angle, where a torsion means nothing: they are placed by the Cartesian
    components of their bond in the frame of the row's other three atoms.
    """

    rows: tuple[tuple[int, int, int, int], ...]
    free: tuple[bool, ...]
    rotors: tuple[Rotor, ...] = ()
    straight: tuple[int, ...] = ()

    @property
    def n_atoms(self) -> int:
        return len(self.rows)

    @property
    def config(self) -> dict:
        rows, rotors = [list(r) for r in self.rows], [list(r.atoms) for r in self.rotors]
        return {"rows": rows, "free": list(self.free), "rotors": rotors, "straight": list(self.straight)}

    @classmethod
    def from_config(cls, rows, free, rotors, straight=()) -> ZMatrix:
        return cls(tuple(tuple(r) for r in rows), tuple(free), tuple(Rotor(tuple(a)) for a in rotors), tuple(straight))


def build_zmatrix(descriptor: Descriptor) -> ZMatrix:
    """Grow a z-matrix outwards from the middle of the molecule, heavy atoms first.

    A centre's first child turns freely about the bond behind it; later children are placed relative to the first, so that
    only about one torsion a rotatable bond is wide. A ring is cut at the bond that is reached last. Angles of more than 160
    degrees in the descriptor's reference structure count as straight: what stands beyond takes its torsion from before.

    Raises
    ------
    UnsupportedError: fewer than three atoms, all of them on a line, or several fragments (move them with separate models).
    """
    n, numbers = descriptor.n_atoms, descriptor.numbers.tolist()
    bonded = neighbours(n, descriptor.bonds)
    paths = _paths(descriptor)
    eccentricity = paths.max(dim=1).values.tolist()
    size = paths.float().mean(dim=1).tolist()
    wide = _straight(descriptor, bonded)

    def rank(i: int) -> tuple:
        """Heavy atoms first, branched before terminal, central before outer; the index breaks ties."""
        return (numbers[i] == 1, len(bonded[i]) == 1, eccentricity[i], size[i], i)

    root, first = _start(bonded, wide, rank)
    rows, free, straight = [(first, -1, -1, -1), (root, first, -1, -1)], [False, False], []
    placed, queue = {first, root}, [root, first]
    children: dict[int, list[int]] = {root: [], first: []}
    back, reference = {root: first, first: root}, {root: -1, first: -1}
    while queue:
        centre = queue.pop(0)
        behind, siblings = back[centre], children[centre]
        fresh = [i for i in bonded[centre] if i not in placed]
        for atom in sorted(fresh, key=lambda i: ((i, centre, behind) in wide, rank(i))):
            turns = not siblings
            other = _behind(centre, behind, back, children, bonded, placed) if turns else siblings[0]
            if turns and (centre, behind, other) in wide:
                other = reference[centre]
            if (atom, centre, behind) in wide:
                straight.append(atom)
                turns = False
            rows.append((atom, centre, behind, other))
            free.append(turns and other >= 0)
            siblings.append(atom)
            placed.add(atom)
            children[atom], back[atom], reference[atom] = [], centre, other
            queue.append(atom)
    return ZMatrix(tuple(rows), tuple(free), _rotors(descriptor, rows, free, bonded), tuple(straight))


def _paths(descriptor: Descriptor) -> torch.Tensor:
    """Shortest paths between atoms of one molecule of at least three."""
    n, paths = descriptor.n_atoms, shortest_paths(descriptor.n_atoms, descriptor.bonds)
    if n < 3:
        raise UnsupportedError(f"Internal coordinates need at least 3 atoms, got {n}; use Cartesian coordinates.")
    if int(paths.max()) >= n:
        apart = int((paths[0] >= n).nonzero()[0])
        raise UnsupportedError(f"The bond graph falls apart: atom {apart} is not connected to atom 0. Describe one molecule at a time.")
    return paths


def _straight(descriptor: Descriptor, bonded: list[list[int]]) -> set[tuple[int, int, int]]:
    """Straight angles, the centre in the middle, from either end; none are known without a reference structure."""
    triples = [(a, centre, b) for centre, around in enumerate(bonded) for a in around for b in around if a != b]
    if descriptor.reference is None:
        return set()
    angles = angle(descriptor.reference.positions.double(), triples)[0].tolist()
    return {triple for triple, value in zip(triples, angles, strict=True) if value > _STRAIGHT}


def _start(bonded, wide, rank) -> tuple[int, int]:
    """The second atom and the first: bonded, and with a third on the second that is not on their line."""
    pairs = [
        (root, first)
        for root, around in enumerate(bonded)
        for first in around
        if any(other != first and (other, root, first) not in wide for other in around)
    ]
    if not pairs:
        raise UnsupportedError(
            "All atoms lie on a straight line, every angle is above 160 degrees: such a molecule has no internal coordinates with an "
            "orientation. Use Cartesian coordinates."
        )
    return min(pairs, key=lambda pair: (rank(pair[0]), rank(pair[1])))


def _behind(centre, behind, back, children, bonded, placed) -> int:
    """An atom bonded to ``behind`` to measure the torsion about centre-behind from; -1 for the third atom of all."""
    if back[behind] != centre:
        return back[behind]
    others = [i for i in bonded[behind] if i in placed and i != centre]
    return children[behind][0] if children[behind] else (others[0] if others else -1)


def _rotors(descriptor, rows, free, bonded) -> tuple[Rotor, ...]:
    """Three equivalent terminal atoms on one centre whose first one turns freely."""
    classes = refine(descriptor.numbers, descriptor.bonds)
    found = []
    for (atom, centre, _, _), turns in zip(rows, free, strict=True):
        if not turns:
            continue
        group = tuple(row[0] for row in rows if row[1] == centre)
        alike = {classes[i] for i in group}
        if len(group) == 3 and len(alike) == 1 and all(len(bonded[i]) == 1 for i in group) and group[0] == atom:
            found.append(Rotor(group))
    return tuple(found)


def stereo_sign(positions: torch.Tensor, centre: int, around: tuple[int, int, int]) -> torch.Tensor:
    """(B,) sign of the volume spanned by three neighbours of ``centre``; ``positions`` (B, N, 3)."""
    a, b, c = (positions[:, i] - positions[:, centre] for i in around)
    return torch.sign((torch.linalg.cross(a, b) * c).sum(-1))
