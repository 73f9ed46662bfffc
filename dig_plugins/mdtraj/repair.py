"""Backbones as files have them, checked and mended: cut by a periodic box, atoms missing, numbers that hide or feign a gap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dig_core.coordinates.backbone import Backbone
from dig_core.errors import IncompatibleError, StateError, UnsupportedError
from dig_core.system.descriptor import Descriptor
from dig_core.system.protein import BACKBONE, residues
from dig_core.types import Geometry

from .pick import Picked, listed

__all__ = ["break_notes", "check", "count_on", "peptides", "rebuild", "whole"]

_BOND, _BOX, _FLAT, _CHUNK = 2.5, 10.0, 0.1, 1000
"""Angstrom: from C to the next N above which there is no bond, the least edge of a cell that is more than a dummy, and the height of
N, CA, C over a line below which they fix no frame; frames that are mended at once."""


def peptides(positions: np.ndarray) -> np.ndarray:
    """(F, N - 1) Angstrom: from each C to the N of the next residue, of (F, N, 5, 3)."""
    return np.linalg.norm(positions[:, 1:, 0] - positions[:, :-1, 2], axis=-1)


def whole(positions: np.ndarray, cell: np.ndarray | None, picked: Picked) -> tuple[np.ndarray, tuple[str, ...]]:
    """Chains that a periodic box has cut put together again, each from its first residue on, and a note if there were any.

    ``positions`` (F, N, 5, 3), ``cell`` (F, 3, 3) Angstrom or None. Frames in which all bonds are intact stay as they are.
    """
    chain, number = np.array(picked.chains), np.array(picked.numbers)
    same = chain[1:] == chain[:-1]
    if cell is None:
        return positions, ()
    cut = (peptides(positions)[:, same & (number[1:] - number[:-1] <= 1)] > _BOND).any(1)
    cut &= np.isfinite(cell).all((1, 2)) & (np.linalg.norm(cell, axis=-1) > _BOX).all(1)
    if not cut.any():
        return positions, ()
    part, box = positions[cut], cell[cut]
    inverse = np.linalg.inv(box)

    def nearest(vectors: np.ndarray) -> np.ndarray:
        """The lattice vectors that bring these next to zero."""
        turns = np.round(np.einsum("f...i,fij->f...j", vectors, inverse))
        return -np.einsum("f...i,fij->f...j", turns, box)

    part = part + nearest(part - part[:, :, 1:2])
    step = np.zeros_like(part[:, :, 0])
    step[:, 1:] = nearest(part[:, 1:, 0] - part[:, :-1, 2]) * same[:, None]
    moved = step.cumsum(1)
    # From the first residue of its own chain on.
    start = np.maximum.accumulate(np.where(np.append(True, ~same), np.arange(len(chain)), 0))
    positions = positions.copy()
    positions[cut] = part + (moved - moved[:, start])[:, :, None]
    note = f"in {int(cut.sum())} of {len(cut)} frames the periodic box cut a chain; it was put together."
    return positions, (note,)


def check(positions: np.ndarray, picked: Picked, source: str) -> None:
    """Raise StateError for numbers that are not finite, IncompatibleError where there is no frame, UnsupportedError for D-residues.

    ``positions`` (F, N, 5, 3), NaN where an atom is missing by ``picked.index``.
    """
    wrong = ~np.isfinite(positions).all(-1) & (picked.index >= 0)
    if wrong.any():
        frame, r, atom = np.argwhere(wrong)[0]
        raise StateError(
            f"{source}: {BACKBONE[atom]} of {picked.names[r]} has no finite position in frame {frame}; leave such frames out."
        )
    nitrogen, alpha, carbon, beta = (positions[:, :, k] for k in (0, 1, 2, 4))
    far = np.maximum(np.linalg.norm(nitrogen - alpha, axis=-1), np.linalg.norm(carbon - alpha, axis=-1)) > _BOND
    if far.any():
        frame, r = np.argwhere(far)[0]
        raise IncompatibleError(
            f"{source}: N, CA and C of {picked.names[r]} are too far apart for bonds in frame {frame}; if a periodic box cut the residue, "
            "image the trajectory first."
        )
    normal = np.cross(nitrogen - alpha, carbon - alpha)
    flat = ~(np.linalg.norm(normal, axis=-1) > _FLAT * np.linalg.norm(carbon - alpha, axis=-1))
    if flat.any():
        frame, r = np.argwhere(flat)[0]
        raise IncompatibleError(f"{source}: N, CA and C of {picked.names[r]} stand on one line or at one place in frame {frame}.")
    # Positive for L: the hand of N, C and CB seen from CA. NaN, where there is no CB, is neither.
    mirrored = ((beta - alpha) * normal).sum(-1) < 0
    if mirrored.any():
        frame, r = np.argwhere(mirrored)[0]
        d = [name for name, wrong in zip(picked.names, mirrored[frame], strict=True) if wrong]
        mirror = " Most are: is it a mirror image?" if 2 * len(d) > (picked.index[:, 4] >= 0).sum() and len(d) > 1 else ""
        raise UnsupportedError(f"{source}: {listed(d)} is a D-amino acid in frame {frame}; only L-residues are covered.{mirror}")


def count_on(picked: Picked, gaps: np.ndarray) -> tuple[list[int], tuple[str, ...]]:
    """Residue numbers (N,), those of chains with insertion codes counted on from their first, and notes on them.

    ``gaps`` (N - 1,) Angstrom from C to N: bonded neighbours have numbers that follow each other, others do not.
    """
    coded = _coded(picked)
    numbers: list[int] = []
    for r, (chain, number) in enumerate(zip(picked.chains, picked.numbers, strict=True)):
        if chain in coded and r and picked.chains[r - 1] == chain:
            step = 1 if gaps[r - 1] <= _BOND else max(2, number - picked.numbers[r - 1])
            number = numbers[-1] + step
        numbers.append(number)
    notes = []
    for chain in sorted(coded):
        own = [r for r, c in enumerate(picked.chains) if c == chain]
        first = next(r for r in own if picked.inserted[r])
        notes.append(
            f"chain {picked.titles[chain] or chain} has insertion codes, so its residues are counted on from {numbers[own[0]]}: "
            f"{picked.labels[first]} is {numbers[first]}, {picked.labels[own[-1]]} is {numbers[own[-1]]}."
        )
    return numbers, tuple(notes)


def break_notes(picked: Picked, numbers: Sequence[int], gaps: np.ndarray) -> tuple[str, ...]:
    """What numbers and bonds (``gaps`` (F, N - 1) Angstrom) say against each other, and which numbers are left out."""
    missing, feigned, hidden, at_times, unbonded = [], [], [], [], []
    coded = _coded(picked)
    for r in range(len(numbers) - 1):
        if picked.chains[r] != picked.chains[r + 1]:
            continue
        pair, far = f"{picked.names[r]} and {picked.names[r + 1]}", gaps[:, r] > _BOND
        if numbers[r + 1] > numbers[r] + 1:
            if picked.chains[r] in coded:
                unbonded.append(pair)
            elif far.any():
                missing.append(f"{numbers[r + 1] - numbers[r] - 1} between {pair}")
            else:
                feigned.append(pair)
        elif far.all():
            hidden.append(f"{pair} ({gaps[:, r].mean():.1f} Angstrom)")
        elif far.any():
            at_times.append(f"{pair} ({int(far.sum())} of {len(far)} frames)")
    notes = [
        (missing, "residues are missing: {}."),
        (unbonded, "C and N are too far apart for a bond, so a number is left out: {}."),
        (feigned, "bonded though numbers between them are left out, which counts as a gap: {}."),
        (hidden, "numbers that follow each other hide a gap, C and N are too far apart for a bond: {}; number them apart."),
        (at_times, "C and N are too far apart for a bond: {}; if a periodic box cut the chain, image the trajectory first."),
    ]
    return tuple(text.format(listed(found)) for found, text in notes if found)


def rebuild(positions: np.ndarray, missing: np.ndarray, picked: Picked, descriptor: Descriptor) -> tuple[np.ndarray, tuple[str, ...]]:
    """O and CB where ``missing`` (1 or F, N, 5), placed by ideal geometry in the frame that N, CA and C fix, and notes on them."""
    if not missing.any():
        return positions, ()
    known = residues(descriptor).atoms >= 0
    coordinates, mended = Backbone(), positions.copy()
    for start in range(0, len(positions), _CHUNK):
        part = positions[start : start + _CHUNK]
        state, _ = coordinates.encode(Geometry(torch.from_numpy(part)[:, known]), descriptor)
        ideal = np.full_like(part, np.nan)
        ideal[:, known.numpy()] = coordinates.decode(state, descriptor).positions.numpy()
        ideal += part[:, :, 1].mean(1)[:, None, None]
        mended[start : start + _CHUNK] = np.where(np.isfinite(part), part, ideal)
    notes = []
    for atom in (3, 4):
        names = [name for name, lost in zip(picked.names, missing[..., atom].any(0), strict=True) if lost]
        if names:
            notes.append(f"{BACKBONE[atom]} is built by ideal geometry: {listed(names)}.")
    return mended, tuple(notes)


def _coded(picked: Picked) -> set[int]:
    """Chains with insertion codes."""
    return {chain for chain, inserted in zip(picked.chains, picked.inserted, strict=True) if inserted}
