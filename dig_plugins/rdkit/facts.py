"""What a molecule's graph says before any structure: symmetry, rotatable bonds, rings, stereochemistry, nitrogens that invert."""

from __future__ import annotations

from typing import NamedTuple

from rdkit import Chem
from rdkit.Chem import EnumerateStereoisomers as stereo
from rdkit.Chem import rdCIPLabeler

from dig_core.errors import UnsupportedError

from .cages import cages, marked, possible, settled

__all__ = [
    "Stereo",
    "chiral_axes",
    "enumerate_stereo",
    "inverting_nitrogens",
    "ring_atoms",
    "ring_bonds",
    "rotatable_bonds",
    "stereo_bonds",
    "stereo_centres",
    "symmetry_classes",
    "unspecified_stereo",
]

# A bond that turns at room temperature: single, in no ring, with more than one atom beyond either end, not beside a triple bond.
_ROTATABLE = Chem.MolFromSmarts("[!$([D1])&!$(*#*)]-&!@[!$([D1])&!$(*#*)]")
# Amides and their kin are planar, anilines nearly so: what is left of three-bonded nitrogens is a pyramid.
_PYRAMID = Chem.MolFromSmarts("[NX3;+0;!$(N-[#6]=[*]);!$(N-[#6]:[*]);!$(N=*)]")
_CONFIGURATIONS = {
    Chem.StereoDescriptor.Tet_CCW: "counterclockwise",
    Chem.StereoDescriptor.Tet_CW: "clockwise",
    Chem.StereoDescriptor.Bond_Cis: "cis",
    Chem.StereoDescriptor.Bond_Trans: "trans",
}


class Stereo(NamedTuple):
    """A stereo centre (``atoms`` of one index) or a double bond (of two); ``configuration`` None where nothing says it.

    ``around``: the atoms that it is about, in the order that ``configuration`` means: "clockwise" or "counterclockwise" of the
    others as the first looks at the centre; "cis" or "trans" of one atom at either end of the bond. ``label`` is R, S, E or Z, or "".
    """

    atoms: tuple[int, ...]
    configuration: str | None
    around: tuple[int, ...]
    label: str = ""


def symmetry_classes(mol: Chem.Mol) -> list[int]:
    """Class of each atom; equal for atoms that a symmetry of the graph, chirality included, exchanges."""
    return list(Chem.CanonicalRankAtoms(mol, breakTies=False, includeChirality=True))


def rotatable_bonds(mol: Chem.Mol) -> list[tuple[int, int]]:
    """Single bonds between heavy atoms, in no ring, that something turns about; amides are among them."""
    heavy = Chem.RemoveHs(_indexed(mol), sanitize=False)
    Chem.FastFindRings(heavy)
    found = heavy.GetSubstructMatches(_ROTATABLE)
    return sorted(tuple(sorted(_index(heavy, i) for i in pair)) for pair in found)


def ring_atoms(mol: Chem.Mol) -> list[tuple[int, ...]]:
    """Atoms of each ring of the smallest set of them, in their order round the ring."""
    return [tuple(ring) for ring in Chem.GetSymmSSSR(mol)]


def ring_bonds(mol: Chem.Mol) -> set[frozenset[int]]:
    """Bonds that are part of a ring, as pairs of atoms."""
    return {frozenset((b.GetBeginAtomIdx(), b.GetEndAtomIdx())) for b in mol.GetBonds() if b.IsInRing()}


def inverting_nitrogens(mol: Chem.Mol) -> list[int]:
    """Three-bonded pyramidal nitrogens that turn inside out at room temperature: their handedness is a conformation.

    Left out are stereo centres (bridgeheads), and nitrogens in a ring of three atoms, whose barrier is several times higher.
    """
    fixed = {s.atoms[0] for s in stereo_centres(mol)}
    found = [atom for (atom,) in mol.GetSubstructMatches(_PYRAMID)]
    return [i for i in found if i not in fixed and not _trapped(mol, i)]


def stereo_centres(mol: Chem.Mol) -> list[Stereo]:
    """Every tetrahedral centre whose handedness matters, specified or not."""
    return [s for s in _stereo(mol) if len(s.atoms) == 1]


def stereo_bonds(mol: Chem.Mol) -> list[Stereo]:
    """Every double bond whose sides matter, specified or not."""
    return [s for s in _stereo(mol) if len(s.atoms) == 2]


def unspecified_stereo(mol: Chem.Mol) -> list[Stereo]:
    """Centres and double bonds of which the molecule does not say what they are, though there is a choice (:func:`.cages.settled`)."""
    held = _held(mol)
    return [s for s in _stereo(mol) if s.configuration is None and s.atoms[0] not in held]


def chiral_axes(mol: Chem.Mol) -> list[tuple[int, ...]]:
    """Chains of cumulated double bonds between carbons that each bear two different groups: allenes, whose axis is chiral, and longer
    cumulenes with sides. A molecule of RDKit does not say which they are."""
    ranks, found = symmetry_classes(mol), []
    for chain in _cumulenes(mol):
        ends = [mol.GetAtomWithIdx(i) for i in (chain[0], chain[-1])]
        groups = [[ranks[a.GetIdx()] for a in end.GetNeighbors() if a.GetIdx() not in chain] for end in ends]
        groups = [own + [-1] * end.GetTotalNumHs() for own, end in zip(groups, ends, strict=True)]
        if all(end.GetAtomicNum() == 6 and len(set(own)) == 2 for own, end in zip(groups, ends, strict=True)):
            found.append(chain)
    return found


def enumerate_stereo(mol: Chem.Mol, limit: int = 64) -> list[Chem.Mol]:
    """Every stereoisomer that the molecule leaves open, without conformers; the molecule itself if it leaves none. Of cages those whose
    bridgeheads can be as they are said to be; what leaves no choice stays unsaid.

    UnsupportedError for more than ``limit``.
    """
    open_ones, known = unspecified_stereo(mol), cages(mol)
    held = _held(mol)
    told = marked(mol, held, known)
    options = stereo.StereoEnumerationOptions(unique=True, onlyUnassigned=True, maxIsomers=limit + 1)
    count = stereo.GetStereoisomerCount(told, options=options)
    if count > limit:
        raise UnsupportedError(f"{len(open_ones)} stereo elements leave {count} isomers open, limit={limit}: specify some, or raise it.")
    found = list(stereo.EnumerateStereoisomers(told, options=options)) if open_ones else [told]
    found = [isomer for isomer in found if possible(isomer, known)] or found
    for isomer in found:
        for i in held:
            isomer.GetAtomWithIdx(i).SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
    return list({Chem.MolToSmiles(isomer): isomer for isomer in reversed(found)}.values())[::-1]


def _held(mol: Chem.Mol) -> set[int]:
    """Centres of which the molecule says nothing, nor needs to."""
    return settled(mol, [s.atoms[0] for s in stereo_centres(mol) if s.configuration is None])


def _stereo(mol: Chem.Mol) -> list[Stereo]:
    copy = Chem.Mol(mol)  # perceiving writes on the molecule
    rdCIPLabeler.AssignCIPLabels(copy)
    found, cumulated = [], {i for chain in _cumulenes(mol) for i in chain[1:-1]}
    for one in Chem.FindPotentialStereo(copy):
        if one.type == Chem.StereoType.Atom_Tetrahedral:
            atoms, owner = (one.centeredOn,), copy.GetAtomWithIdx(one.centeredOn)
        elif one.type == Chem.StereoType.Bond_Double:
            owner = copy.GetBondWithIdx(one.centeredOn)
            atoms = (owner.GetBeginAtomIdx(), owner.GetEndAtomIdx())
            if cumulated & set(atoms):  # azides, ketenes, allenes: such a bond has no sides
                continue
        else:
            continue
        said = _CONFIGURATIONS.get(one.descriptor) if one.specified == Chem.StereoSpecified.Specified else None
        around = tuple(i for i in one.controllingAtoms if i < copy.GetNumAtoms())
        label = owner.GetProp("_CIPCode") if owner.HasProp("_CIPCode") else ""
        found.append(Stereo(atoms, said, around, label))
    return found


def _cumulenes(mol: Chem.Mol) -> list[tuple[int, ...]]:
    """Atoms of each chain of two or more double bonds that follow each other, ends included."""
    doubles: dict[int, list[int]] = {a.GetIdx(): [] for a in mol.GetAtoms()}
    for bond in mol.GetBonds():
        if bond.GetBondType() == Chem.BondType.DOUBLE:
            doubles[bond.GetBeginAtomIdx()].append(bond.GetEndAtomIdx())
            doubles[bond.GetEndAtomIdx()].append(bond.GetBeginAtomIdx())
    inner = {i for i, around in doubles.items() if len(around) == 2 and mol.GetAtomWithIdx(i).GetTotalDegree() == 2}
    found = []
    for start, around in doubles.items():
        for second in around:
            if start in inner or second not in inner:
                continue
            chain = [start, second]
            while chain[-1] in inner:
                chain += [i for i in doubles[chain[-1]] if i != chain[-2]]
            if start < chain[-1]:
                found.append(tuple(chain))
    return found


def _trapped(mol: Chem.Mol, atom: int) -> bool:
    """In a ring of three, or shared by rings that hold it in place."""
    rings = mol.GetRingInfo()
    return rings.IsAtomInRingOfSize(atom, 3) or rings.NumAtomRings(atom) > 2


def _indexed(mol: Chem.Mol) -> Chem.Mol:
    copy = Chem.Mol(mol)
    for atom in copy.GetAtoms():
        atom.SetIntProp("_index", atom.GetIdx())
    return copy


def _index(mol: Chem.Mol, atom: int) -> int:
    return mol.GetAtomWithIdx(atom).GetIntProp("_index")
