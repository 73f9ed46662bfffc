"""The recipe of the shipped model ``alanine-dipeptide``: frames, training, reweighting, card. Run it to make the checkpoint again.

python -m dig_plugins.openmm.recipes.alanine_dipeptide --out runs/alanine-dipeptide

Everything is seeded and resumable: a stage whose file exists in the output directory is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path

import numpy as np
import openmm as mm
import torch
from openmm import app, unit

from dig_core.coordinates import Internal
from dig_core.diffusion import Diffusion, Euclidean, Joint, Karras, LogSNR, Torus
from dig_core.dig import Card, DiG
from dig_core.montecarlo.analysis import effective_sample_size, metropolis_acceptance
from dig_core.montecarlo.chain import Pool
from dig_core.nn import ResidualMLP
from dig_core.score import NoiseScore
from dig_core.training.draws import reweighted_frames
from dig_core.training.frames import frames_of
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Denoising, Frames
from dig_core.types import Geometry
from dig_plugins import models
from dig_plugins.openmm.convert import describe
from dig_plugins.openmm.energy import OpenMMEnergy
from dig_plugins.openmm.frames import fan_out, heavy_hydrogens
from dig_plugins.openmm.tempering import parallel_tempering

log = logging.getLogger(__name__)

TEMPERATURE = 300.0
FORCE_FIELD = ("amber99sbildn.xml", "amber99_obc.xml")
STRUCTURE = Path(models.__file__).with_name("alanine-dipeptide.pdb")
LADDER = np.geomspace(TEMPERATURE, 1000.0, 8)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Sizes of the recipe; the defaults made the shipped checkpoint."""

    seed: int = 1
    tempering: int = 5000  # iterations of 250 steps of 2 fs at each of eight temperatures
    snapshots: int = 40  # of each tempered frame, 25 steps apart
    width: int = 256
    blocks: int = 4
    first_steps: int = 4000
    proposals: int = 400_000  # a round, weighed by the first model to make the frames of the second stage
    rounds: int = 3
    second_steps: int = 15_000
    batch: int = 1024
    path_steps: int = 32


def simulation_at(system: mm.System, topology: app.Topology, friction: float, seed: int) -> app.Simulation:
    """Langevin dynamics at 300 K with 2 fs steps and heavy hydrogens on the Reference platform, the fastest for 22 atoms."""
    integrator = mm.LangevinMiddleIntegrator(TEMPERATURE * unit.kelvin, friction / unit.picosecond, 2 * unit.femtosecond)
    integrator.setRandomNumberSeed(seed)
    reference = mm.Platform.getPlatformByName("Reference")
    return app.Simulation(topology, heavy_hydrogens(topology, system), integrator, reference)


def make_frames(recipe: Recipe, topology, system, positions, out: Path) -> np.ndarray:
    """(F, N, 3) nm at 300 K: parallel tempering for the slow torsions, fanned out for the fast motions."""
    slow, all_frames = out / "tempered.npz", out / "frames.npz"
    if not slow.exists():
        simulation = simulation_at(system, topology, 1.0, recipe.seed)
        simulation.context.setPositions(positions)
        simulation.minimizeEnergy()
        tempered = parallel_tempering(simulation, LADDER, recipe.tempering, steps=250, seed=recipe.seed)
        log.info("parallel tempering: %d frames, swap rate %.2f", len(tempered.positions), tempered.swap_rate)
        np.savez(slow, positions=tempered.positions.astype(np.float32))
    if not all_frames.exists():
        simulation = simulation_at(system, topology, 5.0, recipe.seed + 1)
        simulation.context.setPositions(positions)
        frames = fan_out(simulation, np.load(slow)["positions"], recipe.snapshots, seed=recipe.seed + 1)
        np.savez(all_frames, positions=frames)
    return np.load(all_frames)["positions"]


def build(recipe: Recipe, coordinates: Internal) -> NoiseScore:
    """An untrained score model: torsions on a torus, everything else standardised, a residual network over both."""
    sizes = {"shape": len(coordinates.centre), "torsion": len(coordinates.torsion_atoms)}
    process = Joint(
        shape=Diffusion(Euclidean(sizes["shape"]), LogSNR(4.5, -4.0)), torsion=Diffusion(Torus(sizes["torsion"]), Karras(0.05, 2.5))
    )
    network = ResidualMLP(sizes, ["torsion"], width=recipe.width, blocks=recipe.blocks, precision="bfloat16", seed=recipe.seed)
    return NoiseScore(network, process)


def measure(dig: DiG, energy: OpenMMEnergy, n: int = 4096, seed: int = 99) -> dict:
    """Raw effective sample size and acceptance of ``n`` fresh path proposals."""
    log_weight = Pool(dig.proposal(), energy, seed=seed, batch=512).take(n).log_weight
    return {
        "steps": dig.card.steps,
        "raw_ess": round(effective_sample_size(log_weight), 4),
        "acceptance": round(metropolis_acceptance(log_weight), 4),
        "proposals": n,
        "script": "dig_plugins/openmm/recipes/alanine_dipeptide.py",
    }


def train(recipe: Recipe, out: Path) -> DiG:
    """All stages; returns the finished model, also saved as ``out/alanine-dipeptide.safetensors``."""
    out.mkdir(parents=True, exist_ok=True)
    pdb = app.PDBFile(str(STRUCTURE))
    system = app.ForceField(*FORCE_FIELD).createSystem(pdb.topology, nonbondedMethod=app.NoCutoff, constraints=None)
    positions = pdb.getPositions(asNumpy=True)
    descriptor, energy = describe(pdb.topology, system, positions), OpenMMEnergy(system, TEMPERATURE)
    frames = make_frames(recipe, pdb.topology, system, positions, out)
    geometry = Geometry(torch.from_numpy(frames).double() * 10)
    count = max(2, len(frames) // 20)  # the last of the run: whole tempered stretches, not shuffled neighbours
    coordinates = Internal.from_frames(descriptor, Geometry(geometry.positions[:-count]))
    everything = frames_of(coordinates, descriptor, geometry, energy)
    training, validation = (everything.take(i) for i in torch.arange(len(frames)).split([len(frames) - count, count]))
    validation = validation.take(torch.arange(0, count, max(1, count // 4000)))

    model = build(recipe, coordinates)
    config = LoopConfig(steps=recipe.first_steps, batch=recipe.batch, every=1000, seed=recipe.seed)
    held_out = Denoising(validation, descriptor)
    first = optimise(model, Denoising(training, descriptor), config, validation=held_out, directory=out / "first")
    if not first.finished:
        raise SystemExit("interrupted; run the same command again to go on.")
    dig = DiG(first.model.requires_grad_(False), coordinates, descriptor, Card(temperature=TEMPERATURE, steps=recipe.path_steps))
    dig.save(out / "first.safetensors")
    log.info("first stage: %s", measure(dig, energy))

    own = own_frames(recipe, dig, energy, out)
    model.requires_grad_(True)
    config = dataclasses.replace(config, steps=recipe.second_steps, seed=recipe.seed + 1)
    second = optimise(model, Denoising(own, descriptor), config, validation=held_out, directory=out / "second")
    if not second.finished:
        raise SystemExit("interrupted; run the same command again to go on.")
    card = Card(
        name="alanine-dipeptide",
        system="ACE-ALA-NME, 22 atoms, implicit solvent, no constraints",
        energy=" + ".join(FORCE_FIELD),
        temperature=TEMPERATURE,
        steps=recipe.path_steps,
        history=[
            {"recipe": dataclasses.asdict(recipe), "note": "about an hour of one core in all"},
            {"stage": "denoising, blended with forces", "frames": len(training), "validation": first.history[-1:]},
            {"stage": "the same on the model's reweighted samples", "frames": len(own), "validation": second.history[-1:]},
        ],
        intended_use="Monte Carlo proposals and reweighting at 300 K with this force field",
        limits="one molecule, one temperature; other energies are sampled exactly but less efficiently",
    )
    dig = DiG(second.model.requires_grad_(False), coordinates, descriptor, card)
    dig = dataclasses.replace(dig, card=dataclasses.replace(card, measured=measure(dig, energy, n=20_000)))
    dig.save(out / "alanine-dipeptide.safetensors")
    log.info("finished: %s", dig.card.measured)
    return dig


def own_frames(recipe: Recipe, dig: DiG, energy: OpenMMEnergy, out: Path) -> Frames:
    """Independent frames of the exact ensemble, made by the first model and its weights."""
    rounds = [own_round(recipe, dig, energy, out, number) for number in range(recipe.rounds)]
    parts = {kind: {n: torch.cat([getattr(r, kind)[n] for r in rounds]) for n in getattr(rounds[0], kind)} for kind in ("state", "force")}
    return Frames(parts["state"], parts["force"])


def own_round(recipe: Recipe, dig: DiG, energy: OpenMMEnergy, out: Path, number: int) -> Frames:
    """One round of proposals, resampled. Rounds do not depend on each other and may be made side by side."""
    file = out / f"own-{number}.npz"
    if not file.exists():
        found = reweighted_frames(dig, energy, recipe.proposals, seed=recipe.seed + 2 + number, batch=512)
        log.info("reweighted: %d frames from raw ESS %.3f", len(found.frames), found.ess)
        arrays = {f"{kind}.{n}": x.numpy() for kind in ("state", "force") for n, x in getattr(found.frames, kind).items()}
        np.savez(file, **arrays)
    with np.load(file) as held:
        return Frames(*({k.split(".")[1]: torch.from_numpy(held[k]) for k in held if k.startswith(kind)} for kind in ("state", "force")))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    for field in dataclasses.fields(Recipe):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    given = vars(parser.parse_args())
    out, threads = given.pop("out"), given.pop("threads")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    train(Recipe(**given), out)


if __name__ == "__main__":
    main()
