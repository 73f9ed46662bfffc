"""Atoms as PDB and mmCIF files name them, or a topology of MDTraj; of alternate locations one."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dig_core.errors import IncompatibleError
from dig_core.system.protein import BACKBONE

__all__ = ["CIF", "PDB", "Atom", "Model", "kind_of", "named_atoms", "one_location", "read_models"]

PDB = (".pdb", ".ent", ".pdb.gz", ".ent.gz")
CIF = (".cif", ".mmcif", ".pdbx", ".cif.gz", ".mmcif.gz", ".pdbx.gz")
"""Endings of the files that :func:`read_models` reads."""

_WORD = re.compile(r"""'(.*?)'(?=\s|$)|"(.*?)"(?=\s|$)|(\S+)""")


class Atom(NamedTuple):
    """One atom. ``chain``: its letters, of a file without them the segment; ``part`` counts the molecules of files that have neither.

    ``number``: None if it cannot be read, which files with more than 9999 residues have; ``free``: of a molecule that is no part of
    the chain whose letter it bears.
    """

    name: str
    residue: str
    number: int | None
    insertion: str
    chain: str
    part: int
    alternate: str
    occupancy: float
    hydrogen: bool
    free: bool

    @property
    def place(self) -> tuple:
        """The residue it stands in, whatever that is called."""
        return self.chain, self.part, self.number, self.insertion, self.free


class Model(NamedTuple):
    """One of a file's structures: its atoms and where they are, (n, 3) Angstrom."""

    atoms: tuple[Atom, ...]
    positions: np.ndarray


def kind_of(path: str | Path) -> str:
    """The ending of a file's name in small letters, ``.gz`` with the one before it."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def read_models(path: str | Path) -> list[Model]:
    """Every model of a PDB or mmCIF file (``.gz`` as well), all alternate locations, atoms in the file's order.

    Chains and numbers of mmCIF are the authors' (``auth_asym_id``, ``auth_seq_id``), which PDB files of the same entry have.
    Raises IncompatibleError for a file that is not there, has no atoms, or has a line that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise IncompatibleError(f"there is no file {path}: expected a structure.")
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8", errors="replace") as stream:
            models = _of_cif(stream.read(), path.name) if kind_of(path) in CIF else _of_pdb(stream, path.name)
    except (OSError, EOFError, zlib.error) as error:
        raise IncompatibleError(f"{path} cannot be read: {error}") from error
    if not models:
        raise IncompatibleError(f"{path} has no atoms: expected ATOM records of a protein.")
    return models


def named_atoms(topology) -> tuple[Atom, ...]:
    """The atoms of a topology of MDTraj, which knows no insertion codes and no alternate locations."""
    found = []
    for atom in topology.atoms:
        residue, chain = atom.residue, atom.residue.chain
        letters = (getattr(chain, "chain_id", None) or residue.segment_id or "").strip()
        hydrogen = atom.element is not None and atom.element.symbol in ("H", "D")
        row = Atom(atom.name, residue.name, residue.resSeq, "", letters, chain.index, "", 1.0, hydrogen, False)
        found.append(row)
    return tuple(found)


def one_location(atoms: Sequence[Atom]) -> tuple[list[int], set[tuple]]:
    """Indices of the atoms that stay, and the places where backbone atoms had alternate locations.

    A residue keeps the location with the highest occupancy, of equal ones the first letter, and what others have besides.
    """
    if not any(atom.alternate for atom in atoms):
        return list(range(len(atoms))), set()
    weight: dict[tuple, dict[str, float]] = {}
    backbone: dict[tuple, set[str]] = {}
    for atom in atoms:
        if atom.alternate:
            known = weight.setdefault(atom.place, {})
            known[atom.alternate] = max(known.get(atom.alternate, 0.0), atom.occupancy)
            if atom.name in BACKBONE:
                backbone.setdefault(atom.place, set()).add(atom.alternate)
    order = {place: sorted(known, key=lambda letter: (-known[letter], letter)) for place, known in weight.items()}
    rank = [order[atom.place].index(atom.alternate) if atom.alternate else -1 for atom in atoms]
    called = {atom.place: atom.residue for atom, r in zip(atoms, rank, strict=True) if r == 0}
    best: dict[tuple, int] = {}
    for index, atom in enumerate(atoms):
        key = (atom.place, atom.name)
        other = rank[index] > 0 and atom.residue != called[atom.place]
        if not other and (key not in best or rank[index] < rank[best[key]]):
            best[key] = index
    kept = [i for i, atom in enumerate(atoms) if rank[i] < 0 or best.get((atom.place, atom.name)) == i]
    return kept, {place for place, letters in backbone.items() if len(letters) > 1}


def _of_pdb(lines: Iterable[str], name: str) -> list[Model]:
    models: list[Model] = []
    atoms: list[Atom] = []
    places: list[tuple[float, ...]] = []
    ended: set[str] = set()
    part = 0
    for count, line in enumerate(lines, 1):
        if line.startswith(("ATOM  ", "HETATM")):
            try:
                places.append((float(line[30:38]), float(line[38:46]), float(line[46:54])))
            except ValueError as error:
                raise IncompatibleError(f"{name}, line {count}: expected coordinates in columns 31 to 54, got {line[30:54]!r}.") from error
            atoms.append(_pdb_atom(line, part, ended))
        elif line.startswith("TER"):
            ended.add(line[21:22].strip() or (atoms[-1].chain if atoms else ""))
            part += 1
        elif line.startswith(("END", "MODEL ")) and atoms:
            models.append(Model(tuple(atoms), np.array(places)))
            atoms, places, ended, part = [], [], set(), 0
    return [*models, Model(tuple(atoms), np.array(places))] if atoms else models


def _pdb_atom(line: str, part: int, ended: set[str]) -> Atom:
    name, chain, element = line[12:16].strip(), line[21].strip() or line[72:76].strip(), line[76:78].strip().upper()
    return Atom(
        name=name, residue=line[17:21].strip(), number=_integer(line[22:26]), insertion=line[26].strip(), chain=chain,
        part=0 if chain else part, alternate=line[16].strip(), occupancy=_real(line[54:60]),
        hydrogen=_is_hydrogen(element, name), free=line.startswith("HETATM") and bool(chain) and chain in ended,
    )  # fmt: skip


def _of_cif(text: str, name: str) -> list[Model]:
    head = re.search(r"^\s*loop_\s+((?:_atom_site\.\S+\s+)+)", text, re.MULTILINE | re.IGNORECASE)
    if head is None:
        raise IncompatibleError(f"{name} has no loop of _atom_site: expected mmCIF, the format of the Protein Data Bank.")
    keys = [key.partition(".")[2].lower() for key in head.group(1).split()]
    words = list(_words(text, head.end()))
    if len(words) % len(keys):
        raise IncompatibleError(f"{name}: expected {len(keys)} columns of _atom_site, the last row has {len(words) % len(keys)}.")
    column = {key: words[k :: len(keys)] for k, key in enumerate(keys)}
    rows = len(words) // len(keys)

    def read(*names: str) -> list[str]:
        """The first of these columns that has a value, row by row."""
        chosen = [column[key] for key in names if key in column]
        return [next((word for word in row if word not in (".", "?")), "") for row in zip(*chosen, strict=True)] or [""] * rows

    try:
        places = np.array([[float(word) for word in read(f"cartn_{axis}")] for axis in "xyz"]).T
    except ValueError as error:
        raise IncompatibleError(f"{name}: expected numbers as coordinates (Cartn_x, _y, _z): {error}.") from error
    names, polymer, group = read("auth_atom_id", "label_atom_id"), read("label_seq_id"), read("group_pdb")
    fields = zip(
        names, read("auth_comp_id", "label_comp_id"), map(_integer, read("auth_seq_id", "label_seq_id")), read("pdbx_pdb_ins_code"),
        read("auth_asym_id", "label_asym_id"), [0] * rows, read("label_alt_id"), map(_real, read("occupancy")),
        map(_is_hydrogen, read("type_symbol"), names), [g == "HETATM" and not p for g, p in zip(group, polymer, strict=True)],
        strict=True,
    )  # fmt: skip
    atoms, number = [Atom(*row) for row in fields], read("pdbx_pdb_model_num")
    found = {which: [i for i, n in enumerate(number) if n == which] for which in dict.fromkeys(number)}
    return [Model(tuple(atoms[i] for i in own), places[own]) for own in found.values()]


def _words(text: str, start: int) -> Iterator[str]:
    """The values of a loop from ``start`` on, to where the next item begins."""
    for line in text[start:].splitlines():
        if line.startswith(("_", "loop_", "data_", "save_")):
            return
        # Some writers put a comment between models.
        if line.startswith("#"):
            continue
        if "'" in line or '"' in line:
            yield from (match.group(match.lastindex or 0) for match in _WORD.finditer(line))
        else:
            yield from line.split()


def _integer(word: str) -> int | None:
    try:
        return int(word)
    except ValueError:
        return None


def _real(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return 1.0


def _is_hydrogen(element: str, name: str) -> bool:
    return element.upper() in ("H", "D") if element else name.lstrip("0123456789").startswith("H")
