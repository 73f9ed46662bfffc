"""Pictures of designed crystals: gaps against targets, energies against gaps, a gallery of structures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pymatgen.core import Structure

from ...panels import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "energy_gap", "gallery", "gap_histogram"]

# Okabe and Ito's palette, in an order in which neighbours differ in lightness too.
_COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_ATOMS = {1: "#CFCFCF", 6: "#3C3C3C", 7: BLUE, 8: ORANGE, 14: "#E69F00"}


def gap_histogram(
    ax: Axes, values: Mapping[str, np.ndarray], targets: Mapping[str, float | tuple[float, float]] | None = None,
    width: float = 0.25, floor: float | None = 0.0,
) -> None:  # fmt: skip
    """Share of structures by gap (eV), one outline a set; ``targets``, by the sets' names, are marked where they lie.

    ``floor``: gaps below count as this one. Unknown values are left out and counted in the legend.
    """
    known = {name: np.asarray(x)[np.isfinite(x)] for name, x in values.items()}
    known = {name: x if floor is None else np.maximum(x, floor) for name, x in known.items()}
    every = np.concatenate([*known.values(), np.zeros(1)])
    edges = np.arange(np.floor(every.min() / width) * width, every.max() + 2 * width, width)
    for k, (name, x) in enumerate(known.items()):
        colour, missing = _COLOURS[k % len(_COLOURS)], len(values[name]) - len(x)
        share = np.histogram(x, edges)[0] / max(len(x), 1)
        label = f"{name} (n = {len(x)}" + (f", {missing} unknown)" if missing else ")")
        ax.stairs(share, edges, color=colour, fill=True, alpha=0.18)
        ax.stairs(share, edges, color=colour, linewidth=1.6, label=label)
        if targets and name in targets:
            ends = targets[name] if isinstance(targets[name], tuple) else (targets[name], targets[name])
            low, high = np.clip(ends, edges[0], edges[-1])
            ax.axvspan(low, max(high, low + 0.02), ymin=0.965, color=colour, linewidth=0)
            if low == high:
                ax.axvline(low, color=colour, linestyle=":", linewidth=1.2)
    ax.set(xlabel="band gap (eV)", ylabel=f"share of structures per {width:g} eV", xlim=(edges[0], edges[-1]))
    ax.set_ylim(0, 1.08 * ax.get_ylim()[1])
    ax.yaxis.set_major_formatter("{x:.0%}")
    ax.legend(fontsize="small", framealpha=0.9)


def energy_gap(ax: Axes, sets: Mapping[str, tuple[np.ndarray, np.ndarray]], lowest: float | None = None) -> None:
    """Energy (eV/atom) against gap (eV), one point a structure; ``sets`` name -> (gaps (n,), energies (n,)).

    Energies are drawn from ``lowest``, the least of all if None.
    """
    every = np.concatenate([np.asarray(energy) for _, energy in sets.values()])
    lowest = float(np.nanmin(every)) if lowest is None else lowest
    for k, (name, (gap, energy)) in enumerate(sets.items()):
        shown = np.isfinite(gap) & np.isfinite(energy)
        # The first set is what the others stand before: usually the data.
        colour, size = (GREY, 9) if k == 0 and len(sets) > 1 else (_COLOURS[(k - 1) % len(_COLOURS)], 20)
        style = {"s": size, "alpha": 0.5 if colour == GREY else 0.75, "linewidths": 0, "rasterized": True}
        ax.scatter(
            np.maximum(gap, 0)[shown],
            energy[shown] - lowest,
            color=colour,
            label=f"{name} ({int(shown.sum())})",
            **style,
        )
    ax.set(xlabel="band gap (eV)", ylabel="energy above the lowest (eV/atom)")
    ax.legend(fontsize="small", framealpha=0.9)


def gallery(
    figure: Figure, structures: Sequence[Structure], captions: Sequence[str], columns: int = 4, cutoff: float = 1.85
) -> None:
    """Pictures side by side, each drawn by :func:`draw` under its caption."""
    rows = -(-len(structures) // columns)
    axes = np.atleast_1d(figure.subplots(rows, min(columns, len(structures)), squeeze=False)).ravel()
    for ax in axes[len(structures) :]:
        ax.axis("off")
    for ax, structure, caption in zip(axes, structures, captions, strict=False):
        draw(ax, structure, cutoff)
        ax.set_title(caption, fontsize="small")


def draw(
    ax: Axes, structure: Structure, cutoff: float = 1.85, span: float = 7.0, view: np.ndarray | None = None
) -> None:
    """Balls and sticks of a piece of the crystal, ``span`` Angstrom wide, from the side that shows most (or along ``view`` (3,)).

    Bonds are shorter than ``cutoff`` Angstrom. What is farther off is paler.
    """
    positions, numbers = _piece(structure, span * 0.87)
    axes = _axes(positions, cutoff) if view is None else _facing(np.asarray(view, dtype=float))
    # A block, seen from its front: of layers there is more than one whichever way they lie.
    flat = positions @ axes.T
    shown = (np.abs(flat) <= span * np.array([0.5, 0.5, 0.35])).all(1)
    flat, numbers = flat[shown], numbers[shown]
    near = (flat[:, 2] - flat[:, 2].min()) / max(np.ptp(flat[:, 2]), 1e-9)
    distance = np.linalg.norm(flat[:, None] - flat, axis=-1)
    first, second = np.nonzero(np.triu(distance < cutoff, 1))
    for i, j in sorted(zip(first, second, strict=True), key=lambda pair: near[pair[0]] + near[pair[1]]):
        depth = (near[i] + near[j]) / 2
        ax.plot(
            *flat[[i, j], :2].T,
            color=_paled(GREY, depth),
            linewidth=1 + 2 * depth,
            solid_capstyle="round",
            zorder=2 * depth,
        )
    colours = [_paled(_ATOMS.get(int(z), "#009E73"), depth) for z, depth in zip(numbers, near, strict=True)]
    for i in np.argsort(near):
        ax.scatter(
            *flat[i, :2],
            s=18 + 40 * near[i],
            color=colours[i],
            edgecolors="white",
            linewidths=0.5,
            zorder=2 * near[i] + 0.01,
        )
    reach = 0.5 * span + 0.4
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    for side in ax.spines.values():
        side.set_visible(False)


def _piece(structure: Structure, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Atoms (M, 3) in a ball of ``radius`` Angstrom about the first atom, and their atomic numbers."""
    cell, fractions = structure.lattice.matrix, structure.frac_coords
    reach = np.ceil(radius * np.linalg.norm(np.linalg.inv(cell), axis=0) + 1).astype(int)
    images = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), -1).reshape(-1, 3)
    positions = ((fractions - fractions[0])[:, None] + images).reshape(-1, 3) @ cell
    numbers = np.repeat([site.specie.Z for site in structure], len(images))
    inside = np.linalg.norm(positions, axis=1) <= radius
    return positions[inside], numbers[inside]


def _axes(positions: np.ndarray, cutoff: float) -> np.ndarray:
    """(3, 3) rows right, up, towards the reader: of layers the normal is up, a little tilted; else the moments' axes."""
    gap = positions[:, None] - positions
    distance = np.linalg.norm(gap, axis=-1)
    bonds = gap[(distance > 0) & (distance < cutoff)]
    # Bonds that have least along an axis lie in layers across it.
    _, vectors = np.linalg.eigh(bonds.T @ bonds) if len(bonds) else (None, np.eye(3))
    up, toward = vectors[:, 0], vectors[:, 1]
    tilt = np.radians(12.0)
    toward, up = np.cos(tilt) * toward + np.sin(tilt) * up, np.cos(tilt) * up - np.sin(tilt) * toward
    right = np.cross(up, toward)
    turn = np.radians(10.0)
    right, toward = np.cos(turn) * right + np.sin(turn) * toward, np.cos(turn) * toward - np.sin(turn) * right
    return np.array([right, up, toward])


def _facing(view: np.ndarray) -> np.ndarray:
    toward = view / np.linalg.norm(view)
    up = np.eye(3)[np.abs(toward).argmin()]
    up = up - toward * (up @ toward)
    up = up / np.linalg.norm(up)
    return np.array([np.cross(up, toward), up, toward])


def _paled(colour: str, near: float) -> tuple[float, ...]:
    """``colour`` on its way to white, the farther the more."""
    from matplotlib.colors import to_rgb

    rgb = np.array(to_rgb(colour))
    return tuple(rgb + (1 - rgb) * 0.7 * (1 - near))
