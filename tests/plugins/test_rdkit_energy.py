"""MMFFEnergy: the Energy contract, RDKit's own numbers, failures that stay where they are, workers, units of the force field."""

from __future__ import annotations

import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.testing import check_energy
from dig_core.types import Geometry

Chem = pytest.importorskip("rdkit.Chem")
from rdkit.Chem import rdForceFieldHelpers as forcefields  # noqa: E402

from dig_plugins.rdkit import convert  # noqa: E402
from dig_plugins.rdkit.energy import MMFFEnergy, reduced_unit, thermal_widths  # noqa: E402

SMILES = "C[C@H](N)C(=O)NCc1ccccc1"


def shaken(mol, n: int = 4, sd: float = 0.05) -> Geometry:
    noise = torch.randn(n, mol.GetNumAtoms(), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Geometry(convert.to_geometry(mol).positions + sd * noise)


@pytest.mark.parametrize("variant", ["MMFF94", "MMFF94s"])
def test_energy_keeps_the_contract(variant):
    mol = convert.of_smiles(SMILES)
    check_energy(MMFFEnergy(mol, 300, variant=variant), shaken(mol))


def test_energy_is_rdkit_s_over_kt():
    mol = convert.of_smiles(SMILES)
    mol = convert.with_conformers(mol, shaken(mol))
    properties = forcefields.MMFFGetMoleculeProperties(mol, mmffVariant="MMFF94s")
    expected = [
        forcefields.MMFFGetMoleculeForceField(mol, properties, confId=c.GetId()).CalcEnergy() / (8.314462618 / 4184 * 310)
        for c in mol.GetConformers()
    ]
    np.testing.assert_allclose(MMFFEnergy(mol, 310)(convert.to_geometry(mol)).numpy(), expected, rtol=1e-8)


def test_failures_are_counted_and_have_no_gradient():
    mol = convert.of_smiles("CCO")
    energy, positions = MMFFEnergy(mol, 300), shaken(mol, 3).positions
    positions[1, 0, 0] = math.nan
    positions.requires_grad_()
    u = energy(Geometry(positions))
    assert u.isfinite().tolist() == [True, False, True] and u[1] == math.inf
    (gradient,) = torch.autograd.grad(u.sum(), positions)
    assert gradient.isfinite().all() and not gradient[1].any()
    assert (energy.n_evaluations, energy.n_failures) == (3, 1)


def test_atoms_on_top_of_each_other_are_never_good():
    mol = convert.of_smiles("CCCCO")
    positions = convert.to_geometry(mol).positions.clone()
    energy = MMFFEnergy(mol, 300)
    start = energy(Geometry(positions))
    positions[0, 0] = positions[0, 3]
    assert energy(Geometry(positions)) > start + 1e3


def test_copies_and_workers_say_the_same():
    mol = convert.of_smiles("CC(=O)OC")
    geometry = shaken(mol, 10)
    u, gradient = MMFFEnergy(mol, 300).energy_and_gradient(geometry)
    copy = pickle.loads(pickle.dumps(MMFFEnergy(mol, 300)))
    torch.testing.assert_close(copy.energy_and_gradient(geometry), (u, gradient), rtol=0, atol=0)
    with ThreadPoolExecutor(2) as executor:
        torch.testing.assert_close(MMFFEnergy(mol, 300, executor=executor, chunk=3).energy_and_gradient(geometry), (u, gradient))


def test_only_one_derivative():
    mol = convert.of_smiles("CCO")
    positions = shaken(mol, 1).positions.requires_grad_()
    (gradient,) = torch.autograd.grad(MMFFEnergy(mol, 300)(Geometry(positions)).sum(), positions, create_graph=True)
    with pytest.raises(UnsupportedError, match="only once"):
        gradient.sum().backward()


def test_what_does_not_fit_is_refused():
    mol = convert.of_smiles("CCO")
    for wrong in ({"temperature": -1}, {"temperature": math.nan}, {"temperature": 300, "variant": "UFF"}, {"temperature": 300, "chunk": 0}):
        with pytest.raises(IncompatibleError, match="expected"):
            MMFFEnergy(mol, **wrong)
    with pytest.raises(UnsupportedError, match="no parameters"):
        MMFFEnergy(Chem.AddHs(Chem.MolFromSmiles("CB(O)O")), 300)
    with pytest.raises(IncompatibleError, match=r"\(B, 9, 3\)"):
        MMFFEnergy(mol, 300)(Geometry(torch.zeros(2, 8, 3)))
    with pytest.raises(IncompatibleError, match="cell"):
        MMFFEnergy(mol, 300)(Geometry(torch.zeros(2, 9, 3), torch.zeros(2, 3, 3)))


def test_widths_are_those_of_the_force_field():
    """Water: a bond stretched, and the angle opened, by one width cost about kT / 2 by MMFF's own energy."""
    mol, temperature = convert.of_smiles("O"), 50.0  # cold, so that cubic terms do not matter
    found, energy = thermal_widths(mol, temperature), MMFFEnergy(mol, temperature)
    (rest, width), (angle, bend) = found[(0, 1)], found[(1, 0, 2)]

    def water(r: float, theta: float) -> torch.Tensor:
        other = [rest * math.cos(theta), rest * math.sin(theta), 0.0]
        return energy(Geometry(torch.tensor([[[0.0, 0.0, 0.0], [r, 0.0, 0.0], other]], dtype=torch.float64)))

    for up, down in ((water(rest + width, angle), water(rest - width, angle)), (water(rest, angle + bend), water(rest, angle - bend))):
        assert abs(float(0.5 * (up + down) - water(rest, angle)) - 0.5) < 0.02
    assert reduced_unit(300) == pytest.approx(0.59616, abs=1e-5)
