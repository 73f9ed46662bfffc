"""Against knowing the answer: well-tempered metadynamics and OPES on phi, given the same processor time. Ten minutes.

Not part of ``make bench`` for its length. Both are told the slow coordinate; the model was not, but was trained beforehand.
"""

from __future__ import annotations

import math
import time

import numpy as np
import openmm as mm
from common import REFERENCE, Figure, Findings, Options, Table, command_line, number
from openmm import app, unit
from reference import heavy_simulation

from dig_plugins.openmm.convert import reduced_unit
from dig_plugins.openmm.montecarlo import DiGMonteCarlo
from dig_plugins.openmm.observables import LEFT_HANDED, backbone_dihedrals
from dig_plugins.openmm.systems import ModelSystem, model_system

SECONDS, REPEATS = 25, 6
STRIDE = 250  # MD steps of 2 fs between two deposits
WIDTH = 0.2  # rad, of a kernel
BARRIER = 40.0  # kJ/mol that the bias may make up for
GRID = 181

AXIS = np.linspace(-np.pi, np.pi, GRID)


def measure(options: Options) -> Findings:
    """Errors of ln p(left) after the same time, over independent runs."""
    dig, system = options.load(), model_system("alanine-dipeptide")
    with np.load(REFERENCE) as held:
        row = list(held["names"]).index("region left")
        exact, error = float(held["means"][row]), float(held["stderr"][row])
    seconds, found = options.size(SECONDS, 2), {"DiG": [], "metadynamics": [], "OPES": [], "MD": []}
    for seed in range(options.seed, options.seed + options.size(REPEATS, 2)):
        found["DiG"].append(chain(dig, system, seed, seconds))
        found["metadynamics"].append(metadynamics(system, seed, seconds))
        found["OPES"].append(opes(system, seed, seconds))
        found["MD"].append(dynamics(system, seed, seconds))
    rows, off = [], {}
    for name, values in found.items():
        logs = np.log(np.maximum(values, 1e-6) / exact)
        off[name] = float(np.sqrt((logs**2).mean()))
        rows.append([name, round(float(np.mean(values)), 5), round(float(np.std(values, ddof=1)), 5), round(off[name], 3)])
    rows.append(["parallel tempering, the reference", round(exact, 5), round(error, 5), round(error / exact, 3)])
    best = min(("metadynamics", "OPES"), key=off.get)
    spread = {name: float(np.std(values, ddof=1) / np.mean(values)) if np.mean(values) else math.inf for name, values in found.items()}
    tight = min(("metadynamics", "OPES"), key=spread.get)
    figures = [
        Figure(
            "relative deviation of p(phi > 0) between runs, ratio of metadynamics or OPES to DiG", spread[tight] / spread["DiG"], "x",
            None, 1.0, None, True, tight, f"{number(spread['DiG'])} and {number(spread[tight])}; what the reference's error does not blur.",
        ),
        Figure(
            "error of ln p(phi > 0), ratio of metadynamics or OPES to DiG, same processor time", off[best] / off["DiG"],
            "x", None, 1.0, None, True, best, f"{seconds} CPU-s each, {len(found['DiG'])} runs; r.m.s. errors {number(off['DiG'])} "
            f"and {number(off[best])}; the reference itself is known to {error / exact:.3f}. Training is not in it: energy_only has it.",
        )
    ]  # fmt: skip
    header = ["method", "mean", "deviation", "r.m.s. error of ln p"]
    return Findings(figures, [Table(f"p(0 < phi < 130 degrees) after {seconds} CPU-s", header, rows)], _NOTES)


_NOTES = [
    "Metadynamics is OpenMM's own, well tempered; its estimate integrates the free energy it ends with. OPES (Invernizzi and Parrinello, "
    "doi:10.1021/acs.jpclett.0c00497) with kernels of fixed width on a grid; its estimate weighs the samples by the bias they were made "
    f"under, the first fifth left out. Both: phi, a kernel of {WIDTH} rad every {2 * STRIDE / 1000} ps, 2 fs steps, heavy hydrogens.",
]


def inside(phi):
    return (phi > LEFT_HANDED[0]) & (phi < LEFT_HANDED[1])


def phi_of(system: ModelSystem, positions: np.ndarray) -> np.ndarray:
    return backbone_dihedrals(system.topology).measure(positions)[0][:, 0]


def chain(dig, system: ModelSystem, seed: int, seconds: float) -> float:
    """Proposals alone."""
    began, found = time.process_time(), []
    moves = DiGMonteCarlo(system.simulation(seed=seed), dig, md_steps=0, proposals=256, seed=seed)
    while time.process_time() - began < seconds:
        found.append(inside(phi_of(system, moves.step().positions)))
    return float(np.concatenate(found).mean())


def dynamics(system: ModelSystem, seed: int, seconds: float) -> float:
    """Molecular dynamics without help."""
    simulation, found, began = heavy_simulation(system, seed), [], time.process_time()
    while time.process_time() - began < seconds:
        simulation.step(STRIDE)
        found.append(inside(current(system, simulation)))
    return float(np.mean(found))


def current(system: ModelSystem, simulation: app.Simulation) -> float:
    return float(phi_of(system, simulation.context.getState(positions=True).getPositions(asNumpy=True)._value[None])[0])


def torsion(system: ModelSystem) -> mm.CustomTorsionForce:
    force = mm.CustomTorsionForce("theta")
    force.addTorsion(*(int(i) for i in backbone_dihedrals(system.topology).phi[0]))
    return force


def population(free_energy: np.ndarray, axis: np.ndarray) -> float:
    weight = np.exp(-(free_energy - free_energy.min()) / reduced_unit(300.0))
    return float(weight[inside(axis)].sum() / weight.sum())


def metadynamics(system: ModelSystem, seed: int, seconds: float) -> float:
    """OpenMM's own."""
    began = time.process_time()
    variable = app.BiasVariable(torsion(system), -np.pi, np.pi, WIDTH, periodic=True, gridWidth=GRID)
    simulation = heavy_simulation(system, seed)
    bias = app.Metadynamics(simulation.system, [variable], 300 * unit.kelvin, 1 + BARRIER / reduced_unit(300.0), 1.0, STRIDE)
    simulation.context.reinitialize(preserveState=True)
    while time.process_time() - began < seconds:
        bias.step(simulation, STRIDE)
    return population(bias.getFreeEnergy()._value[:-1], AXIS[:-1])


def opes(system: ModelSystem, seed: int, seconds: float) -> float:
    """Bias (1 - 1/gamma) kT log(P / Z + epsilon) from a kernel estimate P of the unbiased law."""
    began, kt = time.process_time(), reduced_unit(300.0)
    gamma = BARRIER / kt
    table = mm.Continuous1DFunction(np.zeros(GRID), -np.pi, np.pi, True)
    force = mm.CustomCVForce("table(phi)")
    force.addCollectiveVariable("phi", torsion(system))
    force.addTabulatedFunction("table", table)
    simulation = heavy_simulation(system, seed)
    force = simulation.system.getForce(simulation.system.addForce(force))
    simulation.context.reinitialize(preserveState=True)
    law, total, bias = np.zeros(GRID), 0.0, np.zeros(GRID)
    epsilon, samples = math.exp(-BARRIER / (kt * (1 - 1 / gamma))), []
    while time.process_time() - began < seconds:
        simulation.step(STRIDE)
        phi = current(system, simulation)
        weight = math.exp(np.interp(phi, AXIS, bias) / kt)
        samples.append((weight, inside(phi)))
        gap = (AXIS - phi + np.pi) % (2 * np.pi) - np.pi
        law, total = law + weight * np.exp(-0.5 * (gap / WIDTH) ** 2), total + weight
        density = law / total
        visited = density > 1e-6 * density.max()
        bias = (1 - 1 / gamma) * kt * np.log(density / density[visited].mean() + epsilon)
        bias[-1] = bias[0]
        force.getTabulatedFunction(0).setFunctionParameters(bias, -np.pi, np.pi)
        force.updateParametersInContext(simulation.context)
    kept = samples[len(samples) // 5 :]
    return float(sum(w * s for w, s in kept) / sum(w for w, _ in kept))


if __name__ == "__main__":
    command_line(__doc__, "enhanced", measure)
