"""Free energies: over (phi, psi), along a variable, with their errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dig_core.montecarlo.analysis import Profile

from .canvas import BLUE, MAX_KT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["profile", "ramachandran", "turns"]


def ramachandran(
    ax: Axes, phi: np.ndarray, psi: np.ndarray, weights: np.ndarray | None = None, label: str = "", bins: int | None = None,
    bar: bool = False,
) -> Any:  # fmt: skip
    """Free energy in kT over (phi, psi), (F,) rad, relative to the lowest bin; returns the mesh, for a colour bar.

    Bins never visited stay grey. The colour scale is the same in every panel, 0 to :data:`MAX_KT`; ``bar``: shown beside it. ``bins``
    a turn, by the number of structures if None.
    """
    edges = np.linspace(-180.0, 180.0, 1 + (bins or (60 if len(phi) >= 3000 else 36)))
    wrapped = [(np.degrees(np.asarray(angle)) + 180.0) % 360.0 - 180.0 for angle in (phi, psi)]
    counts = np.histogram2d(wrapped[0], wrapped[1], bins=edges, weights=weights)[0].T
    free_energy = -np.ma.log(np.ma.masked_equal(counts, 0.0))
    ax.set_facecolor("#E4E4E4")
    mesh = ax.pcolormesh(edges, edges, free_energy - free_energy.min(), cmap="viridis", vmin=0.0, vmax=MAX_KT)
    mesh.set_rasterized(True)
    ax.set(xlabel="φ (degrees)", ylabel="ψ (degrees)", aspect="equal")
    ax.set(xticks=range(-180, 181, 90), yticks=range(-180, 181, 90), xlim=(-180, 180), ylim=(-180, 180))
    ax.set_title(label, loc="left")
    if bar:
        ax.figure.colorbar(mesh, ax=ax, extend="max", label="free energy (kT)", shrink=0.9)
    return mesh


def profile(ax: Axes, found: Profile, label: str = "", colour: str = BLUE, style: str = "-") -> None:
    """A free energy (kT) with a band of two standard errors either side; bins never visited leave a gap."""
    seen = np.isfinite(found.free_energy)
    height = np.where(seen, found.free_energy, np.nan)
    error = np.where(seen, 2.0 * found.stderr, np.nan)
    ax.fill_between(found.centres, height - error, height + error, color=colour, alpha=0.22, linewidth=0)
    # A bin whose neighbours were not visited would vanish from a line alone.
    ax.plot(found.centres, height, style, color=colour, label=label, linewidth=1.6, marker="o", markersize=2.6)
    ax.set(ylabel="free energy (kT)")


def turns(ax: Axes, profiles: dict[str, tuple[Profile, str, str]], name: str = "φ") -> None:
    """Free energies along a turn, centres in rad; ``profiles``: label -> profile, colour and style, drawn in that order."""
    for label, (found, colour, style) in profiles.items():
        profile(ax, found._replace(centres=np.degrees(found.centres)), label, colour, style)
    ax.set(xlabel=f"{name} (degrees)", xlim=(-180, 180), xticks=range(-180, 181, 60))
    # What is known to within many kT would flatten all the rest.
    tops = [found.free_energy[np.isfinite(found.free_energy)].max(initial=1.0) for found, _, _ in profiles.values()]
    ax.set_ylim(-0.5, 1.3 * max(tops))
    ax.legend(loc="upper right", fontsize="small", ncols=len(profiles), framealpha=0.9)
