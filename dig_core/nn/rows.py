"""A molecule row by row of its z-matrix, as a network of any molecule reads it: what an atom is, what places it, and what rings hold it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..coordinates.internal import Internal
from ..system.descriptor import Descriptor
from ..system.graph import neighbours

__all__ = ["FEATURES", "NODE_SIZES", "PAIR_SIZES", "ROTOR", "STRAIGHT", "Rows", "rows_of", "stacked"]

FIRST, NARROW, FREE, ROTOR, STRAIGHT = range(5)
"""The third number of a row: none, a torsion that bends, one that turns, that of an end group; or the row is behind a straight angle."""
FEATURES = 16
NODE_SIZES = (119, 16, 17, 10, 5, 2, 6, 5)
"""Element, bonds, charge + 8; smallest ring (0 none, up to 9), double bonds (4 aromatic), conjugation, hydrogens, kind of row."""
PAIR_SIZES = (16, 8, 7, 10)
"""Bonds apart, order, which of the three atoms before the other it is (and the other way round), smallest ring that holds both."""
_LARGEST = 9
_TURN = 1 << 20  # added to the columns of torsions, before the number of shape columns is known


class Rows(NamedTuple):
    """R molecules of up to N atoms in the order in which their z-matrices place them; D shape columns, T torsions.

    ``order`` (R, N) the atom of each row; ``numbers`` (R, N), ``node`` (R, N, ..), ``pair`` (R, N, N, ..) the graph, numbers of 0 are
    padding; ``before`` (R, N, 3) rows that place each, N for none; ``kind`` (R, N); ``slots`` (R, N, 3) columns of [shape, torsion] that
    place it, D + T for none; ``mates`` (R, N, 2) columns of an end group's other torsions; ``centre``, ``width`` (R, D), zero for padding;
    ``shape`` (R, D), ``torsion`` (R, T) where each column stands among the 3 N slots, 3 N for padding.
    """

    order: Tensor
    numbers: Tensor
    node: Tensor
    pair: Tensor
    before: Tensor
    kind: Tensor
    slots: Tensor
    mates: Tensor
    centre: Tensor
    width: Tensor
    shape: Tensor
    torsion: Tensor

    def take(self, index: Tensor) -> Rows:
        """The molecules at ``index``, with no more padding than the largest of them needs."""
        some = Rows(*(x[index] for x in self))
        (n, d, t), old = some._sizes(), some.centre.shape[1]
        found = {name: x[:, :n] for name, x in some._asdict().items()}
        found |= {"pair": some.pair[:, :n, :n], "centre": some.centre[:, :d], "width": some.width[:, :d]}
        found |= {"before": found["before"].clamp(max=n), "shape": some.shape[:, :d].clamp(max=3 * n)}
        found |= {"torsion": some.torsion[:, :t].clamp(max=3 * n)}
        for name in ("slots", "mates"):
            columns = found[name]
            found[name] = torch.where(columns < old, columns, columns - old + d).clamp(max=d + t)
        return Rows(**found)

    def _sizes(self) -> tuple[int, int, int]:
        """The largest numbers of atoms, shape columns and torsions."""
        n = self.numbers.shape[1]
        used = ((self.numbers > 0), (self.shape < 3 * n), (self.torsion < 3 * n))
        return tuple(int(mask.any(0).sum()) for mask in used)  # type: ignore[return-value]


def rows_of(coordinates: Internal, descriptor: Descriptor) -> Rows:
    """One molecule, R = 1."""
    return stacked([(coordinates, descriptor)])


def stacked(molecules: Sequence[tuple[Internal, Descriptor]]) -> Rows:
    """Several, padded to the largest."""
    parts = [_one(*pair) for pair in molecules]
    n, d, t = (max(len(getattr(part, name)) for part in parts) for name in ("numbers", "centre", "torsion"))
    sizes = {"order": n, "numbers": n, "node": n, "before": n, "kind": n, "slots": n, "mates": n}
    sizes |= {"centre": d, "width": d, "shape": d, "torsion": t}
    found = {name: torch.stack([_padded(getattr(part, name), size) for part in parts]) for name, size in sizes.items()}
    pairs = []
    for part in parts:
        pair = part.pair.new_zeros(n, n, part.pair.shape[2])
        pair[: len(part.numbers), : len(part.numbers)] = part.pair
        pairs.append(pair)
    found["before"] = torch.where(found["before"] < 0, n, found["before"])
    for name in ("slots", "mates"):
        columns = found[name]
        columns = torch.where(columns >= _TURN, columns - _TURN + d, columns)
        found[name] = torch.where(columns < 0, d + t, columns)
    for name in ("shape", "torsion"):
        found[name] = torch.where(found[name] < 0, 3 * n, found[name])
    return Rows(**found, pair=torch.stack(pairs))


def _padded(x: Tensor, size: int) -> Tensor:
    """``size`` rows; what is an index is -1 in the new ones, what is a number or a category is 0."""
    more = x.new_full((size - len(x), *x.shape[1:]), -1 if x.dtype == torch.int32 else 0)
    longer = torch.cat([x, more])
    return longer if x.is_floating_point() else longer.long()


def _one(coordinates: Internal, descriptor: Descriptor) -> Rows:
    """Without a leading dimension; indices are int32 with -1 for none, categories int64."""
    zmatrix = coordinates.zmatrix
    order = [row[0] for row in zmatrix.rows]
    place = {atom: number for number, atom in enumerate(order)} | {-1: -1}
    turn_of = {atoms[0]: number for number, atoms in enumerate(coordinates.torsion_atoms)}
    siblings = {rotor.atoms[0]: rotor.atoms[1:] for rotor in zmatrix.rotors}
    columns: dict[int, list[int]] = {atom: [] for atom in order}
    for number, atoms in enumerate(coordinates.shape_atoms):
        columns[atoms[0]].append(number)
    slots, mates, kind = [], [], []
    for row in zmatrix.rows:
        own = columns[row[0]]
        turns = turn_of.get(row[0])
        slots.append((own + [-1] * 3)[:2] + [_TURN + turns if turns is not None else (own[2] if len(own) == 3 else -1)])
        mates.append([columns[atom][2] for atom in siblings.get(row[0], ())] or [-1, -1])
        kind.append(
            STRAIGHT if row[0] in zmatrix.straight else ROTOR if row[0] in siblings else FREE if turns is not None else
            NARROW if len(own) == 3 else FIRST
        )  # fmt: skip
    where = {column: 3 * number + slot for number, three in enumerate(slots) for slot, column in enumerate(three) if column >= 0}
    before = torch.tensor([[place[atom] for atom in row[1:]] for row in zmatrix.rows], dtype=torch.int32)
    node, pair = _chemistry(descriptor)
    kinds, at = torch.tensor(kind), torch.tensor(order)
    relation = _relation(before)
    return Rows(
        order=at, numbers=descriptor.numbers[at], node=torch.cat([node[at], kinds[:, None]], 1),
        pair=torch.cat([pair[at][:, at, :2], relation[..., None], pair[at][:, at, 2:]], 2), before=before, kind=kinds,
        slots=torch.tensor(slots, dtype=torch.int32), mates=torch.tensor(mates, dtype=torch.int32), centre=coordinates.centre.float(),
        width=coordinates.width.float(), shape=torch.tensor([where[c] for c in range(len(coordinates.centre))], dtype=torch.int32),
        torsion=torch.tensor([where[_TURN + c] for c in range(len(turn_of))], dtype=torch.int32),
    )  # fmt: skip


def _relation(before: Tensor) -> Tensor:
    """(N, N): column c of ``before`` as c + 1 for the pair (row, that row), as c + 4 for the pair the other way round."""
    n = len(before)
    found = torch.zeros(n, n, dtype=torch.long)
    for column in (2, 1, 0):
        rows = (before[:, column] >= 0).nonzero()[:, 0]
        others = before[rows, column].long()
        found[rows, others], found[others, rows] = column + 1, column + 4
    return found


def _chemistry(descriptor: Descriptor) -> tuple[Tensor, Tensor]:
    """Columns of ``node`` (N, 7) and ``pair`` (N, N, 3) that the graph alone tells."""
    n, order = descriptor.n_atoms, descriptor.pair[..., 1]
    ring = _rings(n, descriptor.bonds)
    doubles = torch.where((order == 4).any(1), 4, torch.where((order == 3).any(1), 3, (order == 2).sum(1).clamp(max=2)))
    bonded = order > 0
    # An atom without double bonds beside one that has them: amides, anilines, esters.
    beside = ((doubles == 0) & (bonded & (doubles > 0)[None]).any(1)).long()
    hydrogens = (bonded & (descriptor.numbers == 1)[None]).sum(1).clamp(max=5)
    smallest = torch.where(ring > 0, ring, 99).amin(1)
    extra = torch.stack([torch.where(smallest < 99, smallest, 0), doubles, beside, hydrogens], 1)
    return torch.cat([descriptor.node, extra], 1), torch.cat([descriptor.pair, ring[..., None]], 2)


def _rings(n: int, bonds: Tensor) -> Tensor:
    """(n, n) size of the smallest ring, of those that are a shortest one of one of their bonds, that holds both atoms; 0 if none does."""
    bonded, found = neighbours(n, bonds), torch.zeros(n, n, dtype=torch.long)
    for i, j in bonds.tolist():
        ring = _way_round(bonded, i, j)
        size = min(len(ring), _LARGEST)
        for a in ring:
            for b in ring:
                found[a, b] = size if found[a, b] == 0 else min(size, int(found[a, b]))
    return found


def _way_round(bonded: list[list[int]], start: int, end: int) -> list[int]:
    """The shortest way from ``start`` to ``end`` that does not take the bond between them; empty if there is none."""
    back, queue = {start: -1}, deque([start])
    while queue:
        here = queue.popleft()
        for there in bonded[here]:
            if there not in back and (here, there) != (start, end):
                back[there] = here
                queue.append(there)
    if end not in back:
        return []
    way = [end]
    while back[way[-1]] >= 0:
        way.append(back[way[-1]])
    return way
