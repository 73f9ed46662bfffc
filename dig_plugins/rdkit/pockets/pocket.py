"""A pocket from a PDB file: whole residues about a site; waters, ions and cofactors by rule, everything left out is said."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem, rdBase

from dig_core.coordinates.complex import PocketAtoms
from dig_core.errors import IncompatibleError, UnsupportedError

from ..convert import to_geometry
from .residues import COFACTOR, ION, WATER, kind_of, repair

__all__ = ["Pocket", "points_of", "read_pocket"]

_NEAR = 5.0
"""Angstrom: an ion or a cofactor that is nearer to the site than this is part of the question, and is not left out unasked."""

_RULES = ("keep", "leave", None)
_METALS = frozenset({3, 4, 11, 12, 13, *range(19, 32), *range(37, 51), *range(55, 84)})


@dataclass(frozen=True)
class Pocket:
    """Whole residues about a site, in the frame of their file.

    ``mol``: all of their atoms, hydrogens included; peptide bonds that were cut end in a hydrogen. ``kind`` and ``residue`` (P,): kind and
    number of each atom's residue; ``labels``: what residues are called. ``centre`` (3,) Angstrom, of the site; ``cutoff`` Angstrom.
    ``notes``: what was left out, and why.
    """

    mol: Chem.Mol
    kind: np.ndarray
    residue: np.ndarray
    labels: tuple[str, ...]
    centre: np.ndarray
    cutoff: float
    notes: tuple[str, ...] = ()

    @property
    def positions(self) -> np.ndarray:
        """(P, 3) Angstrom."""
        return self.mol.GetConformer().GetPositions()

    @property
    def heavy(self) -> np.ndarray:
        """(P,) bool."""
        return np.array([a.GetAtomicNum() > 1 for a in self.mol.GetAtoms()])

    def atoms(self) -> PocketAtoms:
        """What a descriptor needs: heavy atoms and hydrogens alike."""
        numbers, charges = zip(*((a.GetAtomicNum(), a.GetFormalCharge()) for a in self.mol.GetAtoms()), strict=True)
        tables = (torch.tensor(numbers), torch.tensor(charges), torch.from_numpy(self.kind), torch.from_numpy(self.residue))
        return PocketAtoms(*tables, torch.from_numpy(self.positions), torch.from_numpy(self.centre))


def read_pocket(
    pdb: str | Path,
    site: Chem.Mol | np.ndarray,
    *,
    cutoff: float = 8.0,
    waters: str | None = "leave",
    ions: str | None = None,
    cofactors: str | None = None,
    altloc: str | None = None,
) -> Pocket:
    """The residues with an atom within ``cutoff`` Angstrom of the site's (heavy) atoms; hydrogens must be there.

    Parameters
    ----------
    site: a ligand with a 3D structure that stands in the pocket, or points (M, 3) Angstrom.
    waters, ions, cofactors: "keep", "leave", or None, which leaves out what is farther than 5 Angstrom from the site and raises for what
        is nearer. What is left out is named in ``notes``.
    altloc: which alternate location to take, where the file has several.

    Raises
    ------
    IncompatibleError: no such file, several models, alternate locations without ``altloc``, missing hydrogens, no residue near the site.
    UnsupportedError: an ion or a cofactor at the site of which nothing was said, a cofactor to keep whose bond orders are not known.
    """
    given = {"waters": waters, "ions": ions, "cofactors": cofactors}
    wrong = {name: rule for name, rule in given.items() if rule not in _RULES}
    if wrong or not 0 < cutoff < math.inf:
        raise IncompatibleError(f"expected 'keep', 'leave' or None and a positive cutoff, got {wrong}, cutoff = {cutoff}.")
    points = points_of(site)
    whole, notes = _read(Path(pdb), altloc)
    place, residues = whole.GetConformer().GetPositions(), _residues(whole)
    heavy = np.array([a.GetAtomicNum() > 1 for a in whole.GetAtoms()])
    distance = np.full(len(place), np.inf)
    distance[heavy] = np.linalg.norm(place[heavy][:, None] - points, axis=2).min(1)
    chosen, left = [], dict.fromkeys(given, 0)
    for label, atoms in residues.items():
        near = distance[atoms].min()
        if near > cutoff:
            continue
        name = {WATER: "waters", ION: "ions", COFACTOR: "cofactors"}.get(kind_of(whole, atoms))
        rule = "keep" if name is None else given[name]
        if rule is None and near < _NEAR:
            raise UnsupportedError(
                f"{label} ({name}) is {near:.1f} Angstrom from the site: say {name}='keep' to have it in the pocket, 'leave' to ignore it, "
                "as where it is the ligand itself."
            )
        if rule == "keep":
            chosen.append((label, atoms))
        else:
            left[str(name)] += 1
            notes += [f"left out: {label}, {near:.1f} Angstrom from the site."] if name != "waters" else []
    notes += [f"left out: {left['waters']} waters."] if left["waters"] else []
    if not chosen:
        raise IncompatibleError(f"no residue of {pdb} is within {cutoff:g} Angstrom of the site: is the ligand in the protein's frame?")
    return _cut(whole, chosen, points.mean(0), cutoff, notes)


def points_of(site: Chem.Mol | np.ndarray) -> np.ndarray:
    """(M, 3) Angstrom: heavy atoms of a ligand's structure, or points as they are."""
    if isinstance(site, Chem.Mol):
        heavy = [a.GetIdx() for a in site.GetAtoms() if a.GetAtomicNum() > 1]
        return to_geometry(site).positions[0].numpy()[heavy]
    given = np.asarray(site)
    shape = given.shape if given.dtype.kind in "iuf" else type(site).__name__
    if given.dtype.kind not in "iuf" or given.ndim not in (1, 2) or given.shape[-1] != 3 or not given.size or not np.isfinite(given).all():
        raise IncompatibleError(f"expected a ligand or finite points (M, 3) as the site, got {shape}.")
    return given.astype(np.float64).reshape(-1, 3)


def _read(pdb: Path, altloc: str | None) -> tuple[Chem.Mol, list[str]]:
    """All atoms, bonds, orders and charges of the file; and a note of residues that have other alternate locations alone."""
    if not pdb.is_file():
        raise IncompatibleError(f"there is no file {pdb}: expected a PDB file.")
    # RDKit cuts columns out of UTF-8, so that a letter beyond ASCII would be cut in two.
    lines = pdb.read_text(encoding="ascii", errors="replace").replace("\ufffd", "?").splitlines()
    if sum(line.split()[:1] == ["MODEL"] for line in lines) > 1:
        raise IncompatibleError(f"{pdb} holds several models: pass a file of one.")
    lines, notes = _located(lines, altloc, pdb)
    with rdBase.BlockLogs():
        mol = Chem.MolFromPDBBlock("\n".join(lines), removeHs=False, sanitize=False)
    if mol is None or not mol.GetNumAtoms() or not mol.GetNumConformers():
        raise IncompatibleError(f"{pdb} cannot be read as a PDB file with atoms; are the elements in columns 77 and 78?")
    return repair(mol, str(pdb)), notes


def _located(lines: list[str], altloc: str | None, pdb: Path) -> tuple[list[str], list[str]]:
    """Lines of one alternate location: the one asked for, or the first of a residue that has others alone, which the note says."""
    found: dict[str, set[str]] = {}
    for line in lines:
        if line.startswith(("ATOM", "HETATM")) and line[16:17].strip():
            found.setdefault(line[21:27], set()).add(line[16])
    there = sorted(set().union(*found.values()))
    if found and altloc not in there:
        wrong = "" if altloc is None else f", and no {altloc!r}"
        raise IncompatibleError(f"{pdb} has alternate locations {', '.join(there)}{wrong}: say which with altloc=.")
    taken = {residue: altloc if altloc in known else min(known) for residue, known in found.items()}
    kept = []  # with a blank for the letter: RDKit reads none but A
    for line in lines:
        if not line.startswith(("ATOM", "HETATM")) or not line[16:17].strip():
            kept.append(line)
        elif line[16] == taken[line[21:27]]:
            kept.append(f"{line[:16]} {line[17:]}")
    others = [f"{' '.join(residue.split())} ({letter})" for residue, letter in taken.items() if letter != altloc]
    return kept, [f"no alternate location {altloc}, another one taken: {', '.join(others)}."] if others else []


def _residues(mol: Chem.Mol) -> dict[str, list[int]]:
    """Label -> atoms, in the order of the file."""
    found: dict[str, list[int]] = {}
    for atom in mol.GetAtoms():
        at = atom.GetPDBResidueInfo()
        label = f"{at.GetResidueName().strip()} {at.GetChainId().strip()}{at.GetResidueNumber()}{at.GetInsertionCode().strip()}"
        found.setdefault(label, []).append(atom.GetIdx())
    return found


def _cut(whole: Chem.Mol, chosen: list[tuple[str, list[int]]], centre: np.ndarray, cutoff: float, notes: list[str]) -> Pocket:
    """The chosen residues as a molecule of their own; hydrogens where bonds were cut."""
    number = {atom: k for k, (_, atoms) in enumerate(chosen) for atom in atoms}
    bare = [a for a in number if whole.GetAtomWithIdx(a).GetTotalNumHs()]
    strange = sorted({chosen[number[a]][0] for a in bare if kind_of(whole, chosen[number[a]][1]) == COFACTOR})
    if strange:
        raise UnsupportedError(f"a PDB file does not say the bond orders of {', '.join(strange)}: leave it out of the pocket.")
    if bare:
        names = sorted({chosen[number[a]][0] for a in bare})
        raise IncompatibleError(
            f"hydrogens are missing in {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}: add them and read again."
        )
    ends = {a.GetIdx() for i in number for a in whole.GetAtomWithIdx(i).GetNeighbors() if a.GetIdx() not in number}
    opened = [a for a in number if any(b.GetIdx() in ends for b in whole.GetAtomWithIdx(a).GetNeighbors())]
    part, order = Chem.RWMol(whole), sorted(number)
    part.BeginBatchEdit()
    for atom in range(whole.GetNumAtoms()):
        if atom not in number:
            part.RemoveAtom(atom)
    part.CommitBatchEdit()
    where = {old: new for new, old in enumerate(order)}
    mol = part.GetMol()
    Chem.SanitizeMol(mol)
    mol = Chem.AddHs(mol, addCoords=True, onlyOnAtoms=[where[a] for a in opened]) if opened else mol
    owner = [number[a] for a in order]
    owner += [owner[mol.GetAtomWithIdx(k).GetNeighbors()[0].GetIdx()] for k in range(len(order), mol.GetNumAtoms())]
    kinds = [kind_of(whole, atoms) for _, atoms in chosen]
    metals = sorted({a.GetSymbol() for a in mol.GetAtoms() if a.GetAtomicNum() in _METALS})
    notes = [*notes, *([f"metals in the pocket: {', '.join(metals)}."] if metals else [])]
    labels = tuple(label for label, _ in chosen)
    residue = np.array(owner, dtype=np.int64)
    return Pocket(mol, np.array(kinds, dtype=np.int64)[residue], residue, labels, np.asarray(centre), float(cutoff), tuple(notes))
