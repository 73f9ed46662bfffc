"""The long parallel-tempering reference of the alanine dipeptide: the run itself, and the averages that ship beside the model.

python benchmarks/reference.py --run runs/reference.npz       makes the frames: 26 million MD steps, some 15 minutes on one core
python benchmarks/reference.py --frames runs/reference.npz    writes dig_plugins/models/alanine-dipeptide-reference.npz

The run does not use the model: 2 fs steps with heavy hydrogens, Langevin dynamics, neighbour exchanges every 500 steps, one
frame of the coldest temperature after each.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from common import REFERENCE
from openmm import app

from dig_core.files import write_atomically
from dig_core.montecarlo.analysis import block_average, free_energy_profile
from dig_plugins.openmm.frames import heavy_hydrogens
from dig_plugins.openmm.observables import backbone_dihedrals, dipeptide_observables
from dig_plugins.openmm.systems import ModelSystem, model_system
from dig_plugins.openmm.tempering import parallel_tempering

TEMPERATURES = np.geomspace(300.0, 1000.0, 8)
ITERATIONS, DISCARDED, STEPS, TIMESTEP, SEED = 6500, 100, 500, 2.0, 2
BLOCKS = 40
BINS = 36


def run(out: Path) -> None:
    """Parallel tempering at the sizes above; 52 ns over all temperatures."""
    model = model_system("alanine-dipeptide")
    simulation = heavy_simulation(model, SEED)
    simulation.minimizeEnergy()
    frames = parallel_tempering(simulation, TEMPERATURES, ITERATIONS, steps=STEPS, seed=SEED, discard=DISCARDED)
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, positions=frames.positions.astype(np.float32), energies=frames.energies, replica=frames.replica)
    print(f"{len(frames.positions)} frames, neighbours exchanged at a rate of {frames.swap_rate:.2f}")


def heavy_simulation(model: ModelSystem, seed: int, timestep: float = TIMESTEP) -> app.Simulation:
    """Langevin dynamics of the model's system with hydrogens of 8 dalton."""
    return model._replace(system=heavy_hydrogens(model.topology, model.system)).simulation(timestep=timestep, seed=seed)


def summarise(positions: np.ndarray, energies: np.ndarray, topology: app.Topology) -> dict[str, np.ndarray]:
    """Means and standard errors (from 40 blocks) of the observables, the phi profile, and what the run cost."""
    observables = {"energy": energies, **dipeptide_observables(topology, positions)}
    estimates = [block_average(x, BLOCKS) for x in observables.values()]
    phi = backbone_dihedrals(topology).measure(positions)[0][:, 0]
    edges = np.linspace(-np.pi, np.pi, BINS + 1)
    profile = free_energy_profile(
        phi, edges, block=len(phi) // BLOCKS, n_bootstrap=500, rng=np.random.default_rng(SEED)
    )
    iterations = len(positions) + DISCARDED
    evaluations = iterations * STEPS * len(TEMPERATURES)
    return {
        "names": np.array(list(observables)),
        "means": np.array([e.value for e in estimates]),
        "stderr": np.array([e.stderr for e in estimates]),
        "deviations": np.array([np.std(x) for x in observables.values()]),
        "n_blocks": np.array(BLOCKS),
        "phi_centres": profile.centres,
        "phi_free_energy": profile.free_energy,
        "phi_stderr": profile.stderr,
        "n_frames": np.array(len(positions)),
        "aggregate_ns": np.array(evaluations * TIMESTEP * 1e-6),
        "force_evaluations": np.array(evaluations),
        "temperatures": TEMPERATURES,
        "steps_per_iteration": np.array(STEPS),
        "timestep_fs": np.array(TIMESTEP),
        "seed": np.array(SEED),
    }


def main() -> None:
    """Parse the command line and do one of the two stages, or both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="make the frames and write them here (.npz)")
    parser.add_argument(
        "--frames", type=Path, help="summarise these frames: positions (F, N, 3) nm, energies (F,) kJ/mol"
    )
    parser.add_argument("--summary", type=Path, default=REFERENCE, help="where the averages go")
    given = parser.parse_args()
    if given.run is None and given.frames is None:
        parser.error("give --run, --frames, or both.")
    if given.run is not None:
        run(given.run)
    if given.frames is not None:
        with np.load(given.frames) as held:
            found = summarise(held["positions"].astype(float), held["energies"], _topology())
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **found)
        write_atomically(given.summary, buffer.getvalue())
        for name, mean, error in zip(found["names"], found["means"], found["stderr"], strict=True):
            print(f"{name:36s} {mean:10.4f} +- {error:.4f}")


def _topology() -> app.Topology:
    from dig_plugins import models

    return app.PDBFile(str(Path(models.__file__).with_name("alanine-dipeptide.pdb"))).topology


if __name__ == "__main__":
    main()
