"""What structures are worth by themselves: room for atoms, density, coordination, a property by a judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pymatgen.core import Structure
from torch import Tensor

from dig_core.errors import IncompatibleError
from dig_core.system.elements import covalent_radii
from dig_core.types import Geometry

from ..convert import to_geometry
from ..distances import closest, within
from ..tables import markdown, percent, wilson

__all__ = ["Coordination", "HitRate", "Validity", "coordination", "hit_rate", "joint", "judged", "validity"]


@dataclass(frozen=True, eq=False)
class Validity:
    """``shortest`` (n,) Angstrom and ``contact`` (n,), the least distance over the sum of covalent radii; ``density`` (n,) g/cm^3."""

    shortest: np.ndarray
    contact: np.ndarray
    density: np.ndarray
    limits: tuple[float, ...] = (0.5, 1.1)
    share: float = 0.7

    def valid(self, limit: float) -> np.ndarray:
        """(n,) bool: no distance below ``limit`` Angstrom."""
        return self.shortest > limit

    def to_markdown(self) -> str:
        """One row."""
        head = [f"all distances > {limit:g} A" for limit in self.limits] + [
            f"> {self.share:g} of covalent radii",
            "g/cm3",
        ]
        counts = [int(self.valid(limit).sum()) for limit in self.limits] + [int((self.contact > self.share).sum())]
        row = [percent(count, len(self.shortest)) for count in counts]
        return markdown(head, [[*row, f"{self.density.mean():.2f} +- {self.density.std():.2f}"]])


def validity(structures: Sequence[Structure], limits: Sequence[float] = (0.5, 1.1), share: float = 0.7) -> Validity:
    """Distances over all images and densities. ``limits``: Angstrom; 0.5 is what the field asks for, 1.1 what carbon needs."""
    found = np.array(
        [closest(s, covalent_radii(torch.tensor([site.specie.Z for site in s])).numpy()) for s in structures]
    )
    found = found.reshape(-1, 2)
    return Validity(found[:, 0], found[:, 1], np.array([s.density for s in structures]), tuple(limits), share)


@dataclass(frozen=True, eq=False)
class Coordination:
    """``shares`` (n, 7): of each structure's atoms, those with 0, 1, ..., 5 and more than 5 neighbours within ``cutoff`` Angstrom."""

    shares: np.ndarray
    cutoff: float

    @property
    def sp2(self) -> np.ndarray:
        """(n,) share of atoms with three neighbours."""
        return self.shares[:, 3]

    @property
    def sp3(self) -> np.ndarray:
        """(n,) share of atoms with four."""
        return self.shares[:, 4]

    def to_markdown(self) -> str:
        """Mean shares of atoms."""
        head = [f"neighbours within {self.cutoff:g} A", "0", "1", "2 (sp)", "3 (sp2)", "4 (sp3)", "5", "more"]
        return markdown(head, [["atoms", *(f"{100 * share:.1f} %" for share in self.shares.mean(0))]])


def coordination(structures: Sequence[Structure], cutoff: float = 1.85) -> Coordination:
    """Numbers of neighbours; 1.85 Angstrom separates bonds of carbon from what is none."""
    counts = [np.minimum(within(structure, cutoff), 6) for structure in structures]
    return Coordination(
        np.array([np.bincount(count, minlength=7) / len(count) for count in counts]).reshape(-1, 7), cutoff
    )


def judged(structures: Sequence[Structure], judge: Callable[[Geometry], Tensor], batch: int = 32) -> np.ndarray:
    """(n,) values of ``judge``, a function of a Geometry of structures of one composition; NaN where it fails."""
    values, members = np.full(len(structures), np.nan), dict[str, list[int]]()
    for i, structure in enumerate(structures):
        members.setdefault(structure.composition.formula, []).append(i)
    for index in members.values():
        for low in range(0, len(index), batch):
            part = index[low : low + batch]
            with torch.no_grad():
                values[part] = torch.as_tensor(judge(to_geometry([structures[i] for i in part]))).double().cpu().numpy()
    return values


@dataclass(frozen=True, eq=False)
class HitRate:
    """``hit`` (n,) bool: the judged ``values`` (n,) are within [``low``, ``high``]. Unknown values (NaN) are misses.

    ``base``: share of hits among data that nothing guided, if known.
    """

    values: np.ndarray
    hit: np.ndarray
    low: float
    high: float
    base: float | None = None

    @property
    def rate(self) -> float:
        """Share of hits."""
        return float(self.hit.mean())

    def to_markdown(self) -> str:
        """One row."""
        unknown = int((~np.isfinite(self.values)).sum())
        base = "" if self.base is None else f"{100 * self.base:.1f} %"
        row = [f"{self.low:g} to {self.high:g}", percent(int(self.hit.sum()), len(self.hit)), base, str(unknown)]
        return markdown(["wanted", f"hit, of {len(self.hit)}", "base rate", "unknown"], [row])


def hit_rate(
    values: np.ndarray, target: float | tuple[float, float], *, tolerance: float = 0.5, floor: float | None = 0.0,
    base: np.ndarray | None = None,
) -> HitRate:  # fmt: skip
    """How often judged values meet the target, a number or (low, high), within ``tolerance`` either side of a number.

    The judge must not be the guide. ``floor``: lower values count as this one; 0 for signed gaps, None for no floor. ``base``: values
    of unguided data.
    """
    low, high = (target - tolerance, target + tolerance) if isinstance(target, int | float) else map(float, target)
    if not low <= high:
        raise IncompatibleError(f"expected low <= high, got {low} and {high}.")

    def hits(found: np.ndarray) -> np.ndarray:
        found = np.asarray(found, dtype=float)
        found = found if floor is None else np.where(np.isnan(found), found, np.maximum(found, floor))
        return (found >= low) & (found <= high)

    return HitRate(
        np.asarray(values, dtype=float), hits(values), low, high, None if base is None else float(hits(base).mean())
    )


def joint(rates: Mapping[str, HitRate]) -> str:
    """How often all targets are met at once, beside the product of the single rates: a table."""
    together = np.logical_and.reduce([rate.hit for rate in rates.values()])
    rows = [[name, percent(int(rate.hit.sum()), len(rate.hit))] for name, rate in rates.items()]
    low, high = wilson(int(together.sum()), len(together))
    product = float(np.prod([rate.rate for rate in rates.values()]))
    rows.append(["all at once", f"{100 * together.mean():.1f} % ({100 * low:.1f}-{100 * high:.1f})"])
    return markdown(["target", "hit"], [*rows, ["product of the single rates", f"{100 * product:.1f} %"]])
