"""MMFF94 of RDKit as a reduced energy, and what it says of the widths of bonds and angles."""

from __future__ import annotations

import math
from concurrent.futures import Executor

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers as forcefields
from torch import Tensor

from dig_core.errors import IncompatibleError
from dig_core.gradients import with_gradients
from dig_core.types import Geometry

from .check import check_parameters

__all__ = ["GAS_CONSTANT", "VARIANTS", "MMFFEnergy", "reduced_unit", "thermal_widths"]

GAS_CONSTANT = 1.380649e-23 * 6.02214076e23 / 4184
"""kcal/mol/K: the SI's exact Boltzmann and Avogadro constants, and the thermochemical calorie."""

VARIANTS = ("MMFF94", "MMFF94s")
_MILLIDYNE = 143.9325  # kcal/mol/Angstrom^2 in a mdyn/Angstrom, and per rad^2 in a mdyn Angstrom/rad^2, as MMFF94 rounds it
_FAR = 1e6  # Angstrom: no cutoff
_ONCE = "MMFFEnergy is differentiable only once: RDKit has no second derivatives."


class MMFFEnergy:
    """u = E / kT of MMFF94s or MMFF94 (Halgren, doi:10.1002/(SICI)1096-987X(199604)17:5/6<490::AID-JCC1>3.0.CO;2-P), without cutoff.

    Calling it with a Geometry (N atoms, Angstrom) gives u (B,) float64, differentiable once. A structure whose positions, energy or
    forces are not finite has u = +inf and zero gradient. Pickles hold the molecule; the force field is built where it is first needed.
    Not to be shared by threads.

    Parameters
    ----------
    mol: with all hydrogens; bonds and formal charges decide the atom types. Its conformers are not read.
    temperature: K. variant: ``"MMFF94s"``, whose delocalised nitrogens are planar on average, or ``"MMFF94"``.
    executor: any ``concurrent.futures.Executor``, given ``chunk`` structures a task. Worth it for large molecules only: one of 33 atoms
        takes 0.05 ms.

    Attributes
    ----------
    n_evaluations, n_failures: structures evaluated so far, and those among them with u = +inf.

    Raises
    ------
    UnsupportedError: an atom that MMFF94 has no parameters for. IncompatibleError: an unknown variant, no valid temperature.
    """

    def __init__(
        self, mol: Chem.Mol, temperature: float, *, variant: str = "MMFF94s", executor: Executor | None = None, chunk: int = 256
    ):
        if variant not in VARIANTS:
            raise IncompatibleError(f"expected a variant among {', '.join(VARIANTS)}, got {variant!r}.")
        if chunk < 1:
            raise IncompatibleError(f"expected at least 1 structure a task, got chunk = {chunk}.")
        check_parameters(mol)
        self.mol, self.variant, self.temperature = Chem.Mol(mol), variant, float(temperature)
        self.kt, self.n_atoms = reduced_unit(temperature), mol.GetNumAtoms()
        self.executor, self.chunk = executor, int(chunk)
        self.n_evaluations = self.n_failures = 0
        self._field: _Field | None = None

    def __call__(self, geometry: Geometry) -> Tensor:
        """u (B,) float64 of (B, N, 3) Angstrom. IncompatibleError if N is not the molecule's, or if there is a cell."""
        positions = geometry.positions
        if positions.requires_grad and torch.is_grad_enabled():
            self._check(geometry)
            return with_gradients(lambda x, _: (*self.energy_and_gradient(x), None), geometry, _ONCE)
        return self._evaluate(geometry, gradient=False)[0].to(positions.device)

    def energy_and_gradient(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """u (B,) float64 and du/dx (B, N, 3) float64, 1/Angstrom, without autograd. Raises as a call does."""
        u, gradient = self._evaluate(geometry, gradient=True)
        return u.to(geometry.positions.device), gradient.to(geometry.positions.device)

    def _evaluate(self, geometry: Geometry, *, gradient: bool) -> tuple[Tensor, Tensor]:
        """u (B,) and du/dx (B, N, 3) 1/Angstrom; the second is zero throughout unless ``gradient``."""
        self._check(geometry)
        flat = geometry.positions.detach().to("cpu", torch.float64).flatten(1).contiguous().numpy()
        usable = np.flatnonzero(np.isfinite(flat).all(1))
        energies, slopes = np.full(len(flat), np.inf), np.zeros_like(flat)
        if len(usable):
            energies[usable], found = self._all(flat[usable], gradient)
            if gradient:
                slopes[usable] = found
        failed = ~(np.isfinite(energies) & np.isfinite(slopes).all(1))
        energies[failed], slopes[failed] = np.inf, 0.0
        self.n_evaluations += len(energies)
        self.n_failures += int(failed.sum())
        return torch.from_numpy(energies / self.kt), torch.from_numpy(slopes / self.kt).reshape(geometry.positions.shape)

    def _all(self, rows: np.ndarray, gradient: bool) -> tuple[np.ndarray, np.ndarray]:
        """kcal/mol (B,) and kcal/mol/Angstrom (B, 3N) of finite rows (B, 3N)."""
        if self.executor is None or len(rows) <= self.chunk:
            return self._here(rows, gradient)
        parts = [rows[low : low + self.chunk] for low in range(0, len(rows), self.chunk)]
        done = list(self.executor.map(_in_task, [self] * len(parts), parts, [gradient] * len(parts)))
        return np.concatenate([e for e, _ in done]), np.concatenate([g for _, g in done])

    def _here(self, rows: np.ndarray, gradient: bool) -> tuple[np.ndarray, np.ndarray]:
        if self._field is None:
            self._field = _Field(self.mol, self.variant)
        return self._field.evaluate(rows, gradient)

    def _check(self, geometry: Geometry) -> None:
        shape = tuple(geometry.positions.shape)
        if len(shape) != 3 or shape[1:] != (self.n_atoms, 3):
            raise IncompatibleError(f"expected positions (B, {self.n_atoms}, 3) for this molecule, got {shape}.")
        if geometry.cell is not None:
            raise IncompatibleError("expected a free molecule, got a geometry with a cell. Pass Geometry(positions).")

    def __getstate__(self) -> dict:
        # Force fields and executors cannot be pickled.
        return {**self.__dict__, "_field": None, "executor": None}


def reduced_unit(temperature: float) -> float:
    """kT in kcal/mol. IncompatibleError unless ``temperature`` (K) is finite and positive."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise IncompatibleError(f"expected a positive temperature in K, got {temperature}.")
    return GAS_CONSTANT * float(temperature)


def thermal_widths(mol: Chem.Mol, temperature: float, variant: str = "MMFF94s") -> dict[tuple[int, ...], tuple[float, float]]:
    """What MMFF94 says of bonds and angles: atoms -> (rest value, thermal width sqrt(kT/k)), Angstrom or radians.

    The ``standards`` of :meth:`dig_core.coordinates.Internal.from_reference`. Stretching constants are in mdyn/Angstrom, bending ones
    in mdyn Angstrom/rad^2; 143.9325 kcal/mol make one of either.
    """
    check_parameters(mol)
    mol = Chem.Mol(mol)  # a copy, on which RDKit leaves MMFF's idea of aromatic bonds
    kt, properties = reduced_unit(temperature), forcefields.MMFFGetMoleculeProperties(mol, mmffVariant=variant)
    found: dict[tuple[int, ...], tuple[float, float]] = {}
    for bond in mol.GetBonds():
        pair = (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
        _, k, rest = properties.GetMMFFBondStretchParams(mol, *pair)
        found[pair] = (rest, math.sqrt(kt / (k * _MILLIDYNE)))
    for centre in mol.GetAtoms():
        around = [a.GetIdx() for a in centre.GetNeighbors()]
        for n, i in enumerate(around):
            for j in around[n + 1 :]:
                known = properties.GetMMFFAngleBendParams(mol, i, centre.GetIdx(), j)
                if known:
                    _, k, rest = known
                    found[(i, centre.GetIdx(), j)] = (math.radians(rest), math.sqrt(kt / (k * _MILLIDYNE)))
    return found


def _in_task(energy: MMFFEnergy, rows: np.ndarray, gradient: bool) -> tuple[np.ndarray, np.ndarray]:
    """In a worker; a thread must not share a force field, and takes one of its own."""
    fresh = object.__new__(MMFFEnergy)
    fresh.__dict__.update(energy.__getstate__())
    return fresh._here(rows, gradient)


class _Field:
    """RDKit's force field of one molecule, and the conformer that it reads its positions from."""

    def __init__(self, mol: Chem.Mol, variant: str):
        self.mol = Chem.Mol(mol)
        self.mol.RemoveAllConformers()
        self.mol.AddConformer(Chem.Conformer(mol.GetNumAtoms()))
        self.conformer = self.mol.GetConformer()
        properties = forcefields.MMFFGetMoleculeProperties(self.mol, mmffVariant=variant)
        self.field = forcefields.MMFFGetMoleculeForceField(self.mol, properties, nonBondedThresh=_FAR)

    def evaluate(self, rows: np.ndarray, gradient: bool) -> tuple[np.ndarray, np.ndarray]:
        """kcal/mol (B,) and kcal/mol/Angstrom (B, 3N or 0) of finite rows (B, 3N)."""
        energies, slopes = np.empty(len(rows)), np.zeros((len(rows), rows.shape[1] if gradient else 0))
        for i, frame in enumerate(rows.reshape(len(rows), -1, 3)):
            self.conformer.SetPositions(frame)
            # Forgets the distances of the structure before, which CalcEnergy(positions) and CalcGrad(positions) would go on using.
            self.field.Initialize()
            energies[i] = self.field.CalcEnergy()
            if gradient:
                slopes[i] = self.field.CalcGrad()
        return energies, slopes
