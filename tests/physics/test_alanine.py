"""The shipped model's chain on the alanine dipeptide gives the averages of long parallel tempering, made without the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openmm")
from openmm import app

from dig_core.montecarlo.analysis import Estimate, block_average, free_energy_profile
from dig_plugins import models
from dig_plugins.openmm.convert import reduced_unit, to_geometry
from dig_plugins.openmm.montecarlo import DiGMonteCarlo
from dig_plugins.openmm.observables import LEFT_HANDED, backbone_dihedrals, dipeptide_observables
from dig_plugins.openmm.systems import ModelSystem, model_system

NAME = "alanine-dipeptide"
REFERENCE = np.load(Path(models.__file__).with_name(f"{NAME}-reference.npz"))
"""Made by benchmarks/reference.py."""


def run(blocks: int, *, md_steps: int, proposals: int, seed: int) -> tuple[np.ndarray, DiGMonteCarlo]:
    """States (F, N, 3) nm of a chain after a tenth that is not kept, and the chain."""
    chain = DiGMonteCarlo(
        model_system(NAME).simulation(seed=seed), models.load(NAME), md_steps=md_steps, proposals=proposals, seed=seed
    )
    chain.step(blocks // 10)
    return np.concatenate([chain.step().positions for _ in range(blocks)]), chain


def averages(positions: np.ndarray, chain: DiGMonteCarlo, blocks: int) -> dict[str, Estimate]:
    u = chain.energy(to_geometry(positions)).numpy()
    series = {
        "energy": u * reduced_unit(chain.temperature),
        **dipeptide_observables(chain.simulation.topology, positions),
    }
    return {name: block_average(x, blocks) for name, x in series.items()}


def z_scores(found: dict[str, Estimate]) -> dict[str, float]:
    rows = zip(REFERENCE["names"], REFERENCE["means"], REFERENCE["stderr"], strict=True)
    return {str(n): float((found[n].value - mean) / np.hypot(found[n].stderr, error)) for n, mean, error in rows}


def test_reference_holds_what_is_compared():
    topology = model_system(NAME).topology
    names = ["energy", *dipeptide_observables(topology, model_system(NAME).positions[None])]
    assert [*REFERENCE["names"]] == names and len(names) >= 20
    assert REFERENCE["aggregate_ns"] > 50 and np.all(REFERENCE["stderr"] > 0)
    assert len(REFERENCE["phi_centres"]) == len(REFERENCE["phi_free_energy"]) == len(REFERENCE["phi_stderr"]) == 36


def test_proposals_alone_agree_with_parallel_tempering():
    positions, chain = run(20, md_steps=0, proposals=256, seed=11)
    z = z_scores(averages(positions, chain, 20))
    # Twenty blocks: an error known to a sixth, hence wider limits than of the long run.
    assert max(map(abs, z.values())) < 4 and np.square([*z.values()]).mean() < 2, z
    assert chain.statistics.acceptance > 0.3 and not any(chain.statistics.failed[r] for r in ("energy", "density"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("md_steps", "proposals", "blocks"), [(0, 256, 160), (500, 32, 1200)], ids=["proposals", "mixed"]
)
def test_long_chains_agree_with_parallel_tempering(md_steps, proposals, blocks):
    positions, chain = run(blocks, md_steps=md_steps, proposals=proposals, seed=1 + (md_steps > 0))
    z = z_scores(averages(positions, chain, 40))
    assert max(map(abs, z.values())) < 3, z

    phi = backbone_dihedrals(chain.simulation.topology).measure(positions)[0][:, 0]
    edges = np.linspace(-np.pi, np.pi, 37)
    here = free_energy_profile(phi, edges, block=len(phi) // 40, rng=np.random.default_rng(0))
    low = (here.free_energy < 6) & (REFERENCE["phi_free_energy"] < 6)
    gap = here.free_energy[low] - REFERENCE["phi_free_energy"][low]
    error = np.hypot(here.stderr, REFERENCE["phi_stderr"])[low]
    gap -= np.average(gap, weights=error**-2)  # both have their lowest bin at zero, and that bin has an error too
    assert np.all(np.abs(gap) < 4 * error), (gap / error).round(1)
    assert np.any(low & (here.centres > LEFT_HANDED[0]) & (here.centres < LEFT_HANDED[1])), (
        "both visit the left-handed region"
    )


@pytest.mark.slow
def test_constrained_chains_agree_with_constrained_dynamics():
    """Bonds to hydrogens rigid, the usual script. Dynamics hardly reaches phi > 0, so averages are of phi < 0."""
    topology, _, positions, temperature = model_system(NAME)
    entry = models.index()[NAME]
    system = app.ForceField(*entry["force_field"]).createSystem(topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds)
    rigid = ModelSystem(topology, system, positions, temperature)
    chain = DiGMonteCarlo(rigid.simulation(seed=3, platform="Reference"), models.load(NAME), md_steps=0, proposals=256, seed=3)
    chain.step(10)
    proposed = np.concatenate([chain.step().positions for _ in range(160)])
    assert chain.statistics.acceptance > 0.4
    dynamics, states = rigid.simulation(seed=4, timestep=2.0, friction=2.0, platform="Reference"), []
    for _ in range(8000):
        dynamics.step(200)
        states.append(dynamics.context.getState(positions=True).getPositions(asNumpy=True)._value)
    z = {}
    held, moved = (conditional(topology, x) for x in (np.array(states[200:]), proposed))
    for name, (mean, error) in held.items():
        if error > 0 and not name.startswith(_RIGID):
            z[name] = (moved[name][0] - mean) / np.hypot(moved[name][1], error)
    assert len(z) > 20 and max(map(abs, z.values())) < 4 and np.square([*z.values()]).mean() < 2, z


_RIGID = ("bond ALA.N-ALA.H", "region left")


def conditional(topology, positions: np.ndarray, blocks: int = 40) -> dict[str, tuple[float, float]]:
    """Averages over the structures with phi < 0, with errors from blocks of the whole."""
    series = dipeptide_observables(topology, positions)
    chosen = backbone_dihedrals(topology).measure(positions)[0][:, 0] < 0
    length, found = len(positions) // blocks, {}
    count = chosen[: blocks * length].reshape(blocks, length).sum(1)
    for name, x in series.items():
        total = (x * chosen)[: blocks * length].reshape(blocks, length).sum(1)
        mean = total.sum() / count.sum()
        residual = total - mean * count
        found[name] = (mean, float(residual.std(ddof=1) * np.sqrt(blocks) / count.sum()))
    return found
