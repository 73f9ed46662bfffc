"""Samples of an adsorbate on a slab with their log-probabilities and weights: sites, maps, relaxations, files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from ase import Atoms

from dig_core.errors import IncompatibleError, StateError
from dig_core.montecarlo.analysis import effective_sample_size, largest_weight_share, normalised_weights

from .anomaly import anomalies_of
from .frame import SlabFrame, slab_frame
from .maps import SurfaceMap, kt_slope
from .plane import nearest
from .sites import SiteSet
from .symmetry import Operation, operations, primitive_lattice

__all__ = ["AdsorptionEnsemble"]

CORRECTIONS = (None, "reweight", "mc")


@dataclass(frozen=True)
class AdsorptionEnsemble:
    """n structures of one slab and adsorbate.

    ``template``: structure whose slab atoms define the surface, adsorbate included; ``positions`` (n, N, 3) Angstrom;
    ``adsorbate``: indices of its atoms, the anchor first; ``log_q`` (n,) nats, the model's log-density; ``log_weight`` (n,) nats,
    -E/kT - log q; ``energies`` (n,) eV of the named energy, whole structures; ``valid`` (n,) bool, False where there is no structure or
    the calculator failed; ``anomalies``: a tuple of labels for each; ``temperature`` K; ``correction`` None (the model's own
    samples, equal weights), "reweight" (weights exp(log_weight), never clipped) or "mc" (a chain, equal weights);
    ``energy_name``: what the energies are of, with their zero; ``source``: model, seed and other facts in words; ``n_calls`` of the
    calculator, ``wall_s``, ``cpu_s``. Invalid and anomalous samples are counted and carry no weight.
    """

    template: Atoms
    positions: np.ndarray
    adsorbate: tuple[int, ...]
    log_q: np.ndarray | None = None
    log_weight: np.ndarray | None = None
    energies: np.ndarray | None = None
    valid: np.ndarray | None = None
    anomalies: tuple[tuple[str, ...], ...] = ()
    temperature: float = 300.0
    correction: str | None = None
    energy_name: str = ""
    source: str = "samples"
    n_calls: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __post_init__(self):
        n, atoms = len(self.positions), len(self.template)
        if np.shape(self.positions) != (n, atoms, 3) or not n:
            raise IncompatibleError(
                f"expected positions (n, {atoms}, 3) of at least one structure, got {np.shape(self.positions)}."
            )
        if self.correction not in CORRECTIONS:
            raise IncompatibleError(f"expected correction to be one of {CORRECTIONS}, got {self.correction!r}.")
        if self.correction == "reweight" and self.log_weight is None:
            raise IncompatibleError("correction='reweight' needs log_weight: energies, and samples with log_q.")
        if not len(self.adsorbate) or not all(0 <= i < atoms for i in self.adsorbate):
            raise IncompatibleError(f"expected adsorbate indices from 0 to {atoms - 1}, got {self.adsorbate}.")
        for name in ("log_q", "log_weight", "energies", "valid", "anomalies"):
            value = getattr(self, name)
            if value is not None and len(value) and len(value) != n:
                raise IncompatibleError(f"expected {name} for {n} structures, got {len(value)}.")
        if self.valid is None:
            object.__setattr__(self, "valid", np.isfinite(self.positions).all((1, 2)))
        if not len(self.anomalies):
            object.__setattr__(self, "anomalies", ((),) * n)

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def slab(self) -> Atoms:
        """The template without its adsorbate."""
        return self.template[np.setdiff1d(np.arange(len(self.template)), self.adsorbate)]

    @cached_property
    def frame(self) -> SlabFrame:
        """Of the slab, on the side of the template's adsorbate."""
        return slab_frame(self.template, adsorbate=np.array(self.adsorbate))

    @cached_property
    def lattice(self) -> np.ndarray:
        """(2, 2) Angstrom, the surface's primitive vectors."""
        return primitive_lattice(self.slab, self.frame)

    @cached_property
    def operations(self) -> list[Operation]:
        """Rotations and mirrors of the surface."""
        return operations(self.slab, self.frame, lattice=self.lattice)

    @property
    def used(self) -> np.ndarray:
        """(n,) bool, valid and without anomaly."""
        return np.asarray(self.valid, dtype=bool) & ~np.array([bool(labels) for labels in self.anomalies])

    @property
    def weights(self) -> np.ndarray:
        """(n,) float64, sum one; zero for samples that are not used. Raises StateError if none is."""
        used = self.used
        if not used.any():
            raise StateError(f"none of {len(self)} structures can be used: {self.kept_out()}.")
        if self.correction != "reweight":
            return used / used.sum()
        return normalised_weights(np.where(used, self.log_weight, -np.inf))

    @property
    def xy(self) -> np.ndarray:
        """(n, 2) Angstrom, in-plane place of the anchor; zero where invalid."""
        return np.where(
            np.asarray(self.valid)[:, None], self.frame.xy(np.nan_to_num(self.positions[:, self.adsorbate[0]])), 0.0
        )

    def effective_sample_size(self) -> float:
        """Raw Kish size, in samples, of the weights in use. Of a chain it is the number of its samples, correlated as they are."""
        if self.correction != "reweight":
            return float(self.used.sum())
        return effective_sample_size(np.where(self.used, self.log_weight, -np.inf)) * len(self)

    def images(self) -> list[Atoms]:
        """One Atoms a sample, its numbers in ``info["dig_*"]``."""
        from .files import to_images

        return to_images(self)

    def labelled(self) -> AdsorptionEnsemble:
        """A copy whose anomalies are found out from the structures, against the template."""
        order = np.r_[np.setdiff1d(np.arange(len(self.template)), self.adsorbate), self.adsorbate]
        valid = np.asarray(self.valid, dtype=bool)
        found = iter(anomalies_of(self.template[order], self.positions[valid][:, order], self.slab))
        return replace(self, anomalies=tuple(next(found) if good else () for good in valid))

    def sites(self, radius: float = 0.5, min_weight: float = 0.01) -> SiteSet:
        """Basins of the weighted density of the anchor, folded onto the surface's primitive cell, the most probable first.

        ``radius``: Angstrom, see :func:`basins`. ``min_weight``: basins with less probability are left out. Molecules that
        stand, lie or hang (centroid above, level with or below the anchor) are told apart. Standard errors take samples as independent.
        """
        from .cluster import sites_of

        return sites_of(self, radius, min_weight)

    def shares(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(m,) weight nearest to each of ``places`` (m, 2) Angstrom, and its standard error for independent samples."""
        weights = self.weights
        index, _ = nearest(self.xy, np.asarray(places, dtype=float), self.lattice)
        member = index[:, None] == np.arange(len(places))
        share = (weights[:, None] * member).sum(0)
        return share, np.sqrt((weights[:, None] ** 2 * (member - share) ** 2).sum(0))

    def density(
        self, grid=(24, 24), cell: str = "primitive", *, symmetrize: bool = False, smooth: float = 0.0
    ) -> SurfaceMap:  # fmt: skip
        """Weighted histogram of the anchor over the ``"primitive"`` cell of the surface or the whole ``"cell"``.

        ``symmetrize``: every sample counts at all places that the surface's symmetry makes equal. ``smooth``: Angstrom, for pictures.
        """
        if cell not in ("primitive", "cell"):
            raise IncompatibleError(f"expected cell to be 'primitive' or 'cell', got {cell!r}.")
        lattice = self.lattice if cell == "primitive" else self.frame.lattice
        xy, weights = self.xy, self.weights
        if symmetrize:
            moves = self.operations
            xy, weights = np.concatenate([move(xy) for move in moves]), np.tile(weights, len(moves))
        return SurfaceMap.from_samples(xy, lattice, weights=weights, grid=tuple(grid), smooth=smooth)

    def plot(self, ax, *, smooth: float = 0.12, **options) -> None:
        """Top view: smoothed free energy over the slab's atoms, sites numbered as in :meth:`sites`; options of :func:`draw`."""
        grid = np.maximum(np.ceil(np.linalg.norm(self.lattice, axis=1) / 0.1).astype(int), 8)
        density = self.density(tuple(grid), smooth=smooth)
        options = {"slab": self.slab, "normal": self.frame.normal, "sites": self.sites()} | options
        density.plot(ax, self.temperature, **options)

    def kt_slope(self) -> float:
        """Slope of -kT log q against the energies over the used samples; 1 for a calibrated model."""
        if self.log_q is None or self.energies is None:
            raise IncompatibleError("the slope needs log_q and energies: sample with an energy.")
        return kt_slope(self.log_q[self.used], self.energies[self.used], self.temperature)

    def relax(self, calculator, n: int = 5, *, fmax: float = 0.02, steps: int = 200, log=None) -> SiteSet:
        """Relax the ``n`` most probable sites, each from its own sample: energies, minima and saddles, calls and anomalies."""
        return self.sites().relax(calculator, n, fmax=fmax, steps=steps, log=log)

    def summary(self) -> str:
        """What was drawn and kept out, and the sites by the model's own weights, reweighted and corrected, each under its name."""
        energy = self.energy_name or "none: these are the model's own probabilities"
        lines = [
            f"{len(self)} structures of {self.template.symbols} at {self.temperature:g} K; {self.source}",
            f"Reference energy: {energy}.",
        ]
        lines += [f"Kept out: {self.kept_out()}.", ""]
        views = (
            [("Raw: the model's samples, equal weights", replace(self, correction=None))]
            if self.correction != "mc"
            else []
        )
        if self.log_weight is not None and self.correction != "mc":
            views.append(("Reweighted by exp(-E/kT)/q", replace(self, correction="reweight")))
        views += [("Corrected: Monte Carlo", self)] if self.correction == "mc" else []
        for name, view in views:
            lines += [
                f"{name}: effective sample size {view.effective_sample_size():.1f}.{view._share()}",
                "",
                view.sites().to_markdown(),
            ]
        return "\n".join(lines)

    def write(self, path: str | Path) -> None:
        """``.extxyz``, ``.traj`` or ``.db``: one image a sample, all numbers in its info."""
        from .files import write_ensemble

        write_ensemble(path, self)

    @classmethod
    def read(cls, path: str | Path) -> AdsorptionEnsemble:
        """What :meth:`write` wrote."""
        from .files import read_ensemble

        return read_ensemble(path)

    def kept_out(self) -> str:
        """How many samples carry no weight, and why, in words."""
        counts = Counter(label for labels in self.anomalies for label in labels)
        wrong = [f"{label} {count}" for label, count in sorted(counts.items())]
        return ", ".join([*wrong, f"invalid or failed {int((~np.asarray(self.valid)).sum())}"])

    def _share(self) -> str:
        if self.correction != "reweight":
            return ""
        return f" Largest weight {largest_weight_share(np.where(self.used, self.log_weight, -np.inf)):.3f} of all."

    def described(self) -> str:
        """Where the weights come from, in words."""
        name = {None: "raw samples", "reweight": "reweighted samples", "mc": "a Monte Carlo chain"}[self.correction]
        return f"{name}: {self.source}"
