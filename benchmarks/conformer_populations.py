"""Exact conformer populations of withheld molecules, a model each, against parallel tempering. Two hours of one core.

Needs ../shared/data/conformer (DIG_CONFORMER names another place). Not part of make bench. What a molecule gave is kept in
runs/conformers-populations (DIG_POPULATIONS names another place), two files each. Molecules can be made side by side: --molecule NAME
makes one, --workers N all of them in N processes, --workers N SECONDS with references cut short at the end of so much time.
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
TRAINING, TEMPERING, DYNAMICS, CHAINS = 120.0, 100.0, 30.0, 12.0
"""Processor seconds of a molecule: the network's steps, the reference, molecular dynamics, chains without a network."""
LIMIT = math.inf
"""time.monotonic() by when references have to be done."""
DRAWS = 16_384
WALKERS = 200
FEW = 0.02
"""Populations below are not compared: neither method says how wrong it is about what it saw a few times."""


def chosen() -> dict[str, Chem.Mol]:
    """Withheld molecules of no more than so many atoms, the first in the order of a hash of their names."""
    found = [r for r in read_conformer_set(DATA / "conformer_benchmark") if withheld(r.mol) and r.mol.GetNumAtoms() <= LARGEST]
    found.sort(key=lambda r: hashlib.sha256(r.name.encode()).digest())
    return {r.name: graph(r.mol) for r in found[:MOLECULES]}


def modelled(mol: Chem.Mol, options: Options) -> dict:
    """Wells, chains of them, a network trained on these: what each says of the populations, and what it cost."""
    began, energy, rng = time.process_time(), MMFFEnergy(mol, 300.0), torch.Generator().manual_seed(options.seed)
    wells = conformer_wells(mol, seed=options.seed, conformers=options.size(200, 20))
    sizes = {"chains": options.size(1000, 50), "settle": options.size(60, 8), "moves": options.size(200, 8), "stride": 4}
    held = equilibrium(wells, energy, rng, **sizes)
    made = time.process_time()
    raw = Pool(held.wells, energy, seed=options.seed + 1, batch=512)
    record: dict = {"wells": {"wells": len(wells), "making": made - began, "on_the_way": held.acceptance, **weighed(raw, mol, options)}}
    record["chains"] = chained(held.wells, energy, mol, options)
    fitted = time.process_time()
    dig, steps = trained(held, energy, options)
    record["fit"] = {"seconds": made - began + time.process_time() - fitted, "steps": steps, "evaluations": held.evaluations}
    record["model"] = weighed(Pool(dig.proposal(), energy, seed=options.seed + 2, batch=512), mol, options)
    short = options.size(2048, 64)
    for paths, kernels in ((4, 32), (4, 64)):
        started = time.process_time()
        found = Pool(dig.proposal(steps=kernels, paths=paths), energy, seed=options.seed + 3, batch=512).take(short)
        numbers = {"seconds": time.process_time() - started, "proposals": short, "acceptance": metropolis_acceptance(found.log_weight)}
        record[f"model, {kernels} steps, {paths} paths"] = {**numbers, "ess": effective_sample_size(found.log_weight)}
    return record


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
    wells = conformer_wells(mol, seed=options.seed + 100, conformers=options.size(200, 20), refinements=0)
    left = LIMIT - time.monotonic()
    short = max(0.1, min(1.0, left / (TEMPERING + DYNAMICS)))
    tempering, end = tempered(wells, energy, mol, short * options.size(int(TEMPERING), 2), options.seed)
    return {"tempering": tempering, "dynamics": dynamics(mol, end, short * options.size(int(DYNAMICS), 1), options.seed)}


PARTS = {"model": modelled, "reference": referred}


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


def compared(model: dict, reference: dict) -> list[dict]:
    """Every population between FEW and 1 - FEW in either: the difference by Welch's t as a normal deviate, and samples a second."""
    rows, dof = [], reference["tempering"]["ladders"] - 1
    moving = reference["dynamics"]
    for key, (theirs, error) in reference["tempering"]["populations"].items():
        mine, stderr = model["model"]["populations"][key]
        wells, its = model["chains"]["populations"][key]
        if not (FEW < theirs < 1 - FEW or FEW < mine < 1 - FEW):
            continue
        row = {"state": key, "model": mine, "stderr": stderr, "chains": wells, "of chains": its, "tempered": theirs, "error": error}
        row |= {"z": deviate(mine - theirs, stderr, error, dof), "z of chains": deviate(wells - theirs, its, error, dof)}
        p = min(max(wells, 1e-3), 1 - 1e-3)
        row["rate"] = p * (1 - p) / stderr**2 / model["model"]["seconds"] if stderr else math.nan
        row["rate of chains"] = p * (1 - p) / its**2 / model["chains"]["seconds"] if its else math.nan
        row["rate of MD"] = moving["entries"][key] / (2 * p * (1 - p)) / moving["seconds"]
        row["limit of MD"] = poisson_upper(moving["entries"][key]) / (2 * p * (1 - p)) / moving["seconds"]
        rows.append(row)
    return rows


def deviate(difference: float, one: float, other: float, dof: int) -> float:
    """A normal deviate of the same probability as Welch's t; ``other`` has ``dof`` degrees of freedom, ``one`` very many."""
    total = math.hypot(one, other, 1e-9)
    freedom = dof * (total / max(other, 1e-9)) ** 4
    return float(math.copysign(-stats.norm.ppf(stats.t.sf(abs(difference) / total, min(freedom, 1e6))), difference))


def measure(options: Options) -> Findings:
    """Every molecule in turn, what is there already read."""
    found = []
    for name, mol in list(chosen().items())[: options.size(MOLECULES, 1)]:
        model, reference = (part(kind, name, mol, options) for kind in PARTS)
        found.append((model, reference, compared(model, reference)))
    rows = [row_of(*one) for one in found]
    header = [
        "molecule", "atoms", "torsions", "wells", "acceptance of wells", "acceptance of the model", "its raw ESS", "populations",
        "largest |z|", "of chains of wells", "samples a second", "MD at most", "ratio", "ratio with training", "training, CPU-s",
    ]  # fmt: skip
    column = {name: np.array([row[k] for row in rows], dtype=object) for k, name in enumerate(header)}
    middle = {name: float(np.median(column[name].astype(float))) for name in header[1:]}
    slow = float(np.median([model["model, 64 steps, 4 paths"]["acceptance"] for model, _, _ in found]))
    every, largest = int(sum(column["populations"])), f"of {int(sum(column['populations']))} populations, largest |z| "
    worst, worst_chains = (float(max(column[name])) for name in ("largest |z|", "of chains of wells"))
    expected = f"{2 * stats.norm.sf(3) * every:.2f} beyond 3 are expected by chance"
    figures = [
        Figure("exact conformer populations, median raw acceptance", middle["acceptance of the model"], floor=0.1, aim=0.4),
        Figure("the same, with 64 steps and 4 paths", slow, floor=0.1, aim=0.4),
        Figure("the same, of wells without a network", middle["acceptance of wells"], floor=0.1, aim=0.4),
        Figure(
            "exact conformer populations, molecules with all |z| < 3", float(np.mean(column["largest |z|"] < 3)), floor=1.0, aim=1.0,
            note=f"{largest}{worst:.2f}; {expected}",
        ),
        Figure(
            "the same, chains of wells", float(np.mean(column["of chains of wells"] < 3)), floor=1.0, aim=1.0,
            note=f"{largest}{worst_chains:.2f}",
        ),
        Figure(
            "samples of the slowest torsional state a CPU-second, ratio to Langevin MD, median", middle["ratio"], "x", floor=10, aim=100,
            compared="95 % upper limit of MD with 2 fs and heavy hydrogens",
        ),
        Figure(
            "the same, training counted", middle["ratio with training"], "x", note=f"{DRAWS} proposals; the ratio grows with their number."
        ),
    ]  # fmt: skip
    return Findings(figures, [Table("A model a molecule, from MMFF94s alone", header, rows)], _notes())


def row_of(model: dict, reference: dict, populations: list[dict]) -> list:
    """A molecule's row of the table."""
    z, chains = (max((abs(p[key]) for p in populations), default=0.0) for key in ("z", "z of chains"))
    rate, limit = (min((p[key] for p in populations if p[key] > 0), default=math.nan) for key in ("rate", "limit of MD"))
    spent = model["model"]["seconds"]
    ratio, making = rate / limit, model["wells"]["making"] + model["fit"]["seconds"]
    return [
        model["name"].removeprefix("omegacsd_"), model["atoms"], len(model["torsions"]), model["wells"]["wells"],
        model["wells"]["acceptance"], model["model"]["acceptance"], model["model"]["ess"], len(populations), z, chains, rate, limit, ratio,
        ratio * spent / (spent + making), round(making),
    ]  # fmt: skip


def _notes() -> list[str]:
    return [
        f"Withheld molecules of at most {LARGEST} atoms, the first {MOLECULES} by a hash of their names; MMFF94s, 300 K. Size and number "
        "were set by the time that there was, before any was run.",
        "Wells: a normal law about every minimum that 200 conformers of distance geometry and symmetry lead to, in internal coordinates, "
        "middles and widths corrected by the energy around them; no training. Chains of them give the frames that a network is "
        f"trained on for {TRAINING:.0f} CPU-s. Acceptance and ESS are of {DRAWS} raw independent proposals each, nothing clipped.",
        f"Reference: {LADDERS} independent ladders of {RUNGS} walkers from 300 to {300 * HOTTEST:.0f} K for {TEMPERING:.0f} CPU-s, "
        "Langevin steps and turns of single torsions; it starts at all minima alike and knows nothing of weights or model; its error is "
        "that between ladders. Populations are those of each torsion's thirds of the turn, between 2 % and 98 %; z is the normal deviate "
        "of Welch's t.",
        "Samples a second: p (1 - p) / variance of p of the slowest state, by processor time of proposals, weights and energies. MD: "
        f"entries into a state / (2 p (1 - p)), each counted, at their 95 % Poisson limit, in {DYNAMICS:.0f} CPU-s; only what RDKit's "
        "forces and the integrator take. Of each the state that is slowest is taken.",
    ]


def side_by_side(workers: int, options: Options) -> None:
    """Every part of every molecule in processes, the long ones first; what is there already is not made again."""
    began, molecules = time.monotonic(), chosen()
    with ProcessPoolExecutor(workers) as pool:
        tasks = {pool.submit(part, kind, name, mol, options): f"{name} {kind}" for kind in PARTS for name, mol in molecules.items()}
        for done in as_completed(tasks):
            failed = done.exception()
            said = f"failed: {failed!r}" if failed else f"{done.result()['cpu_seconds']:.0f} CPU-s"
            print(f"{time.monotonic() - began:.0f} s: {tasks[done]}, {said}", flush=True)


if __name__ == "__main__":
    KEPT.mkdir(parents=True, exist_ok=True)
    if len(sys.argv) == 3 and sys.argv[1] == "--molecule":
        for kind in PARTS:
            part(kind, sys.argv[2], chosen()[sys.argv[2]], Options())
    elif len(sys.argv) in (3, 4) and sys.argv[1] == "--workers":
        LIMIT = time.monotonic() + float(sys.argv[3]) if len(sys.argv) == 4 else LIMIT
        side_by_side(int(sys.argv[2]), Options())
    else:
        command_line(__doc__, "conformer_populations", measure)
