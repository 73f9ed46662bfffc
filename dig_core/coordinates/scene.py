"""Ligands and pockets as a network sees them: heavy atoms, residues and indices, padded to one size."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..system.elements import properties
from .complex import AROMATIC, KIND, RESIDUE, RING, Complex
from .scaffold import moved_by

__all__ = ["Scene"]

MAX_PATH = 8


@dataclass(frozen=True)
class Scene:
    """M ligands of at most L heavy atoms, N atoms, T torsions, S shape values, in Q pockets of at most P heavy atoms and R residues.

    Of ligands: ``elements`` (M, L, 5) their properties, ``codes`` (M, L, 5) bonds, charge + 8, ring, aromatic, hydrogens; ``real`` (M, L);
    ``atoms`` (M, L) which atom each is; ``path``, ``order`` (M, L, L); ``turns`` (M, T, 4) heavy atoms, a hydrogen's is its
    neighbour; ``turns_real``; ``moved`` (M, T, L); ``fold`` (M, T); ``shapes`` (M, S, 4), -1 for none; ``kinds`` (M, S);
    ``shapes_real``; ``middle`` (M,) heavy atom that the placement is about; ``pocket`` (M,).
    Of pockets: ``wall`` (Q, P, 5) properties of elements; ``wall_codes`` (Q, P, 2) kind of residue, charge + 8; ``wall_real``;
    ``wall_at`` (Q, P, 3) Angstrom; ``owner`` (Q, P) residue; ``residue_kind`` (Q, R); ``residue_real``;
    ``residue_at`` (Q, R, 3), means of their atoms.
    """

    elements: Tensor
    codes: Tensor
    real: Tensor
    atoms: Tensor
    path: Tensor
    order: Tensor
    turns: Tensor
    turns_real: Tensor
    moved: Tensor
    fold: Tensor
    shapes: Tensor
    kinds: Tensor
    shapes_real: Tensor
    middle: Tensor
    pocket: Tensor
    wall: Tensor
    wall_codes: Tensor
    wall_real: Tensor
    wall_at: Tensor
    owner: Tensor
    residue_kind: Tensor
    residue_real: Tensor
    residue_at: Tensor

    @classmethod
    def of(cls, systems: list[Complex]) -> Scene:
        """Of several complexes; equal pockets are held once."""
        pockets: list[Complex] = []
        which = []
        for system in systems:
            known = [k for k, other in enumerate(pockets) if _same_pocket(system, other)]
            which.append(known[0] if known else len(pockets))
            if not known:
                pockets.append(system)
        mine, theirs = [_ligand(s) for s in systems], [_pocket(s) for s in pockets]
        found = {name: _padded([one[name] for one in mine]) for name in mine[0]}
        found |= {name: _padded([one[name] for one in theirs]) for name in theirs[0]}
        return cls(**found, pocket=torch.tensor(which))

    def to(self, like: Tensor) -> Scene:
        """The same where ``like`` is, numbers that are not whole as precise as it."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Scene(**{name: x.to(like) if x.is_floating_point() else x.to(like.device) for name, x in parts.items()})


def _same_pocket(one: Complex, other: Complex) -> bool:
    a, b = one.pocket_positions, other.pocket_positions
    return a.shape == b.shape and torch.equal(a, b)


def _ligand(system: Complex) -> dict[str, Tensor]:
    n, internal = system.n_ligand, system.internal
    numbers, node, pair = (x.cpu() for x in (system.numbers[:n], system.node[:n], system.pair))
    heavy = (numbers > 1).nonzero()[:, 0]
    place = torch.full((n + 1,), -1, dtype=torch.long)
    place[heavy] = torch.arange(len(heavy))
    bonded = pair[..., 1] > 0
    hydrogens = (bonded & (numbers == 1)[None]).sum(1)
    for atom in (numbers == 1).nonzero()[:, 0].tolist():
        place[atom] = place[int(bonded[atom].nonzero()[0, 0])]
    codes = torch.stack([node[:, 1].clamp(max=6), node[:, 2].clamp(0, 16), node[:, RING], node[:, AROMATIC], hydrogens.clamp(max=4)], 1)
    turns = torch.tensor([list(t) for t in internal.torsion_atoms], dtype=torch.long).reshape(-1, 4)
    shapes = torch.tensor([list(a) + [-1] * (4 - len(a)) for a in internal.shape_atoms], dtype=torch.long)
    fold = torch.ones(len(turns))
    for column, _ in internal._rotor_columns:
        fold[column] = 3.0
    return {
        "elements": properties(numbers[heavy]).float(), "codes": codes[heavy], "real": torch.ones(len(heavy), dtype=torch.bool),
        "atoms": heavy,
        "path": pair[heavy][:, heavy, 0].clamp(max=MAX_PATH), "order": pair[heavy][:, heavy, 1],
        "turns": place[turns], "turns_real": torch.ones(len(turns), dtype=torch.bool), "moved": moved_by(system)[:, heavy].float(),
        "fold": fold, "shapes": place[shapes], "kinds": internal.kind_index + 1, "shapes_real": torch.ones(len(shapes), dtype=torch.bool),
        "middle": place[internal.zmatrix.rows[1][0]],
    }  # fmt: skip


def _pocket(system: Complex) -> dict[str, Tensor]:
    n = system.n_ligand
    numbers, node = system.numbers[n:].cpu(), system.node[n:].cpu()
    heavy = (numbers > 1).nonzero()[:, 0]
    at, owner = system.pocket_positions.cpu().float()[heavy], node[heavy, RESIDUE]
    size = int(owner.max()) + 1
    count = torch.bincount(owner, minlength=size).clamp_min(1).float()
    kind = torch.zeros(size, dtype=torch.long).index_put((owner,), node[heavy, KIND])
    return {
        "wall": properties(numbers[heavy]).float(), "wall_codes": torch.stack([node[heavy, KIND], node[heavy, 2].clamp(0, 16)], 1),
        "wall_real": torch.ones(len(heavy), dtype=torch.bool), "wall_at": at, "owner": owner, "residue_kind": kind,
        "residue_real": torch.bincount(owner, minlength=size) > 0,
        "residue_at": torch.zeros(size, 3).index_add(0, owner, at) / count[:, None],
    }  # fmt: skip


def _padded(parts: list[Tensor]) -> Tensor:
    """Stacked, each filled up with zeros at the end of every axis."""
    shape = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    found = parts[0].new_zeros(len(parts), *shape)
    for row, part in zip(found, parts, strict=True):
        row[tuple(slice(0, k) for k in part.shape)] = part
    return found
