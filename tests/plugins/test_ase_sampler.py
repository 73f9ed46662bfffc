"""DiGSampler and DiGCalculator: info that survives files, free energies and averages that are exact, forces that are gradients."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("ase")

import ase.io
from ase import units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.constraints import FixAtoms
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, FIRE

from dig_core.coordinates import Cartesian
from dig_core.diffusion import Diffusion, Euclidean, Joint, LogSNR, ZeroCentroid
from dig_core.dig import Card, DiG
from dig_core.errors import CheckpointError, IncompatibleError, StateError
from dig_core.montecarlo.analysis import normalised_weights
from dig_core.score import EnergyScore
from dig_plugins.ase import ASEEnergy, DiGCalculator, DiGSampler, read, write
from tests.plugins.known_ase import (
    DIMER,
    KT,
    PLACES,
    Displaced,
    Sickly,
    T,
    anchored,
    anchored_model,
    dimer,
    dimer_averages,
    dimer_log_z,
    dimer_model,
    distance,
    triangle,
    triangle_model,
)

# The sampler -------------------------------------------------------------------------------------------------------------


def test_samples_are_copies_of_the_atoms_with_what_is_known_of_them():
    atoms = dimer()
    atoms.set_tags([3, 4])
    atoms.info["origin"] = "here"
    sampler = DiGSampler(dimer_model(), atoms)
    images = sampler.sample(5, seed=7)
    assert [i.info["dig_index"] for i in images] == list(range(5)) and {i.info["dig_seed"] for i in images} == {7}
    assert all(i.get_tags().tolist() == [3, 4] and i.info["origin"] == "here" for i in images)
    assert np.allclose([i.positions.mean(0) for i in images], atoms.positions.mean(0))
    assert images[0].info["dig_model"].startswith("dimer sha256:")
    kinds = {type(v) for i in images for k, v in i.info.items() if k.startswith("dig_")}
    assert kinds == {float, int, str}
    assert not {"energy", "forces"} & set(images[0].info)


def test_sample_i_depends_on_the_seed_alone():
    whole = DiGSampler(dimer_model()).sample(6, seed=7)
    part = DiGSampler(dimer_model(), batch=2).sample(3, seed=7, start=3)
    assert np.allclose([i.positions for i in whole[3:]], [i.positions for i in part])
    assert [i.info["dig_index"] for i in part] == [3, 4, 5]
    assert np.allclose([i.info["dig_log_q"] for i in whole[3:]], [i.info["dig_log_q"] for i in part])
    fresh = DiGSampler(dimer_model())
    fresh.sample(1)
    assert fresh.images[0].info["dig_seed"] >= 0


@pytest.mark.parametrize("suffix", [".extxyz", ".traj", ".db", ".json"])
def test_info_survives_files(tmp_path, suffix):
    """Infinite weights and large seeds too."""
    sampler = DiGSampler(dimer_model(), dimer())
    images = sampler.sample(4, seed=2**63 - 1)
    sampler.reweight(Sickly(dimer().calc, lambda a: "nan" if distance(a.positions) < 1.6 else None))
    images[0].info["dig_log_q"], images[0].info["dig_valid"] = math.inf, 0
    sampler.reweight(dimer().calc)
    assert images[0].info["dig_log_weight"] == -math.inf
    write(tmp_path / f"samples{suffix}", images)
    found = read(tmp_path / f"samples{suffix}")
    assert len(found) == 4
    for a, b in zip(images, found, strict=True):
        assert np.allclose(a.positions, b.positions, atol=1e-7)
        for key, value in a.info.items():
            there = b.info[key]
            assert there == value if isinstance(value, int | str) or math.isinf(value) else np.isclose(there, value, rtol=1e-6), key
    assert np.isclose(found[1].get_potential_energy(), images[1].get_potential_energy())
    if suffix in (".extxyz", ".traj"):
        plain = tmp_path / f"plain{suffix}"
        ase.io.write(plain, images)
        assert ase.io.read(plain, index=2).info["dig_seed"] == 2**63 - 1
    again = DiGSampler(dimer_model(), dimer()).reweight(dimer().calc, found)
    assert np.allclose(again, sampler.reweight(dimer().calc), rtol=1e-5)


def test_free_energy_is_that_of_quadrature():
    sampler = DiGSampler(dimer_model(), dimer())
    sampler.sample(3000, seed=1)
    value, stderr = sampler.free_energy(dimer().calc)
    assert 0 < stderr < 0.1 * KT
    assert abs(value + KT * dimer_log_z()) < 4 * stderr


def test_reweighted_averages_are_those_of_the_calculator():
    sampler = DiGSampler(dimer_model(), dimer())
    images = sampler.sample(3000, seed=2)
    weights = normalised_weights(sampler.reweight(ASEEnergy(dimer().calc, dimer(), T)))
    r = distance([i.positions for i in images])
    for name, f in DIMER.items():
        gap = f(r) - dimer_averages()[name]
        assert abs((weights * gap).sum()) < 4 * math.sqrt((weights**2 * gap**2).sum()), name


def test_failed_energies_have_no_weight_and_the_others_keep_theirs():
    sampler = DiGSampler(dimer_model(), dimer())
    images = sampler.sample(50, seed=3)
    wanted = sampler.reweight(dimer().calc)
    sick = ASEEnergy(Sickly(dimer().calc, lambda a: RuntimeError("no") if distance(a.positions) < 1.5 else None), dimer(), T)
    found, short = sampler.reweight(sick), np.array([distance(i.positions) < 1.5 for i in images])
    assert (found[short] == -math.inf).all() and np.allclose(found[~short], wanted[~short])
    assert sick.n_failures == short.sum() > 0
    nothing = Sickly(dimer().calc, lambda a: RuntimeError("out of licences"))
    with pytest.raises(StateError, match="out of licences"):
        sampler.free_energy(nothing)


def test_log_prob_of_images():
    sampler = DiGSampler(dimer_model(strength=0.0), dimer(), steps=40)
    images = sampler.sample(4, seed=1)
    x = np.array([(i.positions[1] - i.positions[0]) / math.sqrt(2) for i in images])
    wanted = -0.5 * (x**2).sum(1) / 1.44 - 1.5 * math.log(2 * math.pi * 1.44)
    assert np.allclose(sampler.log_prob(images).value.numpy(), wanted, atol=0.03)


def test_a_shipped_model_by_name_and_by_path(tmp_path):
    sampler = DiGSampler("alanine-dipeptide-vacuum", steps=4)
    images = sampler.sample(2, seed=1)
    assert len(images[0]) == 22 and not images[0].pbc.any()
    from dig_plugins import models

    by_path = DiGSampler(models.path("alanine-dipeptide-vacuum"), steps=4)
    assert by_path.name == sampler.name
    assert np.allclose(by_path.sample(2, seed=1)[1].positions, images[1].positions)
    with pytest.raises(CheckpointError, match="no-such-model"):
        DiGSampler("no-such-model")


def test_samples_of_fixed_atoms():
    atoms = anchored()
    images = DiGSampler(anchored_model(), atoms).sample(3, seed=1)
    assert all(np.array_equal(i.positions[0], PLACES[0]) and i.constraints for i in images)
    alone = DiGSampler(anchored_model()).sample(1, seed=1)[0]
    assert isinstance(alone.constraints[0], FixAtoms) and np.allclose(alone.positions, images[0].positions)


def test_what_the_sampler_refuses():
    with pytest.raises(IncompatibleError, match="atom 0: expected C, found O"):
        DiGSampler(dimer_model(), dimer()[[1, 0]])
    sampler = DiGSampler(dimer_model(), dimer())
    with pytest.raises(StateError, match="call sample"):
        sampler.reweight(dimer().calc)
    with pytest.raises(IncompatibleError, match="no dig_log_q"):
        sampler.reweight(dimer().calc, [dimer()])
    with pytest.raises(IncompatibleError, match="expected samples of"):
        sampler.reweight(dimer().calc, DiGSampler(dimer_model(name="other")).sample(1, seed=1))
    with pytest.raises(IncompatibleError, match="has 3 atoms"):
        sampler.log_prob(triangle())
    with pytest.raises(IncompatibleError, match="no temperature"):
        unknown = DiGSampler(dimer_model(temperature=None), dimer())
        unknown.sample(1, seed=1)
        unknown.free_energy(dimer().calc)


# The calculator ----------------------------------------------------------------------------------------------------------


class Quartic(nn.Module):
    """A potential that adds a gentle quartic to the normal law: conservative, and no harmonic."""

    def forward(self, state, t, descriptor):
        x = state["pos"].flatten(1)
        return 0.05 * (x**2).sum(1) ** 2 + 0.3 * x[:, 0]


def conservative(free: bool = True) -> DiG:
    if free:
        process = Joint(pos=Diffusion(ZeroCentroid(2), LogSNR(6.0, -6.0)))
        return DiG(EnergyScore(Quartic(), process), Cartesian(1.0), dimer_model().descriptor, Card(name="quartic", temperature=T))
    process = Joint(pos=Diffusion(Euclidean(3), LogSNR(6.0, -6.0)))
    return DiG(EnergyScore(Quartic(), process), Displaced(), anchored_model().descriptor, Card(name="quartic", temperature=T))


@pytest.mark.parametrize("free", [True, False], ids=["free molecule", "fixed atom"])
def test_forces_are_gradients_of_the_energy(free):
    atoms = dimer() if free else anchored()
    atoms.calc = DiGCalculator(conservative(free))
    atoms.positions[1] += [0.3, -0.2, 0.1]
    forces, step = atoms.get_forces(apply_constraint=False), 1e-4
    for i in (0, 1) if free else (1,):
        for axis in range(3):
            e = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.calc = atoms.calc
                moved.arrays["positions"][i, axis] += sign * step
                e.append(moved.get_potential_energy())
            assert np.isclose(forces[i, axis], (e[1] - e[0]) / (2 * step), atol=1e-6)
    assert not free or np.allclose(forces.sum(0), 0.0, atol=1e-12)
    assert np.isclose(atoms.get_potential_energy(), atoms.get_potential_energy(force_consistent=True))


def test_forces_are_kt_times_the_score():
    dig, atoms = dimer_model(strength=0.0), dimer()
    atoms.calc = DiGCalculator(dig)
    # The law of x = (r1 - r0) / sqrt(2) is normal, noised at t = 0.01.
    alpha, sigma = (float(v) for v in dig.process["pos"].levels(torch.tensor([0.01], dtype=torch.float64)))
    gap = atoms.positions[1] - atoms.positions[0]
    wanted = -KT * gap / 2 / (alpha**2 * 1.44 + sigma**2)
    assert np.allclose(atoms.get_forces()[1], wanted, rtol=1e-6) and np.allclose(atoms.get_forces().sum(0), 0)


def test_energy_that_is_not_there_is_explained():
    atoms = dimer()
    atoms.calc = DiGCalculator(dimer_model())
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError, match="'dimer'.*Sabotaged.*EnergyScore"):
        atoms.get_potential_energy()
    atoms.calc = DiGCalculator(dimer_model(), nan_energy=True)
    assert np.isnan(atoms.get_potential_energy())


@pytest.mark.parametrize("free", [True, False], ids=["free molecule", "fixed atom"])
def test_optimisers(free):
    atoms = dimer() if free else anchored()
    start = atoms.positions.copy()
    atoms.calc = DiGCalculator(conservative(free))
    assert BFGS(atoms, logfile=None).run(fmax=1e-4, steps=100)
    assert free or np.array_equal(atoms.positions[0], start[0])
    if free:
        forces_only = dimer()
        forces_only.calc = DiGCalculator(dimer_model(0.0), nan_energy=True)
        assert FIRE(forces_only, logfile=None).run(fmax=1e-3, steps=500)
        assert distance(forces_only.positions) < 0.1


def test_energy_is_conserved():
    atoms = dimer()
    atoms.calc = DiGCalculator(conservative())
    atoms.set_momenta(np.array([[1.0, 0.5, 0.0], [-1.0, 0.0, 0.5]]))
    before = atoms.get_total_energy()
    VelocityVerlet(atoms, 0.5 * units.fs).run(400)
    assert abs(atoms.get_total_energy() - before) < 1e-3 * KT


def test_langevin_samples_what_was_learned():
    """A score without an energy drives MD as well: the normal law of the model, by its variance."""
    atoms = anchored()
    dig = anchored_model()
    atoms.calc = DiGCalculator(DiG(dig.model.model, dig.coordinates, dig.descriptor, dig.card), t=0.001)
    md = Langevin(atoms, 4 * units.fs, temperature_K=T, friction=0.02 / units.fs, fixcm=False, rng=np.random.default_rng(1))
    found = []
    md.attach(lambda: found.append(atoms.positions[1] - PLACES[1]))
    md.run(2000)
    x = np.array(found)[300:]
    means = (x**2).reshape(-1, 3)[: len(x) // 20 * 20].reshape(20, -1, 3).mean(1)
    wanted = np.array([0.1 + 0.01, 0.1, 0.3 + 0.04])
    assert (abs(means.mean(0) - wanted) < 4.5 * means.std(0, ddof=1) / math.sqrt(20)).all()


def test_internal_coordinates_and_other_atoms():
    atoms = triangle()
    atoms.calc = DiGCalculator(triangle_model())
    assert np.allclose(atoms.get_forces().sum(0), 0, atol=1e-10)
    other = triangle()[[0, 2, 1]]
    other.calc = atoms.calc
    with pytest.raises(IncompatibleError, match="atom 1: expected F, found Cl"):
        other.get_forces()
    torn = triangle()
    torn.positions[1] *= 4
    torn.calc = atoms.calc
    with pytest.raises(StateError, match=r"bond between atoms 0 \(O\) and 1 \(F\)"):
        torn.get_forces()
    torn.positions[1] = np.nan
    with pytest.raises(StateError, match="not finite"):
        torn.get_forces()
    with pytest.raises(IncompatibleError, match="has 2 atoms"):
        wrong = dimer()
        wrong.calc = atoms.calc
        wrong.get_forces()


def test_temperatures():
    with pytest.raises(IncompatibleError, match="350 K"):
        DiGCalculator(dimer_model(), 350.0)
    with pytest.raises(IncompatibleError, match="no temperature"):
        DiGCalculator(dimer_model(temperature=None))
    make = partial(DiGCalculator, dimer_model(), t=0.05)
    hot, atoms = make(600.0, allow_temperature_mismatch=True), dimer()
    assert np.allclose(hot.get_forces(atoms), 2 * make().get_forces(atoms))
