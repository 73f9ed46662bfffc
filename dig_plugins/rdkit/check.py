"""What a molecule must be: whole, of one piece, of nonmetals, with its hydrogens and its stereochemistry; errors that say what is not."""

from __future__ import annotations

from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers as forcefields
from rdkit.ForceField import rdForceField  # noqa: F401  # older RDKits know the classes that the helpers return only then

from dig_core.errors import IncompatibleError, UnsupportedError

from .facts import chiral_axes, unspecified_stereo

__all__ = ["MAX_ATOMS", "ORDERS", "check_molecule", "check_parameters", "check_stereo", "label"]

MAX_ATOMS = 200
"""Hydrogens included: what internal coordinates and a network over the whole state were tried with, and then some."""

ORDERS = {Chem.BondType.SINGLE: 1, Chem.BondType.DOUBLE: 2, Chem.BondType.TRIPLE: 3, Chem.BondType.AROMATIC: 4}
"""Bond orders as the descriptor's integers."""

_NONMETALS = {*range(1, 3), *range(5, 11), *range(14, 19), *range(32, 37), *range(52, 55), 85, 86}
_MMFF_ELEMENTS = {1, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53}


def check_molecule(mol: Chem.Mol, max_atoms: int = MAX_ATOMS) -> None:
    """Raise unless ``mol`` is one molecule that a model can be made of.

    IncompatibleError: not a molecule, valences that cannot be, missing hydrogens, unspecified stereochemistry.
    UnsupportedError: several fragments, metals, dummy atoms, other bonds than single to triple and aromatic, radicals, allenes whose axis
    is chiral, more than ``max_atoms`` atoms.
    """
    if not isinstance(mol, Chem.Mol) or not mol.GetNumAtoms():
        raise IncompatibleError(f"expected an RDKit molecule with atoms, got {mol if mol is None else type(mol).__name__}.")
    for check in (_one_piece, _nonmetals, _bonds, _valences, _hydrogens, _radicals, _axes):
        check(mol)
    if mol.GetNumAtoms() > max_atoms:
        raise UnsupportedError(f"expected at most {max_atoms} atoms, got {mol.GetNumAtoms()}: pass a larger max_atoms= if you mean it.")
    check_stereo(mol)


def check_stereo(mol: Chem.Mol) -> None:
    """IncompatibleError, naming each, where a stereo centre or a double bond is not specified."""
    unknown = unspecified_stereo(mol)
    if unknown:
        where = ", ".join("=".join(label(mol, i) for i in s.atoms) for s in unknown)
        raise IncompatibleError(
            f"{len(unknown)} stereo element(s) are not specified: {where}. Write them (@, @@, /, \\ in SMILES; AssignStereochemistryFrom3D "
            "for a structure), or take each of enumerate_stereo(mol) for itself."
        )


def check_parameters(mol: Chem.Mol) -> None:
    """UnsupportedError where MMFF94 does not know an atom."""
    if forcefields.MMFFHasAllMoleculeParams(mol):
        return
    strange = [label(mol, a.GetIdx()) for a in mol.GetAtoms() if a.GetAtomicNum() not in _MMFF_ELEMENTS]
    what = ", ".join(strange) or "an atom in a bonding that MMFF94 has no type for"
    raise UnsupportedError(f"MMFF94 has no parameters for {what}: use another energy, through OpenMM or ASE, for this molecule.")


def label(mol: Chem.Mol, index: int) -> str:
    """What messages call an atom."""
    return f"{mol.GetAtomWithIdx(index).GetSymbol()}{index}"


def _one_piece(mol: Chem.Mol) -> None:
    pieces = [Chem.MolToSmiles(Chem.RemoveHs(p, sanitize=False)) for p in Chem.GetMolFrags(mol, asMols=True, sanitizeFrags=False)]
    if len(pieces) > 1:
        raise UnsupportedError(
            f"expected one molecule, got {len(pieces)}: {', '.join(pieces)}. Of a salt or a mixture pass the one you mean, charged or not."
        )


def _nonmetals(mol: Chem.Mol) -> None:
    dummies = [a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() == 0]
    if dummies:
        raise UnsupportedError(f"atoms {dummies} have no element (dummies, R groups, queries): replace them by atoms.")
    metals = [label(mol, a.GetIdx()) for a in mol.GetAtoms() if a.GetAtomicNum() not in _NONMETALS]
    if metals:
        raise UnsupportedError(f"metals are not covered, found {', '.join(metals)}: no force field at hand describes their bonds.")


def _bonds(mol: Chem.Mol) -> None:
    strange = sorted({str(b.GetBondType()) for b in mol.GetBonds() if b.GetBondType() not in ORDERS})
    if strange:
        raise UnsupportedError(f"expected single, double, triple or aromatic bonds, got {', '.join(strange)}.")


def _valences(mol: Chem.Mol) -> None:
    problems = [p.Message() for p in Chem.DetectChemistryProblems(mol)]
    if problems:
        raise IncompatibleError(f"this is no molecule: {'; '.join(problems)}. Check bond orders and formal charges.")


def _hydrogens(mol: Chem.Mol) -> None:
    bare = [label(mol, a.GetIdx()) for a in mol.GetAtoms() if a.GetTotalNumHs()]
    if bare:
        count = sum(a.GetTotalNumHs() for a in mol.GetAtoms())
        raise IncompatibleError(
            f"{count} hydrogen(s) are missing, at {', '.join(bare[:8])}{' ...' if len(bare) > 8 else ''}: call "
            "Chem.AddHs(mol, addCoords=True). If the structure had them all, its bond orders or formal charges are wrong."
        )


def _radicals(mol: Chem.Mol) -> None:
    found = [label(mol, a.GetIdx()) for a in mol.GetAtoms() if a.GetNumRadicalElectrons()]
    if found:
        raise UnsupportedError(
            f"unpaired electrons at {', '.join(found)}: MMFF94 has no radicals. If it is none, bond orders or formal charges are wrong."
        )


def _axes(mol: Chem.Mol) -> None:
    found = ["=".join(label(mol, i) for i in chain) for chain in chiral_axes(mol)]
    if found:
        raise UnsupportedError(f"the axis {', '.join(found)} has two configurations, and RDKit's molecules do not say which: not covered.")
