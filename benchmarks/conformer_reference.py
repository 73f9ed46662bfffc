"""What conformer_populations compares with: parallel tempering and Langevin dynamics of MMFF94s, RDKit's."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers as forcefields
from scipy import stats

from dig_core.coordinates.measure import dihedral
from dig_core.montecarlo.analysis import bootstrap
from dig_core.montecarlo.wells import Wells
from dig_core.training.wells import log_target, log_target_and_slope
from dig_plugins.rdkit import MMFFEnergy, torsions_of

RUNGS, LADDERS, HOTTEST = 6, 16, 3.0
STEP, FRICTION, HEAVY, LOOK = 0.002, 1.0, 8.0, 10
"""Of dynamics: ps, 1/ps, the mass of a hydrogen, steps between two looks at the torsions."""
_FORCE = 418.4  # dalton Angstrom/ps^2 in a kcal/mol/Angstrom


def thirds(positions: torch.Tensor | np.ndarray, mol: Chem.Mol) -> np.ndarray:
    """(B, T) states of :func:`torsion_states` of structures (B, N, 3)."""
    angles = dihedral(torch.as_tensor(positions), torch.tensor(torsions_of(mol))).numpy()
    return np.where(np.abs(angles) >= 2 * math.pi / 3, 1, np.where(angles >= 0, 0, -1)).astype(np.int8)


def positions_of(wells: Wells, points: torch.Tensor) -> torch.Tensor:
    return wells.dig.coordinates.decode(wells.state(points), wells.dig.descriptor).positions


def indicators(states: np.ndarray):
    """Name and indicator (B,) of every state of every torsion."""
    for column in range(states.shape[-1]):
        for third in (-1, 0, 1):
            yield f"{column} {third:+d}", (states[..., column] == third).astype(float)


def scattered(visited: np.ndarray) -> dict[str, list[float]]:
    """Populations of independent chains (chain, visit, torsion), the errors of chains, and by the scatter between chains alone."""
    rows, chains, rng = {}, len(visited), np.random.default_rng(0)
    for key, inside in indicators(visited):
        found = bootstrap(np.mean, inside.reshape(-1), chains=chains, rng=rng)
        rows[key] = [float(found.value), float(found.stderr), float(inside.mean(1).std(ddof=1) / math.sqrt(chains))]
    return rows


def deviate(difference: float, one: float, other: float, dof: int) -> float:
    """A normal deviate of the same probability as Welch's t; ``other`` has ``dof`` degrees of freedom, ``one`` very many."""
    total = math.hypot(one, other, 1e-4)  # a population that never changed is known to no better
    freedom = dof * (total / max(other, 1e-9)) ** 4
    return float(math.copysign(-stats.norm.ppf(stats.t.sf(abs(difference) / total, min(freedom, 1e6))), difference))


def tempered(wells: Wells, energy: MMFFEnergy, mol: Chem.Mol, seconds: float, seed: int) -> dict:
    """Parallel tempering of Langevin steps and turns of single torsions, from 300 K up.

    Of the wells no more is used than their minima, each as often a start as any other, and the mean of their shapes, in whose metric steps
    are taken. The last two thirds of each of the independent ladders.
    """
    rng, ladders = torch.Generator().manual_seed(seed), LADDERS
    covariance = (wells.log_weight.exp()[:, None, None] * (wells.factor @ wells.factor.transpose(1, 2))).sum(0)
    values, vectors = torch.linalg.eigh(covariance)
    metric = Wells(wells.dig, wells.mean[:1], (vectors * values.sqrt())[None] @ vectors.T, wells.log_weight[:1])
    rung = torch.arange(ladders * RUNGS) % RUNGS
    beta = torch.logspace(0, -math.log10(HOTTEST), RUNGS, dtype=torch.float64)[rung]
    points = wells.mean[torch.randint(len(wells), (ladders * RUNGS,), generator=rng)]
    walk = _Ladders(metric, energy, points, beta, rung, rng)
    visits, began, sweeps, swaps = [], time.process_time(), 0, []
    while time.process_time() - began < seconds or len(visits) < 6:
        walk.langevin()
        walk.turn()
        sweeps += 1
        if sweeps % 2 == 0:
            swaps.append(walk.swap(sweeps // 2 % 2))
        if sweeps % 4 == 0:
            visits.append(thirds(positions_of(wells, walk.points[rung == 0]), mol))
    visited = np.stack(visits[len(visits) // 3 :], 1)
    return {
        "sweeps": sweeps, "evaluations": energy.n_evaluations, "seconds": time.process_time() - began, "swaps": float(np.mean(swaps)),
        "turns": float(walk.turned[0] / max(1, sweeps)), "ladders": ladders, "populations": scattered(visited),
    }  # fmt: skip


class _Ladders:
    """Walkers of all ladders and rungs, one after the other."""

    def __init__(self, metric: Wells, energy: MMFFEnergy, points, beta, rung, rng):
        self.metric, self.energy, self.points, self.beta, self.rung, self.rng = metric, energy, points, beta, rung, rng
        self.value, self.slope = log_target_and_slope(metric, energy, points)
        self.size = torch.full((RUNGS,), 0.5, dtype=torch.float64)
        self.columns = metric.periodic.nonzero()[:, 0]
        self.turned, self.steps = torch.zeros(RUNGS), 0

    def langevin(self) -> None:
        """One step each; the hotter, the longer. Its length adapts, a rung at a time, ever more slowly."""
        factor, size = self.metric.factor[0], (self.size[self.rung] / self.beta.sqrt())[:, None]

        def drift(slope):
            found = 0.5 * size * self.beta[:, None] * (slope @ factor)
            return found * (6.0 / found.norm(dim=1, keepdim=True).clamp_min(1e-9)).clamp(max=1.0)

        noise = torch.randn(self.points.shape, generator=self.rng, dtype=torch.float64)
        forth = drift(self.slope)
        moved = self.points + size * (forth + noise) @ factor.T
        moved = self.metric.tidy(moved)
        value, slope = log_target_and_slope(self.metric, self.energy, moved)
        returned = -(forth + noise) - drift(slope)
        gain = self.beta * (value - self.value) + 0.5 * (noise.square() - returned.square()).sum(1)
        accept = torch.rand(len(gain), generator=self.rng, dtype=torch.float64).log() < gain
        self._take(accept, moved, value, slope)
        share = torch.zeros(RUNGS, dtype=torch.float64).index_add(0, self.rung, accept.double()) * RUNGS / len(gain)
        self.steps += 1
        self.size = self.size * torch.exp((share - 0.57) / (5 + 0.1 * self.steps))

    def turn(self) -> None:
        """One torsion each by any angle, or by about a half or a third of a turn."""
        if not len(self.columns):
            return
        n = len(self.points)
        column = self.columns[torch.randint(len(self.columns), (n,), generator=self.rng)]
        about = torch.tensor([math.pi, 2 * math.pi / 3, -2 * math.pi / 3], dtype=torch.float64)
        near = about[torch.randint(3, (n,), generator=self.rng)] + 0.2 * torch.randn(n, generator=self.rng, dtype=torch.float64)
        any_angle = 2 * math.pi * torch.rand(n, generator=self.rng, dtype=torch.float64)
        angle = torch.where(torch.rand(n, generator=self.rng) < 0.5, near, any_angle)
        moved = self.points.clone()
        moved[torch.arange(n), column] += angle
        moved = self.metric.tidy(moved)
        value = log_target(self.metric, self.energy, moved)
        accept = torch.rand(n, generator=self.rng, dtype=torch.float64).log() < self.beta * (value - self.value)
        slope = self.slope.clone()
        if bool(accept.any()):
            slope[accept] = log_target_and_slope(self.metric, self.energy, moved[accept])[1]
        self._take(accept, moved, value, slope)
        self.turned += torch.zeros(RUNGS).index_add(0, self.rung, accept.float()) * RUNGS / n

    def swap(self, odd: int) -> float:
        """Neighbours on each ladder are offered to change places; the fraction that did."""
        order, done = torch.arange(len(self.beta)).view(-1, RUNGS), []
        beta = self.beta[:RUNGS]
        for low in range(odd, RUNGS - 1, 2):
            a, b = order[:, low].clone(), order[:, low + 1].clone()
            gain = (beta[low] - beta[low + 1]) * (self.value[b] - self.value[a])
            swap = torch.rand(len(a), generator=self.rng, dtype=torch.float64).log() < gain
            order[:, low], order[:, low + 1] = torch.where(swap, b, a), torch.where(swap, a, b)
            done.append(float(swap.double().mean()))
        order = order.flatten()
        self.points, self.value, self.slope = self.points[order], self.value[order], self.slope[order]
        return float(np.mean(done))

    def _take(self, accept, points, value, slope) -> None:
        rows = accept[:, None]
        self.points, self.slope = torch.where(rows, points, self.points), torch.where(rows, slope, self.slope)
        self.value = torch.where(accept, value, self.value)


def dynamics(mol: Chem.Mol, start: np.ndarray, seconds: float, seed: int) -> dict:
    """Langevin dynamics (BAOAB, doi:10.1063/1.4802990) with heavy hydrogens: processor seconds, ps, entries into each torsion's states."""
    field, mol = _Forces(mol), Chem.Mol(mol)
    mass = np.array([HEAVY if a.GetAtomicNum() == 1 else a.GetMass() for a in mol.GetAtoms()])[:, None]
    rng, thermal = np.random.default_rng(seed), np.sqrt(MMFFEnergy(mol, 300.0).kt * _FORCE / mass)
    keep = math.exp(-FRICTION * STEP)
    kick, mix = 0.5 * STEP * _FORCE / mass, math.sqrt(1 - keep**2) * thermal
    x, v, frames = start.copy(), thermal * rng.standard_normal(start.shape), []
    slope, spent, began = field(x), 0.0, time.process_time()
    while spent < seconds:
        for _ in range(LOOK):
            v -= kick * slope
            x += 0.5 * STEP * v
            v = keep * v + mix * rng.standard_normal(x.shape)
            x += 0.5 * STEP * v
            slope = field(x)
            v -= kick * slope
        frames.append(x.copy())
        spent = time.process_time() - began
    states = thirds(np.stack(frames), mol)
    entries, shares = {}, {}
    for key, inside in indicators(states):
        entries[key], shares[key] = int((np.diff(inside) > 0).sum()), float(inside.mean())
    kinetic = float((mass * v**2).sum() / _FORCE / (3 * len(x)) / MMFFEnergy(mol, 300.0).kt)
    return {"seconds": spent, "ps": len(frames) * LOOK * STEP, "entries": entries, "shares": shares, "last_kinetic": kinetic}


class _Forces:
    """Gradient (N, 3) kcal/mol/Angstrom of RDKit's force field, nothing in between."""

    def __init__(self, mol: Chem.Mol):
        self.mol = Chem.Mol(mol)
        self.mol.RemoveAllConformers()
        self.mol.AddConformer(Chem.Conformer(mol.GetNumAtoms()))
        self.conformer = self.mol.GetConformer()
        properties = forcefields.MMFFGetMoleculeProperties(self.mol, mmffVariant="MMFF94s")
        self.field = forcefields.MMFFGetMoleculeForceField(self.mol, properties, nonBondedThresh=1e6)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.conformer.SetPositions(x)
        self.field.Initialize()
        return np.array(self.field.CalcGrad()).reshape(x.shape)
