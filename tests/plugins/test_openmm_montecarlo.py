"""DiGMonteCarlo: exact averages of molecules whose integrals are known, resumable, and clear about what does not fit."""

from __future__ import annotations

import copy
import csv
import functools
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import dig_plugins
from dig_core.coordinates import Internal
from dig_core.dig import Card, DiG
from dig_core.errors import IncompatibleError, StateError, UnsupportedError
from dig_core.montecarlo.chain import Reason

openmm = pytest.importorskip("openmm")
from openmm import app, unit  # noqa: E402

from dig_plugins.openmm.convert import describe  # noqa: E402
from dig_plugins.openmm.energy import OpenMMEnergy  # noqa: E402
from dig_plugins.openmm.montecarlo import DiGMonteCarlo  # noqa: E402
from dig_plugins.openmm.reporter import DiGReporter, TrajectoryReporter  # noqa: E402
from tests.plugins.known import (  # noqa: E402
    ANGLES,
    BONDS,
    KT,
    assert_exact,
    chain_molecule,
    model_of,
    moments,
    simulation_of,
    untrained,
)  # fmt: skip

ALA2 = Path(dig_plugins.__file__).parent / "models" / "alanine-dipeptide.pdb"


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """Noise made in small portions: the same numbers, sooner for small molecules."""
    monkeypatch.setattr("dig_core.random._BLOCK", 256)


def small(n: int = 4, model: dict | None = None, **options) -> DiGMonteCarlo:
    """A chain on the small molecule, everything in float64."""
    topology, system, positions = chain_molecule(n)
    given = {
        "seed": 3,
        "md_steps": 0,
        "proposals": 8,
        "batch": 64,
        "energy": OpenMMEnergy(system, 300, platform="Reference"),
    }
    return DiGMonteCarlo(
        simulation_of(topology, system, positions),
        model_of(topology, system, positions, **(model or {})),
        **{**given, **options},
    )


class Recorder:
    def __init__(self):
        self.blocks = []

    def __call__(self, chain, block):
        self.blocks.append(block)

    @property
    def positions(self) -> np.ndarray:
        return np.concatenate([block.positions for block in self.blocks])

    @property
    def accepted(self) -> np.ndarray:
        return np.concatenate([block.records.accepted for block in self.blocks])


def energies_of(chain: DiGMonteCarlo, positions: np.ndarray) -> np.ndarray:
    from dig_plugins.openmm.convert import to_geometry

    return chain.energy(to_geometry(positions)).numpy()


def recorded(chain: DiGMonteCarlo, blocks: int) -> Recorder:
    recorder = Recorder()
    chain.reporters.append(recorder)
    chain.step(blocks)
    return recorder


@pytest.mark.parametrize("n", [3, 4])
def test_averages_are_those_of_the_integrals(n):
    """A model that was never trained, and is spoilt besides, samples exp(-E/kT)."""
    chain = small(n, {"spoilt": True}, proposals=80, batch=512)
    positions = recorded(chain, 120).positions
    assert_exact(positions, energies_of(chain, positions))
    assert 0.02 < chain.statistics.acceptance < 0.9


@pytest.mark.parametrize(("scheme", "proposals"), [("metropolis", 16), ("isir", 12)])
def test_averages_with_md_between_the_proposals(scheme, proposals):
    """The states after the tests, and those where the MD of every block ends: it started from what the proposals left."""
    chain = small(4, {"spoilt": True}, md_steps=10, scheme=scheme, proposals=proposals, batch=512)
    recorder = recorded(chain, 240)
    after, ends = recorder.positions, np.array([block.md_positions for block in recorder.blocks])
    assert_exact(after, energies_of(chain, after), stretches=30)
    assert_exact(ends, energies_of(chain, ends), stretches=30)
    assert 0.02 < chain.statistics.acceptance < 0.9


# Alanine dipeptide with an untrained model -----------------------------------------------------------------------------


@functools.cache
def dipeptide() -> tuple[app.Topology, openmm.System, np.ndarray]:
    pdb = app.PDBFile(str(ALA2))
    system = app.ForceField("amber99sbildn.xml", "amber99_obc.xml").createSystem(pdb.topology, constraints=None)
    simulation = simulation_of(pdb.topology, system, pdb.positions)
    simulation.minimizeEnergy()
    return pdb.topology, system, simulation.context.getState(positions=True).getPositions(asNumpy=True)._value


@functools.cache
def dipeptide_model(temperature: float | None = 300.0) -> DiG:
    descriptor = describe(*dipeptide())
    coordinates = Internal.from_reference(descriptor)
    return DiG(
        untrained(coordinates), coordinates, descriptor, Card(name="untrained", temperature=temperature, steps=4)
    )


def large(simulation: app.Simulation | None = None, **options) -> DiGMonteCarlo:
    simulation = simulation_of(*dipeptide()) if simulation is None else simulation
    given = {
        "seed": 5,
        "md_steps": 20,
        "proposals": 5,
        "batch": 16,
        "energy": OpenMMEnergy(dipeptide()[1], 300, platform="Reference"),
    }
    return DiGMonteCarlo(simulation, dipeptide_model(), **{**given, **options})


def test_untrained_model_of_a_peptide_runs():
    chain = large()
    block = chain.step(3)
    assert chain.blocks == 3 and chain.statistics.proposed == 15
    assert block.positions.shape == (5, 22, 3) and block.md_positions.shape == (22, 3)
    assert np.isfinite(block.positions).all() and np.isfinite(block.records.log_q).all()
    assert chain.simulation.currentStep == 60
    assert sum(chain.statistics.failed.values()) + chain.statistics.accepted <= 15


def test_defaults_work():
    """No seed, no energy, temperature from the integrator: all are chosen and can be read."""
    chain = DiGMonteCarlo(simulation_of(*dipeptide()), dipeptide_model(), proposals=2, md_steps=1, batch=2)
    chain.step()
    assert chain.temperature == 300 and 0 <= chain.seed < 2**32
    assert chain.energy.platform_name


# Bookkeeping -----------------------------------------------------------------------------------------------------------


def test_statistics_before_the_first_step():
    found = small().statistics
    assert found.proposed == found.accepted == found.longest_rejection_run == 0
    assert found.acceptance == 0 and found.failed == {"invalid": 0, "energy": 0, "density": 0}


def test_statistics_are_those_of_the_records():
    chain, recorder = small(), Recorder()
    chain.reporters.append(recorder)
    chain.step(30)
    accepted, found = recorder.accepted, chain.statistics
    assert found.proposed == 240 == len(accepted) and found.accepted == accepted.sum() > 5
    assert found.acceptance == accepted.mean()
    runs = "".join("x" if a else "." for a in accepted).split("x")
    assert found.longest_rejection_run == max(len(run) for run in runs)


def test_failures_are_counted():
    """A model much too wide proposes negative bonds and broken angles."""
    chain = small(4, {"wide": 40.0})
    recorder = Recorder()
    chain.reporters.append(recorder)
    chain.step(20)
    reasons = np.concatenate([block.records.reason for block in recorder.blocks])
    assert chain.statistics.failed == {r.name.lower(): int((reasons == r).sum()) for r in Reason if r}
    assert chain.statistics.failed["invalid"] > 50
    assert not recorder.accepted[reasons != Reason.NONE].any()


def rows_of(path: Path) -> list[dict]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_csv_has_a_row_a_proposal(tmp_path):
    chain, recorder = small(), Recorder()
    reporter = DiGReporter(tmp_path / "log.csv")
    chain.reporters += [reporter, recorder]
    chain.step(6)
    rows = rows_of(tmp_path / "log.csv")  # flushed: the reporter is still open
    assert len(rows) == chain.statistics.proposed == 48
    assert [int(row["proposal"]) for row in rows] == list(range(48))
    assert [int(row["block"]) for row in rows] == [1 + i // 8 for i in range(48)]
    assert [bool(int(row["accepted"])) for row in rows] == recorder.accepted.tolist()
    for name in ("u", "log_q", "log_alpha"):
        values = np.concatenate([getattr(block.records, name) for block in recorder.blocks])
        assert np.allclose([float(row[name]) for row in rows], values, atol=1e-5)
    assert {row["reason"] for row in rows} <= {r.name.lower() for r in Reason}
    reporter.close()
    with pytest.raises(ValueError, match="closed"):
        chain.step()


def test_csv_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "log.csv"
    for _ in range(2):
        chain, reporter = small(), DiGReporter(path, append=True)
        chain.reporters.append(reporter)
        chain.step(2)
        reporter.close()
    rows = rows_of(path)
    assert [int(row["proposal"]) for row in rows] == list(range(32))
    assert path.read_text().count("block") == 1


def test_csv_without_append_starts_anew(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("old\n")
    DiGReporter(path).close()
    assert path.read_text().strip() == "block,proposal,u,log_q,log_alpha,accepted,reason"


@pytest.mark.parametrize("stride", [1, 3])
def test_trajectory_has_a_frame_a_test(tmp_path, stride):
    mdtraj = pytest.importorskip("mdtraj")
    chain, recorder = small(), Recorder()
    chain.reporters += [TrajectoryReporter(tmp_path / "chain.xtc", chain.simulation.topology, stride), recorder]
    chain.step(4)
    trajectory = mdtraj.load(tmp_path / "chain.xtc", top=tmp_path / "chain.pdb")
    wanted = recorder.positions[::stride]
    assert trajectory.n_frames == len(wanted)
    assert np.allclose(trajectory.xyz, wanted, atol=1e-3)
    assert [atom.name for atom in trajectory.topology.atoms] == list("ABCD")


@pytest.mark.parametrize(("name", "stride"), [("chain.dcd", 1), ("chain.xtc", 0)])
def test_trajectory_refuses(tmp_path, name, stride):
    with pytest.raises(IncompatibleError, match="expected|at least 1"):
        TrajectoryReporter(tmp_path / name, chain_molecule(4)[0], stride)


def test_blocks_are_what_the_simulation_holds():
    chain = small(md_steps=3)
    for _ in range(10):
        block = chain.step()
        held = chain.simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
        assert np.allclose(held, block.positions[-1], atol=1e-12)


# Velocities, centroid, positions of one's own ----------------------------------------------------------------------------


def velocities_of(chain: DiGMonteCarlo) -> np.ndarray:
    return chain.simulation.context.getState(velocities=True).getVelocities(asNumpy=True)._value


def test_velocities_are_redrawn_only_after_acceptance():
    chain = small(proposals=2)
    kinetic, before, kept = [], velocities_of(chain), 0
    for _ in range(120):
        accepted = chain.step().records.accepted.any()
        after = velocities_of(chain)
        if accepted:
            assert not np.allclose(after, before)
            kinetic.append(0.5 * 14.0 * (after**2).sum() / KT)
        else:
            assert np.array_equal(after, before)
            kept += 1
        before = after
    # Maxwell-Boltzmann: 3 N / 2 kT on average, with the same variance.
    assert kept > 15 and len(kinetic) > 15
    assert abs(np.mean(kinetic) - 6) < 4 * math.sqrt(6 / len(kinetic))
    assert len(np.unique(np.round(kinetic, 9))) == len(kinetic)


@pytest.mark.parametrize("scheme", ["metropolis", "isir"])
def test_chain_keeps_the_centroid(scheme):
    chain = small(scheme=scheme)
    shifted = chain.simulation.context.getState(positions=True).getPositions(asNumpy=True)._value + [3.0, -2.0, 5.0]
    chain.simulation.context.setPositions(shifted)
    recorder = Recorder()
    chain.reporters.append(recorder)
    chain.step(20)
    assert recorder.accepted.any()
    assert np.allclose(recorder.positions.mean(axis=1), shifted.mean(axis=0), atol=1e-9)


def test_positions_set_between_steps_are_the_chain_s_state():
    chain = small(4, {"wide": 40.0})  # hardly ever accepts
    chain.step()
    moved = chain_molecule(4)[2] * 1.01
    chain.simulation.context.setPositions(moved)
    block = chain.step()
    assert np.allclose(block.md_positions, moved, atol=1e-12)
    first = np.flatnonzero(block.records.accepted)
    assert np.allclose(block.positions[: first[0] if len(first) else None], moved, atol=1e-12)


# Stop and resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build", [lambda: small(md_steps=4), lambda: small(scheme="isir"), large], ids=["small", "isir", "peptide"]
)
@pytest.mark.parametrize("stop", [1, 4])
def test_stopped_and_resumed_equals_run_through(build, stop):
    through, whole = Recorder(), build()
    whole.reporters.append(through)
    whole.step(7)
    statistics = whole.statistics
    pieces, first = Recorder(), build()
    first.reporters.append(pieces)
    first.step(stop)
    saved = pickle.dumps(first.state_dict())
    second = build()
    second.simulation.context.setPositions(second.simulation.context.getState(positions=True).getPositions() * 1.02)
    second.reporters.append(pieces)
    second.load_state_dict(pickle.loads(saved))
    second.step(7 - stop)
    assert np.array_equal(pieces.positions, through.positions)
    for one, other in zip(pieces.blocks, through.blocks, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one.records, other.records, strict=True))
        assert np.array_equal(one.md_positions, other.md_positions)
    assert second.statistics == statistics and second.blocks == 7


def test_saved_state_does_not_follow_the_chain():
    chain = small()
    chain.step(2)
    state = chain.state_dict()
    kept = copy.deepcopy(state)
    chain.step(3)
    assert state["statistics"] == kept["statistics"]
    assert np.array_equal(state["chain"]["positions"], kept["chain"]["positions"])


def test_state_of_another_seed_is_refused():
    with pytest.raises(IncompatibleError, match="seed 4.*seed 3|seed 4.*3"):
        small(seed=4).load_state_dict(small(seed=3).state_dict())


def test_seed_decides():
    runs = [small(seed=seed).step(3).positions for seed in (3, 3, 4)]
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])


# What does not fit -----------------------------------------------------------------------------------------------------------


def refused(kind: type[Exception], *words: str, simulation: app.Simulation | None = None, **options) -> None:
    with pytest.raises(kind) as caught:
        large(simulation, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def rebuilt(order: list[int] | None = None, elements: dict[int, app.Element] | None = None) -> app.Simulation:
    """The dipeptide with its atoms in another order, or with other elements."""
    topology, system, positions = dipeptide()
    order = list(range(22)) if order is None else order
    old, new = list(topology.atoms()), app.Topology()
    residue = new.addResidue("MOL", new.addChain())
    placed = {i: new.addAtom(old[i].name, (elements or {}).get(i, old[i].element), residue) for i in order}
    for first, second in topology.bonds():
        new.addBond(placed[first.index], placed[second.index])
    shuffled = openmm.System()
    for i in order:
        shuffled.addParticle(system.getParticleMass(i))
    return simulation_of(new, shuffled, positions[order])


def swapped(i: int, j: int) -> list[int]:
    order = list(range(22))
    order[i], order[j] = order[j], order[i]
    return order


def test_wrong_number_of_atoms():
    refused(IncompatibleError, "expected 22 atoms", "has 4", simulation=simulation_of(*chain_molecule(4)))


def test_swapped_atoms_of_unlike_elements():
    # Atoms 4 (C) and 6 (N): the first that differs is named.
    refused(IncompatibleError, "atom 4 (N", "expected element C, found N", "order", simulation=rebuilt(swapped(4, 6)))


def test_swapped_atoms_of_one_element():
    # Atoms 1 (CH3 of ACE) and 10 (CB) are both carbon: bonds tell, and atom 0 is the first whose bonds differ.
    refused(
        IncompatibleError, "atom 0 (H1", "expected bonds to atoms [1], found [10]", simulation=rebuilt(swapped(1, 10))
    )


def test_other_element():
    simulation = rebuilt(elements={15: app.element.sulfur})
    refused(IncompatibleError, "atom 15 (O", "expected element O, found S", simulation=simulation)


def test_temperature_mismatch_is_exact_but_inefficient():
    hot = simulation_of(*dipeptide(), temperature=400.0)
    refused(IncompatibleError, "400 K", "300 K", "exact", "few proposals", "allow_temperature_mismatch", simulation=hot)
    chain = DiGMonteCarlo(
        hot, dipeptide_model(), seed=1, md_steps=0, proposals=2, batch=2, allow_temperature_mismatch=True
    )
    assert chain.temperature == chain.energy.temperature == 400
    chain.step()


def test_temperature_given_must_be_the_model_s():
    refused(IncompatibleError, "350 K", temperature=350 * unit.kelvin)


def test_mismatched_temperature_is_sampled_exactly():
    """A model of 300 K in a simulation at 450 K: averages are those of 450 K."""
    topology, system, positions = chain_molecule(3)
    chain = DiGMonteCarlo(
        simulation_of(topology, system, positions, temperature=450.0), model_of(topology, system, positions), seed=2, md_steps=0,
        proposals=40, batch=512, allow_temperature_mismatch=True, energy=OpenMMEnergy(system, 450, platform="Reference"),
    )  # fmt: skip
    recorder = Recorder()
    chain.reporters.append(recorder)
    chain.step(100)
    u = energies_of(chain, recorder.positions)
    means = u.reshape(40, -1).mean(1)
    axis, (theta, k) = np.linspace(0, np.pi, 20_001), ANGLES["ABC"]
    angle_u = 0.5 * k * (axis - theta) ** 2 / (1.5 * KT)
    wanted = moments(axis, np.sin(axis) * np.exp(-angle_u), angle_u)
    for length, k in list(BONDS.values())[:2]:
        axis = np.linspace(0.5 * length, 1.5 * length, 20_001)
        bond_u = 0.5 * k * (axis - length) ** 2 / (1.5 * KT)
        wanted += moments(axis, axis**2 * np.exp(-bond_u), bond_u)
    assert abs(means.mean() - wanted) < 4 * means.std(ddof=1) / math.sqrt(40)


def test_model_without_a_temperature_takes_the_simulation_s():
    hot = simulation_of(*dipeptide(), temperature=400.0)
    chain = DiGMonteCarlo(hot, dipeptide_model(None), seed=1, md_steps=0, proposals=2, batch=2)
    assert chain.energy.temperature == 400


def test_integrator_without_temperature():
    topology, system, positions = dipeptide()
    integrator = openmm.VerletIntegrator(0.001)
    simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(positions)
    refused(IncompatibleError, "VerletIntegrator has no temperature", "temperature=", simulation=simulation)
    chain = large(simulation, temperature=300, md_steps=0)
    assert chain.temperature == 300


def test_constraints():
    topology, _, positions = dipeptide()
    """Those of bonds to hydrogens are lifted; others are refused by name."""
    field = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
    system = field.createSystem(topology, constraints=app.AllBonds)
    refused(UnsupportedError, "constraint(s)", "constraints=HBonds", simulation=simulation_of(topology, system, positions))
    simulation = simulation_of(topology, field.createSystem(topology, constraints=app.HBonds), positions)
    chain = DiGMonteCarlo(simulation, dig_plugins.load_model("alanine-dipeptide"), md_steps=10, proposals=16, batch=16, seed=1)
    block = chain.step(3)
    assert chain.statistics.acceptance > 0.3
    system = simulation.system
    for number in range(system.getNumConstraints()):
        i, j, length = system.getConstraintParameters(number)
        gaps = np.linalg.norm(block.positions[:, i] - block.positions[:, j], axis=1)
        assert np.allclose(gaps, length.value_in_unit(unit.nanometer), atol=1e-6)


@pytest.mark.parametrize("md_steps", [0, 5])
def test_positions_that_are_not_numbers(md_steps):
    simulation = simulation_of(*dipeptide())
    simulation.context.setPositions(np.full((22, 3), np.nan))
    chain = large(simulation, md_steps=md_steps)
    with pytest.raises(StateError, match="(?i)minimise"):
        chain.step()


def test_md_that_blows_up_says_so():
    chain = large(simulation_of(*dipeptide(), timestep=50.0), md_steps=200)
    with pytest.raises(StateError, match="(?i)shorten the time step"):
        chain.step(20)


def test_atoms_on_top_of_each_other():
    simulation = simulation_of(*dipeptide())
    positions = dipeptide()[2].copy()
    positions[21] = positions[0]
    simulation.context.setPositions(positions)
    with pytest.raises(StateError, match="log weight|not finite"):
        large(simulation, md_steps=0).step()


@pytest.mark.parametrize(
    "options",
    [{"proposals": 0}, {"md_steps": -1}, {"scheme": "gibbs"}, {"batch": 0}, {"steps": 0}, {"seed": -1}],
    ids=str,
)
def test_options_that_make_no_sense(options):
    with pytest.raises(IncompatibleError):
        small(**options).step()


@pytest.mark.parametrize("blocks", [0, -1])
def test_no_blocks_is_an_error(blocks):
    with pytest.raises(IncompatibleError, match="at least 1"):
        small().step(blocks)


# As a reporter ---------------------------------------------------------------------------------------------------------


def test_reporter_form_samples_the_same_law():
    """simulation.step alone; states are seen by reporters before and after the chain in the list, both exactly distributed."""
    topology, system, positions = chain_molecule(4)
    simulation, seen = simulation_of(topology, system, positions), {"before": [], "after": []}

    class Watch:
        def __init__(self, name):
            self.name = name

        def describeNextReport(self, simulation):
            return {"steps": 10 - simulation.currentStep % 10, "periodic": None, "include": []}

        def report(self, simulation, state):
            seen[self.name].append(simulation.context.getState(positions=True).getPositions(asNumpy=True)._value)

    energy = OpenMMEnergy(system, 300, platform="Reference")
    chain = DiGMonteCarlo(
        simulation, model_of(topology, system, positions, spoilt=True), md_steps=10, proposals=16, batch=512, seed=3, energy=energy
    )
    simulation.reporters += [Watch("before"), chain, Watch("after")]
    simulation.step(4000)
    assert chain.blocks == 400 and chain.statistics.proposed == 6400
    for name in seen:
        states = np.array(seen[name])
        assert_exact(states, energies_of(chain, states), stretches=20)


def test_reporter_form_leaves_the_context_alone_unless_it_accepts():
    topology, system, positions = chain_molecule(3)

    def only_the_current_state(geometry):
        count = len(geometry.positions)
        return torch.zeros(1) if count == 1 else torch.full((count,), math.inf)

    def run(with_chain: bool) -> list[np.ndarray]:
        # One after the other: contexts of the Reference platform share their random numbers.
        simulation = simulation_of(topology, system, positions)
        if with_chain:
            chain = DiGMonteCarlo(
                simulation, model_of(topology, system, positions), md_steps=7, proposals=4, batch=16, seed=1, energy=only_the_current_state
            )
            simulation.reporters.append(chain)
        simulation.step(70)
        if with_chain:
            assert chain.statistics.accepted == 0 and chain.statistics.failed["energy"] == 40
        state = simulation.context.getState(positions=True, velocities=True)
        return [state.getPositions(asNumpy=True)._value, state.getVelocities(asNumpy=True)._value]

    assert all(np.array_equal(one, other) for one, other in zip(run(True), run(False), strict=True))


def test_chain_cannot_be_owner_and_reporter_at_once():
    chain = small(3, md_steps=5)
    chain.simulation.reporters.append(chain)
    with pytest.raises(IncompatibleError, match="simulation.step"):
        chain.step()


def test_velocities_after_an_acceptance_are_fresh_and_thermal():
    chain = small(4, md_steps=5, proposals=8)
    kinetic = []
    for _ in range(150):
        chain.step()
        kinetic.append(chain.simulation.context.getState(energy=True).getKineticEnergy()._value)
    mean, error = np.mean(kinetic), np.std(kinetic) / math.sqrt(len(kinetic))
    assert abs(mean - 6 * KT) < 5 * error, "12 degrees of freedom, kT/2 each"
