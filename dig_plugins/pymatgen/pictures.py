"""What reports show of designed crystals: gaps against the target, densities, a gallery, structures to turn."""

from __future__ import annotations

import numpy as np
from pymatgen.core import Structure

from ..panels import histogram
from ..report import Panel, Scene
from ..scene import Shot, bonds_of
from .designs import Designs, space_group
from .evaluate.figures import gallery, gap_histogram

__all__ = ["crystal_panels", "structures"]

_GALLERY, _SCENE, _ATOMS = 4, 12, 60  # pictures, frames, and atoms of a frame at least
_FARTHEST = 4.0  # Angstrom: no bond is longer


def crystal_panels(found: Designs, target: float | tuple[float, float] | None = None) -> list[Panel]:
    """Of the structures, weighted as they are; ``target`` of the gap, eV."""
    weights = found.weights if found.valid.any() else None
    panels = []
    if "gap" in found.properties:
        targets = {} if target is None else {"designs": target}
        said = "Predicted gaps" + ("; what was asked for is marked at the top." if target is not None else ".")
        panels.append(Panel("Band gaps", lambda ax: gap_histogram(ax, {"designs": found.properties["gap"]}, targets), said))
    density = np.array([structure.density for structure in found.structures])
    size = np.array([structure.volume / len(structure) for structure in found.structures])

    def shares(values: np.ndarray, name: str, unit: str) -> Panel:
        title = name[0].upper() + name[1:]
        return Panel(title, lambda ax: histogram(ax, values, name, unit, weights=weights), "Of the structures, by their weights.")

    panels.append(shares(density, "density", "g/cm³"))
    if len(panels) % 2:
        panels.append(shares(size, "volume per atom", "Å³"))
    best = np.argsort(-found.weights, kind="stable")[:_GALLERY]
    named = [_label(found, int(i)) for i in best]
    shown = [found.structures[i] for i in best]
    said = "Pieces of the crystals that weigh most; what is farther is paler."
    panels.append(Panel("Structures", lambda ax: _gallery(ax, shown, named), said, wide=True))
    return panels


def structures(found: Designs) -> Scene:
    """The heaviest designs, each as a few cells of it; lines are the edges of one."""
    order = np.argsort(-found.weights, kind="stable")[:_SCENE]
    frames = tuple(_frame(found.structures[i], _label(found, int(i))) for i in order)
    return Scene("Crystals", frames, "The crystals that weigh most, a few cells of each; lines are the edges of one cell.")


def _label(found: Designs, i: int) -> str:
    structure = found.structures[i]
    gap = f", gap {found.properties['gap'][i]:.2f} eV" if "gap" in found.properties else ""
    return f"{i}: {structure.composition.formula.replace(' ', '')}, {space_group(structure)}{gap}"


def _frame(structure: Structure, label: str) -> Shot:
    """Repeated along its short vectors until there are enough atoms to see how they are bound."""
    cell, repeats = structure.lattice.matrix, np.ones(3, dtype=int)
    while len(structure) * repeats.prod() < _ATOMS:
        repeats[np.argmin(np.linalg.norm(cell, axis=1) * repeats)] += 1
    shifts = np.stack(np.meshgrid(*(np.arange(n) for n in repeats), indexing="ij"), -1).reshape(-1, 3) @ cell
    positions = (structure.cart_coords[None] + shifts[:, None]).reshape(-1, 3)
    middle = positions.mean(0)
    numbers = np.tile([site.specie.Z for site in structure], len(shifts))
    bonds = bonds_of(numbers, positions)
    near = np.linalg.norm(positions[bonds[:, 0]] - positions[bonds[:, 1]], axis=1) < _FARTHEST
    return Shot(numbers, positions - middle, bonds[near], label, cell, -middle)


def _gallery(ax, shown: list[Structure], named: list[str]) -> None:
    figure = ax.figure
    ax.remove()
    gallery(figure, shown, [name.replace(", ", "\n", 1) for name in named])
