"""Which backbones are whole: chains that do not break, alpha carbons that do not clash."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dig_core.errors import IncompatibleError
from dig_core.system.descriptor import Descriptor
from dig_core.system.protein import RESIDUES, residues
from dig_core.types import Geometry

__all__ = ["Validity", "check_backbones"]

_TRANS, _CIS, _PEPTIDE = 3.8, 3.05, 1.329
"""Angstrom: neighbouring alpha carbons of a trans and a cis peptide, and the bond between (Engh and Huber, 1991)."""
_PAIRS = 2**23


class Validity(NamedTuple):
    """Of B backbones, each (B,): how many ``breaks`` between neighbours along the chain and ``clashes`` between other residues;
    the ``neighbour`` distance of alpha carbons and the ``peptide`` bond C-N that are the worst, those furthest from ideal, in
    Angstrom (NaN without neighbours); ``ok``, whether there are no breaks and clashes and all atoms are finite."""

    breaks: Tensor
    clashes: Tensor
    neighbour: Tensor
    peptide: Tensor
    ok: Tensor


def check_backbones(
    geometry: Geometry, descriptor: Descriptor, *, bond: tuple[float, float] = (3.4, 4.2), cis: tuple[float, float] = (2.7, 3.4),
    clash: float = 3.0, peptide: tuple[float, float] = (0.0, math.inf),
) -> Validity:  # fmt: skip
    """:class:`Validity` of structures (B, A, 3) Angstrom.

    Residues that follow each other, by number and chain, are whole with a distance of alpha carbons within ``bond``, before a proline
    also within ``cis``, and a C-N bond within ``peptide``, by default any: what rebuilds atoms from frames leaves it to vary. Any other
    two alpha carbons nearer than ``clash`` are one clash.

    Raises IncompatibleError for another number of atoms, and for bounds out of order.
    """
    if not all(low < high for low, high in (bond, cis, peptide)) or not clash >= 0:
        raise IncompatibleError(f"expected bounds (low, high) and clash >= 0, got {bond}, {cis}, {peptide} and {clash}.")
    known, x = residues(descriptor), geometry.positions.detach().double()
    if x.dim() != 3 or x.shape[1:] != (descriptor.n_atoms, 3):
        raise IncompatibleError(f"expected positions (B, {descriptor.n_atoms}, 3) of this sequence, got {tuple(geometry.positions.shape)}.")
    nitrogen, alpha, carbon = (x[:, known.atoms[:, k]] for k in range(3))
    bonded, proline = known.follows().to(x.device), (known.kind[1:] == RESIDUES.index("P")).to(x.device)
    step, link = (alpha[:, 1:] - alpha[:, :-1]).norm(dim=-1), (nitrogen[:, 1:] - carbon[:, :-1]).norm(dim=-1)
    whole = (_within(step, bond) | (_within(step, cis) & proline)) & _within(link, peptide)
    breaks = (~whole & bonded).sum(1)
    gap = (step - _TRANS).abs().minimum(torch.where(proline, (step - _CIS).abs(), math.inf))
    clashes = _clashes(alpha, bonded, clash)
    finite = x.isfinite().flatten(1).all(1)
    return Validity(
        breaks, clashes, _worst(step, gap, bonded), _worst(link, (link - _PEPTIDE).abs(), bonded), finite & (breaks + clashes == 0)
    )


def _within(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    return (x >= bounds[0]) & (x <= bounds[1])


def _worst(x: Tensor, gap: Tensor, bonded: Tensor) -> Tensor:
    """(B,) the entry of ``x`` (B, N - 1) of the largest ``gap`` among those ``bonded``; one that is not finite is the worst."""
    if not bool(bonded.any()):
        return x.new_full((len(x),), math.nan)
    gap = gap[:, bonded].nan_to_num(math.inf)
    return x[:, bonded].gather(1, gap.argmax(1, keepdim=True))[:, 0]


def _clashes(alpha: Tensor, bonded: Tensor, least: float) -> Tensor:
    """(B,) pairs of alpha carbons (B, N, 3), neighbours apart, that are not ``least`` Angstrom from each other."""
    n = alpha.shape[1]
    asked = torch.ones(n, n, dtype=torch.bool, device=alpha.device).triu(1)
    asked[torch.arange(n - 1), torch.arange(1, n)] = ~bonded
    found = [
        (~(torch.cdist(part, part, compute_mode="donot_use_mm_for_euclid_dist") >= least) & asked).sum((1, 2))
        for part in alpha.split(max(1, _PAIRS // n**2))
    ]
    return torch.cat(found) if found else alpha.new_zeros(0, dtype=torch.long)
