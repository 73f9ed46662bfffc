"""Files of relaxations and MD as training systems: what is read, how it is sorted, what is left out, and that it trains."""

from __future__ import annotations

import os
import pickle
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("ase")

from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write
from ase.units import kB

from dig_core.coordinates import Adsorbate
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.system.surface import frame_of
from dig_plugins.ase import ASEEnergy
from dig_plugins.ase import write as write_images
from dig_plugins.ase.adsorption import SiteSurface, fit_systems, read_images, sample_adsorption, systems_of

ALLOYS = Path(os.environ.get("DIG_SHARED", Path(__file__).parents[3] / "shared")) / "data/adsorption/alloys_gemnet.extxyz.xz"
T = 500.0


def on_metal(metal: str, guest: Atoms | str = "O", xy=(0.3, 0.2), height: float = 1.3, energy: float | None = None, forces=None) -> Atoms:
    """A p(2x2) slab of two layers, the lower one held, with an adsorbate last; tags of the Open Catalyst Project."""
    slab = fcc111(metal, (2, 2, 2), vacuum=8.0)
    slab.info = {}
    slab.set_tags(np.where(slab.positions[:, 2] > slab.positions[:, 2].mean(), 1, 0))
    slab.set_constraint(FixAtoms(np.flatnonzero(slab.get_tags() == 0)))
    add_adsorbate(slab, guest, height, position=xy)
    slab.info = {}
    tags = slab.get_tags()
    tags[8:] = 2
    slab.set_tags(tags)
    if energy is not None:
        results = {"energy": energy} | ({} if forces is None else {"forces": forces})
        slab.calc = SinglePointCalculator(slab, **results)
    return slab


def upright_co() -> Atoms:
    made = molecule("CO")
    made.positions = [[0, 0, 1.15], [0, 0, 0]]  # O above C
    return made[[1, 0]]


# Reading ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.extxyz", "a.traj", "a.db", "a.extxyz.xz", "a.extxyz.gz"])
def test_formats_keep_positions_energies_forces_and_who_is_fixed(name, tmp_path):
    rng = np.random.default_rng(1)
    images = [on_metal("Cu", xy=(0.2 * k, 0), energy=float(k), forces=rng.normal(size=(9, 3))) for k in range(4)]
    (write_images if name.endswith(".db") else write)(tmp_path / name, images)
    found = read_images(tmp_path / name)
    assert len(found) == 4
    for before, after in zip(images, found, strict=True):
        assert np.allclose(after.positions, before.positions, atol=1e-6) and (after.numbers == before.numbers).all()
        assert after.get_potential_energy() == pytest.approx(before.get_potential_energy())
        assert np.allclose(after.get_forces(apply_constraint=False), before.calc.results["forces"], atol=1e-6)
        assert after.get_tags().tolist() == before.get_tags().tolist()
        assert [c.index.tolist() for c in after.constraints] == [c.index.tolist() for c in before.constraints]
    assert len(read_images(tmp_path / name, index="1::2")) == 2


def test_files_that_cannot_be_read_are_refused_with_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(IncompatibleError, match="no file"):
        read_images(tmp_path / "absent.traj")
    (tmp_path / "bad.extxyz").write_text("not a number\nof atoms\n")
    with pytest.raises(IncompatibleError, match="cannot be read"):
        read_images(tmp_path / "bad.extxyz")
    (tmp_path / "bad.extxyz.xz").write_bytes(b"not compressed")
    with pytest.raises(IncompatibleError, match="cannot be read"):
        read_images(tmp_path / "bad.extxyz.xz")
    write(tmp_path / "a.traj", on_metal("Cu"))
    with pytest.raises(IncompatibleError, match="slice"):
        read_images(tmp_path / "a.traj", index="last")
    (tmp_path / "a.aselmdb").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "ase_db_backends", None)
    with pytest.raises(ImportError, match="pip install ase-db-backends"):
        read_images(tmp_path / "a.aselmdb")


def test_pickles_are_not_opened(tmp_path):
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return Path.touch, (ran,)

    (tmp_path / "data.0000.lmdb").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UnsupportedError, match="run whatever code"):
        read_images(tmp_path / "data.0000.lmdb")
    assert not ran.exists()


def test_lmdb_of_ase(tmp_path):
    pytest.importorskip("ase_db_backends")
    from ase.db import connect

    with connect(tmp_path / "a.aselmdb", type="aselmdb") as rows:
        for k in range(3):
            rows.write(on_metal("Cu", energy=float(k)))
    found = read_images(tmp_path / "a.aselmdb")
    assert [image.get_potential_energy() for image in found] == [0.0, 1.0, 2.0]
    assert all(image.get_tags()[-1] == 2 for image in found)


# Sorting ---------------------------------------------------------------------------------------------------------------


def test_images_are_sorted_by_slab_and_adsorbate():
    rng = np.random.default_rng(2)
    images = []
    for k in range(6):
        for metal, guest in (("Cu", "O"), ("Pt", "O"), ("Cu", "H")):
            image = on_metal(metal, guest, xy=rng.uniform(0, 2, 2))
            image.positions[4:8] += rng.normal(size=(4, 3)) * 0.05
            image.calc = SinglePointCalculator(image, energy=-float(k))
            images.append(image)
    data = systems_of([images[i] for i in rng.permutation(len(images))], convention="ocp", temperature=T)
    assert sorted(image.symbols.get_chemical_formula() for image in data.images) == ["Cu8O", "HCu8", "OPt8"]
    assert all(len(frames) == 6 and frames.force is None for _, frames in data.systems) and not data.excluded
    # The reference is the lowest, and the slab stays as it has it.
    for (descriptor, _), image in zip(data.systems, data.images, strict=True):
        assert any(np.array_equal(image.positions, x.positions) and x.get_potential_energy() == -5 for x in images)
        assert np.array_equal(descriptor.reference.positions[0], image.positions)
        assert int(descriptor.mobile.sum()) == 1


def test_indices_say_the_same_as_tags():
    images = [on_metal("Cu", xy=(0.3 * k, 0.0)) for k in range(3)]
    tagged, indexed = (systems_of(images, temperature=T, **way) for way in ({"convention": "ocp"}, {"adsorbate_indices": [-1]}))
    for name, x in tagged.systems[0][1].state.items():
        assert torch.equal(x, indexed.systems[0][1].state[name])
    # Without energies the reference is the last one.
    assert np.array_equal(tagged.images[0].positions, images[-1].positions)


def test_the_clean_slab_is_the_reference_where_there_is_one():
    images = [on_metal("Cu") for _ in range(3)]
    for k, image in enumerate(images):
        image.positions[5] += 0.2
        image.calc = SinglePointCalculator(image, energy=float(k))
    clean = on_metal("Cu")[:8]
    data = systems_of([*images, clean], convention="ocp", temperature=T)
    assert len(data.systems) == 1 and len(data.systems[0][1]) == 3
    assert np.array_equal(data.images[0].positions[:8], clean.positions)
    assert np.array_equal(data.images[0].positions[8], images[0].positions[8])


def test_yielding_slabs_move_what_is_not_fixed():
    rng = np.random.default_rng(3)
    images = [on_metal("Cu") for _ in range(4)]
    for image in images:
        image.positions[4:8] += 0.05 * rng.normal(size=(4, 3))
    (descriptor, frames), = systems_of(images, convention="ocp", temperature=T, yielding=True).systems
    placed = Adsorbate().decode(frames.state, descriptor).positions.numpy()
    assert np.allclose(placed, [image.positions for image in images], atol=1e-5)
    assert descriptor.mobile.tolist() == [False] * 4 + [True] * 5


# What is left out --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_learned_from_is_counted_by_label():
    good = [on_metal("Cu", upright_co(), xy=(0.1 * k, 0), height=1.8, energy=0.0) for k in range(4)]
    away = on_metal("Cu", upright_co(), height=5.0, energy=-9.0)
    broken = on_metal("Cu", upright_co(), height=1.8)
    broken.positions[-1] += [0, 1.2, 0.8]
    broken.calc = SinglePointCalculator(broken, energy=-9.0)
    bent = on_metal("Cu", upright_co(), height=1.8)
    bent.positions[-1, 2] += 0.35
    bent.calc = SinglePointCalculator(bent, energy=0.5)
    blown = on_metal("Cu", upright_co(), height=1.8, energy=0.0)
    blown.positions[3] = np.nan
    failed = on_metal("Cu", upright_co(), height=1.8, energy=np.nan)
    data = systems_of([*good, away, broken, bent, blown, failed], convention="ocp", temperature=T)
    assert len(data.systems) == 1 and len(data.systems[0][1]) == 4
    wanted = {"adsorbate_desorbed": 1, "adsorbate_dissociated": 1, "adsorbate_deformed": 1, "not_finite": 2}
    assert data.excluded == Counter(wanted)


class Sometimes(Calculator):
    """A spring to the point (1, 1, 12) for the last atom; fails to the right of x = 1.5."""

    implemented_properties = ["energy", "forces"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=None):
        super().calculate(atoms, properties, system_changes)
        if atoms.positions[-1, 0] > 1.5:
            raise RuntimeError("not converged")
        forces = np.zeros((len(atoms), 3))
        forces[-1] = -2 * (atoms.positions[-1] - [1, 1, 12])
        self.results = {"energy": float(((atoms.positions[-1] - [1, 1, 12]) ** 2).sum()), "forces": forces}


def test_a_calculator_may_give_the_forces_and_fail_on_some():
    images = [on_metal("Cu", xy=(0.5 * k, 0.2)) for k in range(6)]
    data = systems_of(images, convention="ocp", temperature=T, energy=Sometimes())
    assert data.excluded == Counter(calculator_failed=2)
    (descriptor, frames), = data.systems
    frame, kept = frame_of(descriptor), [image for image in images if image.positions[-1, 0] <= 1.5]
    wanted = torch.tensor(np.array([-2 * (image.positions[-1] - [1, 1, 12]) / (kB * T) for image in kept]))
    assert torch.allclose(frames.force["plane"].double(), wanted @ frame.axes.T, atol=1e-4)


def test_results_of_another_structure_are_not_used():
    image = on_metal("Cu", energy=1.0, forces=np.ones((9, 3)))
    image.positions[-1, 0] += 0.1
    (_, frames), = systems_of([image], convention="ocp", temperature=T).systems
    assert frames.force is None


@pytest.mark.parametrize("images, way, words", [
    ([], {"convention": "ocp"}, "at least one image"),
    (["on"], {}, "adsorbate"),
    (["on"], {"adsorbate_indices": [12]}, "out of range"),
    (["away"], {"convention": "ocp"}, "desorbed"),
])  # fmt: skip
def test_nothing_to_learn_from_is_an_error(images, way, words):
    made = [on_metal("Cu", height=1.3 if kind == "on" else 6.0) for kind in images]
    with pytest.raises(IncompatibleError, match=words):
        systems_of(made, temperature=T, **way)


# Forces ------------------------------------------------------------------------------------------------------------------


def test_stored_forces_are_those_of_the_calculator():
    """A molecule's forces, from the file or from the calculator itself, are the same in the state: plane, height and turn."""

    class Field(Calculator):
        implemented_properties = ["energy", "forces"]

        def calculate(self, atoms=None, properties=("energy",), system_changes=None):
            super().calculate(atoms, properties, system_changes)
            centres = np.array([[1.0, 1.0, 12.0], [1.5, 0.5, 13.5]])
            away = atoms.positions[8:] - centres
            forces = np.zeros((len(atoms), 3))
            forces[8:] = -np.array([1.0, 3.0])[:, None] * away
            self.results = {"energy": float((0.5 * np.array([1.0, 3.0])[:, None] * away**2).sum()), "forces": forces}

    rng, images = np.random.default_rng(4), []
    for _ in range(5):
        tilted = upright_co()
        tilted.rotate(rng.uniform(0, 40), rng.normal(size=3))
        images.append(on_metal("Cu", tilted, xy=rng.uniform(0, 2, 2), height=1.9))
    stored = [image.copy() for image in images]
    for image in stored:
        image.calc = Field()
        image.calc = SinglePointCalculator(image, energy=image.get_potential_energy(), forces=image.get_forces())
    read, made = (
        systems_of(given, convention="ocp", temperature=T, energy=energy).systems[0]
        for given, energy in ((stored, None), ([*stored], Field()))
    )
    for name, force in read[1].force.items():
        assert torch.allclose(force, made[1].force[name], atol=2e-3), name
    assert set(read[1].force) == {"plane", "height", "turn"}
    # And they are the gradient of -u along the state's own directions, by differences.
    descriptor, frames = made
    energy = ASEEnergy(Field(), stored[0], T)
    state = {name: x.double() for name, x in frames.state.items()}
    step = 1e-4
    for axis in range(2):
        ends = []
        for sign in (1, -1):
            moved = {**state, "plane": state["plane"].clone()}
            moved["plane"][:, axis] += sign * step
            ends.append(energy(Adsorbate().decode(moved, descriptor)))
        slope = -(ends[0] - ends[1]) / (2 * step)
        assert torch.allclose(slope, frames.force["plane"][:, axis].double(), atol=2e-2)


# Training ----------------------------------------------------------------------------------------------------------------


def test_systems_train_one_model_that_says_what_it_knows(tmp_path):
    rng, images = np.random.default_rng(5), []
    for metal in ("Cu", "Pd"):
        surface = None
        for _ in range(12):
            image = on_metal(metal, "O", xy=rng.uniform(0, 2, 2), height=1.2)
            surface = SiteSurface.from_table(metal, "O").calculator() if surface is None else surface
            image.calc = surface
            image.calc = SinglePointCalculator(image, energy=image.get_potential_energy(), forces=image.get_forces())
            images.append(image)
    data = systems_of(images, convention="ocp", temperature=T)
    assert all(frames.force is not None for _, frames in data.systems)
    dig = fit_systems(data.systems, steps=6, batch=8, out=tmp_path, seed=1, progress=False)
    assert dig.card.scope == {"slab": ["Cu", "Pd"], "adsorbate": ["O"], "temperature": [T, T]}
    assert (tmp_path / "model.safetensors").exists() and dig.card.history[-1]["frames"] == 24
    slab = on_metal("Pd")[:8]
    ensemble = sample_adsorption(slab, "O", tmp_path / "model.safetensors", n=4, temperature=T, seed=2, steps=4)
    assert len(ensemble) == 4
    with pytest.raises(UnsupportedError, match="Pt"):
        sample_adsorption(on_metal("Pt")[:8], "O", dig, n=4, temperature=T, seed=2)
    further = fit_systems(data.systems[:1], dig, steps=2, batch=8, seed=1, progress=False)
    assert len(further.card.history) == 2 and further.card.scope["slab"] == ["Cu", "Pd"]


def test_no_systems_or_other_components_are_refused():
    with pytest.raises(IncompatibleError, match="at least one system"):
        fit_systems([])
    (descriptor, frames), = systems_of([on_metal("Cu")], convention="ocp", temperature=T).systems
    (other, _), = systems_of([on_metal("Cu", upright_co(), height=1.8)], convention="ocp", temperature=T).systems
    with pytest.raises(UnsupportedError, match="components"):
        fit_systems([(other, frames)], steps=1)


@pytest.mark.slow
@pytest.mark.skipif(not ALLOYS.exists(), reason="the relaxations of binary alloys are not on this machine")
def test_relaxations_of_alloys():
    data = systems_of(read_images(ALLOYS), convention="ocp", temperature=T)
    assert len(data.systems) == 28  # 14 slabs, H and N2H
    frames = sum(len(frames) for _, frames in data.systems)
    assert frames + sum(data.excluded.values()) == 2221 and frames > 1000
    assert all(f.force is not None and all(torch.isfinite(x).all() for x in f.force.values()) for _, f in data.systems)
