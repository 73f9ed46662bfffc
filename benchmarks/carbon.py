"""Carbon crystals by the shipped model: matches beside controls, coverage of minima never seen, frequencies, gaps asked for. An hour.

Needs carbon24_unique_{train,val}.extxyz.gz and carbon24_cdvae_frequency.extxyz.gz (``--data`` of the recipe; DIG_CARBON names another
place). Nothing is filtered before measuring. Guide: the learned gap; judge: tight binding with hard band edges, a k grid that zooms
in. With sevenn installed relaxations are SevenNet-0's, else Tersoff's from matscipy, else left out. Samples are kept in runs/carbon-bench.
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
import torch
from pymatgen.core import Structure

from dig_core.sampling.guided import Denoised, Pull
from dig_core.sampling.likelihoods import Property
from dig_plugins import models
from dig_plugins.pymatgen import Designs, design, read_structures
from dig_plugins.pymatgen.evaluate import (
    TOLERANCES,
    Library,
    assign,
    coordination,
    coverage,
    diversity,
    frequencies,
    hit_rate,
    judged,
    match_report,
    relax,
    validity,
)
from dig_plugins.pymatgen.gap import LearnedGap, TightBindingGap

DATA = Path(os.environ.get("DIG_CARBON", HERE.parent.parent / "shared" / "data" / "carbon"))
KEPT = HERE.parent / "runs" / "carbon-bench"
SEEDS = 3
TARGETS = (0.0, 2.0, 4.0)
FLOORS = {0.0: (0.90, 0.97), 2.0: (0.20, 0.50), 4.0: (0.45, 0.80)}


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
    sets = _free(options)
    structures = [s for found in sets for s in found.structures]
    report = match_report(structures, training, held_out=held_out, controls=options.size(150, 4), seed=options.seed)
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
    sets = [drawn(f"many-{seed}", options, "C", count, model=_model(options), seed=100 + seed) for seed in _seeds(options)]
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
        for found in sets:
            part = Library([s for s in found.structures if len(s) <= 10], primitive_cell=False)
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


class PaperRecipe:
    """The original's guidance: a fixed width, no gradient on the lattice, the property of the denoised state taken at its word."""

    through = True

    def __init__(self, wanted: Property):
        self.wanted = wanted

    def __call__(self, seen: Denoised) -> Pull:
        with torch.enable_grad():
            value = self.wanted.read(seen.clean, seen.descriptor, seen.coordinates)
            known = value.isfinite()
            pull = self.wanted.likelihood(torch.where(known, value, torch.zeros_like(value)), torch.zeros_like(value))
            total = torch.where(known, pull, torch.zeros_like(pull)).sum()
        slope = torch.autograd.grad(total, list(seen.still.values()), materialize_grads=True)
        gradient = {name: x.detach().nan_to_num().clamp(-1e3, 1e3) for name, x in zip(seen.still, slope, strict=True)}
        still = {name: torch.zeros_like(x) for name, x in gradient.items()}
        return Pull(gradient | {"cell": still["cell"]}, still)

    def likelihood(self, state, descriptor, coordinates):
        from dig_core.sampling.guidance import PropertyGuidance

        return PropertyGuidance(self.wanted).likelihood(state, descriptor, coordinates)


def gaps(options: Options, training: list[Structure], unguided: np.ndarray) -> tuple[list[Figure], list[Table]]:
    """Gaps asked for, by a judge that is not the guide; the original's recipe beside; what structures look like."""
    guide, judge = LearnedGap.load(), TightBindingGap().exact()
    figures, rows = [], []
    for target in TARGETS:
        sets = []
        for seed in _seeds(options):
            how = {"model": _model(options), "seed": 200 + seed, "target": target, "predictor": guide}
            sets.append(drawn(f"gap-{target:g}-{seed}", options, "C", options.size(30, 2), **how))
        structures = [s for found in sets for s in found.structures]
        rates = [hit_rate(judged(found.structures, judge), target, base=unguided) for found in sets]
        together = hit_rate(np.concatenate([r.values for r in rates]), target, base=unguided)
        pulled = drawn(f"pulled-{target:g}", options, "C8", options.size(40, 2), by="guidance", **how)
        pull = hit_rate(judged(pulled.structures, judge), target)
        theirs = hit_rate(judged(_paper(options, target, guide), judge), target)
        floor, aim = FLOORS[target]
        spread = np.std([r.rate for r in rates], ddof=1) / math.sqrt(len(rates)) if len(rates) > 1 else None
        figures.append(
            Figure(f"judged gap within 0.5 eV of {target:g} eV", together.rate, stderr=None if spread is None else float(spread),
                   floor=floor, aim=aim,
                   compared=f"unguided {together.base:.2f}, by gradients {pull.rate:.2f}, original's recipe {theirs.rate:.2f}",
                   note=f"{len(structures)} designs by rejection; judge: tight binding, guide: the learned gap; {sets[0].source}. "
                        f"By gradients (8 atoms): raw effective sample size {pulled.effective_sample_size():.1f} of {len(pulled)}.")
        )  # fmt: skip
        share = coordination(structures)
        if target in (0.0, 4.0):
            name, value = ("sp2", share.sp2) if target == 0 else ("sp3", share.sp3)
            figures.append(Figure(f"{name} share of atoms at {target:g} eV", float(value.mean()), floor=0.80, aim=0.95))
        report = match_report(structures, training, primitive_cells=(False,), controls=0, seed=options.seed)
        loose, default = (report.row("samples", name, False) for name in ("loose", "default"))
        room = validity(structures).valid(1.1)
        numbers = (together.rate, together.base, pull.rate, theirs.rate, share.sp2.mean(), share.sp3.mean())
        numbers += (loose.rate, loose.nrmsd, default.rate, room.mean())
        rows.append([f"{target:g}", len(structures), *(round(float(x), 3) for x in numbers)])  # type: ignore[arg-type]
    shares = ["hit", "unguided", "by gradients", "original's recipe", "sp2", "sp3"]
    header = ["target, eV", "n", *shares, "0.3/0.5/10", "nRMSD", "0.2/0.3/5", "> 1.1 A"]
    return figures, [Table("Gaps asked for", header, rows)]


def _paper(options: Options, target: float, guide: LearnedGap) -> list[Structure]:
    """Structures of eight atoms by the original's recipe."""
    from dig_core.system.crystal import crystal
    from dig_plugins.pymatgen import to_structures
    from dig_plugins.pymatgen.convert import whole
    from dig_plugins.pymatgen.sample import _called, _likelihood

    dig = models.load(_model(options)).on(crystal([6] * 8))
    wanted = Property(_called(guide), _likelihood("gap", target, 0.25), "gap")
    samples = dig.sample(options.size(60, 3), seed=options.seed, guidance=(PaperRecipe(wanted),))
    kept = whole(samples.geometry) & samples.valid
    return to_structures(type(samples.geometry)(samples.geometry.positions[kept], samples.geometry.cell[kept]), dig.descriptor)


def together(options: Options) -> tuple[list[Figure], list[Table]]:
    """A gap of 2 to 3 eV and a low enthalpy at once, against each by itself; judges: tight binding and SevenNet-0."""
    named = _calculator()
    if named is None or options.quick:
        return [], []
    guides = {"gap": LearnedGap.load(), "enthalpy": _learned_enthalpy()}
    targets = {"gap": (2.0, 3.0), "enthalpy": (-math.inf, 0.30)}
    gap, enthalpy, rows = TightBindingGap().exact(), partial(_enthalpies, calculator=named[1]), []
    free = [s for s in _free(options)[0].structures if len(s) == 8][:60]
    low = float(np.median(enthalpy(free)))
    rates = {}
    for name in ("gap", "enthalpy", "both"):
        asked = targets if name == "both" else {name: targets[name]}
        structures: list[Structure] = []
        for seed in _seeds(options):
            how = {"model": _model(options), "seed": 500 + seed, "target": asked, "predictor": {k: guides[k] for k in asked}}
            width = {"gap": 0.1, "enthalpy": 0.02}
            structures += drawn(f"joint-{name}-{seed}", options, "C8", 16, width={k: width[k] for k in asked}, **how).structures
        hits = {
            "gap": hit_rate(judged(structures, gap), (1.5, 3.5)).hit, "enthalpy": np.asarray(enthalpy(structures)) < low,
        }  # fmt: skip
        rates[name] = np.logical_and(*hits.values()).mean() if name == "both" else hits[name].mean()
        rows.append([name, len(structures), *(round(float(x.mean()), 3) for x in (*hits.values(), np.logical_and(*hits.values())))])
    figures = [
        Figure("gap of 2 to 3 eV and low enthalpy at once", float(rates["both"]), floor=float(rates["gap"] * rates["enthalpy"]),
               compared=f"product of the single rates {rates['gap'] * rates['enthalpy']:.2f}",
               note=f"{named[0]} judges the enthalpy at 10 GPa, unrelaxed: low is below the median of unguided crystals; the gap within "
                    "0.5 eV of the range by tight binding; 8 atoms. Guides: the learned gap, and a small network of the data's enthalpies.")
    ]  # fmt: skip
    return figures, [Table("Two properties at once", ["asked for", "n", "gap met", "enthalpy met", "both"], rows)]


def _enthalpies(structures: Sequence[Structure], calculator) -> np.ndarray:
    """eV an atom at 10 GPa."""
    from ase import units

    from dig_plugins.pymatgen import to_atoms

    found = []
    for structure in structures:
        atoms = to_atoms(structure)
        atoms.calc = calculator
        found.append((atoms.get_potential_energy() + 10 * units.GPa * atoms.get_volume()) / len(atoms))
    return np.array(found)


def _learned_enthalpy():
    """eV an atom above diamond: a network like the learned gap's, of the minima whose enthalpy the data give. Two minutes."""
    from dig_plugins.pymatgen.recipes.gap import Labelled, train

    known = [(s, float(s.properties.get("enthalpy_10GPa_eV_per_atom", math.nan))) for s in data()[0]]
    least = min(value for _, value in known if math.isfinite(value))
    labelled = [
        Labelled(torch.tensor(s.cart_coords.copy()), torch.tensor(s.lattice.matrix.copy()), 10 * (value - least))
        for s, value in known
        if math.isfinite(value)
    ]
    (KEPT / "enthalpy").mkdir(parents=True, exist_ok=True)
    network = LearnedGap(train(labelled, KEPT / "enthalpy", steps=1500))
    return lambda geometry: network(geometry) / 10


def speed(options: Options, training: list[Structure]) -> tuple[list[Figure], list[Table]]:
    """Quality against solver steps, and processor time."""
    rows, seconds, quality = [], {}, {}
    model, n = _model(options), options.size(240, 4)
    for steps in (4, 8) if options.quick else (25, 50, 100, 200, 500):
        found = drawn(f"steps-{steps}", options, "C8", n, model=model, seed=300, steps=steps)
        report = match_report(found.structures, training, primitive_cells=(False,), controls=0, seed=options.seed)
        quality[steps] = [report.row("samples", name, False) for name in ("loose", "default", "tight")]
        rows.append([steps, *(round(r.rate, 3) for r in quality[steps]), round(quality[steps][0].crmse, 3)])
    best = quality[max(quality)][0].crmse
    enough = min(steps for steps, row in quality.items() if row[0].crmse <= 1.05 * best or steps == max(quality))
    ways = {"unguided": {}, "guided": {"target": 2.0, "by": "guidance"}, "rejection": {"target": 4.0}}
    for name, how in ways.items():
        how = how and how | {"predictor": LearnedGap.load()}
        for composition in ("C8", "C12"):
            count = options.size(16 if name == "guided" else 64, 2)
            design(composition, 2, model=model, seed=1, steps=2, **how)
            began = time.process_time()
            design(composition, count, model=model, seed=400, **how)
            seconds[name, composition] = (time.process_time() - began) / count
    figures = [
        Figure("solver steps within 5 % of the distance at 500 steps", enough, floor=100, aim=25, higher=False,
               note="normalised distance to the training set at 0.3/0.5/10, non-matches counted with the tolerance; 8 atoms."),
        Figure("structures a second and core at 12 atoms, unguided", 1 / seconds["unguided", "C12"], "/s", floor=2, aim=10,
               note=f"8 atoms: {1 / seconds['unguided', 'C8']:.1f}/s; the card's {models.load(model).card.steps} steps."),
        Figure("structures a second and core at 12 atoms, pulled by gradients", 1 / seconds["guided", "C12"], "/s", floor=0.2, aim=1,
               note=f"8 atoms: {1 / seconds['guided', 'C8']:.1f}/s; through the network, learned gap."),
        Figure("structures a second and core at 12 atoms, 4 eV by rejection", 1 / seconds["rejection", "C12"], "/s", floor=0.2, aim=1,
               note=f"8 atoms: {1 / seconds['rejection', 'C8']:.1f}/s."),
    ]  # fmt: skip
    return figures, [Table("Solver steps, 8 atoms", ["steps", "match 0.3/0.5/10", "0.2/0.3/5", "0.1/0.1/2", "cRMSE"], rows)]


def relaxed(options: Options) -> tuple[list[Figure], list[Table]]:
    """What relaxation at fixed cell gains, of designs and of the data themselves."""
    named = _calculator()
    if named is None:
        return [], []
    name, calculator = named
    n, rows, figures = options.size(30, 1), [], []
    free = [s for s in _free(options)[0].structures if len(s) <= 12]
    held_out = [s for s in data()[1] if len(s) <= 12]
    for who, structures in (("unguided", free), ("validation minima", held_out)):
        found = relax(structures[:n], calculator, fmax=0.1, steps=60)
        gain = 1000 * found.gain[np.isfinite(found.gain)]
        rows.append([who, len(found.gain), int(found.converged.sum()), round(float(gain.mean()), 1), round(float(np.median(gain)), 1)])
        if who == "unguided":
            note = f"{name}, {len(gain)} structures of up to 12 atoms; median {np.median(gain):.0f}."
            what = "mean gain of a relaxation at fixed cell, unguided"
            figures.append(Figure(what, float(gain.mean()), "meV/atom", floor=100, aim=40, higher=False, note=note))
    header = ["structures", "n", "converged", "mean gain, meV/atom", "median"]
    return figures, [Table(f"Relaxation at fixed cell, {name}", header, rows)]


def _calculator():
    try:
        from dig_plugins.ase.adsorption import calculator_named

        return "SevenNet-0", calculator_named("sevennet")
    except ImportError:
        return None


def _free(options: Options) -> list[Designs]:
    """Unguided samples, one set a seed."""
    return [drawn(f"free-{seed}", options, "C", options.size(400, 6), model=_model(options), seed=seed) for seed in _seeds(options)]


def _seeds(options: Options) -> Sequence[int]:
    return range(1, options.size(SEEDS, 1) + 1)


def _model(options: Options) -> str:
    """The shipped one unless another is named."""
    return "carbon" if options.model == Options.model else options.model


def measure(options: Options) -> Findings:
    """Part by part."""
    if not DATA.is_dir():
        raise SystemExit(f"expected the carbon data in {DATA.name}: DIG_CARBON names its place.")
    training, held_out, hits = data()
    figures, tables = [], []
    base = judged(_free(options)[0].structures, TightBindingGap().exact())
    parts = (
        partial(matches, options, training, held_out), partial(gaps, options, training, base), partial(speed, options, training),
        partial(together, options), partial(relaxed, options), partial(minima, options, training, held_out, hits),
    )  # fmt: skip
    for part in parts:
        more, rows = part()
        figures += more
        tables += rows
    return Findings(figures, tables)


if __name__ == "__main__":
    command_line(__doc__, "carbon", measure)
