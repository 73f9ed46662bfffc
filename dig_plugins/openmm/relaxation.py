"""Relaxing all-atom structures with some atoms held where they are: out of overlaps first, then in the force field; and a verdict."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import openmm
import torch
from openmm import app, unit

from dig_core.coordinates.measure import angle
from dig_core.errors import IncompatibleError, UnsupportedError

from .convert import label
from .platforms import ACCELERATORS, candidates, fastest, present

__all__ = ["Relaxed", "Relaxer"]

_DIAMETER = {"H": 0.22, "C": 0.34, "N": 0.325, "O": 0.30, "S": 0.36}
_POLAR = 0.10
"""nm, about the Lennard-Jones diameters of Amber's force fields (doi:10.1021/ja00124a002); of hydrogens on N, O and S the latter."""

_SOFT, _REPULSION, _WEAK = 0.75, 500.0, (2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""Strangers repel up to this share of their mean diameter; kJ/mol at no distance, and on the way there in a second try."""
_HOT, _STEPS, _TRIES = 600.0, 150, 3
"""K and femtoseconds of each of those, and tries in all."""

_CLOSE, _STRETCHED, _BENT = 0.6, 0.025, 35.0
"""What counts as a failure: strangers nearer than this share of their diameter, a bond this many nm or an angle this many degrees off."""

_TOLERANCE = 10.0  # kJ/mol/nm, as LocalEnergyMinimizer's own
_HELD, _FREE = 31, 0x7FFFFFFF
"""Force group of the restraint, and all the others."""


class Relaxed(NamedTuple):
    """``positions`` (M, 3) nm; energies ``before`` and ``after`` in kJ/mol without the restraint, NaN where there is none; ``failure``
    says what is wrong with the structure, None if nothing."""

    positions: np.ndarray
    before: float
    after: float
    failure: str | None


class Relaxer:
    """Minimises structures of one System, one after the other.

    Atoms that overlap have forces without direction or measure, so structures first relax among bonded forces and a weak repulsion of
    strangers; ``steps`` in the force field follow. What is then wrong (a bond through a ring) is tried again, hot for a while at first.

    Parameters
    ----------
    system, topology: of M atoms, with a NonbondedForce and harmonic bonds and angles, as Amber's and CHARMM's are.
    held: indices of the atoms tied to where they start by ``restraint`` (kJ/mol/nm^2) (x - x0)^2 / 2.
    positions: (M, 3) nm, any structure, to compare platforms with.
    platform, threads: as in OpenMMEnergy.
    """

    def __init__(
        self, system: openmm.System, topology: app.Topology, held: Sequence[int], positions: np.ndarray, *,
        restraint: float, steps: int, platform: str = "auto", threads: int | None = None,
    ):  # fmt: skip
        self._bonded, self._angles = _terms(system, openmm.HarmonicBondForce, 2), _terms(system, openmm.HarmonicAngleForce, 3)
        self._strangers, self._names = _Strangers(system, topology), list(topology.atoms())
        self._held, self._steps = [int(i) for i in held], int(steps)
        gentle = _without_nonbonded(system)
        gentle.addForce(self._strangers.repulsion())
        full = copy.deepcopy(system)
        self._ties = [_restraint(self._held, restraint) for _ in range(2)]
        for force, part in zip(self._ties, (gentle, full), strict=True):
            part.addForce(force)

        def build(name: str, properties: dict[str, str], which: openmm.System = full) -> openmm.Context:
            return openmm.Context(which, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(name), properties)

        if platform == "auto":
            platform, properties, context = fastest(build, candidates(len(positions), threads), positions, forces=True)
        elif platform not in present():
            raise IncompatibleError(f"expected a platform among {sorted(present())} or 'auto', got {platform!r}.")
        else:
            properties = {"Threads": str(threads)} if platform == "CPU" and threads is not None else ACCELERATORS.get(platform, {})
            context = None
        self._full = context or build(platform, properties)
        self._gentle = build(platform, properties, gentle)
        self.platform_name = platform

    def __call__(self, positions: np.ndarray, seed: int) -> Relaxed:
        """From (M, 3) nm; ``seed`` of the hot tries, if any."""
        if not np.isfinite(positions).all():
            return Relaxed(positions, np.nan, np.nan, "the positions are not finite.")
        before = self._energy(positions)
        self._tie(1, self._full, positions)
        found = Relaxed(positions, before, np.nan, "the energy is not finite.")
        for attempt in range(_TRIES):
            last = attempt == _TRIES - 1
            try:
                here = self.part(positions, _TRIES * seed + attempt, hot=attempt > 0)
                if self.trouble(here) is not None and not last:
                    continue
                self._full.setPositions(here)
                openmm.LocalEnergyMinimizer.minimize(self._full, _TOLERANCE, self._steps)
                here = _positions(self._full)
            except openmm.OpenMMException as error:
                found = found._replace(failure=f"OpenMM: {error}")
                continue
            after = self._energy(here)
            found = Relaxed(here, before, after, self.trouble(here) if np.isfinite(after) else "the energy is not finite.")
            if found.failure is None:
                break
        return found

    def trouble(self, positions: np.ndarray) -> str | None:
        """The worst bond or angle, or pair of strangers too close to each other, of (M, 3) nm; None if all are well."""
        if not np.isfinite(positions).all():
            return "the positions are not finite."
        atoms, lengths = self._bonded
        off = np.linalg.norm(positions[atoms[:, 0]] - positions[atoms[:, 1]], axis=1) - lengths
        worst = int(np.abs(off).argmax())
        if abs(off[worst]) > _STRETCHED:
            first, second = (label(self._names[a]) for a in atoms[worst])
            return f"the bond of {first} and {second} is {10 * off[worst]:+.2f} Angstrom off its rest length."
        triples, rest = self._angles
        bent = np.degrees(angle(torch.as_tensor(positions)[None], triples)[0].numpy() - rest)
        worst = int(np.abs(bent).argmax())
        if abs(bent[worst]) > _BENT:
            return f"the angle at {label(self._names[triples[worst, 1]])} is {bent[worst]:+.0f} degrees off its rest value."
        pair = self._strangers.closest(positions)
        if pair is None:
            return None
        first, second = (label(self._names[a]) for a in pair)
        gap = 10 * float(np.linalg.norm(positions[pair[0]] - positions[pair[1]]))
        return f"{first} and {second} do not part: they stand {gap:.2f} Angstrom from each other."

    def part(self, positions: np.ndarray, seed: int, *, hot: bool = False) -> np.ndarray:
        """(M, 3) nm without overlaps, if all goes well: of bonded forces and repulsion only."""
        context = self._gentle
        self._tie(0, context, positions)
        context.setPositions(positions)
        for number, strength in enumerate(_WEAK if hot else ()):
            context.setParameter("repulsion", strength)
            if not number:
                openmm.LocalEnergyMinimizer.minimize(context, _TOLERANCE, 50)
            # Velocities drawn anew are all the noise there is, so that a structure does not depend on those before it.
            context.setVelocitiesToTemperature(_HOT, 1 + (seed * len(_WEAK) + number) % (2**31 - 2))
            context.getIntegrator().step(_STEPS)
        context.setParameter("repulsion", _REPULSION)
        openmm.LocalEnergyMinimizer.minimize(context, _TOLERANCE, 300)
        return _positions(context)

    def _tie(self, which: int, context: openmm.Context, positions: np.ndarray) -> None:
        for number, atom in enumerate(self._held):
            self._ties[which].setParticleParameters(number, atom, positions[atom].tolist())
        self._ties[which].updateParametersInContext(context)

    def _energy(self, positions: np.ndarray) -> float:
        try:
            self._full.setPositions(positions)
            return float(self._full.getState(energy=True, groups=_FREE).getPotentialEnergy()._value)
        except openmm.OpenMMException:
            return np.nan


class _Strangers:
    """Pairs of atoms more than three bonds apart, and how near they may come."""

    def __init__(self, system: openmm.System, topology: app.Topology):
        nonbonded = _of_kind(system, openmm.NonbondedForce)
        self.known = [tuple(nonbonded.getExceptionParameters(e)[:2]) for e in range(nonbonded.getNumExceptions())]
        size = topology.getNumAtoms()
        polar = {a.index: b.element.symbol in "NOS" for pair in topology.bonds() for a, b in (pair, pair[::-1])}
        symbols = [a.element.symbol if a.element else "H" for a in topology.atoms()]
        self.diameter = np.array([_POLAR if s == "H" and polar.get(i) else _DIAMETER.get(s, 0.35) for i, s in enumerate(symbols)])
        self._codes = np.array([min(pair) * size + max(pair) for pair in self.known], dtype=np.int64)

    def repulsion(self) -> openmm.Force:
        """Finite everywhere and nothing beyond a share of the diameters."""
        force = openmm.CustomNonbondedForce(f"repulsion*step(d-r)*(1-r/d)^2; d={_SOFT}*(diameter1+diameter2)/2")
        force.addGlobalParameter("repulsion", _REPULSION)
        force.addPerParticleParameter("diameter")
        for diameter in self.diameter:
            force.addParticle([diameter])
        for pair in self.known:
            force.addExclusion(*pair)
        force.setNonbondedMethod(force.CutoffNonPeriodic)
        force.setCutoffDistance(_SOFT * self.diameter.max() + 0.01)
        return force

    def closest(self, positions: np.ndarray, block: int = 512) -> tuple[int, int] | None:
        """The pair that stands nearest for its size, if it is too near."""
        points, reach = torch.as_tensor(positions), torch.as_tensor(self.diameter)
        best: tuple[float, tuple[int, int] | None] = (_CLOSE, None)
        for low in range(0, len(points), block):
            share = torch.cdist(points[low : low + block], points) / (0.5 * (reach[low : low + block, None] + reach))
            first, second = (share < _CLOSE).nonzero().T
            first = first + low
            keep = (first < second) & torch.as_tensor(~np.isin((first * len(points) + second).numpy(), self._codes))
            for i, j in zip(first[keep].tolist(), second[keep].tolist(), strict=True):
                best = min(best, (float(share[i - low, j]), (i, j)), key=lambda found: found[0])
        return best[1]


def _restraint(held: list[int], stiffness: float) -> openmm.CustomExternalForce:
    force = openmm.CustomExternalForce("stiffness*((x-x0)^2+(y-y0)^2+(z-z0)^2)/2")
    force.addGlobalParameter("stiffness", float(stiffness))
    for name in ("x0", "y0", "z0"):
        force.addPerParticleParameter(name)
    for atom in held:
        force.addParticle(atom, (0.0, 0.0, 0.0))
    force.setForceGroup(_HELD)
    return force


def _without_nonbonded(system: openmm.System) -> openmm.System:
    copied = copy.deepcopy(system)
    for number in reversed(range(copied.getNumForces())):
        kind = type(copied.getForce(number)).__name__
        if "Nonbonded" in kind or "GB" in kind or kind == "CMMotionRemover":
            copied.removeForce(number)
    return copied


def _of_kind(system: openmm.System, kind: type):
    found = [force for force in system.getForces() if isinstance(force, kind)]
    if len(found) != 1:
        raise UnsupportedError(f"expected a force field with one {kind.__name__}, as Amber's and CHARMM's have, got {len(found)}.")
    return found[0]


def _terms(system: openmm.System, kind: type, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(K, size) atoms and (K,) rest values, nm or rad, of the bonds or angles."""
    force = _of_kind(system, kind)
    if size == 2:
        rows = [force.getBondParameters(number) for number in range(force.getNumBonds())]
    else:
        rows = [force.getAngleParameters(number) for number in range(force.getNumAngles())]
    return np.array([row[:size] for row in rows]), np.array([row[size].value_in_unit_system(unit.md_unit_system) for row in rows])


def _positions(context: openmm.Context) -> np.ndarray:
    return np.array(context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer))
