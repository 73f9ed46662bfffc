"""Adsorption sites: a table of places, energies and probabilities, and how one table compares with another."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.io import write

from dig_core.errors import IncompatibleError
from dig_core.files import read_json, understood, write_atomically

from .frame import SlabFrame, slab_frame
from .plane import shortest
from .symmetry import Operation, operations, primitive_lattice

if TYPE_CHECKING:
    from .coverage import CoverageReport

__all__ = ["Site", "SiteSet"]

_ARRAYS = ("xy", "position", "positions")


@dataclass(frozen=True)
class Site:
    """One adsorption site.

    ``xy`` (2,) and ``position`` (3,) Angstrom of the adsorbate's anchor, in the axes of the slab's frame and Cartesian; ``label``
    and ``coordination`` from the slab atoms it touches; ``probability`` with ``stderr``; ``energy`` eV, see
    :attr:`SiteSet.reference`; ``is_minimum`` False for a saddle, None if not tested; ``multiplicity``: symmetric copies in the
    primitive cell; ``positions`` (A, 3) Angstrom of the whole adsorbate; ``count`` structures that led here.
    """

    xy: np.ndarray
    position: np.ndarray
    label: str
    coordination: int
    probability: float | None = None
    stderr: float | None = None
    energy: float | None = None
    is_minimum: bool | None = None
    multiplicity: int = 1
    positions: np.ndarray | None = None
    count: int = 1


@dataclass(frozen=True)
class SiteSet:
    """Sites over one slab, the most probable or else the lowest first.

    ``slab``: bare; ``numbers`` (A,) of the adsorbate; ``normal`` (3,) the side; ``source`` and ``reference``: where sites and
    energies come from, in words; ``n_calls`` of the calculator, ``wall_s`` and ``cpu_s`` seconds; ``draws`` structures looked
    at; ``anomalies`` label -> how many of them; ``failures``: where the calculator failed.
    """

    sites: tuple[Site, ...]
    slab: Atoms
    numbers: tuple[int, ...]
    normal: np.ndarray
    source: str
    reference: str = ""
    n_calls: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    draws: int = 0
    anomalies: dict[str, int] = field(default_factory=dict)
    failures: int = 0

    def __len__(self) -> int:
        return len(self.sites)

    def __iter__(self):
        return iter(self.sites)

    @cached_property
    def frame(self) -> SlabFrame:
        """Of the slab, on the adsorbate's side."""
        return slab_frame(self.slab, normal=self.normal)

    @cached_property
    def lattice(self) -> np.ndarray:
        """(2, 2) Angstrom, primitive vectors of the slab: sites are the same modulo these."""
        return primitive_lattice(self.slab, self.frame)

    @cached_property
    def operations(self) -> list[Operation]:
        """Rotations and mirrors under which sites are the same."""
        return operations(self.slab, self.frame, lattice=self.lattice)

    def multiplicity(self, xy: np.ndarray, tol: float = 0.3) -> int:
        """Of a place (2,): how many symmetric copies it has in the primitive cell."""
        found: list[np.ndarray] = []
        for operation in self.operations:
            moved = operation(xy)
            if all(np.linalg.norm(shortest(moved - other, self.lattice)) > tol for other in found):
                found.append(moved)
        return len(found)

    def table(self) -> list[dict]:
        """One dictionary a site: number, label, coordination, x, y, height, probability, stderr, dE, minimum, multiplicity, count."""
        energies = [site.energy for site in self.sites if site.energy is not None]
        lowest = min(energies) if energies else 0.0
        return [
            {
                "site": number, "label": site.label, "coordination": site.coordination,
                "x": round(float(site.xy[0]), 3), "y": round(float(site.xy[1]), 3),
                "height": round(float(self.frame.height(site.position)), 3),
                "probability": site.probability, "stderr": site.stderr, "energy": site.energy,
                "dE": None if site.energy is None else site.energy - lowest,
                "minimum": site.is_minimum, "multiplicity": site.multiplicity, "count": site.count,
            }
            for number, site in enumerate(self.sites, start=1)
        ]  # fmt: skip

    def to_markdown(self) -> str:
        """The table, with what it was made from below it. Columns that nothing is known about are left out."""
        rows = self.table()
        units = {"x": "x (Å)", "y": "y (Å)", "height": "height (Å)", "energy": "energy (eV)", "dE": "dE (eV)"}
        columns = [name for name in (rows[0] if rows else ()) if any(row[name] is not None for row in rows)]
        lines = [" | ".join(units.get(name, name) for name in columns), " | ".join("---" for _ in columns)]
        lines += [" | ".join(_text(name, row[name]) for name in columns) for row in rows]
        table = "\n".join(f"| {line} |" for line in lines) if rows else "No sites."
        return f"{table}\n\n{self._made()}\n"

    def _made(self) -> str:
        parts = [f"{len(self)} sites from {self.source}", self.reference and f"energies: {self.reference}"]
        parts.append(self.n_calls and f"{self.n_calls} energy calls, {self.wall_s:.1f} s wall, {self.cpu_s:.1f} s CPU")
        wrong = [f"{label} {count}" for label, count in sorted(self.anomalies.items())]
        parts.append(
            self.draws and f"{self.draws} structures, kept out: {', '.join(wrong) or 'none'}, failed {self.failures}"
        )
        return "; ".join(part for part in parts if part) + "."

    def images(self) -> list[Atoms]:
        """Slab and adsorbate for every site that has positions, the site's numbers in ``info["dig_*"]``."""
        made = []
        for row, site in zip(self.table(), self.sites, strict=True):
            if site.positions is not None:
                atoms = self.slab + Atoms(self.numbers, positions=site.positions)
                atoms.info = {f"dig_{key}": value for key, value in row.items() if value is not None}
                made.append(atoms)
        return made

    def compare(
        self, reference: SiteSet, *, tol=0.5, window=0.5, top_k=None, baselines=("random", "geometric"), seed=0
    ) -> CoverageReport:
        """How many of a reference's minima these sites cover, and how many of these sites are minima.

        Parameters
        ----------
        reference: saddles, and sites more than ``window`` eV above the lowest, are left out. Its slab must be this one's.
        tol: Angstrom, in the plane for atoms, root-mean-square over the atoms of molecules; modulo the slab's own symmetry.
        top_k: sites in ``coverage_at_k``; as many as the reference has unless given.
        baselines: of "random", "geometric", "pymatgen", "acat" (or "acat:fcc211", with the name that ACAT has for the
            surface); those not installed, or that fail on this slab, are left out and named.
        """
        from .coverage import compare

        return compare(self, reference, tol=tol, window=window, top_k=top_k, baselines=baselines, seed=seed)

    def relax(self, calculator, n: int | None = None, *, fmax: float = 0.02, steps: int = 200, log=None) -> SiteSet:
        """The ``n`` most probable places (all if None; of symmetric copies one), relaxed: energies, minima and saddles, calls, anomalies.

        ``calculator``: any ASE calculator; ``fmax`` eV/Angstrom and ``steps`` of BFGS; ``log``: text stream that gets a line a site.
        Few calls are spent: a relaxation begins with the curvature that the last one has learned, and ends where it comes into a site
        that is there already, or where ten steps lower the energy by less than 1 meV.
        Raises StateError where the calculator fails on the clean slab, IncompatibleError for sites without positions.
        """
        from .coverage import merged
        from .grid import relaxed_sites
        from .relax import Counted, relax_clean

        chosen = merged(self)[:n]
        if any(site.positions is None for site in chosen):
            raise IncompatibleError("only sites with positions can be relaxed: those of an ensemble, or of a grid search.")
        counted = Counted(calculator)
        clean = relax_clean(self.slab, counted, fmax=fmax, steps=steps)
        starts = [clean.atoms + Atoms(self.numbers, positions=site.positions) for site in chosen]
        return relaxed_sites(
            starts, clean, self.frame, counted, anchor=0, fmax=fmax, steps=steps, log=log, shares=[s.probability for s in chosen],
            frugal=True, source=f"{len(starts)} relaxed sites of {self.source}",
        )  # fmt: skip

    def write(self, path: str | Path) -> None:
        """``.json`` holds everything; ``.extxyz``, ``.traj`` one image a site. Raises IncompatibleError for other names."""
        path = Path(path)
        if path.suffix == ".json":
            write_atomically(path, json.dumps(self._to_dict(), indent=1).encode())
        elif path.suffix in (".extxyz", ".traj"):
            write(path, self.images())
        else:
            raise IncompatibleError(f"expected a file name ending in .json, .extxyz or .traj, got {path.name!r}.")

    @classmethod
    def read(cls, path: str | Path) -> SiteSet:
        """What :meth:`write` wrote as ``.json``. Raises CheckpointError for other files."""
        data = read_json(Path(path))
        with understood(path, "holds no sites", "read what SiteSet.write made"):
            slab = data.pop("slab")
            atoms = Atoms(slab["numbers"], positions=slab["positions"], cell=slab["cell"], pbc=slab["pbc"])
            atoms.set_constraint([FixAtoms(slab["fixed"])] if slab["fixed"] else [])
            sites = tuple(
                Site(
                    **{
                        key: np.array(value) if key in _ARRAYS and value is not None else value
                        for key, value in site.items()
                    }
                )
                for site in data.pop("sites")
            )
            return cls(
                sites=sites, slab=atoms, numbers=tuple(data.pop("numbers")), normal=np.array(data.pop("normal")), **data
            )

    def _to_dict(self) -> dict:
        plain = {
            key: getattr(self, key)
            for key in self.__dataclass_fields__
            if key not in ("sites", "slab", "normal", "numbers")
        }
        fixed = sorted({int(i) for c in self.slab.constraints if isinstance(c, FixAtoms) for i in c.index})
        slab = {"numbers": self.slab.numbers.tolist(), "positions": self.slab.positions.tolist()}
        slab |= {"cell": self.slab.cell.tolist(), "pbc": self.slab.pbc.tolist(), "fixed": fixed}
        sites = [{key: _plain(value) for key, value in asdict(site).items()} for site in self.sites]
        numbers = [int(n) for n in self.numbers]
        return plain | {"sites": sites, "slab": slab, "numbers": numbers, "normal": list(map(float, self.normal))}

    def with_counts(self, *, labels, failures: int, **fields) -> SiteSet:
        """A copy that says how many structures had which anomaly; ``labels``: a tuple of labels for each structure."""
        return replace(
            self, anomalies=dict(Counter(label for found in labels for label in found)), failures=failures, **fields
        )


def _plain(value):
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def _text(name: str, value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "saddle"
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)
