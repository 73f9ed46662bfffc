"""Models of backbones from structures: one protein, several, forces, resumption, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("mdtraj")

from dig_core.coordinates import Backbone
from dig_core.dig import DiG
from dig_core.errors import CheckpointError, IncompatibleError
from dig_core.random import Streams
from dig_core.system.protein import protein
from dig_core.training.losses import Frames
from dig_core.types import Geometry
from dig_plugins.mdtraj import Backbones, fit_backbones, training, untrained_backbones
from dig_plugins.mdtraj.training import _central

SMALL = {"width": 16, "heads": 2, "layers": 1, "pair": 8, "heard": 4, "basis": 6}
SEQUENCE = "MKGAVLPD"


def structures(sequence: str = SEQUENCE, count: int = 6, spread: float = 0.3, seed: int = 0) -> Backbones:
    """A stretched chain and its neighbours, Angstrom."""
    descriptor, rng = protein(sequence), torch.Generator().manual_seed(seed)
    n = len(sequence)
    line = torch.stack([3.6 * torch.arange(n).double(), torch.cos(2.0 * torch.arange(n)), torch.sin(2.0 * torch.arange(n))], -1)
    pos = line[None] + spread * torch.randn(count, n, 3, generator=rng, dtype=torch.float64)
    turn = 0.3 * torch.randn(count, n, 3, generator=rng, dtype=torch.float64)
    geometry = Backbone().decode({"pos": (pos - pos.mean(1, keepdim=True)) / 10, "rot": turn}, descriptor)
    return Backbones(dataclasses.replace(descriptor, reference=Geometry(geometry.positions[:1])), geometry, ())


def test_one_protein_trains_resumes_and_is_its_own(tmp_path):
    data = structures()
    options = {"steps": 20, "batch": 4, "held_out": [0, 3], "seed": 1, "progress": False, **SMALL}
    fitted = fit_backbones(data, out=tmp_path, **options)
    assert fitted.finished and fitted.dig.card.scope == {"residues": [8], "structures": [6]}
    assert "validation" in fitted.history[-1] and (tmp_path / "model.safetensors").exists()
    again = fit_backbones(data, out=tmp_path, **options)
    anew = fit_backbones(data, **options)
    models = (fitted.dig, again.dig, anew.dig, DiG.load(tmp_path / "model.safetensors"))
    drawn = [dig.sample(2, seed=3, steps=3).geometry.positions for dig in models]
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])
    with pytest.raises(CheckpointError, match="another protein"):
        fit_backbones(structures("MKGAVLPE"), out=tmp_path, **options)


def test_the_reference_is_the_most_central_structure():
    data = structures(count=5)
    positions = data.geometry.positions.clone()
    positions[0] *= 1.5  # the first, which is the reader's reference, is far from the others
    found = _central(Backbones(data.descriptor, Geometry(positions), ())).reference
    assert not torch.equal(found.positions[0], positions[0])
    assert any(torch.equal(found.positions[0], other) for other in positions[1:])


def test_several_proteins_make_a_model_of_any(tmp_path):
    data = [structures(), structures("GG" + SEQUENCE + "AA", count=1)]
    fitted = fit_backbones(data, steps=10, batch=3, longest=6, seed=1, progress=False, out=tmp_path, **SMALL)
    assert fitted.finished and fitted.dig.card.scope["residues"] == [8, 12]
    other = structures("ACDEFGHIK", count=1)
    assert fitted.dig.on(other.descriptor).sample(2, seed=0, steps=3).geometry.positions.shape == (2, other.descriptor.n_atoms, 3)
    further = fit_backbones(other, fitted.dig, steps=5, batch=2, seed=2, progress=False)
    assert further.finished and len(fitted.dig.descriptor.numbers) != len(further.dig.descriptor.numbers)
    with pytest.raises(IncompatibleError, match="for one protein"):
        fit_backbones(data, steps=5, physics=5)


def test_forces_and_physics():
    """On harmonic residues the forces pull to the centres: with them the equation's loss is finite and training goes on."""
    data = structures(count=12, spread=0.2)
    state, _ = Backbone().encode(data.geometry, data.descriptor)
    centre = {name: x.mean(0, keepdim=True) for name, x in state.items()}
    pull = {"pos": (centre["pos"] - state["pos"]) / 0.02**2, "rot": (centre["rot"] - state["rot"]) / 0.3**2}
    frames = Frames(*({name: x.float() for name, x in part.items()} for part in (state, pull)))
    fitted = fit_backbones((data.descriptor, frames), steps=10, batch=4, physics=3, seed=1, progress=False, **SMALL)
    assert [row["stage"] for row in fitted.history] == ["denoise", "physics"] and fitted.finished
    with pytest.raises(IncompatibleError, match="frame_forces"):
        fit_backbones(data, steps=5, physics=5, progress=False, **SMALL)


def test_known_structures_can_be_added_to_a_model_and_change_nothing_until_trained(monkeypatch):
    monkeypatch.setattr(training, "_WAKING", 5)
    data = structures()
    first = fit_backbones(data, steps=3, batch=4, seed=1, progress=False, **SMALL).dig
    more = fit_backbones(data, first, steps=0, rate=0.0, held_out=[1, 4], seed=1, progress=False, known=9).dig
    state = first.process.prior(first.process.empty(2, torch.float64)).sample(Streams(0, range(2)))
    for t in (0.1, 0.9):
        before, after = (dig.model.moments(state, torch.tensor([t]).double(), first.descriptor).noise for dig in (first, more))
        for name in before:
            torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-5)
    kept = more.model.network.known_structures.pos
    held = Backbone().encode(data.geometry, data.descriptor)[0]["pos"]
    shapes = [torch.cdist(x.double(), x.double()) for x in (kept, held)]
    known = [min(float((a - b).abs().max()) for a in shapes[0]) < 1e-4 for b in shapes[1]]
    assert known == [True, False, True, True, False, True]  # what is held out is not known either
    trained = fit_backbones(data, first, steps=0, seed=1, progress=False, known=9).dig.model.state_dict()
    changed = {name for name, x in first.model.state_dict().items() if not torch.equal(x, trained[name])}
    assert not changed  # nothing but how much of the answer is theirs
    with pytest.raises(IncompatibleError, match="add to the given model"):
        fit_backbones(data, first, steps=1, known=3, width=32)


def test_untrained_models_read_what_the_descriptor_has():
    data = structures()
    plain = untrained_backbones(protein(SEQUENCE), **SMALL)
    assert not plain.model.network.config["reference"] and untrained_backbones(data.descriptor, **SMALL).model.network.config["reference"]
    given = protein(SEQUENCE, single=torch.randn(8, 5))
    assert untrained_backbones(given, any_protein=True, **SMALL).model.network.config["single"] == 5
    assert plain.proposal(steps=4).draw(3, Streams(0, range(3))).log_q.isfinite().all()
    with pytest.raises(IncompatibleError, match="got none"):
        fit_backbones([])
