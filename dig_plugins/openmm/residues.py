"""Proteins of an OpenMM Topology as chains of residues, and what all-atom forces are to their backbone frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import openmm
import torch
from openmm import app
from torch import Tensor

from dig_core.coordinates.backbone import Backbone
from dig_core.energy import Energy
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.progress import Show, bar
from dig_core.system.descriptor import Descriptor
from dig_core.system.protein import BACKBONE, LETTERS, protein, residues
from dig_core.training.losses import Frames
from dig_core.types import Geometry

from .constraints import without_constraints
from .convert import label, to_geometry
from .energy import OpenMMEnergy

__all__ = ["BackboneFrames", "ProteinAtoms", "backbone_descriptor", "frame_forces"]

_STATES = {
    "H": "HID HIE HIP HSD HSE HSP", "C": "CYX CYM", "D": "ASH ASPP", "E": "GLH GLUP", "K": "LYN LSN", "R": "ARN", "Y": "TYM",
}  # fmt: skip
_KNOWN = {**LETTERS, **{name: letter for letter, names in _STATES.items() for name in names.split()}}
"""With the names of their protonation states and disulfides in Amber and CHARMM."""

_CAPS = frozenset("ACE FOR NME NMA NHE NH2".split())


class ProteinAtoms(NamedTuple):
    """The backbone of an all-atom topology with M atoms, N residues of which A atoms are in the descriptor.

    ``descriptor``: of the sequence; ``index`` (A,): its atoms N, CA, C, O, CB in the topology; ``owner`` (M,): the residue, 0 to
    N - 1, that each atom of the topology moves with. Caps move with the residue that they are bonded to.
    """

    descriptor: Descriptor
    index: Tensor
    owner: Tensor

    @property
    def alpha(self) -> Tensor:
        """(N,) indices of the alpha carbons in the topology."""
        return self.index[residues(self.descriptor).atoms[:, 1]]


@dataclass(frozen=True, kw_only=True)
class BackboneFrames(Frames):
    """Frames with forces of F structures: ``kept`` (F,) which of the given ones they are, ``energy`` (F,) their u = E/kT, and
    ``failed``, the number of those that have no finite energy or force and are left out."""

    kept: Tensor
    energy: Tensor
    failed: int


def backbone_descriptor(topology: app.Topology, *, numbers: Sequence[int] | None = None) -> ProteinAtoms:
    """The protein in an OpenMM Topology, which must hold nothing else; residues stay in order.

    Parameters
    ----------
    topology: with bonds. Residues follow each other where a peptide bond ties them.
    numbers: (N,) of the residues, caps not counted; the topology's own if not given. They must rise by one over a peptide bond, and by
        more, or to another chain, where there is none.

    Raises
    ------
    UnsupportedError: water, ions, other molecules and unknown residues, by name; peptide bonds in a ring or out of order.
    IncompatibleError: backbone atoms that are missing, caps on their own, numbers that contradict the bonds.
    """
    everything = list(topology.residues())
    _check_names(everything)
    members = [residue for residue in everything if residue.name.upper() in _KNOWN]
    place = {residue: r for r, residue in enumerate(members)}
    order = {chain: c for c, chain in enumerate(dict.fromkeys(residue.chain for residue in members))}
    chains = [order[residue.chain] for residue in members]
    given = _own_numbers(members) if numbers is None else list(numbers)
    letters = "".join(_KNOWN[residue.name.upper()] for residue in members)
    descriptor = protein(letters, numbers=given, chains=chains)
    _check_bonds(topology, place, residues(descriptor).follows().tolist())
    place |= {cap: place[_neighbour(topology, cap, place)] for cap in everything if cap not in place}
    owner = torch.tensor([place[atom.residue] for atom in topology.atoms()])
    return ProteinAtoms(descriptor, torch.tensor([i for residue in members for i in _backbone(residue)]), owner)


def frame_forces(
    source: openmm.System | Energy, positions, atoms: ProteinAtoms, temperature=None, *,
    coordinates: Backbone | None = None, platform: str = "auto", batch: int = 64, progress: Show = None,
) -> BackboneFrames:  # fmt: skip
    """Frames of all-atom structures with the forces on them: the energy's gradient by the chain rule, -d(E/kT)/d(frame).

    Force and torque of a frame are those of all atoms of its residue moved as one body. Averaged over what frames forget (side chains,
    hydrogens, bonds and angles inside residues) this is grad log p(frames), see :meth:`Backbone.force`. Of one structure it is an
    unbiased estimate of that mean force, whose variance neither more structures nor t -> 0 take away: the boundary condition of
    physics-informed training, score(t -> 0) = force, holds in the mean over the forgotten atoms. A loss of squares has the right
    minimum, and its value there is that variance, not zero. What weighs, cuts or picks structures by the size of their force biases
    the mean; so do structures whose forgotten atoms are not at the temperature, such as minimised ones.

    Constraints inside a residue change nothing: neither their lengths nor their mass-metric factor (doi:10.1073/pnas.71.8.3050) depend
    on where the residue is, and their forces add up to none, and to no torque. Those between residues do, and are refused.

    Parameters
    ----------
    source: a System (constraints=HBonds or None; vacuum or implicit solvent), or an Energy of all atoms, which has its own temperature.
    positions: (F, M, 3) of all atoms, nm or a Quantity. atoms: of the topology, from :func:`backbone_descriptor`.
    temperature: K or a Quantity, with a System. coordinates: the model's; ``Backbone()`` if None.
    platform: with a System, as in :class:`OpenMMEnergy`.

    Returns
    -------
    BackboneFrames, float32 as all training frames; structures without a finite energy are left out and counted.

    Raises
    ------
    UnsupportedError: constraints between residues, and what OpenMMEnergy refuses.
    IncompatibleError: other numbers of atoms, a temperature missing or given twice, no structure with a finite energy.
    """
    energy = _energy(source, atoms, temperature, platform)
    everything, coordinates = to_geometry(positions).positions, coordinates or Backbone()
    if everything.shape[1] != len(atoms.owner):
        raise IncompatibleError(f"expected positions (F, {len(atoms.owner)}, 3) for this topology, got {tuple(everything.shape)}.")
    parts: list[tuple] = []
    for low in bar(range(0, len(everything), batch), label="forces on frames", progress=progress):
        points = everything[low : low + batch]
        u, gradient = _gradient(energy, points)
        force = coordinates.force(points, -gradient, atoms.owner, atoms.alpha)
        # Overlapping atoms have finite forces that single precision does not hold.
        good = u.isfinite() & torch.stack([f.float().isfinite().flatten(1).all(1) for f in force.values()]).all(0)
        state, _ = coordinates.encode(Geometry(points[good][:, atoms.index]), atoms.descriptor)
        parts.append((state, {name: f[good] for name, f in force.items()}, low + good.nonzero()[:, 0], u[good]))
    kept, u = (torch.cat([part[k] for part in parts]) if parts else torch.zeros(0) for k in (2, 3))
    if not len(kept):
        why = getattr(energy, "last_error", None)
        raise IncompatibleError(
            f"expected structures with a finite energy, got {len(everything)} and none has one{': ' + why if why else ''}. "
            "Check units (nm) and the order of atoms."
        )
    state, force = ({name: torch.cat([part[k][name] for part in parts]).float() for name in parts[0][k]} for k in (0, 1))
    return BackboneFrames(state, force, kept=kept, energy=u, failed=len(everything) - len(kept))


def _energy(source, atoms: ProteinAtoms, temperature, platform: str) -> Energy:
    if not isinstance(source, openmm.System):
        if temperature is not None:
            raise IncompatibleError("expected a temperature with a System only, got one beside an Energy, which has its own: leave it out.")
        return source
    if temperature is None:
        raise IncompatibleError("expected temperature= (K) beside the System: forces are those of E/kT.")
    if source.getNumParticles() != len(atoms.owner):
        raise IncompatibleError(f"expected a System of {len(atoms.owner)} atoms as the topology has, got {source.getNumParticles()}.")
    pairs = [source.getConstraintParameters(k)[:2] for k in range(source.getNumConstraints())]
    across = [(i, j) for i, j in pairs if atoms.owner[i] != atoms.owner[j]]
    if across:
        i, j = across[0]
        raise UnsupportedError(
            f"{len(across)} constraint(s) between residues, the first between atoms {i} and {j} of residues {int(atoms.owner[i])} and "
            f"{int(atoms.owner[j])}: they hold frames to each other with forces that no energy tells. Use constraints=HBonds or None."
        )
    return OpenMMEnergy(without_constraints(source), temperature, platform=platform)


def _gradient(energy: Energy, points: Tensor) -> tuple[Tensor, Tensor]:
    """u (B,) and its gradient (B, M, 3), zero where u is not finite."""
    if hasattr(energy, "energy_and_gradient"):
        return energy.energy_and_gradient(Geometry(points))
    leaf = points.clone().requires_grad_()
    with torch.enable_grad():
        u = energy(Geometry(leaf))
        (gradient,) = torch.autograd.grad(u[u.isfinite()].sum(), leaf)
    return u.detach(), gradient


def _check_names(everything: list) -> None:
    names = [residue.name.upper() for residue in everything]
    refused = {name: [r for r in everything if r.name.upper() == name] for name in names if name not in _KNOWN and name not in _CAPS}
    if refused:
        named = ", ".join(f"{len(found)} {name} (the first is {name}{found[0].id})" for name, found in refused.items())
        raise UnsupportedError(
            f"expected standard residues and their caps, got {named}. Delete water, ions and other molecules with "
            "app.Modeller(topology, positions).delete(...) and build the System again, in implicit solvent."
        )
    if not any(name in _KNOWN for name in names):
        raise IncompatibleError("expected at least one residue of a protein, got none.")


def _own_numbers(members: list) -> list[int]:
    found = []
    for residue in members:
        if not residue.id.strip().lstrip("-").isdigit():
            raise IncompatibleError(f"expected residue numbers, got {residue.id!r} of {residue.name}: pass numbers=.")
        found.append(int(residue.id))
    return found


def _backbone(residue) -> list[int]:
    """Indices of N, CA, C, O, CB, the last but in glycine."""
    named = {atom.name: atom.index for atom in residue.atoms()}
    wanted = BACKBONE[:4] if residue.name.upper() == "GLY" else BACKBONE
    missing = [name for name in wanted if name not in named]
    if missing:
        raise IncompatibleError(
            f"{residue.name}{residue.id} has no {', '.join(missing)}: complete the structure first, with PDBFixer for example."
        )
    return [named[name] for name in wanted]


def _check_bonds(topology: app.Topology, place: dict, follows: list[bool]) -> None:
    """Peptide bonds are those that the numbers tell."""
    members = list(place)
    tied = set()
    for one, other in topology.bonds():
        ends = {one.name: one.residue, other.name: other.residue}
        if ends.keys() == {"C", "N"} and one.residue is not other.residue and all(end in place for end in ends.values()):
            tied.add((place[ends["C"]], place[ends["N"]]))
    odd = sorted((i, j) for i, j in tied if j != i + 1)
    if odd:
        first, second = (f"{members[r].name}{members[r].id}" for r in odd[0])
        raise UnsupportedError(f"a peptide bond from {first} to {second}: expected chains whose residues stand in order, and no rings.")
    for r, told in enumerate(follows):
        if told != ((r, r + 1) in tied):
            first, second = (f"{members[k].name}{members[k].id}" for k in (r, r + 1))
            raise IncompatibleError(
                f"residues {first} and {second} are {'not bonded' if told else 'bonded'}, against their numbers and chains. "
                + ("Bonds: topology.createStandardBonds()." if told else "Where residues are missing in between, complete the structure;")
                + " Numbers that mean nothing: pass numbers=, rising by one over each peptide bond, by more where there is none."
            )


def _neighbour(topology: app.Topology, cap, place: dict):
    for one, other in topology.bonds():
        for inside, outside in ((one, other), (other, one)):
            if inside.residue is cap and outside.residue in place:
                return outside.residue
    raise IncompatibleError(f"the cap with {label(next(cap.atoms()))} is bonded to no residue: call topology.createStandardBonds().")
