"""Which of a file's atoms are a backbone's: residue by residue, chain by chain, with notes on what is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.system.protein import BACKBONE, LETTERS, NAMES

from .atoms import Atom
from .names import CAPS, WATERS, hint, letter_of, replacements

__all__ = ["Picked", "listed", "pick"]

_OXYGEN = ("O", "OT1", "OC1", "O1", "OT", "OXT", "OT2", "OC2", "O2")
"""What programs call the carbonyl oxygen, at the end of a chain as well; the first that is there is taken."""

_ENDS = frozenset({"OXT", "OT2", "OC2", "O2"})


class Picked(NamedTuple):
    """The residues of a backbone: ``letters`` (N,) one-letter codes, ``names`` (N,) as messages name them, ``labels`` (N,) such as
    ``A:60B``, ``numbers``, ``chains`` and ``inserted`` (N,), whether it has an insertion code, ``titles`` of the chains in the file, and
    ``index`` (N, 5), the atoms of BACKBONE, -1 for one that is not there (of glycine's CB as well)."""

    letters: str
    names: tuple[str, ...]
    labels: tuple[str, ...]
    numbers: tuple[int, ...]
    chains: tuple[int, ...]
    inserted: tuple[bool, ...]
    titles: tuple[str, ...]
    index: np.ndarray
    notes: tuple[str, ...]


@dataclass
class _Group:
    """Atoms of one residue or molecule, name -> index, as they come."""

    first: Atom
    found: dict[str, int] = field(default_factory=dict)
    count: int = 0
    hydrogens: int = 0
    part: int = 0

    @property
    def chain(self) -> tuple[str, int]:
        return self.first.chain, self.part

    @property
    def said(self) -> str:
        at = f"{self.first.residue} {self.first.number}{self.first.insertion}"
        return f"{at} of chain {self.first.chain}" if self.first.chain else at

    @property
    def label(self) -> str:
        at = f"{self.first.number}{self.first.insertion}"
        return f"{self.first.chain}:{at}" if self.first.chain else at

    def amino(self, replace: Mapping[str, str | None]) -> bool:
        """Whether it is a residue of a chain, of whatever name."""
        name = self.first.residue.upper()
        out = self.first.free or name in CAPS or replace.get(name, "") is None
        return not out and {"N", "CA", "C"} <= self.found.keys()


def listed(items: Iterable[str], most: int = 6) -> str:
    """``a, b, c``; of more than ``most`` the first ones and how many more there are."""
    items = list(items)
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def pick(
    atoms: Sequence[Atom], source: str, *, chain: str | int | None = None, replace: Mapping[str, str | None] | None = None,
    alternates: Iterable[tuple] = (),
) -> Picked:  # fmt: skip
    """The backbone among ``atoms`` (no alternate locations any more; ``alternates``: places that had some).

    Raises UnsupportedError for a residue that is not known, IncompatibleError where there is no such chain or no backbone.
    """
    known, notes = replacements(replace), []
    groups = _groups(atoms, known, notes)
    groups, order = _of_chain(groups, known, chain, source, notes)
    kept = [group for group in groups if group.amino(known)]
    letters = [letter_of(group.first.residue, known) for group in kept]
    for group, letter in zip(kept, letters, strict=True):
        if letter is None:
            raise UnsupportedError(
                f"{source}: {group.said} is no standard residue. Read it as one, {hint(group.first.residue)}, or leave it out, "
                f'replace={{"{group.first.residue}": None}}.'
            )
        if group.first.number is None:
            raise IncompatibleError(f"{source}: the number of a residue {group.first.residue} cannot be read; expected an integer.")
    left = [group for group in groups if not group.amino(known)]
    if not kept:
        raise IncompatibleError(_nothing(left, known, source))
    notes += _replaced(kept, letters) + _left_out(left, known)
    several = set(alternates)
    several_names = [group.said for group in kept if group.first.place in several]
    if several_names:
        notes.append(f"of alternate locations the one with the highest occupancy is taken: {listed(several_names)}.")
    index = np.array([[_place(group, name, letter) for name in BACKBONE] for group, letter in zip(kept, letters, strict=True)])
    hydrogens = sum(group.hydrogens for group in kept)
    others = sum(group.count for group in kept) - hydrogens - int((index >= 0).sum())
    beyond = [_counted(count, word) for count, word in ((hydrogens, "hydrogen"), (others, "other atom")) if count]
    if beyond:
        notes.append(f"left out beyond the backbone: {' and '.join(beyond)}.")
    return Picked(
        "".join(letter or "" for letter in letters), tuple(g.said for g in kept), tuple(g.label for g in kept),
        tuple(int(g.first.number or 0) for g in kept), tuple(order.index(g.chain) for g in kept),
        tuple(bool(g.first.insertion) for g in kept), tuple(letters for letters, _ in order), index, tuple(notes),
    )  # fmt: skip


def _groups(atoms: Sequence[Atom], replace: Mapping[str, str | None], notes: list[str]) -> list[_Group]:
    """Residues and molecules, those of one chain behind each other; a chain ends where its numbers fall."""
    current: dict[tuple, _Group] = {}
    groups: list[_Group] = []
    for index, atom in enumerate(atoms):
        key = (atom.place, atom.residue)
        group = current.get(key)
        # Many waters may share one number; then their first atom comes again.
        if group is None or atom.name == group.first.name:
            group = current[key] = _Group(atom)
            groups.append(group)
        group.found.setdefault(atom.name, index)
        group.count += 1
        group.hydrogens += atom.hydrogen
    rank = {key: k for k, key in enumerate(dict.fromkeys((g.first.chain, g.first.part) for g in groups))}
    groups.sort(key=lambda group: rank[group.first.chain, group.first.part])
    last: dict[tuple, _Group] = {}
    seen: set[tuple] = set()
    part = 0
    for group in groups:
        key = (group.first.chain, group.first.part)
        before = last.get(key)
        part += key not in seen
        seen.add(key)
        if before is not None and group.amino(replace):
            falls = (group.first.number or 0) < (before.first.number or 0) or group.first.place == before.first.place
            ended = not group.first.chain and bool(_ENDS & before.found.keys())
            if falls:
                notes.append(f"residue numbers fall from {before.said} to {group.said}: a chain of its own begins there.")
            part += falls or ended
        group.part = part
        if group.amino(replace):
            last[key] = group
    return groups


def _of_chain(
    groups: list[_Group], replace: Mapping[str, str | None], chain: str | int | None, source: str, notes: list[str]
) -> tuple[list[_Group], list[tuple[str, int]]]:
    """The groups of the chain that is asked for, and the chains that have residues, in their order."""
    order = list(dict.fromkeys(group.chain for group in groups if group.amino(replace)))
    if chain is None:
        if len(order) > 1:
            titles = (f"{k} is {name or 'without a letter'}" for k, (name, _) in enumerate(order))
            notes.append(f"{len(order)} chains: {listed(titles, 12)}.")
        return groups, order
    wanted = [key for k, key in enumerate(order) if (k == chain if isinstance(chain, int) else key[0] == chain.strip())]
    if not wanted:
        there = ", ".join(f"{k} ({name or 'no letter'})" for k, (name, _) in enumerate(order)) or "none with residues"
        raise IncompatibleError(f"{source} has no chain {chain!r}: choose by letter or index among {there}.")
    if len(order) > len(wanted):
        notes.append(f"chains left out: {listed(name or str(k) for k, (name, part) in enumerate(order) if (name, part) not in wanted)}.")
    return [group for group in groups if group.chain in wanted], wanted


def _place(group: _Group, name: str, letter: str | None) -> int:
    if name == "O":
        return next((group.found[other] for other in _OXYGEN if other in group.found), -1)
    return -1 if name == "CB" and letter == "G" else group.found.get(name, -1)


def _replaced(kept: list[_Group], letters: Sequence[str | None]) -> list[str]:
    seen: dict[tuple[str, str], int] = {}
    for group, letter in zip(kept, letters, strict=True):
        name = group.first.residue
        if LETTERS.get(name) != letter:
            standard = NAMES[letter or ""]
            seen[name, standard] = seen.get((name, standard), 0) + 1
    return [f"{name} is read as {standard} ({_counted(count, 'residue')})." for (name, standard), count in seen.items()]


def _left_out(left: list[_Group], replace: Mapping[str, str | None]) -> list[str]:
    kinds: dict[str, list[_Group]] = {}
    for group in left:
        kinds.setdefault(_kind(group, replace), []).append(group)
    notes = []
    for kind, found in kinds.items():
        if kind == "waters":
            notes.append(f"left out: {_counted(len(found), 'water')}.")
        elif kind == "ions":
            names = listed(sorted({group.first.residue for group in found}))
            notes.append(f"left out: {_counted(len(found), 'ion')}, {names}.")
        else:
            notes.append(f"left out, {kind}: {listed(group.said for group in found)}.")
    return notes


def _kind(group: _Group, replace: Mapping[str, str | None]) -> str:
    name = group.first.residue.upper()
    if name in WATERS:
        return "waters"
    if name in CAPS:
        return "caps"
    if replace.get(name, "") is None:
        return "as asked"
    if letter_of(name, replace) is not None:
        return "free amino acids" if group.first.free else "residues without N, CA or C"
    return "ions" if group.count == 1 else "other molecules"


def _nothing(left: list[_Group], replace: Mapping[str, str | None], source: str) -> str:
    """What to say of a file without a backbone."""
    residues = [group for group in left if letter_of(group.first.residue, replace) is not None]
    if residues and all("CA" in group.found for group in residues):
        return f"{source} has only C-alphas ({len(residues)} residues): frames need N, CA, C of each. Use a file with the backbone."
    there = listed(sorted({group.first.residue for group in left})) or "nothing"
    return f"{source} has no residue with N, CA and C; it has {there}. Frames need a protein's backbone."


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count > 1 else ''}"
