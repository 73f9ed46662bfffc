"""Paths between two structures of a protein through a model's latent space, and what is to be known before one believes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError, StateError
from dig_core.files import write_atomically
from dig_core.system.descriptor import Descriptor
from dig_core.system.protein import residues
from dig_core.types import Geometry

from .checks import Validity, check_backbones
from .observables.superposition import best_motion, pairwise_rmsd, rmsd
from .record import of_model, of_protein, of_software

__all__ = ["BackbonePath", "Ends", "Passed", "interpolate_backbones"]


class Ends(NamedTuple):
    """Of both ends, (2,) Angstrom each: ``round_trip``, the largest distance of an atom from where it was before it was encoded and
    decoded, and ``ideal``, the RMSD of N, CA and C that rebuilding with ideal bonds and angles costs, whatever the model."""

    round_trip: np.ndarray
    ideal: np.ndarray


class Passed(NamedTuple):
    """Of M given structures: the least RMSD of alpha carbons of a frame from each, (M,) Angstrom, and the index (M,) of that frame."""

    distance: np.ndarray
    frame: np.ndarray


@dataclass(frozen=True, eq=False)
class BackbonePath:
    """n frames from one structure to another.

    ``geometry`` (n, A, 3) Angstrom, the first superposed on the start as it was given and every other on the one before it; ``rmsd``
    (n, 2) of alpha carbons to both ends and ``steps`` (n - 1,) between frames, Angstrom, superposed; ``ends``; ``validity`` (n,) of
    :func:`~.checks.check_backbones`; ``passed`` the structures asked about, if any; ``energies`` (n,) in ``unit``, if any, NaN where
    there is none; ``made`` how, as the record holds it.
    """

    geometry: Geometry
    descriptor: Descriptor
    rmsd: np.ndarray
    steps: np.ndarray
    ends: Ends
    validity: Validity
    passed: Passed | None = None
    energies: np.ndarray | None = None
    unit: str = ""
    made: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rmsd)

    def with_energies(self, energies: Sequence[float] | np.ndarray, unit: str) -> BackbonePath:
        """The same with an energy a frame, of the completed and relaxed structures for example. Raises IncompatibleError unless n."""
        found = np.asarray(energies, dtype=np.float64)
        if found.shape != (len(self),):
            raise IncompatibleError(f"expected an energy for each of {len(self)} frames, got shape {found.shape}.")
        return replace(self, energies=found, unit=unit)

    def report(self) -> dict:
        """Everything but the frames, as JSON holds it."""
        found = {
            **self.made, "frames": len(self), "rmsd_to_start": self.rmsd[:, 0].tolist(), "rmsd_to_end": self.rmsd[:, 1].tolist(),
            "steps": self.steps.tolist(), "round_trip": self.ends.round_trip.tolist(), "ideal": self.ends.ideal.tolist(),
            "breaks": self.validity.breaks.tolist(), "clashes": self.validity.clashes.tolist(), "whole": int(self.validity.ok.sum()),
            **of_protein(self.descriptor), **of_software(), "units": "Angstrom",
        }  # fmt: skip
        if self.passed is not None:
            found["passed"] = {"distance": self.passed.distance.tolist(), "frame": self.passed.frame.tolist()}
        if self.energies is not None:
            found["energies"] = {"unit": self.unit, "values": [float(e) if np.isfinite(e) else None for e in self.energies]}
        return found

    def summary(self) -> str:
        """What became of the ends, and of the way between them."""
        apart, steps, broken = self.rmsd[0, 1], self.steps, ~self.validity.ok.numpy()
        lines = [
            f"{len(self)} frames between structures {apart:.2f} Angstrom apart, in steps of {steps.min():.2f} to {steps.max():.2f}.",
            f"Ends come back to {self.ends.round_trip.max():.2g} Angstrom; ideal residues cost {self.ends.ideal.max():.2f}.",
            f"{int(broken.sum())} frames are broken or clash" + (f": {np.flatnonzero(broken).tolist()}." if broken.any() else "."),
        ]
        if self.passed is not None:
            lines.append(f"Given structures are passed at {', '.join(f'{d:.2f}' for d in self.passed.distance)} Angstrom.")
        return "\n".join(lines)

    def write(self, path: str | Path) -> None:
        """``.xtc``, ``.dcd``, ``.h5`` or ``.pdb`` with the report (``.json``) of the same name beside it; for a name without a suffix a
        directory with ``path.xtc``, ``path.pdb`` and ``path.json``. Raises UnsupportedError for other names."""
        from .write import write_backbones

        path = Path(path) if Path(path).suffix else Path(path) / "path.xtc"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_backbones(path, self.geometry, self.descriptor)
        write_atomically(path.with_suffix(".json"), json.dumps(self.report(), indent=2).encode())

    def plot(self, axes) -> None:
        """RMSD to both ends along the path, into matplotlib Axes; frames that are not whole are marked, energies have their own axis."""
        from ..panels import BLUE, GREY, ORANGE

        frames = np.arange(len(self))
        for column, (name, colour) in enumerate((("start", BLUE), ("end", ORANGE))):
            axes.plot(frames, self.rmsd[:, column], "o-", ms=3, color=colour, label=f"from the {name}")
        broken = np.flatnonzero(~self.validity.ok.numpy())
        if len(broken):
            axes.plot(broken, np.zeros(len(broken)), "x", color=GREY, label="broken or clashing")
        axes.set(xlabel="frame", ylabel="RMSD of alpha carbons (Å)", xlim=(0, len(self) - 1))
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")
        if self.energies is not None:
            beside = axes.twinx()
            beside.plot(frames, self.energies - np.nanmin(self.energies), "--", color=GREY)
            beside.set_ylabel(f"energy above the lowest ({self.unit})")

    def figure(self):
        """:meth:`plot` as a matplotlib Figure. ImportError, naming the extra, without matplotlib."""
        from ..panels import new_figure

        figure = new_figure(6, 4)
        self.plot(figure.add_subplot())
        return figure


def interpolate_backbones(
    dig: DiG, start: Geometry, end: Geometry, n: int, *, steps: int | None = None, path: str = "spherical",
    passing: Geometry | None = None,
) -> BackbonePath:  # fmt: skip
    """``n`` frames from ``start`` to ``end``, each (1, A, 3) Angstrom as ``dig.descriptor`` has its atoms, along a path in latent space.

    The end is superposed on the start, by alpha carbons, before both are encoded: the law knows no orientation, so a structure and its
    latent turn together, and of all the latents of the end that of least distance is the one to go to; any other adds a rotation of the
    whole protein to the path. Frames are spaced by the RMSD of alpha carbons between neighbours, not evenly in latent space.

    Parameters
    ----------
    steps: of the probability flow, four evaluations each; the model's own if None. More bring the ends back closer.
    path: "spherical", or "linear" as in the article; see :func:`~dig_core.sampling.interpolate.interpolate`.
    passing: (M, A, 3) structures of which the least distance from the path is asked, known intermediates for example.

    Raises
    ------
    IncompatibleError: fewer than 2 frames, an unknown path, ends of other atoms or of more than one structure.
    StateError: ends, or frames, that are not finite.
    """
    descriptor = dig.descriptor
    alpha = residues(descriptor).atoms[:, 1].numpy()
    first, last = (_one(x, descriptor, name) for x, name in ((start, "start"), (end, "end")))
    last = best_motion(last[:, alpha], first[0, alpha])(last)
    given = [Geometry(torch.from_numpy(x)) for x in (first, last)]

    def apart(a: Geometry, b: Geometry) -> torch.Tensor:
        return torch.from_numpy(rmsd(*(x.positions.detach().cpu().double().numpy()[:, alpha] for x in (a, b))))

    found = dig.interpolate(*given, n, steps=steps, path=path, apart=apart).positions.detach().cpu().double().numpy()
    if not np.isfinite(found).all():
        raise StateError("the flow has led to positions that are not finite: take more steps, or train the model further.")
    frames = _in_a_row(found, first, alpha)
    geometry, ca = Geometry(torch.from_numpy(frames)), frames[:, alpha]
    others = None if passing is None else passing.positions.detach().cpu().double().numpy()[:, alpha]
    made = of_model(dig) | {"path": path, "steps_of_flow": dig.card.steps if steps is None else int(steps)}
    return BackbonePath(
        geometry, descriptor, pairwise_rmsd(ca, np.concatenate([first, last])[:, alpha]), rmsd(ca[1:], ca[:-1]),
        _ends(dig, given, found), check_backbones(geometry, descriptor), None if others is None else _passed(ca, others), made=made,
    )  # fmt: skip


def _one(given: Geometry, descriptor: Descriptor, name: str) -> np.ndarray:
    positions = given.positions.detach().cpu().double()
    if positions.shape != (1, descriptor.n_atoms, 3):
        raise IncompatibleError(f"expected the {name} as (1, {descriptor.n_atoms}, 3) for this sequence, got {tuple(positions.shape)}.")
    if not bool(positions.isfinite().all()):
        raise StateError(f"the {name} has positions that are not finite.")
    return positions.numpy()


def _in_a_row(frames: np.ndarray, start: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Frames (n, A, 3), the first superposed on ``start`` (1, A, 3), every other on the one before."""
    placed = [start]
    for frame in frames:
        placed.append(best_motion(frame[None, alpha], placed[-1][0, alpha])(frame[None]))
    return np.concatenate(placed[1:])


def _ends(dig: DiG, given: list[Geometry], found: np.ndarray) -> Ends:
    core = residues(dig.descriptor).atoms[:, :3].flatten().numpy()
    trips, ideals = [], []
    for x, frame in zip(given, (found[0], found[-1]), strict=True):
        rebuilt = dig.coordinates.decode(dig.coordinates.encode(x, dig.descriptor)[0], dig.descriptor).positions.detach().numpy()
        trips.append(np.linalg.norm(frame - rebuilt[0], axis=1).max())
        ideals.append(rmsd(rebuilt, x.positions.numpy(), on=core)[0])
    return Ends(np.array(trips), np.array(ideals))


def _passed(frames: np.ndarray, others: np.ndarray) -> Passed:
    apart = pairwise_rmsd(frames, others)
    return Passed(apart.min(0), apart.argmin(0))
