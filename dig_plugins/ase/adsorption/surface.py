"""An adsorption energy in closed form: the DFT table of Xu and Kitchin as a Fourier series over an fcc(111) surface.

E(x, y, z) = V(x, y) + k/2 (z - Z(x, y))^2, where V and Z are
c0 + c1 sum cos(G.r) + c2 sum sin(G.r) + c3 sum cos(G'.r),
sums over the three shortest reciprocal vectors G, 120 degrees apart, and the three next ones G'. The four coefficients follow
from the four sites of the table. Between them the series interpolates: a well defined test energy, not chemistry.

Data: Z. Xu, J. R. Kitchin, J. Phys. Chem. C 118, 25597 (2014), 10.1021/jp508805h, PBE, 0.25 monolayers; from fairchem (MIT).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from torch import Tensor

from dig_core.errors import IncompatibleError, UnsupportedError

from ..convert import kT
from .frame import SlabFrame, slab_frame
from .maps import SurfaceMap
from .plane import shortest
from .symmetry import primitive_lattice

__all__ = ["SITES", "STIFFNESS", "SiteSurface"]

SITES = {"fcc": (1 / 3, 1 / 3), "hcp": (2 / 3, 2 / 3), "bridge": (0.5, 0.0), "top": (0.0, 0.0)}
"""Fractions of the primitive vectors, 60 degrees apart, from a top-layer atom; the bridge is one of three."""

STIFFNESS = 6.0
"""eV/Angstrom^2 of k. The table has no z curvature; this is what grid-search Hessians of H, N and O show (2.5 to 14)."""

_COPIES = {
    "fcc": [(1 / 3, 1 / 3)],
    "hcp": [(2 / 3, 2 / 3)],
    "bridge": [(0.5, 0), (0, 0.5), (0.5, 0.5)],
    "top": [(0.0, 0.0)],
}


@dataclass(frozen=True)
class SiteSurface:
    """Energy of one adsorbate atom over a rigid fcc(111) surface, eV.

    ``energies`` and ``heights``: site -> eV and -> Angstrom above the mean of the top layer; ``vectors`` (2, 3) Angstrom, primitive,
    60 degrees apart; ``origin`` (3,) a top-layer atom; ``normal`` (3,). ``stiffness`` eV/Angstrom^2. :meth:`on` finds the last
    three on a slab.
    """

    metal: str
    adsorbate: str
    energies: dict[str, float]
    heights: dict[str, float]
    vectors: np.ndarray
    origin: np.ndarray
    normal: np.ndarray
    stiffness: float = STIFFNESS

    @classmethod
    def from_table(cls, metal: str, adsorbate: str, *, stiffness: float = STIFFNESS) -> SiteSurface:
        """The surface of the table, lattice constant included: x along a close-packed row, z up, the origin on an atom.

        Raises UnsupportedError for a pair that is not in the table.
        """
        systems = _table()
        if f"{metal}-{adsorbate}" not in systems:
            metals, guests = (sorted({name.split("-")[i] for name in systems}) for i in (0, 1))
            raise UnsupportedError(
                f"the table has no {adsorbate} on {metal}(111): metals {', '.join(metals)}, adsorbates {', '.join(guests)}."
            )
        row = systems[f"{metal}-{adsorbate}"]
        vectors = row["neighbour"] * np.array([[1.0, 0.0, 0.0], [0.5, math.sqrt(3) / 2, 0.0]])
        return cls(
            metal, adsorbate, row["energy"], row["height"], vectors, np.zeros(3), np.array([0.0, 0.0, 1.0]), stiffness
        )

    def on(self, slab: Atoms, normal=None) -> SiteSurface:
        """The same energy over a given slab, which may be any p(n x m) fcc(111) slab of this metal, of any lattice constant.

        Raises UnsupportedError for another element, lattice or stacking, IncompatibleError for an unfit slab.
        """
        return replace(self, **_locate(slab, self.metal, normal))

    def energy(self, xyz: Tensor) -> Tensor:
        """(...) eV at positions (..., 3) Angstrom, float64, differentiable."""
        r = torch.as_tensor(xyz, dtype=torch.float64) - torch.as_tensor(self.origin)
        fractions = r @ torch.as_tensor(self._reciprocal)
        height = r @ torch.as_tensor(self.normal)
        wave = self._waves(fractions)
        return (
            wave @ self._series(self.energies) + self.stiffness / 2 * (height - wave @ self._series(self.heights)) ** 2
        )

    def forces(self, xyz: Tensor) -> Tensor:
        """(..., 3) eV/Angstrom."""
        x = torch.as_tensor(xyz, dtype=torch.float64).detach().requires_grad_(True)
        with torch.enable_grad():
            return -torch.autograd.grad(self.energy(x).sum(), x)[0]

    def profile(self, fractions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lowest energy over z, eV, and the height where it is, at ``fractions`` (..., 2) of the primitive vectors."""
        wave = self._waves(torch.as_tensor(fractions, dtype=torch.float64))
        return (wave @ self._series(self.energies)).numpy(), (wave @ self._series(self.heights)).numpy()

    def populations(self, temperature: float, grid: int = 240) -> dict[str, float]:
        """Site -> probability of the points that are nearer to it than to any other, by quadrature; the three bridges together.

        Points that lie between sites are shared out: the basins of the 60 degree lattice have edges along lines of any even grid.
        """
        fractions = _grid((grid, grid))
        value, _ = self.profile(fractions)
        weight = np.exp(-(value - value.min()) / kT(temperature))
        away = self._distances(fractions)
        share = away < away.min(-1, keepdims=True) + 1e-9
        total = (weight[..., None] * share / share.sum(-1, keepdims=True)).sum((0, 1))
        return {site: float(p) for site, p in zip(SITES, total / total.sum(), strict=True)}

    def nearest_site(self, fractions: np.ndarray) -> np.ndarray:
        """(...) index into :data:`SITES` of the site nearest to ``fractions`` (..., 2) of the primitive vectors."""
        return self._distances(fractions).argmin(-1)

    @staticmethod
    def _distances(fractions: np.ndarray) -> np.ndarray:
        """(..., 4) to the nearest copy of each site, in neighbour distances."""
        plane = np.array([[1.0, 0.0], [0.5, math.sqrt(3) / 2]])
        away = [
            min_distance((np.asarray(fractions)[..., None, :] - np.array(c)) @ plane, plane) for c in _COPIES.values()
        ]
        return np.stack(away, -1)

    def fractions(self, xyz: np.ndarray) -> np.ndarray:
        """(..., 2) of positions (..., 3), in the primitive vectors."""
        return (np.asarray(xyz) - self.origin) @ self._reciprocal

    def map(
        self, grid: tuple[int, int] = (24, 24), temperature: float = 300.0, lattice: np.ndarray | None = None
    ) -> SurfaceMap:
        """exp(-V/kT) on the primitive cell (its own vectors, or ``lattice`` (2, 2) in x and y), cell averages of a 4 x 4 finer grid."""
        axes = slab_axes(self.normal, self.vectors)
        lattice = self.vectors @ axes.T if lattice is None else np.asarray(lattice, dtype=float)
        fine = _grid((4 * grid[0], 4 * grid[1]), centred=True)
        value, _ = self.profile(self.fractions(fine @ lattice @ axes))
        weight = np.exp(-(value - value.min()) / kT(temperature)).reshape(grid[0], 4, grid[1], 4).mean((1, 3))
        return SurfaceMap.from_density(weight, lattice)

    def calculator(self, slab: Atoms | None = None, adsorbate_index: int = -1) -> SiteSurfaceCalculator:
        """An ASE Calculator for a slab of the metal with one adsorbate atom; the slab is taken from the structure unless given."""
        return SiteSurfaceCalculator(self, slab, adsorbate_index)

    @property
    def _reciprocal(self) -> np.ndarray:
        return np.linalg.pinv(self.vectors)

    @staticmethod
    def _waves(fractions: Tensor) -> Tensor:
        """(..., 4): 1, sum cos(G.r), sum sin(G.r), sum cos(G'.r)."""
        u, v = 2 * math.pi * fractions[..., 0], 2 * math.pi * fractions[..., 1]
        first, second = torch.stack([u, v, -u - v], -1), torch.stack([u - v, u + 2 * v, 2 * u + v], -1)
        return torch.stack([torch.ones_like(u), first.cos().sum(-1), first.sin().sum(-1), second.cos().sum(-1)], -1)

    def _series(self, values: dict[str, float]) -> Tensor:
        waves = self._waves(torch.tensor(list(SITES.values()), dtype=torch.float64))
        return torch.linalg.solve(waves, torch.tensor([values[site] for site in SITES], dtype=torch.float64))


class SiteSurfaceCalculator(Calculator):
    """Energy (eV) and forces of a :class:`SiteSurface`. Forces on slab atoms are zero: hold the slab with FixAtoms."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, surface: SiteSurface, slab: Atoms | None = None, adsorbate_index: int = -1):
        super().__init__()
        self.surface, self.adsorbate_index = surface, adsorbate_index
        self._slab = slab
        self._frame: SlabFrame | None = None
        self._placed: dict[int, SiteSurface] = {}

    def calculate(self, atoms=None, properties=("energy",), system_changes=None):
        """Zero for the bare slab. Raises UnsupportedError unless the structure is a slab of the metal with this one adsorbate."""
        super().calculate(atoms, properties, system_changes)
        if set(self.atoms.symbols) == {self.surface.metal}:  # the bare slab is the zero of grid searches
            self.results = {"energy": 0.0, "forces": np.zeros((len(self.atoms), 3))}
            return
        index = self.adsorbate_index % len(self.atoms)
        if self.atoms.symbols[index] != self.surface.adsorbate:
            raise UnsupportedError(
                f"expected atom {index} to be the adsorbate {self.surface.adsorbate}, got {self.atoms.symbols[index]}."
            )
        xyz = torch.as_tensor(self.atoms.positions[index])
        placed = self._place(index)
        forces = np.zeros((len(self.atoms), 3))
        forces[index] = placed.forces(xyz).numpy()
        self.results = {"energy": float(placed.energy(xyz)), "forces": forces}

    def _place(self, index: int) -> SiteSurface:
        """On the given slab, or on that of the first structure seen: one that has moved since is refused."""
        others = np.delete(self.atoms.positions, index, 0)
        if self._slab is None:
            self._slab = self.atoms[np.delete(np.arange(len(self.atoms)), index)]
        moved = np.abs(others - self._slab.positions).max() if others.shape == self._slab.positions.shape else np.inf
        if moved > 1e-3:
            raise IncompatibleError(
                "the slab has changed: this energy is that of a rigid one; use FixAtoms, or a new calculator."
            )
        if self._frame is None:
            self._frame = slab_frame(self._slab)
        side = 1 if self._frame.height(self.atoms.positions[index]) > -self._frame.thickness / 2 else -1
        if side not in self._placed:
            self._placed[side] = self.surface.on(self._slab, normal=side * self._frame.normal)
        return self._placed[side]


def min_distance(difference: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """(..., m, 2) -> (...) the least length, modulo the lattice, over m copies."""
    return np.linalg.norm(shortest(difference, lattice), axis=-1).min(-1)


def slab_axes(normal: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(2, 3) x and y for a surface in the xy plane, else along the first vector."""
    if abs(normal[2]) > 1 - 1e-9:
        return np.eye(3)[:2]
    first = vectors[0] / np.linalg.norm(vectors[0])
    return np.array([first, np.cross(normal, first)])


def _locate(slab: Atoms, metal: str, normal) -> dict[str, np.ndarray]:
    """Vectors, origin and normal of the surface lattice, from the outermost two layers."""
    wrong = sorted(set(slab.symbols) - {metal})
    if wrong:
        raise UnsupportedError(
            f"expected a slab of {metal}, got {', '.join(wrong)} in it: take the adsorbate out, or use another energy."
        )
    frame = slab_frame(slab, normal=normal)
    lattice = primitive_lattice(slab, frame)
    lengths = np.linalg.norm(lattice, axis=1)
    cosine = lattice[0] @ lattice[1] / lengths.prod()
    if abs(lengths[0] / lengths[1] - 1) > 0.02 or abs(cosine - 0.5) > 0.02:
        raise UnsupportedError(
            f"expected an fcc(111) surface, got one that repeats by {lattice.round(2).tolist()}: use another energy."
        )
    height, xy = frame.height(slab.positions), frame.xy(slab.positions)
    spacing = math.sqrt(2 / 3) * lengths.mean()
    layer = np.round((height - height[height > -spacing / 2].mean()) / spacing).astype(int)
    means = [_common_point(xy[layer == -k], lattice) for k in range(min(3, 1 - int(layer.min())))]
    if len(means) < 2:
        raise UnsupportedError(
            "expected at least two layers: which hollow is fcc and which is hcp lies in the second one."
        )
    # The second layer stands below the hcp hollows; vectors are turned so that those are at (2/3, 2/3).
    beneath = (means[1] - means[0]) @ np.linalg.inv(lattice) % 1.0
    if np.abs(beneath - 1 / 3).max() < 0.1:
        lattice = -lattice
    elif np.abs(beneath - 2 / 3).max() > 0.1:
        raise UnsupportedError(
            f"expected the second layer below three-fold hollows, found it at fractions {beneath.round(2).tolist()}."
        )
    if len(means) > 2 and np.linalg.norm(shortest(means[2] - means[0], lattice)) < 0.3:
        raise UnsupportedError("expected fcc stacking, got hcp: the third layer stands below the first.")
    top = float(height[layer == 0].mean())
    return {"vectors": frame.to_cartesian(lattice), "origin": frame.point(means[0], top), "normal": frame.normal}


def _common_point(xy: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """Mean of points that are the same modulo the lattice. Raises UnsupportedError if they are not, to 0.5 Angstrom."""
    rest = shortest(xy - xy[0], lattice)
    if np.linalg.norm(rest, axis=1).max() > 0.5:
        raise UnsupportedError(
            "a layer has more than one atom in the surface's primitive cell: this is not an fcc(111) slab."
        )
    return xy[0] + rest.mean(0)


def _grid(shape: tuple[int, int], centred: bool = False) -> np.ndarray:
    """(n, m, 2) fractions."""
    axes = [(np.arange(n) + (0.5 if centred else 0.0)) / n for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1)


@lru_cache(maxsize=1)
def _table() -> dict[str, dict]:
    return json.loads((Path(__file__).parent / "xu_kitchin.json").read_text(encoding="utf-8"))["systems"]
