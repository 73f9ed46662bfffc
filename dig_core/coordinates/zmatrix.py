"""Which internal coordinates a molecule gets: a z-matrix grown over its bond graph, rings included."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import UnsupportedError
from ..system.descriptor import Descriptor
from ..system.graph import neighbours, refine, shortest_paths

__all__ = ["Rotor", "ZMatrix", "build_zmatrix"]


@dataclass(frozen=True)
class Rotor:
    """Equivalent end atoms that one torsion turns together, such as the hydrogens of a methyl group: ``atoms[0]`` carries the torsion."""

    atoms: tuple[int, ...]


@dataclass(frozen=True)
class ZMatrix:
    """Rows (atom, bonded to, angle with, torsion with), in an order in which references stand before their users; -1 is none.

    ``free[i]`` says that row i's torsion is a rotation about a bond (its own component, on the torus); the other torsions
    place an atom relative to a sibling on the same centre and are narrow. ``rotors`` lists symmetric end groups.
    """

    rows: tuple[tuple[int, int, int, int], ...]
    free: tuple[bool, ...]
    rotors: tuple[Rotor, ...] = ()

    @property
    def n_atoms(self) -> int:
        return len(self.rows)

    @property
    def config(self) -> dict:
        return {"rows": [list(r) for r in self.rows], "free": list(self.free), "rotors": [list(r.atoms) for r in self.rotors]}

    @classmethod
    def from_config(cls, rows, free, rotors) -> ZMatrix:
        return cls(tuple(tuple(r) for r in rows), tuple(free), tuple(Rotor(tuple(a)) for a in rotors))


def build_zmatrix(descriptor: Descriptor) -> ZMatrix:
    """Grow a z-matrix outwards from the middle of the molecule, heavy atoms first.

    A centre's first child turns freely about the bond behind it; later children are placed relative to the first, so that
    only about one torsion a rotatable bond is wide. A ring is cut at the bond that is reached last.

    Raises
    ------
    UnsupportedError: fewer than three atoms, or several fragments (move them with separate models).
    """
    n, numbers = descriptor.n_atoms, descriptor.numbers.tolist()
    bonded = neighbours(n, descriptor.bonds)
    paths = shortest_paths(n, descriptor.bonds)
    if n < 3:
        raise UnsupportedError(f"Internal coordinates need at least 3 atoms, got {n}; use Cartesian coordinates.")
    if int(paths.max()) >= n:
        apart = int((paths[0] >= n).nonzero()[0])
        raise UnsupportedError(f"The bond graph falls apart: atom {apart} is not connected to atom 0. Describe one molecule at a time.")
    eccentricity = paths.max(dim=1).values.tolist()
    size = paths.float().mean(dim=1).tolist()

    def rank(i: int) -> tuple:
        """Heavy atoms first, branched before terminal, central before outer; the index breaks ties."""
        return (numbers[i] == 1, len(bonded[i]) == 1, eccentricity[i], size[i], i)

    root = min((i for i in range(n) if len(bonded[i]) > 1), key=rank)
    first = min(bonded[root], key=rank)
    rows, free = [(first, -1, -1, -1), (root, first, -1, -1)], [False, False]
    placed, queue = {first, root}, [root, first]
    children: dict[int, list[int]] = {root: [], first: []}
    back = {root: first, first: root}
    while queue:
        centre = queue.pop(0)
        behind = back[centre]
        for atom in sorted((i for i in bonded[centre] if i not in placed), key=rank):
            siblings = children[centre]
            if siblings:
                reference, turns = siblings[0], False
            else:
                reference, turns = _behind(centre, behind, back, children, bonded, placed), True
            rows.append((atom, centre, behind, reference))
            free.append(turns and reference >= 0)
            siblings.append(atom)
            placed.add(atom)
            children[atom], back[atom] = [], centre
            queue.append(atom)
    return ZMatrix(tuple(rows), tuple(free), _rotors(descriptor, rows, free, bonded))


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


def levels(zmatrix: ZMatrix) -> list[list[int]]:
    """Row numbers grouped so that a group's references all stand in earlier groups: atoms of a group are placed at once."""
    depth: dict[int, int] = {}
    groups: list[list[int]] = []
    for number, (atom, *references) in enumerate(zmatrix.rows):
        depth[atom] = 1 + max((depth[r] for r in references if r >= 0), default=-1)
        while len(groups) <= depth[atom]:
            groups.append([])
        groups[depth[atom]].append(number)
    return groups


def stereo_sign(positions: torch.Tensor, centre: int, around: tuple[int, int, int]) -> torch.Tensor:
    """(B,) sign of the volume spanned by three neighbours of ``centre``; ``positions`` (B, N, 3)."""
    a, b, c = (positions[:, i] - positions[:, centre] for i in around)
    return torch.sign((torch.linalg.cross(a, b) * c).sum(-1))
