"""Many ligands at once: their internal coordinates padded to one size and placed together."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..diffusion.rotations import rotation_matrix
from ..types import State
from .complex import Complex
from .measure import extend, frame

__all__ = ["Scaffold", "moved_by"]


@dataclass(frozen=True)
class Scaffold:
    """What places the atoms of M ligands, of at most N atoms, S shape values and T torsions; float32. Rows of a batch name their ligand.

    ``centre`` (M, S), ``spread`` (M, S, S): raw values are centre + spread @ shape; ``fold`` (M, T) and ``share`` (M, T, S): raw torsions
    are fold * torsion - share @ raw; ``rows`` (M, K, R, 4) atoms of K levels, ``values`` (M, K, R, 3) columns of [raw, torsions, 0];
    ``straight`` (M, K, R), and ``bends`` whether any of a level is. Atom N is nobody's. ``start`` (M, 3) the first three atoms, ``third``
    (M, 4) columns of the second's bond and the third's bond and angle, and whether the third hangs on the second; ``root`` (M,);
    ``origin`` (M, 3) the pocket's centre, Angstrom.
    """

    centre: Tensor
    spread: Tensor
    fold: Tensor
    share: Tensor
    rows: Tensor
    values: Tensor
    straight: Tensor
    start: Tensor
    third: Tensor
    root: Tensor
    origin: Tensor
    atoms: int
    bends: tuple[bool, ...]

    @classmethod
    def of(cls, systems: list[Complex]) -> Scaffold:
        """Of several complexes."""
        inner = [system.internal for system in systems]
        n, size = max(s.n_ligand for s in systems), max(len(i.centre) for i in inner)
        turns = max(len(i.torsion_atoms) for i in inner)
        depth = max(len(i._levels) for i in inner) - 3
        wide = max(len(level.atoms) for i in inner for level in i._levels)
        m = len(inner)
        centre, spread = torch.zeros(m, size), torch.zeros(m, size, size)
        fold, share = torch.ones(m, turns), torch.zeros(m, turns, size)
        rows, values = torch.full((m, depth, wide, 4), n), torch.full((m, depth, wide, 3), size + turns)
        straight = torch.zeros(m, depth, wide, dtype=torch.bool)
        start, third = torch.zeros(m, 3, dtype=torch.long), torch.zeros(m, 4, dtype=torch.long)
        for k, one in enumerate(inner):
            s = len(one.centre)
            centre[k, :s] = one.centre.float()
            spread[k, :s, :s] = (one.width[:, None] * torch.linalg.inv(one.whitening)).float()
            for column, siblings in one._rotor_columns:
                fold[k, column], share[k, column, siblings] = 1 / 3, 1 / 3
            first, second, last = (row for row in one.zmatrix.rows[:3])
            start[k] = torch.tensor([first[0], second[0], last[0]])
            bond, angle = one._columns[last[0]][:2]
            third[k] = torch.tensor([one._columns[second[0]][0], bond, angle, int(last[1] == second[0])])
            for level, data in enumerate(one._levels[3:]):
                r = len(data.atoms)
                rows[k, level, :r] = data.atoms
                phi = torch.where(data.turns >= 0, size + data.turns, data.third)
                values[k, level, :r] = torch.stack([data.first, data.second, data.third if data.straight else phi], 1)
                straight[k, level, :r] = data.straight
        origin = torch.stack([s.centre for s in systems]).float()
        bends = tuple(straight.any(2).any(0).tolist())
        return cls(centre, spread, fold, share, rows, values, straight, start, third, start[:, 1].clone(), origin, n, bends)

    def to(self, device: torch.device | str) -> Scaffold:
        """The same on another device."""
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in parts.items()}
        return Scaffold(**moved)

    def place(self, state: State, which: Tensor, width: float) -> Tensor:
        """(B, N, 3) float32 Angstrom of padded states, row b of ligand ``which[b]``; ``width`` as of :class:`.bound.Bound`."""
        shape, torsion, every = state["shape"].float(), state["torsion"].float(), torch.arange(len(which), device=which.device)
        raw = self.centre[which] + torch.einsum("bij,bj->bi", self.spread[which], shape)
        torsion = self.fold[which] * torsion - torch.einsum("bij,bj->bi", self.share[which], raw)
        table = torch.cat([raw, torsion, raw.new_zeros(len(raw), 1)], 1)
        sites = self._seed(table, which, every)
        rows, values, straight = self.rows[which], self.values[which], self.straight[which]
        for level in range(rows.shape[1]):
            atoms = rows[:, level]
            j, k, m = (sites.gather(1, atoms[:, :, c, None].expand(-1, -1, 3)) for c in (1, 2, 3))
            a, b, c = (table.gather(1, values[:, level, :, i]) for i in range(3))
            new = extend(m, k, j, a, b, c)
            if self.bends[level]:
                along, side, normal = frame(m, k, j)
                linear = j + a[..., None] * along + b[..., None] * side + c[..., None] * normal
                new = torch.where(straight[:, level, :, None], linear, new)
            sites = sites.scatter(1, atoms[:, :, 0, None].expand(-1, -1, 3), new)
        sites = sites[:, :-1]
        root = sites[every, self.root[which]][:, None]
        turned = (sites - root) @ rotation_matrix(state["turn"].float()).transpose(1, 2)
        return turned + (width * state["place"].float() + self.origin[which])[:, None]

    def _seed(self, table: Tensor, which: Tensor, every: Tensor) -> Tensor:
        """(B, N + 1, 3) with the first three atoms placed."""
        sites = table.new_zeros(len(which), self.atoms + 1, 3)
        start, third = self.start[which], self.third[which]
        reach, bond, angle = (table[every, third[:, c]] for c in range(3))
        zero = torch.zeros_like(reach)
        second = torch.stack([reach, zero, zero], 1)
        on = third[:, 3, None].bool()
        j, k = torch.where(on, second, torch.zeros_like(second)), torch.where(on, torch.zeros_like(second), second)
        up = k + k.new_tensor([0.0, 1.0, 0.0])
        last = extend(up[:, None], k[:, None], j[:, None], bond[:, None], angle[:, None], zero[:, None])[:, 0]
        sites[every, start[:, 1]] = second
        sites[every, start[:, 2]] = last
        return sites


def moved_by(system: Complex) -> Tensor:
    """(T, L) bool: the atoms that each torsion of the ligand moves."""
    internal = system.internal
    found = torch.zeros(len(internal.torsion_atoms), system.n_ligand, dtype=torch.bool)
    for number, row in enumerate(internal.torsion_atoms):
        moved = {row[0]}
        for other in internal.zmatrix.rows:
            if moved & set(other[1:]):
                moved.add(other[0])
        found[number, list(moved)] = True
    return found
