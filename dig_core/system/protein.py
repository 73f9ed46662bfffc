"""A protein's backbone: its descriptor, which is the sequence, and where ideal residues have their atoms."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import IncompatibleError, UnsupportedError
from ..types import Geometry
from .descriptor import Descriptor

__all__ = ["BACKBONE", "LETTERS", "NAMES", "PROTEIN_SCHEMA", "RESIDUES", "Residues", "crop", "ideal_residue", "protein", "residues"]

PROTEIN_SCHEMA = "protein/1"
"""Columns of ``node``: kind of the residue (index in RESIDUES), atom (index in BACKBONE), residue number, chain. ``pair`` has none."""

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
"""One-letter codes of the residues that are known."""

LETTERS = {
    "ALA": "A", "CYS": "C", "ASP": "D", "GLU": "E", "PHE": "F", "GLY": "G", "HIS": "H", "ILE": "I", "LYS": "K", "LEU": "L",
    "MET": "M", "ASN": "N", "PRO": "P", "GLN": "Q", "ARG": "R", "SER": "S", "THR": "T", "VAL": "V", "TRP": "W", "TYR": "Y",
}  # fmt: skip
"""Names of the residues that are known -> one-letter codes."""

NAMES = {letter: name for name, letter in LETTERS.items()}

BACKBONE = ("N", "CA", "C", "O", "CB")
"""Atoms of a residue in this order; glycine has no CB."""

_ELEMENTS = (7, 6, 6, 8, 6)

# Angstrom and degrees, R. A. Engh and R. Huber, Acta Crystallographica A47, 392 (1991), https://doi.org/10.1107/S0108767391001071;
# N-CA-C, and CA-C-O below, as they revised them in International Tables for Crystallography F, chapter 18.3 (2001).
_N_CA, _CA_C, _CA_CB = 1.458, 1.525, 1.530
_N_CA_C, _N_CA_CB, _C_CA_CB = 111.0, 110.5, 110.1


class Residues(NamedTuple):
    """What a descriptor says of its N residues: ``kind``, ``number`` and ``chain`` (N,), and ``atoms`` (N, 5), the index of each atom
    of BACKBONE, -1 where there is none."""

    kind: Tensor
    number: Tensor
    chain: Tensor
    atoms: Tensor

    def to(self, device: torch.device) -> Residues:
        """The same on another device."""
        return Residues(*(part.to(device) for part in self))

    def follows(self) -> Tensor:
        """(N - 1,) bool: whether a residue is bonded to the one before it: the next number on the same chain."""
        return (self.chain[1:] == self.chain[:-1]) & (self.number[1:] == self.number[:-1] + 1)


def protein(sequence: str, *, numbers=None, chains=None, positions=None, single=None, couple=None) -> Descriptor:
    """Descriptor of a backbone from its sequence, with atoms N, CA, C, O, CB residue after residue (glycine without CB).

    Parameters
    ----------
    sequence: one-letter codes, N of them, from RESIDUES.
    numbers: (N,) residue numbers, rising along each chain; residues missing from a structure are numbers left out. 1 to N if not given.
    chains: (N,) chain indices; one chain if not given.
    positions: (A, 3) Angstrom, a reference structure.
    single, couple: (N, Cs) and (N, N, Cp) embeddings of residues and of pairs by a sequence model, which networks made for
        them read.

    Raises
    ------
    UnsupportedError: a letter that is no standard residue.
    IncompatibleError: an empty sequence, arrays of other lengths, or numbers that do not rise along a chain.
    """
    for place, letter in enumerate(sequence, 1):
        if letter not in RESIDUES:
            raise UnsupportedError(
                f"expected residues of {RESIDUES}, got {letter!r} at position {place}: name the standard residue it is to be treated as."
            )
    n = len(sequence)
    number = torch.arange(1, n + 1) if numbers is None else torch.as_tensor(numbers, dtype=torch.long)
    chain = torch.zeros(n, dtype=torch.long) if chains is None else torch.as_tensor(chains, dtype=torch.long)
    if not n or number.shape != (n,) or chain.shape != (n,):
        raise IncompatibleError(
            f"expected at least one residue and a number and a chain for each, got {n}, {tuple(number.shape)} and {tuple(chain.shape)}."
        )
    last: dict[int, int] = {}
    for at, along in zip(number.tolist(), chain.tolist(), strict=True):
        if at <= last.get(along, at - 1):
            raise IncompatibleError(f"residue numbers must rise along a chain, got {last[along]} and then {at}.")
        last[along] = at
    kind = torch.tensor([RESIDUES.index(letter) for letter in sequence])
    rows = [
        (int(kind[r]), atom, int(number[r]), int(chain[r])) for r in range(n) for atom in range(4 if sequence[r] == "G" else 5)
    ]  # fmt: skip
    node = torch.tensor(rows)
    if positions is not None:
        positions = torch.as_tensor(positions, dtype=torch.float64).reshape(1, -1, 3)
        if positions.shape[1] != len(rows):
            raise IncompatibleError(f"expected {len(rows)} reference positions for this sequence, got {positions.shape[1]}.")
    return Descriptor(
        numbers=torch.tensor(_ELEMENTS)[node[:, 1]], node=node, pair=torch.zeros(len(rows), len(rows), 0, dtype=torch.long),
        bonds=_bonds(node), mobile=torch.ones(len(rows), dtype=torch.bool), reference=None if positions is None else Geometry(positions),
        pbc=torch.zeros(3, dtype=torch.bool), schema=PROTEIN_SCHEMA,
        single=_embedding(single, (n,), "single"), couple=_embedding(couple, (n, n), "couple"),
    )  # fmt: skip


def residues(descriptor: Descriptor) -> Residues:
    """The residues of a protein's descriptor. Raises UnsupportedError for a descriptor of something else."""
    if descriptor.schema != PROTEIN_SCHEMA:
        raise UnsupportedError(f"expected the descriptor of a protein ({PROTEIN_SCHEMA}), got {descriptor.schema}: use protein().")
    kind, atom, number, chain = descriptor.node.unbind(1)
    first = (atom == 0).nonzero()[:, 0]
    owner = (atom == 0).cumsum(0) - 1
    atoms = torch.full((len(first), len(BACKBONE)), -1)
    atoms[owner, atom] = torch.arange(len(atom))
    return Residues(kind[first], number[first], chain[first], atoms)


def crop(descriptor: Descriptor, chosen: Tensor) -> Descriptor:
    """The residues ``chosen`` (M,), rising indices, alone: their atoms, reference and embeddings."""
    known = residues(descriptor)
    letters = "".join(RESIDUES[k] for k in known.kind[chosen].tolist())
    atoms, reference = known.atoms[chosen].flatten(), descriptor.reference
    positions = None if reference is None else reference.positions[0, atoms[atoms >= 0]]
    single, couple = descriptor.single, descriptor.couple
    return protein(
        letters, numbers=known.number[chosen], chains=known.chain[chosen], positions=positions,
        single=None if single is None else single[chosen], couple=None if couple is None else couple[chosen][:, chosen],
    )  # fmt: skip


def ideal_residue() -> Tensor:
    """(5, 3) Angstrom, float64: N, CA, C, O, CB of an L-residue in its own frame; O is that of a psi of 140 degrees.

    CA is the origin, C lies on the x axis, N in the x-y plane on the side of positive y.
    """
    angle, o_turn = math.radians(_N_CA_C), math.radians(140.0 - 180.0)
    nitrogen = _N_CA * torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=torch.float64)
    carbon = torch.tensor([_CA_C, 0.0, 0.0], dtype=torch.float64)
    # A torsion N-CA-C-O, looking along x with N up: 120.1 degrees at C, 1.231 Angstrom.
    bend = math.radians(180.0 - 120.1)
    side = [math.cos(bend), math.sin(bend) * math.cos(o_turn), math.sin(bend) * math.sin(o_turn)]
    oxygen = carbon + 1.231 * torch.tensor(side, dtype=torch.float64)
    to_c = math.cos(math.radians(_C_CA_CB))
    to_n = (math.cos(math.radians(_N_CA_CB)) - math.cos(angle) * to_c) / math.sin(angle)
    beta = _CA_CB * torch.tensor([to_c, to_n, -math.sqrt(1 - to_c**2 - to_n**2)], dtype=torch.float64)
    return torch.stack([nitrogen, torch.zeros_like(nitrogen), carbon, oxygen, beta])


def _bonds(node: Tensor) -> Tensor:
    """(M, 2): inside residues, and from C to the next N of the chain."""
    place = {}
    bonds = []
    for index, (_, atom, number, chain) in enumerate(node.tolist()):
        place[chain, number, atom] = index
        partner = {0: (number - 1, 2), 1: (number, 0), 2: (number, 1), 3: (number, 2), 4: (number, 1)}[atom]
        if (chain, *partner) in place:
            bonds.append((place[(chain, *partner)], index))
    return torch.tensor(bonds).reshape(-1, 2)


def _embedding(given, lead: tuple[int, ...], name: str) -> Tensor | None:
    """float32 of shape (*lead, C), finite, or None."""
    if given is None:
        return None
    found = torch.as_tensor(given, dtype=torch.float32)
    if found.dim() != len(lead) + 1 or tuple(found.shape[:-1]) != lead:
        raise IncompatibleError(f"expected the {name} embedding as {(*lead, 'C')} for {lead[0]} residues, got {tuple(found.shape)}.")
    if not bool(found.isfinite().all()):
        raise IncompatibleError(f"the {name} embedding has numbers that are not finite.")
    return found
