"""A molecule whose interactions with its surroundings are switched by Context parameters, for Hamiltonian exchange."""

from __future__ import annotations

import copy
import math

import openmm
from openmm import unit

from dig_core.errors import IncompatibleError, UnsupportedError

__all__ = ["COUPLINGS", "decouple"]

COUPLINGS = ("lambda_electrostatics", "lambda_sterics")
"""Context parameters of a System from :func:`decouple`: 1 as the force field has it, 0 switched off."""

_INSIDE = {
    "HarmonicBondForce", "HarmonicAngleForce", "PeriodicTorsionForce", "RBTorsionForce", "CMAPTorsionForce", "CMMotionRemover",
    "MonteCarloBarostat",
}  # fmt: skip
_SOFT_CORE = (
    "4*lambda_sterics*epsilon*x*(x-1); x=1/(0.5*(1-lambda_sterics)+(r/sigma)^6);"
    "sigma=0.5*(sigma1+sigma2); epsilon=sqrt(epsilon1*epsilon2)"
)


def decouple(system: openmm.System, atoms) -> openmm.System:
    """A copy of the System whose ``atoms`` (whole molecules) feel the others by :data:`COUPLINGS`, both 1 at first.

    Within ``atoms`` all interactions stay as they are, without cutoff. Charges go linearly with ``lambda_electrostatics``;
    Lennard-Jones interactions with the others by a soft core with ``lambda_sterics`` (Beutler et al.,
    doi:10.1016/0009-2614(94)00397-1, alpha = 1/2). Switch charges off before sterics. At (1, 1) the energy is the given
    System's but for the dispersion correction of the pairs in question, a constant at constant volume; at (0, 0) ``atoms`` do
    not feel the others.

    Raises
    ------
    IncompatibleError: no NonbondedForce. UnsupportedError: a force that cannot be divided between ``atoms`` and the others, or
    a NonbondedForce with a method other than PME or NoCutoff, for which pairs within ``atoms`` would change.
    """
    free, inside = copy.deepcopy(system), sorted({int(a) for a in atoms})
    nonbonded = [force for force in free.getForces() if isinstance(force, openmm.NonbondedForce)]
    others = sorted({type(f).__name__ for f in free.getForces()} - _INSIDE - {"NonbondedForce"})
    if others:
        raise UnsupportedError(f"{', '.join(others)}: cannot be switched off between two parts of a System. Use a NonbondedForce alone.")
    if len(nonbonded) != 1:
        raise IncompatibleError(f"expected one NonbondedForce, the System has {len(nonbonded)}.")
    force = nonbonded[0]
    if force.getNonbondedMethod() not in (force.PME, force.NoCutoff):
        raise UnsupportedError("expected a NonbondedForce with PME or NoCutoff: with others pairs inside the molecule would change.")
    soft = _soft_core(force, inside, free.getNumParticles())
    _keep_inside(force, inside)
    force.addGlobalParameter(COUPLINGS[0], 1.0)
    for atom in inside:
        charge, sigma, _ = force.getParticleParameters(atom)
        force.setParticleParameters(atom, 0.0, sigma, 0.0)
        force.addParticleParameterOffset(COUPLINGS[0], atom, charge, 0.0, 0.0)
    # Platforms ask that all nonbonded forces exclude the same pairs.
    for number in range(force.getNumExceptions()):
        i, j, *_ = force.getExceptionParameters(number)
        soft.addExclusion(i, j)
    free.addForce(soft)
    return free


def _keep_inside(force: openmm.NonbondedForce, inside: list[int]) -> None:
    """Every pair of ``inside`` as an exception with its own full parameters, which no coupling touches."""
    known = {frozenset(force.getExceptionParameters(n)[:2]) for n in range(force.getNumExceptions())}
    plain = {a: [p._value for p in force.getParticleParameters(a)] for a in inside}
    for n, i in enumerate(inside):
        for j in inside[n + 1 :]:
            if frozenset((i, j)) not in known:
                (qi, si, ei), (qj, sj, ej) = plain[i], plain[j]
                force.addException(i, j, qi * qj, (si + sj) / 2, math.sqrt(ei * ej))


def _soft_core(force: openmm.NonbondedForce, inside: list[int], n: int) -> openmm.CustomNonbondedForce:
    soft = openmm.CustomNonbondedForce(_SOFT_CORE)
    soft.setName("SoftCore")
    soft.addGlobalParameter(COUPLINGS[1], 1.0)
    for name in ("sigma", "epsilon"):
        soft.addPerParticleParameter(name)
    for atom in range(n):
        _, sigma, epsilon = (p.value_in_unit_system(unit.md_unit_system) for p in force.getParticleParameters(atom))
        soft.addParticle([sigma if sigma > 0 else 0.1, epsilon])
    members = set(inside)
    soft.addInteractionGroup(inside, [a for a in range(n) if a not in members])
    if force.getNonbondedMethod() == force.NoCutoff:
        soft.setNonbondedMethod(soft.NoCutoff)
        return soft
    soft.setNonbondedMethod(soft.CutoffPeriodic)
    soft.setCutoffDistance(force.getCutoffDistance())
    soft.setUseSwitchingFunction(force.getUseSwitchingFunction())
    soft.setSwitchingDistance(force.getSwitchingDistance())
    return soft
