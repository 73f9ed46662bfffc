"""ASEEnergy and the border to ASE: laws of the Energy contract, failures counted, batches and workers, what is refused."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch

pytest.importorskip("ase")

from ase import Atoms, units
from ase.build import fcc111, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLength, Hookean

from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.testing import check_energy
from dig_core.types import Geometry
from dig_plugins.ase import ASEEnergy, describe, kT, to_atoms, to_geometry
from tests.plugins.known_ase import KT, Sickly, T, anchored, dimer, dimer_model, distance, triangle


def shaken(atoms: Atoms, n: int, width: float = 0.1, seed: int = 0) -> Geometry:
    rng = np.random.default_rng(seed)
    return Geometry(torch.from_numpy(atoms.positions + rng.normal(0, width, (n, len(atoms), 3))))


# Energies ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_centroid", [False, True])
def test_contract(keep_centroid):
    check_energy(ASEEnergy(triangle().calc, triangle(), T, keep_centroid=keep_centroid), shaken(triangle(), 4), tolerance=1e-4)


def test_contract_with_emt():
    cluster = molecule("C2H6")
    check_energy(ASEEnergy(EMT(), cluster, T), shaken(cluster, 3, 0.03), tolerance=1e-3)


def test_value_and_gradient_are_ases_over_kt():
    atoms = triangle()
    u, gradient = ASEEnergy(atoms.calc, atoms, T).energy_and_gradient(to_geometry(atoms))
    assert u.dtype == gradient.dtype == torch.float64
    assert np.isclose(float(u), atoms.get_potential_energy() / KT)
    assert np.allclose(gradient[0].numpy(), -atoms.get_forces() / KT)


class Differentiated(Calculator):
    """Springs to the origin whose forces are autograd's, as those of neural networks are."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        x = torch.tensor(self.atoms.positions, requires_grad=True)
        energy = 0.5 * x.square().sum()
        (slope,) = torch.autograd.grad(energy, x)
        self.results = {"energy": float(energy), "forces": -slope.numpy()}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_calculators_that_differentiate_work_where_sampling_does_not(mode):
    atoms = triangle()
    energy = ASEEnergy(Differentiated(), atoms, T)
    with mode():
        u, gradient = energy.energy_and_gradient(to_geometry(atoms))
        assert float(energy(to_geometry(atoms))) == pytest.approx(float(u))
    assert float(u) == pytest.approx(0.5 * (atoms.positions**2).sum() / KT) and not energy.n_failures
    np.testing.assert_allclose(gradient[0], atoms.positions / KT)


def test_fixed_atoms_stand_where_they_are_given_and_have_no_gradient():
    atoms = anchored()
    energy, geometry = ASEEnergy(atoms.calc, atoms, T), shaken(atoms, 3)
    u, gradient = energy.energy_and_gradient(geometry)
    assert not gradient[:, 0].any() and gradient[:, 1].all()
    moved = geometry.positions.clone()
    moved[:, 0] += 0.3
    assert (energy(Geometry(moved)) - u).abs().min() > 1e-3


def test_cell_of_the_geometry_or_else_of_the_template():
    slab = fcc111("Cu", (1, 1, 2), vacuum=5.0)
    slab.calc = EMT()
    energy, geometry = ASEEnergy(slab.calc, slab, T), to_geometry(slab)
    assert geometry.cell is not None
    u = float(energy(geometry))
    assert np.isclose(u, slab.get_potential_energy() / KT) and np.isclose(u, float(energy(Geometry(geometry.positions))))
    assert abs(float(energy(Geometry(geometry.positions, 1.02 * geometry.cell))) - u) > 1.0


def test_hookean_counts_in_energy_and_forces():
    atoms = triangle()
    atoms.set_constraint(Hookean(0, 1, k=3.0, rt=1.0))
    check_energy(ASEEnergy(atoms.calc, atoms, T), shaken(atoms, 3), tolerance=1e-4)
    assert np.isclose(float(ASEEnergy(atoms.calc, atoms, T)(to_geometry(atoms))), atoms.get_potential_energy() / KT)


@pytest.mark.parametrize("failure", ["nan", RuntimeError("no convergence")], ids=["nan", "exception"])
def test_failures_are_infinite_counted_and_do_not_disturb_the_others(failure):
    atoms, geometry = triangle(), shaken(triangle(), 8)
    reference = ASEEnergy(atoms.calc, atoms, T)(geometry)
    long = torch.from_numpy(distance(geometry.positions) > 1.3)
    assert 0 < long.sum() < 8
    energy = ASEEnergy(Sickly(triangle().calc, lambda a: failure if distance(a.positions) > 1.3 else None), atoms, T)
    leaf = geometry.positions.clone().requires_grad_()
    u = energy(Geometry(leaf))
    assert torch.equal(u == torch.inf, long) and torch.allclose(u[~long], reference[~long])
    (gradient,) = torch.autograd.grad(u[~long].sum(), leaf)
    assert gradient.isfinite().all() and not gradient[long].any()
    assert energy.n_evaluations == 8 and energy.n_failures == int(long.sum()) == sum(energy.failures.values())
    if failure == "nan":
        assert energy.first_traceback is None and dict(energy.failures) == {"NaN energy": int(long.sum())}
    else:
        assert "no convergence" in energy.first_traceback and dict(energy.failures) == {"RuntimeError": int(long.sum())}


def test_differentiable_once_only():
    leaf = to_geometry(triangle()).positions.requires_grad_()
    u = ASEEnergy(triangle().calc, triangle(), T)(Geometry(leaf))
    (gradient,) = torch.autograd.grad(u.sum(), leaf, create_graph=True)
    with pytest.raises(UnsupportedError, match="once"):
        gradient.square().sum().backward()


class Batched:
    """A calculator of many structures at once, which falls ill as a whole if one of them is ill."""

    def __init__(self):
        self.asked = []

    def calculate_batch(self, images):
        self.asked.append(len(images))
        if any(distance(image.positions) > 1.45 for image in images):
            raise RuntimeError("out of memory")
        energies, forces = [], []
        for image in images:
            image.calc = triangle().calc
            energies.append(image.get_potential_energy(apply_constraint=False))
            forces.append(image.get_forces(apply_constraint=False))
        return energies, forces


def test_batches_agree_and_a_failed_one_is_tried_one_by_one():
    atoms, geometry = triangle(), shaken(triangle(), 6, 0.05)
    atoms.set_constraint([FixAtoms([2]), Hookean(0, 1, k=3.0, rt=1.0)])
    calculator = Batched()
    found, wanted = (ASEEnergy(c, atoms, T).energy_and_gradient(geometry) for c in (calculator, atoms.calc))
    assert calculator.asked == [6]
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))
    ill = geometry.positions.clone()
    ill[2, 1, 0] += 1.0
    energy = ASEEnergy(calculator, atoms, T)
    u = energy(Geometry(ill))
    assert (u == torch.inf).tolist() == [False, False, True, False, False, False] and calculator.asked == [6, 6] + [1] * 6
    assert energy.n_failures == 1


def test_batches_of_the_wrong_shape_are_named():
    class Wrong:
        def calculate_batch(self, images):
            return [0.0], np.zeros((1, 3, 3))

    with pytest.raises(IncompatibleError, match="calculate_batch returned"):
        ASEEnergy(Wrong(), triangle(), T)(shaken(triangle(), 2))


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_executors_agree(pool):
    geometry = shaken(molecule("C2H6"), 7, 0.03)
    wanted = ASEEnergy(EMT(), molecule("C2H6"), T).energy_and_gradient(geometry)
    with pool(max_workers=1) as executor:
        for calculator in (EMT(), EMT):
            energy = ASEEnergy(calculator, molecule("C2H6"), T, executor=executor, chunk=3)
            assert all(torch.allclose(a, b) for a, b in zip(energy.energy_and_gradient(geometry), wanted, strict=True))
            assert energy.n_evaluations == 7


def test_pickles():
    energy = ASEEnergy(EMT(), molecule("C2H6"), T)
    geometry = shaken(molecule("C2H6"), 2, 0.03)
    assert torch.equal(pickle.loads(pickle.dumps(energy))(geometry), energy(geometry))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ASEEnergy(None, triangle(), T), "got None"),
        (lambda: ASEEnergy(EMT(), triangle(), 0.0), "positive temperature"),
        (lambda: ASEEnergy(EMT(), triangle(), T)(Geometry(torch.zeros(2, 5, 3))), r"expected positions \(B, 3, 3\)"),
        (lambda: ASEEnergy(EMT(), triangle(), T, chunk=0), "at least 1 structure"),
        (lambda: to_geometry([]), "at least one"),
        (lambda: to_geometry([triangle(), dimer()]), "one length"),
        (lambda: to_atoms(to_geometry(triangle()), dimer()), "3 atoms"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(IncompatibleError, match=message):
        make()


def test_constraints_that_are_not_covered():
    atoms = triangle()
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(UnsupportedError, match="FixBondLength"):
        ASEEnergy(atoms.calc, atoms, T)


# The border --------------------------------------------------------------------------------------------------------------


def test_kt_is_ases():
    assert kT(T) == units.kB * T


def test_atoms_there_and_back_keep_everything_but_momenta():
    atoms = anchored()
    atoms.set_cell([5, 6, 7])
    atoms.pbc = [True, True, False]
    atoms.set_tags([1, 2])
    atoms.info["origin"] = "here"
    atoms.set_array("mine", np.array([1.5, 2.5]))
    atoms.set_momenta(np.ones((2, 3)))
    geometry = to_geometry([atoms, atoms])
    assert geometry.positions.dtype == torch.float64 and geometry.cell.shape == (2, 3, 3)
    image = to_atoms(Geometry(geometry.positions + 1.0, geometry.cell), atoms)[1]
    assert np.allclose(image.positions, atoms.positions + 1.0)
    assert (image.pbc == atoms.pbc).all() and np.array_equal(image.cell.array, atoms.cell.array)
    assert image.get_tags().tolist() == [1, 2] and image.info == {"origin": "here"} and image.arrays["mine"].tolist() == [1.5, 2.5]
    assert image.constraints[0].index.tolist() == [0]
    assert not image.has("momenta") and image.calc is None
    image.info["origin"] = "there"
    assert atoms.info["origin"] == "here"
    assert to_geometry(dimer()).cell is None


@pytest.mark.parametrize("name, bonds", [("CH3CH2OH", 8), ("C6H6", 12), ("H2O", 2), ("CH3CN", 5)])
def test_bonds_by_covalent_radii(name, bonds):
    atoms = molecule(name)
    descriptor = describe(atoms)
    assert len(descriptor.bonds) == bonds
    assert descriptor.numbers.tolist() == atoms.numbers.tolist()
    assert np.array_equal(descriptor.reference.positions[0].numpy(), atoms.positions)


def test_bonds_that_are_given():
    assert describe(molecule("H2O"), bonds=[(0, 1)]).bonds.tolist() == [[0, 1]]
    assert len(describe(molecule("H2O"), bonds=[]).bonds) == 0


def test_descriptor_of_what_is_no_free_molecule():
    with pytest.raises(UnsupportedError, match="pbc"):
        describe(fcc111("Cu", (1, 1, 2), vacuum=5.0))
    with pytest.raises(UnsupportedError, match="FixAtoms"):
        describe(anchored())
    with pytest.raises(IncompatibleError, match="bonds must name"):
        describe(molecule("H2O"), bonds=[(0, 3)])
    assert dimer_model().descriptor.n_atoms == 2
