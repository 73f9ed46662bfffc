"""All atoms of a protein from its backbone: one built structure of the sequence, whose side chains and hydrogens go along with frames."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import openmm
import torch
from openmm import app, unit
from torch import Tensor

from dig_core.coordinates.backbone import Backbone
from dig_core.coordinates.measure import extend, frame, offset
from dig_core.errors import IncompatibleError
from dig_core.system.descriptor import Descriptor
from dig_core.system.protein import BACKBONE, NAMES, RESIDUES, residues
from dig_core.types import Geometry

from .convert import to_geometry, to_nanometers

__all__ = ["SideChains", "build", "extended"]


# Angstrom and degrees: bonds, angles and torsions of C-N, N-CA, CA-C in an extended chain, Engh and Huber (1991) as in dig_core.
_LINKS = ((1.329, 116.6, 140.0), (1.458, 121.7, 180.0), (1.525, 111.0, -120.0))
_RING = -65.0
"""phi that proline's ring asks for."""
_CARBOXYL = (1.25, 117.0)
"""The second oxygen of an end, in the plane of the first. PDBFixer's own is sometimes pushed to the wrong side."""
_APART = 50.0
"""Angstrom between the pieces of a chain that are not bonded to each other, where they are built."""

_PH = 7.0


class SideChains(NamedTuple):
    """``topology`` of all M atoms; ``index`` (A,) of the descriptor's atoms in it; and of the atoms that are added, ``places``
    (K, 4): each with the three given atoms it stands by, and ``offsets`` (K, 3) Angstrom in their frame."""

    topology: app.Topology
    index: Tensor
    places: Tensor
    offsets: Tensor

    def put(self, given: Tensor) -> Tensor:
        """(B, M, 3) Angstrom from the descriptor's atoms (B, A, 3): those as they are, the others rigidly by them."""
        whole = given.new_full((len(given), self.topology.getNumAtoms(), 3), torch.nan, dtype=torch.float64)
        whole[:, self.index] = given.double()
        j, k, m = (whole[:, self.places[:, column]] for column in (1, 2, 3))
        axes = torch.stack(frame(m, k, j), -2)
        whole[:, self.places[:, 0]] = j + (self.offsets[..., None] * axes).sum(-2)
        return whole

    def like(self, positions: Tensor) -> SideChains:
        """The same with side chains as they are in (M, 3) Angstrom."""
        return self._replace(offsets=offset(positions[None], self.places)[0])


def build(descriptor: Descriptor, *, disulfides: Sequence[tuple[int, int]] = (), seed: int = 0) -> SideChains:
    """All atoms of a sequence, built once on an extended chain by PDBFixer: heavy atoms, then hydrogens at pH 7.

    Every piece of a chain without a gap gets charged ends. ``disulfides``: pairs of residues, 0 to N - 1, both cysteine; the others
    are reduced. Raises ImportError without PDBFixer, IncompatibleError where it cannot build the sequence.
    """
    given = extended(descriptor)
    topology, order = _backbone_topology(descriptor)
    text = io.StringIO()
    app.PDBFile.writeFile(topology, to_nanometers(given)[0, order] * unit.nanometer, text)
    fixer = _fixer(text.getvalue())
    fixer.missingResidues = {}
    try:
        fixer.findMissingAtoms()
        fixer.addMissingAtoms(seed=seed)
        _bridge(fixer.topology, descriptor, disulfides)
        fixer.addMissingHydrogens(_PH)
    except (ValueError, KeyError, openmm.OpenMMException) as error:
        raise IncompatibleError(f"PDBFixer cannot build the side chains of this sequence: {error}") from error
    found = fixer.topology
    index = _rename(found, descriptor)
    places = _places(found, descriptor, index)
    offsets = offset(to_geometry(fixer.positions).positions, places)[0]
    names = [atom.name for atom in found.atoms()]
    length, theta = _CARBOXYL[0], math.radians(_CARBOXYL[1])
    for row, atom in enumerate(places[:, 0].tolist()):
        if names[atom] == "OXT":
            offsets[row] = length * torch.tensor([-math.cos(theta), -math.sin(theta), 0.0])
    return SideChains(found, index, places, offsets)


def extended(descriptor: Descriptor) -> Geometry:
    """(1, A, 3) Angstrom: every piece of a chain stretched out in ideal geometry, phi -120 (proline -65), psi 140 degrees, pieces apart."""
    known = residues(descriptor)
    placed = torch.zeros(1, descriptor.n_atoms, 3, dtype=torch.float64)
    ideal = Backbone().ideal.double()
    piece, chain = 0, []
    for r, tied in enumerate([False, *known.follows().tolist()]):
        if tied:
            for number, (bond, theta, torsion) in enumerate(_LINKS):
                turn = _RING if number == 2 and RESIDUES[int(known.kind[r])] == "P" else torsion
                link = (torch.tensor([[x]], dtype=torch.float64) for x in (bond, math.radians(theta), math.radians(turn)))
                chain.append(extend(*chain[-3:], *link))
        else:
            chain = [(ideal[k] + torch.tensor([0.0, _APART * piece, 0.0])).view(1, 1, 3) for k in range(3)]
            piece += 1
        placed[0, known.atoms[r, :3]] = torch.cat(chain[-3:], 1)[0]
    backbone = Backbone()
    return backbone.decode(backbone.encode(Geometry(placed), descriptor)[0], descriptor)


def _fixer(text: str):
    try:
        from pdbfixer import PDBFixer
    except ImportError as error:
        raise ImportError("completing backbones needs PDBFixer: pip install pdbfixer") from error
    return PDBFixer(pdbfile=io.StringIO(text))


def _backbone_topology(descriptor: Descriptor) -> tuple[app.Topology, list[int]]:
    """Topology of the given atoms, a chain a piece, and the descriptor's atoms in its order."""
    known, topology, order = residues(descriptor), app.Topology(), []
    for r, tied in enumerate([False, *known.follows().tolist()]):
        if not tied:
            chain = topology.addChain()
        residue = topology.addResidue(NAMES[RESIDUES[int(known.kind[r])]], chain)
        for name, atom in zip(BACKBONE, known.atoms[r].tolist(), strict=True):
            if atom >= 0:
                topology.addAtom(name, app.Element.getBySymbol(name[0]), residue)
                order.append(atom)
    topology.createStandardBonds()
    return topology, order


def _bridge(topology: app.Topology, descriptor: Descriptor, pairs: Sequence[tuple[int, int]]) -> None:
    kind, members = residues(descriptor).kind.tolist(), list(topology.residues())
    sulfur = {r: atom for r, residue in enumerate(members) for atom in residue.atoms() if atom.name == "SG"}
    for pair in pairs:
        if any(not 0 <= r < len(kind) or RESIDUES[kind[r]] != "C" for r in pair) or pair[0] == pair[1]:
            raise IncompatibleError(f"expected disulfides= as pairs of cysteines, got {tuple(pair)}.")
        topology.addBond(*(sulfur[r] for r in pair))


def _rename(topology: app.Topology, descriptor: Descriptor) -> Tensor:
    """Give residues the descriptor's numbers; (A,) the descriptor's atoms in the topology."""
    known = residues(descriptor)
    index = torch.zeros(descriptor.n_atoms, dtype=torch.long)
    for r, residue in enumerate(topology.residues()):
        residue.id = str(int(known.number[r]))
        named = {atom.name: atom.index for atom in residue.atoms()}
        for name, atom in zip(BACKBONE, known.atoms[r].tolist(), strict=True):
            if atom >= 0:
                index[atom] = named[name]
    return index


def _places(topology: app.Topology, descriptor: Descriptor, index: Tensor) -> Tensor:
    """(K, 4): each added atom, with three given ones whose frame it goes along with.

    The hydrogen of a peptide stands in the plane of C, N and CA, the end's second oxygen in that of CA, C and O, all else by N, CA, C.
    """
    atoms, follows = index[residues(descriptor).atoms.clamp_min(0)], [False, *residues(descriptor).follows().tolist()]
    given, places = set(index.tolist()), []
    for r, residue in enumerate(topology.residues()):
        n, alpha, carbon, oxygen = atoms[r, :4].tolist()
        for atom in residue.atoms():
            if atom.index in given:
                continue
            if atom.name == "H" and follows[r]:
                by = (n, alpha, int(atoms[r - 1, 2]))
            elif atom.name == "OXT":
                by = (carbon, alpha, oxygen)
            else:
                by = (alpha, carbon, n)
            places.append((atom.index, *by))
    return torch.tensor(places).reshape(-1, 4)
