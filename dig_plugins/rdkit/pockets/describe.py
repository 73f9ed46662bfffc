"""A ligand in a pocket as a descriptor: internal coordinates whitened by MMFF94's second derivatives, which closes rings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers as forcefields
from torch import Tensor

from dig_core.coordinates import Internal
from dig_core.coordinates.complex import Complex, bind
from dig_core.errors import IncompatibleError
from dig_core.types import Geometry

from ..check import MAX_ATOMS, check_molecule, check_parameters, label
from ..convert import describe, embed, to_geometry, with_conformers
from ..coordinates import internal_coordinates
from ..energy import MMFFEnergy, reduced_unit
from ..ensemble import torsion_states, torsions_of
from .pocket import Pocket

__all__ = ["Form", "check_place", "describe_complex", "overlaps", "ring_forms", "ring_torsions"]

_STEP = 1e-3  # Angstrom, or widths, of numerical derivatives
_SOFTEST = 0.1  # smallest second derivative that counts, kT a squared width
_TAKEN = 3  # conformers whose second derivatives are averaged


@dataclass(frozen=True)
class Form:
    """A ligand in one conformation of its rings: internal coordinates that hold there, the structure they were made from, a share of poses.

    ``states`` (R,): the third of the turn that each torsion of a ring is in, see :func:`dig_plugins.rdkit.torsion_states`.
    """

    internal: Internal
    reference: Chem.Mol
    states: tuple[int, ...]
    share: float


def describe_complex(ligand: Chem.Mol, pocket: Pocket, form: Form) -> Complex:
    """Descriptor of ``ligand`` in ``pocket``; nothing of it depends on where the ligand's own structure stands or how it is folded."""
    rings = ligand.GetRingInfo()
    sizes = [min((len(r) for r in rings.AtomRings() if a in r), default=0) for a in range(ligand.GetNumAtoms())]
    aromatic = [a.GetIsAromatic() for a in ligand.GetAtoms()]
    free = describe(form.reference, max_atoms=ligand.GetNumAtoms())
    return bind(free, form.internal, pocket.atoms(), torch.tensor(sizes), torch.tensor(aromatic))


def ring_forms(
    mol: Chem.Mol, *, temperature: float = 300.0, variant: str = "MMFF94s", conformers: int = 16, most: int = 4, seed: int = 0,
    max_atoms: int = MAX_ATOMS,
) -> list[Form]:  # fmt: skip
    """Up to ``most`` conformations of a molecule's rings, the lowest in energy, each with internal coordinates.

    Bonds, angles and the torsions of rings are standardised by the covariance that MMFF94's second derivatives give at minima, at fixed
    torsions, plus that of the form's minima among each other: independent normal values then close rings, and are about as strained as
    at ``temperature`` K. Shares are those of a Boltzmann law at twice that temperature, of the lowest minima.

    Raises as :func:`dig_plugins.rdkit.describe` and :func:`dig_plugins.rdkit.embed`.
    """
    check_molecule(mol, max_atoms)
    check_parameters(mol)
    several = embed(mol, conformers, seed=seed)
    energies = np.array([e for _, e in forcefields.MMFFOptimizeMoleculeConfs(several, mmffVariant=variant, maxIters=2000)])
    states, positions = torsion_states(several, ring_torsions(mol)), to_geometry(several).positions
    order = np.argsort(energies, kind="stable")
    groups: dict[tuple[int, ...], list[int]] = {}
    for k in order:
        groups.setdefault(tuple(states[k].tolist()), []).append(int(k))
    taken = list(groups.items())[:most]
    lowest = np.array([energies[members[0]] for _, members in taken])
    share = np.exp(-(lowest - lowest.min()) / reduced_unit(2 * temperature))
    energy, found = MMFFEnergy(mol, temperature, variant=variant), []
    for (state, members), part in zip(taken, share / share.sum(), strict=True):
        minima = Geometry(positions[members])
        reference = with_conformers(mol, Geometry(minima.positions[:1]))
        found.append(Form(_coordinates(reference, minima, energy), reference, state, float(part)))
    return found


def ring_torsions(mol: Chem.Mol) -> list[tuple[int, int, int, int]]:
    """Those torsions of :func:`dig_plugins.rdkit.torsions_of` that are of rings."""
    return [t for t in torsions_of(mol) if mol.GetBondBetweenAtoms(t[1], t[2]).IsInRing()]


def _coordinates(reference: Chem.Mol, minima: Geometry, energy: MMFFEnergy) -> Internal:
    internal = internal_coordinates(reference, minima, energy.temperature, energy.variant)
    state, _ = internal.encode(minima, None)  # type: ignore[arg-type]
    taken = range(min(_TAKEN, len(minima.positions)))
    inner = torch.stack([_covariance(internal, {n: x[k : k + 1] for n, x in state.items()}, energy) for k in taken])
    shape = state["shape"]
    gap = shape - shape.mean(0)
    values, vectors = torch.linalg.eigh(inner.mean(0) + gap.T @ gap / len(shape))
    whitening = vectors @ torch.diag(values.clamp_min(1e-8) ** -0.5) @ vectors.T
    return Internal(internal.zmatrix, internal.centre + shape.mean(0) * internal.width, internal.width, whitening)


def _covariance(internal: Internal, state: dict[str, Tensor], energy: MMFFEnergy) -> Tensor:
    """(S, S) of the shape at a minimum, torsions held, in widths: the inverse of the energy's second derivatives."""
    size = state["shape"].shape[1]
    moves = torch.cat([_STEP * torch.eye(size, dtype=torch.float64), -_STEP * torch.eye(size, dtype=torch.float64)])
    moved = {"shape": state["shape"] + moves, "torsion": state["torsion"].expand(2 * size, -1)}
    # Moved atoms are measured against a rigid frame of their own: the energy does not see it.
    x = internal.decode(moved, None).positions.flatten(1)  # type: ignore[arg-type]
    slope = (x[:size] - x[size:]) / (2 * _STEP)
    here = internal.decode(state, None).positions  # type: ignore[arg-type]
    n = here.shape[1] * 3
    steps = torch.cat([_STEP * torch.eye(n, dtype=torch.float64), -_STEP * torch.eye(n, dtype=torch.float64)]).view(2 * n, -1, 3)
    _, gradient = energy.energy_and_gradient(Geometry(here + steps))
    hessian = (gradient[:n] - gradient[n:]).flatten(1) / (2 * _STEP)
    precision = slope @ (0.5 * (hessian + hessian.T)) @ slope.T
    values, vectors = torch.linalg.eigh(precision)
    return vectors @ torch.diag(1 / values.clamp_min(_SOFTEST)) @ vectors.T


def overlaps(positions: Tensor, ligand: Chem.Mol, pocket: Pocket, closest: float = 2.2) -> list[tuple[str, str, float]]:
    """Heavy atoms of the ligand (L, 3) and of the pocket that are nearer than ``closest`` Angstrom: both, and how near."""
    heavy = [a.GetIdx() for a in ligand.GetAtoms() if a.GetAtomicNum() > 1]
    others = np.flatnonzero(pocket.heavy)
    distance = np.linalg.norm(positions.numpy()[heavy][:, None] - pocket.positions[others], axis=2)
    found = []
    for i, j in zip(*np.nonzero(distance < closest), strict=True):
        where = f"{pocket.labels[pocket.residue[others[j]]]} {label(pocket.mol, int(others[j]))}"
        found.append((label(ligand, heavy[i]), where, float(distance[i, j])))
    return found


def check_place(ligand: Chem.Mol, pocket: Pocket) -> None:
    """IncompatibleError where the ligand's own structure does not stand in the pocket: another frame, most often."""
    positions = to_geometry(ligand).positions[0].numpy()
    heavy = [a.GetIdx() for a in ligand.GetAtoms() if a.GetAtomicNum() > 1]
    distance = np.linalg.norm(positions[heavy][:, None] - pocket.positions[pocket.heavy], axis=2).min(1)
    outside = int((distance > pocket.cutoff).sum())
    if outside:
        raise IncompatibleError(
            f"{outside} of {len(heavy)} heavy atoms of the ligand are more than {pocket.cutoff:g} Angstrom from every atom of the pocket: "
            "its structure is in another frame, or the pocket is of another site."
        )
