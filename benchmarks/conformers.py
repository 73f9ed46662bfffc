"""Conformers of drug-like molecules that no model was trained on: coverage of DFT conformers, precision, weights, time. Two hours.

Needs ../shared/data/conformer (DIG_CONFORMER names another place). Conformers are kept in runs/conformers-bench, where a run that was cut
off goes on. Nothing is filtered before measuring.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from common import HERE, Figure, Findings, Options, Table, command_line

import numpy as np  # isort: skip
from rdkit import Chem

from dig_core.montecarlo.analysis import effective_sample_size, metropolis_acceptance
from dig_plugins.rdkit import embed, sample_conformers, to_geometry, with_conformers
from dig_plugins.rdkit.compare import conformer_rmsd
from dig_plugins.rdkit.energy import reduced_unit
from dig_plugins.rdkit.minima import lowest_apart, minimised
from dig_plugins.rdkit.reference import Reference, read_conformer_set, withheld

DATA = Path(os.environ.get("DIG_CONFORMER", HERE.parent.parent / "shared" / "data" / "conformer"))
KEPT = HERE.parent / "runs" / "conformers-bench"
WINDOW, NEAR = 3.0, 0.5
"""kcal/mol above the lowest of a molecule's DFT conformers, which are to be found within so many Angstrom."""
APART = 0.25
MOLECULES = 64
"""Of the withheld, the first by name: all 249 take hours."""
SIZES, DRAWN = (10, 25, 50), 50
PEER = "ETKDG + MMFF"


def held_out(options: Options) -> list[Reference]:
    """Molecules that were never trained on, with their DFT conformers within the window."""
    found = [r for r in read_conformer_set(DATA / "conformer_benchmark") if withheld(r.mol)]
    return [_low(r) for r in found[: options.size(MOLECULES, 3)]]


def _low(reference: Reference) -> Reference:
    mol = Chem.Mol(reference.mol)
    for conformer, energy in zip(list(reference.mol.GetConformers()), reference.energy, strict=True):
        if energy >= WINDOW:
            mol.RemoveConformer(conformer.GetId())
    return reference._replace(mol=mol, energy=reference.energy[reference.energy < WINDOW])


def graph(mol: Chem.Mol) -> Chem.Mol:
    """The molecule without a structure: nothing of the reference but its stereochemistry."""
    bare = Chem.Mol(mol)
    bare.RemoveAllConformers()
    return bare


def peer(mol: Chem.Mol, n: int, options: Options) -> dict[str, np.ndarray]:
    """Distance geometry, minimised."""
    low, energy = minimised(embed(graph(mol), n, seed=options.seed))
    return {"low": _positions(low), "energy": energy}


def ours(mol: Chem.Mol, n: int, options: Options) -> dict[str, np.ndarray]:
    """The model's draws, raw and minimised, and what they weigh."""
    drawn = sample_conformers(graph(mol), n, model=options.model, correct=None, seed=options.seed)
    low, energy = minimised(drawn.mol)
    log_weight = -drawn.energy / reduced_unit(drawn.temperature) - drawn.log_q
    return {"raw": _positions(drawn.mol), "low": _positions(low), "energy": energy, "log_weight": log_weight}


def _positions(mol: Chem.Mol) -> np.ndarray:
    return to_geometry(mol).positions.numpy()


def kept(kind: str, reference: Reference, options: Options, make: Callable[..., dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What ``make`` makes of a molecule, conformers in the order in which they came; made once."""
    if options.quick:
        return make(reference.mol, 5, options)
    place = KEPT / kind / f"{reference.name}.npz"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(place, **make(reference.mol, DRAWN, options))
    with np.load(place) as held:
        return dict(held)


def covered(references: list[Reference], conformers: list[np.ndarray], sizes: tuple[int, ...]) -> tuple[list[list], np.ndarray]:
    """Rows of a table, one a number of conformers, and the coverage of each molecule (molecule, number) for every number up to the last."""
    distances = [conformer_rmsd(r.mol, with_conformers(r.mol, x)) for r, x in zip(references, conformers, strict=True)]
    most = max(sizes)
    running = np.array([[(d[:, : n + 1].min(1) < NEAR).mean() for n in range(most)] for d in distances])
    rows = []
    for n in sizes:
        precision = np.mean([(d[:, :n].min(0) < NEAR).mean() for d in distances])
        closest = np.mean([d[:, :n].min(1).mean() for d in distances])
        count = np.mean([min(n, d.shape[1]) for d in distances])
        share = running[:, n - 1]
        rows.append([n, count, share.mean(), share.std(ddof=1) / len(share) ** 0.5, precision, closest])
    return rows, running


def distinct(found: dict[str, np.ndarray], mol: Chem.Mol) -> np.ndarray:
    """The distinct minima among all that were drawn, lowest first."""
    return found["low"][lowest_apart(with_conformers(mol, found["low"]), found["energy"], APART)]


def needed(running: np.ndarray, wanted: float) -> float:
    """How many conformers reach a mean coverage; one more than there are where none do."""
    reached = np.flatnonzero(running.mean(0) >= wanted)
    return float(reached[0] + 1) if len(reached) else float(running.shape[1] + 1)


def coverage(references: list[Reference], theirs: list[dict], mine: list[dict], options: Options) -> tuple[list[Figure], Table]:
    """The peer and the model with the same number of conformers: the first that came, and the lowest distinct minima of all."""
    sizes = SIZES if not options.quick else (5,)
    most, rows, curves = max(sizes), [], {}
    chosen = {
        PEER: [f["low"] for f in theirs], "model": [f["raw"] for f in mine], "model + MMFF": [f["low"] for f in mine],
        f"{PEER}, distinct of {DRAWN}": [distinct(f, r.mol) for f, r in zip(theirs, references, strict=True)],
        f"model + MMFF, distinct of {DRAWN}": [distinct(f, r.mol) for f, r in zip(mine, references, strict=True)],
    }  # fmt: skip
    for name, conformers in chosen.items():
        table, curves[name] = covered(references, conformers, sizes)
        rows += [[name, *row] for row in table]
    figures = []
    for kind, n in (("", most), (f", distinct of {DRAWN}", min(sizes))):
        us, them = curves["model + MMFF" + kind], curves[PEER + kind]
        gap, wanted = us[:, n - 1] - them[:, n - 1], float(them[:, n - 1].mean())
        note = f"the difference is {gap.mean():+.3f} ± {gap.std(ddof=1) / len(gap) ** 0.5:.3f}"
        compared = f"{PEER}{kind} {wanted:.3f}"
        figures += [
            Figure(f"coverage by {n} conformers{kind}", float(us[:, n - 1].mean()), floor=wanted, compared=compared, note=note),
            Figure(
                f"conformers for the coverage that {n} of {PEER} have{kind}", needed(us, wanted), floor=float(n), aim=0.9 * n, higher=False
            ),
        ]
    title = f"{len(references)} molecules never trained on: DFT conformers below {WINDOW:g} kcal/mol found within {NEAR:g} Angstrom"
    header = ["", "at most", "conformers", "coverage", "its error", "precision", "mean distance to the closest, Angstrom"]
    return figures, Table(title, header, rows)


def weights(mine: list[dict]) -> Figure:
    """What draws are worth as proposals for the exact law of MMFF94s at 300 K."""
    acceptance = [metropolis_acceptance(f["log_weight"]) for f in mine]
    worth = [effective_sample_size(f["log_weight"]) * len(f["log_weight"]) for f in mine]
    note = f"of {DRAWN} draws each; the median effective size is {np.median(worth):.1f} draws"
    return Figure("raw acceptance of the model of any molecule on molecules never seen, median", float(np.median(acceptance)), note=note)


def speed(reference: Reference, options: Options) -> Figure:
    """Processor time of 50 conformers, coordinates included."""
    mol, n = graph(reference.mol), options.size(50, 2)
    began = time.process_time()
    sample_conformers(mol, n, model=options.model, correct=None, seed=options.seed)
    took = time.process_time() - began
    began = time.process_time()
    embed(mol, n, seed=options.seed)
    peers = f"ETKDG {time.process_time() - began:.1f} s"
    return Figure(f"processor time of {n} conformers of {mol.GetNumAtoms()} atoms", took, "s", compared=peers)


def measure(options: Options) -> Findings:
    """Everything in turn."""
    references = held_out(options)
    theirs, mine = ([kept(kind, r, options, make) for r in references] for kind, make in (("etkdg", peer), (options.model, ours)))
    figures, table = coverage(references, theirs, mine, options)
    figures += [weights(mine), speed(references[0], options)]
    left_out = sum(r.left_out for r in references)
    notes = [
        f"Reference: conformers of B3LYP-D3BJ, energies of wB97X-D, heavy-atom RMSD least over the symmetries of the graph; {left_out} "
        "geometries of the set that have other bonds or another stereochemistry are not among them.",
        "Withheld is a half by a hash of the graph; models get the graph and its stereochemistry alone. Both peers are minimised alike.",
        f"Distinct: minima more than {APART} Angstrom apart, the lowest first, of {DRAWN} conformers that were made.",
    ]
    return Findings(figures, [table], notes)


if __name__ == "__main__":
    command_line(__doc__, "conformers", measure, model="conformers")
