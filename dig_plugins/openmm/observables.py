"""Named dihedrals of an OpenMM Topology, and what ensembles of peptides are compared by."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from openmm import app

from dig_core.coordinates.measure import angle, bond, dihedral
from dig_core.errors import IncompatibleError

__all__ = ["LEFT_HANDED", "Backbone", "backbone_dihedrals", "dipeptide_observables", "peptide_observables"]

LEFT_HANDED = (0.0, np.radians(130.0))
"""phi of the left-handed states. Not all of phi > 0: extended structures cross 180 degrees all the time, which is no visit."""


class Backbone(NamedTuple):
    """Atom indices (R, 4) of the phi and psi dihedrals of the residues that have both, in chain order."""

    phi: np.ndarray
    psi: np.ndarray

    def measure(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """phi and psi (F, R) in (-pi, pi] of ``positions`` (F, N, 3), any unit of length."""
        points = torch.as_tensor(np.asarray(positions), dtype=torch.float64)
        return dihedral(points, self.phi).numpy(), dihedral(points, self.psi).numpy()


def backbone_dihedrals(topology: app.Topology) -> Backbone:
    """phi (C-N-CA-C) and psi (N-CA-C-N) found by following bonds from each CA; capping groups count as neighbours."""
    bonded: dict[int, list] = {atom.index: [] for atom in topology.atoms()}
    for first, second in topology.bonds():
        bonded[first.index].append(second)
        bonded[second.index].append(first)

    def neighbour(atom, symbol: str, *, outside) -> int | None:
        found = [a.index for a in bonded[atom.index] if a.element.symbol == symbol and a.residue is not outside]
        return found[0] if len(found) == 1 else None

    phi, psi = [], []
    for residue in topology.residues():
        named = {atom.name: atom for atom in residue.atoms()}
        if not {"N", "CA", "C"} <= named.keys():
            continue
        n, ca, c = (named[name] for name in ("N", "CA", "C"))
        before, after = neighbour(n, "C", outside=residue), neighbour(c, "N", outside=residue)
        if before is not None and after is not None:
            phi.append((before, n.index, ca.index, c.index))
            psi.append((n.index, ca.index, c.index, after))
    if not phi:
        raise IncompatibleError("no residue of this topology has both phi and psi: expected peptide bonds on both sides of an N, CA, C.")
    return Backbone(np.array(phi), np.array(psi))


_BONDS = ["ACE.C-ACE.O", "ALA.N-ALA.H", "ALA.N-ALA.CA", "ALA.CA-ALA.CB", "ALA.CA-ALA.C", "ALA.C-NME.N", "NME.N-NME.C"]
_ANGLES = ["ACE.C-ALA.N-ALA.CA", "ALA.N-ALA.CA-ALA.C", "ALA.N-ALA.CA-ALA.CB", "ALA.CA-ALA.C-NME.N", "ALA.C-NME.N-NME.C"]
_OMEGAS = ["ACE.CH3-ACE.C-ALA.N-ALA.CA", "ALA.CA-ALA.C-NME.N-NME.C"]
_METHYLS = ["ACE.H1-ACE.CH3-ACE.C-ALA.N", "ALA.N-ALA.CA-ALA.CB-ALA.HB1", "ALA.C-NME.N-NME.C-NME.H1"]
_DISTANCES = {
    "end to end": "ACE.CH3-NME.C",
    "carbonyls": "ACE.O-ALA.O",
    "H bond C7": "ACE.O-NME.H",
    "H bond C5": "ALA.H-ALA.O",
    "side": "ACE.O-ALA.CB",
}


def dipeptide_observables(topology: app.Topology, positions: np.ndarray) -> dict[str, np.ndarray]:
    """33 observables (F,) by name, of ``positions`` (F, 22, 3) nm of the alanine dipeptide: what exactness is judged by.

    Lengths in nm, angles in radians, cosines and sines of torsions, populations of regions as 0 or 1 a frame. The region
    ``left`` is that of :data:`LEFT_HANDED`. IncompatibleError if an atom is missing or called otherwise.
    """
    points = torch.as_tensor(np.asarray(positions), dtype=torch.float64)
    number = {f"{atom.residue.name}.{atom.name}": atom.index for atom in topology.atoms()}

    def measured(kind, names: list[str]) -> np.ndarray:
        try:
            return kind(points, [[number[atom] for atom in name.split("-")] for name in names]).numpy().T
        except KeyError as error:
            raise IncompatibleError(f"expected the alanine dipeptide ACE-ALA-NME, found no atom {error}.") from error

    found = {f"bond {name}": x for name, x in zip(_BONDS, measured(bond, _BONDS), strict=True)}
    found |= {f"angle {name}": x for name, x in zip(_ANGLES, measured(angle, _ANGLES), strict=True)}
    found |= dict(zip(_DISTANCES, measured(bond, list(_DISTANCES.values())), strict=True))
    heavy = points[:, [atom.index for atom in topology.atoms() if atom.element.symbol != "H"]]
    found["radius of gyration"] = (heavy - heavy.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt().numpy()
    phi, psi = (angles[:, 0] for angles in backbone_dihedrals(topology).measure(points.numpy()))
    torsions = {"phi": phi, "psi": psi, **dict(zip(("omega 1", "omega 2"), measured(dihedral, _OMEGAS), strict=True))}
    for name, torsion in torsions.items():
        found |= {f"cos {name}": np.cos(torsion), f"sin {name}": np.sin(torsion)}
    for name, torsion in zip(("ACE", "ALA", "NME"), measured(dihedral, _METHYLS), strict=True):
        found[f"methyl {name} cos 3x"] = np.cos(3 * torsion)
    return {**found, **_regions(phi, psi)}


def peptide_observables(topology: app.Topology, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Observables (F,) by name, of ``positions`` (F, N, 3) nm of any capped peptide: more than twenty of the smallest.

    Bonds and angles of heavy atoms along the backbone, ends, size; of every residue cosines and sines of phi and psi and populations of
    regions as in :func:`dipeptide_observables`; cis peptide bonds; the sign of chi 1 of prolines, which tells their puckers. nm, radians.
    """
    points = torch.as_tensor(np.asarray(positions), dtype=torch.float64)
    backbone, heavy = backbone_dihedrals(topology), [a.index for a in topology.atoms() if a.element.symbol != "H"]
    phi, psi = backbone.measure(points.numpy())
    found: dict[str, np.ndarray] = {}
    for number, (row, last) in enumerate(zip(backbone.phi, backbone.psi[:, 3], strict=True), 1):
        before, n, ca, c = (int(a) for a in row)
        pairs = {"C-N": (before, n), "N-CA": (n, ca), "CA-C": (ca, c), "C-N after": (c, int(last))}
        found |= {f"bond {name} {number}": bond(points, [pair])[:, 0].numpy() for name, pair in pairs.items()}
        triples = {"C-N-CA": (before, n, ca), "N-CA-C": (n, ca, c), "CA-C-N": (ca, c, int(last))}
        found |= {f"angle {name} {number}": angle(points, [triple])[:, 0].numpy() for name, triple in triples.items()}
        for name, torsion in (("phi", phi[:, number - 1]), ("psi", psi[:, number - 1])):
            found |= {f"cos {name} {number}": np.cos(torsion), f"sin {name} {number}": np.sin(torsion)}
        found |= {f"{name} {number}": x for name, x in _regions(phi[:, number - 1], psi[:, number - 1]).items()}
    for name, quadruple in _peptide_bonds(topology).items():
        omega = dihedral(points, [quadruple])[:, 0].numpy()
        found |= {f"cis {name}": (np.abs(omega) < 0.5 * np.pi).astype(np.float64), f"cos omega {name}": np.cos(omega)}
    for residue in topology.residues():
        if residue.name == "PRO":
            at = {a.name: a.index for a in residue.atoms()}
            chi = dihedral(points, [[at[a] for a in ("N", "CA", "CB", "CG")]])[:, 0].numpy()
            found |= {f"pucker down {residue.name} {residue.id}": (chi > 0).astype(np.float64), f"cos chi 1 {residue.name}": np.cos(chi)}
    found["end to end"] = bond(points, [(heavy[0], heavy[-1])])[:, 0].numpy()
    middle = points[:, heavy]
    found["radius of gyration"] = (middle - middle.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt().numpy()
    return found


def _peptide_bonds(topology: app.Topology) -> dict[str, tuple[int, int, int, int]]:
    """CA-C-N-CA of every peptide bond, caps' carbons included, named after the residue whose N it is."""
    bonded: dict[int, list] = {atom.index: [] for atom in topology.atoms()}
    for first, second in topology.bonds():
        bonded[first.index].append(second)
        bonded[second.index].append(first)
    found = {}
    for residue in topology.residues():
        for n in (a for a in residue.atoms() if a.name == "N"):
            before = next((a for a in bonded[n.index] if a.residue is not residue and a.name == "C"), None)
            after = next((a for a in bonded[n.index] if a.residue is residue and a.name in ("CA", "C", "CH3")), None)
            if before is not None and after is not None:
                carbon = next(a for a in bonded[before.index] if a.name in ("CA", "CH3"))
                found[f"{residue.name} {residue.id}"] = (carbon.index, before.index, n.index, after.index)
    return found


def _regions(phi: np.ndarray, psi: np.ndarray) -> dict[str, np.ndarray]:
    """Populations of the Ramachandran plane; what is missing to one is polyproline-like."""
    left = (phi > LEFT_HANDED[0]) & (phi < LEFT_HANDED[1])
    helical = ~left & (np.abs(psi + np.radians(35)) < np.radians(85))
    extended = ~left & ~helical & ~((phi > np.radians(-100)) & (phi <= 0))
    masks = {"left": left, "helical": helical, "extended": extended, "helical, phi < -90": helical & (phi < -np.pi / 2)}
    return {f"region {name}": mask.astype(np.float64) for name, mask in masks.items()}
