"""Carbon crystals drawn cold (``method="cold"``), and by the first network alone, beside the model's own law: how sharp, how varied.

Data and samples kept as those of carbon.py, whose draws are used where they are there. Half an hour.
"""

from __future__ import annotations

import warnings

import numpy as np
from carbon import DATA, data, drawn, seeds
from common import Figure, Findings, Options, Table, command_line

from dig_plugins import models
from dig_plugins.pymatgen.evaluate import Library, assign, coverage, diversity, frequencies, match_report, validity

WAYS: dict[str, tuple[str, dict]] = {
    "one network alone, 60 steps": ("alone-{}", {}), "the law, 60 steps": ("free-{}", {}),
    "cold, 60 steps": ("cold-{}", {"method": "cold"}), "cold, 120 steps": ("cold-120-{}", {"method": "cold", "steps": 120}),
}  # fmt: skip


def measure(options: Options) -> Findings:
    """All ways, the same seeds and numbers of atoms; the figures are of the last."""
    if not DATA.is_dir():
        raise SystemExit(f"expected the carbon data in {DATA.name}: DIG_CARBON names its place.")
    warnings.simplefilter("ignore")
    training, held_out, hits = data()
    known, unseen = (Library(structures, primitive_cell=False) for structures in (training, held_out))
    small, rows, found = np.array([len(s) <= 10 for s in training]), [], {}
    whole = models.load(options.model)
    for way, (name, how) in WAYS.items():
        model = whole.members()[0] if way.startswith("one") else whole
        sets = [
            drawn(name.format(seed), options, "C", options.size(400, 6), model=model, seed=seed, **how)
            for seed in seeds(options)
        ]
        rng = np.random.default_rng(options.seed)
        some = [designs.structures[i] for designs in sets for i in rng.permutation(len(designs))[: options.size(150, 6)]]
        report = match_report(some, training, primitive_cells=(False,), controls=0, seed=options.seed)
        loose, default, tight = (report.row("samples", tolerance, False) for tolerance in ("loose", "default", "tight"))
        every = [s for designs in sets for s in designs.structures]
        library, little = Library(every, primitive_cell=False), [s for s in every if len(s) <= 10]
        ratio = None if options.quick else frequencies(assign(Library(little, primitive_cell=False), known), np.where(small, hits, 0)).ratio
        kinds, cover = diversity(Library(some), Library(training), validity(some).valid(1.1)), coverage(unseen, library, known)
        found[way] = (loose, default, tight, ratio, cover.share)
        shares = (loose.rate, loose.nrmsd, default.rate, tight.rate, validity(some).valid(1.1).mean(), kinds.unique / kinds.n, cover.share)
        rows.append([way, len(some), *(round(float(x), 3) for x in shares), "" if ratio is None else round(ratio, 2)])
    (loose, default, tight, ratio, share), plain = found["cold, 120 steps"], found["the law, 60 steps"]
    figures = [
        Figure("samples drawn cold in 120 steps that match a training structure at 0.3/0.5/10", loose.rate, floor=0.99, aim=0.999,
               compared=f"the law itself {plain[0].rate:.3f}"),
        Figure("their normalised distance", loose.nrmsd, floor=0.18, aim=0.12, higher=False,
               compared=f"the law itself {plain[0].nrmsd:.3f}"),
        Figure("samples drawn cold that match at 0.2/0.3/5", default.rate, floor=0.70, aim=0.90,
               compared=f"the law itself {plain[1].rate:.3f}"),
        Figure("samples drawn cold that match at 0.1/0.1/2", tight.rate, compared=f"the law itself {plain[2].rate:.3f}"),
        Figure("validation minima hit at 0.1/0.1/2 by as many draws", share, compared=f"the law itself {plain[4]:.3f}",
               note=f"{len(every):,} draws each."),
    ]  # fmt: skip
    if ratio is not None:
        figures.append(
            Figure("Jensen-Shannon distance of class hit rates over the floor of the data, drawn cold", ratio, "x", floor=3.0, aim=1.5,
                   higher=False, compared=f"the law itself {plain[3]:.2f}")
        )  # fmt: skip
    header = ["drawn", "n", "match 0.3/0.5/10", "nRMSD", "0.2/0.3/5", "0.1/0.1/2", "above 1.1 A", "unique", "minima hit", "JS ratio"]
    return Findings(figures, [Table("Samples of the law and cold ones", header, rows)])


if __name__ == "__main__":
    command_line(__doc__, "carbon_cold", measure, "carbon")
