"""Poses of ligands in pockets: withheld ligands of known targets, withheld targets, checks before and after relaxation. An hour.

Needs ../shared/data/ligand (DIG_LIGAND names another place). Poses are kept in runs/pose-bench. Models that never saw one of the targets
are read from runs/pockets (DIG_POCKETS names another place), where dig_plugins.rdkit.recipes.pockets --without writes them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from common import HERE, Figure, Findings, Options, Table, command_line

import numpy as np  # isort: skip
import torch
from rdkit import Chem, DataStructs
from rdkit.Chem import rdDistGeom, rdFingerprintGenerator, rdFMCS, rdMolAlign

from dig_core.dig import DiG
from dig_core.random import Streams
from dig_core.types import Geometry
from dig_plugins import models
from dig_plugins.rdkit import conformer_rmsd, embed, to_geometry, with_conformers
from dig_plugins.rdkit.pockets import (
    PocketEnergy,
    PoseProposal,
    bound_to,
    check_poses,
    induced_fit,
    pose_rmsd,
    relax,
    ring_forms,
    sample_poses,
)
from dig_plugins.rdkit.recipes.pockets import TARGETS, ligands, pocket_of, withheld

DATA = Path(os.environ.get("DIG_LIGAND", HERE.parent.parent / "shared" / "data" / "ligand"))
OTHERS = Path(os.environ.get("DIG_POCKETS", HERE.parent / "runs" / "pockets"))
KEPT = HERE.parent / "runs" / "pose-bench"
POSES, RELAXED, GIVEN_WAY, LIMIT = 50, 8, 1, 2.0


def load(name: str) -> DiG:
    """The model that ships, or a checkpoint."""
    return models.load(name)


def drawn(kept: str, dig: DiG, pocket, mol: Chem.Mol, options: Options) -> Chem.Mol:
    """``POSES`` poses of the model's own law, none left out, made once."""
    place, n = KEPT / f"{kept}.npy", options.size(POSES, 4)
    if place.exists() and not options.quick:
        return with_conformers(mol, np.load(place))
    steps = 4 if options.quick else None
    found = sample_poses(pocket, mol, n, model=dig, seed=options.seed, steps=steps).mol
    if not options.quick:
        KEPT.mkdir(parents=True, exist_ok=True)
        np.save(place, to_geometry(found).positions.numpy())
    return found


def relaxed(kept: str, mol: Chem.Mol, pocket, options: Options) -> Chem.Mol:
    """The first ``RELAXED`` of them, minimised in the pocket."""
    place = KEPT / f"{kept}-relaxed.npy"
    if place.exists() and not options.quick:
        return with_conformers(mol, np.load(place))
    start = to_geometry(mol).positions[: options.size(RELAXED, 2)]
    done = relax(start, PocketEnergy(mol, pocket)).positions.numpy()
    if not options.quick:
        np.save(place, done)
    return with_conformers(mol, done)


def given_way(kept: str, mol: Chem.Mol, pocket, options: Options) -> list[tuple[bool, float]]:
    """Of the first ``GIVEN_WAY``, minimised together with the residues about them: whether they pass all checks, and the pocket's RMSD."""
    place = KEPT / f"{kept}-induced.npy"
    if place.exists() and not options.quick:
        return [(bool(ok), float(moved)) for ok, moved in np.load(place)]
    some = with_conformers(mol, to_geometry(mol).positions.numpy()[: options.size(GIVEN_WAY, 1)])
    made = induced_fit(some, pocket, steps=options.size(300, 20))
    found = [(bool(check_poses(with_conformers(mol, one.positions[None]), one.pocket).ok[0]), one.moved) for one in made]
    if not options.quick:
        np.save(place, np.array(found, dtype=np.float64))
    return found


def peers(kept: str, dig: DiG, pocket, mol: Chem.Mol, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """What it is compared with, RMSD of as many: conformers of ETKDG, superposed; and poses where the model begins, anywhere about the
    site, in any orientation, with any torsions."""
    place, n = KEPT / f"{kept}-peers.npy", options.size(POSES, 4)
    if place.exists() and not options.quick:
        return tuple(np.load(place))  # type: ignore[return-value]
    bound = bound_to(dig, mol, pocket, ring_forms(mol, seed=options.seed, conformers=4))[0]
    state = bound.process.prior(bound.process.empty(n, torch.float64)).sample(Streams(options.seed, range(n)))
    chance = with_conformers(mol, bound.coordinates.ligand(state, bound.descriptor).numpy())  # type: ignore[attr-defined]
    plain = conformer_rmsd(embed(mol, n, seed=options.seed), mol)[:, 0]
    found = np.resize(plain, n), pose_rmsd(chance, mol)[:, 0]
    if not options.quick:
        np.save(place, np.stack(found))
    return found


def copied(kept: str, mol: Chem.Mol, others: list[Chem.Mol], options: Options) -> np.ndarray:
    """RMSD of as many poses without any model: distance geometry about the common substructure with the most alike ligand that was trained
    on, which stays where that ligand has it; inf where none is found."""
    place, n = KEPT / f"{kept}-copied.npy", options.size(POSES, 4)
    if place.exists() and not options.quick:
        return np.load(place)
    prints = rdFingerprintGenerator.GetMorganGenerator(2)
    alike = DataStructs.BulkTanimotoSimilarity(prints.GetFingerprint(mol), [prints.GetFingerprint(o) for o in others])
    other = others[int(np.argmax(alike))]
    shared = rdFMCS.FindMCS([Chem.RemoveHs(mol), Chem.RemoveHs(other)], timeout=3, ringMatchesRingOnly=True, completeRingsOnly=True)
    core = Chem.MolFromSmarts(shared.smartsString)
    mine, theirs = mol.GetSubstructMatch(core), other.GetSubstructMatch(core)
    at, copy = other.GetConformer(), Chem.Mol(mol)
    options_of = rdDistGeom.ETKDGv3()
    options_of.randomSeed, options_of.useRandomCoords, options_of.maxIterations = options.seed, True, 20
    options_of.SetCoordMap({i: at.GetAtomPosition(j) for i, j in zip(mine, theirs, strict=True)})
    made = list(rdDistGeom.EmbedMultipleConfs(copy, n, options_of))
    for k in made:
        rdMolAlign.AlignMol(copy, other, prbCid=k, atomMap=list(zip(mine, theirs, strict=True)))
    found = pose_rmsd(copy, mol)[:, 0] if made else np.full(1, np.inf)
    if not options.quick:
        np.save(place, found)
    return found


def score(name: str, dig: DiG, target: str, number: int, mol: Chem.Mol, pocket, options: Options) -> dict:
    """Everything of one ligand; poses of targets never seen are not relaxed."""
    kept = f"{name}-{target}-{number}"
    found = drawn(kept, dig, pocket, mol, options)
    plain, chance = peers(kept, dig, pocket, mol, options)
    one = {
        "target": target, "away": pose_rmsd(found, mol)[:, 0], "shape": conformer_rmsd(found, mol)[:, 0], "plain": plain, "chance": chance,
        "before_ok": check_poses(found, pocket).shares(), "given_ok": bool(check_poses(mol, pocket).ok[0]),
    }  # fmt: skip
    if name != "pockets":
        return one
    after = relaxed(kept, found, pocket, options)
    return one | {
        "after": pose_rmsd(after, mol)[:, 0], "after_ok": check_poses(after, pocket).shares(),
        "induced": given_way(kept, found, pocket, options),
    }  # fmt: skip


def mean(values) -> float:
    return float(np.mean(list(values)))


def rows_of(scores: list[dict]) -> list[list]:
    """A row a target: how many ligands, how near their poses come, how many of them are whole."""
    rows = []
    for target in dict.fromkeys(s["target"] for s in scores):
        own = [s for s in scores if s["target"] == target]
        rows.append([
            target, len(own), mean(s["away"].min() < LIMIT for s in own), float(np.median([s["away"].min() for s in own])),
            mean((s["away"] < LIMIT).mean() for s in own), mean(s["away"][0] < LIMIT for s in own),
            mean(s["chance"].min() < LIMIT for s in own),
            mean(s["before_ok"]["ok"] for s in own), mean(s["after_ok"]["ok"] for s in own) if "after_ok" in own[0] else "",
            mean(s["given_ok"] for s in own),
        ])  # fmt: skip
    return rows


HEADER = [
    "target", "ligands", "best of 50 within 2 A", "median of the best, A", "poses within 2 A", "first pose within 2 A",
    "by chance, best of 50 within 2 A", "pass all checks", "after relaxation", "given poses that pass",
]  # fmt: skip


def known_targets(options: Options) -> tuple[list[Figure], list[Table]]:
    """Ligands that were withheld, of targets that others were trained on."""
    dig, scores = load(options.model), []
    for target in TARGETS[: options.size(len(TARGETS), 1)]:
        mols = ligands(DATA, target)
        pocket, aside = pocket_of(DATA, target, mols), withheld(len(mols), target)
        known = [mol for k, mol in enumerate(mols) if k not in aside]
        for k in aside[: options.size(len(aside), 1)]:
            one = score("pockets", dig, target, k, mols[k], pocket, options)
            scores.append(one | {"copied": copied(f"pockets-{target}-{k}", mols[k], known, options)})
    names = ("bonds", "angles", "inner", "flat", "distance", "overlap", "ok")
    checks = [[name, mean(s["before_ok"][name] for s in scores), mean(s["after_ok"][name] for s in scores)] for name in names]
    best, chance = mean(s["away"].min() < LIMIT for s in scores), mean(s["chance"].min() < LIMIT for s in scores)
    copy = mean(s["copied"].min() < LIMIT for s in scores)
    figures = [
        Figure(
            "withheld ligands of known targets: best of 50 poses within 2 Angstrom", best, floor=0.9, aim=0.98,
            compared=f"poses by chance about the site {chance:.2f}; conformers laid on the most alike ligand of the training {copy:.2f}",
            note=f"{len(scores)} ligands",
        ),
        Figure(
            "conformer RMSD of poses to the bound conformer, mean", mean(s["shape"].mean() for s in scores), "Angstrom", floor=1.4, aim=0.9,
            higher=False, compared=f"ETKDG {mean(s['plain'].mean() for s in scores):.2f}",
        ),
        Figure(
            "conformer RMSD of poses to the bound conformer, best of 50", mean(s["shape"].min() for s in scores), "Angstrom", floor=0.8,
            aim=0.5, higher=False, compared=f"ETKDG {mean(s['plain'].min() for s in scores):.2f}",
        ),
        Figure("poses that pass all checks, as drawn", mean(s["before_ok"]["ok"] for s in scores), floor=0.7, aim=0.95,
               compared=f"poses of the data {mean(s['given_ok'] for s in scores):.2f}"),
        Figure("poses that pass all checks, relaxed", mean(s["after_ok"]["ok"] for s in scores), floor=0.95, aim=0.99,
               note=f"the first {RELAXED} of each ligand's poses"),
        Figure(
            "poses that pass all checks, relaxed with the pocket", mean(ok for s in scores for ok, _ in s["induced"]), floor=0.95, aim=0.99,
            note="the first pose of each ligand; residues within 5 Angstrom give way by up to 1 Angstrom an atom",
        ),
        Figure(
            "pocket RMSD from its input structure, largest", max(moved for s in scores for _, moved in s["induced"]), "Angstrom",
            floor=1.0, higher=False, note="of heavy atoms, relaxed with the pose; as drawn pockets are fixed",
        ),
    ]  # fmt: skip
    relaxed_hits = mean((s["after"] < LIMIT).mean() for s in scores)
    plain_hits = mean((s["away"][:RELAXED] < LIMIT).mean() for s in scores)
    tables = [
        Table("Withheld ligands of known targets", HEADER, rows_of(scores)),
        Table(
            "Without a model: conformers of distance geometry, the common substructure laid on the most alike ligand of the training",
            ["target", "best of 50 within 2 A", "poses within 2 A", "median of the best, A"],
            [
                [
                    target, mean(s["copied"].min() < LIMIT for s in own), mean((s["copied"] < LIMIT).mean() for s in own),
                    float(np.median([s["copied"].min() for s in own])),
                ]
                for target in TARGETS if (own := [s for s in scores if s["target"] == target])
            ],
        ),
        Table("Checks of poses, share that passes", ["test", "as drawn", "relaxed"], checks),
        Table(f"Poses within 2 Angstrom, the first {RELAXED} of each ligand", ["as drawn", "relaxed"], [[plain_hits, relaxed_hits]]),
    ]
    return figures, tables


def new_targets(options: Options) -> tuple[list[Figure], list[Table]]:
    """All ligands of targets that a model has never seen."""
    scores, trained = [], []
    for target in TARGETS:
        file = OTHERS / f"pockets-without-{target}.safetensors"
        if not file.exists() or options.quick:
            continue
        dig, mols = load(str(file)), ligands(DATA, target)
        pocket = pocket_of(DATA, target, mols)
        trained.append(sum(row["steps"] * row["batch"] for row in dig.card.history))
        scores += [score(f"without-{target}", dig, target, k, mol, pocket, options) for k, mol in enumerate(mols)]
    if not scores:
        return [], []
    best, chance = mean(s["away"].min() < LIMIT for s in scores), mean(s["chance"].min() < LIMIT for s in scores)
    names = ", ".join(dict.fromkeys(s["target"] for s in scores))
    figure = Figure(
        "withheld targets: best of 50 poses within 2 Angstrom", best, floor=None, compared=f"poses by chance about the site {chance:.2f}",
        note=f"{len(scores)} ligands of {names}, each by a model of the other five targets, of {min(trained):,} training poses or more",
    )  # fmt: skip
    return [figure], [Table("Targets never seen", HEADER, rows_of(scores))]


def speed(options: Options) -> Figure:
    """Wall time of 50 poses of a ligand of 24 heavy atoms with one thread, coordinates included."""
    dig, mols = load(options.model), ligands(DATA, "tyk2")
    pocket, mol = pocket_of(DATA, "tyk2", mols), mols[withheld(len(mols), "tyk2")[0]]
    sample_poses(pocket, mol, 2, model=dig, seed=0, steps=2)
    began, worked = time.perf_counter(), time.process_time()
    sample_poses(pocket, mol, options.size(POSES, 2), model=dig, seed=options.seed, steps=None if not options.quick else 2)
    took, worked = time.perf_counter() - began, time.process_time() - worked
    return Figure(
        "time for 50 poses, 2 cores, one of them used", took, "s", floor=30.0, aim=5.0, higher=False,
        compared="1.8 s a pose on a GPU in the article's code",
        note=f"wall time on a machine that others used; {worked:.1f} s of processor time",
    )  # fmt: skip


def exact(options: Options) -> Figure:
    """What the model's proposals are worth under MMFF94 in the fixed pocket, one withheld ligand of tyk2."""
    dig, mols = load(options.model), ligands(DATA, "tyk2")
    pocket, mol = pocket_of(DATA, "tyk2", mols), mols[withheld(len(mols), "tyk2")[0]]
    forms = ring_forms(mol, seed=options.seed)
    proposal = PoseProposal(bound_to(dig, mol, pocket, forms), [f.share for f in forms], steps=4 if options.quick else None)
    n = options.size(100, 4)
    found = proposal.draw(n, Streams(options.seed, range(n)))
    u = PocketEnergy(mol, pocket)(Geometry(found.geometry.positions)).numpy()
    log_weight = np.where(found.valid.numpy(), -u - found.known_log_q().numpy(), -np.inf)
    usable = np.isfinite(log_weight)
    share = np.exp(log_weight[usable] - log_weight[usable].max())
    size = float(share.sum() ** 2 / (share**2).sum()) if len(share) else 0.0
    return Figure(
        "effective number of 100 proposals under MMFF94 in a fixed pocket, raw weights", size, note="a withheld ligand of tyk2, no walls",
    )  # fmt: skip


def measure(options: Options) -> Findings:
    """Everything in turn."""
    figures, tables = known_targets(options)
    more, others = new_targets(options)
    notes = [
        "RMSD of heavy atoms in place, the least over the graph's symmetries, to the data's poses, most of which were modelled onto one "
        "crystal ligand of their series. Coordinates and rings come from distance geometry: the bound conformer is not read.",
        "Of every target three ligands of ten were withheld; the pocket is what is within 8 Angstrom of one ligand that was trained on.",
        "MMFF94 in vacuum, the pocket fixed as in the file, relaxes the poses. Every pose counts, those that fail a check too.",
    ]
    return Findings([*figures, *more, speed(options), exact(options)], [*tables, *others], notes)


if __name__ == "__main__":
    command_line(__doc__, "poses", measure, model="pockets")
