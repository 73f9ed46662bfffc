"""Proposals for conformers without training: a normal law about every MMFF94 minimum that a search and symmetry lead to."""

from __future__ import annotations

import torch
from rdkit import Chem
from torch import Tensor

from dig_core.coordinates import Internal
from dig_core.dig import Card, DiG
from dig_core.energy import Energy
from dig_core.errors import StateError
from dig_core.montecarlo.wells import Wells
from dig_core.random import as_seed
from dig_core.training.frames import frames_of
from dig_core.training.molecule import internal_model
from dig_core.training.wells import harmonic, refined
from dig_core.types import Geometry

from .basins import FAR, distinct
from .check import check_molecule
from .convert import describe, embed, reference_structure, to_geometry
from .coordinates import internal_coordinates
from .energy import MMFFEnergy
from .facts import stereo_centres
from .given import check_energy, name_of
from .minima import searched

__all__ = ["conformer_wells", "symmetric_copies", "wells_of"]

_MAPPINGS = 4000
_FAINT = -12.0  # log share of the heaviest well: lighter ones are left out


def conformer_wells(
    mol: Chem.Mol,
    temperature: float = 300.0,
    *,
    energy: Energy | None = None,
    variant: str = "MMFF94s",
    conformers: int = 200,
    refinements: int = 2,
    seed: int | None = None,
) -> Wells:
    """A proposal of independent conformers whose density is known, made in seconds: Monte Carlo with it is exact, however good it is.

    Distance geometry gives ``conformers``, which :func:`wells_of` makes wells of, with ``refinements``; ``energy`` as of
    :func:`.training.fit_molecule`.

    Raises as :func:`.training.fit_molecule`.
    """
    check_molecule(mol)
    seed = as_seed(seed)
    if not any(c.Is3D() for c in mol.GetConformers()):
        mol = reference_structure(mol, seed=seed)
    called, energy = (f"{variant} (RDKit)", None) if energy is None else (name_of(energy), check_energy(energy, temperature))
    rough = embed(mol, conformers, seed=seed)
    coordinates = internal_coordinates(mol, to_geometry(rough), temperature, variant)
    card = Card(name="wells", system=Chem.MolToSmiles(Chem.RemoveHs(mol)), energy=called, temperature=float(temperature))
    dig = DiG(internal_model(coordinates, width=8, blocks=1), coordinates, describe(mol), card)
    energy = energy or MMFFEnergy(mol, temperature, variant=variant)
    return wells_of(dig, rough, energy, variant=variant, refinements=refinements, seed=seed)


def wells_of(
    dig: DiG,
    rough: Chem.Mol,
    energy: Energy,
    *,
    variant: str = "MMFF94s",
    most: int = 300,
    window: float = 6.0,
    refinements: int = 2,
    seed: int = 0,
) -> Wells:
    """A normal law in the internal coordinates of ``dig`` about each minimum that the conformers of ``rough`` lead to.

    They are minimised with MMFF94, and more is searched beyond them (:func:`.minima.searched`); symmetry (equivalent atoms exchanged, and
    the mirror image where no stereocentre forbids it) completes the minima within ``window`` kcal/mol, of which the lowest ``most`` are
    kept. Each gets its harmonic law under ``energy``, middle and widths then corrected ``refinements`` times by the energy around it.
    """
    coordinates, rng = dig.coordinates, torch.Generator().manual_seed(seed % 2**31)
    low, found = searched(rough, variant, window=window, seed=seed)
    positions, energies, fixed = to_geometry(low).positions, torch.from_numpy(found), ~_pyramids(rough, coordinates)
    for copied in (False, True):
        if copied:
            positions = symmetric_copies(rough, positions)
            energies = energies.repeat_interleave(positions.shape[1])
            positions = positions.flatten(0, 1)
        frames = frames_of(coordinates, dig.descriptor, Geometry(positions))
        sound = coordinates.valid(frames.state, dig.descriptor) & (frames.state["shape"][:, fixed].abs() < FAR).all(1)
        if not bool(sound.any()):
            raise StateError("no minimum that the coordinates describe: give a reference structure that MMFF94 leaves as it is.")
        chosen = (sound & (energies < energies[sound].min() + window)).nonzero()[:, 0]
        chosen = chosen[distinct(frames.take(chosen), energies[chosen])[:most]]
        positions, energies = positions[chosen], energies[chosen]
    wells = harmonic(dig, energy, {name: x.double() for name, x in frames.take(chosen).state.items()})
    kept = _apart(wells)
    wells = Wells(dig, wells.mean[kept], wells.factor[kept], wells.log_weight[kept], wells.flat[kept])
    for _ in range(refinements):
        wells = refined(wells, energy, rng)
    return wells


def _apart(wells: Wells) -> list[int]:
    """Wells that are not too light, the heaviest of any that are one but for the names of end atoms."""
    heavy = (wells.log_weight > wells.log_weight.max() + _FAINT).nonzero()[:, 0]
    kept: list[int] = []
    for k in heavy[torch.argsort(-wells.log_weight[heavy], stable=True)].tolist():
        near = [float((torch.where(wells.flat[j], 0.0, wells.gap(wells.mean[k : k + 1], j)) @ wells.inverse[j].T).norm()) for j in kept]
        if not near or min(near) > 1.0:
            kept.append(k)
    return kept


def _pyramids(mol: Chem.Mol, coordinates: Internal) -> Tensor:
    """(D,) bool, shape columns about a nitrogen of three bonds that is no stereocentre: pyramids, whichever way they point."""
    centres = {s.atoms[0] for s in stereo_centres(mol)}
    turning = {a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() == 7 and a.GetDegree() == 3} - centres
    return torch.tensor([len(atoms) == 4 and atoms[1] in turning for atoms in coordinates.shape_atoms])


def symmetric_copies(mol: Chem.Mol, positions: Tensor) -> Tensor:
    """(B, C, N, 3) structures of the energies of (B, N, 3): equivalent atoms exchanged, mirrored too where there is no stereocentre."""
    orders = mol.GetSubstructMatches(mol, uniquify=False, useChirality=True, maxMatches=_MAPPINGS)
    found = positions[:, torch.tensor(orders)]
    if stereo_centres(mol):
        return found
    return torch.cat([found, found * torch.tensor([1.0, 1.0, -1.0]).to(found)], 1)
