"""Checkpoints: what comes back samples the same numbers, what is damaged says so, and a failed write leaves what was there."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import dig_plugins
from dig_core import checkpoint
from dig_core.coordinates import Adsorbate, Backbone, Cartesian, Crystal, Internal
from dig_core.coordinates.bound import Bound
from dig_core.diffusion import Diffusion, Euclidean, Geometric, Joint, Lattice, LogSNR, Sigmoid, Torus, ZeroCentroid
from dig_core.dig import Card, DiG
from dig_core.errors import CheckpointError, IncompatibleError
from dig_core.files import write_atomically
from dig_core.nn import (
    AdsorptionGraphormer,
    BackboneGraphormer,
    CartesianGraphormer,
    Committee,
    CrystalGraphormer,
    InternalGraphormer,
    ResidualMLP,
    ScalarMLP,
)
from dig_core.nn.conformer import ConformerGraphormer
from dig_core.nn.pose import PoseGraphormer
from dig_core.sampling.guidance import Guided
from dig_core.score import NoiseScore
from dig_core.system.descriptor import Descriptor, molecule
from dig_core.types import Geometry
from tests.core.adsorbates import awake, system

ALA2 = Path(dig_plugins.__file__).parent / "models" / "alanine-dipeptide.pdb"
SMALL = {"width": 16, "layers": 1, "heads": 2, "basis": 4}
CARD = Card(
    name="test", system="a molecule", temperature=300.0, steps=4, measured={"raw_ess": 0.25}, history=[{"stage": 1}]
)


def alanine_dipeptide() -> Descriptor:
    openmm_app = pytest.importorskip("openmm.app")
    from dig_plugins.openmm import describe

    pdb = openmm_app.PDBFile(str(ALA2))
    return describe(pdb.topology, positions=pdb.getPositions(asNumpy=True))


def peroxide() -> Descriptor:
    """H-O-O-H: one free torsion, no engine needed."""
    positions = [[-0.3, 0.9, 0.2], [0.0, 0.0, 0.0], [1.45, 0.0, 0.0], [1.7, 0.4, -0.8]]
    return molecule([1, 8, 8, 1], [(0, 1), (1, 2), (2, 3)], positions=positions)


def shaken(model: NoiseScore) -> NoiseScore:
    """Untrained networks are silent: weights that all differ make every one of them count."""
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    return model.eval().requires_grad_(False)


def frames_of_all_torsions(descriptor: Descriptor, n: int = 200) -> Geometry:
    """Structures around the reference whose free torsions take every value."""
    coordinates, rng = Internal.from_reference(descriptor), torch.Generator().manual_seed(3)
    shape = torch.randn(n, len(coordinates.centre), generator=rng)
    torsion = 6.28 * torch.rand(n, len(coordinates.torsion_atoms), generator=rng) - 3.14
    return coordinates.decode({"shape": shape, "torsion": torsion}, descriptor)


def internal_process(coordinates: Internal) -> Joint:
    return Joint(
        shape=Diffusion(Euclidean(len(coordinates.centre)), LogSNR(6.0, -6.0)),
        torsion=Diffusion(Torus(len(coordinates.torsion_atoms)), Geometric(0.02, 3.5)),
    )


def with_mlp(descriptor: Descriptor, precision: str = "float32") -> DiG:
    coordinates = Internal.from_frames(descriptor, frames_of_all_torsions(descriptor))
    sizes = {"shape": len(coordinates.centre), "torsion": len(coordinates.torsion_atoms)}
    network = ResidualMLP(
        sizes, ["torsion"], width=24, blocks=2, harmonics=2, frequencies=4, precision=precision, seed=3
    )
    model = shaken(NoiseScore(network, internal_process(coordinates)))
    return DiG(model, coordinates, descriptor, CARD)


def with_internal_graphormer(descriptor: Descriptor) -> DiG:
    coordinates = Internal.from_reference(descriptor)
    network = InternalGraphormer.of(coordinates, **SMALL)
    return DiG(shaken(NoiseScore(network, internal_process(coordinates))), coordinates, descriptor, CARD)


def with_cartesian_graphormer(descriptor: Descriptor) -> DiG:
    process = Joint(pos=Diffusion(ZeroCentroid(descriptor.n_atoms), Sigmoid.paper()))
    network = CartesianGraphormer({**SMALL, "reference": True}, scale=2.0)
    return DiG(shaken(NoiseScore(network, process)), Cartesian(2.0), descriptor, CARD)


def over_a_slab() -> DiG:
    """CO with a free atom below it, at a condition."""
    network = awake(conditions=1)
    descriptor = system("CO", free=(0,), conditions=[0.3])
    return DiG(shaken(NoiseScore(network, network.process(descriptor))), network.coordinates, descriptor, CARD)


def assert_same(one: DiG, other: DiG) -> None:
    """Equal parts, and bitwise equal samples, weights and densities of given structures."""
    assert other.card == one.card
    a, b = (dig.sample(3, seed=8, method="path") for dig in (one, other))
    assert torch.equal(a.geometry.positions, b.geometry.positions)
    assert torch.equal(a.log_q, b.log_q) and torch.equal(a.valid, b.valid)
    a, b = (dig.sample(3, seed=8, steps=2).geometry.positions for dig in (one, other))
    assert torch.equal(a, b)
    assert len(torch.unique(a, dim=0)) == 3
    for name in ("numbers", "node", "pair", "bonds", "mobile", "pbc"):
        assert torch.equal(getattr(one.descriptor, name), getattr(other.descriptor, name))
    assert torch.equal(one.descriptor.reference.positions, other.descriptor.reference.positions)
    assert one.descriptor.schema == other.descriptor.schema


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    with_mlp(peroxide()).save(path)
    return path


# Round trips ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [with_mlp, with_internal_graphormer, with_cartesian_graphormer])
@pytest.mark.parametrize("system", [peroxide, alanine_dipeptide])
def test_loaded_model_gives_the_same_samples(build, system, tmp_path):
    dig = build(system())
    dig.save(tmp_path / "model.safetensors")
    assert_same(dig, DiG.load(tmp_path / "model.safetensors"))


def test_adsorbate_comes_back_with_its_cell_and_conditions(tmp_path):
    """And goes over to another system as before it was saved."""
    dig, other = over_a_slab(), system("N2H", repeat=((2, 0), (0, 1)), conditions=[-1.0])
    dig.save(tmp_path / "model.safetensors")
    loaded = DiG.load(tmp_path / "model.safetensors")
    assert_same(dig, loaded)
    assert torch.equal(loaded.descriptor.reference.cell, dig.descriptor.reference.cell)
    assert torch.equal(loaded.descriptor.conditions, dig.descriptor.conditions)
    assert_same(dig.on(other), loaded.on(other))


def test_bfloat16_model_gives_the_same_samples(tmp_path):
    dig = with_mlp(peroxide(), "bfloat16")
    dig.save(tmp_path / "model.safetensors")
    assert_same(dig, DiG.load(tmp_path / "model.safetensors"))


def test_a_second_round_trip_writes_the_same_bytes(saved, tmp_path):
    again = tmp_path / "again.safetensors"
    DiG.load(saved).save(again)
    assert again.read_bytes() == saved.read_bytes()


def test_path_may_be_a_string(saved):
    assert DiG.load(str(saved)).card == CARD


def test_loaded_model_is_ready_to_use_and_frozen(saved):
    model = DiG.load(saved).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_descriptor_without_reference(tmp_path):
    descriptor = replace(peroxide(), reference=None)
    process = Joint(pos=Diffusion(ZeroCentroid(4), LogSNR()))
    dig = DiG(shaken(NoiseScore(CartesianGraphormer(SMALL), process)), Cartesian(), descriptor)
    dig.save(tmp_path / "m.safetensors")
    assert DiG.load(tmp_path / "m.safetensors").descriptor.reference is None


def test_network_that_shares_its_coordinates_can_be_saved(tmp_path):
    dig = with_internal_graphormer(peroxide())
    dig.model.network.coordinates = dig.coordinates
    dig.save(tmp_path / "m.safetensors")
    assert_same(dig, DiG.load(tmp_path / "m.safetensors"))


def test_header_says_what_is_in_the_file(saved):
    with safe_open(saved, "pt") as stream:
        header = json.loads(stream.metadata()["dig"])
    assert header["schema"] == checkpoint.SCHEMA and header["score"] == "NoiseScore"
    assert header["network"]["type"] == "ResidualMLP" and header["card"]["temperature"] == 300.0
    assert header["process"]["torsion"][0]["type"] == "Torus"


# Parts and their config ----------------------------------------------------------------------------------------------


def parts() -> list:
    coordinates = Internal.from_frames(peroxide(), frames_of_all_torsions(peroxide()))
    sizes = {"shape": len(coordinates.centre), "torsion": len(coordinates.torsion_atoms)}
    made = {
        "Lattice": Lattice([[2.8, 0.0], [1.2, 2.5]]), "Adsorbate": Adsorbate(height=1.5, width=0.8, relaxation=0.2),
        "AdsorptionGraphormer": AdsorptionGraphormer(
            width=8, heads=2, layers=1, encoder=1, basis=4, cutoff=5.0, channels=3, conditions=2, coordinates={"height": 1.4}, seed=2
        ),
        "Backbone": Backbone(scale=12.0),
        "Committee": Committee([ResidualMLP(sizes, ["torsion"], width=8, blocks=1, seed=seed) for seed in (1, 2)]),
        "BackboneGraphormer": BackboneGraphormer(
            width=8, heads=2, layers=1, pair=4, heard=2, basis=4, process="brownian", members=3, reference=True, single=5, couple=2, seed=2
        ),
        "Crystal": Crystal(volume=1.7, width=0.2, shape=0.3),
        "CrystalGraphormer": CrystalGraphormer(width=8, heads=2, layers=1, basis=4, cutoff=4.0, channels=3, conditions=1, seed=2),
        "Euclidean": Euclidean(3), "Torus": Torus(2), "ZeroCentroid": ZeroCentroid(5), "Cartesian": Cartesian(1.5), "Internal": coordinates,
        "ResidualMLP": ResidualMLP(sizes, ["torsion"], width=8, blocks=1, harmonics=1, frequencies=2, precision="bfloat16"),
        "ScalarMLP": ScalarMLP(sizes, ["torsion"], width=8, blocks=1, harmonics=1, frequencies=2),
        "Bound": Bound(width=2.5),
        "PoseGraphormer": PoseGraphormer(
            width=12, heads=2, layers=1, encoder=1, basis=4, neighbours=5, channels=3, coordinates={"width": 2.0}, seed=2
        ),
        "ConformerGraphormer": ConformerGraphormer.of(
            Internal.from_reference(peroxide()), peroxide(), width=16, heads=2, layers=1, ffn=2, seed=2
        ),
        "CartesianGraphormer": CartesianGraphormer({**SMALL, "reference": True}, scale=3.0, chiral=False),
        "InternalGraphormer": InternalGraphormer.of(coordinates, **SMALL),
    }  # fmt: skip
    # Numbers of a schedule that are not its defaults, whatever their names.
    for name, cls in checkpoint._BUILDERS.items():
        if name not in made:
            made[name] = cls(**{key: value * 0.99 for key, value in cls().config.items()})
    return [pytest.param(part, id=name) for name, part in made.items()]


def test_every_kind_of_part_that_a_file_may_name_is_tested():
    # The page on extending adds a network of its own, in this process if it comes to that.
    kinds = {**checkpoint._BUILDERS, **checkpoint._COORDINATES, **checkpoint.NETWORKS}
    assert {param.id for param in parts()} == {name for name, cls in kinds.items() if cls.__module__.startswith("dig_core.")}


@pytest.mark.parametrize("part", parts())
def test_config_rebuilds_an_equal_part(part):
    config = json.loads(json.dumps(part.config))
    other = getattr(type(part), "from_config", type(part))(**config)
    assert type(other) is type(part) and other.config == part.config
    if isinstance(part, torch.nn.Module):
        other.load_state_dict(part.state_dict())
        assert list(other.state_dict()) == list(part.state_dict())
        assert all(torch.equal(other.state_dict()[k], v) for k, v in part.state_dict().items())
        return
    mine, theirs = ({key: x.tolist() if isinstance(x, torch.Tensor) else x for key, x in vars(p).items()} for p in (part, other))
    assert mine == theirs
    if hasattr(part, "sigma"):
        times = torch.linspace(0, 1, 7, dtype=torch.float64)
        assert torch.equal(part.sigma(times), other.sigma(times)) and torch.equal(part.alpha(times), other.alpha(times))


# Files that cannot be used ---------------------------------------------------------------------------------------------


def refused(path: Path, *words: str) -> str:
    """The message of the error that loading ``path`` raises: it names the file, and says each of ``words``."""
    with pytest.raises(CheckpointError) as caught:
        DiG.load(path)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word in message, message
    return message


def with_header(saved: Path, change) -> Path:
    """A copy of ``saved`` whose header went through ``change``."""
    with safe_open(saved, "pt") as stream:
        header = json.loads(stream.metadata()["dig"])
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}
    change(header, tensors)
    path = saved.with_name("changed.safetensors")
    save_file(tensors, path, metadata={"dig": json.dumps(header)})
    return path


def test_missing_file(tmp_path):
    refused(tmp_path / "nothing.safetensors", "no checkpoint", "DiG.save")


def test_directory_is_no_checkpoint(tmp_path):
    refused(tmp_path, "no checkpoint")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99])
def test_truncated_file(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    refused(saved, "damaged or truncated", "get it again")


@pytest.mark.parametrize(
    "content", [b"not a checkpoint at all", bytes(1000), b"\xff" * 1000, b"PK\x03\x04" + bytes(200)]
)
def test_garbage(tmp_path, content):
    path = tmp_path / "garbage.safetensors"
    path.write_bytes(content)
    refused(path, "get it again")


def test_header_that_is_no_json(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(2)}, path, metadata={"dig": "{"})
    refused(path, "get it again")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"dig": "[1, 2]"}])
def test_safetensors_file_of_somebody_else(tmp_path, metadata):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
    refused(path, "without a dig header", "DiG.save")


@pytest.mark.parametrize("schema", [2, 0, None, "1"])
def test_other_schema(saved, schema):
    path = with_header(saved, lambda header, _: header.update(schema=schema))
    refused(path, f"schema {schema}", "reads schema 1", "install")


@pytest.mark.parametrize(
    "change",
    [
        lambda header, _: header["network"].update(type="Transformer9"),
        lambda header, _: header["coordinates"].update(type="Polar"),
        lambda header, _: header["process"]["shape"][0].update(type="Sphere"),
        lambda header, _: header["process"]["torsion"][1].update(type="Quadratic"),
        lambda header, _: header.update(score="FlowScore"),
    ],
    ids=["network", "coordinates", "space", "schedule", "score"],
)
def test_unknown_kind_of_part(saved, change):
    message = refused(with_header(saved, change), "this version knows", "Install")
    assert "was edited" not in message


@pytest.mark.parametrize(
    "change",
    [
        lambda header, tensors: tensors.pop("network.enter"),
        lambda header, tensors: tensors.pop("coordinates.centre"),
        lambda header, tensors: tensors.pop("descriptor.numbers"),
        lambda header, tensors: tensors.update({"network.enter": torch.zeros(2, 2)}),
        lambda header, tensors: tensors.update({"network.extra": torch.zeros(2)}),
        lambda header, tensors: header.pop("process"),
        lambda header, tensors: header.update(process={}),
        lambda header, tensors: header.update(process=[]),
        lambda header, tensors: header.update(network=None),
        lambda header, tensors: header["network"]["config"].update(depth=3),
        lambda header, tensors: header["network"]["config"].update(precision="float99"),
        lambda header, tensors: header["card"].update(colour="blue"),
        lambda header, tensors: header["process"]["shape"].pop(),
        lambda header, tensors: header["process"]["shape"][0]["config"].update(dim=4),
        lambda header, tensors: header["coordinates"]["config"]["zmatrix"].update(rows=[[9, 8, 7, 6]] * 4),
        lambda header, tensors: header["coordinates"]["config"]["zmatrix"].update(rotors=[[0]]),
        lambda header, tensors: header["coordinates"]["config"].update(size=-1),
    ],
    ids=lambda change: change.__code__.co_firstlineno,
)
def test_file_that_does_not_add_up(saved, change):
    refused(with_header(saved, change), "cannot be rebuilt")


# What can be saved -----------------------------------------------------------------------------------------------------


class Homemade(torch.nn.Module):
    config: dict = {}

    def forward(self, state, t, descriptor):
        return ({name: torch.zeros_like(x) for name, x in state.items()},) * 2


def test_a_network_that_could_not_be_loaded_is_not_saved(tmp_path):
    path = tmp_path / "m.safetensors"
    model = NoiseScore(Homemade(), Joint(pos=Diffusion(ZeroCentroid(4), LogSNR())))
    with pytest.raises(CheckpointError, match="Homemade.*knows"):
        DiG(model, Cartesian(), peroxide()).save(path)
    assert not path.exists()


def test_a_guided_model_is_not_saved(tmp_path):
    dig = with_mlp(peroxide())
    guided = Guided(dig.model, lambda state, t, descriptor: state)
    with pytest.raises(CheckpointError, match="Guided.*knows"):
        DiG(guided, dig.coordinates, dig.descriptor).save(tmp_path / "m.safetensors")


def test_card_that_json_cannot_hold_is_not_saved(tmp_path):
    dig = replace(with_mlp(peroxide()), card=Card(measured={"ess": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="card"):
        dig.save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


# Writing -----------------------------------------------------------------------------------------------------------------


def fail_with(code: int):
    def raising(*_):
        raise OSError(code, os.strerror(code))

    return raising


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_write_that_fails_midway_leaves_the_earlier_file(saved, monkeypatch, function):
    before, listing = saved.read_bytes(), sorted(saved.parent.iterdir())
    other = replace(with_mlp(peroxide()), card=Card(name="another"))
    monkeypatch.setattr(os, function, fail_with(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        other.save(saved)
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert sorted(saved.parent.iterdir()) == listing
    assert DiG.load(saved).card.name == "test"


def test_failed_first_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        with_mlp(peroxide()).save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_file_is_never_seen_half_written(tmp_path, monkeypatch):
    """When the content reaches the disk, the target still holds what it held before."""
    path, seen = tmp_path / "f", []
    path.write_bytes(b"old")
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (seen.append(path.read_bytes()), fsync(descriptor)))
    write_atomically(path, b"new and longer")
    assert seen == [b"old"] and path.read_bytes() == b"new and longer"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_directory_is_an_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        write_atomically(tmp_path / "absent" / "f", b"x")


# The facade that files hold ----------------------------------------------------------------------------------------------


def test_parts_that_do_not_fit_are_refused():
    dig = with_mlp(peroxide())
    with pytest.raises(IncompatibleError, match="one system"):
        DiG(dig.model, Cartesian(), dig.descriptor)


@pytest.mark.parametrize("method", ["path", "ancestral"])
def test_samples_do_not_depend_on_the_batch(method):
    dig = with_mlp(peroxide())
    one, other = (dig.sample(7, seed=2, method=method, batch=batch).geometry.positions for batch in (7, 3))
    assert torch.allclose(one, other, atol=1e-5)  # matrix products of other sizes round differently
    tail = next(dig.stream(3, seed=2, method=method, start=4)).geometry.positions
    assert torch.allclose(tail, one[4:], atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"n": 0}, {"n": -3}, {"n": 2, "batch": 0}, {"n": 2, "steps": 0}, {"n": 2, "method": "magic"}], ids=str
)
def test_requests_that_make_no_sense_are_refused(options):
    with pytest.raises(IncompatibleError, match="expected|must be"):
        with_mlp(peroxide()).sample(seed=1, **options)
