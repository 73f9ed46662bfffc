"""A ligand and the residues about it as one OpenMM System: Sage for the one, Amber ff14SB for the others, the order of atoms kept."""

from __future__ import annotations

from collections.abc import Sequence

import openmm as mm
from openmm import app
from rdkit import Chem

from dig_core.errors import IncompatibleError, UnsupportedError

from .ligand import SAGE, ligand_system

__all__ = ["AMBER", "complex_system"]

AMBER = ("amber14/protein.ff14SB.xml", "amber14/tip3p.xml")
"""OpenMM's files of Amber ff14SB (doi:10.1021/acs.jctc.5b00255), of TIP3P waters and ions."""

_TERMS = {mm.HarmonicBondForce: ("Bond", 2), mm.HarmonicAngleForce: ("Angle", 3), mm.PeriodicTorsionForce: ("Torsion", 4)}
"""Force -> what its terms are called, and how many atoms one has."""


def complex_system(
    ligand: Chem.Mol,
    pocket: Chem.Mol,
    *,
    system: mm.System | None = None,
    charges: Sequence[float] | None = None,
    force_field: str = SAGE,
    protein: Sequence[str] = AMBER,
) -> mm.System:
    """OpenMM System of the ligand's atoms, then the pocket's, in the order of both molecules: no cutoff, no constraints, vacuum.

    Residues keep the charges that they have in the protein. Hydrogens that cap cut bonds are particles without any interaction, and terms
    that reach across a cut are left out. Lennard-Jones between ligand and pocket by Lorentz-Berthelot rules, as within both.

    Parameters
    ----------
    ligand: with all hydrogens. system: of the ligand alone, by any force field; Sage's if None, for which ``charges`` and ``force_field``
        are as in :func:`.ligand.ligand_system`.
    pocket: whole residues with hydrogens and their PDB information, as ``Pocket.mol`` of ``dig_plugins.rdkit.read_pocket`` has them; an
        atom without that information is a cap.
    protein: force-field files for the pocket, OpenMM's or one's own.

    Raises
    ------
    IncompatibleError: a pocket without PDB information, a ``system`` of another size; charges, as :func:`.ligand.partial_charges`.
    UnsupportedError: what a force field does not know; one that is more than bonds, angles, torsions, charges and Lennard-Jones;
    constraints.
    """
    n = ligand.GetNumAtoms()
    mine = ligand_system(ligand, charges=charges, force_field=force_field) if system is None else system
    if mine.getNumParticles() != n:
        raise IncompatibleError(f"expected a System of the ligand's {n} atoms, got one of {mine.getNumParticles()}.")
    if mine.getNumConstraints():
        raise UnsupportedError("expected a System without constraints, whose bonds have no energy: take an unconstrained force field.")
    theirs, order = _residues(pocket, protein)
    weights = [atom.GetMass() for mol in (ligand, pocket) for atom in mol.GetAtoms()]
    return _merged(weights, [(mine, list(range(n))), (theirs, [n + k for k in order])])


def _merged(weights: list[float], parts: list[tuple[mm.System, list[int]]]) -> mm.System:
    """One System of particles of such masses (dalton): those that a part names as it has them, the others without interactions."""
    system, nonbonded, terms = mm.System(), mm.NonbondedForce(), {kind: kind() for kind in _TERMS}
    for weight in weights:
        system.addParticle(weight)
        nonbonded.addParticle(0.0, 0.1, 0.0)
    for part, where in parts:
        for force in part.getForces():
            if isinstance(force, mm.NonbondedForce):
                _copy_nonbonded(force, nonbonded, where)
            elif type(force) in _TERMS:
                _copy_terms(force, terms[type(force)], where)
            elif not isinstance(force, mm.CMMotionRemover):
                raise UnsupportedError(f"{type(force).__name__} is not covered: take force fields of harmonic bonds, angles and torsions.")
    for force in (*terms.values(), nonbonded):
        system.addForce(force)
    return system


def _residues(pocket: Chem.Mol, protein: Sequence[str]) -> tuple[mm.System, list[int]]:
    """System of the pocket without its caps, and which atom of the pocket each particle is."""
    topology, order = _topology(pocket)
    # Without external bonds a thiolate looks like half of a bridge: the charge on its sulphur says which it is.
    sulphurs = [(a.residue, pocket.GetAtomWithIdx(order[a.index])) for a in topology.atoms() if a.name == "SG"]
    bare = [(r, s) for r, s in sulphurs if not any(b.GetAtomicNum() == 1 and b.GetPDBResidueInfo() for b in s.GetNeighbors())]
    templates = {r: "CYM" if s.GetFormalCharge() < 0 else "CYX" for r, s in bare}
    try:
        field = app.ForceField(*protein)
        system = field.createSystem(
            topology, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False, ignoreExternalBonds=True, residueTemplates=templates
        )
    except Exception as error:  # OpenMM raises nothing narrower for files and templates that it does not know
        raise UnsupportedError(f"{', '.join(protein)} cannot describe the pocket: {error} Leave the residue out, or add a file.") from error
    return system, order


def _topology(pocket: Chem.Mol) -> tuple[app.Topology, list[int]]:
    """Topology of the pocket without its caps, and which atom of the pocket each of its atoms is."""
    topology, chain, residues = app.Topology(), None, {}
    for atom in pocket.GetAtoms():
        at = atom.GetPDBResidueInfo()
        if at is not None:
            key = (at.GetChainId(), at.GetResidueNumber(), at.GetInsertionCode(), at.GetResidueName().strip())
            residues.setdefault(key, []).append(atom)
    if not residues:
        raise IncompatibleError("expected a pocket with PDB residue information, as read_pocket gives it in Pocket.mol.")
    made, order = {}, []
    for (name, number, code, kind), atoms in residues.items():
        chain = topology.addChain(name) if chain is None or chain.id != name else chain
        residue = topology.addResidue(kind, chain, str(number), code)
        for atom in atoms:
            label = atom.GetPDBResidueInfo().GetName().strip()
            made[atom.GetIdx()] = topology.addAtom(label, app.Element.getByAtomicNumber(atom.GetAtomicNum()), residue)
            order.append(atom.GetIdx())
    for bond in pocket.GetBonds():
        ends = (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
        if all(end in made for end in ends):
            topology.addBond(*(made[end] for end in ends))
    return topology, order


def _copy_terms(source: mm.Force, target: mm.Force, where: list[int]) -> None:
    name, count = _TERMS[type(source)]
    read, add = getattr(source, f"get{name}Parameters"), getattr(target, f"add{name}")
    for k in range(getattr(source, f"getNum{name}s")()):
        term = read(k)
        add(*(where[i] for i in term[:count]), *term[count:])


def _copy_nonbonded(source: mm.NonbondedForce, target: mm.NonbondedForce, where: list[int]) -> None:
    for i, atom in enumerate(where):
        target.setParticleParameters(atom, *source.getParticleParameters(i))
    for k in range(source.getNumExceptions()):
        i, j, *pair = source.getExceptionParameters(k)
        target.addException(where[i], where[j], *pair)
