"""Top view of a surface map: free energy over the atoms, sites numbered. Needs matplotlib; touches no global state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dig_core.errors import IncompatibleError

from ..convert import kT
from .contact import images, radii
from .frame import slab_frame

if TYPE_CHECKING:
    from ase import Atoms
    from matplotlib.axes import Axes

    from .maps import SurfaceMap

__all__ = ["draw"]

_DEEPEST = 3.0  # Angstrom below the outermost atom: what lies deeper is not drawn
_LAYER = 0.8  # Angstrom: atoms this far below the outermost ones are no longer outermost
_SHOWN = 0.4  # eV, top of the colour bar


def draw(
    ax: Axes,
    density: SurfaceMap,
    temperature: float,
    *,
    slab: Atoms | None = None,
    normal=None,
    sites=(),
    ceiling: float = _SHOWN,
    window: tuple[float, float] | None = None,
    colour_bar: bool = True,
    title: str | None = None,
) -> None:
    """Free energy -kT log p (eV) as colour, contour lines every kT, atoms as circles, sites as numbers.

    Parameters
    ----------
    ax: axes to draw into. slab: whose atoms and cell are drawn. normal: (3,) side of it.
    sites: with ``xy``, numbered from 1 in the order given.
    ceiling: eV, free energies above are left out. window: Angstrom, width and height shown, from the cell's corner.
    """
    from matplotlib.colors import Normalize

    frame = None if slab is None else slab_frame(slab, normal=normal)
    cell = 2 * density.lattice if frame is None else frame.lattice
    low, high = _window(cell, window)
    ceiling = min(ceiling, _round_up(float(density.free_energy(temperature).max())))
    x, y = (np.linspace(low[i], high[i], 400) for i in (0, 1))
    energy = _interpolated(density, temperature, ceiling, np.stack(np.meshgrid(x, y, indexing="xy"), -1))
    if frame is not None:
        _atoms(ax, slab, frame, low, high)
    image = ax.imshow(
        np.ma.masked_greater(energy, ceiling), origin="lower", extent=(low[0], high[0], low[1], high[1]), cmap="viridis",
        norm=Normalize(0, ceiling), interpolation="nearest", alpha=0.8, zorder=2,
    )  # fmt: skip
    levels = np.arange(1, 9) * kT(temperature)
    ax.contour(
        x, y, energy, levels=levels[levels < 0.98 * ceiling], colors="white", linewidths=0.5, alpha=0.7, zorder=2.5
    )
    _outline(ax, cell)
    _numbers(ax, sites, cell, low, high)
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xlabel="x (Å)", ylabel="y (Å)", title=title)
    if colour_bar:
        bar = ax.figure.colorbar(image, cax=ax.inset_axes((1.02, 0, 0.035, 1)), extend="max")
        bar.set_label(f"free energy at {temperature:g} K (eV)")


def _round_up(energy: float) -> float:
    """The next multiple of 0.02 eV."""
    return max(0.02, 0.02 * float(np.ceil(energy / 0.02))) if np.isfinite(energy) else np.inf


def _window(cell: np.ndarray, window) -> tuple[np.ndarray, np.ndarray]:
    corners = np.array([[0, 0], cell[0], cell[1], cell[0] + cell[1]])
    low, high = corners.min(0) - 0.6, corners.max(0) + 0.6
    if window is not None:
        if len(window) != 2 or min(window) <= 0:
            raise IncompatibleError(f"expected window as a width and a height in Angstrom, got {window!r}.")
        high = low + np.asarray(window, dtype=float)
    return low, high


def _interpolated(density: SurfaceMap, temperature: float, ceiling: float, points: np.ndarray) -> np.ndarray:
    """Free energies, not densities, are interpolated: between two cells they change by far less than their exponentials."""
    from .maps import SurfaceMap

    energy = np.minimum(density.free_energy(temperature), 1.5 * ceiling)
    return SurfaceMap(energy, density.lattice).at(points)


def _atoms(ax: Axes, slab: Atoms, frame, low: np.ndarray, high: np.ndarray) -> None:
    """Grey discs below the map, darker the deeper; circles above it where the outermost atoms are."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Circle

    index, xy, height = images(slab, frame, float((high - low).max()))
    size = radii(slab.numbers)[index]
    seen = np.flatnonzero(((xy > low - 2) & (xy < high + 2)).all(1) & (height > -_DEEPEST))
    seen = seen[np.argsort(height[seen])]
    discs = [Circle(xy[i], size[i]) for i in seen]
    shade = 0.9 + 0.13 * np.maximum(height[seen], -_DEEPEST)
    grey = np.repeat(shade[:, None], 3, 1).clip(0, 1)
    ax.add_collection(PatchCollection(discs, facecolor=grey, edgecolor="0.35", linewidths=0.7, zorder=1))
    rings = [Circle(xy[i], size[i]) for i in seen if height[i] > -_LAYER]
    ax.add_collection(PatchCollection(rings, facecolor="none", edgecolor="black", linewidths=0.9, alpha=0.7, zorder=3))


def _outline(ax: Axes, cell: np.ndarray) -> None:
    corners = np.array([[0, 0], cell[0], cell[0] + cell[1], cell[1], [0, 0]])
    ax.plot(*corners.T, color="black", linewidth=1.1, linestyle="--", zorder=4)


def _numbers(ax: Axes, sites, cell: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    inverse = np.linalg.inv(cell)
    for number, site in enumerate(sites, start=1):
        fractions = np.asarray(site.xy) @ inverse
        place = (fractions - np.floor(fractions + 1e-6)) @ cell
        ax.text(
            *place, str(number), ha="center", va="center", fontsize=7, color="black", zorder=5, clip_on=True,
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "black", "linewidth": 0.8},
        )  # fmt: skip
