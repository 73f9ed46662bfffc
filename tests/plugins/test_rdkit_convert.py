"""Molecules of RDKit: what is read from them, what is refused and with which words, structures in and out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dig_core.errors import IncompatibleError, StateError, UnsupportedError
from dig_core.types import Geometry

Chem = pytest.importorskip("rdkit.Chem")
from rdkit.Chem import rdForceFieldHelpers as forcefields  # noqa: E402

from dig_plugins.rdkit import convert, facts  # noqa: E402

LACTIC = "C[C@H](O)C(=O)[O-]"


def test_descriptor_is_the_graph_s():
    mol = convert.of_smiles("C[n+]1ccccc1")
    found = convert.describe(mol)
    assert found.numbers.tolist() == [a.GetAtomicNum() for a in mol.GetAtoms()]
    assert {tuple(sorted(b)) for b in found.bonds.tolist()} == {
        tuple(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx()))) for b in mol.GetBonds()
    }
    assert (found.node[:, 2] - 8).tolist() == [a.GetFormalCharge() for a in mol.GetAtoms()]
    assert found.pair[0, 1, 1] == 1 and found.pair[1, 2, 1] == 4  # single to the ring, aromatic in it
    torch.testing.assert_close(found.reference.positions, convert.to_geometry(mol).positions)


def test_same_seed_same_structure_and_other_seeds_other_ones():
    first, again, other = (convert.to_geometry(convert.of_smiles("CCCCO", seed=s)).positions for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.1)


def test_reference_is_a_minimum_of_mmff():
    mol = convert.of_smiles("OCC(=O)N")
    field = forcefields.MMFFGetMoleculeForceField(mol, forcefields.MMFFGetMoleculeProperties(mol, mmffVariant="MMFF94s"))
    assert np.abs(field.CalcGrad()).max() < 0.05


@pytest.mark.parametrize("smiles", [LACTIC, "C[C@@H](O)C(=O)[O-]", "C/C=C/Cl", "C/C=C\\Cl", "C[C@H]1CC[C@@H](C)CC1"])
def test_structures_are_of_the_isomer_that_was_asked_for(smiles):
    mol = convert.of_smiles(smiles)
    seen = Chem.Mol(mol)
    Chem.AssignStereochemistryFrom3D(seen)
    assert Chem.MolToSmiles(Chem.RemoveHs(seen)) == Chem.MolToSmiles(Chem.MolFromSmiles(smiles))
    mirrored = convert.with_conformers(mol, Geometry(-convert.to_geometry(mol).positions))
    if "@" in smiles and "1" not in smiles:
        with pytest.raises(IncompatibleError, match="the structure is that of"):
            convert.describe(mirrored)
    else:
        convert.describe(mirrored)


@pytest.mark.parametrize(
    ("smiles", "error", "words"),
    [
        ("C(C)(C)(C)(C)C", IncompatibleError, "valence for atom # 0"),
        ("c1cccc1", IncompatibleError, "kekulize"),
        ("C(", IncompatibleError, "syntax"),
        ("CC(F)Cl", IncompatibleError, r"C1.*enumerate_stereo"),
        ("CC=CC", IncompatibleError, "C1=C2"),
        ("[Na+].CC(=O)[O-]", UnsupportedError, r"got 2: \[Na\+\]"),
        ("C[Zn]C", UnsupportedError, "Zn1"),
        ("CB(O)O", UnsupportedError, "no parameters for B1"),
        ("[CH2]C", UnsupportedError, "unpaired electrons at C0"),
        ("CC=C=CC", UnsupportedError, "axis C1=C2=C3 has two"),
        ("C*", UnsupportedError, "no element"),
        ("C" * 80, UnsupportedError, "at most 200 atoms, got 242"),
        ("C1C[C@@H]2CC[C@@H]1C2", StateError, "no 3D structure found"),
    ],
)
def test_what_is_no_molecule_is_refused(smiles, error, words):
    with pytest.raises(error, match=f"(?i){words}"):
        convert.of_smiles(smiles)


def test_missing_hydrogens_and_structures_are_asked_for():
    with pytest.raises(IncompatibleError, match="AddHs"):
        convert.describe(Chem.MolFromSmiles("CCO"))
    with pytest.raises(IncompatibleError, match="reference_structure"):
        convert.describe(Chem.AddHs(Chem.MolFromSmiles("CCO")))
    with pytest.raises(IncompatibleError, match="RDKit molecule"):
        convert.describe(None)


def test_sdf_comes_back_and_its_structure_says_the_stereochemistry(tmp_path):
    mol, path = convert.of_smiles("C[C@H](O)/C=C/Cl"), tmp_path / "one.sdf"
    path.write_text(Chem.MolToMolBlock(mol) + "$$$$\n")
    back = convert.of_sdf(path)
    assert Chem.MolToSmiles(back) == Chem.MolToSmiles(mol)
    torch.testing.assert_close(convert.to_geometry(back).positions, convert.to_geometry(mol).positions, atol=1e-3, rtol=0)
    path.write_text(2 * (Chem.MolToMolBlock(mol) + "$$$$\n"))
    with pytest.raises(IncompatibleError, match=r"2 molecule\(s\)"):
        convert.of_sdf(path)
    assert convert.of_sdf(path, record=1).GetNumAtoms() == mol.GetNumAtoms()


def test_wrong_sdf_is_refused(tmp_path):
    path = tmp_path / "wrong.sdf"
    with pytest.raises(IncompatibleError, match="there is no file"):
        convert.of_sdf(path)
    mol = Chem.RWMol(convert.of_smiles("C=CC"))
    mol.GetBondBetweenAtoms(0, 1).SetBondType(Chem.BondType.SINGLE)
    mol.UpdatePropertyCache(strict=False)
    path.write_text(Chem.MolToMolBlock(mol, kekulize=False).replace("RAD", "   ") + "$$$$\n")
    with pytest.raises((IncompatibleError, UnsupportedError), match="bond orders or formal charges"):
        convert.of_sdf(path)
    mol.GetBondBetweenAtoms(0, 1).SetBondType(Chem.BondType.TRIPLE)
    path.write_text(Chem.MolToMolBlock(mol, kekulize=False) + "$$$$\n")
    with pytest.raises(IncompatibleError, match="valence.*bond orders"):
        convert.of_sdf(path)
    path.write_text(Chem.MolToMolBlock(Chem.AddHs(Chem.MolFromSmiles("CCO"))) + "$$$$\n")
    with pytest.raises(IncompatibleError, match="3D"):
        convert.of_sdf(path)


def test_conformers_in_and_out_with_their_properties():
    mol = convert.embed(convert.of_smiles("CCCC"), 5, seed=3)
    geometry = convert.to_geometry(mol)
    back = convert.with_conformers(mol, geometry, energy=np.arange(5.0))
    torch.testing.assert_close(convert.to_geometry(back).positions, geometry.positions)
    assert [c.GetDoubleProp("energy") for c in back.GetConformers()] == [0, 1, 2, 3, 4]
    with pytest.raises(IncompatibleError, match="expected positions"):
        convert.with_conformers(mol, geometry.positions[:, 1:].numpy())


def test_open_stereochemistry_is_enumerated():
    mol = Chem.MolFromSmiles("CC(F)C=CC")
    isomers = {Chem.MolToSmiles(m) for m in facts.enumerate_stereo(mol)}
    assert isomers == {Chem.CanonSmiles(f"C[C{a}H](F)/C=C{b}C") for a in ("@", "@@") for b in ("/", "\\")}
    assert len(facts.enumerate_stereo(Chem.MolFromSmiles("C[C@H](F)Cl"))) == 1
    with pytest.raises(UnsupportedError, match="limit=2"):
        facts.enumerate_stereo(mol, limit=2)


@pytest.mark.parametrize(
    "smiles",
    [
        "C1C2CC1C2",  # distance geometry's own bounds on handedness refuse it
        "NC12CC(C1)(C2)C(=O)O", "C1CC2CCC1C2", "C1CN2CCN1CC2", "C1CN2CCC1CC2", "C1N2CN3CN1CN(C2)C3", "CC12CC3CC(C1)(CC(C3)(C2)N)C",
        "CN1[C@@H]2CCC1CC2", "C1C2CNCC1c1ccccc12", "CN=[N+]=[N-]", "CC=C=O", "CN=C=NC", "CC=C=C", "C[C@H]1C[N@@]1C",
    ],
)  # fmt: skip
def test_what_has_no_choice_need_not_be_said(smiles, tmp_path):
    """Cages of which one stereoisomer can be, nitrogens that cages hold, cumulated double bonds; the file says the same as the SMILES."""
    mol = convert.of_smiles(smiles)
    (only,) = facts.enumerate_stereo(mol)
    assert Chem.MolToSmiles(only) == Chem.MolToSmiles(mol) and not facts.unspecified_stereo(mol)
    convert.describe(mol)
    assert convert.embed(mol, 4, seed=2).GetNumConformers() == 4
    path = tmp_path / "one.sdf"
    path.write_text(Chem.MolToMolBlock(mol) + "$$$$\n")
    back = convert.of_sdf(path)
    assert Chem.MolToSmiles(Chem.RemoveHs(back)) == Chem.MolToSmiles(Chem.RemoveHs(Chem.MolFromSmiles(Chem.MolToSmiles(back))))
    assert convert.embed(back, 2, seed=3).GetNumConformers() == 2


@pytest.mark.parametrize(
    ("smiles", "count"),
    [("CC1(C)C2CCC1(C)C(=O)C2", 2), ("CN1C2CCC1CC(O)C2", 2), ("CC(F)C12CC3CC(C1)CC(C3)C2", 2), ("OC1CC2CCC1C2", 4), ("CN1CC1C", 4)],
)
def test_isomers_of_cages_are_those_that_can_be(smiles, count):
    """Camphor's mirror images, tropine and its epimer, a centre beside adamantane, norborneols: each can be built and is told apart."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert facts.unspecified_stereo(mol)
    isomers = [convert.reference_structure(isomer) for isomer in facts.enumerate_stereo(mol)]
    assert len({Chem.MolToSmiles(isomer) for isomer in isomers}) == len(isomers) == count
    for isomer in isomers:
        convert.describe(isomer)
    if "@" in Chem.MolToSmiles(isomers[0]) and smiles.startswith("CC1(C)"):
        with pytest.raises(IncompatibleError, match="the structure is that of"):
            convert.describe(convert.with_conformers(isomers[0], -convert.to_geometry(isomers[0]).positions.numpy()))


def test_facts_of_the_graph():
    mol = convert.of_smiles("CC(C)c1ccc(cc1)C(=O)NC/C=C/[C@H](F)Cl")
    classes = facts.symmetry_classes(mol)
    assert classes[0] == classes[2] != classes[1] and classes[4] == classes[8] and classes[5] == classes[7]
    assert facts.rotatable_bonds(mol) == [(1, 3), (6, 9), (9, 11), (11, 12), (12, 13), (14, 15)]
    assert facts.ring_atoms(mol) and len(facts.ring_atoms(mol)[0]) == 6
    assert [(s.atoms, s.label) for s in facts.stereo_bonds(mol)] == [((13, 14), "E")]
    (centre,) = facts.stereo_centres(mol)
    assert centre.atoms == (15,) and centre.label in "RS" and centre.configuration in ("clockwise", "counterclockwise")


@pytest.mark.parametrize(
    ("smiles", "wanted"),
    [
        ("CN(CC)C(C)C", [1]),
        ("CNCC", [1]),
        ("CN", [1]),
        ("CN1CCCCC1", [1]),
        *((other, []) for other in ("CNC(C)=O", "c1ccccc1NC", "C1CN1C", "c1ccn(C)c1", "C[NH+](C)C")),
    ],
)
def test_nitrogens_that_invert(smiles, wanted):
    assert facts.inverting_nitrogens(Chem.AddHs(Chem.MolFromSmiles(smiles))) == wanted
