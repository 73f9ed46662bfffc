"""Constrained bonds to end atoms (HBonds), handled exactly: lift them off their lengths, propose, project them back."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import openmm
import torch
from openmm import app, unit
from torch import Tensor

from dig_core.energy import Energy
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.types import Geometry

from .convert import NM_PER_ANGSTROM, label, reduced_unit
from .energy import OpenMMEnergy

__all__ = ["BOND_STIFFNESS", "BondLift", "LiftedEnergy", "without_constraints"]

BOND_STIFFNESS = {"C": 284_512.0, "N": 363_171.2, "O": 462_750.4, "S": 229_283.2}
"""kJ/mol/nm^2 of bonds X-H by their X, as in Amber's force fields (doi:10.1021/ja00124a002); others are taken as C-H."""


class BondLift:
    """Constrained bonds from end atoms to their parents: what frees their lengths (lift) and what restores them (project).

    With y the atoms that are not lifted and (r_k, w_k) the length and direction of lifted bond k, constrained dynamics
    (momenta integrated out) samples exp(-U/kT) sqrt(det Z) prod_k delta(r_k - d_k) in Cartesian space, where
    Z_kl = sum_i (1/m_i) grad_i r_k . grad_i r_l: 1/m_k + 1/m_parent on the diagonal, w_k . w_l / m_parent for two bonds of
    one parent, 0 otherwise. In (y, w), where delta leaves the constant d_k^2 of each volume r_k^2 dr_k dw_k, that is

        exp(-U(y, d w)/kT) sqrt(det Z(w)) dy dw.

    The lifted law has the Cartesian density exp(-u_ext), with widths s_k^2 = kT/kappa_k,

        u_ext(x) = U(project(x))/kT - ln det Z(w) / 2 + sum_k (r_k - d_k)^2 / (2 s_k^2),

    hence in (y, w, r) the product of the law above and of prod_k r_k^2 exp(-(r_k - d_k)^2 / (2 s_k^2)) dr_k. So ``lift`` draws
    each r_k from the latter (a Gibbs step: r is independent of all else), any move that leaves exp(-u_ext) invariant may
    follow, and ``project`` (dropping r) gives the constrained law, whatever kappa. The Jacobians are in the proposal's
    Cartesian log_q. Fixman's det Z: doi:10.1073/pnas.71.8.3050.

    Attributes
    ----------
    atoms, parents: (K,) indices among the N atoms of the model; ``lengths``, ``widths`` (K,) Angstrom, float64.
    """

    def __init__(self, n_atoms: int, atoms, parents, lengths, widths, inverse_masses):
        self.n_atoms = int(n_atoms)
        self.atoms, self.parents = (torch.as_tensor(np.asarray(a), dtype=torch.long).reshape(-1) for a in (atoms, parents))
        self.lengths, self.widths = (torch.as_tensor(np.asarray(v), dtype=torch.float64).reshape(-1) for v in (lengths, widths))
        self._groups = _groups(self.atoms, self.parents, torch.as_tensor(np.asarray(inverse_masses), dtype=torch.float64))

    @classmethod
    def from_system(
        cls, system: openmm.System, temperature, *, topology: app.Topology | None = None, atoms=None, stiffness=None
    ) -> BondLift:
        """The constraints of a System, among ``atoms`` (all of them if None; the rest is not the model's to move).

        Parameters
        ----------
        temperature: K or a Quantity.
        topology: tells elements and bonds; without it all bonds count as C-H, and those of the bonded forces are read.
        stiffness: kappa in kJ/mol/nm^2, a number for all bonds or a dict by the parent's element symbol and by pair of
            atoms of the System, which come before :data:`BOND_STIFFNESS`. Any is exact; the one that the model's frames
            were made with is accepted most.

        Raises
        ------
        UnsupportedError: constraints that do not tie an end atom to one parent: rigid water, AllBonds, HAngles.
        """
        atoms = list(range(system.getNumParticles())) if atoms is None else [int(a) for a in atoms]
        place = {a: i for i, a in enumerate(atoms)}
        pairs, reasons = _oriented(system, place, topology)
        if reasons:
            raise UnsupportedError("\n".join(reasons))
        kt = reduced_unit(temperature)
        elements = None if topology is None else [a.element.symbol if a.element else "" for a in topology.atoms()]
        kappa = [_stiffness(atom, parent, elements, stiffness) for atom, parent, _ in pairs]
        masses = np.array([system.getParticleMass(a)._value for a in atoms])
        return cls(
            len(atoms),
            [place[atom] for atom, _, _ in pairs],
            [place[parent] for _, parent, _ in pairs],
            [length / NM_PER_ANGSTROM for _, _, length in pairs],
            [(kt / k) ** 0.5 / NM_PER_ANGSTROM for k in kappa],
            np.divide(1.0, masses, out=np.zeros_like(masses), where=masses > 0),
        )

    def __len__(self) -> int:
        return len(self.atoms)

    def lift(self, positions: Tensor, rng: np.random.Generator) -> Tensor:
        """Positions (B, N, 3) Angstrom with each bond's length drawn anew from r^2 exp(-(r - d)^2 / (2 s^2))."""
        d, s = self.lengths.numpy(), self.widths.numpy()
        # The density's mode m; about it ln r <= ln m + r/m - 1, so a normal of width s and mean m lies above the density.
        mode = 0.5 * (d + np.sqrt(d**2 + 8 * s**2))
        drawn, open_ = np.zeros((len(positions), len(d))), np.ones((len(positions), len(d)), dtype=bool)
        while open_.any():
            r = mode + s * rng.standard_normal(open_.shape)
            ratio = np.maximum(r / mode, np.finfo(float).tiny)
            taken = open_ & (r > 0) & (np.log1p(-rng.random(open_.shape)) < 2 * (np.log(ratio) - ratio + 1))
            drawn[taken], open_[taken] = r[taken], False
        return self._placed(positions, torch.from_numpy(drawn).to(positions))

    def project(self, positions: Tensor) -> Tensor:
        """Positions (B, N, 3) Angstrom with each end atom put at the constraint's length along its bond. Differentiable."""
        return self._placed(positions, self.lengths.to(positions))

    def strain(self, positions: Tensor) -> Tensor:
        """(B,) sum_k (r_k - d_k)^2 / (2 s_k^2). Differentiable."""
        length = self._bonds(positions).norm(dim=-1)
        return 0.5 * (((length - self.lengths) / self.widths) ** 2).sum(1)

    def log_det(self, positions: Tensor) -> Tensor:
        """(B,) ln det Z up to a constant; it depends on the angles between bonds of one parent. Differentiable."""
        total = positions.new_zeros(len(positions), dtype=torch.float64)
        direction = _unit(self._bonds(positions))
        for members, coupling in self._groups:
            w = direction[:, members]
            overlap = torch.einsum("bgix,bgjx->bgij", w, w) * coupling
            total = total + torch.linalg.slogdet(torch.eye(members.shape[1], dtype=w.dtype) + overlap).logabsdet.sum(1)
        return total

    def _bonds(self, positions: Tensor) -> Tensor:
        positions = positions.double()
        return positions[:, self.atoms] - positions[:, self.parents]

    def _placed(self, positions: Tensor, lengths: Tensor) -> Tensor:
        parents = positions[:, self.parents]
        ends = parents + lengths[..., None] * _unit(positions[:, self.atoms] - parents)
        return positions.index_copy(1, self.atoms, ends)


class LiftedEnergy:
    """u_ext of :class:`BondLift`: the energy that a model of the flexible molecule proposes for, and can be trained on.

    Called with a Geometry (B, N, 3) Angstrom it gives u (B,) float64, differentiable as often as ``energy``; a structure
    whose ``energy`` fails has u = +inf and zero gradient.

    Parameters
    ----------
    energy: u of the System without its constraints, see :func:`without_constraints`.
    lift: the constraints.
    mass_term: whether to count det Z. Without it the law is that of infinitely stiff springs, not that of constrained
        dynamics; it is cheap, so that there is seldom a reason to leave it out.
    """

    def __init__(self, energy: Energy, lift: BondLift, *, mass_term: bool = True):
        self.energy, self.lift, self.mass_term = energy, lift, bool(mass_term)

    @classmethod
    def from_system(
        cls, system: openmm.System, temperature, *, topology: app.Topology | None = None, stiffness=None, mass_term: bool = True, **options
    ) -> LiftedEnergy:
        """From a constrained System; ``options`` go to :class:`OpenMMEnergy`. Raises as it and :class:`BondLift` do."""
        lift = BondLift.from_system(system, temperature, topology=topology, stiffness=stiffness)
        return cls(OpenMMEnergy(without_constraints(system), temperature, **options), lift, mass_term=mass_term)

    def __getattr__(self, name: str):
        """Temperature, platform, counters and so on are those of the energy inside."""
        if name.startswith("_") or name == "energy":
            raise AttributeError(name)
        return getattr(self.energy, name)

    def __call__(self, geometry: Geometry) -> Tensor:
        """u (B,) float64. IncompatibleError for another number of atoms."""
        positions = geometry.positions
        if positions.dim() != 3 or tuple(positions.shape[1:]) != (self.lift.n_atoms, 3):
            raise IncompatibleError(f"expected positions (B, {self.lift.n_atoms}, 3), got {tuple(positions.shape)}.")
        finite = positions.detach().isfinite().all(2).all(1)
        usable = torch.where(finite[:, None, None], positions, 0.0)
        u = self.energy(Geometry(self.lift.project(usable), geometry.cell)).double()
        extra = self.lift.strain(usable)
        if self.mass_term:
            extra = extra - 0.5 * self.lift.log_det(usable)
        possible = finite & u.detach().isfinite() & extra.detach().isfinite()
        return torch.where(possible, u + torch.where(possible, extra, 0.0), torch.inf)

    def energy_and_gradient(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """u (B,) and du/dx (B, N, 3), float64, 1/Angstrom."""
        positions = geometry.positions.detach().double().requires_grad_()
        with torch.enable_grad():
            u = self(Geometry(positions, geometry.cell))
            (gradient,) = torch.autograd.grad(u[u.isfinite()].sum(), positions)
        return u.detach(), gradient


def without_constraints(system: openmm.System) -> openmm.System:
    """A copy of the System that has no constraints; only :class:`LiftedEnergy` makes its energy confine those bonds."""
    free = copy.deepcopy(system)
    for number in reversed(range(free.getNumConstraints())):
        free.removeConstraint(number)
    return free


def _unit(bonds: Tensor) -> Tensor:
    # A bond of no length has no direction; its atoms coincide, which the energy refuses.
    return bonds / bonds.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def _groups(atoms: Tensor, parents: Tensor, inverse_masses: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Parents of several bonds, by how many (m): bonds (G, m), and (G, m, m) what w_k . w_l is multiplied with in Z, scaled
    to a unit diagonal."""
    by_parent: dict[int, list[int]] = {}
    for bond, parent in enumerate(parents.tolist()):
        by_parent.setdefault(parent, []).append(bond)
    found = []
    for size in sorted({len(bonds) for bonds in by_parent.values()} - {1}):
        members = torch.tensor([bonds for bonds in by_parent.values() if len(bonds) == size])
        own, shared = inverse_masses[atoms[members]], inverse_masses[parents[members]]
        scale = (shared / (own + shared)).sqrt()  # every row of ``shared`` is one number
        coupling = scale[:, :, None] * scale[:, None, :] * (1 - torch.eye(size, dtype=scale.dtype))
        found.append((members, coupling))
    return found


def _oriented(system: openmm.System, place: Mapping[int, int], topology) -> tuple[list[tuple[int, int, float]], list[str]]:
    """Constraints as (end atom, parent, length nm), and a reason for each kind that is none."""
    partners: dict[int, set[int]] = {}
    for i, j in _bonded(system, topology):
        partners.setdefault(i, set()).add(j)
        partners.setdefault(j, set()).add(i)
    pairs, refused = [], {}
    names = None if topology is None else list(topology.atoms())
    for number in range(system.getNumConstraints()):
        i, j, length = system.getConstraintParameters(number)
        if i not in place and j not in place:
            continue
        what = " and ".join(label(names[a]) if names else f"atom {a}" for a in (i, j))
        ends = [a for a in (i, j) if len(partners[a]) == 1]
        if i not in place or j not in place:
            kind = "tie(s) a moved atom to one that stays: move whole molecules"
        elif ends:
            # Of two atoms on their own the lighter one is lifted.
            end = min(ends, key=lambda a: (system.getParticleMass(a)._value, a))
            pairs.append((end, i + j - end, length.value_in_unit(unit.nanometer)))
            continue
        else:
            kind = (
                "tie(s) atoms that both have other partners (rigid water, AllBonds, HAngles): only bonds to end atoms can be "
                "lifted. Use constraints=HBonds and rigidWater=False for the molecule that the model moves, or constraints=None"
            )
        count, first = refused.get(kind, (0, what))
        refused[kind] = (count + 1, first)
    return pairs, [f"{count} constraint(s), the first between {first}, {kind}." for kind, (count, first) in refused.items()]


def _bonded(system: openmm.System, topology: app.Topology | None):
    for number in range(system.getNumConstraints()):
        yield tuple(system.getConstraintParameters(number)[:2])
    if topology is not None:
        yield from ((bond[0].index, bond[1].index) for bond in topology.bonds())
        return
    for force in system.getForces():
        if isinstance(force, (openmm.HarmonicBondForce, openmm.CustomBondForce)):
            yield from (tuple(force.getBondParameters(number)[:2]) for number in range(force.getNumBonds()))


def _stiffness(atom: int, parent: int, elements: list[str] | None, given) -> float:
    symbol = "C" if elements is None else elements[parent]
    kappa = BOND_STIFFNESS.get(symbol, BOND_STIFFNESS["C"])
    if isinstance(given, Mapping):
        for key in ((atom, parent), (parent, atom), symbol):
            if key in given:
                kappa = given[key]
                break
    elif given is not None:
        kappa = given
    kappa = kappa.value_in_unit_system(unit.md_unit_system) if unit.is_quantity(kappa) else float(kappa)
    if not 0 < kappa < np.inf:
        raise IncompatibleError(f"expected a positive stiffness in kJ/mol/nm^2 for the bond of atoms {parent} and {atom}, got {kappa}.")
    return kappa
