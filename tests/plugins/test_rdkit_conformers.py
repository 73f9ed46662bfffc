"""Conformers with exact weights, laws that hold for any energy and any network, and models trained on MMFF94 alone."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch

Chem = pytest.importorskip("rdkit.Chem")

import dig_plugins.rdkit.training as training  # noqa: E402
from dig_core.coordinates.measure import dihedral  # noqa: E402
from dig_core.dig import Card, DiG  # noqa: E402
from dig_core.errors import IncompatibleError, StateError  # noqa: E402
from dig_core.testing import check_coordinates  # noqa: E402
from dig_core.training.molecule import internal_model  # noqa: E402
from dig_core.types import Geometry  # noqa: E402
from dig_plugins.rdkit import convert  # noqa: E402
from dig_plugins.rdkit.conformers import sample_conformers  # noqa: E402
from dig_plugins.rdkit.coordinates import internal_coordinates  # noqa: E402
from dig_plugins.rdkit.energy import MMFFEnergy  # noqa: E402
from dig_plugins.rdkit.ensemble import torsion_states, torsions_of  # noqa: E402

SMALL = {"width": 32, "blocks": 2}


@pytest.fixture(autouse=True)
def short_streams(monkeypatch):
    monkeypatch.setattr("dig_core.random._BLOCK", 256)


@functools.cache
def untrained(smiles: str, temperature: float = 300.0) -> tuple[Chem.Mol, DiG]:
    """A model that knows the widths of bonds and angles, and nothing of torsions."""
    mol = convert.of_smiles(smiles)
    coordinates = internal_coordinates(mol, convert.to_geometry(convert.embed(mol, 20, seed=1)), temperature)
    card = Card(name="untrained", temperature=temperature, energy="MMFF94s (RDKit)", steps=8)
    return mol, DiG(internal_model(coordinates, **SMALL), coordinates, convert.describe(mol), card)


@functools.cache
def peroxide(correct: str | None):
    mol, dig = untrained("OO")
    return sample_conformers(mol, 1500, model=dig, correct=correct, seed=2)


def stretching(found) -> np.ndarray:
    """(n,) of hydrogen peroxide's O-H bonds, sum of (r - 1) e . du/dx - 2 (r - 1) / r: its mean over exp(-u) is 2 whatever u is.

    The integral of a divergence is zero: that of (r - 1) e exp(-u), where e is the way from oxygen to its hydrogen.
    """
    positions, total = convert.to_geometry(found.mol).positions, torch.zeros(len(found), dtype=torch.float64)
    _, gradient = MMFFEnergy(found.mol, found.temperature).energy_and_gradient(Geometry(positions))
    for oxygen, hydrogen in ((0, 2), (1, 3)):
        bond = positions[:, hydrogen] - positions[:, oxygen]
        r = bond.norm(dim=1)
        total += (r - 1) * (bond / r[:, None] * gradient[:, hydrogen]).sum(1) - 2 * (r - 1) / r
    return total.numpy()


def turn(found) -> np.ndarray:
    """(n,) rad: the dihedral of hydrogen peroxide."""
    return dihedral(convert.to_geometry(found.mol).positions, [(2, 0, 1, 3)])[:, 0].numpy()


@pytest.mark.parametrize("correct", ["reweight", "mc"])
def test_exact_laws_hold_with_an_untrained_model(correct):
    found = peroxide(correct)
    assert found.effective_sample_size() > 150 and 0.1 < found.acceptance < 1
    value, stderr = found.average(stretching(found))
    assert abs(value - 2) < 4 * stderr < 1.5, (value, stderr)
    value, stderr = found.free_energy_difference(turn(found) > 0, turn(found) < 0)
    assert abs(value) < 4 * stderr < 0.8


def test_any_energy_weighs_the_same_draws():
    """Springs between all atoms: weights differ by the difference of energies, which are in kcal/mol of the one asked for."""
    mol, dig = untrained("OO")
    plain = sample_conformers(mol, 8, model=dig, seed=3)
    mmff = MMFFEnergy(mol, 300.0)

    def springs(geometry: Geometry) -> torch.Tensor:
        return geometry.positions.double().square().sum((1, 2))

    other = sample_conformers(mol, 8, model=dig, energy=springs, seed=3)
    positions = convert.to_geometry(other.mol)
    np.testing.assert_allclose(other.log_weight - plain.log_weight, (mmff(positions) - springs(positions)).numpy(), atol=1e-6)
    np.testing.assert_allclose(other.energy, springs(positions).numpy() * mmff.kt)
    with pytest.raises(IncompatibleError, match="250 K.*300 K"):
        sample_conformers(mol, 8, model=dig, energy=MMFFEnergy(mol, 250.0))
    with pytest.raises(IncompatibleError, match="OpenMMEnergy"):
        sample_conformers(mol, 8, model=dig, energy="sage")


def test_an_uncorrected_model_is_what_it_is():
    """It turns freely, where MMFF has next to nothing near cis."""
    found, exact = peroxide(None), peroxide("reweight")
    assert (found.log_weight == 0).all() and found.effective_sample_size() == pytest.approx(len(found))
    assert found.average(np.abs(turn(found)) < 0.7).value > 0.15 > 0.05 > exact.average(np.abs(turn(exact)) < 0.7).value


def test_conformers_carry_their_numbers_and_files_do_too(tmp_path):
    mol, dig = untrained("OO")
    found, path = sample_conformers(mol, 30, model=dig, seed=4), tmp_path / "conformers.sdf"
    for name in ("energy", "log_q", "log_weight"):
        np.testing.assert_array_equal([c.GetDoubleProp(name) for c in found.mol.GetConformers()], getattr(found, name))
    energy = MMFFEnergy(found.mol, 300.0)
    np.testing.assert_allclose(energy(convert.to_geometry(found.mol)).numpy() * energy.kt, found.energy, rtol=1e-9)
    found.write_sdf(path)
    records = list(Chem.SDMolSupplier(str(path), removeHs=False))
    assert len(records) == len(found) and float(records[7].GetProp("log_weight")) == found.log_weight[7]
    with pytest.raises(IncompatibleError, match="no directory"):
        found.write_sdf(tmp_path / "nowhere" / "conformers.sdf")


def test_a_conformer_depends_on_its_seed_and_number_alone():
    mol, dig = untrained("OO")
    whole, part = (sample_conformers(mol, n, model=dig, seed=2, batch=b) for n, b in ((40, 16), (20, 20)))
    np.testing.assert_allclose(whole.log_weight[:20], part.log_weight, atol=1e-9)


def test_populations_of_states():
    found = peroxide("reweight")
    states = (found.energy < np.median(found.energy)).astype(int)
    shares = found.populations(states)
    assert sum(share.value for share in shares.values()) == pytest.approx(1)
    assert shares[(1,)].value == pytest.approx(found.weights[states == 1].sum()) and 0 < shares[(1,)].stderr < 0.1
    with pytest.raises(StateError):
        found.free_energy_difference(states == 7, states == 8)
    with pytest.raises(IncompatibleError, match="one state for each"):
        found.populations(np.zeros((3, 2)))


def test_torsions_and_their_states():
    mol = convert.of_smiles("CCCC1CCCCC1")
    torsions = torsions_of(mol)
    assert len(torsions) == 8 and (0, 1, 2, 3) in torsions  # two that turn, six in the ring
    butane = convert.of_smiles("CCCC", seed=3)
    angle = dihedral(convert.to_geometry(butane).positions, [(0, 1, 2, 3)]).item()
    wanted = 1 if abs(angle) > 2.1 else int(angle < 0) * -1
    assert torsion_states(butane, [(0, 1, 2, 3)]).tolist() == [[wanted]]


@pytest.mark.parametrize(("other", "words"), [("OF", "atoms"), ("NN", "atoms"), ("[O-]S", "atoms")])
def test_a_model_of_another_molecule_is_refused(other, words):
    with pytest.raises(IncompatibleError, match=words):
        sample_conformers(convert.of_smiles(other), 4, model=untrained("OO")[1])


def test_what_does_not_fit_is_refused():
    mol, dig = untrained("OO")
    with pytest.raises(IncompatibleError, match="300 K"):
        sample_conformers(mol, 4, 310.0, model=dig)
    with pytest.raises(IncompatibleError, match="MMFF94s"):
        sample_conformers(mol, 4, model=dig, variant="MMFF94")
    with pytest.raises(IncompatibleError, match="correct"):
        sample_conformers(mol, 4, model=dig, correct="clip")
    with pytest.raises(IncompatibleError, match="at least 1"):
        sample_conformers(mol, 0, model=dig)
    for nothing in (None, "OO", Chem.Mol()):
        for model_ in (dig, "wells", "conformers", None):
            with pytest.raises(IncompatibleError, match="RDKit molecule"):
                sample_conformers(nothing, 4, model=model_)
    chiral, model = untrained("C[C@H](F)Cl")
    with pytest.raises(IncompatibleError, match="structure is that of"):
        sample_conformers(convert.of_smiles("C[C@@H](F)Cl"), 4, model=model)
    assert sample_conformers(chiral, 4, model=model, seed=1).mol.GetNumConformers() == 4


@pytest.mark.parametrize(
    ("smiles", "free"), [("C1CCCC1", 0), ("C/C=C/Cl", 1), ("CNCC", 4), ("CC#CCO", 2), ("OC(=O)[C@@H]1CCCN1", 3), ("Cc1ccccc1", 1)]
)
def test_what_turns_is_free_and_what_does_not_is_narrow(smiles, free):
    mol = convert.of_smiles(smiles)
    rough = convert.to_geometry(convert.embed(mol, 40, seed=1))
    coordinates, descriptor = internal_coordinates(mol, rough, 300.0), convert.describe(mol)
    assert len(coordinates.torsion_atoms) == free, coordinates.torsion_atoms
    state, _ = coordinates.encode(rough, descriptor)
    # Distance geometry is rough, but hydrogens of a CH2 that changed places would be 25 widths off.
    assert coordinates.valid(state, descriptor).all() and float(state["shape"].abs().max()) < 12
    noise = torch.randn(3, descriptor.n_atoms, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near = Geometry(descriptor.reference.positions + 0.03 * noise)
    check_coordinates(coordinates, internal_model(coordinates, **SMALL).process, near, descriptor)


@pytest.mark.parametrize("smiles", ["CCCC#N", "CC#CCO", "CCN=[N+]=[N-]", "CN=C=O"])
def test_bonds_behind_straight_angles_are_as_long_as_others(smiles):
    """Their three columns are of the same atoms. A minimum is where normal numbers are; what these draw has bonds of MMFF94's lengths."""
    mol = convert.of_smiles(smiles)
    coordinates = internal_coordinates(mol, convert.to_geometry(convert.embed(mol, 20, seed=1)), 300.0)
    descriptor = convert.describe(mol)
    state, _ = coordinates.encode(convert.to_geometry(mol), descriptor)
    assert float(state["shape"].abs().max()) < 4
    rng = torch.Generator().manual_seed(0)
    drawn = {
        "shape": torch.randn(200, state["shape"].shape[1], generator=rng, dtype=torch.float64),
        "torsion": state["torsion"].expand(200, -1),
    }
    places, rest = coordinates.decode(drawn, descriptor).positions, convert.to_geometry(mol).positions[0]
    for bond in mol.GetBonds():
        pair = [bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()]
        assert abs(float((places[:, pair[0]] - places[:, pair[1]]).norm(dim=1).mean() - (rest[pair[0]] - rest[pair[1]]).norm())) < 0.02


def test_mmff_is_enough_to_train_on(tmp_path, monkeypatch):
    """Sizes are those of a plan, so that the test takes seconds; a second call finds the work done."""
    monkeypatch.setattr(training, "internal_model", lambda c, *, width, seed: internal_model(c, seed=seed, **SMALL))
    mol = convert.of_smiles("OO")
    loop = {"steps": 100, "every": 100}
    plan = {
        "seed": 3, "numbers": [8, 8, 1, 1], "temperature": 300.0,
        "sizes": {"population": {"walkers": 100, "settle": 24, "harvest": 40, "stride": 4}, "step": 0, "draw": 0, "energy": 0},
        "rest": {"denoise": loop, "reweight": [[500, loop]], "least": 100},
    }  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    found = training.fit_molecule(mol, out=tmp_path, progress=False)
    assert found.finished and found.raw_ess > 0.25 and found.acceptance > 0.3
    assert [stage["stage"] for stage in found.history[1:]] == ["wells", "standardise", "denoise", "reweight"]
    assert found.history[1]["acceptance"] > 0.1
    again = training.fit_molecule(mol, out=tmp_path, progress=False)
    assert again.raw_ess == found.raw_ess and again.evaluations == found.evaluations
    sampled = sample_conformers(mol, 400, model=tmp_path / "model.safetensors", seed=1)
    value, stderr = sampled.average(stretching(sampled))
    assert abs(value - 2) < 4 * stderr < 1
