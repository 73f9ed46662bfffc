"""What the adsorption recipes train on: frames of the DFT table's metals and of their mixtures, drawn by the energy, mixed linearly,
without the metal left out; where structures are tried for labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import fcc110, fcc111
from ase.data import covalent_radii
from ase.units import kB

from dig_core.coordinates import Adsorbate
from dig_core.system.elements import d_band
from dig_plugins.ase.adsorption import SiteSurface
from dig_plugins.ase.adsorption.describe import temperature_of
from dig_plugins.ase.recipes import table
from dig_plugins.ase.recipes.labels import _TOUCH, _WINDOW, _extended, _tries
from dig_plugins.ase.recipes.slabs import adsorbate
from dig_plugins.ase.recipes.table import METALS, mixed_systems, table_systems


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Three metals and one adsorbate."""
    monkeypatch.setattr(table, "METALS", ("Ag", "Pt", "Ir"))
    monkeypatch.setattr(table, "GUESTS", ("O",))


def test_frames_are_drawn_by_the_energy():
    """Forces are those of the energy, those along the normal are of a spring at this temperature; the coldest sit deepest."""
    systems = table_systems("Ir", n=4000)
    assert len(systems) == 2 * 5
    surface = SiteSurface.from_table("Pt", "O")
    depth = []
    for descriptor, frames in systems[5:]:
        found = Adsorbate().decode(frames.state, descriptor).positions[:, -1]
        kt = kB * temperature_of(descriptor)
        placed = surface.on(table._slab("Pt", table._spacing("Pt")))
        depth.append(float(placed.energy(found).mean()))
        assert torch.allclose(placed.forces(found)[:, 2] / kt, frames.force["height"][:, 0].double(), atol=1e-2)
        # E[F_z^2] = k / kT for a spring of constant k.
        spread = frames.force["height"].double().square()
        assert abs(float(spread.mean()) - placed.stiffness / kt) < 4 * float(spread.std()) / 4000**0.5
    assert depth == sorted(depth)


def test_a_metal_left_out_is_in_no_system():
    numbers = {int(z) for d, _ in [*table_systems("Ag", n=20), *mixed_systems("Ag", count=4, n=10)] for z in d.numbers}
    assert 47 not in numbers and {77, 78} <= numbers


def test_mixtures_of_a_d_band_have_the_energies_of_the_regression():
    """Over many mixtures the energies follow the d bands as they do over the metals: the least squares of one are those of the other."""
    rng = np.random.default_rng(0)
    surfaces = [SiteSurface.from_table(m, "O") for m in METALS]
    bands = d_band(torch.tensor([47, 79, 29, 77, 46, 78, 45])).numpy()
    wanted = [s.energies["hcp"] - s.energies["fcc"] for s in surfaces]
    weights = 0.5 * rng.normal(size=(4000, 7))
    weights += 1 / 7 - weights.mean(1, keepdims=True)
    mixed = [table._mixture(surfaces, w) for w in weights]
    found = [m.energies["hcp"] - m.energies["fcc"] for m in mixed]
    one, other = (np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0] for x, y in ((bands, wanted), (weights @ bands, found)))
    assert np.abs(one - other).max() < 0.01
    assert all(0.9 < m.heights["fcc"] < 1.4 for m in mixed)


def test_mixtures_tell_their_d_band_and_real_metals_do_not():
    mixed, real = mixed_systems(count=2, n=10), table_systems(n=10)
    assert all(d.single is not None and d.single.shape == (len(d.numbers), 3) and not d.single[-1].any() for d, _ in mixed)
    assert all(d.single is None for d, _ in real)


@pytest.mark.parametrize("make, metal, guest", [(fcc111, "Cu", "H"), (fcc110, "Au", "H"), (fcc110, "Au", "CO")])
def test_structures_are_tried_about_contact_also_over_the_channels_of_an_open_surface(make, metal, guest):
    slab, guest = make(metal, (2, 2, 4), vacuum=8.0), adsorbate(guest)
    vectors = slab.cell.array[:2] / 2
    near = _extended(slab, vectors)
    tries = _tries(slab, guest, vectors, 512, np.random.default_rng(1))
    assert np.isfinite(tries).all() and (tries[:, 0, 2] > slab.positions[:, 2].min()).all()
    contact = covalent_radii[guest.numbers][:, None] + covalent_radii[near.numbers]
    gap = np.linalg.norm(tries[:, :, None] - near.positions, axis=-1) - _TOUCH * contact
    # Lowered from contact by the window at most, and never into an atom.
    assert gap.min() > _WINDOW[0] - 1e-9 and gap.reshape(len(gap), -1).min(1).max() < _WINDOW[1] + 1e-9
