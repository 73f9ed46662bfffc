"""The recipe of the shipped model of conformers, from molecules to a checkpoint, at a size that takes seconds."""

from __future__ import annotations

import json

import pytest
import torch

Chem = pytest.importorskip("rdkit.Chem")

from dig_core.dig import DiG  # noqa: E402
from dig_core.errors import IncompatibleError  # noqa: E402
from dig_plugins import models  # noqa: E402
from dig_plugins.rdkit import convert, reference, sample_conformers  # noqa: E402
from dig_plugins.rdkit.recipes import conformer_data, conformers  # noqa: E402


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Three molecules with their frames packed, and a plan of three steps."""
    monkeypatch.setattr(conformer_data, "FRAMES", 6)
    monkeypatch.setattr(conformers, "ENCODER", {"width": 16, "layers": 1, "heads": 2, "basis": 8})
    monkeypatch.setattr(conformers, "ASIDE", 1)
    (tmp_path / "molecules").mkdir()
    for smiles in ("CCO", "CNC", "CC#N"):
        mol = convert.of_smiles(smiles)
        conformer_data.prepare(mol, smiles == "CCO", tmp_path / "molecules" / f"{mol.GetNumAtoms()}.safetensors")
    conformer_data.pack(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps({"steps": 3}))
    return tmp_path


def test_from_molecules_to_a_model(small):
    systems = conformers.read_training(small / "training.safetensors")
    assert sorted(d.n_atoms for _, d, _ in systems) == [6, 9, 10]
    for _, descriptor, frames in systems:
        assert float(frames.weight.sum()) == pytest.approx(1, abs=0.01)
        assert len(frames) == 6 + (descriptor.n_atoms == 9 and 8 in descriptor.numbers.tolist())  # the given structure of ethanol
    dig = conformers.train(small, 1.0, 8, "cpu", 1)
    dig.save(small / "model.safetensors")
    assert dig.card.scope["molecules"] == 2 and dig.card.scope["atoms"] == "up to 10" and dig.card.history[0]["steps"] == 3
    found = sample_conformers(convert.of_smiles("CCCO"), 4, model=small / "model.safetensors", seed=1)
    assert len(found) == 4
    later = conformers.train(small, 1.0, 8, "cpu", 1, start=small / "model.safetensors")
    assert len(later.card.history) > len(dig.card.history)


def test_the_shipped_model_serves_molecules_it_never_saw():
    """From nothing but SMILES, with a log_q for every draw."""
    dig = models.load("conformers")
    parameters = sum(p.numel() for p in dig.model.network.parameters())
    found = sample_conformers(convert.of_smiles("OCC(F)F"), 6, model=dig, correct=None, seed=1, steps=4)
    assert parameters < 1.5e6 and torch.isfinite(torch.from_numpy(found.log_q)).all()


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(IncompatibleError, match="geometries_mol"):
        reference.read_conformer_set(tmp_path)


def test_geometries_of_another_molecule_are_left_out():
    """Of bonds that differ, and of another stereochemistry; energies count from the lowest that is left."""
    one, other = (convert.of_smiles(s) for s in ("C[C@H](F)Cl", "C[C@@H](F)Cl"))
    blocks = [Chem.MolToMolBlock(m) for m in (one, other, convert.of_smiles("CCO"), one)]
    found = reference._reference("x", "CC(F)Cl", blocks, [-5.0, -9.0, -9.0, -4.0])
    assert found.left_out == 2 and found.energy.tolist() == [0.0, 1.0] and found.mol.GetNumConformers() == 2


def test_dig_saved_by_the_recipe_is_one(small):
    dig = conformers.train(small, 1.0, 8, "cpu", 2)
    dig.save(small / "again.safetensors")
    assert DiG.load(small / "again.safetensors").card == dig.card
