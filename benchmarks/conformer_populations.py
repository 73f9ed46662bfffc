"""Exact conformer populations of withheld molecules, from MMFF94s alone: wells, networks, tempering. An hour and a half of one core.

Needs ../shared/data/conformer (DIG_CONFORMER names another place). Not part of make bench. First the parts of each molecule are made and
kept in results/conformer_populations (DIG_POPULATIONS names another place): --molecule NAME [PART...], or --workers N [PART...] for all
molecules in N processes; parts are wells, tempering, dynamics, network, all if none is named: 20 to 40, 53, 31 and 120 to 200 s of a
processor. --again NAME [PART...]: anew and longer, of a molecule where populations differ by three standard errors. With none of these,
what is kept is compared.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from common import RESULTS, Figure, Findings, Options, Table, command_line, poisson_upper

import numpy as np  # isort: skip
import conformer_reference as reference
import torch
from conformer_reference import deviate, dynamics, indicators, positions_of, scattered, tempered, thirds
from conformers import DATA, graph
from rdkit import Chem
from scipy import stats

from dig_core.dig import Card, DiG
from dig_core.files import write_atomically
from dig_core.montecarlo.analysis import bootstrap, effective_sample_size, metropolis_acceptance, normalised_weights
from dig_core.montecarlo.chain import Candidates, Pool
from dig_core.montecarlo.wells import Wells
from dig_core.training.fit import fit
from dig_core.training.loop import LoopConfig
from dig_core.training.molecule import internal_model, width_of
from dig_core.training.plan import step_time
from dig_core.training.stages import Denoise, Standardise
from dig_core.training.walks import rounds
from dig_core.training.wells import equilibrium
from dig_plugins.rdkit import MMFFEnergy, reference_structure, to_geometry, torsions_of
from dig_plugins.rdkit.reference import read_conformer_set, withheld
from dig_plugins.rdkit.wells import conformer_wells

KEPT = Path(os.environ.get("DIG_POPULATIONS", RESULTS / "conformer_populations"))
MOLECULES, LARGEST = 20, 35
CONFORMERS = 100
TRAINING, TEMPERING, DYNAMICS, CHAINS = 120.0, 50.0, 30.0, 12.0
"""Processor seconds of a molecule: a network's steps, the reference, molecular dynamics, chains without a network."""
DRAWS = 16_384
WALKERS = 200
AGAIN = 4
"""So many times as long, and with other seeds, molecules beyond three standard errors are sampled anew: what is wrong grows by it, what was
chance goes away. Of some 200 populations one is beyond by chance in two runs of five."""
FEW = 0.02
"""Populations below are not compared: neither method says how wrong it is about what it saw a few times."""


def chosen() -> dict[str, Chem.Mol]:
    """Withheld molecules of no more than so many atoms, the first in the order of a hash of their names."""
    found = [r for r in read_conformer_set(DATA / "conformer_benchmark") if withheld(r.mol) and r.mol.GetNumAtoms() <= LARGEST]
    found.sort(key=lambda r: hashlib.sha256(r.name.encode()).digest())
    return {r.name: graph(r.mol) for r in found[:MOLECULES]}


def dug(mol: Chem.Mol, options: Options, longer: int = 1) -> dict:
    """Wells: what their raw proposals are worth, populations by chains of them, and what either cost."""
    began, energy, rng = time.process_time(), MMFFEnergy(mol, 300.0), torch.Generator().manual_seed(options.seed)
    wells = conformer_wells(mol, seed=options.seed, conformers=options.size(CONFORMERS, 20))
    held = equilibrium(wells, energy, rng, chains=options.size(200, 50), settle=options.size(40, 8), moves=8, stride=8).wells
    made = time.process_time() - began
    raw = weighed(Pool(held, energy, seed=options.seed + 1, batch=512), mol, options, longer)
    return {"wells": {"wells": len(wells), "making": made, **raw}, "chains": chained(held, energy, mol, options, longer)}


def modelled(mol: Chem.Mol, options: Options, longer: int = 1) -> dict:
    """A network trained on chains of wells: raw proposals, with one path and four."""
    began, energy, rng = time.process_time(), MMFFEnergy(mol, 300.0), torch.Generator().manual_seed(options.seed)
    wells = conformer_wells(mol, seed=options.seed, conformers=options.size(CONFORMERS, 20))
    sizes = {"chains": options.size(1000, 50), "settle": options.size(60, 8), "moves": options.size(200, 8), "stride": 4}
    held = equilibrium(wells, energy, rng, **sizes)
    dig, steps = trained(held, energy, options)
    record: dict = {"fit": {"seconds": time.process_time() - began, "steps": steps, "evaluations": held.evaluations}}
    record["model"] = weighed(Pool(dig.proposal(), energy, seed=options.seed + 2, batch=512), mol, options, longer)
    started, short = time.process_time(), options.size(2048, 64)
    found = Pool(dig.proposal(steps=64, paths=4), energy, seed=options.seed + 3, batch=512).take(short)
    numbers = {"seconds": time.process_time() - started, "proposals": short, "acceptance": metropolis_acceptance(found.log_weight)}
    return {**record, "model, 64 steps, 4 paths": {**numbers, "ess": effective_sample_size(found.log_weight)}}


def trained(held, energy: MMFFEnergy, options: Options) -> tuple[DiG, int]:
    """A model of the frames, in the coordinates that they give."""
    old = held.wells.dig
    build = functools.partial(internal_model, width=width_of(old.coordinates), seed=options.seed)
    card = Card(name="populations", energy="MMFF94s (RDKit)", temperature=300.0, steps=32)
    dig = DiG(build(old.coordinates), old.coordinates, old.descriptor, card)
    run = functools.partial(fit, energy=energy, seed=options.seed, progress=False)
    here = run(dig, [Standardise(build)], frames=held.frames)
    steps = max(20, int(options.size(int(TRAINING), 1) / step_time(here.dig)))
    here = run(here.dig, [Denoise(LoopConfig(steps=steps, every=steps))], frames=here.frames, validation=here.validation)
    return here.dig, steps


def weighed(pool: Pool, mol: Chem.Mol, options: Options, longer: int) -> dict:
    """Raw proposals: what they accept, and the populations by their weights, with errors from the bootstrap."""
    began = time.process_time()
    found: Candidates = pool.take(longer * options.size(DRAWS, 256))
    seconds, weight = time.process_time() - began, normalised_weights(found.log_weight)
    states, rng = thirds(found.positions, mol), np.random.default_rng(0)
    rows = {}
    for key, inside in indicators(states):
        value = bootstrap(lambda x, w: float(x @ w / w.sum()), inside, weight, n=200, rng=rng)
        rows[key] = [float(value.value), float(value.stderr)]
    return {
        "acceptance": metropolis_acceptance(found.log_weight), "ess": effective_sample_size(found.log_weight), "proposals": len(weight),
        "share": float(weight.max()), "seconds": seconds, "populations": rows,
    }  # fmt: skip


def chained(wells: Wells, energy: MMFFEnergy, mol: Chem.Mol, options: Options, longer: int) -> dict:
    """Metropolis chains side by side, a Langevin step and three independent proposals in turn, but for their first quarter."""
    rng, seconds = torch.Generator().manual_seed(options.seed + 5), longer * options.size(int(CHAINS), 1)
    visits, accepted, began = [], [], time.process_time()
    for here, share in rounds(wells, energy, rng, options.size(WALKERS, 20)):
        accepted.append(share)
        visits.append(thirds(positions_of(wells, here.points), mol))
        spent = time.process_time() - began
        if spent > seconds and len(visits) >= 8:
            break
    visited = np.stack(visits[len(visits) // 4 :], 1)
    return {"acceptance": float(np.mean(accepted)), "seconds": spent * 0.75, "rounds": visited.shape[1], "populations": scattered(visited)}


def cooled(mol: Chem.Mol, options: Options, longer: int = 1) -> dict:
    """Parallel tempering of the same energy."""
    wells = conformer_wells(mol, seed=options.seed + 100, conformers=options.size(CONFORMERS, 20), refinements=0)
    return tempered(wells, MMFFEnergy(mol, 300.0), mol, longer * options.size(int(TEMPERING), 2), options.seed)


def moved(mol: Chem.Mol, options: Options, longer: int = 1) -> dict:
    """Molecular dynamics of the same energy, from a minimum."""
    return dynamics(mol, to_geometry(mol).positions[0].numpy(), longer * options.size(int(DYNAMICS), 1), options.seed)


PARTS = {"wells": dug, "tempering": cooled, "dynamics": moved, "network": modelled}


def place_of(kind: str, name: str, again: bool) -> Path:
    return KEPT / f"{name}.{kind}{'.again' if again else ''}.json"


def part(kind: str, name: str, mol: Chem.Mol, options: Options, again: bool = False) -> dict:
    """What ``kind`` gives of a molecule, made once and kept."""
    place, options = place_of(kind, name, again), replace(options, seed=options.seed + 1000 * again)
    if place.exists() and not options.quick:
        return json.loads(place.read_text())
    began, wall = time.process_time(), time.monotonic()
    mol = reference_structure(mol, seed=options.seed)
    record = {"name": name, "smiles": Chem.MolToSmiles(Chem.RemoveHs(mol)), "atoms": mol.GetNumAtoms(), "torsions": torsions_of(mol)}
    record |= PARTS[kind](mol, options, AGAIN if again else 1)
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    record |= {"cpu_seconds": time.process_time() - began, "wall_seconds": time.monotonic() - wall, "made": made}
    if not options.quick:
        KEPT.mkdir(parents=True, exist_ok=True)
        write_atomically(place, json.dumps(record, indent=1).encode())
    return record


def compared(one: dict, other: dict, dof: int) -> list[dict]:
    """Every population between FEW and 1 - FEW in either of two records: both, and their difference as a normal deviate."""
    rows = []
    for key, (theirs, error, *_) in other.items():
        mine, stderr, *_ = one[key]
        if FEW < theirs < 1 - FEW or FEW < mine < 1 - FEW:
            rows.append({"state": key, "one": mine, "other": theirs, "z": deviate(mine - theirs, stderr, error, dof)})
    return rows


def rates(chains: dict, moving: dict) -> tuple[float, float]:
    """Samples a CPU-second of the state that is slowest, of chains and, at most, of dynamics."""
    mine, limits = [], []
    for key, (p, *errors) in chains["populations"].items():
        if FEW < p < 1 - FEW and errors[-1]:
            mine.append(p * (1 - p) / errors[-1] ** 2 / chains["seconds"])
            limits.append(poisson_upper(moving["entries"][key]) / (2 * p * (1 - p)) / moving["seconds"])
    return min(mine, default=math.nan), min(limits, default=math.nan)


HEADER = [
    "molecule", "atoms", "torsions", "wells", "acceptance", "of chains", "of network", "its raw ESS", "64 steps, 4 paths",
    "populations", "largest |z|, network to chains", "largest |z|, chains to tempering", "largest |z|, network to tempering",
    "samples a second", "MD at most", "ratio", "making counted", "made",
]  # fmt: skip


def measure(options: Options) -> Findings:
    """What is kept of every molecule, compared; in smoke mode all parts of one."""
    names = list(chosen().items())[: options.size(MOLECULES, 1)]
    rows = []
    for name, mol in names:
        parts = {kind: found for kind in PARTS if (found := known(kind, name, mol, options))}
        if "wells" in parts:
            rows.append(row_of(parts))
    anew, more = sampled_anew(names, rows, options)
    table = Table(f"{len(rows)} molecules, from MMFF94s alone", HEADER, [["" if x is None else x for x in row] for row in rows])

    def column(name: str) -> np.ndarray:
        return np.array([row[HEADER.index(name)] for row in rows if row[HEADER.index(name)] is not None], dtype=float)

    def median(what: str, name: str, floor: float | None = None, aim: float | None = None, **more) -> Figure:
        note = f"of {len(column(name))} molecules, from {column(name).min():.3g} to {column(name).max():.3g}."
        return Figure(what, float(np.median(column(name))), floor=floor, aim=aim, note=note, **more)

    figures = []
    if len(column("of network")):
        figures += [
            median("exact conformer populations, median raw acceptance of networks", "of network", 0.1, 0.4),
            median("the same, 64 steps and 4 paths", "64 steps, 4 paths", 0.1, 0.4),
        ]
    figures.append(median("exact conformer populations, median raw acceptance of wells, without a network", "acceptance", 0.1, 0.4))
    for what in ("network to chains", "chains to tempering", "network to tempering"):
        if len(z := column(f"largest |z|, {what}")):
            figures += agreement(what, z, int(column("populations").sum()))
    figures += anew
    if len(column("ratio")):
        against = "95 % upper limit of MD with 2 fs and heavy hydrogens"
        what = "samples of the slowest torsional state a CPU-second, chains of wells to Langevin MD, median"
        figures.append(median(what, "ratio", 10, 100, unit="x", compared=against))
        figures.append(median("the same, making of wells counted", "making counted", unit="x", compared=against))
    return Findings(figures, [table, *more], _notes())


def sampled_anew(names: list[tuple[str, Chem.Mol]], rows: list[list], options: Options) -> tuple[list[Figure], list[Table]]:
    """Molecules with a population beyond three standard errors, and what their longer runs with other seeds say."""
    pairs = {"network to chains": "network", "chains to tempering": "tempering", "network to tempering": "both"}
    first = {row[0]: [row[HEADER.index(f"largest |z|, {what}")] for what in pairs] for row in rows}
    beyond = [short(name) for name, _ in names if max((z or 0.0 for z in first[short(name)]), default=0.0) >= 3]
    found, left = [], []
    for name, mol in names if beyond and not options.quick else []:
        parts = {kind: part for kind in PARTS if (part := known(kind, name, mol, options, again=True))}
        if {"wells", "network", "tempering"} <= parts.keys():
            z = [max((abs(row["z"]) for row in pair_of(parts, kind) or ()), default=0.0) for kind in pairs.values()]
            found.append([short(name), *first[short(name)], *z, min(part["made"] for part in parts.values())[:10]])
        elif short(name) in beyond:
            left.append(short(name))
    if not found:
        return [], []
    worst = max(max(row[4:7]) for row in found)
    note = f"{', '.join(row[0] for row in found)}: {AGAIN} times as long, other seeds, wells and networks made anew." + (
        f" Not yet sampled anew: {', '.join(left)}." if left else ""
    )
    figure = Figure("largest |z| of the molecules beyond 3, sampled anew and longer", worst, floor=3.0, higher=False, note=note)
    header = ["molecule", *pairs, *(f"anew, {what}" for what in pairs), "made"]
    return [figure], [Table("Molecules beyond three standard errors, sampled anew: largest |z|", header, found)]


def agreement(what: str, z: np.ndarray, count: int) -> list[Figure]:
    """Molecules whose ``count`` populations all agree, by the raw limit of 3 and by the one that all of them together pass by chance."""
    chance, limit = 2 * stats.norm.sf(3) * count, float(stats.norm.isf(0.025 / max(1, count)))
    note = (
        f"{len(z)} molecules, {count} populations, largest {z.max():.2f}. Of as many independent normal numbers {chance:.2f} are expected "
        f"beyond 3, and none is with probability {math.exp(-chance):.2f}."
    )
    all_together = "all populations together exceed it with a probability of at most 5 % where methods agree (Bonferroni)."
    return [
        Figure(f"molecules with all |z| < 3, {what}", float(np.mean(z < 3)), floor=1.0, aim=1.0, note=note),
        Figure(f"molecules with all |z| < {limit:.2f}, {what}", float(np.mean(z < limit)), note=all_together),
    ]


def short(name: str) -> str:
    return name.removeprefix("omegacsd_")


def known(kind: str, name: str, mol: Chem.Mol, options: Options, again: bool = False) -> dict | None:
    """A part that is kept; made, in smoke mode."""
    return part(kind, name, mol, options, again) if options.quick or place_of(kind, name, again).exists() else None


def pair_of(parts: dict, kind: str) -> list[dict] | None:
    """Chains of wells compared with the network's weights, or with tempering; or, ``"both"``, the network's weights with tempering."""
    if kind == "both" and {"network", "tempering"} <= parts.keys():
        return compared(parts["network"]["model"]["populations"], parts["tempering"]["populations"], parts["tempering"]["ladders"] - 1)
    if kind not in parts:
        return None
    chains = parts["wells"]["chains"]["populations"]
    if kind == "network":
        return compared(parts[kind]["model"]["populations"], chains, WALKERS - 1)
    return compared(chains, parts[kind]["populations"], parts[kind]["ladders"] - 1)


def row_of(parts: dict) -> list:
    """A molecule's row of the table, None where a part is missing."""
    wells, network, moving = parts["wells"], parts.get("network"), parts.get("dynamics")
    found = [short(wells["name"]), wells["atoms"], len(wells["torsions"]), wells["wells"]["wells"]]
    found += [wells["wells"]["acceptance"], wells["chains"]["acceptance"]]
    slow = "model, 64 steps, 4 paths"
    found += [network["model"]["acceptance"], network["model"]["ess"], network[slow]["acceptance"]] if network else [None] * 3
    pairs = [pair_of(parts, kind) for kind in ("network", "tempering", "both")]
    z = [None if pair is None else max((abs(row["z"]) for row in pair), default=0.0) for pair in pairs]
    found += [sum(FEW < p < 1 - FEW for p, *_ in wells["chains"]["populations"].values()), *z]
    rate, limit = rates(wells["chains"], moving) if moving else (math.nan, math.nan)
    made = min(part["made"] for part in parts.values())[:10]
    if math.isnan(rate):
        return [*found, *[None] * 4, made]
    seconds, making = wells["chains"]["seconds"], wells["wells"]["making"]
    return [*found, rate, limit, rate / limit, rate / limit * seconds / (seconds + making), made]


def _notes() -> list[str]:
    return [
        f"Withheld molecules of at most {LARGEST} atoms, the first {MOLECULES} by a hash of their names; MMFF94s, 300 K. Size and number "
        "were set by the time that there was, before any was run. Column made: the day of a row's first part.",
        "Wells: a normal law about every minimum that distance geometry, turns of bonds and symmetry lead to, in internal coordinates, "
        "corrected by the energy around; no training. Networks learn from chains of them. Acceptance and ESS: raw independent proposals, "
        f"{DRAWS} of them (2048 with four paths), nothing clipped.",
        f"Chains: {WALKERS} of wells side by side for {CHAINS:.0f} CPU-s, a Langevin step and three proposals in turn, half of them begun "
        "in the wells by their weights, half in all alike. Their error and that of tempering is the largest of three: the scatter between "
        "chains, and half of what differs between first and second halves, and between even and odd chains. Networks: averages by raw "
        "weights, errors from the bootstrap. All are exact, by different means. Populations are those of each torsion's thirds of the "
        "turn, between 2 % and 98 % in either; z is the normal deviate of Welch's t, 0 where no population is in between.",
        f"Anew: {CHAINS * AGAIN:.0f} and {TEMPERING * AGAIN:.0f} CPU-s of chains and tempering, {AGAIN * DRAWS} proposals of a network "
        "trained anew, wherever a first |z| is 3 or more.",
        f"Tempering: {reference.LADDERS} independent ladders of {reference.RUNGS} walkers from 300 to {300 * reference.HOTTEST:.0f} K "
        f"for {TEMPERING:.0f} CPU-s, Langevin steps and turns of single torsions; it starts at all minima alike and knows no weights.",
        "Samples a second: p (1 - p) / variance of p between chains, of the slowest state, by processor time of the chains. MD: entries "
        f"into a state / (2 p (1 - p)), each counted, at their 95 % Poisson limit, in {DYNAMICS:.0f} CPU-s; only RDKit's forces and "
        "the integrator are charged. Of each the state that is slowest is taken.",
    ]


def side_by_side(workers: int, kinds: list[str], options: Options) -> None:
    """Parts of every molecule in processes; what is there already is not made again."""
    began, molecules = time.monotonic(), chosen()
    with ProcessPoolExecutor(workers) as pool:
        tasks = {pool.submit(part, kind, name, mol, options): f"{name} {kind}" for name, mol in molecules.items() for kind in kinds}
        for done in as_completed(tasks):
            failed = done.exception()
            said = f"failed: {failed!r}" if failed else f"{done.result()['cpu_seconds']:.0f} CPU-s"
            print(f"{time.monotonic() - began:.0f} s: {tasks[done]}, {said}", flush=True)


if __name__ == "__main__":
    KEPT.mkdir(parents=True, exist_ok=True)
    kinds = sys.argv[3:] or list(PARTS)
    if len(sys.argv) > 2 and sys.argv[1] in ("--molecule", "--again"):
        for kind in kinds:
            part(kind, sys.argv[2], chosen()[sys.argv[2]], Options(), again=sys.argv[1] == "--again")
    elif len(sys.argv) > 2 and sys.argv[1] == "--workers":
        side_by_side(int(sys.argv[2]), kinds, Options())
    else:
        command_line(__doc__, "conformer_populations", measure)
