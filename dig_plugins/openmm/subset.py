"""A molecule among others: the energy of the whole System as a function of the atoms that the model moves."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import openmm
import torch
from openmm import app, unit

from dig_core.energy import Energy
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.montecarlo.chain import Candidates, Pool, Reason, reduced_energy
from dig_core.montecarlo.proposals import Proposal
from dig_core.types import Geometry

from .constraints import without_constraints
from .convert import kelvin, label
from .energy import OpenMMEnergy
from .platforms import candidates, fastest

__all__ = ["EnvironmentPool", "SubsetEnergy", "check_environment", "check_subset", "subtopology", "unwrap"]

_LIQUID = 5.0  # atoms a nm^3: water has 100, liquid argon 21, any gas at 1 bar less than 0.2


class SubsetEnergy(OpenMMEnergy):
    """u = E / kT of a whole System for structures of some of its atoms, everything else where :meth:`observe` last saw it.

    Called with a Geometry (B, n, 3) Angstrom of ``atoms``, in that order; each structure is put so that its centroid is
    where the atoms' own is. Otherwise as :class:`OpenMMEnergy`, whose attributes it has; the energy includes that of the
    environment, so that only differences mean something.

    Parameters
    ----------
    system: constraints are left out (lift those among ``atoms``), and so are barostats, which act during MD only.
    temperature: K or a Quantity.
    atoms: (n,) indices of the System's atoms that structures hold; checked by :func:`check_subset`.
    bonds: pairs of indices into ``atoms``, along which a molecule cut by the box's faces is made whole.
    platform: a platform's name, or ``"auto"``: the fastest on the first positions seen. ``threads`` of the CPU platform.
    """

    def __init__(
        self, system: openmm.System, temperature, atoms, bonds, *, platform: str = "auto", threads: int | None = None
    ):
        free = without_constraints(system)
        for number in reversed(range(free.getNumForces())):
            if "Barostat" in type(free.getForce(number)).__name__:
                free.removeForce(number)
        self._xml = openmm.XmlSerializer.serialize(free)
        self.atoms, self.bonds = np.array([int(a) for a in atoms]), [(int(i), int(j)) for i, j in bonds]
        self.n_atoms, self.temperature = len(self.atoms), kelvin(temperature)
        self.n_evaluations = self.n_failures = 0
        self.last_error: str | None = None
        self._parameters: dict[str, float] = {}
        self._platform, self._threads = platform, threads
        self._properties = {"Threads": str(threads)} if platform == "CPU" and threads is not None else {}
        self._context: openmm.Context | None = None
        self._surroundings: np.ndarray | None = None
        self._box: np.ndarray | None = None
        self._periodic = free.usesPeriodicBoundaryConditions()

    def observe(self, context: openmm.Context) -> np.ndarray:
        """Take over a Context's positions, box and parameters; returns (n, 3) nm of ``atoms``, the molecule made whole."""
        state = context.getState(positions=True, parameters=True)
        self._surroundings = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer).copy()
        if self._periodic:
            self._box = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer)
        whole = unwrap(self._surroundings[self.atoms], self.bonds, self._box)
        self._surroundings[self.atoms] = whole
        if self._platform == "auto":
            among = candidates(len(self._surroundings), self._threads)
            self._platform, self._properties, self._context = fastest(self._build, among, self._surroundings, forces=False)
        known = self._ready().getParameters()
        self._parameters = {name: value for name, value in dict(state.getParameters()).items() if name in known}
        for name, value in self._parameters.items():
            self._ready().setParameter(name, value)
        return whole

    def place(self, positions: np.ndarray) -> np.ndarray:
        """(B, n, 3) nm of ``atoms`` -> (B, N, 3) nm of the System, each centroid put where the atoms' own is."""
        around = self._known()
        whole = np.repeat(around[None], len(positions), axis=0)
        centroid = around[self.atoms].mean(axis=0)
        whole[:, self.atoms] = positions - positions.mean(axis=1, keepdims=True) + centroid
        return whole

    def _check(self, geometry: Geometry) -> None:
        super()._check(geometry)
        self._known()

    def _placed(self, positions: np.ndarray) -> Iterable[np.ndarray]:
        return (self.place(one[None])[0] for one in positions)

    def _read_forces(self, state: openmm.State, out: np.ndarray) -> None:
        whole = np.empty_like(self._known())
        super()._read_forces(state, whole)
        out[:] = whole[self.atoms] - whole[self.atoms].mean(axis=0)  # the centroid stays, so that no net force acts on the structure

    def _known(self) -> np.ndarray:
        if self._surroundings is None:
            raise IncompatibleError("the environment is not known yet: call observe(simulation.context) first.")
        return self._surroundings

    def _build(self, platform: str, properties: dict[str, str]) -> openmm.Context:
        context = super()._build(platform, properties)
        if self._box is not None:
            context.setPeriodicBoxVectors(*self._box)
        return context

    def _ready(self) -> openmm.Context:
        context = super()._ready()
        if self._box is not None:
            context.setPeriodicBoxVectors(*self._box)
        return context


class EnvironmentPool(Pool):
    """Proposals drawn ahead of the chain, as in :class:`Pool`, but with energies of the moment they are taken at: they
    depend on where the environment is then."""

    def __init__(self, proposal: Proposal, energy: Energy, *, seed: int, batch: int = 256, start: int = 0):
        super().__init__(proposal, _later, seed=seed, batch=batch, start=start)
        self._now = energy

    def take(self, n: int) -> Candidates:
        """The next ``n`` candidates."""
        taken = super().take(n)
        possible = taken.reason == Reason.NONE
        u, reason = np.full(n, np.inf), taken.reason.copy()
        if possible.any():
            with torch.no_grad():
                u[possible] = reduced_energy(self._now, Geometry(torch.from_numpy(taken.positions[possible]))).numpy()
        reason[possible & ~np.isfinite(u)] = Reason.ENERGY
        return taken._replace(u=u, reason=reason)


def _later(geometry: Geometry) -> torch.Tensor:
    return torch.zeros(len(geometry.positions), dtype=torch.float64)


def unwrap(positions: np.ndarray, bonds, box: np.ndarray | None) -> np.ndarray:
    """(n, 3) nm with the nearest image of every bonded partner, atom 0 where it is; ``box`` (3, 3) nm in OpenMM's reduced form.

    Raises IncompatibleError if the bonds do not tie all atoms together: images are then not defined.
    """
    if box is None:
        return positions
    partners: list[list[int]] = [[] for _ in positions]
    for i, j in bonds:
        partners[i].append(j)
        partners[j].append(i)
    whole, seen, open_ = positions.copy(), {0}, [0]
    while open_:
        i = open_.pop()
        for j in partners[i]:
            if j not in seen:
                gap = positions[j] - whole[i]
                for axis in (2, 1, 0):
                    gap = gap - box[axis] * np.round(gap[axis] / box[axis, axis])
                whole[j] = whole[i] + gap
                seen.add(j)
                open_.append(j)
    if len(seen) < len(positions):
        raise IncompatibleError(
            f"expected one molecule, got {len(positions)} atoms of which {len(seen)} are bonded together: in a periodic box "
            "only a bonded molecule can be made whole. Choose atoms= of one molecule."
        )
    return whole


def subtopology(topology: app.Topology, atoms) -> app.Topology:
    """The topology of ``atoms`` in that order, with their residues' names and the bonds among them."""
    everything, found = list(topology.atoms()), app.Topology()
    chain, residue, last, made = found.addChain(), None, None, {}
    for index in atoms:
        atom = everything[index]
        if atom.residue is not last:
            last, residue = atom.residue, found.addResidue(atom.residue.name, chain, atom.residue.id)
        made[index] = found.addAtom(atom.name, atom.element, residue)
    for bond in topology.bonds():
        if bond[0].index in made and bond[1].index in made:
            found.addBond(made[bond[0].index], made[bond[1].index])
    return found


def check_subset(system: openmm.System, topology: app.Topology, atoms) -> None:
    """Raise IncompatibleError unless ``atoms`` are distinct and make whole molecules, UnsupportedError for sites among them."""
    atoms, n = [int(a) for a in atoms], system.getNumParticles()
    if not atoms or len(set(atoms)) < len(atoms) or not all(0 <= a < n for a in atoms):
        raise IncompatibleError(f"expected distinct atoms= from 0 to {n - 1}, got {len(atoms)} of them: {atoms[:10]} ...")
    inside, names = set(atoms), list(topology.atoms())
    for bond in topology.bonds():
        if (bond[0].index in inside) != (bond[1].index in inside):
            raise IncompatibleError(
                f"a bond between {label(bond[0])} and {label(bond[1])} leaves atoms=: the model moves whole molecules only."
            )
    fixed = [a for a in atoms if system.isVirtualSite(a) or system.getParticleMass(a)._value == 0]
    if fixed:
        raise UnsupportedError(
            f"{len(fixed)} virtual site(s) or massless particle(s) among atoms=, the first is {label(names[fixed[0]])}: the model "
            "would move what follows from other atoms or is held fixed. Use a force field with atoms only for this molecule."
        )
    if any(isinstance(force, openmm.DrudeForce) for force in system.getForces()):
        raise UnsupportedError("DrudeForce: Drude particles follow the atoms. Use a force field with fixed charges.")


def check_environment(topology: app.Topology, atoms, box: np.ndarray | None) -> None:
    """Raise UnsupportedError if what surrounds ``atoms`` is a solvent: water molecules, or anything as dense as a liquid.

    ``box`` (3, 3) nm of the periodic box, or None. A gas, or a few molecules, pass.
    """
    inside = set(atoms)
    around = [a for a in topology.atoms() if a.index not in inside and a.element is not None]
    waters = [r for r in topology.residues() if _is_water(r) and not any(a.index in inside for a in r.atoms())]
    density = 0.0 if box is None else len(around) / abs(float(np.linalg.det(box)))
    if not waters and density < _LIQUID:
        return
    what = f"{len(waters)} water molecule(s)" if waters else f"{density:.0f} atoms a nm^3"
    raise UnsupportedError(
        f"explicit solvent ({what} around the {len(inside)} atoms of the model): another conformation collides with a solvent "
        "that does not make room for it (28 kT in the median for alanine dipeptide in water, about 1 proposal of 10,000 "
        "accepted). Use Hamiltonian replica exchange over the coupling of molecule and solvent, with this move in the "
        "decoupled state (examples/decoupled_state.py); or an implicit solvent, if need be with temperature replica exchange "
        "and this move at the model's temperature. Where the molecule does not feel the solvent, or to try it all the same, "
        "pass allow_explicit_solvent=True; it stays exact."
    )


def _is_water(residue) -> bool:
    symbols = sorted(a.element.symbol for a in residue.atoms() if a.element is not None)
    return symbols in (["H", "H", "O"], ["D", "D", "O"])
