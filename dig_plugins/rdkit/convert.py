"""Border between RDKit and dig_core: molecules from SMILES and SDF, descriptors, conformers in and out, reference structures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom
from rdkit.Chem import rdForceFieldHelpers as forcefields

from dig_core.errors import IncompatibleError, StateError
from dig_core.system.descriptor import Descriptor, molecule
from dig_core.types import Geometry

from .cages import bridgeheads, built
from .check import MAX_ATOMS, ORDERS, check_molecule, check_parameters

__all__ = ["check_structure", "describe", "embed", "of_sdf", "of_smiles", "reference_structure", "to_geometry", "with_conformers"]

_TRIES = 20  # of distance geometry with the torsions of small rings, a conformer


def describe(mol: Chem.Mol, *, max_atoms: int = MAX_ATOMS) -> Descriptor:
    """Descriptor of a molecule with all hydrogens and a 3D conformer, the first, which fixes its stereochemistry; atom order is kept.

    Raises IncompatibleError and UnsupportedError as :func:`.check.check_molecule`; and where the molecule has no 3D structure, or
    one of another stereoisomer.
    """
    check_molecule(mol, max_atoms)
    reference = to_geometry(mol).positions[:1]
    check_structure(mol, mol.GetConformers()[0].GetId())
    bonds = list(mol.GetBonds())
    return molecule(
        [a.GetAtomicNum() for a in mol.GetAtoms()],
        [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in bonds],
        positions=reference[0],
        charges=[a.GetFormalCharge() for a in mol.GetAtoms()],
        orders=[ORDERS[b.GetBondType()] for b in bonds],
    )


def of_smiles(smiles: str, *, seed: int = 0, max_atoms: int = MAX_ATOMS) -> Chem.Mol:
    """The molecule of a SMILES string with all hydrogens and a :func:`reference_structure`. Errors as there."""
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles, sanitize=False)
    if mol is None:
        raise IncompatibleError(f"{smiles!r} is not SMILES: its syntax is wrong.")
    return reference_structure(Chem.AddHs(_sanitized(mol, repr(smiles))), seed=seed, max_atoms=max_atoms)


def of_sdf(path: str | Path, *, record: int | None = None, max_atoms: int = MAX_ATOMS) -> Chem.Mol:
    """The molecule of an SDF or MOL file with its 3D structure, from which its stereochemistry is taken.

    ``record``: which, of a file that holds several. Raises IncompatibleError for a file that is not there, cannot be read, is flat,
    or holds several; and as :func:`.check.check_molecule`.
    """
    if not Path(path).is_file():
        raise IncompatibleError(f"there is no file {path}: expected an SDF or MOL file.")
    with rdBase.BlockLogs():
        found = list(Chem.SDMolSupplier(str(path), sanitize=False, removeHs=False))
    if not found or (record is None and len(found) > 1) or (record is not None and not 0 <= record < len(found)):
        raise IncompatibleError(f"{path} holds {len(found)} molecule(s): say which with record=0 to {len(found) - 1}.")
    mol = found[record or 0]
    if mol is None:
        raise IncompatibleError(f"record {record or 0} of {path} cannot be read: its atom or bond block is damaged.")
    mol = _sanitized(mol, str(path))
    mol = _seen(mol, _conformers(mol)[0].GetId())
    check_molecule(mol, max_atoms)
    return mol


def reference_structure(mol: Chem.Mol, *, seed: int = 0, max_atoms: int = MAX_ATOMS) -> Chem.Mol:
    """A copy with one conformer: ETKDGv3 (doi:10.1021/acs.jcim.0c00025), then minimised with MMFF94s.

    Raises as :func:`.check.check_molecule` and :func:`embed`; UnsupportedError without MMFF parameters.
    """
    check_molecule(mol, max_atoms)
    check_parameters(mol)
    copy = embed(mol, 1, seed=seed)
    forcefields.MMFFOptimizeMolecule(copy, mmffVariant="MMFF94s", maxIters=2000)
    found = with_conformers(mol, to_geometry(copy))  # the positions alone: RDKit leaves MMFF's idea of aromatic bonds on the copy
    check_structure(found, 0)
    return found


def embed(mol: Chem.Mol, n: int, *, seed: int = 0, preferences: bool = True) -> Chem.Mol:
    """A copy with ``n`` conformers, or nearly as many, of ETKDGv3, rings of all sizes and macrocycles by their known torsions; of plain
    distance geometry without ``preferences``, which makes rarer ones (cis amides), and worse ones.

    Where ``mol`` has a structure, the hydrogens of a CH2 and other equivalent neighbours keep the places that they have in it: their
    labels are no stereochemistry, and distance geometry alone exchanges them at will.

    StateError where distance geometry finds none: stereochemistry that no structure can have, most often.
    """
    copy, found, caged = Chem.Mol(mol), [], bool(bridgeheads(mol))
    if mol.GetNumConformers():
        Chem.AssignAtomChiralTagsFromStructure(copy, mol.GetConformers()[0].GetId(), replaceExistingTags=True)
        for atom in mol.GetAtoms():
            if atom.GetAtomicNum() == 7 and atom.GetChiralTag():  # RDKit reads none of these from a structure
                copy.GetAtomWithIdx(atom.GetIdx()).SetChiralTag(atom.GetChiralTag())
    for small_rings, random in ((True, False), (False, False), (False, True))[not preferences :]:
        options = rdDistGeom.ETKDGv3()
        options.useExpTorsionAnglePrefs = options.useBasicKnowledge = preferences
        # RDKit multiplies the seed by the conformer's number: from 0 it draws one conformer again and again.
        options.randomSeed, options.useSmallRingTorsions, options.useRandomCoords = seed % (2**31 - 1) or int(n > 1), small_rings, random
        # Torsions of rings of seven seldom agree with the places of their hydrogens: a few tries, then without.
        options.maxIterations = _TRIES if small_rings else 0
        try:
            with rdBase.BlockLogs():
                found = list(rdDistGeom.EmbedMultipleConfs(copy, n, options))
        except RuntimeError:  # the minimiser gives up on some small rings' torsions
            found = []
        if len(found) > n // 2:
            break
        if caged and len(positions := built(copy, n, options)) > len(found):
            return with_conformers(mol, positions)
    if not found:
        raise StateError(
            f"no 3D structure found for {Chem.MolToSmiles(Chem.RemoveHs(mol))}: its stereochemistry may be impossible (a trans bond in a "
            "small ring, a bridge with the wrong centre). Correct it, try another seed=, or give a structure as an SDF file."
        )
    return with_conformers(mol, to_geometry(copy))


def to_geometry(mol: Chem.Mol) -> Geometry:
    """Every 3D conformer, (B, N, 3) float64 Angstrom. IncompatibleError if there is none."""
    return Geometry(torch.from_numpy(np.stack([c.GetPositions() for c in _conformers(mol)])))


def with_conformers(mol: Chem.Mol, geometry: Geometry | np.ndarray, **properties: Sequence[float]) -> Chem.Mol:
    """A copy of ``mol`` whose conformers are the structures (B, N, 3) Angstrom; ``properties`` (B,) become theirs, by name."""
    positions = geometry.positions.detach().cpu().numpy() if isinstance(geometry, Geometry) else np.asarray(geometry)
    if positions.ndim != 3 or positions.shape[1:] != (mol.GetNumAtoms(), 3):
        raise IncompatibleError(f"expected positions (B, {mol.GetNumAtoms()}, 3) for this molecule, got {positions.shape}.")
    copy = Chem.Mol(mol)
    copy.RemoveAllConformers()
    for number, frame in enumerate(positions.astype(np.float64)):
        conformer = Chem.Conformer(len(frame))
        conformer.Set3D(True)
        conformer.SetPositions(np.ascontiguousarray(frame))
        for name, values in properties.items():
            conformer.SetDoubleProp(name, float(values[number]))
        copy.AddConformer(conformer, assignId=True)
    return copy


def _sanitized(mol: Chem.Mol, what: str) -> Chem.Mol:
    """``mol``, its valences and aromaticity perceived; IncompatibleError names what cannot be."""
    with rdBase.BlockLogs():
        problems = [p.Message() for p in Chem.DetectChemistryProblems(mol)]
        if problems:
            raise IncompatibleError(f"{what} is no molecule: {'; '.join(problems)}. Check bond orders and formal charges.")
        Chem.SanitizeMol(mol)
        Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    return mol


def _conformers(mol: Chem.Mol) -> list[Chem.Conformer]:
    found = [c for c in mol.GetConformers() if c.Is3D()]
    if not found:
        raise IncompatibleError("expected a molecule with a 3D conformer, got none: call reference_structure(mol, seed=...).")
    return found


def check_structure(mol: Chem.Mol, conformer: int) -> None:
    """IncompatibleError where the conformer of that number is of another stereoisomer than the graph says."""
    seen = _seen(mol, conformer)
    for i in set().union(*bridgeheads(mol)):  # of which the graph may say nothing where there is no choice
        if not mol.GetAtomWithIdx(i).GetChiralTag():
            seen.GetAtomWithIdx(i).SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
    said, found = (Chem.MolToSmiles(_told(m)) for m in (mol, seen))
    if said != found:
        raise IncompatibleError(
            f"the structure is that of {found}, the molecule says {said}: make one with reference_structure(mol), or call "
            "Chem.AssignStereochemistryFrom3D(mol) if the structure is right."
        )


def _seen(mol: Chem.Mol, conformer: int) -> Chem.Mol:
    """A copy with the stereochemistry of a conformer, nitrogens in rings of three included, which RDKit leaves out."""
    copy, positions = Chem.Mol(mol), mol.GetConformer(conformer).GetPositions()
    Chem.AssignStereochemistryFrom3D(copy, conformer, replaceExistingTags=True)
    for atom in copy.GetAtoms():
        i, around = atom.GetIdx(), [bond.GetOtherAtomIdx(atom.GetIdx()) for bond in atom.GetBonds()]
        if atom.GetAtomicNum() == 7 and len(around) == 3 and mol.GetRingInfo().IsAtomInRingOfSize(i, 3):
            left = np.linalg.det(positions[around] - positions[i]) > 0
            atom.SetChiralTag(Chem.ChiralType.CHI_TETRAHEDRAL_CCW if left else Chem.ChiralType.CHI_TETRAHEDRAL_CW)
    Chem.AssignStereochemistry(copy, cleanIt=True, force=True)
    return copy


def _told(mol: Chem.Mol) -> Chem.Mol:
    """With nothing but the graph and its stereochemistry: of atoms that matter to it alone."""
    copy = Chem.Mol(mol)
    Chem.AssignStereochemistry(copy, cleanIt=True, force=True)
    return Chem.RemoveHs(copy)
