"""From internal coordinates back to positions: a z-matrix placed level by level."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .measure import extend, frame
from .zmatrix import ZMatrix

__all__ = ["Level", "levels", "place"]


class Level(NamedTuple):
    """Rows of a z-matrix whose references all stand in earlier levels.

    ``atoms`` (R, 4) the rows; ``first``, ``second``, ``third`` (R,) columns of the raw shape values: bond, angle and sibling torsion, or
    the three components of atoms behind a ``straight`` angle; ``turns`` (R,) columns of the torsions. -1 where a row has none.
    """

    atoms: Tensor
    first: Tensor
    second: Tensor
    third: Tensor
    turns: Tensor
    straight: bool


def levels(zmatrix: ZMatrix, columns: dict[int, list[int]], turn_of: dict[int, int]) -> list[Level]:
    """Levels in the order of placing. ``columns``: of each atom its up to three shape values; ``turn_of``: of some the torsion."""
    depth: dict[int, int] = {}
    groups: dict[tuple[int, bool], list[tuple[int, ...]]] = {}
    for row in zmatrix.rows:
        depth[row[0]] = 1 + max((depth[r] for r in row[1:] if r >= 0), default=-1)
        groups.setdefault((depth[row[0]], row[0] in zmatrix.straight), []).append(row)
    found = []
    for (_, straight), rows in sorted(groups.items()):
        first, second, third = torch.tensor([(columns[row[0]] + [-1] * 3)[:3] for row in rows]).unbind(1)
        turns = torch.tensor([turn_of.get(row[0], -1) for row in rows])
        found.append(Level(torch.tensor(rows), first, second, third, turns, straight))
    return found


def place(order: list[Level], raw: Tensor, torsion: Tensor) -> Tensor:
    """(B, N, 3) centred positions from raw shape values (B, D - T) and raw torsions (B, T). Parsons et al., doi:10.1002/jcc.20237."""
    sites: dict[int, Tensor] = {}
    for level in order:
        j, k, m = (_sites(sites, level.atoms[:, c]) for c in (1, 2, 3))
        if j is None:
            new = raw.new_zeros(len(raw), len(level.atoms), 3)
        elif k is None:
            length = raw[:, level.first]
            new = j + torch.stack([length, torch.zeros_like(length), torch.zeros_like(length)], -1)
        else:
            new = _placed(level, raw, torsion, j, k, m)
        sites |= dict(zip(level.atoms[:, 0].tolist(), new.unbind(1), strict=True))
    positions = torch.stack([sites[atom] for atom in sorted(sites)], dim=1)
    return positions - positions.mean(dim=1, keepdim=True)


def _placed(level: Level, raw: Tensor, torsion: Tensor, j: Tensor, k: Tensor, m: Tensor | None) -> Tensor:
    first, second = raw[:, level.first], raw[:, level.second]
    if m is None:  # the third atom of all: any plane will do
        return extend(k + torch.tensor([0.0, 1.0, 0.0], dtype=raw.dtype), k, j, first, second, torch.zeros_like(second))
    third = raw[:, level.third]
    if level.straight:
        along, side, normal = frame(m, k, j)
        return j + first[..., None] * along + second[..., None] * side + third[..., None] * normal
    phi = torch.where(level.turns >= 0, torsion[:, level.turns], third) if torsion.shape[1] else third
    return extend(m, k, j, first, second, phi)


def _sites(sites: dict[int, Tensor], atoms: Tensor) -> Tensor | None:
    """(B, R, 3) of atoms that are placed already; None where the rows have no such reference."""
    return None if int(atoms[0]) < 0 else torch.stack([sites[a] for a in atoms.tolist()], 1)
