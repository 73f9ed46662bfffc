"""Bridgeheads of small cages: stereo centres on paper, of which geometry often leaves one choice; and structures of steep cages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import EnumerateStereoisomers as stereo
from rdkit.Chem import rdDistGeom

__all__ = ["Cage", "bridgeheads", "built", "cages", "marked", "possible", "settled"]

_LARGEST = 8  # atoms of a ring: in larger ones a bridgehead may point inwards too
_LOOKS = 3  # structures without any handedness asked for, in which a cage must look the same
_FREE = 4  # the same, for each that is wanted
_LEFT, _RIGHT = Chem.ChiralType.CHI_TETRAHEDRAL_CCW, Chem.ChiralType.CHI_TETRAHEDRAL_CW
_OPEN = Chem.ChiralType.CHI_UNSPECIFIED
_MIRRORED = {_LEFT: _RIGHT, _RIGHT: _LEFT, _OPEN: _OPEN}

Cage = dict[int, Chem.ChiralType]
"""Bridgeheads with the tags that they have together; those of the mirror image are all the other way round."""


def bridgeheads(mol: Chem.Mol) -> list[set[int]]:
    """Of each cage the atoms where two rings of at most eight atoms part that share more than one bond."""
    rings, found = [set(ring) for ring in Chem.GetSymmSSSR(mol) if len(ring) <= _LARGEST], []
    for one, other in combinations(rings, 2):
        if len(shared := one & other) > 2:
            ends = {i for i in shared if any(a.GetIdx() in one - shared for a in mol.GetAtomWithIdx(i).GetNeighbors())}
            apart = [cage for cage in found if not cage & ends]
            found = [*apart, ends.union(*(cage for cage in found if cage & ends))]
    return found


def cages(mol: Chem.Mol) -> list[Cage]:
    """The cages whose carbons look the same in every structure that distance geometry makes, but for reflection."""
    heads = bridgeheads(mol)
    if not heads:
        return []
    bare, options, seen = _bare(Chem.AddHs(mol)), rdDistGeom.ETKDGv3(), []
    options.randomSeed = 1
    with rdBase.BlockLogs():
        made = list(rdDistGeom.EmbedMultipleConfs(bare, _LOOKS, options))
    for number in made:
        Chem.AssignAtomChiralTagsFromStructure(bare, number, replaceExistingTags=True)
        seen.append([_signed({i: bare.GetAtomWithIdx(i).GetChiralTag() for i in sorted(cage)}) for cage in heads])
    return [looks[0] for looks in zip(*seen, strict=True) if looks[0] and all(look == looks[0] for look in looks)]


def settled(mol: Chem.Mol, unknown: Iterable[int]) -> set[int]:
    """Of the centres ``unknown`` those that leave no choice: bridgeheads whose two ways are one molecule, as of adamantane, bicyclopentane
    or quinuclidine, or that another one of their cage decides; and nitrogens of three bonds in no ring of three, which turn inside out, or
    which the rest of their cage holds."""
    rings, atoms = mol.GetRingInfo(), [mol.GetAtomWithIdx(i) for i in unknown]
    nitrogens = {a.GetIdx() for a in atoms if a.GetAtomicNum() == 7 and a.GetTotalDegree() == 3}
    held = {i for i in nitrogens if not rings.IsAtomInRingOfSize(i, 3)}
    wanted = set(unknown) - held
    if not any(cage & wanted for cage in bridgeheads(mol)):
        return held
    options = stereo.StereoEnumerationOptions(unique=True, onlyUnassigned=True)
    rest = next(iter(stereo.EnumerateStereoisomers(mol, options=options)))  # what else is open, in one way
    for i in held:
        rest.GetAtomWithIdx(i).SetChiralTag(_OPEN)
    for cage in cages(mol):
        told = any(mol.GetAtomWithIdx(i).GetChiralTag() for i in cage)
        if wanted & set(cage) and (told or _smiles(rest, cage) == _smiles(rest, {i: _MIRRORED[tag] for i, tag in cage.items()})):
            held |= wanted & set(cage)
    return held


def marked(mol: Chem.Mol, held: set[int], known: Sequence[Cage]) -> Chem.Mol:
    """A copy without conformers whose bridgeheads ``held`` have tags that agree with the others of their cage."""
    copy = Chem.Mol(mol)
    copy.RemoveAllConformers()
    for cage in known:
        told = [tag == own for i, tag in cage.items() if (own := mol.GetAtomWithIdx(i).GetChiralTag())]
        for i in held & set(cage):
            copy.GetAtomWithIdx(i).SetChiralTag(cage[i] if all(told) else _MIRRORED[cage[i]])
    return copy


def possible(mol: Chem.Mol, known: Sequence[Cage]) -> bool:
    """Whether the tags of a molecule are those that ``known`` cages can have."""
    for cage in known:
        pairs = [(tag, mol.GetAtomWithIdx(i).GetChiralTag()) for i, tag in cage.items()]
        if len({tag == own for tag, own in pairs if tag and own}) > 1:
            return False
    return True


def built(mol: Chem.Mol, n: int, options: rdDistGeom.EmbedParameters) -> np.ndarray:
    """(<= n, N, 3) structures with the handedness of ``mol``'s tags, which distance geometry was not asked for: its bounds on volumes
    are none for the steepest cages. A structure may be reflected, and two hydrogens of one atom exchanged."""
    copy, found = _bare(mol), []
    with rdBase.BlockLogs():
        made = list(rdDistGeom.EmbedMultipleConfs(copy, _FREE * n, options))
    tags = {a.GetIdx(): a.GetChiralTag() for a in mol.GetAtoms() if a.GetChiralTag() and a.GetAtomicNum() != 7}
    hydrogens = {i: [a.GetIdx() for a in mol.GetAtomWithIdx(i).GetNeighbors() if a.GetAtomicNum() == 1] for i in tags}
    for number in made:
        for sign in (1.0, -1.0):
            positions = sign * copy.GetConformer(number).GetPositions()
            for pair in (hydrogens[i] for i in _other(copy, number, positions, tags) if len(hydrogens[i]) == 2):
                positions[pair] = positions[pair[::-1]]
            if len(found) < n and not _other(copy, number, positions, tags):
                found.append(positions)
                break
    return np.array(found).reshape(len(found), mol.GetNumAtoms(), 3)


def _other(mol: Chem.Mol, number: int, positions: np.ndarray, tags: Cage) -> list[int]:
    """Atoms whose handedness in a structure is not that of ``tags``."""
    mol.GetConformer(number).SetPositions(np.ascontiguousarray(positions))
    Chem.AssignAtomChiralTagsFromStructure(mol, number, replaceExistingTags=True)
    return [i for i, tag in tags.items() if mol.GetAtomWithIdx(i).GetChiralTag() != tag]


def _bare(mol: Chem.Mol) -> Chem.Mol:
    """A copy that says nothing of handedness."""
    copy = Chem.Mol(mol)
    for atom in copy.GetAtoms():
        atom.SetChiralTag(_OPEN)
    return copy


def _signed(cage: Cage) -> Cage:
    """The tags of carbons, or of their mirror image, of which the first is left-handed."""
    told = {i: tag for i, tag in cage.items() if tag}
    return told if not told or next(iter(told.values())) == _LEFT else {i: _MIRRORED[tag] for i, tag in told.items()}


def _smiles(mol: Chem.Mol, cage: Cage) -> str:
    """Canonical, with the tags of a cage."""
    copy = Chem.Mol(mol)
    for i, tag in cage.items():
        copy.GetAtomWithIdx(i).SetChiralTag(tag)
    Chem.AssignStereochemistry(copy, cleanIt=True, force=True)
    return Chem.MolToSmiles(Chem.RemoveHs(copy))
