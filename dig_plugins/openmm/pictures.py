"""What reports show of a molecule: free-energy surfaces with errors, and structures to turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from openmm import app

from dig_core.coordinates.measure import dihedral
from dig_core.errors import IncompatibleError
from dig_core.montecarlo.analysis import Profile, free_energy_profile

from .. import models
from ..panels import COLOURS, GREY, ramachandran, turns
from ..report import Panel, Scene
from ..scene import superposed
from .observables import backbone_dihedrals

__all__ = ["phi_profile", "reference_profile", "structures", "surface", "surfaces", "turning"]

_BINS, _MOST = 36, 4  # of a profile; residues or torsions that are drawn
_BANDS = "Bands are two standard errors either side; gaps were never visited."
_HOW = "Dark is most probable, yellow is rare, grey was never visited; every report has the same scale of 0 to 8 kT."


def surfaces(
    topology: app.Topology, positions: np.ndarray, weights: np.ndarray | None = None, *, block: int = 1, reference: Profile | None = None,
) -> list[Panel]:  # fmt: skip
    """Free energies of a molecule's turns, from ``positions`` (F, N, 3) nm with ``weights`` (F,), equal if None.

    Of a peptide: the Ramachandran plot of its residues, and a profile along phi of each, beside the ``reference`` of the first if there is
    one. Of anything else: profiles along the torsions that vary most. ``block``: structures that errors take together.
    """
    try:
        angles = backbone_dihedrals(topology).measure(positions)
    except IncompatibleError:
        return _torsions(topology, positions, weights, block)
    (phi, psi), residues = angles, angles[0].shape[1]
    whole = None if weights is None else np.repeat(weights, residues)
    several = residues > 1
    shown = {f"residue {i + 1}" if several else "this run": _profile(phi[:, i], weights, block) for i in range(min(residues, _MOST))}
    profiles = {name: (found, colour, "-") for (name, found), colour in zip(shown.items(), COLOURS, strict=False)}
    beside = ""
    if reference is not None and not several:
        profiles = {"long parallel tempering": (reference, GREY, "--"), **profiles}
        beside = " The dashed line is a long reference run."
    said = f"Backbone dihedrals of all {residues} residues." if several else "Backbone dihedrals."
    return [
        surface("Free energy over φ and ψ", phi.ravel(), psi.ravel(), whole, said),
        Panel("Free energy along φ", lambda ax: turns(ax, profiles), f"{_BANDS}{beside}"),
    ]


def surface(title: str, phi: np.ndarray, psi: np.ndarray, weights: np.ndarray | None, said: str) -> Panel:
    """A Ramachandran plot of (F,) rad; ``said`` begins its caption."""
    return Panel(title, lambda ax: ramachandran(ax, phi, psi, weights, bar=True), f"{said} {_HOW}")


def phi_profile(phi: np.ndarray, *, block: int = 1) -> Profile:
    """Along (F,) rad, of equal weights."""
    return _profile(phi, None, block)


def reference_profile(model: str) -> Profile | None:
    """The free energy along phi (centres in rad) of the long parallel-tempering run that ships with a model, if one does."""
    file = models.index().get(model, {}).get("reference")
    if file is None:
        return None
    with np.load(models.path(model).with_name(file)) as held:
        return Profile(held["phi_centres"], held["phi_free_energy"], held["phi_stderr"])


def structures(
    topology: app.Topology, positions: np.ndarray, labels: Sequence[str] = (), caption: str = "", title: str = "Structures"
) -> Scene:
    """``positions`` (F, N, 3) nm, each superposed on the first by its heavy atoms."""
    numbers = np.array([atom.element.atomic_number if atom.element else 0 for atom in topology.atoms()])
    heavy = np.flatnonzero(numbers > 1)
    placed = superposed(10 * np.asarray(positions, dtype=np.float64), heavy if len(heavy) > 2 else None)
    return Scene.of(numbers, placed, labels=labels, caption=caption, title=title)


def turning(topology: app.Topology, positions: np.ndarray, most: int = _MOST) -> dict[str, np.ndarray]:
    """Torsions about bonds between heavy atoms, those that vary most: names of the atoms -> angles (F,) rad."""
    heavy: dict[int, list[int]] = {atom.index: [] for atom in topology.atoms() if atom.element and atom.element.atomic_number > 1}
    for first, second in topology.bonds():
        if first.index in heavy and second.index in heavy:
            heavy[first.index].append(second.index)
            heavy[second.index].append(first.index)
    names, found = [atom.name for atom in topology.atoms()], {}
    points = torch.as_tensor(np.asarray(positions), dtype=torch.float64)
    for b in heavy:
        for c in (c for c in heavy[b] if c > b):
            ends = [next((x for x in heavy[i] if x != j), None) for i, j in ((b, c), (c, b))]
            if None not in ends and ends[0] != ends[1]:
                atoms = (ends[0], b, c, ends[1])
                label = "-".join(names[i] for i in atoms if i is not None)
                found[label] = dihedral(points, torch.tensor([atoms]))[:, 0].numpy()
    spread = sorted(found, key=lambda name: abs(np.exp(1j * found[name]).mean()))
    return {name: found[name] for name in spread[:most]}


def _torsions(topology: app.Topology, positions: np.ndarray, weights: np.ndarray | None, block: int) -> list[Panel]:
    found = turning(topology, positions)
    if not found:
        return []
    profiles = {name: (_profile(x, weights, block), colour, "-") for (name, x), colour in zip(found.items(), COLOURS, strict=False)}
    caption = f"The torsions that vary most, by the names of their atoms. {_BANDS}"
    return [Panel("Free energy along torsions", lambda ax: turns(ax, profiles, "torsion"), caption, wide=True)]


def _profile(values: np.ndarray, weights: np.ndarray | None, block: int) -> Profile:
    edges = np.linspace(-np.pi, np.pi, _BINS + 1)
    return free_energy_profile(values, edges, weights, periodic=True, block=block, rng=np.random.default_rng(0))
