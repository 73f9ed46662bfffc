"""Exact conformer populations of withheld molecules, from MMFF94s alone, against parallel tempering. Half an hour of one core.

Needs ../shared/data/conformer (DIG_CONFORMER names another place). Not part of make bench. What a molecule gave is kept in
runs/conformers-populations (DIG_POPULATIONS names another place), a file a part. Parts: wells, reference; and model, a network each,
two hours more, which is made when asked for: --molecule NAME PART..., or --workers N PART... for all molecules in N processes.
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
from pathlib import Path

from common import HERE, Figure, Findings, Options, Table, command_line, poisson_upper

import numpy as np  # isort: skip
import torch
from conformer_reference import HOTTEST, LADDERS, RUNGS, dynamics, indicators, positions_of, scattered, tempered, thirds
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
from dig_core.training.wells import Chains, equilibrium
from dig_plugins.rdkit import MMFFEnergy, reference_structure, torsions_of
from dig_plugins.rdkit.reference import read_conformer_set, withheld
from dig_plugins.rdkit.wells import conformer_wells

KEPT = Path(os.environ.get("DIG_POPULATIONS", HERE.parent / "runs" / "conformers-populations"))
MOLECULES, LARGEST = 20, 35
CONFORMERS = 100
TRAINING, TEMPERING, DYNAMICS, CHAINS = 120.0, 30.0, 6.0, 8.0
"""Processor seconds of a molecule: a network's steps, the reference, molecular dynamics, chains without a network."""
DRAWS = 16_384
WALKERS = 200
FEW = 0.02
"""Populations below are not compared: neither method says how wrong it is about what it saw a few times."""


def chosen() -> dict[str, Chem.Mol]:
    """Withheld molecules of no more than so many atoms, the first in the order of a hash of their names."""
    found = [r for r in read_conformer_set(DATA / "conformer_benchmark") if withheld(r.mol) and r.mol.GetNumAtoms() <= LARGEST]
    found.sort(key=lambda r: hashlib.sha256(r.name.encode()).digest())
    return {r.name: graph(r.mol) for r in found[:MOLECULES]}


def dug(mol: Chem.Mol, options: Options) -> dict:
    """Wells: what their raw proposals are worth, populations by chains of them, and what either cost."""
    began, energy, rng = time.process_time(), MMFFEnergy(mol, 300.0), torch.Generator().manual_seed(options.seed)
    wells = conformer_wells(mol, seed=options.seed, conformers=options.size(CONFORMERS, 20))
    held = equilibrium(wells, energy, rng, chains=options.size(200, 50), settle=options.size(40, 8), moves=8, stride=8).wells
    made = time.process_time() - began
    raw = weighed(Pool(held, energy, seed=options.seed + 1, batch=512), mol, options)
    return {"wells": {"wells": len(wells), "making": made, **raw}, "chains": chained(held, energy, mol, options)}


def modelled(mol: Chem.Mol, options: Options) -> dict:
    """A network trained on chains of wells: raw proposals, with one path and four."""
    began, energy, rng = time.process_time(), MMFFEnergy(mol, 300.0), torch.Generator().manual_seed(options.seed)
    wells = conformer_wells(mol, seed=options.seed, conformers=options.size(CONFORMERS, 20))
    sizes = {"chains": options.size(1000, 50), "settle": options.size(60, 8), "moves": options.size(200, 8), "stride": 4}
    held = equilibrium(wells, energy, rng, **sizes)
    dig, steps = trained(held, energy, options)
    record: dict = {"fit": {"seconds": time.process_time() - began, "steps": steps, "evaluations": held.evaluations}}
    record["model"] = weighed(Pool(dig.proposal(), energy, seed=options.seed + 2, batch=512), mol, options)
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


def weighed(pool: Pool, mol: Chem.Mol, options: Options) -> dict:
    """Raw proposals: what they accept, and the populations by their weights, with errors from the bootstrap."""
    began = time.process_time()
    found: Candidates = pool.take(options.size(DRAWS, 256))
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


def chained(wells: Wells, energy: MMFFEnergy, mol: Chem.Mol, options: Options) -> dict:
    """Metropolis chains side by side, a Langevin step and three independent proposals in turn; errors from what differs between them."""
    rng, seconds = torch.Generator().manual_seed(options.seed + 5), options.size(int(CHAINS), 1)
    index = torch.multinomial(wells.log_weight.exp(), options.size(WALKERS, 20), True, generator=rng)
    points, _ = wells.points(index, torch.randn(len(index), wells.mean.shape[1], generator=rng, dtype=torch.float64))
    here, visits, accepted, spent, began = Chains.start(wells, energy, points), [], [], 0.0, time.process_time()
    while spent < seconds or len(visits) < 8:
        for _ in range(3):
            here, share = here.independent(wells, energy, rng)
            accepted.append(share)
        here, _ = here.local(wells, energy, rng, 0.0)
        spent = time.process_time() - began
        visits.append(thirds(positions_of(wells, here.points), mol))
    visited = np.stack(visits[len(visits) // 4 :], 1)
    return {"acceptance": float(np.mean(accepted)), "seconds": spent * 0.75, "rounds": visited.shape[1], "populations": scattered(visited)}


def referred(mol: Chem.Mol, options: Options) -> dict:
    """Parallel tempering and molecular dynamics of the same energy."""
    energy = MMFFEnergy(mol, 300.0)
    wells = conformer_wells(mol, seed=options.seed + 100, conformers=options.size(CONFORMERS, 20), refinements=0)
    tempering, end = tempered(wells, energy, mol, options.size(int(TEMPERING), 2), options.seed)
    return {"tempering": tempering, "dynamics": dynamics(mol, end, options.size(int(DYNAMICS), 1), options.seed)}


PARTS = {"wells": dug, "reference": referred, "model": modelled}


def part(kind: str, name: str, mol: Chem.Mol, options: Options) -> dict:
    """What ``kind`` gives of a molecule, made once and kept."""
    place = KEPT / f"{name}.{kind}.json"
    if place.exists() and not options.quick:
        return json.loads(place.read_text())
    began, wall = time.process_time(), time.monotonic()
    mol = reference_structure(mol, seed=options.seed)
    record = {"name": name, "smiles": Chem.MolToSmiles(Chem.RemoveHs(mol)), "atoms": mol.GetNumAtoms(), "torsions": torsions_of(mol)}
    record |= PARTS[kind](mol, options)
    record |= {"cpu_seconds": time.process_time() - began, "wall_seconds": time.monotonic() - wall}
    if not options.quick:
        KEPT.mkdir(parents=True, exist_ok=True)
        write_atomically(place, json.dumps(record, indent=1).encode())
    return record


def compared(wells: dict, reference: dict) -> list[dict]:
    """Every population between FEW and 1 - FEW in either: the difference as a normal deviate, and samples a second."""
    rows, tempering, moving = [], reference["tempering"], reference["dynamics"]
    for key, (theirs, error) in tempering["populations"].items():
        mine, stderr = wells["chains"]["populations"][key]
        if not (FEW < theirs < 1 - FEW or FEW < mine < 1 - FEW):
            continue
        row = {"state": key, "chains": mine, "stderr": stderr, "tempered": theirs, "error": error}
        row["z"] = deviate(mine - theirs, stderr, error, tempering["ladders"] - 1)
        worth = mine * (1 - mine)
        row["rate"] = worth / stderr**2 / wells["chains"]["seconds"] if stderr else math.nan
        row["limit of MD"] = poisson_upper(moving["entries"][key]) / (2 * worth) / moving["seconds"] if worth else math.nan
        rows.append(row)
    return rows


def deviate(difference: float, one: float, other: float, dof: int) -> float:
    """A normal deviate of the same probability as Welch's t; ``other`` has ``dof`` degrees of freedom, ``one`` very many."""
    total = math.hypot(one, other, 1e-9)
    freedom = dof * (total / max(other, 1e-9)) ** 4
    return float(math.copysign(-stats.norm.ppf(stats.t.sf(abs(difference) / total, min(freedom, 1e6))), difference))


def measure(options: Options) -> Findings:
    """Every molecule in turn, what is there already read; networks of those that have one."""
    found, networks = [], []
    for name, mol in list(chosen().items())[: options.size(MOLECULES, 1)]:
        wells, reference = (part(kind, name, mol, options) for kind in ("wells", "reference"))
        there = (KEPT / f"{name}.model.json").exists() and not options.quick
        networks.append(part("model", name, mol, options) if there else None)
        found.append((wells, reference, compared(wells, reference)))
    rows = [row_of(*one) for one in found]
    header = [
        "molecule", "atoms", "torsions", "wells", "acceptance", "raw ESS", "populations", "largest |z|", "samples a second", "MD at most",
        "ratio", "ratio, making of wells counted", "making of wells, CPU-s",
    ]  # fmt: skip
    column = {name: np.array([row[k] for row in rows], dtype=object) for k, name in enumerate(header)}
    every, worst = int(sum(column["populations"])), float(max(column["largest |z|"]))
    figures = [
        Figure(
            "exact conformer populations, median raw acceptance", float(np.median(column["acceptance"].astype(float))), floor=0.1, aim=0.4,
            note=f"{int((column['acceptance'] >= 0.1).sum())} of {len(rows)} molecules are at 0.1 or above; no network.",
        ),
        Figure(
            "exact conformer populations, molecules with all |z| < 3", float(np.mean(column["largest |z|"] < 3)), floor=1.0, aim=1.0,
            note=f"largest of {every} populations {worst:.2f}; {2 * stats.norm.sf(3) * every:.1f} beyond 3 are expected by chance.",
        ),
        Figure(
            "samples of the slowest torsional state a CPU-second, ratio to Langevin MD, median",
            float(np.nanmedian(column["ratio"].astype(float))), "x", floor=10, aim=100,
            compared="95 % upper limit of MD with 2 fs and heavy hydrogens",
        ),
        Figure(
            "the same, making of wells counted", float(np.nanmedian(column["ratio, making of wells counted"].astype(float))), "x",
            note=f"chains of {CHAINS:.0f} CPU-s; the ratio grows with their length.",
        ),
    ]  # fmt: skip
    tables = [Table("Wells of a molecule, from MMFF94s alone", header, rows)]
    trained_ones = [(one[0], network) for one, network in zip(found, networks, strict=True) if network]
    if trained_ones:
        extra, table = of_networks(trained_ones)
        figures, tables = [*figures, *extra], [*tables, table]
    return Findings(figures, tables, _notes())


def of_networks(both: list[tuple[dict, dict]]) -> tuple[list[Figure], Table]:
    """What networks trained on chains of wells are worth, beside the wells."""
    slow = "model, 64 steps, 4 paths"
    rows = [
        [m["name"].removeprefix("omegacsd_"), w["wells"]["acceptance"], m["model"]["acceptance"], m["model"]["ess"], m[slow]["acceptance"],
         m["fit"]["steps"], round(m["fit"]["seconds"])]
        for w, m in both
    ]  # fmt: skip
    one, four = (float(np.median([m[kind]["acceptance"] for _, m in both])) for kind in ("model", slow))
    figures = [
        Figure(f"networks trained on chains of wells, {len(both)} molecules, median raw acceptance", one, floor=0.1, aim=0.4),
        Figure("the same, 64 steps and 4 paths", four, floor=0.1, aim=0.4),
    ]
    header = ["molecule", "of wells", "of the network", "its raw ESS", "64 steps, 4 paths", "training steps", "training, CPU-s"]
    return figures, Table("Networks: raw acceptance", header, rows)


def row_of(wells: dict, reference: dict, populations: list[dict]) -> list:
    """A molecule's row of the table."""
    known, chains = wells["wells"], wells["chains"]
    rate, limit = (min((p[key] for p in populations if p[key] > 0), default=math.nan) for key in ("rate", "limit of MD"))
    whole = chains["seconds"] / (chains["seconds"] + known["making"])
    return [
        wells["name"].removeprefix("omegacsd_"), wells["atoms"], len(wells["torsions"]), known["wells"], known["acceptance"], known["ess"],
        len(populations), max((abs(p["z"]) for p in populations), default=0.0), rate, limit, rate / limit, rate / limit * whole,
        round(known["making"], 1),
    ]  # fmt: skip


def _notes() -> list[str]:
    return [
        f"Withheld molecules of at most {LARGEST} atoms, the first {MOLECULES} by a hash of their names; MMFF94s, 300 K. Size and number "
        "were set by the time that there was, before any was run.",
        f"Wells: a normal law about every minimum that {CONFORMERS} conformers of distance geometry and symmetry lead to, in internal "
        f"coordinates, corrected by the energy around; no training. Raw: {DRAWS} independent proposals, nothing clipped.",
        f"Populations: {WALKERS} chains for {CHAINS:.0f} CPU-s, a Langevin step and three independent proposals in turn, errors from "
        "the scatter of the chains. Those of each torsion's thirds of the turn, between 2 % and 98 %.",
        f"Reference: {LADDERS} independent ladders of {RUNGS} walkers from 300 to {300 * HOTTEST:.0f} K for {TEMPERING:.0f} CPU-s, "
        "Langevin steps and turns of single torsions; it starts at all minima alike and knows nothing of weights; its error is that "
        "between ladders; z is the normal deviate of Welch's t.",
        "Samples a second: p (1 - p) / variance of p of the slowest state, by processor time of the chains. MD: entries into a state / "
        f"(2 p (1 - p)), each counted, at their 95 % Poisson limit, in {DYNAMICS:.0f} CPU-s; only what RDKit's forces and the integrator "
        "take. Of each the state that is slowest is taken.",
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
    kinds = sys.argv[3:] or ["wells", "reference"]
    if len(sys.argv) > 2 and sys.argv[1] == "--molecule":
        for kind in kinds:
            part(kind, sys.argv[2], chosen()[sys.argv[2]], Options())
    elif len(sys.argv) > 2 and sys.argv[1] == "--workers":
        side_by_side(int(sys.argv[2]), kinds, Options())
    else:
        command_line(__doc__, "conformer_populations", measure)
