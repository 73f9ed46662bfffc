"""Proteins in OpenMM: what is read from a topology, forces on frames, and all atoms put on sampled backbones."""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dig_plugins
from dig_core.coordinates.backbone import Backbone
from dig_core.coordinates.measure import angle, dihedral
from dig_core.diffusion.rotations import rotation_matrix
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.system.protein import BACKBONE, RESIDUES, ideal_residue, protein, residues
from dig_core.types import Geometry

openmm = pytest.importorskip("openmm")
from openmm import app, unit  # noqa: E402

from dig_plugins.openmm.born import native_born  # noqa: E402
from dig_plugins.openmm.convert import reduced_unit, to_geometry  # noqa: E402
from dig_plugins.openmm.energy import OpenMMEnergy  # noqa: E402
from dig_plugins.openmm.residues import backbone_descriptor, frame_forces  # noqa: E402

PEPTIDE = Path(dig_plugins.__file__).parent / "models" / "alanine-tetrapeptide.pdb"
KT = reduced_unit(300)


@functools.cache
def peptide(constraints=None) -> tuple[app.Topology, openmm.System, np.ndarray]:
    """Three alanines between caps, and (42, 3) nm."""
    pdb = app.PDBFile(str(PEPTIDE))
    system = app.ForceField("amber14-all.xml").createSystem(pdb.topology, constraints=constraints)
    return pdb.topology, system, pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer)


def shaken(count: int, seed: int = 1) -> np.ndarray:
    """(count, 42, 3) nm about the peptide's structure."""
    return peptide()[2] + 0.004 * np.random.default_rng(seed).standard_normal((count, 42, 3))


def chain(names: str, *, numbers=None, bonds=None, drop=()) -> app.Topology:
    """Residues of backbone atoms, with names as ``"ALA GLY HOH"``, peptide bonds between all or between pairs of ``bonds``."""
    topology = app.Topology()
    added, members = topology.addChain(), []
    for r, name in enumerate(names.split()):
        residue = topology.addResidue(name, added, str(r + 1 if numbers is None else numbers[r]))
        kinds = BACKBONE[:4] if name == "GLY" else BACKBONE if name in ("ALA", "CYS") else ("O",)
        members.append({k: topology.addAtom(k, app.Element.getBySymbol(k[0]), residue) for k in kinds if (r, k) not in drop})
    ties = [(r, r + 1) for r in range(len(members) - 1)] if bonds is None else bonds
    for i, j in ties:
        if "C" in members[i] and "N" in members[j]:
            topology.addBond(members[i]["C"], members[j]["N"])
    return topology


def energy_along(r: int, axis: np.ndarray, step: float, *, turn: bool) -> float:
    """E/kT with residue ``r`` moved along ``axis`` by ``step`` Angstrom, or turned about it and its alpha carbon by ``step`` rad."""
    topology, system, positions = peptide()
    atoms, moved = backbone_descriptor(topology), 10 * positions.copy()
    mine, alpha = (atoms.owner == r).numpy(), moved[int(atoms.alpha[r])]
    if turn:
        matrix = rotation_matrix(torch.as_tensor(step * axis)).numpy()
        moved[mine] = (moved[mine] - alpha) @ matrix.T + alpha
    else:
        moved[mine] += step * axis
    return float(OpenMMEnergy(system, 300, platform="Reference")(Geometry(torch.as_tensor(moved[None]))))


def test_forces_on_frames_are_slopes_of_the_energy_along_rigid_motions():
    topology, system, positions = peptide()
    frames = frame_forces(system, positions, backbone_descriptor(topology), 300, platform="Reference", coordinates=Backbone(scale=7.0))
    for r in range(3):
        for axis in np.eye(3):
            for name, turn, unit_ in (("pos", False, 7.0), ("rot", True, 1.0)):
                step = 1e-4
                slope = (energy_along(r, axis, step, turn=turn) - energy_along(r, axis, -step, turn=turn)) / (2 * step)
                assert float(frames.force[name][0, r] @ torch.as_tensor(axis).float()) == pytest.approx(-unit_ * slope, rel=1e-3, abs=0.02)


def test_a_stretched_bond_between_residues_pulls_both():
    """One spring from C to the next N, 0.3 Angstrom too long: k times that over kT along the bond, and its torque about each CA."""
    topology, _, positions = peptide()
    atoms = backbone_descriptor(topology)
    known = residues(atoms.descriptor).atoms
    carbon, nitrogen = int(atoms.index[known[0, 2]]), int(atoms.index[known[1, 0]])
    step = 10 * (positions[nitrogen] - positions[carbon])
    length = np.linalg.norm(step)
    system = openmm.System()
    for _ in positions:
        system.addParticle(12.0)
    spring = openmm.HarmonicBondForce()
    spring.addBond(carbon, nitrogen, (length - 0.3) / 10, 1000.0)
    system.addForce(spring)
    frames = frame_forces(system, positions, atoms, 300, platform="Reference", coordinates=Backbone(scale=1.0))
    pull = 1000.0 / 100 * 0.3 / KT * step / length
    arm = [10 * (positions[a] - positions[int(atoms.alpha[r])]) for r, a in ((0, carbon), (1, nitrogen))]
    np.testing.assert_allclose(frames.force["pos"][0], [pull, -pull, 0 * pull], atol=1e-4)
    np.testing.assert_allclose(frames.force["rot"][0], [np.cross(arm[0], pull), np.cross(arm[1], -pull), 0 * pull], atol=1e-4)


def test_forces_are_in_units_of_the_temperature():
    topology, system, positions = peptide()
    cold, hot = (frame_forces(system, positions, backbone_descriptor(topology), t, platform="Reference") for t in (300, 600))
    assert float(cold.energy[0]) == pytest.approx(2 * float(hot.energy[0]), rel=1e-12)
    for name, force in cold.force.items():
        torch.testing.assert_close(force, 2 * hot.force[name])


def test_constrained_hydrogens_leave_the_forces_and_constraints_between_residues_are_refused():
    topology, free, _ = peptide()
    atoms, points = backbone_descriptor(topology), shaken(3)
    without, held = (frame_forces(system, points, atoms, 300, platform="Reference") for system in (free, peptide(app.HBonds)[1]))
    for name, force in without.force.items():
        torch.testing.assert_close(held.force[name], force, rtol=1e-4, atol=1e-2)
    assert not torch.allclose(held.energy, without.energy)
    with pytest.raises(UnsupportedError, match="between residues"):
        frame_forces(peptide(app.AllBonds)[1], points, atoms, 300)


def test_forces_are_unbiased_estimates_of_the_mean_force():
    """Stein's identity E[F . V] = -E[div V] of the frames' law, whatever bonds and angles do inside the residues.

    Two residues of uniform orientation and random internal geometry, N of the second drawn about C of the first: sum F . x has the
    mean -3, and the torque on the second against (R e) x (x1 - x2) has the mean of 2 (R e) . (x1 - x2).
    """
    rng, count, kappa = np.random.default_rng(5), 20_000, 6.0
    topology = chain("ALA ALA")
    atoms = backbone_descriptor(topology)
    inside = ideal_residue().numpy() + 0.1 * rng.standard_normal((count, 2, 5, 3))
    turn = rotation_matrix(torch.as_tensor(math.pi * _ball(rng, count))).numpy()
    placed = np.einsum("frij,frkj->frki", turn, inside)
    gap = rng.standard_normal((count, 3)) / math.sqrt(kappa)
    placed[:, 1] += (placed[:, 0, 2] + gap - placed[:, 1, 0])[:, None]
    spring, system = openmm.HarmonicBondForce(), openmm.System()
    for _ in range(10):
        system.addParticle(12.0)
    spring.addBond(2, 5, 0.0, 100 * kappa * KT)
    system.addForce(spring)
    frames = frame_forces(system, placed.reshape(count, 10, 3) / 10, atoms, 300, platform="Reference", batch=4096)
    pos, force = frames.state["pos"].double(), {name: f.double() for name, f in frames.force.items()}
    _zero((force["pos"] * pos).sum((1, 2)) + 3)
    away, matrix = 10 * (pos[:, 0] - pos[:, 1]), rotation_matrix(frames.state["rot"][:, 1].double())
    arm = matrix @ (ideal_residue()[0] / ideal_residue()[0].norm())
    along = (arm * away).sum(1)
    assert float(along.mean()) > 0.5
    _zero((force["rot"][:, 1] * torch.linalg.cross(arm, away)).sum(1) - 2 * along)


def _ball(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 2, 3) rotation vectors over pi, of the uniform law."""
    raw = rng.standard_normal((count, 2, 4))
    raw /= np.linalg.norm(raw, axis=-1, keepdims=True)
    angle = 2 * np.arctan2(np.linalg.norm(raw[..., 1:], axis=-1), raw[..., 0])
    angle = np.where(angle > math.pi, angle - 2 * math.pi, angle)
    return angle[..., None] / math.pi * raw[..., 1:] / np.linalg.norm(raw[..., 1:], axis=-1, keepdims=True)


def _zero(x: torch.Tensor) -> None:
    z = float(x.mean() / (x.std() / math.sqrt(len(x))))
    assert abs(z) < 4, z


def test_structures_without_an_energy_are_left_out_and_counted():
    topology, system, _ = peptide()
    atoms, points = backbone_descriptor(topology), shaken(4)
    points[1, 5], points[2, 7] = points[1, 20], np.nan
    frames = frame_forces(system, points, atoms, 300, platform="Reference", batch=3)
    alone = frame_forces(system, points[[0, 3]], atoms, 300, platform="Reference")
    assert frames.kept.tolist() == [0, 3] and frames.failed == 2 and len(frames) == 2
    for name in ("pos", "rot"):
        torch.testing.assert_close(frames.state[name], alone.state[name])
        torch.testing.assert_close(frames.force[name], alone.force[name])
    with pytest.raises(IncompatibleError, match="none has one"):
        frame_forces(system, points[1:3], atoms, 300, platform="Reference")


def test_a_temperature_goes_with_a_system_only():
    topology, system, positions = peptide()
    atoms, energy = backbone_descriptor(topology), OpenMMEnergy(system, 300, platform="Reference")
    same = frame_forces(energy, positions, atoms)
    torch.testing.assert_close(same.force, frame_forces(system, positions, atoms, 300, platform="Reference").force)
    torch.testing.assert_close(same.force, frame_forces(lambda geometry: energy(geometry), positions, atoms).force)
    for source, temperature in ((energy, 300), (system, None)):
        with pytest.raises(IncompatibleError, match="temperature"):
            frame_forces(source, positions, atoms, temperature)


def test_caps_go_with_their_neighbour_and_backbone_atoms_are_found_by_name():
    topology = peptide()[0]
    atoms, everything = backbone_descriptor(topology), list(topology.atoms())
    assert [everything[i].name for i in atoms.index.tolist()] == list(BACKBONE) * 3
    told = {(everything[i].residue.name, int(atoms.owner[i])) for i in range(42) if everything[i].residue.name in ("ACE", "NME")}
    assert told == {("ACE", 0), ("NME", 2)}
    assert torch.bincount(atoms.owner).tolist() == [16, 10, 16]
    assert "".join(RESIDUES[k] for k in residues(atoms.descriptor).kind) == "AAA"


@pytest.mark.parametrize(
    ("topology", "kind", "told"),
    [
        (chain("ALA GLY HOH HOH NA"), UnsupportedError, "2 HOH .*1 NA"),
        (chain("ALA SEP ALA"), UnsupportedError, "SEP2"),
        (chain("HOH"), UnsupportedError, "HOH"),
        (chain("ALA CYS", drop=[(1, "CB")]), IncompatibleError, "CYS2 has no CB"),
        (chain("ALA ALA", numbers=[4, 7]), IncompatibleError, "ALA4 and ALA7 are bonded"),
        (chain("ALA ALA", bonds=[]), IncompatibleError, "not bonded"),
        (chain("ALA ALA", numbers=["4", "4A"]), IncompatibleError, "numbers="),
        (chain("ALA GLY ALA", bonds=[(0, 1), (1, 2), (2, 0)]), UnsupportedError, "rings"),
    ],
)
def test_what_is_no_protein_in_order_is_refused_by_name(topology, kind, told):
    with pytest.raises(kind, match=told):
        backbone_descriptor(topology)


def test_gaps_are_numbers_left_out_and_numbers_can_be_given():
    topology = chain("ALA GLY ALA", numbers=[3, 4, 9], bonds=[(0, 1)])
    assert residues(backbone_descriptor(topology).descriptor).follows().tolist() == [True, False]
    odd = chain("ALA GLY ALA", numbers=["3", "3A", "4"])
    assert residues(backbone_descriptor(odd, numbers=[1, 2, 3]).descriptor).follows().tolist() == [True, True]


def test_the_native_solvent_has_the_same_energy_and_others_stay_as_they_are():
    topology, _, positions = peptide()

    def both(file: str, **options) -> tuple[set[str], float, float]:
        system = app.ForceField("amber14-all.xml", file).createSystem(topology, **options)
        native = native_born(system, positions)
        kinds = {type(force).__name__ for force in native.getForces()}
        return kinds, *(float(OpenMMEnergy(s, 300, platform="CPU", threads=1)(to_geometry(positions))) for s in (system, native))

    kinds, slow, fast = both("implicit/obc2.xml")
    assert "GBSAOBCForce" in kinds and fast == pytest.approx(slow, abs=1e-3)
    for file, options in (("implicit/obc1.xml", {}), ("implicit/obc2.xml", {"implicitSolventKappa": 0.7})):
        assert "GBSAOBCForce" not in both(file, **options)[0]


# Relaxation and completion; PDBFixer builds the sequence.


def relaxer(topology: app.Topology, system: openmm.System, positions: np.ndarray, held=(), restraint: float = 1000.0):
    from dig_plugins.openmm.relaxation import Relaxer

    return Relaxer(system, topology, held, positions, restraint=restraint, steps=200, platform="Reference")


def test_what_is_wrong_with_a_structure_is_said_of_its_atoms():
    topology, system, positions = peptide()
    relax = relaxer(topology, system, positions)
    assert relax.trouble(positions) is None
    assert relax.trouble(np.full_like(positions, np.nan)) == "the positions are not finite."
    methyl, stretched, bent = positions[38] - positions[36], positions.copy(), positions.copy()
    stretched[38:] += 0.05 * methyl / np.linalg.norm(methyl)
    told = relax.trouble(stretched)
    assert told is not None and all(word in told for word in ("N in NME5", "C in NME5", "+0.5"))
    bent[9] = 2 * bent[8] - bent[9]
    assert "the angle at atom 8 (CA in ALA2)" in str(relax.trouble(bent))


def test_molecules_in_each_other_are_a_failure_though_all_their_bonds_are_well():
    topology, _, positions = peptide()
    both = app.Modeller(topology, positions * unit.nanometer)
    both.add(topology, (positions + 0.05) * unit.nanometer)
    system = app.ForceField("amber14-all.xml").createSystem(both.topology)
    relax = relaxer(both.topology, system, np.concatenate([positions, positions + 0.05]))
    assert "do not part" in str(relax.trouble(np.concatenate([positions, positions + 0.05])))
    assert relax.trouble(np.concatenate([positions, positions + 3.0])) is None


def test_overlaps_are_parted_and_a_stiffer_restraint_holds_better():
    """Hydrogens of all three side chains begin on the alpha carbons."""
    (topology, system, positions), rng = peptide(), np.random.default_rng(2)
    held, moved, start = backbone_descriptor(topology).index.tolist(), [], positions.copy()
    for first in (13, 23, 33):
        start[first : first + 3] = start[first - 5] + 0.003 * rng.standard_normal((3, 3))
    for restraint in (100.0, 10_000.0):
        relax = relaxer(topology, system, positions, held, restraint)
        found, best = relax(start, seed=1), relax(positions, seed=1)
        assert found.failure is None and found.before > 1e4 and found.after == pytest.approx(best.after, abs=2)
        moved.append(np.linalg.norm(found.positions[held] - start[held], axis=1).max())
    assert moved[1] < 0.5 * moved[0]


def test_ends_and_rings_are_built_as_they_are():
    """The second oxygen of an end opposite to the first, proline's ring closed; both have been built otherwise on this sequence."""
    pytest.importorskip("pdbfixer")
    from dig_plugins.openmm.sidechains import build, extended

    descriptor = protein("YYDPETGTWY")
    chains = build(descriptor)
    points = chains.put(extended(descriptor).positions)
    members = [{atom.name: atom.index for atom in residue.atoms()} for residue in chains.topology.residues()]
    last, ring = members[-1], members[3]
    across = angle(points, [(last["O"], last["C"], last["OXT"]), (ring["CA"], ring["N"], ring["CD"])])[0]
    assert math.degrees(float(across[0])) == pytest.approx(123, abs=3)
    assert math.degrees(float(across[1])) == pytest.approx(112, abs=20)
    assert abs(math.degrees(float(dihedral(points, [[last[k] for k in ("CA", "O", "C", "OXT")]])))) == pytest.approx(180, abs=1)


@functools.cache
def completed(names: str = "GKWPCA"):
    """Four frames: extended, bent, one whose residues 2 and 5 stand in the same place, one that is not finite."""
    pytest.importorskip("pdbfixer")
    from dig_plugins.openmm.completion import complete

    descriptor = protein(names, numbers=[11, 12, 13, 14, 15, 16])
    given = frames_of(descriptor)
    return descriptor, given, complete(Geometry(given), descriptor, seed=3, steps=100, platform="CPU", threads=1, progress=False)


def frames_of(descriptor) -> torch.Tensor:
    from dig_plugins.openmm.sidechains import extended

    backbone = Backbone()
    straight = extended(descriptor).positions + torch.tensor([300.0, -200.0, 100.0])
    bent = straight.clone()
    atoms = residues(descriptor).atoms
    # Everything behind the third residue turned about its bond from CA to C.
    base, tip = bent[0, atoms[2, 1]], bent[0, atoms[2, 2]]
    matrix = rotation_matrix(0.9 * (tip - base) / (tip - base).norm())
    behind = atoms[3:].flatten()
    behind = behind[behind >= 0]
    bent[0, behind] = (bent[0, behind] - base) @ matrix.T + base
    state, _ = backbone.encode(Geometry(torch.cat([straight, bent])), descriptor)
    given = backbone.decode(state, descriptor).positions + torch.tensor([300.0, -200.0, 100.0])
    overlap = given[0].clone()
    overlap[atoms[4, :4]] = overlap[atoms[1, :4]] + 0.01
    return torch.stack([given[0], given[1], overlap, torch.full_like(overlap, torch.nan)])


def test_the_chain_it_is_built_on_is_extended_and_broken_where_residues_are_missing():
    from dig_plugins.openmm.sidechains import extended

    descriptor = protein("AGPW", numbers=[1, 2, 3, 9])
    points, atoms = extended(descriptor).positions, residues(descriptor).atoms
    steps = (points[0, atoms[1:, 1]] - points[0, atoms[:-1, 1]]).norm(dim=1)
    torch.testing.assert_close(steps[:2], torch.full((2,), 3.80, dtype=steps.dtype), atol=0.03, rtol=0)
    assert float(steps[2]) > 20
    psi = dihedral(points, [(*atoms[0, :3].tolist(), int(atoms[1, 0]))])
    assert math.degrees(float(psi)) == pytest.approx(140, abs=1e-6)


def test_backbones_are_completed_and_relaxed_where_they_stand():
    descriptor, given, found = completed()
    assert found.good.tolist() == [0, 1]
    names = [residue.name for residue in found.topology.residues()]
    assert names == ["GLY", "LYS", "TRP", "PRO", "CYS", "ALA"] and [r.id for r in found.topology.residues()][0] == "11"
    assert sum(atom.element is app.element.hydrogen for atom in found.topology.atoms()) == 45
    assert (found.after[:2] < found.before[:2]).all() and (found.after[:2] < 0).all()
    assert (found.rmsd[:2] < 0.4).all() and (found.seconds > 0).all()
    kept = to_geometry(found.positions[:2]).positions[:, found.index]
    assert float((kept - given[:2]).norm(dim=-1).max()) < 1.5
    chiral = {atom.name: atom.index for atom in list(found.topology.residues())[1].atoms()}
    sites = to_geometry(found.positions[:2]).positions[:, [chiral[name] for name in ("CA", "N", "C", "CB")]]
    a, b, c = (sites[:, k] - sites[:, 0] for k in (1, 2, 3))
    assert bool(((torch.linalg.cross(a, b) * c).sum(1) > 0).all())


def test_failures_are_recorded_with_their_reason_and_the_others_go_on():
    descriptor, given, found = completed()
    assert found.failures.keys() == {2, 3}
    assert "not finite" in found.failures[3] and np.isnan(found.after[3]) and np.isnan(found.rmsd[3])
    assert any(word in found.failures[2] for word in ("bond of", "do not part", "gives way"))
    assert len(found.positions) == len(found.before) == len(found.seconds) == 4


def test_a_frame_does_not_depend_on_those_before_it():
    from dig_plugins.openmm.completion import complete

    descriptor, given, found = completed()
    alone = complete(Geometry(given[1:2]), descriptor, seed=4, steps=100, platform="CPU", threads=1, progress=False)
    # A minimisation that stops after so many steps stops elsewhere when a last digit differs, which processors decide: kT is 2.5 kJ/mol.
    assert alone.after[0] == pytest.approx(found.after[1], abs=4.0)


def test_bridges_and_their_hydrogens():
    pytest.importorskip("pdbfixer")
    from dig_plugins.openmm.sidechains import build

    def sulfurs(**options) -> tuple[int, int]:
        topology = build(protein("CAC"), **options).topology
        pairs = [{a.name, b.name} for a, b in topology.bonds()]
        return pairs.count({"SG"}), sum(atom.name == "HG" for atom in topology.atoms())

    assert sulfurs() == (0, 2) and sulfurs(disulfides=[(0, 2)]) == (1, 0)
    with pytest.raises(IncompatibleError, match="cysteines"):
        build(protein("CAC"), disulfides=[(0, 1)])


def test_without_pdbfixer_the_error_names_it(monkeypatch):
    from dig_plugins.openmm.sidechains import build

    monkeypatch.setitem(sys.modules, "pdbfixer", None)
    with pytest.raises(ImportError, match="pip install pdbfixer"):
        build(protein("AG"))


def test_completion_checks_what_it_is_given():
    from dig_plugins.openmm.completion import complete

    descriptor = protein("AG")
    with pytest.raises(IncompatibleError, match="this sequence"):
        complete(Geometry(torch.zeros(1, 4, 3)), descriptor)
    with pytest.raises(IncompatibleError, match="restraint"):
        complete(Geometry(torch.zeros(1, 9, 3)), descriptor, restraint=-1)
