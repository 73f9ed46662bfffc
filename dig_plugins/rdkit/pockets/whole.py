"""Energies of a ligand and its pocket together: MMFF94 of both, tethers that hold a flexible pocket, a pocket that stays where it is."""

from __future__ import annotations

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers as forcefields
from torch import Tensor

from dig_core.energy import Energy
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.gradients import energy_and_gradient, with_gradients
from dig_core.types import Geometry

from ..energy import reduced_unit
from .flexible import Flexible
from .pocket import Pocket

__all__ = ["ComplexEnergy", "Fixed", "Tethered", "combined", "field_of"]

_FAR = 1e6  # Angstrom: no cutoff
_ONCE = "MMFF94 is differentiable only once: RDKit has no second derivatives."


class ComplexEnergy:
    """u = E / kT of MMFF94(s) of a ligand and its pocket, every pair of atoms, all of them free to move, no cutoff, vacuum.

    Of a Geometry (B, L + P, 3), the ligand first, u (B,) float64, differentiable once, +inf where it fails. A structure of 700 atoms takes
    some ten milliseconds; while the pocket stays :class:`.energy.PocketEnergy` says the same but for a constant, in less.

    Raises UnsupportedError where MMFF94 has no parameters for ligand or pocket.
    """

    def __init__(self, ligand: Chem.Mol, pocket: Pocket, temperature: float = 300.0, *, variant: str = "MMFF94s"):
        self.mol, self.variant = combined(ligand, pocket), variant
        self.temperature, self.kt, self.n_atoms = float(temperature), reduced_unit(temperature), self.mol.GetNumAtoms()
        self.field = field_of(self.mol, self.variant)

    def __call__(self, geometry: Geometry) -> Tensor:
        if geometry.positions.requires_grad and torch.is_grad_enabled():
            return with_gradients(lambda x, _: (*self.energy_and_gradient(x), None), geometry, _ONCE)
        return self._evaluate(geometry, False)[0]

    def energy_and_gradient(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """u (B,) and du/dx (B, L + P, 3) float64, 1/Angstrom; without autograd."""
        return self._evaluate(geometry, True)

    def _evaluate(self, geometry: Geometry, gradient: bool) -> tuple[Tensor, Tensor]:
        positions = geometry.positions.detach().to("cpu", torch.float64).numpy()
        if positions.shape[1:] != (self.n_atoms, 3) or geometry.cell is not None:
            raise IncompatibleError(f"expected positions (B, {self.n_atoms}, 3) without a cell, ligand first, got {positions.shape}.")
        u, slopes = np.full(len(positions), np.inf), np.zeros((len(positions), 3 * self.n_atoms))
        for k in np.flatnonzero(np.isfinite(positions).all((1, 2))):
            self.mol.GetConformer().SetPositions(np.ascontiguousarray(positions[k]))
            self.field.Initialize()  # forgets the distances of the structure before
            u[k] = self.field.CalcEnergy() / self.kt
            if gradient:
                slopes[k] = np.asarray(self.field.CalcGrad()) / self.kt
        failed = ~(np.isfinite(u) & np.isfinite(slopes).all(1))
        u[failed], slopes[failed] = np.inf, 0.0
        return torch.from_numpy(u), torch.from_numpy(slopes).reshape(positions.shape)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "field": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.field = field_of(self.mol, self.variant)


class Tethered:
    """An energy of ligand and pocket (B, L + P, 3) plus what holds the flexible atoms: nothing up to ``limit`` from where the file has
    them, ``stiffness`` (r - limit)^2 / 2 beyond. It is part of the energy that is sampled."""

    def __init__(self, energy: Energy, flexible: Flexible, pocket: Pocket, temperature: float):
        flexible.check(pocket)
        self.energy, self.limit, self.stiffness = energy, flexible.limit, flexible.stiffness / reduced_unit(temperature)
        self.home = torch.from_numpy(pocket.positions[flexible.atoms])
        self.columns = torch.from_numpy(flexible.atoms) - len(pocket.positions)  # counted from the end, whatever the ligand

    def __call__(self, geometry: Geometry) -> Tensor:
        return self.energy(geometry) + self._tethers(geometry.positions)[0]

    def energy_and_gradient(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """u (B,) and du/dx (B, L + P, 3) float64, 1/Angstrom; without autograd."""
        u, gradient = energy_and_gradient(self.energy, geometry)
        more, pull = self._tethers(geometry.positions.detach())
        gradient = gradient.clone()
        gradient[:, self.columns] += pull
        return u + more, gradient

    def _tethers(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        gap = positions[:, self.columns].double() - self.home
        r = gap.square().sum(-1).clamp_min(1e-24).sqrt()
        beyond = (r - self.limit).clamp_min(0.0)
        return 0.5 * self.stiffness * beyond.square().sum(1), self.stiffness * (beyond / r)[..., None] * gap


class Fixed:
    """An energy of ligand and pocket (B, L + P, 3) as one of the ligand alone (B, L, 3), the pocket's atoms at ``pocket`` (P, 3)."""

    def __init__(self, energy: Energy, pocket: Tensor):
        self.energy, self.pocket = energy, pocket

    def __call__(self, geometry: Geometry) -> Tensor:
        return self.energy(self._whole(geometry))

    def energy_and_gradient(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """u (B,) and du/dx (B, L, 3) float64, 1/Angstrom; without autograd."""
        u, gradient = energy_and_gradient(self.energy, self._whole(geometry))
        return u, gradient[:, : geometry.positions.shape[1]]

    def _whole(self, geometry: Geometry) -> Geometry:
        positions = geometry.positions.double()
        return Geometry(torch.cat([positions, self.pocket.expand(len(positions), -1, -1)], 1))


def combined(ligand: Chem.Mol, pocket: Pocket) -> Chem.Mol:
    """Both as one molecule with a conformer at nought, the ligand first; UnsupportedError where MMFF94 does not know an atom."""
    parts = [Chem.Mol(mol) for mol in (ligand, pocket.mol)]
    for part in parts:
        part.RemoveAllConformers()
    both = Chem.CombineMols(*parts)
    Chem.SanitizeMol(both)
    if not forcefields.MMFFHasAllMoleculeParams(both):
        raise UnsupportedError("MMFF94 has no parameters for an atom of the ligand or of the pocket: leave out ions and cofactors.")
    both.AddConformer(Chem.Conformer(both.GetNumAtoms()))
    return both


def field_of(both: Chem.Mol, variant: str):
    """RDKit's force field of the molecule, which reads positions from its conformer, with interactions between fragments."""
    known = forcefields.MMFFGetMoleculeProperties(Chem.Mol(both), mmffVariant=variant)
    return forcefields.MMFFGetMoleculeForceField(both, known, nonBondedThresh=_FAR, ignoreInterfragInteractions=False)
