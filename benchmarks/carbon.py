"""Carbon crystals by the shipped model: matches beside controls, minima never seen, frequencies, speed. An hour; gaps: carbon_gaps.py.

Needs carbon24_unique_{train,val}.extxyz.gz and carbon24_cdvae_frequency.extxyz.gz in ../shared/data/carbon (DIG_CARBON names another
place). Nothing is filtered before measuring. Samples are kept in runs/carbon-bench.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common import HERE, Figure, Findings, Options, Table, command_line

import numpy as np  # isort: skip
from pymatgen.core import Structure

from dig_plugins import models
from dig_plugins.pymatgen import Designs, design, read_structures
from dig_plugins.pymatgen.evaluate import (
    TOLERANCES,
    Library,
    assign,
    coverage,
    diversity,
    frequencies,
    match_report,
    validity,
)

DATA = Path(os.environ.get("DIG_CARBON", HERE.parent.parent / "shared" / "data" / "carbon"))
KEPT = HERE.parent / "runs" / "carbon-bench"
SEEDS = 3


def drawn(name: str, options: Options, composition: str, n: int, **how) -> Designs:
    """``n`` designs with these options, made once."""
    place = KEPT / f"{name}.extxyz"
    if options.quick or not place.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = design(composition, n, model=how.pop("model", "carbon"), **how)
        if options.quick:
            return found
        place.parent.mkdir(parents=True, exist_ok=True)
        found.write(place)
    return Designs.read(place)


def data() -> tuple[list[Structure], list[Structure], np.ndarray]:
    """Minima trained on, minima never seen, and how often the search hit each of the first."""
    names = ("unique_train", "unique_val", "cdvae_frequency")
    unique, held_out, entries = (read_structures(DATA / f"carbon24_{name}.extxyz.gz") for name in names)
    training = [s for s in unique if s.properties["split"] == "train"]
    hits: dict[str, int] = {}
    for entry in entries:
        if entry.properties["split"] == "train":
            hits[entry.properties["class_uid"]] = hits.get(entry.properties["class_uid"], 0) + 1
    return training, held_out, np.array([hits.get(s.properties["uid"], 0) for s in training])


def matches(options: Options, training: list[Structure], held_out: list[Structure]) -> tuple[list[Figure], list[Table]]:
    """Share of samples that are near a training structure, beside the controls that say what that is worth."""
    sets = free(options)
    rng = np.random.default_rng(options.seed)
    structures = [found.structures[i] for found in sets for i in rng.permutation(len(found))[: options.size(150, 6)]]
    report = match_report(structures, training, held_out=held_out, controls=options.size(100, 4), seed=options.seed)
    plain, valid = partial(report.row, primitive_cell=False), validity(structures)
    broken = sum(found.failed for found in sets)
    loose, default = plain("samples", "loose"), plain("samples", "default")
    random, other = ([plain(who, name) for name in TOLERANCES] for who in ("random", "held out"))
    kinds = diversity(Library(structures), Library(training), valid.valid(1.1))
    figures = [
        Figure("samples that match a training structure at 0.3/0.5/10", loose.rate, floor=0.99, aim=0.999,
               compared=f"paper 0.9987; random coordinates {random[0].rate:.2f}, held out {other[0].rate:.2f}",
               note=f"{len(structures)} samples, {len(sets)} seeds; {broken} draws without a structure; cells as they are."),
        Figure("their normalised distance", loose.nrmsd, floor=0.18, aim=0.12, higher=False,
               compared=f"paper 0.16; random {random[0].nrmsd:.2f}, held out {other[0].nrmsd:.2f}"),
        Figure("samples that match at 0.2/0.3/5", default.rate, floor=0.70, aim=0.90,
               compared=f"random {random[1].rate:.2f}, held out {other[1].rate:.2f}"),
        Figure("samples that match at 0.1/0.1/2", plain("samples", "tight").rate,
               compared=f"held out {other[2].rate:.2f}"),
        Figure("samples with all distances above 1.1 Angstrom", float(valid.valid(1.1).mean()),
               note=f"Above 0.5 Angstrom: {valid.valid(0.5).mean():.3f}. Valid, unique and new: {kinds.novel} of {kinds.n}."),
    ]  # fmt: skip
    rows = [[r.who, str(r.tolerance), "yes" if r.primitive_cell else "no", r.n, round(r.rate, 3), round(r.nrmsd, 3), round(r.crmse, 3)]
            for r in report.rows]  # fmt: skip
    header = ["structures", "tolerance", "primitive cells", "n", "matched", "nRMSD", "cRMSE"]
    return figures, [Table("Matches with the training set", header, rows)]


def minima(options: Options, training: list[Structure], held_out: list[Structure], hits: np.ndarray) -> tuple[list[Figure], list[Table]]:
    """Minima never trained on that 10,000 samples hit, and how often each known one is hit."""
    count = options.size(10_000 // SEEDS + 1, 6)
    sets = [drawn(f"many-{seed}", options, "C", count, model=options.model, seed=100 + seed) for seed in seeds(options)]
    library = Library([s for found in sets for s in found.structures], primitive_cell=False)
    known, reference = Library(training, primitive_cell=False), Library(held_out, primitive_cell=False)
    cover = coverage(reference, library, known)
    small = np.array([len(s) <= 10 for s in training])
    figures = [
        Figure(f"validation minima hit at 0.1/0.1/2 by {len(library):,} samples", cover.share, floor=0.40, aim=0.75,
               compared=f"the training set itself: {cover.known.mean():.2f}",  # type: ignore[union-attr]
               note=f"{len(held_out)} minima of 6 to 24 atoms; of those that no training structure matches {cover.share_unknown:.2f}."),
    ]  # fmt: skip
    rows = []
    for n in sorted({len(s) for s in held_out}):
        member = cover.sizes == n
        new = member & ~cover.known  # type: ignore[operator]
        parts = (cover.covered[member], cover.known[member], cover.covered[new])  # type: ignore[index]
        shares = [float(x.mean()) for x in parts if len(x)]
        rows.append([n, int(member.sum()), *(round(x, 3) for x in shares), *([""] if len(shares) < 3 else [])])
    if not options.quick:
        ratios = []
        rng = np.random.default_rng(options.seed)
        for found in sets:
            some = rng.permutation([i for i, s in enumerate(found.structures) if len(s) <= 10])[:1000]
            part = Library([found.structures[i] for i in some], primitive_cell=False)
            ratios.append(frequencies(assign(part, known), np.where(small, hits, 0), seed=options.seed))
        mean = float(np.mean([f.ratio for f in ratios]))
        figures.append(
            Figure("Jensen-Shannon distance of class hit rates over the floor of the data, 6 to 10 atoms", mean, "x",
                   stderr=float(np.std([f.ratio for f in ratios], ddof=1) / math.sqrt(len(ratios))), floor=3.0, aim=1.5, higher=False,
                   note=f"Distance {ratios[0].distance:.3f}, half of the data against half {ratios[0].floor:.3f}, {ratios[0].size} hits "
                        f"each; {ratios[0].assigned} of {ratios[0].n} samples are in a known class.")
        )  # fmt: skip
    header = ["atoms", "minima", "hit", "matched by the training set", "hit, of the others"]
    return figures, [Table("Validation minima", header, rows)]


def speed(options: Options, training: list[Structure]) -> tuple[list[Figure], list[Table]]:
    """Quality against solver steps, and processor time."""
    rows, seconds, quality = [], {}, {}
    model, n = options.model, options.size(320, 4)
    for steps in (4, 8) if options.quick else (25, 50, 100, 200, 500):
        found = drawn(f"steps-{steps}", options, "C8", n, model=model, seed=300, steps=steps)
        report = match_report(found.structures, training, primitive_cells=(False,), controls=0, seed=options.seed)
        quality[steps] = [report.row("samples", name, False) for name in ("loose", "default", "tight")]
        rows.append([steps, *(round(r.rate, 3) for r in quality[steps]), round(quality[steps][0].crmse, 3)])
    best = quality[max(quality)][0].crmse
    enough = min(steps for steps, row in quality.items() if row[0].crmse <= 1.05 * best or steps == max(quality))
    ways = {"unguided": {}, "guided": {"target": 2.0, "by": "guidance"}, "rejection": {"target": 4.0}}
    for name, how in ways.items():
        for composition in ("C8", "C12"):
            count = options.size(16 if name == "guided" else 64, 2)
            design(composition, 2, model=model, seed=1, steps=2, most=4, **how)
            began = time.process_time()
            design(composition, count, model=model, seed=400, **how)
            seconds[name, composition] = (time.process_time() - began) / count
    figures = [
        Figure("solver steps within 5 % of the distance at 500 steps", enough, floor=100, aim=25, higher=False,
               note="normalised distance to the training set at 0.3/0.5/10, non-matches counted with the tolerance; 8 atoms."),
        Figure("structures a second and core at 12 atoms, unguided", 1 / seconds["unguided", "C12"], "/s", floor=2, aim=10,
               note=f"8 atoms: {1 / seconds['unguided', 'C8']:.1f}/s; the card's {models.load(model).card.steps} steps."),
        Figure("structures a second and core at 12 atoms, pulled by gradients", 1 / seconds["guided", "C12"], "/s", floor=0.2, aim=1,
               note=f"8 atoms: {1 / seconds['guided', 'C8']:.1f}/s; through the network; tight-binding gap."),
        Figure("structures a second and core at 12 atoms, 4 eV by rejection", 1 / seconds["rejection", "C12"], "/s", floor=0.2, aim=1,
               note=f"8 atoms: {1 / seconds['rejection', 'C8']:.1f}/s."),
    ]  # fmt: skip
    return figures, [Table("Solver steps, 8 atoms", ["steps", "match 0.3/0.5/10", "0.2/0.3/5", "0.1/0.1/2", "cRMSE"], rows)]


def free(options: Options) -> list[Designs]:
    """Unguided samples, one set a seed."""
    return [drawn(f"free-{seed}", options, "C", options.size(400, 6), model=options.model, seed=seed) for seed in seeds(options)]


def seeds(options: Options) -> Sequence[int]:
    return range(1, options.size(SEEDS, 1) + 1)


def measure(options: Options) -> Findings:
    """Part by part."""
    if not DATA.is_dir():
        raise SystemExit(f"expected the carbon data in {DATA.name}: DIG_CARBON names its place.")
    warnings.simplefilter("ignore")
    training, held_out, hits = data()
    figures, tables = [], []
    parts = (
        partial(matches, options, training, held_out), partial(speed, options, training),
        partial(minima, options, training, held_out, hits),
    )  # fmt: skip
    for part in parts:
        more, rows = part()
        figures += more
        tables += rows
    return Findings(figures, tables)


if __name__ == "__main__":
    command_line(__doc__, "carbon", measure, "carbon")
