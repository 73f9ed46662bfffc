"""Residues of a PDB file: what kind each is, and bonds and charges that the file's hydrogens decide."""

from __future__ import annotations

from collections.abc import Sequence

from rdkit import Chem, rdBase

from dig_core.errors import IncompatibleError

__all__ = ["CAP", "COFACTOR", "ION", "KINDS", "WATER", "kind_of", "repair"]

_AMINO = (
    "ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE", "LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR",
    "VAL",
)  # fmt: skip
_ALSO = {
    "HID": "HIS", "HIE": "HIS", "HIP": "HIS", "HSD": "HIS", "HSE": "HIS", "HSP": "HIS", "CYX": "CYS", "CYM": "CYS", "ASH": "ASP",
    "GLH": "GLU", "LYN": "LYS", "ARN": "ARG", "MSE": "MET",
}  # fmt: skip
_CAPS = frozenset({"ACE", "NME", "NMA", "NH2", "NHE"})
_WATERS = frozenset({"HOH", "WAT", "H2O", "DOD", "SOL", "SPC", "TIP", "TIP3", "TP3", "T3P"})
_ACIDS = frozenset({"OD1", "OD2", "OE1", "OE2", "O", "OXT", "SG"})
_CHARGES = {3: 1, 11: 1, 19: 1, 37: 1, 55: 1, 47: 1, 9: -1, 17: -1, 35: -1, 53: -1}
_CHARGES |= dict.fromkeys((12, 20, 25, 26, 27, 28, 29, 30, 38, 48, 56, 80), 2)
CAP, WATER, ION, COFACTOR = range(len(_AMINO) + 1, len(_AMINO) + 5)
KINDS = COFACTOR + 1
"""Number of kinds: 0 is the ligand's, 1 to 20 the amino acids."""


def kind_of(mol: Chem.Mol, atoms: Sequence[int]) -> int:
    """Of the residue that ``atoms`` are of: an ion is one heavy atom without hydrogens, anything unknown a cofactor."""
    name = mol.GetAtomWithIdx(int(atoms[0])).GetPDBResidueInfo().GetResidueName().strip()
    name = _ALSO.get(name, name)
    if name in _AMINO:
        return 1 + _AMINO.index(name)
    if name in _CAPS:
        return CAP
    if name in _WATERS:
        return WATER
    return ION if len(atoms) == 1 else COFACTOR


def repair(mol: Chem.Mol, what: str) -> Chem.Mol:
    """``mol``, read without sanitizing, with bond orders and charges that agree with the hydrogens in it; sanitized.

    Histidines that have their hydrogen on ND1 alone; arginines whose charge is written at the other nitrogen; acids and thiols that lack
    theirs in a residue that has others, whether or not the file writes charges; ions; carbonyls of residues with unknown atom names.
    Raises IncompatibleError where valences cannot be.
    """
    edit = Chem.RWMol(mol)
    edit.UpdatePropertyCache(strict=False)
    residues: dict[tuple, dict[str, int]] = {}
    for atom in edit.GetAtoms():
        at = atom.GetPDBResidueInfo()
        residues.setdefault((at.GetChainId(), at.GetResidueNumber(), at.GetInsertionCode(), at.GetResidueName()), {})[
            at.GetName().strip()
        ] = atom.GetIdx()
    for (*_, name), names in residues.items():
        if _ALSO.get(name, name) == "HIS":
            _histidine(edit, names)
        elif name == "ARG" and {"NH1", "NH2"} <= set(names):
            first, second = (edit.GetAtomWithIdx(names[n]) for n in ("NH1", "NH2"))
            if first.GetFormalCharge() == second.GetFormalCharge() == 1:
                first.SetFormalCharge(0)
    for (*_, name), names in residues.items():
        atoms = [edit.GetAtomWithIdx(k) for k in names.values()]
        if len(atoms) == 1:
            _ion(atoms[0])
        elif _ALSO.get(name, name) in _AMINO and any(a.GetAtomicNum() == 1 for a in atoms):
            for acid in _ACIDS & set(names):
                _deprotonated(edit.GetAtomWithIdx(names[acid]))
    edit.UpdatePropertyCache(strict=False)
    for bond in edit.GetBonds():
        ends = bond.GetBeginAtom(), bond.GetEndAtom()
        if bond.GetBondType() == Chem.BondType.SINGLE and {e.GetAtomicNum() for e in ends} == {6, 8} and all(map(_open, ends)):
            bond.SetBondType(Chem.BondType.DOUBLE)
    done = edit.GetMol()
    with rdBase.BlockLogs():
        problems = [p.Message() for p in Chem.DetectChemistryProblems(done)]
        if problems:
            raise IncompatibleError(f"{what}: {'; '.join(problems[:4])}. Check the residues' atoms, or leave the residue out of the file.")
        Chem.SanitizeMol(done)
    return done


def _open(atom: Chem.Atom) -> bool:
    """Not all valences are taken, though hydrogens stand within three bonds: the residue has its own."""
    around = {b.GetIdx(): b for a in atom.GetNeighbors() for n in a.GetNeighbors() for b in (n, *n.GetNeighbors())}
    return atom.GetTotalNumHs() > 0 and any(b.GetAtomicNum() == 1 for b in around.values())


def _ion(atom: Chem.Atom) -> None:
    """The usual charge, where the file gives none; an oxygen alone is a water without hydrogens, and stays one."""
    number = atom.GetAtomicNum()
    if atom.GetFormalCharge() == 0 and number in _CHARGES:
        atom.SetFormalCharge(_CHARGES[number])
    if number in _CHARGES:
        atom.SetNoImplicit(True)


def _deprotonated(atom: Chem.Atom) -> None:
    if atom.GetTotalNumHs() == 1 and atom.GetDegree() == 1 and atom.GetFormalCharge() == 0:
        atom.SetFormalCharge(-1)


def _histidine(edit: Chem.RWMol, names: dict[str, int]) -> None:
    if not {"ND1", "NE2", "CE1"} <= set(names):
        return
    delta, epsilon = (edit.GetAtomWithIdx(names[n]) for n in ("ND1", "NE2"))
    on = [any(a.GetAtomicNum() == 1 for a in n.GetNeighbors()) for n in (delta, epsilon)]
    if on != [True, False]:
        return
    single, double = (edit.GetBondBetweenAtoms(names[n], names["CE1"]) for n in ("ND1", "NE2"))
    if single is None or double is None:  # of a damaged ring
        return
    single.SetBondType(Chem.BondType.SINGLE)
    double.SetBondType(Chem.BondType.DOUBLE)
    delta.SetFormalCharge(0)
