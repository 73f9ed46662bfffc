"""Backbones by the shipped models: other states of proteins from one of them, fluctuations. Half an hour; see adenylate_kinase.py too.

Needs ../shared/data/protein (DIG_PROTEIN names another place). Nothing is filtered before measuring; what is withheld was never
trained on. Samples are kept in runs/protein-bench.
"""

from __future__ import annotations

import os
from pathlib import Path

from common import HERE, Figure, Findings, Options, Table, command_line

import numpy as np  # isort: skip

from dig_core.dig import DiG
from dig_core.system.protein import residues
from dig_core.types import Geometry
from dig_plugins import models
from dig_plugins.mdtraj import (
    BackboneEnsemble,
    check_backbones,
    sample_backbones,
)
from dig_plugins.mdtraj.observables import (
    aligned,
    correlation,
    distances,
    map_divergence,
    mean_structure,
    pca,
    rmsd,
    rmsf,
    tm_score,
)
from dig_plugins.mdtraj.recipes.backbones import HELD_OUT, MODELS, pairs

DATA = Path(os.environ.get("DIG_PROTEIN", HERE.parent.parent / "shared" / "data" / "protein"))
TRAINED = ("P0205", "P69441")
"""Proteins of the training to look at beside those held out, of those with fewest residues."""
KEPT = HERE.parent / "runs" / "protein-bench"


def alpha(geometry: Geometry, descriptor) -> np.ndarray:
    """(F, N, 3) Angstrom, alpha carbons."""
    return geometry.positions[:, residues(descriptor).atoms[:, 1]].numpy()


def drawn(name: str, dig: DiG, n: int, options: Options, **how) -> BackboneEnsemble:
    """``n`` draws, whole or not, made once."""
    place = KEPT / f"{name}.xtc"
    if options.quick:
        return sample_backbones(dig, n, seed=options.seed, valid_only=False, progress=False, **{**how, "steps": 4})
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        sample_backbones(dig, n, seed=options.seed, valid_only=False, progress=False, **how).write(place)
    return BackboneEnsemble.read(place)


def share(good) -> float:
    return float(np.mean(good))


def two_states(options: Options) -> tuple[list[Figure], list[Table]]:
    """From one structure of a protein to its other state: proteins of the training and proteins never seen."""
    dig, rows, hits = models.load("backbones"), [], []
    names = sorted(path.name for path in (DATA / "two_state_backbone").iterdir() if path.is_dir())
    for name in [*HELD_OUT, *TRAINED]:
        others = [other for other in names if other != name]
        for given, (descriptor, frames) in enumerate(pairs(DATA, others)):
            both = 10.0 * frames.state["pos"].double().numpy()
            found = drawn(f"{name}-{given}", dig.on(descriptor), options.size(16, 2), options)
            mine = alpha(found.geometry, descriptor)
            own, other = (rmsd(mine, both[k]) for k in (given, 1 - given))
            apart, whole = float(rmsd(both[:1], both[1])[0]), share(check_backbones(found.geometry, descriptor).ok.numpy())
            held = name in HELD_OUT
            hits += [(own.min() < 3 and other.min() < 3)] if held else []
            score = float(np.median(tm_score(mine, both[given])))
            rows.append([name, "never seen" if held else "trained on", len(mine[0]), apart, own.min(), other.min(), score, whole])
    header = ["protein", "", "residues", "states apart", "best to the given state", "best to the other", "median TM to given", "whole"]
    figure = Figure(
        "proteins never seen: both states within 3 Angstrom in 16 samples from one of them", share(hits),
        compared="always answering the given structure: 0, where the states are further apart",
    )  # fmt: skip
    return [figure], [Table("Two-state proteins, one structure given; C-alpha RMSD in Angstrom", header, rows)]


def fluctuations(name: str, reference: np.ndarray, options: Options, n: int) -> tuple[list[Figure], list]:
    """A model's ensemble against the reference ensemble (F, N, 3): fluctuations, and a map of its two widest motions."""
    found = drawn(name, models.load(name), options.size(n, 4), options)
    mine, target = alpha(found.geometry, found.descriptor), mean_structure(reference)
    if name == "ubiquitin":  # coordinates about the mean for a folded protein, distances for a peptide that has no fold
        here, there = (aligned(x, target) for x in (mine, reference))
    else:
        here, there = distances(mine), distances(reference)
    plane = pca(there)
    rng = np.random.default_rng(options.seed)
    divergence = map_divergence(plane.project(here), plane.project(there), method="kernel", rng=rng)
    like = correlation(rmsf(mine), rmsf(reference))
    whole = share(check_backbones(found.geometry, found.descriptor).ok.numpy())
    figures = [
        Figure(f"{name}, correlation of fluctuations with the reference ensemble", like, floor=0.8, aim=0.95),
        Figure(
            f"{name}, Jensen-Shannon divergence on the map of two motions", divergence.value, "nats", floor=0.15, aim=0.05, higher=False,
            compared=f"half the reference against the other: {divergence.floor:.3f}",
        ),
    ]  # fmt: skip
    return figures, [name, len(reference), len(mine), float(rmsf(reference).mean()), float(rmsf(mine).mean()), whole]


def measure(options: Options) -> Findings:
    """Everything in turn."""
    figures, tables = two_states(options)
    ubiquitin = read_backbones_alpha(DATA / "ubiquitin_2k39" / "pdb2k39_ca.pdb")
    peptide = MODELS["fs-peptide"].read(DATA)
    rows = []
    for name, reference, n in (
        ("ubiquitin", ubiquitin, 500), ("fs-peptide", alpha(peptide.geometry, peptide.descriptor), 500),
    ):  # fmt: skip
        more, row = fluctuations(name, reference, options, n)
        figures, rows = figures + more, [*rows, row]
    header = ["ensemble", "reference structures", "samples", "mean fluctuation of the reference", "of the samples", "whole"]
    tables.append(Table("Fluctuations of C-alphas, Angstrom", header, rows))
    notes = [
        "Two states: the descriptor holds one of the structures, which the network reads; sampling from the sequence alone is not claimed.",
        "Ubiquitin was trained on 11 of the 15 all-atom models of 2K39 and is compared with all 116; Fs peptide on 70 of the 100 frames.",
    ]
    return Findings(figures, tables, notes)


def read_backbones_alpha(file: Path) -> np.ndarray:
    """(F, N, 3) Angstrom of a PDB file that holds alpha carbons alone."""
    import mdtraj

    return 10.0 * mdtraj.load(str(file)).xyz.astype(np.float64)


if __name__ == "__main__":
    command_line(__doc__, "proteins", measure, model="backbones")
