"""An OpenMM System as a torch module: batched, on any device, differentiable twice; checked against OpenMM when built."""

from __future__ import annotations

import math

import numpy as np
import openmm
import torch
from openmm import unit
from torch import Tensor, nn

from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.types import Geometry

from .convert import COULOMB, NM_PER_ANGSTROM, check_supported, helix, kelvin, reduced_unit, to_geometry
from .energy import OpenMMEnergy
from .terms import Angles, Bonds, Born, Nonbonded, Torsions

__all__ = ["TorchPotential"]

# Largest deviations from OpenMM let through: kJ/mol (or kJ/mol/nm) plus a part of the largest energy (or force).
_TOLERANCE = {torch.float64: (1e-3, 1e-9), torch.float32: (1e-2, 2e-5)}


class TorchPotential(nn.Module):
    """u = E / kT of an OpenMM System, evaluated by torch for a whole batch at once, differentiable twice.

    Covers HarmonicBondForce, HarmonicAngleForce, PeriodicTorsionForce, NonbondedForce and GBSAOBCForce without cutoffs;
    CMMotionRemover has no energy. A conformation with NaN, infinite or coincident positions has u = +inf and zero gradient.
    Parameters of the force field are buffers: ``.to(device)`` moves them. Inside, lengths are nm, energies kJ/mol, and
    the batch is the last dimension. The cost of a conformation grows with the square of the number of atoms.
    """

    def __init__(self, terms: list[nn.Module], n_atoms: int, temperature: float, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.n_atoms, self.temperature = n_atoms, temperature
        self.terms = nn.ModuleList(terms)
        self.register_buffer("_pairs", torch.triu_indices(n_atoms, n_atoms, 1))
        self.register_buffer("_harmless", torch.from_numpy(helix(n_atoms))[:, :, None])
        self.to(dtype)

    @classmethod
    def from_system(
        cls, system: openmm.System, temperature, *, dtype: torch.dtype = torch.float64, check_positions=None
    ) -> TorchPotential:
        """Read a System's parameters and check energies and forces against OpenMM's Reference platform.

        Parameters
        ----------
        temperature: K or a Quantity.
        dtype: of the computation, float64 or float32 (about 1e-3 kJ/mol on relaxed structures).
        check_positions: as in :func:`~dig_plugins.openmm.convert.to_geometry`, nm; the check also uses perturbed copies of
            the first frame. If None, the atoms are put on a helix: less telling, since clashes dominate there.

        Raises
        ------
        UnsupportedError: a force or an option of a force that is not covered (all are listed), what ``check_supported``
        refuses, or energies that differ from OpenMM's. In each case OpenMMEnergy is the alternative.
        """
        if dtype not in _TOLERANCE:
            raise IncompatibleError(f"expected float64 or float32, got {dtype}.")
        check_supported(system)
        refused = [reason for force in system.getForces() if (reason := _refusal(force))]
        if refused:
            raise UnsupportedError(
                f"TorchPotential does not cover: {'; '.join(refused)}. Use OpenMMEnergy, which has every force but is "
                "differentiable only once."
            )
        n = system.getNumParticles()
        terms = [_READERS[kind](force, n) for force in system.getForces() if (kind := type(force).__name__) in _READERS]
        potential = cls(terms, n, kelvin(temperature), dtype)
        _compare(potential, system, helix(n) if check_positions is None else check_positions)
        return potential

    def forward(self, geometry: Geometry) -> Tensor:
        """u (B,) float64 of positions (B, N, 3) Angstrom; IncompatibleError if N is another, or if there is a cell."""
        positions = geometry.positions
        if positions.dim() != 3 or tuple(positions.shape[1:]) != (self.n_atoms, 3) or geometry.cell is not None:
            raise IncompatibleError(
                f"expected a free molecule's positions (B, {self.n_atoms}, 3), got {tuple(positions.shape)}"
                f"{'' if geometry.cell is None else ' and a cell'}."
            )
        # u does not depend on where the molecule is, so the centroid needs no derivative; centred positions survive float32.
        centred = (positions - positions.detach().mean(1, keepdim=True)) * NM_PER_ANGSTROM
        x = centred.permute(1, 2, 0).to(self._harmless.dtype).contiguous()
        r2 = self._squared(x)
        # Below the floor the second derivative of r^-12 overflows, as products of lengths do above its inverse.
        floor = torch.finfo(x.dtype).max ** (-1 / 8)
        ok = ((r2 > floor) & (r2 < 1 / floor)).all(0)
        if not bool(ok.all()):
            # 0 * inf is NaN: derivatives stay clean only if the bad structures never enter.
            x = torch.where(ok, x, self._harmless)
            r2 = self._squared(x)
        r = r2.sqrt()
        energy = sum((term(x, r) for term in self.terms), x.new_zeros(x.shape[-1]))
        return torch.where(ok & energy.isfinite(), energy.double() / reduced_unit(self.temperature), torch.inf)

    def _squared(self, x: Tensor) -> Tensor:
        """Squared distances (P, B) of all pairs i < j, in the order of ``np.triu_indices``."""
        d = x.index_select(0, self._pairs[0]) - x.index_select(0, self._pairs[1])
        return (d * d).sum(1)


def _read_bonds(force: openmm.HarmonicBondForce, n: int) -> nn.Module:
    rows = [_plain(force.getBondParameters(i)) for i in range(force.getNumBonds())]
    i, j, length, k = _columns(rows, 4)
    return Bonds(pair=_pair(n, i, j), length=length[:, None], half_k=k / 2)


def _read_angles(force: openmm.HarmonicAngleForce, n: int) -> nn.Module:
    rows = [_plain(force.getAngleParameters(i)) for i in range(force.getNumAngles())]
    i, j, m, angle, k = _columns(rows, 5)
    sides = np.stack([_pair(n, i, j), _pair(n, j, m), _pair(n, i, m)])
    return Angles(sides=sides, angle=angle[:, None], half_k=k / 2)


def _read_torsions(force: openmm.PeriodicTorsionForce, n: int) -> nn.Module:
    rows = [_plain(force.getTorsionParameters(i)) for i in range(force.getNumTorsions())]
    *atoms, periodicity, phase, k = _columns(rows, 7)
    quads, which = np.unique(np.stack(atoms).astype(int), axis=1, return_inverse=True)
    return Torsions(quads=quads, which=which.reshape(-1), periodicity=periodicity[:, None], phase=phase[:, None], k=k)


def _read_nonbonded(force: openmm.NonbondedForce, n: int) -> nn.Module:
    charge, sigma, epsilon = _columns([_plain(force.getParticleParameters(i)) for i in range(n)], 3)
    i, j = np.triu_indices(n, 1)
    charge, sigma, epsilon = charge[i] * charge[j], (sigma[i] + sigma[j]) / 2, np.sqrt(epsilon[i] * epsilon[j])
    rows = [_plain(force.getExceptionParameters(i)) for i in range(force.getNumExceptions())]
    first, second, *exception = _columns(rows, 5)
    pair = _pair(n, first, second)
    charge[pair], sigma[pair], epsilon[pair] = exception
    return Nonbonded(charge=COULOMB * charge, repulsion=4 * epsilon * sigma**12, dispersion=4 * epsilon * sigma**6)


def _read_born(force: openmm.GBSAOBCForce, n: int) -> nn.Module:
    charge, radius, scale = _columns([_plain(force.getParticleParameters(i)) for i in range(n)], 3)
    i, j = np.triu_indices(n, 1)
    core = radius - 0.009  # the dielectric offset, nm
    strength = -COULOMB * (1 / force.getSoluteDielectric() - 1 / force.getSolventDielectric())
    tension = force.getSurfaceAreaEnergy().value_in_unit(unit.kilojoule_per_mole / unit.nanometer**2)
    return Born(
        pairs=np.stack([i, j]),
        radius=radius[:, None],
        core=core[:, None],
        scaled=(scale * core)[:, None],
        cross=strength * charge[i] * charge[j],
        self_energy=strength * charge**2 / 2,
        surface=4 * math.pi * tension * (radius + 0.14) ** 2,  # the probe's radius, nm
    )


_READERS = {
    "HarmonicBondForce": _read_bonds,
    "HarmonicAngleForce": _read_angles,
    "PeriodicTorsionForce": _read_torsions,
    "NonbondedForce": _read_nonbonded,
    "GBSAOBCForce": _read_born,
}


def _plain(parameters) -> list[float]:
    return [p.value_in_unit_system(unit.md_unit_system) if unit.is_quantity(p) else p for p in parameters]


def _columns(rows: list[list[float]], width: int) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, width).T.copy()


def _pair(n: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Where the pair (i, j) stands in ``np.triu_indices(n, 1)``."""
    low, high = np.minimum(i, j).astype(int), np.maximum(i, j).astype(int)
    return low * n - low * (low + 1) // 2 + high - low - 1


def _refusal(force: openmm.Force) -> str | None:
    kind = type(force).__name__
    if kind not in _READERS:
        return None if kind == "CMMotionRemover" else kind
    if kind in ("NonbondedForce", "GBSAOBCForce") and force.getNonbondedMethod() != force.NoCutoff:
        return f"{kind} with a cutoff (only NoCutoff)"
    if kind == "NonbondedForce" and force.getNumParticleParameterOffsets() + force.getNumExceptionParameterOffsets():
        return f"{kind} with parameter offsets"
    return None


def _compare(potential: TorchPotential, system: openmm.System, positions) -> None:
    """Energies and forces against the Reference platform, at ``positions`` and perturbed copies of the first frame."""
    frames = to_geometry(positions).positions
    rng = np.random.default_rng(0)
    noise = [torch.from_numpy(rng.normal(0, sd, frames[:1].shape)) for sd in (0.02, 0.1, 0.3)]
    x = torch.cat([frames, *(frames[:1] + shift for shift in noise)])
    expected, expected_gradient = OpenMMEnergy(system, potential.temperature, platform="Reference").energy_and_gradient(
        Geometry(x)
    )
    u = potential(Geometry(x.requires_grad_(True)))
    (gradient,) = torch.autograd.grad(u.sum(), x)
    kt = reduced_unit(potential.temperature)
    absolute, relative = _TOLERANCE[potential._harmless.dtype]
    for found, wanted, to_unit, name in (
        (u.detach(), expected, kt, "energies differ from OpenMM's by {:.3g} kJ/mol"),
        (gradient, expected_gradient, kt / NM_PER_ANGSTROM, "forces differ from OpenMM's by {:.3g} kJ/mol/nm"),
    ):
        known = wanted.isfinite()
        error = float(((found - wanted)[known]).abs().max()) * to_unit if known.any() else math.inf
        if not error <= absolute + relative * float(wanted[known].abs().max()) * to_unit:
            raise UnsupportedError(
                f"TorchPotential's {name.format(error)}, where at most {absolute:g} is expected: the System holds something "
                "it does not read. Use OpenMMEnergy, and report the System."
            )
