"""Pockets from PDB files, MMFF94 in a pocket, forms of rings, poses with weights, clusters and checks."""

from __future__ import annotations

import functools
import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from rdkit.Chem import rdForceFieldHelpers as forcefields
from safetensors.torch import save as to_bytes

from dig_core.coordinates import Bound
from dig_core.diffusion import SO3
from dig_core.dig import Card, DiG
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.montecarlo.chain import MonteCarlo
from dig_core.nn import PoseGraphormer
from dig_core.random import Streams
from dig_core.score import NoiseScore
from dig_core.training.frames import frames_of
from dig_core.training.poses import Poses
from dig_core.types import Geometry
from dig_plugins.rdkit import MMFFEnergy, of_smiles, to_geometry, with_conformers
from dig_plugins.rdkit.pockets import (
    HybridMoves,
    Overlap,
    PocketEnergy,
    PoseProposal,
    avoid_overlaps,
    bound_to,
    check_place,
    check_poses,
    describe_complex,
    induced_fit,
    nearest_form,
    overlaps,
    pose_rmsd,
    posed,
    read_pocket,
    relax,
    ring_forms,
    sample_poses,
)
from dig_plugins.rdkit.recipes import pockets as recipe

SEQUENCE = "GAFKHSVW"


@functools.cache
def peptide() -> str:
    """A PDB file's text: a peptide with all hydrogens."""
    mol = Chem.AddHs(Chem.MolFromSequence(SEQUENCE), addResidueInfo=True)
    rdDistGeom.EmbedMolecule(mol, randomSeed=7, useRandomCoords=True)
    forcefields.MMFFOptimizeMolecule(mol, maxIters=200)
    lines = [line for line in Chem.MolToPDBBlock(mol).splitlines() if line.startswith("ATOM")]
    return "\n".join(lines)


def hetatm(name: str, residue: str, element: str, at: np.ndarray, number: int = 900) -> str:
    x, y, z = at
    return f"HETATM{number:5d} {name:<4s} {residue:>3s} B{number:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {element:>2s}"


def written(path, text: str):
    path.write_text(text + "\nEND\n")
    return path


@functools.cache
def outside() -> np.ndarray:
    """A place beside the peptide: 5 Angstrom beyond its outermost heavy atom along x."""
    at = np.array([[float(line[k : k + 8]) for k in (30, 38, 46)] for line in peptide().splitlines() if line[76:78].strip() != "H"])
    return at[at[:, 0].argmax()] + np.array([5.0, 0.0, 0.0])


@pytest.fixture(scope="module")
def pocket(tmp_path_factory):
    return read_pocket(written(tmp_path_factory.mktemp("pdb") / "p.pdb", peptide()), outside(), cutoff=9.0)


def placed(smiles: str, at: np.ndarray) -> Chem.Mol:
    mol = of_smiles(smiles, seed=3)
    positions = to_geometry(mol).positions
    return with_conformers(mol, Geometry(positions - positions.mean(1, keepdim=True) + torch.from_numpy(at)))


def untrained(system) -> DiG:
    network = PoseGraphormer(width=32, heads=4, layers=1, encoder=1, basis=12, neighbours=6, channels=4)
    model = NoiseScore(network, network.process(system)).eval().requires_grad_(False)
    return DiG(model, network.coordinates, system, Card(name="untrained", steps=6))


# -- pockets ------------------------------------------------------------------------------------------------------------


def test_a_pocket_is_whole_residues_with_their_hydrogens(pocket):
    assert 0 < len(pocket.labels) < len(SEQUENCE)
    assert not any(a.GetTotalNumHs() for a in pocket.mol.GetAtoms())  # every valence is taken: cut bonds end in hydrogens
    assert forcefields.MMFFHasAllMoleculeParams(pocket.mol)
    distance = np.linalg.norm(pocket.positions[pocket.heavy] - outside(), axis=1)
    for number in range(len(pocket.labels)):
        assert distance[pocket.residue[pocket.heavy] == number].min() <= 9.0
    assert pocket.notes == ()


def test_histidines_and_charges_agree_with_the_hydrogens(tmp_path):
    whole = read_pocket(written(tmp_path / "p.pdb", peptide()), outside(), cutoff=200.0)
    assert len(whole.labels) == len(SEQUENCE)
    mol = Chem.AddHs(Chem.MolFromSequence(SEQUENCE))
    assert Chem.GetFormalCharge(whole.mol) == Chem.GetFormalCharge(mol)
    assert Chem.CanonSmiles(Chem.MolToSmiles(Chem.RemoveHs(whole.mol))) == Chem.CanonSmiles(Chem.MolToSmiles(Chem.RemoveHs(mol)))


def test_charges_need_not_be_in_the_file(tmp_path):
    """An aspartate, a lysine and both ends: which hydrogens there are says it all."""
    charged = Chem.RWMol(Chem.MolFromSequence("GDKC"))
    for smarts, charge in (("[OX2H1]", -1), ("[NX3;H2;!$(NC=O)]", 1)):
        for (atom,) in charged.GetSubstructMatches(Chem.MolFromSmarts(smarts)):
            charged.GetAtomWithIdx(atom).SetFormalCharge(charge)
    charged.UpdatePropertyCache()
    charged = Chem.AddHs(charged.GetMol(), addResidueInfo=True)
    rdDistGeom.EmbedMolecule(charged, randomSeed=5, useRandomCoords=True)
    lines = [line[:78] for line in Chem.MolToPDBBlock(charged).splitlines() if line.startswith("ATOM")]
    found = read_pocket(written(tmp_path / "p.pdb", "\n".join(lines)), charged.GetConformer().GetPositions()[:1], cutoff=99.0)
    assert Chem.GetFormalCharge(found.mol) == 0 and found.mol.GetNumAtoms() == charged.GetNumAtoms()
    assert sorted(a.GetFormalCharge() for a in found.mol.GetAtoms() if a.GetFormalCharge()) == [-1, -1, 1, 1]


def test_waters_ions_and_cofactors_are_left_out_by_rule_and_said(tmp_path):
    water = "\n".join(
        hetatm(name, "HOH", name[0], outside() + shift, 901)
        for name, shift in (("O", np.array([4.0, 0, 0])), ("H1", np.array([4.9, 0.2, 0])), ("H2", np.array([3.8, 0.9, 0])))
    )
    ion = hetatm("NA", "NA", "NA", outside() + np.array([7.0, 0, 0]), 902)
    path = written(tmp_path / "p.pdb", "\n".join([peptide(), water, ion]))
    told = read_pocket(path, outside(), cutoff=9.0)
    assert any("1 waters" in note for note in told.notes) and any("NA B902" in note for note in told.notes)
    kept = read_pocket(path, outside(), cutoff=9.0, waters="keep", ions="keep")
    assert kept.mol.GetNumAtoms() == told.mol.GetNumAtoms() + 4
    assert any("metals" in note and "Na" in note for note in kept.notes)


def test_an_ion_at_the_site_is_not_left_out_unasked(tmp_path):
    path = written(tmp_path / "p.pdb", "\n".join([peptide(), hetatm("ZN", "ZN", "ZN", outside() + np.array([3.0, 0, 0]))]))
    with pytest.raises(UnsupportedError, match="ZN B900.*ions="):
        read_pocket(path, outside())
    assert any("ZN" in note for note in read_pocket(path, outside(), ions="leave").notes)


def test_files_that_say_too_little_are_refused(tmp_path):
    bare = "\n".join(line for line in peptide().splitlines() if line[76:78].strip() != "H")
    with pytest.raises(IncompatibleError, match="hydrogens are missing"):
        read_pocket(written(tmp_path / "bare.pdb", bare), outside())
    lines = peptide().splitlines()
    twice = [line[:16] + c + line[17:] for line in lines for c in "AB"]
    several = written(tmp_path / "alt.pdb", "\n".join(twice))
    with pytest.raises(IncompatibleError, match="alternate locations A, B"):
        read_pocket(several, outside())
    one = read_pocket(written(tmp_path / "one.pdb", peptide()), outside())
    assert read_pocket(several, outside(), altloc="A").mol.GetNumAtoms() == one.mol.GetNumAtoms()
    with pytest.raises(IncompatibleError, match="several models"):
        read_pocket(written(tmp_path / "two.pdb", f"MODEL        1\n{peptide()}\nENDMDL\nMODEL        2\n{peptide()}\nENDMDL"), outside())
    with pytest.raises(IncompatibleError, match="another frame|protein's frame"):
        read_pocket(written(tmp_path / "p.pdb", peptide()), outside() + 100.0)
    with pytest.raises(IncompatibleError, match="no file"):
        read_pocket(tmp_path / "nowhere.pdb", outside())
    with pytest.raises(IncompatibleError, match="several models"):
        read_pocket(written(tmp_path / "two.pdb", f"MODEL\n{peptide()}\nENDMDL\nMODEL\n{peptide()}\nENDMDL"), outside())
    with pytest.raises(IncompatibleError, match="keep"):
        read_pocket(tmp_path / "p.pdb", outside(), waters="some")
    with pytest.raises(IncompatibleError, match="positive cutoff"):
        read_pocket(tmp_path / "p.pdb", outside(), cutoff=math.nan)


def test_an_alternate_location_is_one_of_the_file_or_said_to_be_another(tmp_path):
    """Residue 5 has A and B, residue 6 has A alone: what is asked for is taken where it is, else the first, and the notes say so."""
    lines = peptide().splitlines()
    number = [int(line[22:26]) for line in lines]
    marked = [line[:16] + c + line[17:] for line, n in zip(lines, number, strict=True) for c in {5: "AB", 6: "A"}.get(n, " ")]
    path, plain = written(tmp_path / "alt.pdb", "\n".join(marked)), written(tmp_path / "plain.pdb", peptide())
    read = read_pocket(path, outside(), altloc="B")
    np.testing.assert_array_equal(read.positions, read_pocket(plain, outside()).positions)
    assert any("no alternate location B" in note and "A 6 (A)" in note for note in read.notes)
    assert read_pocket(path, outside(), altloc="A").notes == ()
    with pytest.raises(IncompatibleError, match="locations A, B, and no 'C'"):
        read_pocket(path, outside(), altloc="C")


@pytest.mark.parametrize("site", [None, "LIG", np.zeros((3, 2)), np.zeros((0, 3)), np.array(1.0), np.full((2, 3), np.nan), [[1, 2, 3, 4]]])
def test_a_site_is_a_ligand_or_points(tmp_path, site):
    with pytest.raises(IncompatibleError, match=r"points \(M, 3\)"):
        read_pocket(written(tmp_path / "p.pdb", peptide()), site)


def test_a_ligand_elsewhere_and_overlaps_are_said(pocket):
    check_place(placed("CCO", outside()), pocket)
    with pytest.raises(IncompatibleError, match="of 3 heavy atoms"):
        check_place(placed("CCO", outside() + 40.0), pocket)
    ligand = placed("CCO", pocket.positions[pocket.heavy][0])
    found = overlaps(to_geometry(ligand).positions[0], ligand, pocket)
    assert found and all(distance < 2.2 for *_, distance in found)
    assert not overlaps(to_geometry(placed("CCO", outside() + np.array([4.0, 0, 0]))).positions[0], ligand, pocket)


# -- energy -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smiles", ["OC(=O)c1ccccc1Br", "C[NH2+]CC#N"])
def test_energy_is_that_of_rdkit_with_interactions_between_fragments(pocket, smiles):
    ligand = placed(smiles, outside())
    energy = PocketEnergy(ligand, pocket)
    rng = np.random.default_rng(0)
    shifts = 0.5 * rng.normal(size=(4, 1, 3)) + 0.05 * rng.normal(size=(4, ligand.GetNumAtoms(), 3))
    poses = to_geometry(ligand).positions.numpy() + shifts
    both = Chem.CombineMols(ligand, pocket.mol)
    Chem.SanitizeMol(both)
    known = forcefields.MMFFGetMoleculeProperties(both, mmffVariant="MMFF94s")
    field = forcefields.MMFFGetMoleculeForceField(both, known, nonBondedThresh=1e6, ignoreInterfragInteractions=False)
    wanted = np.empty(4)
    for k, pose in enumerate(poses):  # RDKit reuses distances between calls unless told to forget them
        both.GetConformer().SetPositions(np.concatenate([pose, pocket.positions]))
        field.Initialize()
        wanted[k] = field.CalcEnergy()
    found = (energy(Geometry(torch.from_numpy(poses))) * energy.kt).numpy()
    np.testing.assert_allclose(found - found[0], wanted - wanted[0], atol=1e-6 * np.abs(wanted).max())


def test_gradient_is_that_of_the_energy_and_zero_on_the_pocket(pocket):
    ligand = placed("CCO", outside())
    energy = PocketEnergy(ligand, pocket)
    whole = torch.cat([to_geometry(ligand).positions, torch.from_numpy(pocket.positions)[None]], 1).requires_grad_()
    (gradient,) = torch.autograd.grad(energy(Geometry(whole)).sum(), whole)
    n = ligand.GetNumAtoms()
    assert not bool(gradient[:, n:].any())
    direction = torch.zeros_like(whole)
    direction[:, :n] = torch.randn(1, n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    up, down = (energy(Geometry(whole.detach() + s * 1e-4 * direction)) for s in (1, -1))
    torch.testing.assert_close((up - down) / 2e-4, (gradient * direction).sum((1, 2)), rtol=1e-4, atol=1e-4)


def test_relaxed_poses_are_lower_and_at_rest(pocket):
    ligand = placed("OCc1ccccc1", outside())
    energy = PocketEnergy(ligand, pocket)
    done = relax(to_geometry(ligand).positions, energy)
    assert float(done.after) < float(done.before) and float(done.slope) < 5
    held = relax(to_geometry(ligand).positions, energy, restraint=1e4)
    assert float((held.positions - to_geometry(ligand).positions).abs().max()) < 0.1


def test_a_pocket_gives_way_by_no_more_than_it_may(pocket):
    """A ligand that overlaps: both move, the pocket within its limit, residues far off not at all."""
    ligand = placed("OCc1ccccc1", outside() - np.array([3.0, 0, 0]))
    (found,) = induced_fit(ligand, pocket, radius=4.0, limit=0.5, steps=150)
    shift = np.linalg.norm(found.pocket.positions - pocket.positions, axis=1)
    assert 0 < found.moved <= 0.6 and shift.max() < 0.8
    near = np.linalg.norm(pocket.positions[:, None] - to_geometry(ligand).positions[0].numpy(), axis=2).min(1) < 4.0
    still = ~np.isin(pocket.residue, np.unique(pocket.residue[near]))
    assert not shift[still].any()
    assert not overlaps(torch.from_numpy(found.positions), ligand, found.pocket)
    with pytest.raises(IncompatibleError, match="positive"):
        induced_fit(ligand, pocket, limit=0.0)


# -- coordinates of a real ligand -----------------------------------------------------------------------------------------


def test_forms_of_rings_are_strained_like_thermal_motion():
    """Independent normal shapes cost about half a kT each, flexible rings included: their bonds close."""
    mol = of_smiles("CC(=O)N1CCOCC1", seed=1)
    forms = ring_forms(mol, conformers=10)
    assert abs(sum(form.share for form in forms) - 1) < 1e-9
    energy = MMFFEnergy(mol, 300.0)
    form = forms[0]
    state, _ = form.internal.encode(to_geometry(form.reference), None)
    size, rng = len(form.internal.centre), torch.Generator().manual_seed(2)
    drawn = {"shape": torch.randn(40, size, generator=rng, dtype=torch.float64), "torsion": state["torsion"].expand(40, -1)}
    excess = energy(form.internal.decode(drawn, None)) - energy(to_geometry(form.reference))
    assert 0.3 * size < float(excess.median()) < 1.2 * size


def test_a_pose_is_of_the_form_it_was_drawn_from(pocket):
    mol = placed("CC(=O)N1CCOCC1", outside())
    systems = [describe_complex(mol, pocket, form) for form in ring_forms(mol, conformers=10)]
    for k, system in enumerate(systems):
        reference = system.reference.positions[:, : system.n_ligand]
        assert int(nearest_form(reference, systems)[0]) == k


def test_volume_with_rotors_and_rings_and_labels(pocket):
    """The Jacobian by automatic differentiation; renaming a methyl group's hydrogens changes no heavy atom."""
    mol = placed("CCCOC1CC1", outside())
    system, coordinates, space = describe_complex(mol, pocket, ring_forms(mol, conformers=4)[0]), Bound(), SO3()
    assert system.internal.zmatrix.rotors
    state, _ = coordinates.encode(to_geometry(mol), system)
    sizes = {name: x.shape[1] for name, x in state.items()}

    def place(v):
        parts = dict(zip(sizes, v.split(list(sizes.values())), strict=True))
        moved = {name: x + parts[name] for name, x in state.items()}
        return coordinates.ligand({**moved, "turn": space.exp(state["turn"], parts["turn"][None])}, system).flatten()

    jacobian = torch.autograd.functional.jacobian(place, torch.zeros(sum(sizes.values()), dtype=torch.float64))
    # A rotor's torsion is a third of its state's, and stands for the three ways to name its atoms.
    units = math.log(8 * math.pi**2) + sizes["torsion"] * math.log(2 * math.pi) + len(system.internal.zmatrix.rotors) * math.log(3)
    found = torch.linalg.slogdet(jacobian).logabsdet + units
    torch.testing.assert_close(coordinates.log_volume(state, system)[0], found, atol=1e-6, rtol=0)
    geometry = coordinates.decode({name: x.expand(6, -1) for name, x in state.items()}, system)
    renamed = coordinates.labelled(geometry, system, Streams(1, range(6)))
    assert float((renamed.positions - geometry.positions).abs().max()) > 0.5
    again = coordinates.decode(coordinates.encode(renamed, system)[0], system).positions
    torch.testing.assert_close(again, geometry.positions)


def test_frames_about_a_pose_stay_near_it_and_are_thermal(pocket):
    mol = placed("OCc1ccccc1", outside())
    data = posed(mol, pocket, n=24)
    energy = PocketEnergy(mol, pocket)
    ligand = Bound().ligand({name: x.double() for name, x in data.frames.state.items()}, data.system)
    dim = sum(x.shape[1] for x in data.frames.state.values())
    u = energy(Geometry(ligand))
    low = relax(ligand[:1], energy).after
    assert 0.2 * dim < float((u - low).median()) < 1.2 * dim
    start = relax(to_geometry(mol).positions, energy, restraint=1.0).positions
    heavy = data.system.numbers[: data.system.n_ligand] > 1
    assert float((ligand - start)[:, heavy].square().sum(-1).mean(1).sqrt().median()) < 1.0


def test_forces_on_a_placement_are_those_of_the_energy(pocket):
    """What score matching on forces learns from: the gradient of log density along places, rotations, torsions and shapes."""
    mol = placed("OCc1ccccc1", outside() + np.array([3.0, 0, 0]))
    system, coordinates, energy = describe_complex(mol, pocket, ring_forms(mol, conformers=4)[0]), Bound(), PocketEnergy(mol, pocket)
    process = PoseGraphormer(width=32, heads=4, layers=1).process(system)
    whole = torch.cat([to_geometry(mol).positions, torch.from_numpy(pocket.positions)[None]], 1)
    frames = frames_of(coordinates, system, Geometry(whole), energy, process=process)
    state, _ = coordinates.encode(Geometry(whole), system)
    rng = torch.Generator().manual_seed(0)
    for name, x in state.items():
        direction = torch.randn(x.shape, generator=rng, dtype=torch.float64)
        still = {key: torch.zeros_like(y) for key, y in state.items()}
        values = []
        for sign in (1, -1):
            moved = process.exp(state, {**still, name: sign * 1e-5 * direction})
            values.append(coordinates.log_volume(moved, system) - energy(coordinates.decode(moved, system)))
        wanted = float((values[0] - values[1]) / 2e-5)
        assert float((frames.force[name].double() * direction).sum()) == pytest.approx(wanted, rel=1e-3, abs=1e-3 * abs(wanted) + 1e-2)


# -- poses --------------------------------------------------------------------------------------------------------------


def test_poses_depend_on_seed_and_index_alone(pocket):
    mol = placed("CC(=O)N1CCOCC1", outside())
    forms = ring_forms(mol, conformers=10)
    dig = untrained(describe_complex(mol, pocket, forms[0]))
    proposal = PoseProposal(bound_to(dig, mol, pocket, forms), [form.share for form in forms])
    all_at_once = proposal.draw(5, Streams(3, range(5)))
    last = proposal.draw(2, Streams(3, range(3, 5)))
    torch.testing.assert_close(all_at_once.geometry.positions[3:], last.geometry.positions)
    torch.testing.assert_close(all_at_once.log_q[3:], last.log_q)
    assert bool((proposal.forms(all_at_once.geometry.positions) == all_at_once.state["form"])[all_at_once.valid].all())


def test_walls_know_overlaps_and_keep_poses_out_of_them(pocket):
    mol = placed("OCc1ccccc1", outside())
    system, coordinates = describe_complex(mol, pocket, ring_forms(mol, conformers=4)[0]), Bound()
    depth = Overlap(mol, pocket)
    away, inside = (
        coordinates.encode(to_geometry(placed("OCc1ccccc1", at)), system)[0]
        for at in (outside() + np.array([9.0, 0, 0]), pocket.positions[pocket.heavy].mean(0))
    )
    assert float(depth(away, system)) == 0.0 and float(depth(inside, system)) > 1.0
    step = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(depth({**inside, "place": inside["place"] + step}, system).sum(), step)
    shift = 1e-5 * torch.nn.functional.normalize(slope, dim=1)
    up, down = (depth({**inside, "place": inside["place"] + s * shift}, system) for s in (1, -1))
    assert float((up - down) / 2e-5) == pytest.approx(float(slope.norm()), rel=1e-3)
    dig = untrained(system)
    plain, guided = (d.proposal(steps=16).draw(24, Streams(2, range(24))) for d in (dig, dig.guided(avoid_overlaps(mol, pocket))))
    before, after = (depth(s.state, system).mean() for s in (plain, guided))
    assert float(after) < 0.5 * float(before) and bool(torch.isfinite(guided.log_q).all())


def test_a_chain_with_an_untrained_model_samples_the_energy(pocket):
    """A spring to a place in the pocket and nothing else: the chain's mean place is right, though the model knows nothing of it."""
    mol = placed("CCO", outside())
    forms = ring_forms(mol, conformers=4)
    system = describe_complex(mol, pocket, forms[0])
    dig = untrained(system)
    proposal = PoseProposal(bound_to(dig, mol, pocket, forms), [form.share for form in forms])
    inner, middle = MMFFEnergy(mol, 300.0), torch.from_numpy(outside()) + torch.tensor([0.6, 0.0, 0.0])
    root = 1  # the carbon that the placement is about, whose place is free of the rest of the state

    def energy(geometry: Geometry) -> torch.Tensor:
        return inner(geometry) + 0.5 * (geometry.positions[:, root] - middle).square().sum(-1) / 1.5**2

    chain = MonteCarlo(proposal, energy, Geometry(to_geometry(mol).positions), seed=5, batch=200)
    visited, records = chain.block(1000)
    assert records.accepted.mean() > 0.02
    gap = visited[200:, root] - middle.numpy()
    error = 1.5 / math.sqrt(records.accepted.sum() / 2)
    assert np.abs(gap.mean(0)).max() < 4 * error
    assert 0.7 < gap.std(0).mean() / 1.5 < 1.3


def test_hybrid_moves_sample_the_energy(pocket):
    """A bond's length under MMFF94 is distributed as importance weights from its harmonic law say."""
    mol = placed("CCO", outside())
    energy = PocketEnergy(mol, pocket)
    start = relax(to_geometry(mol).positions, energy)
    moves, x, lengths, u = HybridMoves(energy, seed=3, count=1), start.positions[0].numpy(), [], []
    for block in range(300):
        x = moves(x, block)
        lengths.append(np.linalg.norm(x[0] - x[1]))
        u.append(float(energy(Geometry(torch.from_numpy(x[None])))))
    assert moves.accepted > 0.6 * moves.proposed
    # Equipartition: 27 coordinates share the energy, most of them stiff.
    excess = np.mean(u[60:]) - float(start.after)
    assert 0.5 * 18 < excess < 0.5 * 34
    assert abs(np.mean(lengths[60:]) - 1.52) < 0.03 and 0.015 < np.std(lengths[60:]) < 0.05


def test_a_corrected_chain_starts_from_a_minimum_and_stays_low(pocket):
    mol = placed("CCO", outside())
    dig = untrained(describe_complex(mol, pocket, ring_forms(mol, conformers=4)[0]))
    found = sample_poses(pocket, mol, 12, model=dig, seed=4, correct="mc", batch=16)
    energy = PocketEnergy(mol, pocket)
    low = float(relax(torch.from_numpy(found.positions[-1:]), energy).after) * energy.kt
    assert len(found) == 12 and bool((found.energy - low < 40 * energy.kt).all())
    everywhere = np.ones(12, dtype=bool)
    assert found.free_energy_difference(everywhere, everywhere).value == pytest.approx(0.0)


def test_ensembles_have_clusters_checks_and_files(pocket, tmp_path):
    mol = placed("OCc1ccccc1", outside())
    dig = untrained(describe_complex(mol, pocket, ring_forms(mol, conformers=4)[0]))
    found = sample_poses(pocket, mol, 6, model=dig, seed=4)
    assert len(found) == 6 and np.isfinite(found.log_q).all()
    clusters = found.clusters()
    assert sorted(k for c in clusters for k in c.members) == list(range(6))
    assert abs(sum(c.probability.value for c in clusters) - 1) < 1e-9
    found.write_sdf(tmp_path / "poses.sdf")
    read = list(Chem.SDMolSupplier(str(tmp_path / "poses.sdf"), removeHs=False))
    assert len(read) == 6
    np.testing.assert_allclose(read[2].GetConformer().GetPositions(), found.positions[2], atol=1e-3)
    assert float(read[2].GetProp("log_q")) == pytest.approx(float(found.log_q[2]))
    with pytest.raises(IncompatibleError, match="no directory"):
        found.write_sdf(tmp_path / "nowhere" / "poses.sdf")
    weighed = sample_poses(pocket, mol, 4, model=dig, seed=4, correct="reweight")
    np.testing.assert_allclose(weighed.positions, found.positions[:4])
    usable = np.isfinite(weighed.log_weight)
    kt = PocketEnergy(mol, pocket).kt
    np.testing.assert_allclose(weighed.log_weight[usable], (-weighed.energy / kt - weighed.log_q)[usable])


@pytest.mark.parametrize("smiles", ["c1ccccc1", "CC#N"])
def test_ligands_without_torsions_are_placed(pocket, smiles):
    mol = of_smiles(smiles, seed=1)
    dig = untrained(describe_complex(mol, pocket, ring_forms(mol, conformers=4)[0]))
    found = sample_poses(pocket, mol, 3, model=dig, seed=1)
    assert np.isfinite(found.log_q).any() and np.linalg.norm(found.positions.mean(1) - pocket.centre, axis=1).max() < 40
    frames = frames_of(dig.coordinates, dig.descriptor, Geometry(torch.from_numpy(found.positions)))
    loss = Poses([(dig.descriptor, frames)]).evaluate(dig.model, seed=0)
    assert all(math.isfinite(x) for x in loss.values())


def test_what_cannot_be_sampled_is_refused(pocket):
    mol = placed("CCO", outside())
    dig = untrained(describe_complex(mol, pocket, ring_forms(mol, conformers=4)[0]))
    with pytest.raises(IncompatibleError, match="correct"):
        sample_poses(pocket, mol, 2, model=dig, correct="some")
    with pytest.raises(IncompatibleError, match="relaxed"):
        sample_poses(pocket, mol, 2, model=dig, correct="mc", relaxed=True)
    with pytest.raises(IncompatibleError, match="hydrogen"):
        sample_poses(pocket, Chem.RemoveHs(mol), 2, model=dig)
    with pytest.raises(IncompatibleError, match="not specified"):
        sample_poses(pocket, Chem.AddHs(Chem.MolFromSmiles("CC(F)Cl")), 2, model=dig)
    with pytest.raises(UnsupportedError, match="one molecule"):
        sample_poses(pocket, Chem.AddHs(Chem.MolFromSmiles("CC(=O)[O-].[Na+]")), 2, model=dig)
    with pytest.raises(UnsupportedError, match="at most"):
        sample_poses(pocket, mol, 2, model=dig, max_atoms=5)


def test_rmsd_knows_symmetries_and_does_not_superpose():
    mol = of_smiles("O=C([O-])c1ccccc1", seed=2)
    x = to_geometry(mol).positions[0].numpy()
    oxygens = [a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() == 8]
    swapped = x.copy()
    swapped[oxygens] = x[oxygens[::-1]]
    both = with_conformers(mol, np.stack([x, swapped, x + np.array([3.0, 0, 0])]))
    np.testing.assert_allclose(pose_rmsd(mol, both)[0], [0.0, 0.0, 3.0], atol=1e-6)


def test_checks_find_what_is_wrong_and_nothing_else(pocket):
    mol = placed("OCc1ccccc1", outside() + np.array([6.0, 0, 0]))
    x = to_geometry(mol).positions[0].numpy()
    stretched, bent, buried = x.copy(), x.copy(), x.copy()
    oxygen = next(a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() == 8)
    carbon = next(a.GetIdx() for a in mol.GetAtomWithIdx(oxygen).GetNeighbors() if a.GetAtomicNum() == 6)
    stretched[oxygen] += 0.7 * (x[oxygen] - x[carbon])
    ring = list(mol.GetRingInfo().AtomRings()[0])
    normal = np.linalg.svd(x[ring] - x[ring].mean(0))[2][2]
    bent[ring[0]] += 0.9 * normal
    buried += pocket.positions[pocket.heavy][0] - x[ring].mean(0)
    found = check_poses(with_conformers(mol, np.stack([x, stretched, bent, buried])), pocket)
    assert found.ok.tolist() == [True, False, False, False]
    assert not found.bonds[1] and not found.flat[2] and not (found.distance[3] and found.overlap[3])
    assert found.bonds[3] and found.angles[3] and found.flat[3]


# -- the recipe -----------------------------------------------------------------------------------------------------------


def test_three_ligands_of_ten_are_withheld_once_and_for_all():
    for target in recipe.TARGETS:
        aside = recipe.withheld(30, target)
        assert len(aside) == len(set(aside)) == 9 and max(aside) < 30
        assert aside == recipe.withheld(30, target)
    assert recipe.withheld(30, "bace") != recipe.withheld(30, "tyk2")


def test_a_file_of_poses_trains_a_model_that_goes_on_where_it_was_stopped(pocket, tmp_path):
    data = {f"tyk2-{k}": posed(placed(smiles, outside()), pocket, n=4) for k, smiles in enumerate(("CCO", "OCc1ccccc1", "CC(=O)NC"))}
    tensors = {f"{name}.{key}": x for name, one in data.items() for key, x in recipe._tensors(one.system, one.frames).items()}
    rows = [{"name": name, "target": "tyk2", "withheld": name == "tyk2-2", "moved": one.moved} for name, one in data.items()]
    file = tmp_path / "poses.safetensors"
    file.write_bytes(to_bytes(tensors, metadata={"poses": json.dumps(rows)}))
    for (about, system, frames), (name, one) in zip(recipe.read_poses(file), data.items(), strict=True):
        assert about["name"] == name
        state = {key: x.double() for key, x in frames.state.items()}
        for found, wanted in zip(Bound().decode(state, system), Bound().decode(state, one.system), strict=True):
            assert wanted is None or float((found - wanted).abs().max()) < 1e-3
    options = {"without": None, "seconds": None, "batch": 4, "device": "cpu", "seed": 1, "size": {"width": 32, "heads": 4, "layers": 1}}
    whole = recipe.train(file, tmp_path / "whole", steps=4, **options)
    again = recipe.train(file, tmp_path / "whole", steps=4, **options)
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert whole.card.scope == {"target": ["tyk2"], "withheld": ["tyk2-2"]}
    planned = recipe.train(file, tmp_path / "planned", steps=0, **{**options, "seconds": 0.1})
    assert planned.card.history[0]["steps"] == json.loads((tmp_path / "planned" / "plan.json").read_text())["steps"]
