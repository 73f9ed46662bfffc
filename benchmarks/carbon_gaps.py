"""Carbon crystals asked for: gaps by judges that are not the guide, two properties at once, relaxation. An hour; see carbon.py.

What decides is tight binding, the default of ``design``; the judges are the learned gap and, with Quantum ESPRESSO installed, plane-wave
DFT. With sevenn installed SevenNet-0 judges enthalpies and relaxes, else those parts are left out.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Sequence
from functools import partial

from carbon import KEPT, data, drawn, free, seeds
from common import Figure, Findings, Options, Table, command_line

import numpy as np  # isort: skip
import torch
from pymatgen.core import Structure

from dig_core.sampling.guidance import PropertyGuidance
from dig_core.sampling.guided import Denoised, Pull
from dig_core.sampling.likelihoods import Property
from dig_core.system.crystal import crystal
from dig_plugins import models
from dig_plugins.pymatgen import to_atoms, to_structures
from dig_plugins.pymatgen.convert import whole
from dig_plugins.pymatgen.evaluate import HitRate, coordination, hit_rate, judged, match_report, relax, validity
from dig_plugins.pymatgen.gap import LearnedGap, PlaneWaveGap, TightBindingGap
from dig_plugins.pymatgen.recipes.gap import Labelled, train
from dig_plugins.pymatgen.sample import _called, _likelihood

TARGETS = (0.0, 2.0, 4.0)
FLOORS = {0.0: (0.90, 0.97), 2.0: (0.20, 0.50), 4.0: (0.45, 0.80)}
LARGEST, COMPUTED = 16, 30  # atoms of a structure, and structures, that plane waves judge


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
        return PropertyGuidance(self.wanted).likelihood(state, descriptor, coordinates)


def gaps(options: Options, training: list[Structure], unguided: np.ndarray) -> tuple[list[Figure], list[Table]]:
    """Gaps asked for, by a judge that is not the guide; the original's recipe beside; what structures look like."""
    guide, judge = TightBindingGap(), LearnedGap.load()
    known, figures, rows = judged(training, judge), [], []
    for target in TARGETS:
        sets = []
        for seed in seeds(options):
            how = {"model": options.model, "seed": 200 + seed, "target": target, "predictor": guide}
            sets.append(drawn(f"gap-{target:g}-{seed}", options, "C", options.size(20, 2), **how))
        structures = [s for found in sets for s in found.structures]
        rates = [hit_rate(judged(found.structures, judge), target, base=unguided) for found in sets]
        every = hit_rate(np.concatenate([r.values for r in rates]), target, base=unguided)
        pulled = drawn(f"pulled-{target:g}", options, "C8", options.size(40, 2), by="guidance", **how)
        pull = hit_rate(judged(pulled.structures, judge), target)
        theirs = hit_rate(judged(_paper(options, target, guide), judge), target)
        floor, aim = FLOORS[target]
        spread = np.std([r.rate for r in rates], ddof=1) / math.sqrt(len(rates)) if len(rates) > 1 else None
        figures.append(
            Figure(f"judged gap within 0.5 eV of {target:g} eV", every.rate, stderr=None if spread is None else float(spread),
                   floor=floor, aim=aim,
                   compared=f"unguided {every.base:.2f}, by gradients {pull.rate:.2f}, original's recipe {theirs.rate:.2f}",
                   note=f"{len(structures)} designs by rejection; judge: the learned gap, guide: tight binding; {sets[0].source}. "
                        f"By gradients (8 atoms): raw effective sample size {pulled.effective_sample_size():.1f} of {len(pulled)}.")
        )  # fmt: skip
        computed = _plane_waves(structures, target, options)
        if computed is not None:
            figures.append(
                Figure(f"the same by plane-wave DFT, {target:g} eV", computed.rate, floor=floor, aim=aim,
                       note=f"{len(computed.values)} of the designs, those of at most {LARGEST} atoms at random; PBE by Quantum ESPRESSO, "
                            f"{int(np.isnan(computed.values).sum())} without an answer count as misses.")
            )  # fmt: skip
        share = coordination(structures)
        if target in (0.0, 4.0):
            name, alike = "sp2" if target == 0 else "sp3", coordination([training[i] for i in hit_rate(known, target).hit.nonzero()[0]])
            mean, theirs_mean = (float(getattr(one, name).mean()) for one in (share, alike))
            beside = f"training structures with such a gap: {theirs_mean:.2f}"
            figures.append(Figure(f"{name} share of atoms at {target:g} eV", mean, floor=0.80, aim=0.95, compared=beside))
        report = match_report(structures, training, primitive_cells=(False,), controls=0, seed=options.seed)
        loose, default = (report.row("samples", name, False) for name in ("loose", "default"))
        room = validity(structures).valid(1.1)
        numbers = (every.rate, math.nan if computed is None else computed.rate, every.base, pull.rate, theirs.rate)
        numbers += (share.sp2.mean(), share.sp3.mean())
        numbers += (loose.rate, loose.nrmsd, default.rate, room.mean())
        rows.append([f"{target:g}", len(structures), *(round(float(x), 3) for x in numbers)])  # type: ignore[arg-type]
    shares = ["hit", "by DFT", "unguided", "by gradients", "original's recipe", "sp2", "sp3"]
    header = ["target, eV", "n", *shares, "0.3/0.5/10", "nRMSD", "0.2/0.3/5", "> 1.1 A"]
    return figures, [Table("Gaps asked for", header, rows)]


def _plane_waves(structures: Sequence[Structure], target: float, options: Options) -> HitRate | None:
    """Of some of the designs; None where there is no pw.x."""
    if shutil.which("pw.x") is None or options.quick:
        return None
    small = [s for s in structures if len(s) <= LARGEST]
    some = np.random.default_rng(options.seed).permutation(len(small))[:COMPUTED]
    return hit_rate(judged([small[i] for i in some], PlaneWaveGap()), target)


def _paper(options: Options, target: float, guide: TightBindingGap) -> list[Structure]:
    """Structures of eight atoms by the original's recipe."""
    dig = models.load(options.model).on(crystal([6] * 8))
    wanted = Property(_called(guide), _likelihood("gap", target, 0.25), "gap")
    samples = dig.sample(options.size(40, 3), seed=options.seed, guidance=(PaperRecipe(wanted),))
    kept = whole(samples.geometry) & samples.valid
    return to_structures(type(samples.geometry)(samples.geometry.positions[kept], samples.geometry.cell[kept]), dig.descriptor)


def together(options: Options) -> tuple[list[Figure], list[Table]]:
    """A gap of 2 to 3 eV and a low enthalpy at once, against each by itself; judges: the learned gap and SevenNet-0."""
    named = _calculator()
    if named is None or options.quick:
        return [], []
    guides = {"gap": TightBindingGap(), "enthalpy": _learned_enthalpy()}
    targets = {"gap": (2.0, 3.0), "enthalpy": (-math.inf, 0.45)}
    gap, enthalpy, rows = LearnedGap.load(), partial(_enthalpies, calculator=named[1]), []
    unguided = [s for s in free(options)[0].structures if len(s) == 8][:60]
    low = float(np.median(enthalpy(unguided)))
    rates = {}
    for name in ("gap", "enthalpy", "both"):
        asked = targets if name == "both" else {name: targets[name]}
        structures: list[Structure] = []
        for seed in seeds(options):
            how = {"model": options.model, "seed": 500 + seed, "target": asked, "predictor": {k: guides[k] for k in asked}}
            width = {"gap": 0.1, "enthalpy": 0.02}
            count = 10 if name == "both" else 16
            structures += drawn(f"joint-{name}-{seed}", options, "C8", count, width={k: width[k] for k in asked}, **how).structures
        hits = {
            "gap": hit_rate(judged(structures, gap), (1.5, 3.5)).hit, "enthalpy": np.asarray(enthalpy(structures)) < low,
        }  # fmt: skip
        rates[name] = np.logical_and(*hits.values()).mean() if name == "both" else hits[name].mean()
        rows.append([name, len(structures), *(round(float(x.mean()), 3) for x in (*hits.values(), np.logical_and(*hits.values())))])
    figures = [
        Figure("gap of 2 to 3 eV and low enthalpy at once", float(rates["both"]), floor=float(rates["gap"] * rates["enthalpy"]),
               compared=f"product of the single rates {rates['gap'] * rates['enthalpy']:.2f}",
               note=f"{named[0]} judges the enthalpy at 10 GPa, unrelaxed: low is below the median of unguided crystals; the gap within "
                    "0.5 eV of the range by the learned gap; 8 atoms. Guides: tight binding, and a small network of the data's enthalpies.")
    ]  # fmt: skip
    return figures, [Table("Two properties at once", ["asked for", "n", "gap met", "enthalpy met", "both"], rows)]


def _enthalpies(structures: Sequence[Structure], calculator) -> np.ndarray:
    """eV an atom at 10 GPa."""
    from ase import units

    found = []
    for structure in structures:
        atoms = to_atoms(structure)
        atoms.calc = calculator
        found.append((atoms.get_potential_energy() + 10 * units.GPa * atoms.get_volume()) / len(atoms))
    return np.array(found)


def _learned_enthalpy():
    """eV an atom above diamond: a network like the learned gap's, of the minima whose enthalpy the data give. Two minutes."""
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


def relaxed(options: Options) -> tuple[list[Figure], list[Table]]:
    """What relaxation at fixed cell gains, of designs and of the data themselves."""
    named = _calculator()
    if named is None:
        return [], []
    name, calculator = named
    n, rows, figures = options.size(40, 1), [], []
    rng = np.random.default_rng(options.seed)
    unguided = [s for s in free(options)[0].structures if len(s) <= 12]
    held_out = [s for s in data()[1] if len(s) <= 12]
    for who, structures in (("unguided", unguided), ("validation minima", held_out)):
        found = relax([structures[i] for i in rng.permutation(len(structures))[:n]], calculator, fmax=0.1, steps=60)
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
        from dig_plugins.ase import calculator_named

        return "SevenNet-0", calculator_named("sevennet")
    except ImportError:
        return None


def measure(options: Options) -> Findings:
    """Part by part."""
    warnings.simplefilter("ignore")
    training, rng = data()[0], np.random.default_rng(options.seed)
    structures = free(options)[0].structures
    base = judged([structures[i] for i in rng.permutation(len(structures))], LearnedGap.load())
    figures, tables = [], []
    for part in (partial(gaps, options, training, base), partial(together, options), partial(relaxed, options)):
        more, rows = part()
        figures += more
        tables += rows
    return Findings(figures, tables)


if __name__ == "__main__":
    command_line(__doc__, "carbon_gaps", measure, "carbon")
