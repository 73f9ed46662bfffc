"""What reports show of backbones: Ramachandran plot, fluctuations along the chain, size, alpha carbons to turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dig_core.coordinates.measure import dihedral
from dig_core.system.descriptor import Descriptor
from dig_core.system.protein import residues

from ..panels import BLUE, histogram, ramachandran
from ..report import Panel, Scene
from ..scene import superposed
from .observables import backbone_torsions, radius_of_gyration, rmsf

__all__ = ["backbone_panels", "structures"]


def backbone_panels(positions: np.ndarray, descriptor: Descriptor, weights: np.ndarray | None = None) -> list[Panel]:
    """Of ``positions`` (F, A, 3) Angstrom with ``weights`` (F,), equal if None."""
    known, panels = residues(descriptor), []
    alpha = np.asarray(positions[:, known.atoms[:, 1].numpy()], dtype=np.float64)
    if bool(known.follows().any()):
        quadruples = torch.as_tensor(backbone_torsions(known.atoms[:, :3].numpy(), known.follows().numpy()))
        angles = dihedral(torch.as_tensor(np.asarray(positions, dtype=np.float64)), quadruples).numpy()
        phi, psi = _paired(quadruples.numpy(), angles)
        whole = None if weights is None else np.repeat(weights, phi.shape[1])
        said = (
            "All residues of all structures: helices are at (-60, -45), strands at (-120, 130). Dark is most probable, yellow is rare, "
            "grey was never visited."
        )
        panels.append(Panel("φ and ψ", lambda ax: ramachandran(ax, phi.ravel(), psi.ravel(), whole, bar=True), said))
    if len(alpha) > 1:
        size, moved = radius_of_gyration(alpha), rmsf(alpha, weights=weights)
        panels += [
            Panel("Size", lambda ax: histogram(ax, size, "radius of gyration", "Å", weights=weights), "Of the alpha carbons."),
            Panel(
                "Fluctuations", lambda ax: _fluctuations(ax, known.number.numpy(), moved),
                "How far each alpha carbon moves about the mean structure: loops and ends high, helices and strands low.", wide=True,
            ),
        ]  # fmt: skip
    return panels


def structures(
    positions: np.ndarray, descriptor: Descriptor, labels: Sequence[str] = (), caption: str = "", superpose: bool = True
) -> Scene:
    """``positions`` (F, A, 3) Angstrom as lines through the alpha carbons, blue at the N end, orange at the C end."""
    alpha = np.asarray(positions, dtype=np.float64)[:, residues(descriptor).atoms[:, 1].numpy()]
    placed = superposed(alpha) if superpose else alpha
    said = f"{caption} A line through the alpha carbons, blue at the N end, orange at the C end.".strip()
    return Scene.of(np.full(alpha.shape[1], 6), placed, labels=labels, caption=said, title="Backbones", style="trace")


def _paired(quadruples: np.ndarray, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """phi and psi (F, R) of the residues that have both: phi ends with N, CA, C of a residue, psi begins with them."""
    half = len(quadruples) // 2
    psi = {tuple(row[:3]): half + k for k, row in enumerate(quadruples[half:].tolist())}
    pairs = [(k, psi[tuple(row[1:])]) for k, row in enumerate(quadruples[:half].tolist()) if tuple(row[1:]) in psi]
    first, second = np.array(pairs, dtype=int).reshape(-1, 2).T
    return angles[:, first], angles[:, second]


def _fluctuations(ax, numbers: np.ndarray, moved: np.ndarray) -> None:
    places = np.arange(len(moved))
    ax.plot(places, moved, "-", marker="o", ms=2.5, color=BLUE, linewidth=1.4)
    ax.set(xlabel="residue", ylabel="fluctuation (Å)", xlim=(-0.5, len(moved) - 0.5))
    ax.set_ylim(bottom=0)
    ticks = np.unique(np.linspace(0, len(moved) - 1, 10).astype(int))
    ax.set_xticks(ticks, [str(numbers[i]) for i in ticks])
