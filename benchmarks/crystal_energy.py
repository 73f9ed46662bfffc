"""Carbon's low minima from an energy alone: a trained model's draws, relaxed, against a random search with as many energy calls.

Cells of 6 and 8 atoms, Tersoff's potential of 1989 (matscipy) at 10 GPa. The model's calls are those of its training and of the
relaxations of its draws; the search relaxes random coordinates in random cells. Finished searches are kept in runs/crystal_energy:
an interrupted run goes on from there. Needs matscipy.
"""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path

from common import HERE, Figure, Findings, Options, Table, command_line

import numpy as np  # isort: skip
from ase import units
from ase.filters import UnitCellFilter
from ase.optimize import BFGS
from matscipy.calculators.manybody import Manybody
from matscipy.calculators.manybody.explicit_forms import TersoffBrenner
from matscipy.calculators.manybody.explicit_forms.tersoff_brenner import Tersoff_PRB_39_5566_Si_C
from pymatgen.core import Lattice, Structure

from dig_core.files import write_atomically
from dig_plugins.ase import fit_crystal
from dig_plugins.pymatgen import design, from_atoms, to_atoms
from dig_plugins.pymatgen.evaluate import Library, classes

SIZES, SEEDS, PRESSURE, TEMPERATURE = (6, 8), (1, 2, 3), 10.0, 5000.0
CALLS, TRAINING = 12_000, 4_500  # a search; of which the model's training takes about so many
WINDOW = 0.3  # eV/atom above the lowest
VOLUMES = (5.0, 8.5)  # Angstrom^3 an atom of random cells: from below diamond's to above graphite's at this pressure


class Tersoff(Manybody):
    """Counts what it is asked."""

    def __init__(self):
        super().__init__(**TersoffBrenner(Tersoff_PRB_39_5566_Si_C))
        self.calls = 0

    def calculate(self, *args, **kwargs):
        self.calls += 1
        super().calculate(*args, **kwargs)


def measure(options: Options) -> Findings:
    """Both searches at all sizes and seeds."""
    warnings.filterwarnings("ignore", category=UserWarning, module="matscipy")
    seeds, sizes = (SEEDS[:1], SIZES[:1]) if options.quick else (SEEDS, SIZES)
    kept = (options.out if options.quick else HERE.parent / "runs") / "crystal_energy"
    figures, rows = [], []
    for size in sizes:
        runs = {what: [search(what, size, options.seed - 1 + s, kept, options) for s in seeds] for what in SEARCHES}
        lowest = min([diamond(), *(e for found in runs.values() for run in found for e in run["enthalpy"])])
        counts = {what: [low_minima(run, lowest) for run in found] for what, found in runs.items()}
        together = {what: {key: sum((run[key] for run in found), []) for key in ("structures", "enthalpy")} for what, found in runs.items()}
        enthalpy = {what: np.array(found["enthalpy"]) for what, found in together.items()}
        ratio = sum(counts["model"]) / max(sum(counts["random"]), 1)
        note = f"{counts['model']} against {counts['random']}, seed by seed; within {WINDOW} eV/atom of {lowest:.3f} eV/atom."
        what = f"distinct low minima of C{size}, model over random search"
        figures.append(Figure(what, ratio, "x", None, 1.0, 3.0, True, "random search, as many calls", note))
        won = enthalpy["random"].mean() - enthalpy["model"].mean()
        figures.append(Figure(f"mean enthalpy won over random search, C{size}", won, "eV/atom", compared="both after relaxation"))
        for what, found in runs.items():
            relaxed, calls, cpu = (sum(run[key] for run in found) for key in ("relaxed", "calls", "cpu"))
            low = f"{np.mean(enthalpy[what] < lowest + WINDOW):.1%}"
            distinct = [", ".join(str(c) for c in counts[what]), low_minima(together[what], lowest)]
            mean, best = f"{enthalpy[what].mean():.3f}", f"{enthalpy[what].min():.3f}"
            rows.append([f"C{size}", what, calls, relaxed, len(enthalpy[what]), low, *distinct, mean, best, round(cpu)])
    header = ["cell", "search", "calls", "relaxed", "converged", "low", "distinct", "all seeds", "mean enthalpy", "lowest", "CPU-s"]
    notes = [
        f"About {CALLS:,} energy calls a search and seed; the model's training is among them. Relaxations that do not converge count as "
        "calls, and their structures not.",
        "Low: of the converged relaxations, those within the window of the lowest known, diamond included. Distinct: StructureMatcher "
        "0.1/0.1/2, a number a seed.",
        "CPU-s are those of the searches. The record's own time leaves out searches that an earlier, interrupted run had finished.",
    ]
    return Findings(figures, [Table(f"Carbon at {PRESSURE:g} GPa, Tersoff 1989", header, rows)], notes)


def search(what: str, size: int, seed: int, kept: Path, options: Options) -> dict:
    """Converged minima of one search: structures, enthalpies in eV/atom, and what they took."""
    place = kept / f"C{size}-{what}-{seed}.json"
    if place.exists():
        done = json.loads(place.read_text(encoding="utf-8"))
        return done | {"structures": [Structure.from_dict(s) for s in done["structures"]]}
    began, calculator, budget = time.process_time(), Tersoff(), options.size(CALLS, 2_600)
    structures, enthalpy, relaxed = [], [], 0
    for start in SEARCHES[what](size, seed, calculator, options):
        if calculator.calls >= budget:
            break
        found, value, converged = relaxation(start, calculator)
        relaxed += 1
        if converged:
            structures.append(found)
            enthalpy.append(value)
    cost = {"calls": calculator.calls, "relaxed": relaxed, "cpu": time.process_time() - began}
    kept.mkdir(parents=True, exist_ok=True)
    held = {"structures": [s.as_dict() for s in structures], "enthalpy": enthalpy, **cost}
    write_atomically(place, json.dumps(held).encode())
    return held | {"structures": structures}


def relaxation(structure: Structure, calculator: Tersoff) -> tuple[Structure, float, bool]:
    """The minimum, its enthalpy in eV/atom, and whether it was reached in 200 steps. This filter takes a third of the time that
    FrechetCellFilter takes of :func:`dig_plugins.pymatgen.evaluate.relax`, and as many calls."""
    atoms, pressure = to_atoms(structure), PRESSURE * units.GPa
    atoms.calc = calculator
    with BFGS(UnitCellFilter(atoms, scalar_pressure=pressure), maxstep=0.1, logfile=None) as optimiser:
        converged = optimiser.run(fmax=0.05, steps=200)
    return from_atoms(atoms), (atoms.get_potential_energy() + pressure * atoms.get_volume()) / len(atoms), bool(converged)


def drawn(size: int, seed: int, calculator: Tersoff, options: Options):
    """Draws of a model that is trained here."""
    network = {"width": options.size(48, 8), "heads": 4, "layers": options.size(3, 1)}
    fitted = fit_crystal(
        f"C{size}", calculator, temperature=TEMPERATURE, pressure=PRESSURE, evaluations=options.size(TRAINING, 100),
        steps=options.size(300, 20), seed=seed, progress=False, **network,
    )  # fmt: skip
    for block in range(100):
        yield from design(f"C{size}", options.size(16, 2), model=fitted.dig, seed=1000 * seed + block).structures


def random(size: int, seed: int, calculator: Tersoff, options: Options):
    """Uniform coordinates in cells of any shape near a cube and of sensible volume."""
    rng = np.random.default_rng([size, seed])
    while True:
        cell = np.eye(3) + 0.25 * rng.normal(size=(3, 3))
        cell *= (size * rng.uniform(*VOLUMES) / np.linalg.det(cell)) ** (1 / 3) if np.linalg.det(cell) > 0.2 else np.nan
        if np.isfinite(cell).all():
            yield Structure(Lattice(cell), ["C"] * size, rng.random((size, 3)))


def diamond() -> float:
    """Enthalpy in eV/atom: cells of either size hold it."""
    atoms = Structure.from_spacegroup("Fd-3m", Lattice.cubic(3.567), ["C"], [[0, 0, 0]])
    return relaxation(atoms, Tersoff())[1]


SEARCHES = {"model": drawn, "random": random}


def low_minima(run: dict, lowest: float) -> int:
    """Distinct minima within the window."""
    low = [s for s, e in zip(run["structures"], run["enthalpy"], strict=True) if e < lowest + WINDOW]
    return int(classes(Library(low)).max()) + 1 if low else 0


if __name__ == "__main__":
    command_line(__doc__, "crystal_energy", measure)
