"""Structures that a model drew, what each weighs and what a predictor says of it; a table, and files that read back."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pymatgen.core import Structure

from dig_core.errors import IncompatibleError
from dig_core.files import understood, write_atomically
from dig_core.montecarlo.analysis import effective_sample_size, normalised_weights

from .files import read_structures, write_structures
from .tables import markdown

__all__ = ["Designs"]

_NUMBERS = ("log_q", "log_likelihood", "log_weight")
_OWN = {"index", "valid", "weight", "dig_run", *_NUMBERS}


@dataclass(frozen=True, eq=False)
class Designs:
    """n crystals with what is known of each.

    Parameters
    ----------
    structures: n of them. ``valid`` (n,) bool, False where a predictor failed: they carry no weight.
    log_q: (n,) log-density of the law that each was drawn from, over a path, up to a constant after rejection, None if it was not
        asked for. Measure: Angstrom, every atom and the nine components of the cell.
    log_likelihood: (n,) of the targets, None without one; -inf where a predictor failed.
    log_weight: (n,) makes guided structures exact for the model's law times the likelihood; None without a target.
    properties: name -> (n,) predicted values, NaN where the predictor failed.
    targets: name -> what was asked for, in words. failed: how many draws had no structure at all; they are not among the n.
    source, seed: how they were made. notes: what the run has to say.
    """

    structures: tuple[Structure, ...]
    valid: np.ndarray
    log_q: np.ndarray | None = None
    log_likelihood: np.ndarray | None = None
    log_weight: np.ndarray | None = None
    properties: dict[str, np.ndarray] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    failed: int = 0
    source: str = ""
    seed: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        n = len(self.structures)
        given = {"valid": self.valid} | {name: getattr(self, name) for name in _NUMBERS} | self.properties
        wrong = {name: len(x) for name, x in given.items() if x is not None and len(x) != n}
        if wrong:
            raise IncompatibleError(f"expected {n} numbers for {n} structures, got {wrong}.")

    def __len__(self) -> int:
        return len(self.structures)

    @property
    def weights(self) -> np.ndarray:
        """(n,) sum one: those of ``log_weight``, equal without; zero where not valid, all zero if none is."""
        if not self.valid.any():
            return np.zeros(len(self))
        if self.log_weight is None:
            return self.valid / self.valid.sum()
        return normalised_weights(np.where(self.valid, self.log_weight, -np.inf))

    def effective_sample_size(self) -> float:
        """Raw Kish size of the weights, in structures."""
        if self.log_weight is None or not self.valid.any():
            return float(self.valid.sum())
        return effective_sample_size(np.where(self.valid, self.log_weight, -np.inf)) * len(self)

    def used(self) -> list[Structure]:
        """The valid structures."""
        return [structure for structure, valid in zip(self.structures, self.valid, strict=True) if valid]

    def table(self, n: int | None = 20, symprec: float = 0.1) -> str:
        """Markdown, the ``n`` likeliest first (all for None): formula, space group at ``symprec`` Angstrom, density, weight, properties."""
        weights = self.weights
        key = weights if self.log_likelihood is None else self.log_likelihood
        order = np.lexsort((np.arange(len(self)), -np.where(self.valid, key, -np.inf)))[:n]
        head = [
            "",
            "formula",
            "space group",
            "g/cm3",
            "A3/atom",
            "weight",
            *self.properties,
            *([] if self.log_q is None else ["log q"]),
        ]
        rows = []
        for i in order:
            structure = self.structures[i]
            numbers = [f"{values[i]:.2f}" for values in self.properties.values()]
            numbers += [] if self.log_q is None else [f"{self.log_q[i]:.1f}"]
            size = f"{structure.volume / len(structure):.2f}"
            weight = f"{weights[i]:.4f}" if self.valid[i] else "not valid"
            formula = structure.composition.formula.replace(" ", "")
            rows.append(
                [str(i), formula, space_group(structure, symprec), f"{structure.density:.2f}", size, weight, *numbers]
            )
        return markdown(head, rows)

    def summary(self) -> str:
        """What was drawn, what it is worth, and the table of the best ten."""
        wrong = f"{int((~self.valid).sum())} without a prediction, {self.failed} without a structure"
        lines = [f"{len(self)} designs: {self.source}, seed {self.seed}; {wrong}."]
        lines += [f"Asked for {name}: {wanted}." for name, wanted in self.targets.items()]
        lines += [f"Effective sample size {self.effective_sample_size():.1f}.", *self.notes, "", self.table(10)]
        return "\n".join(lines)

    def labelled(self) -> list[Structure]:
        """Copies whose ``properties`` hold everything that is known of each."""
        run = {
            "targets": self.targets,
            "failed": self.failed,
            "source": self.source,
            "seed": self.seed,
            "notes": self.notes,
        }
        found = []
        for i, (structure, weight) in enumerate(zip(self.structures, self.weights, strict=True)):
            copy = structure.copy()
            copy.properties = {"index": i, "valid": int(self.valid[i]), "weight": float(weight)}
            copy.properties |= {
                name: float(getattr(self, name)[i]) for name in _NUMBERS if getattr(self, name) is not None
            }
            copy.properties |= {name: float(values[i]) for name, values in self.properties.items()}
            if i == 0:
                copy.properties["dig_run"] = json.dumps(run).encode().hex()
            found.append(copy)
        return found

    def write(self, path: str | Path) -> None:
        """One file, ``.extxyz``, ``.cif`` or ``.json``; for a name without a suffix a directory with the first two and ``designs.md``."""
        path = Path(path)
        if path.suffix:
            write_structures(path, self.labelled())
            return
        path.mkdir(parents=True, exist_ok=True)
        for name in ("designs.extxyz", "designs.cif"):
            write_structures(path / name, self.labelled())
        write_atomically(path / "designs.md", self.summary().encode())

    @classmethod
    def read(cls, path: str | Path) -> Designs:
        """What :meth:`write` wrote. Raises IncompatibleError for a file of something else."""
        structures = read_structures(Path(path) if Path(path).suffix else Path(path) / "designs.extxyz")
        infos = [structure.properties for structure in structures]
        with understood(path, "holds no designs", "read what Designs.write made"):
            if not all({"index", "valid"} <= set(info) for info in infos):
                raise IncompatibleError(f"{path} holds structures without index and valid: read files that Designs.write made.")
            return cls._of(structures, infos)

    @classmethod
    def _of(cls, structures: list[Structure], infos: list[dict]) -> Designs:
        def column(name: str) -> np.ndarray:
            return np.array([math.nan if info.get(name) is None else float(info[name]) for info in infos])

        run = json.loads(bytes.fromhex(infos[0]["dig_run"])) if "dig_run" in infos[0] else {}
        run["notes"] = tuple(run.get("notes", ()))
        numbers = {name: column(name) for name in _NUMBERS if name in infos[0]}
        # JSON has no infinity: a weight that is unknown is none.
        numbers = {name: np.where(np.isnan(x), -np.inf, x) if name != "log_q" else x for name, x in numbers.items()}
        properties = {name: column(name) for name in infos[0] if name not in _OWN}
        for structure in structures:
            structure.properties = {}
        valid = np.array([bool(int(info["valid"])) for info in infos])
        return cls(tuple(structures), valid, properties=properties, **numbers, **run)


def space_group(structure: Structure, symprec: float = 0.1) -> str:
    """Symbol and number, "P1 (1)" where none is found."""
    try:
        symbol, number = structure.get_space_group_info(symprec=symprec)
    except (TypeError, ValueError):
        # spglib finds nothing for structures whose atoms overlap.
        return "none"
    return f"{symbol} ({number})"
