"""MMFF94 of a ligand in a pocket: its own energy by RDKit, its interaction with the pocket's atoms in batches."""

from __future__ import annotations

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers as forcefields
from torch import Tensor

from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.gradients import with_gradients
from dig_core.types import Geometry

from ..energy import MMFFEnergy
from .pocket import Pocket

__all__ = ["PocketEnergy", "interaction"]

_ONCE = "PocketEnergy is differentiable only once: RDKit has no second derivatives."
_COULOMB = 332.0716  # kcal Angstrom/mol/e^2, as MMFF94 rounds it
_BUFFER = 0.05  # Angstrom, of the buffered Coulomb law


class PocketEnergy:
    """u = E / kT of MMFF94(s) of a ligand in a fixed pocket, without the pocket's own energy, no cutoff, dielectric constant 1.

    Calling it with a Geometry (B, L + P, 3), the ligand first, or (B, L, 3), the ligand alone where the pocket is as read, gives u (B,)
    float64, differentiable once with respect to the ligand. It differs from RDKit's force field of ligand and pocket together, with
    interactions between fragments, by the pocket's own energy, which is constant.

    Attributes: as of :class:`dig_plugins.rdkit.MMFFEnergy`. Raises UnsupportedError where MMFF94 has no parameters for ligand or pocket.
    """

    def __init__(self, ligand: Chem.Mol, pocket: Pocket, temperature: float = 300.0, *, variant: str = "MMFF94s"):
        self.own = MMFFEnergy(ligand, temperature, variant=variant)
        self.kt, self.variant = self.own.kt, variant
        self.pocket = torch.from_numpy(pocket.positions)
        self.tables = _parameters(ligand, pocket, variant)

    @property
    def n_evaluations(self) -> int:
        return self.own.n_evaluations

    @property
    def n_failures(self) -> int:
        return self.own.n_failures

    def __call__(self, geometry: Geometry) -> Tensor:
        if geometry.positions.requires_grad and torch.is_grad_enabled():
            return with_gradients(lambda x, _: (*self.energy_and_gradient(x), None), geometry, _ONCE)
        ligand, pocket = self._parts(geometry)
        return self.own(Geometry(ligand)) + interaction(ligand, pocket, *self.tables)[0] / self.kt

    def energy_and_gradient(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """u (B,) and du/dx (B, N, 3) float64, 1/Angstrom, zero on the pocket's atoms; without autograd."""
        ligand, pocket = self._parts(geometry)
        u, slope = self.own.energy_and_gradient(Geometry(ligand))
        between, more = interaction(ligand, pocket, *self.tables)
        gradient = torch.zeros_like(geometry.positions, dtype=torch.float64)
        gradient[:, : self.own.n_atoms] = slope + more / self.kt
        return u + between / self.kt, gradient

    def _parts(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        n, p = self.own.n_atoms, len(self.pocket)
        positions = geometry.positions.detach().double()
        if positions.dim() != 3 or positions.shape[1] not in (n, n + p) or geometry.cell is not None:
            shape = tuple(positions.shape)
            raise IncompatibleError(f"expected positions (B, {n}, 3) or (B, {n + p}, 3), ligand first, without a cell, got {shape}.")
        return positions[:, :n], self.pocket if positions.shape[1] == n else positions[:, n:]


def interaction(ligand: Tensor, pocket: Tensor, radius: Tensor, depth: Tensor, charge: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) kcal/mol between atoms (B, L, 3) and (P, 3) or (B, P, 3), and its gradient (B, L, 3): buffered 14-7 and buffered Coulomb.

    ``radius``, ``depth``, ``charge`` (L, P): R* in Angstrom, epsilon in kcal/mol, product of charges. Halgren,
    doi:10.1002/(SICI)1096-987X(199604)17:5/6<520::AID-JCC2>3.0.CO;2-W.
    """
    energies, slopes = [], []
    for x, y in zip(ligand, pocket.expand(len(ligand), -1, -1), strict=True):  # one at a time stays in the processor's cache
        gap = x[:, None] - y
        r = gap.square().sum(-1).sqrt_().clamp_min_(1e-6)
        scaled = r / radius
        near = (scaled + 0.07).reciprocal_().mul_(1.07)
        repulsion = _seventh(near)
        sixth = _sixth(scaled)
        far = (sixth * scaled).add_(0.12).reciprocal_()
        attraction = 1.12 * far - 2
        coulomb = _COULOMB * charge / (r + _BUFFER)
        energies.append((depth * repulsion * attraction + coulomb).sum())
        bend = depth * repulsion * (-7 / 1.07 * near * attraction - 7.84 * sixth * far * far) / radius
        slopes.append((((bend - coulomb / (r + _BUFFER)) / r)[..., None] * gap).sum(1))
    return torch.stack(energies), torch.stack(slopes)


def _sixth(x: Tensor) -> Tensor:
    cube = x * x * x
    return cube * cube


def _seventh(x: Tensor) -> Tensor:
    return _sixth(x) * x


def _parameters(ligand: Chem.Mol, pocket: Pocket, variant: str) -> tuple[Tensor, Tensor, Tensor]:
    """R* (L, P) Angstrom, epsilon (L, P) kcal/mol, products of charges (L, P)."""
    parts = [Chem.Mol(mol) for mol in (ligand, pocket.mol)]
    for part in parts:
        part.RemoveAllConformers()
    both = Chem.CombineMols(*parts)
    Chem.SanitizeMol(both)
    if not forcefields.MMFFHasAllMoleculeParams(pocket.mol):
        raise UnsupportedError("MMFF94 has no parameters for an atom of the pocket: leave out its ions and cofactors.")
    known = forcefields.MMFFGetMoleculeProperties(both, mmffVariant=variant)
    n, total = ligand.GetNumAtoms(), both.GetNumAtoms()
    types = np.array([known.GetMMFFAtomType(i) for i in range(total)])
    charges = torch.tensor([known.GetMMFFPartialCharge(i) for i in range(total)], dtype=torch.float64)
    _, first, inverse = np.unique(types, return_index=True, return_inverse=True)
    pairs = np.zeros((len(first), len(first), 2))
    for a in np.unique(inverse[:n]):
        for b in np.unique(inverse[n:]):
            one, other = int(first[a]), int(first[b])
            if one == other:
                other = int(np.flatnonzero(inverse == b)[-1])
            pairs[a, b] = known.GetMMFFVdWParams(one, other)[2:]
    table = torch.from_numpy(pairs[inverse[:n]][:, inverse[n:]])
    return table[..., 0].contiguous(), table[..., 1].contiguous(), charges[:n, None] * charges[n:]
