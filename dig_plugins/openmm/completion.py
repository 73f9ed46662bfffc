"""All-atom structures of sampled backbones: side chains and hydrogens put on, relaxed with the backbone held, judged one by one."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from openmm import app
from torch import Tensor

from dig_core.errors import IncompatibleError
from dig_core.progress import Show, bar
from dig_core.random import as_seed
from dig_core.system.descriptor import Descriptor
from dig_core.system.protein import residues
from dig_core.types import Geometry

from .born import native_born
from .convert import label, to_geometry, to_nanometers
from .relaxation import Relaxer
from .sidechains import SideChains, build, extended

__all__ = ["Completed", "complete"]

_AWAY = 1.5
"""Angstrom: an alpha carbon that moves farther is no longer the one that was given."""


class Completed(NamedTuple):
    """All-atom structures of F backbones, a row for every one that was given.

    ``topology``: M atoms; ``index`` (A,): the descriptor's in it; ``positions`` (F, M, 3) nm, of a failed one what it came to;
    ``before``, ``after`` (F,) energies in kJ/mol, restraint not counted, NaN where there is none; ``rmsd`` (F,) Angstrom of the alpha
    carbons to the given ones, superposed; ``seconds`` (F,) each took; ``failures``: row -> reason; ``seed``; ``platform``.
    """

    topology: app.Topology
    index: Tensor
    positions: np.ndarray
    before: np.ndarray
    after: np.ndarray
    rmsd: np.ndarray
    seconds: np.ndarray
    failures: dict[int, str]
    seed: int
    platform: str

    @property
    def good(self) -> np.ndarray:
        """Rows without a failure."""
        return np.array([row for row in range(len(self.positions)) if row not in self.failures], dtype=int)


def complete(
    geometry: Geometry, descriptor: Descriptor, *, force_field: Sequence[str] = ("amber14-all.xml", "implicit/obc2.xml"),
    restraint: float = 1000.0, steps: int = 200, disulfides: Sequence[tuple[int, int]] = (), seed: int | None = None,
    platform: str = "auto", threads: int | None = None, progress: Show = None,
) -> Completed:  # fmt: skip
    """Put side chains and hydrogens on backbones and relax them: one local minimum a frame, no ensemble of side chains.

    The sequence is built once, by PDBFixer, on an extended chain; its side chains and hydrogens are put rigidly on each frame and
    relaxed, out of overlaps first. Charged ends also where residues are missing, pH 7, cysteines reduced unless named.

    Parameters
    ----------
    geometry: (F, A, 3) Angstrom of the descriptor's atoms, as ``Backbone.decode`` gives them.
    force_field: files of OpenMM with hydrogens; no cutoff.
    restraint: kJ/mol/nm^2 that hold each given atom where it is. steps: of minimisation in the force field, at most.
    disulfides: pairs of residues, counted from 0.
    platform, threads: as in OpenMMEnergy.

    Returns
    -------
    Completed. A frame fails where its energy is not finite, where a bond stays stretched by 0.25 Angstrom, as through a ring, where
    atoms do not part, or an alpha carbon moves by 1.5 Angstrom; its reason is recorded and the others go on.

    Raises
    ------
    ImportError: without PDBFixer. UnsupportedError: the descriptor of something else, force fields that have no harmonic bonds.
    IncompatibleError: other numbers of atoms, a sequence that PDBFixer or the force field does not know, negative restraint or steps.
    """
    given = geometry.positions.detach().cpu().double()
    if given.dim() != 3 or given.shape[1:] != (descriptor.n_atoms, 3):
        raise IncompatibleError(f"expected positions (F, {descriptor.n_atoms}, 3) of this sequence, got {tuple(geometry.positions.shape)}.")
    if not (math.isfinite(restraint) and restraint >= 0 and steps > 0):
        raise IncompatibleError(f"expected restraint >= 0 in kJ/mol/nm^2 and steps > 0, got {restraint} and {steps}.")
    seed = as_seed(seed)
    chains = build(descriptor, disulfides=disulfides)
    relax, chains = _relaxer(chains, descriptor, force_field, restraint, steps, platform, threads)
    alpha = chains.index[residues(descriptor).atoms[:, 1]]
    positions = np.full((len(given), chains.topology.getNumAtoms(), 3), np.nan)
    table, failures = np.full((4, len(given)), np.nan), {}
    shown = bar(given, label="all atoms", progress=progress)
    for row, frame in enumerate(shown):
        began, centre = time.perf_counter(), frame.mean(0)
        # Platforms of single precision lose it far from the origin.
        placed = chains.put((frame - centre)[None])
        found = relax(to_nanometers(Geometry(placed))[0], seed + row)
        reached = to_geometry(found.positions).positions
        positions[row] = to_nanometers(Geometry(reached + centre))[0]
        failure = found.failure or _away(chains, alpha, (reached - placed)[0, alpha])
        if failure is not None:
            failures[row] = failure
        rmsd = _rmsd(reached[0, alpha], placed[0, alpha])
        table[:, row] = found.before, found.after, rmsd, time.perf_counter() - began
        shown.set_postfix(failed=len(failures), seconds=f"{table[3, row]:.2g}")
    return Completed(chains.topology, chains.index, positions, *table, failures, seed, relax.platform_name)


def _relaxer(chains: SideChains, descriptor: Descriptor, force_field, restraint, steps, platform, threads) -> tuple[Relaxer, SideChains]:
    """What relaxes structures of the sequence, and its side chains as the force field has them where nothing is in their way."""
    try:
        system = app.ForceField(*force_field).createSystem(chains.topology, nonbondedMethod=app.NoCutoff, constraints=None)
    except (ValueError, OSError) as error:
        raise IncompatibleError(f"{', '.join(force_field)} cannot describe the sequence as it was built: {error}") from error
    start = to_nanometers(Geometry(chains.put(extended(descriptor).positions)))[0]
    system = native_born(system, start)
    relax = Relaxer(
        system, chains.topology, chains.index.tolist(), start, restraint=restraint, steps=steps, platform=platform, threads=threads
    )
    return relax, chains.like(to_geometry(relax.part(start, 0)).positions[0])


def _away(chains: SideChains, alpha: Tensor, moved: Tensor) -> str | None:
    far, worst = moved.norm(dim=-1).max(0)
    if float(far) <= _AWAY:
        return None
    atom = list(chains.topology.atoms())[int(alpha[worst])]
    return f"the backbone gives way to overlaps or strain: {label(atom)} moves by {float(far):.1f} Angstrom."


def _rmsd(first: Tensor, second: Tensor) -> float:
    """Of (N, 3) superposed, in their unit; NaN if one is not finite. W. Kabsch, doi:10.1107/S0567739476001873."""
    a, b = first - first.mean(0), second - second.mean(0)
    if not bool((a.isfinite() & b.isfinite()).all()):
        return math.nan
    left, stretch, right = torch.linalg.svd(a.T @ b)
    stretch[-1] *= torch.sign(torch.linalg.det(left) * torch.linalg.det(right))
    return math.sqrt(max(0.0, float(a.square().sum() + b.square().sum() - 2 * stretch.sum())) / len(a))
