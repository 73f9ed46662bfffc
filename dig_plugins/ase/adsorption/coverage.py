"""How sites compare with a reference: coverage, precision and the baselines without which neither means anything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from dig_core.errors import IncompatibleError

from .baselines import Baseline, baseline
from .plane import shortest
from .sites import Site, SiteSet

__all__ = ["CoverageReport", "compare", "distances", "merged", "reference_minima"]

_SAME = 0.25  # Angstrom: sites of one table that are this close, symmetry included, are one


@dataclass(frozen=True)
class CoverageReport:
    """``coverage``: share of the reference's minima with a proposed site within ``tol``; ``coverage_at_k``: the same for the ``k`` most
    probable places; ``precision``: share of the proposed probability that lies within ``tol`` of a minimum; ``f1`` of coverage and
    precision; ``rmsd`` Angstrom, of the covered minima to the nearest proposed site; ``n_calls``, ``wall_s``, ``cpu_s``: proposed and
    reference; ``tv``, ``js``, ``kt_slope``: of the density, if they were asked for.
    """

    coverage: float
    coverage_at_k: float
    precision: float
    f1: float
    rmsd: float
    k: int
    n_reference: int
    n_proposed: int
    tol: float
    window: float
    baselines: tuple[Baseline, ...]
    skipped: tuple[str, ...]
    missed: tuple[str, ...]
    n_calls: tuple[int, int]
    wall_s: tuple[float, float]
    cpu_s: tuple[float, float]
    kept_out: int
    tv: float | None = None
    js: float | None = None
    kt_slope: float | None = None

    def to_markdown(self) -> str:
        """A table of the proposed sites and every baseline, and what it was measured against."""
        ours = Baseline("proposed", self.n_proposed, self.coverage, self.coverage_at_k, self.precision)
        lines = [f"| sites | number | coverage | coverage@{self.k} | precision |", "| --- | --- | --- | --- | --- |"]
        lines += [
            f"| {r.name} | {r.number} | {r.coverage:.2f} | {r.coverage_at_k:.2f} | {r.precision:.2f} |"
            for r in (ours, *self.baselines)
        ]
        notes = [
            f"{self.n_reference} reference minima within {self.window} eV, tolerance {self.tol} Å",
            f"F1 {self.f1:.2f}, rmsd {self.rmsd:.2f} Å",
            f"missed: {', '.join(self.missed) or 'none'}; kept out as anomalies or failures: {self.kept_out}",
            f"energy calls {self.n_calls[0]} against {self.n_calls[1]}, CPU {self.cpu_s[0]:.1f} s against {self.cpu_s[1]:.1f} s",
        ]
        density = [
            f"{name} {value:.3f}"
            for name, value in (("TV", self.tv), ("JS", self.js), ("kT slope", self.kt_slope))
            if value is not None
        ]
        notes += [", ".join(density)] if density else []
        notes += [f"left out: {', '.join(self.skipped)}"] if self.skipped else []
        return "\n".join(lines) + "\n\n" + ".\n".join(notes) + ".\n"


def compare(proposed: SiteSet, reference: SiteSet, *, tol, window, top_k, baselines, seed=0) -> CoverageReport:
    """See :meth:`SiteSet.compare`."""
    if not tol > 0 or not window > 0:
        raise IncompatibleError(f"expected a tolerance and a window above zero, got tol={tol}, window={window}.")
    if tuple(proposed.numbers) != tuple(reference.numbers):
        raise IncompatibleError(
            f"expected the same adsorbate, got atomic numbers {proposed.numbers} and {reference.numbers}."
        )
    if not np.allclose(proposed.lattice, reference.lattice, atol=0.2):
        raise IncompatibleError(
            f"expected sites on one surface, got primitive vectors {proposed.lattice.round(2).tolist()} and "
            f"{reference.lattice.round(2).tolist()}: compare on the same slab."
        )
    minima = reference_minima(reference, window)
    k = len(minima) if top_k is None else int(top_k)
    ours = merged(proposed)
    weights = _weights(ours)
    apart = distances(ours, minima, reference)
    coverage, at_k, precision = _scores(apart, weights, k, tol)
    covered = apart.min(0)[apart.min(0) <= tol] if len(ours) else np.zeros(0)
    rows, skipped = [], []
    for name in baselines:
        found = baseline(
            name, reference, minima, k=k, tol=tol, draws=max(proposed.draws, 100), seed=seed, score=_scores
        )
        rows += [] if isinstance(found, str) else found
        skipped += [found] if isinstance(found, str) else []
    missed = tuple(
        f"{s.label} at {s.xy.round(2).tolist()}"
        for s, d in zip(minima, apart.min(0, initial=np.inf), strict=True)
        if d > tol
    )
    return CoverageReport(
        coverage, at_k, precision, 2 * coverage * precision / max(coverage + precision, 1e-12),
        float(np.sqrt((covered**2).mean())) if len(covered) else float("nan"), k, len(minima), len(ours), tol, window, tuple(rows),
        tuple(skipped), missed, (proposed.n_calls, reference.n_calls), (proposed.wall_s, reference.wall_s),
        (proposed.cpu_s, reference.cpu_s), sum(proposed.anomalies.values()) + proposed.failures,
    )  # fmt: skip


def reference_minima(reference: SiteSet, window: float) -> list[Site]:
    """Distinct minima within ``window`` eV of the lowest; all sites if nothing is known of their energies."""
    sites = [site for site in reference.sites if site.is_minimum is not False]
    known = [site.energy for site in sites if site.energy is not None]
    sites = [site for site in sites if not known or site.energy is None or site.energy - min(known) <= window]
    if not sites:
        raise IncompatibleError("the reference has no minimum: search on a finer grid, or with a smaller fmax.")
    kept: list[Site] = []
    for site in sites:
        if not kept or distances([site], kept, reference).min() > _SAME:
            kept.append(site)
    return kept


def merged(proposed: SiteSet) -> list[Site]:
    """One site of every symmetric set, its probability the sum, the most probable place first; known saddles are not proposals.

    A place has its share of the sum, as many as there are symmetric ones: a set of three is no deeper than a lone site of a third.
    """
    kept: list[Site] = []
    for site in sorted(proposed.sites, key=lambda s: -(s.probability or 0.0)):
        if site.is_minimum is False:
            continue
        apart = distances([site], kept, proposed)[0] if kept else np.array([np.inf])
        i = int(apart.argmin())
        if apart[i] > _SAME:
            kept.append(site)
        elif site.probability is not None:
            kept[i] = replace(kept[i], probability=(kept[i].probability or 0.0) + site.probability)
    if all(site.probability is None for site in kept):
        return kept
    return sorted(kept, key=lambda s: -(s.probability or 0.0) / proposed.multiplicity(s.xy))


def distances(sites, others, surface: SiteSet) -> np.ndarray:
    """(n, m) Angstrom between sites modulo the surface's translations, rotations and mirrors.

    In the plane, between anchors, for atoms and where positions are not known; else the root-mean-square distance over the
    atoms of the molecule, like atoms exchanged where that is closer.
    """
    result = np.full((len(sites), len(others)), np.inf)
    if not len(sites) or not len(others):
        return result
    whole = len(surface.numbers) > 1 and all(s.positions is not None for s in (*sites, *others))
    for operation in surface.operations:
        if whole:
            now = _molecular(sites, others, surface, operation)
        else:
            moved = operation(np.array([s.xy for s in sites]))
            now = np.linalg.norm(
                shortest(moved[:, None] - np.array([s.xy for s in others])[None], surface.lattice), axis=-1
            )
        result = np.minimum(result, now)
    return result


def _molecular(sites, others, surface: SiteSet, operation) -> np.ndarray:
    frame = surface.frame
    result = np.full((len(sites), len(others)), np.inf)
    for order in _exchanges(surface.numbers):
        for i, site in enumerate(sites):
            xy, height = operation(frame.xy(site.positions)), frame.height(site.positions)
            for j, other in enumerate(others):
                apart = xy - frame.xy(other.positions)[list(order)]
                apart += shortest(apart.mean(0), surface.lattice) - apart.mean(0)
                lift = height - frame.height(other.positions)[list(order)]
                result[i, j] = min(result[i, j], float(np.sqrt(((apart**2).sum(-1) + lift**2).mean())))
    return result


def _exchanges(numbers: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Orders in which every atom keeps its element; the given one alone for more than six atoms."""
    if len(numbers) > 6:
        return [tuple(range(len(numbers)))]
    return [p for p in permutations(range(len(numbers))) if all(numbers[i] == numbers[j] for i, j in enumerate(p))]


def _weights(sites: list[Site]) -> np.ndarray:
    known = np.array([np.nan if s.probability is None else s.probability for s in sites])
    return np.ones(len(sites)) if np.isnan(known).any() else known


def _scores(apart: np.ndarray, weights: np.ndarray, k: int, tol: float) -> tuple[float, float, float]:
    """Coverage, coverage by the first k rows, precision, from distances (n, m) of rows in order of weight."""
    if not len(apart):
        return 0.0, 0.0, 0.0
    near = apart <= tol
    precision = float((weights * near.any(1)).sum() / weights.sum())
    return float(near.any(0).mean()), float(near[:k].any(0).mean()), precision
