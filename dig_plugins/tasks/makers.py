"""A subject of each kind: the model of a molecule, of conformers, of a protein, of crystals, of an adsorbate, bound to its system."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError
from dig_core.types import Geometry

from .. import models
from .subjects import Given, Subject, temperature_of

__all__ = ["adsorbate", "conformers", "crystal", "mol_of", "molecule", "protein"]


def molecule(dig: DiG, model: str, given: Given) -> Subject:
    """In OpenMM: the System that a shipped model brings, or that of a PDB structure and force-field files."""
    from ..openmm import OpenMMEnergy, check_topology, file_system, model_system
    from ..openmm.files import read_frames
    from ..openmm.target import model_temperature

    if given.of is None:
        entry = models.index().get(model, {})
        if "structure" not in entry:
            raise IncompatibleError(f"the model {model} does not bring its System: give its PDB structure and force-field files.")
        system, pdb, files = model_system(model), models.path(model).with_name(entry["structure"]), entry["force_field"]
    else:
        if not given.force_field:
            raise IncompatibleError(f"expected the force-field files of {given.of} beside it.")
        temperature = model_temperature(dig, temperature_of(dig, given))
        system, pdb, files = file_system(given.of, given.force_field, temperature), Path(given.of), given.force_field
    check_topology(dig.descriptor, system.topology)

    def read(path: str | Path) -> Geometry:
        if Path(path).suffix in (".pdb", ".npz"):
            frames = read_frames(path, system.topology)
        else:
            from ..mdtraj import read_positions

            frames = read_positions(path, pdb)
        return Geometry(10 * torch.as_tensor(frames, dtype=torch.float64))

    energy = OpenMMEnergy(system.system, system.temperature)
    other = "CPU" if energy.platform_name == "Reference" else "Reference"
    peer = functools.partial(OpenMMEnergy, system.system, system.temperature, platform=other)
    return Subject(dig, "molecule", read, energy, " + ".join(files), system.temperature, peer, system, ("openmm",))


def conformers(dig: DiG, model: str, given: Given) -> Subject:
    """In RDKit: MMFF94 of a molecule given as SMILES or as a file."""
    from ..rdkit import MMFFEnergy, on_molecule
    from ..rdkit.conformers import check_model

    if given.of is None:
        raise IncompatibleError(f"the model {model} is one of conformers: give its molecule, SMILES or an SDF file.")
    mol, variant, temperature = mol_of(given.of), dig.card.energy.split()[0], temperature_of(dig, given)
    dig = on_molecule(dig, mol)
    check_model(dig, mol, temperature, variant)
    energy = MMFFEnergy(mol, temperature, variant=variant)
    return Subject(dig, "conformers", lambda path: _records(mol, path), energy, variant, temperature, None, mol, ("rdkit",))


def protein(dig: DiG, model: str, given: Given) -> Subject:
    """Backbones, of a protein's own model or of any protein's; no energy."""
    from ..mdtraj import match, read_backbones

    network = getattr(dig.model, "network", None)
    if given.of is not None:
        dig = dig.on(read_backbones(given.of).descriptor)
    elif network is not None and network.config.get("members", 0) is None:
        raise IncompatibleError(f"the model {model} is one of any protein: give a structure of yours.")

    def read(path: str | Path) -> Geometry:
        alone, beside = Path(path).suffix.lower() in (".pdb", ".ent", ".cif", ".mmcif", ".gz"), Path(path).with_suffix(".pdb")
        structure = None if alone else beside if beside.is_file() else given.of
        return match(read_backbones(path, structure), dig.descriptor).geometry

    return Subject(dig, "protein", read, packages=("mdtraj",))


def crystal(dig: DiG, model: str, given: Given) -> Subject:
    """Of a composition; with an energy, if a calculator and a temperature are given."""
    from dig_core.system.crystal import crystal as described

    from ..pymatgen import grouped, read_structures
    from ..pymatgen.convert import atomic_numbers

    if given.of is None:
        raise IncompatibleError(f"the model {model} is one of crystals: give a composition, such as C8.")
    numbers = atomic_numbers(given.of)
    dig = dig.on(described(numbers))

    def read(path: str | Path) -> Geometry:
        if not Path(path).is_file():
            raise IncompatibleError(f"there is no file {path}: expected crystal structures.")
        groups = grouped(read_structures(path))
        if [g.descriptor.numbers.tolist() for g in groups] != [numbers]:
            raise IncompatibleError(f"expected crystals of {given.of} in {path}, got other atoms.")
        return groups[0].geometry

    energy = None
    if given.calculator is not None:
        from ..ase import CrystalEnergy, calculator_named

        energy = CrystalEnergy(calculator_named(given.calculator), numbers, temperature_of(dig, given), pressure=given.pressure)
    return Subject(dig, "crystal", read, energy, given.calculator or "", given.temperature, None, given.of, ("pymatgen",))


def adsorbate(dig: DiG, model: str, given: Given) -> Subject:
    """On a slab; with an energy, if a calculator is given."""
    from ..ase import ASEEnergy, calculator_named, check_atoms, to_geometry
    from ..ase.adsorption import on_slab, read_images

    if given.of is None or given.adsorbate is None:
        raise IncompatibleError(f"the model {model} is one of adsorbates: give the file of a slab, and an adsorbate.")
    guest = read_images(given.adsorbate)[0] if Path(given.adsorbate).suffix else given.adsorbate
    temperature = 300.0 if given.temperature is None and dig.card.temperature is None else temperature_of(dig, given)
    bound, placed = on_slab(read_images(given.of)[-1], guest, dig, temperature=temperature)

    def read(path: str | Path) -> Geometry:
        images = read_images(path)
        for image in images:
            check_atoms(image, bound)
        return to_geometry(images)

    energy = None if given.calculator is None else ASEEnergy(calculator_named(given.calculator), placed, temperature)
    return Subject(bound, "adsorbate", read, energy, given.calculator or "", temperature, None, placed, ("ase",))


def mol_of(source: str):
    """The molecule of an SDF or MOL file, or of SMILES."""
    from ..rdkit import of_sdf, of_smiles

    return of_sdf(source) if Path(source).suffix.lower() in (".sdf", ".mol") else of_smiles(source)


def _records(mol, path: str | Path) -> Geometry:
    """Every record of an SDF file, atoms as in ``mol``."""
    import numpy as np
    from rdkit import Chem, rdBase

    if not Path(path).is_file():
        raise IncompatibleError(f"there is no file {path}: expected conformers as SDF.")
    with rdBase.BlockLogs():
        found = list(Chem.SDMolSupplier(str(path), removeHs=False))
    wanted = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    for number, record in enumerate(found):
        if record is None or [atom.GetAtomicNum() for atom in record.GetAtoms()] != wanted:
            raise IncompatibleError(f"record {number} of {path} has other atoms than the molecule, or in another order.")
    if not found:
        raise IncompatibleError(f"{path} holds no conformer.")
    return Geometry(torch.from_numpy(np.stack([record.GetConformer().GetPositions() for record in found])))
