"""What the fingerprint's prefilter misses, against matching with every reference; what fingerprints, reduction and matching cost.

Carbon crystals of eight atoms: held-out minima, random coordinates in real lattices, noisy copies of training structures, each against
all training structures. Needs carbon24_unique_{train,val}.extxyz.gz in ../shared/data/carbon.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

from common import Figure, Findings, Options, Table, command_line

import numpy as np  # isort: skip
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from dig_plugins.pymatgen import read_structures
from dig_plugins.pymatgen.evaluate import TOLERANCES, Library, random_coordinates
from dig_plugins.pymatgen.evaluate.matcher import rms_distance

DATA = Path(__file__).parents[2] / "shared" / "data" / "carbon"
ATOMS = 8
NEAREST = (1, 10, 30, 100)


def measure(options: Options) -> Findings:
    """Recall and cost."""
    if not DATA.is_dir():
        sys.exit(f"expected the carbon data in {DATA}.")
    training, held_out = (eights(DATA / f"carbon24_unique_{name}.extxyz.gz") for name in ("train", "val"))
    training, n = training[: options.size(len(training), 20)], options.size(12, 1)
    rng = np.random.default_rng(options.seed)
    sets = {
        "held-out minima": [held_out[i] for i in rng.permutation(len(held_out))[:n]],
        "random coordinates": random_coordinates(held_out, training, n, rng),
        "noisy training structures": [noisy(training[i], rng) for i in rng.integers(len(training), size=n)],
    }
    references, figures, rows = Library(training, primitive_cell=False), [], []
    figures.append(Figure("a fingerprint", 1e3 * seconds(lambda: references.vectors) / len(training), "CPU-ms"))
    reducing = seconds(lambda: [references[i] for i in range(len(training))])
    figures.append(Figure("a reduction to the Niggli cell", 1e3 * reducing / len(training), "CPU-ms"))
    spent, pairs = 0.0, 0
    for name, structures in sets.items():
        library = Library(structures, primitive_cell=False)
        began = time.process_time()
        every = brute(library, references)
        spent, pairs = spent + time.process_time() - began, pairs + every[:, 0].size
        order = np.array(library.nearest(references, len(references)))
        rows += compared(name, every, order)
    figures.append(Figure("a pair at all three tolerances", 1e3 * spent / pairs, "CPU-ms", compared="StructureMatcher, see below"))
    figures.append(theirs(training, options))
    header = ["structures", "tolerance", "matched by trying all", *(f"found among {k}" for k in NEAREST), "best distance", "among 30"]
    return Findings(figures, [Table(f"{ATOMS} atoms, {len(training)} references", header, rows)])


def eights(path: Path) -> list[Structure]:
    return [structure for structure in read_structures(path) if len(structure) == ATOMS]


def noisy(structure: Structure, rng: np.random.Generator) -> Structure:
    """Strained by 2 % a component, atoms moved by 0.05 Angstrom a component."""
    cell = structure.lattice.matrix @ (np.eye(3) + 0.02 * rng.normal(size=(3, 3)))
    positions = structure.frac_coords @ cell + 0.05 * rng.normal(size=(len(structure), 3))
    return Structure(Lattice(cell), structure.species, positions, coords_are_cartesian=True)


def seconds(work) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def brute(library: Library, references: Library) -> np.ndarray:
    """(n, 3, m) distance to every reference at every tolerance."""
    found = np.full((len(library), len(TOLERANCES), len(references)), np.nan)
    for i in range(len(library)):
        for j in range(len(references)):
            for level, tolerance in enumerate(TOLERANCES.values()):
                found[i, level, j] = rms_distance(library[i], references[j], tolerance)
                if math.isnan(found[i, level, j]):
                    break
    return found


def compared(name: str, every: np.ndarray, order: np.ndarray) -> list[list]:
    """Rows: at each tolerance, of the structures that match anything, how many do among the nearest; and the best distances."""
    rows = []
    for level, tolerance in enumerate(TOLERANCES.values()):
        sorted_rms = np.take_along_axis(every[:, level], order, axis=1)
        matched = np.isfinite(sorted_rms).any(1)
        found = [int(np.isfinite(sorted_rms[:, :k]).any(1).sum()) for k in NEAREST]
        both = np.isfinite(sorted_rms[:, :30]).any(1)
        best = [f"{np.nanmin(part[both], axis=1).mean():.3f}" if both.any() else "" for part in (sorted_rms, sorted_rms[:, :30])]
        rows.append([name, str(tolerance), f"{int(matched.sum())} of {len(every)}", *found, *best])
    return rows


def theirs(training: list[Structure], options: Options) -> Figure:
    """The same three calls by pymatgen's own class, which reduces both structures anew unless it remembers them."""
    matchers = [StructureMatcher(*tolerance, primitive_cell=False) for tolerance in TOLERANCES.values()]
    n = options.size(60, 4)

    def work():
        for a, b in zip(training[:n], training[n : 2 * n], strict=False):
            for matcher in matchers:
                if matcher.get_rms_dist(a, b) is None:
                    break

    return Figure("the same by StructureMatcher.get_rms_dist", 1e3 * seconds(work) / min(n, len(training) - n), "CPU-ms")


if __name__ == "__main__":
    command_line(__doc__, "crystal_matching", measure)
