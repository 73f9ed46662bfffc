"""Reference sets of conformers: structures with energies, read from files, and which of them are never trained on."""

from __future__ import annotations

import csv
import hashlib
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem.MolStandardize import rdMolStandardize

from dig_core.errors import DiGError, IncompatibleError

from .check import check_molecule, check_parameters
from .convert import check_structure

__all__ = ["Reference", "graph_key", "read_conformer_set", "read_ligands", "withheld"]


class Reference(NamedTuple):
    """``mol`` with its conformers, all of one stereoisomer, and their ``energy`` (n,) kcal/mol above the lowest; ``left_out``: conformers
    of the file that have other bonds or are of another stereoisomer."""

    name: str
    mol: Chem.Mol
    energy: np.ndarray
    left_out: int = 0


def withheld(mol: Chem.Mol) -> bool:
    """Whether a molecule belongs to the half that is never trained on: by a hash of its graph, the same for all its stereoisomers."""
    return hashlib.sha256(graph_key(mol).encode()).digest()[0] % 2 == 1


def graph_key(mol: Chem.Mol) -> str:
    """One string for all stereoisomers, charge states and tautomers that standardising tells to be one molecule."""
    with rdBase.BlockLogs():
        bare = Chem.RemoveHs(mol)
        neutral = rdMolStandardize.Uncharger().uncharge(bare)
    return Chem.MolToSmiles(neutral, isomericSmiles=False)


def read_conformer_set(directory: Path, energy: str = "wb97") -> list[Reference]:
    """The conformer benchmark of Folmsbee and Hutchison (doi:10.1002/qua.26381): geometries of B3LYP-D3BJ, ``energy`` a column of its table
    of atomisation energies. Molecules that cannot be described, or that MMFF94 does not know, are not among them.

    Bond orders are those of molecules.smi, stereochemistry that of the first geometry.
    """
    if not (directory / "geometries_mol.tar.xz").is_file():
        raise IncompatibleError(f"there is no geometries_mol.tar.xz in {directory}: expected the directory of the conformer benchmark.")
    smiles = dict(reversed(line.split()) for line in (directory / "molecules.smi").read_text().splitlines() if line.strip())
    energies: dict[tuple[str, str], float] = {}
    with open(directory / "energies.csv", newline="") as stream:
        for row in csv.DictReader(stream):
            if row[energy]:
                energies[row["name"], row["geom"].removesuffix(".mol")] = -float(row[energy])
    found = []
    for name, blocks in sorted(_geometries(directory / "geometries_mol.tar.xz").items()):
        known = {key: block for key, block in blocks.items() if (name, key) in energies}
        try:
            if name in smiles and known:
                found.append(_reference(name, smiles[name], list(known.values()), [energies[name, key] for key in known]))
        except DiGError:
            continue
    return found


def read_ligands(path: Path) -> Iterator[Chem.Mol]:
    """Molecules of an SDF file, one at a time; those that cannot be described are not among them."""
    with rdBase.BlockLogs():
        for mol in Chem.SDMolSupplier(str(path), removeHs=False):
            if mol is None:
                continue
            Chem.AssignStereochemistryFrom3D(mol)
            try:
                check_molecule(mol)
                check_parameters(mol)
            except DiGError:
                continue
            yield mol


def _geometries(archive: Path) -> dict[str, dict[str, str]]:
    """Molecule -> geometry -> MOL block."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    with tarfile.open(archive) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is not None:
                name, file = member.name.split("/")[-2:]
                found[name][file.removesuffix(".mol")] = stream.read().decode()
    return found


def _reference(name: str, smiles: str, blocks: list[str], energies: list[float]) -> Reference:
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
        if mol is None:
            raise IncompatibleError(f"{smiles!r} is not SMILES.")
        mol = Chem.AddHs(mol)
        Chem.RemoveStereochemistry(mol)
        placed = {number: frame for number, block in enumerate(blocks) if (frame := _positions(mol, block)) is not None}
    if not placed:
        raise IncompatibleError(f"no geometry of {name} has the bonds of {smiles}.")
    for frame in placed.values():
        conformer = Chem.Conformer(mol.GetNumAtoms())
        conformer.Set3D(True)
        conformer.SetPositions(frame)
        mol.AddConformer(conformer, assignId=True)
    Chem.AssignStereochemistryFrom3D(mol, 0)
    check_molecule(mol)
    check_parameters(mol)
    kept = []
    for conformer, number in enumerate(placed):
        try:
            check_structure(mol, conformer)
            kept.append(number)
        except IncompatibleError:
            mol.RemoveConformer(conformer)
    energy = np.array(energies)[kept]
    return Reference(name, mol, energy - energy.min(), len(blocks) - len(kept))


def _positions(mol: Chem.Mol, block: str) -> np.ndarray | None:
    """(N, 3) of a MOL block in the order of ``mol``, matched by elements and bonds alone: its bond orders are not to be trusted.
    None where it has other bonds: some geometries have rearranged."""
    other = Chem.MolFromMolBlock(block, sanitize=False, removeHs=False)
    match = () if other is None else _flat(other).GetSubstructMatch(_flat(mol))
    if len(match) != mol.GetNumAtoms() or other.GetNumAtoms() != len(match):
        return None
    return np.ascontiguousarray(other.GetConformer().GetPositions()[list(match)])


def _flat(mol: Chem.Mol) -> Chem.Mol:
    """Elements and single bonds."""
    flat = Chem.RWMol()
    for atom in mol.GetAtoms():
        plain = Chem.Atom(atom.GetAtomicNum())
        plain.SetNoImplicit(True)
        flat.AddAtom(plain)
    for bond in mol.GetBonds():
        flat.AddBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), Chem.BondType.SINGLE)
    return flat.GetMol()
