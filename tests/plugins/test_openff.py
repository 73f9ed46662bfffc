"""Systems of ligands in pockets: each part as its own force field has it, the pair by the rules that both share, errors that help."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")
pytest.importorskip("openmm")
import openmm as mm
from openmm import app
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.types import Geometry
from dig_plugins.openff import complex_system, ligand_system, partial_charges
from dig_plugins.openmm import OpenMMEnergy
from dig_plugins.rdkit import of_smiles, read_pocket, to_geometry

ROOT = Path(__file__).parents[2]
SULFA, PEPTIDE = ROOT / "benchmarks/systems/sulfamethoxazole", ROOT / "dig_plugins/models/alanine-tetrapeptide.pdb"
SMILES = "c1(ccc(cc1)S(=O)(=O)Nc1cc(on1)C)N"


def sage() -> tuple[Chem.Mol, mm.System]:
    """A drug with a System that was made once."""
    mol = Chem.AddHs(Chem.MolFromSmiles(SMILES))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    return mol, mm.XmlSerializer.deserialize(gzip.decompress(SULFA.with_suffix(".xml.gz").read_bytes()).decode())


def table_of(system: mm.System) -> np.ndarray:
    """(N, 3) charge, sigma, epsilon."""
    (force,) = (f for f in system.getForces() if isinstance(f, mm.NonbondedForce))
    return np.array([[x._value for x in force.getParticleParameters(i)] for i in range(system.getNumParticles())])


def energy_of(system: mm.System, positions: np.ndarray) -> float:
    return float(OpenMMEnergy(system, 300.0, platform="Reference")(Geometry(torch.from_numpy(positions)[None])))


def alone() -> tuple[mm.System, np.ndarray]:
    """The peptide as OpenMM reads it, positions in Angstrom."""
    file = app.PDBFile(str(PEPTIDE))
    system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(file.topology, nonbondedMethod=app.NoCutoff)
    return system, 10.0 * np.array(file.getPositions(asNumpy=True)._value)


def test_a_complex_is_its_parts_and_their_pairs():
    """Nothing cut, the pocket's energy is that of OpenMM's own reading of the file; the pairs by Coulomb and Lorentz-Berthelot."""
    mol, own = sage()
    peptide, place = alone()
    pocket = read_pocket(PEPTIDE, np.zeros((1, 3)), cutoff=99.0)
    np.testing.assert_allclose(pocket.positions, place, atol=1e-3)
    ligand = to_geometry(mol).positions[0].numpy()
    ligand = ligand - ligand.mean(0) + place.mean(0) + [9.0, 0.0, 0.0]
    system = complex_system(mol, pocket.mol, system=own)
    (q, s, e), (charge, sigma, epsilon) = (table_of(part).T for part in (own, peptide))
    r = 0.1 * np.linalg.norm(ligand[:, None] - place, axis=2)
    sixth = (0.5 * (s[:, None] + sigma) / r) ** 6
    between = (138.93545764438198 * q[:, None] * charge / r + 4 * np.sqrt(e[:, None] * epsilon) * (sixth**2 - sixth)).sum()
    kt = 8.31446261815324e-3 * 300.0
    parts = energy_of(own, ligand) + energy_of(peptide, place)
    assert abs(between) > 0.1 and energy_of(system, np.concatenate([ligand, place])) == pytest.approx(parts + between / kt, abs=1e-3)


def test_residues_that_are_cut_keep_their_parameters_and_caps_do_nothing():
    mol, own = sage()
    peptide, place = alone()
    atoms = list(app.PDBFile(str(PEPTIDE)).topology.atoms())
    middle = next(a.residue for a in atoms if a.residue.index == 2)
    pocket = read_pocket(PEPTIDE, place[[a.index for a in middle.atoms() if a.name == "CB"]], cutoff=1.0)
    assert len(pocket.labels) == 1
    system, n = complex_system(mol, pocket.mol, system=own), mol.GetNumAtoms()
    caps = np.array([a.GetPDBResidueInfo() is None for a in pocket.mol.GetAtoms()])
    table = table_of(system)[n:]
    assert caps.sum() == 2 and not table[caps][:, [0, 2]].any()
    np.testing.assert_allclose(table[~caps], table_of(peptide)[[a.index for a in middle.atoms()]])
    positions = np.concatenate([to_geometry(mol).positions[0].numpy() + 40.0, pocket.positions])
    moved = positions.copy()
    moved[n + np.flatnonzero(caps)] += 3.0
    assert energy_of(system, moved) == pytest.approx(energy_of(system, positions), abs=1e-9)


def test_ions_and_waters_that_are_kept_have_parameters(tmp_path):
    """Which MMFF94 may not know: a sodium of charge 1 and a neutral water of TIP3P."""
    atoms = [("NA", "NA", 900, (20.0, 0.0, 0.0)), ("O", "HOH", 901, (20.0, 5.0, 0.0)), ("H1", "HOH", 901, (20.9, 5.2, 0.0))]
    atoms.append(("H2", "HOH", 901, (19.8, 5.9, 0.0)))
    lines = [
        f"HETATM{900 + k:5d} {name:<4s} {residue:>3s} B{number:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {element:>2s}"
        for k, (name, residue, number, (x, y, z)) in enumerate(atoms)
        for element in [name if name == "NA" else name[0]]
    ]
    protein = [line for line in PEPTIDE.read_text().splitlines() if line.startswith("ATOM") or line.startswith("HETATM")]
    path = tmp_path / "p.pdb"
    path.write_text("\n".join([*protein, *lines, "END\n"]))
    mol, own = sage()
    pocket = read_pocket(path, np.array([[20.0, 2.0, 0.0]]), cutoff=60.0, ions="keep", waters="keep")
    charge = np.bincount(pocket.residue, table_of(complex_system(mol, pocket.mol, system=own))[mol.GetNumAtoms() :, 0])
    named = {label.split()[0]: charge[k] for k, label in enumerate(pocket.labels)}
    assert named["NA"] == pytest.approx(1.0) and named["HOH"] == pytest.approx(0.0, abs=1e-6)


def test_what_cannot_be_merged_is_said():
    mol, own = sage()
    pocket = read_pocket(PEPTIDE, np.zeros((1, 3)), cutoff=99.0)
    with pytest.raises(IncompatibleError, match="System of the ligand's 3 atoms"):
        complex_system(Chem.AddHs(Chem.MolFromSmiles("O")), pocket.mol, system=own)
    with pytest.raises(IncompatibleError, match="PDB residue information"):
        complex_system(mol, Chem.AddHs(Chem.MolFromSmiles("CC")), system=own)
    with pytest.raises(UnsupportedError, match="cannot describe the pocket"):
        complex_system(mol, pocket.mol, system=own, protein=["amber14/tip3p.xml"])
    own.addForce(mm.GBSAOBCForce())
    with pytest.raises(UnsupportedError, match="GBSAOBCForce"):
        complex_system(mol, pocket.mol, system=own)
    own.addConstraint(0, 1, 0.1)
    with pytest.raises(UnsupportedError, match="without constraints"):
        complex_system(mol, pocket.mol, system=own)


def test_charges_come_from_the_file_or_the_caller():
    mol = of_smiles("O")
    with pytest.raises(IncompatibleError, match="3 of 3 atoms have no partial charge.*ambertools"):
        partial_charges(mol)
    with pytest.raises(IncompatibleError, match="shape"):
        partial_charges(mol, [0.1])
    with pytest.raises(IncompatibleError, match="add up to 0.500"):
        partial_charges(mol, [0.5, 0.0, 0.0])
    np.testing.assert_allclose(partial_charges(mol, [-0.8, 0.4, 0.4]), [-0.8, 0.4, 0.4])
    for atom, charge in zip(mol.GetAtoms(), (-0.6, 0.3, 0.3), strict=True):
        atom.SetDoubleProp("PartialCharge", charge)
    supplier = Chem.SDMolSupplier()
    Chem.CreateAtomDoublePropertyList(mol, "PartialCharge")
    text = Chem.MolToMolBlock(mol) + f">  <atom.dprop.PartialCharge>\n{mol.GetProp('atom.dprop.PartialCharge')}\n\n$$$$\n"
    supplier.SetData(text, removeHs=False)
    np.testing.assert_allclose(partial_charges(supplier[0]), [-0.6, 0.3, 0.3])


@pytest.mark.skipif(importlib.util.find_spec("openff") is not None, reason="the toolkit is here")
def test_a_missing_toolkit_says_what_to_install():
    with pytest.raises(ImportError, match=r"dig-plugins\[openff\]"):
        ligand_system(of_smiles("O"), charges=[-0.8, 0.4, 0.4])


def test_sage_gives_the_parameters_that_were_made_before():
    """Its own toolkit must be there; the System in the repository was made with it."""
    pytest.importorskip("openff.toolkit")
    mol, kept = sage()
    force = next(f for f in kept.getForces() if isinstance(f, mm.NonbondedForce))
    charges = [force.getParticleParameters(i)[0]._value for i in range(kept.getNumParticles())]
    fresh = ligand_system(mol, charges=charges)
    positions = to_geometry(mol).positions[0].numpy()
    assert energy_of(fresh, positions) == pytest.approx(energy_of(kept, positions), abs=1e-6)
    assert not fresh.getNumConstraints()
    with pytest.raises(UnsupportedError, match="nothing.offxml"):
        ligand_system(mol, charges=charges, force_field="nothing.offxml")
