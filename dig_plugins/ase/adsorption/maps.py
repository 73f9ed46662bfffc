"""Maps of where an adsorbate is: probability density over the surface plane, its free energy, distances between two of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dig_core.errors import IncompatibleError

from ..convert import kT
from .plane import shortest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SurfaceMap", "kt_slope"]


@dataclass(frozen=True)
class SurfaceMap:
    """``p`` (n, m) 1/Angstrom^2, averages over the cells of an even grid; ``lattice`` (2, 2) Angstrom, its vectors as rows.

    Points are in the axes of the slab's frame. Cell (i, j) has its centre at ((i + 1/2)/n, (j + 1/2)/m) of the lattice
    vectors; the density integrates to one.
    """

    p: np.ndarray
    lattice: np.ndarray

    @classmethod
    def from_density(cls, values: np.ndarray, lattice: np.ndarray) -> SurfaceMap:
        """From values (n, m) >= 0 proportional to the density at the centres of the cells, which are normalised here."""
        values = np.asarray(values, dtype=float)
        if values.ndim != 2 or not np.isfinite(values).all() or (values < 0).any() or not values.sum() > 0:
            raise IncompatibleError(
                f"expected an (n, m) array of finite densities >= 0 that are not all zero, got shape {values.shape}."
            )
        lattice = np.asarray(lattice, dtype=float)
        return cls(values / (values.mean() * abs(np.linalg.det(lattice))), lattice)

    @classmethod
    def from_samples(
        cls,
        xy: np.ndarray,
        lattice: np.ndarray,
        *,
        weights: np.ndarray | None = None,
        grid=(24, 24),
        smooth: float = 0.0,
    ) -> SurfaceMap:
        """Histogram of points (k, 2) Angstrom with ``weights`` (k,), folded onto ``lattice``.

        ``smooth``: Angstrom, width of a periodic Gaussian that the histogram is folded with; for pictures, zero for measuring.
        """
        weights = np.ones(len(xy)) if weights is None else np.asarray(weights, dtype=float)
        if not len(xy) or np.shape(xy) != (len(weights), 2) or not weights.sum() > 0:
            raise IncompatibleError(
                f"expected points (k, 2) and as many weights, not all zero, got {np.shape(xy)} and {weights.shape}."
            )
        fractions = np.asarray(xy) @ np.linalg.inv(lattice) % 1.0
        bins = np.minimum((fractions * grid).astype(int), np.array(grid) - 1)
        counts = np.zeros(grid)
        np.add.at(counts, tuple(bins.T), weights)
        return cls.from_density(_smoothed(counts, np.asarray(lattice), smooth) if smooth else counts, lattice)

    @property
    def xy(self) -> np.ndarray:
        """(n, m, 2) Angstrom, centres of the cells."""
        axes = [(np.arange(n) + 0.5) / n for n in self.p.shape]
        return np.stack(np.meshgrid(*axes, indexing="ij"), -1) @ self.lattice

    @property
    def probability(self) -> np.ndarray:
        """(n, m) of each cell of the grid; sums to one."""
        return self.p / self.p.sum()

    def free_energy(self, temperature: float) -> np.ndarray:
        """(n, m) eV, -kT log p with its minimum at zero; +inf where there is no probability."""
        with np.errstate(divide="ignore"):
            return -kT(temperature) * np.log(self.p / self.p.max())

    def total_variation(self, other: SurfaceMap) -> float:
        """Half the sum of |p - p'| over the grid: 0 for equal maps, 1 for disjoint ones."""
        return float(0.5 * np.abs(self.probability - self._like(other).probability).sum())

    def noise(self, n: float) -> float:
        """Total variation that a histogram of ``n`` independent samples of this very map has to it, on average."""
        p = self.probability
        return float(np.sqrt(p * (1 - p) / (2 * np.pi * n)).sum())

    def js(self, other: SurfaceMap) -> float:
        """Jensen-Shannon divergence, nats: 0 for equal maps, log 2 for disjoint ones (Lin, 10.1109/18.61115)."""
        p, q = self.probability, self._like(other).probability
        middle = (p + q) / 2
        return float(sum(0.5 * (a[a > 0] * np.log(a[a > 0] / middle[a > 0])).sum() for a in (p, q)))

    def slope(self, other: SurfaceMap, temperature: float) -> float:
        """Slope of this map's free energy against the other's, weighted by the other's density: 1 if both are at one temperature."""
        both = (self.p > 0) & (self._like(other).p > 0)
        energy = other.free_energy(temperature)[both]
        return _regression(energy, self.free_energy(temperature)[both], other.p[both])

    def asymmetry(self, operations) -> float:
        """Largest total variation between the map and its image under an operation of the surface: a check that needs no reference."""
        return max((self.total_variation(self._moved(operation)) for operation in operations), default=0.0)

    def at(self, xy: np.ndarray) -> np.ndarray:
        """(...) 1/Angstrom^2 at points (..., 2), by periodic bilinear interpolation between the cells' centres."""
        place = np.asarray(xy) @ np.linalg.inv(self.lattice) * self.p.shape - 0.5
        low = np.floor(place).astype(int)
        rest = place - low
        total = np.zeros(place.shape[:-1])
        for i in (0, 1):
            for j in (0, 1):
                share = np.abs(1 - i - rest[..., 0]) * np.abs(1 - j - rest[..., 1])
                total += share * self.p[(low[..., 0] + i) % self.p.shape[0], (low[..., 1] + j) % self.p.shape[1]]
        return total

    def plot(self, ax: Axes, temperature: float, **options) -> None:
        """Top view, see :func:`dig_plugins.ase.adsorption.picture.draw`."""
        from .picture import draw

        draw(ax, self, temperature, **options)

    def _like(self, other: SurfaceMap) -> SurfaceMap:
        if self.p.shape != other.p.shape or not np.allclose(self.lattice, other.lattice, atol=1e-2):
            raise IncompatibleError(
                f"expected two maps on one grid, got {self.p.shape} on {self.lattice.round(2).tolist()} and "
                f"{other.p.shape} on {other.lattice.round(2).tolist()}: make both with the same grid and cell."
            )
        return other

    def _moved(self, operation) -> SurfaceMap:
        return SurfaceMap.from_density(np.maximum(self.at(operation(self.xy)), 0), self.lattice)


def kt_slope(log_q: np.ndarray, energy: np.ndarray, temperature: float, weights: np.ndarray | None = None) -> float:
    """Slope of -kT log q (n,) against energies (n,) eV over samples: 1 if q is proportional to exp(-E/kT)."""
    weights = np.ones(len(energy)) if weights is None else np.asarray(weights, dtype=float)
    kept = np.isfinite(log_q) & np.isfinite(energy)
    return _regression(np.asarray(energy)[kept], -kT(temperature) * np.asarray(log_q)[kept], weights[kept])


def _regression(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    x = x - np.average(x, weights=weights)
    return float((weights * x * y).sum() / (weights * x * x).sum())


def _smoothed(counts: np.ndarray, lattice: np.ndarray, width: float) -> np.ndarray:
    """Folded with a Gaussian made in real space: one made of waves has ripples, which a logarithm shows."""
    steps = np.stack(np.meshgrid(*(np.arange(n) / n for n in counts.shape), indexing="ij"), -1) @ lattice
    kernel = np.exp(-0.5 * (shortest(steps, lattice) ** 2).sum(-1) / width**2)
    folded = np.fft.ifft2(np.fft.fft2(counts) * np.fft.fft2(kernel / kernel.sum())).real
    return np.where(folded > 1e-12 * folded.max(), folded, 0.0)
