"""A ligand in a pocket: placement and internal coordinates, many padded together, the network that moves them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from dig_core.checkpoint import load, save
from dig_core.coordinates import Bound, Internal
from dig_core.coordinates.complex import Complex, PocketAtoms, bind, complex_of
from dig_core.coordinates.scaffold import Scaffold, moved_by
from dig_core.diffusion import SO3
from dig_core.diffusion.rotations import rotation_matrix
from dig_core.dig import Card, DiG
from dig_core.errors import IncompatibleError
from dig_core.nn import PoseGraphormer
from dig_core.random import Streams
from dig_core.score import NoiseScore
from dig_core.system.descriptor import Descriptor, molecule
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Frames
from dig_core.training.poses import Poses
from dig_core.types import Geometry

ETHANOL = (
    [6, 6, 8, 1, 1, 1, 1, 1, 1],
    [(0, 1), (1, 2), (0, 3), (0, 4), (0, 5), (1, 6), (1, 7), (2, 8)],
    [
        [-1.17, -0.40, 0.0], [0.0, 0.56, 0.0], [1.19, -0.23, 0.0], [-1.14, -1.04, 0.89], [-1.14, -1.04, -0.89], [-2.12, 0.14, 0.0],
        [-0.05, 1.20, 0.89], [-0.05, 1.20, -0.89], [1.94, 0.37, 0.0],
    ],
)  # fmt: skip
WATER_LIKE = ([7, 6, 17, 1, 1, 1, 1], [(0, 1), (1, 2), (0, 3), (0, 4), (1, 5), (1, 6)], [
    [-1.2, 0.1, 0.1], [0.0, 0.8, 0.0], [1.5, -0.2, 0.0], [-1.2, -0.5, 0.9], [-2.0, 0.7, 0.1], [0.0, 1.4, 0.9], [0.1, 1.4, -0.9],
])  # fmt: skip


def pocket(seed: int = 3, shift: float = 0.0) -> PocketAtoms:
    rng = torch.Generator().manual_seed(seed)
    away = torch.randn(14, 3, generator=rng, dtype=torch.float64)
    at = 5.0 * away / away.norm(dim=1, keepdim=True) + torch.randn(14, 3, generator=rng, dtype=torch.float64) + shift
    numbers = torch.tensor([6, 7, 8, 6, 1, 6, 16, 6, 7, 1, 8, 6, 6, 6])
    return PocketAtoms(numbers, torch.zeros_like(numbers), 1 + numbers % 5, torch.arange(14) // 4, at, torch.full((3,), shift).double())


def complex_in(which=ETHANOL, walls: PocketAtoms | None = None, twist: bool = True) -> Complex:
    numbers, bonds, positions = which
    ligand = molecule(numbers, bonds, positions=positions)
    internal = Internal.from_reference(ligand)
    if twist:  # a whitening that mixes, so that its transposes are told apart
        size = len(internal.centre)
        rng = torch.Generator().manual_seed(size)
        mix = torch.eye(size, dtype=torch.float64) + 0.1 * torch.randn(size, size, generator=rng, dtype=torch.float64)
        internal = Internal(internal.zmatrix, internal.centre, internal.width, mix)
    zeros = torch.zeros(len(numbers), dtype=torch.long)
    return bind(ligand, internal, pocket() if walls is None else walls, zeros, zeros)


def states(system: Complex, n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    internal = system.internal
    raw = torch.randn(n, 6 + len(internal.centre) + len(internal.torsion_atoms), generator=rng, dtype=torch.float64)
    place, turn, shape, torsion = raw.split([3, 3, len(internal.centre), len(internal.torsion_atoms)], 1)
    return {"place": place, "turn": 0.8 * turn, "shape": 0.3 * shape, "torsion": 0.9 * torsion}


def randomised(network: PoseGraphormer) -> PoseGraphormer:
    """With the layers that start at zero filled, so that there is an answer to look at."""
    rng = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        if not bool(parameter.any()):
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=rng)
    return network.double()


def small(seed: int = 0) -> PoseGraphormer:
    return PoseGraphormer(width=32, heads=4, layers=2, encoder=1, basis=12, neighbours=6, channels=4, seed=seed)


@pytest.mark.parametrize("which", [ETHANOL, WATER_LIKE], ids=["ethanol", "amine"])
def test_encode_inverts_decode(which):
    system, coordinates = complex_in(which), Bound()
    state = states(system, 5)
    back, log_det = coordinates.encode(coordinates.decode(state, system), system)
    for name in ("place", "shape", "turn"):
        torch.testing.assert_close(back[name], state[name], atol=1e-9, rtol=0)
    gap = (back["torsion"] - state["torsion"] + math.pi) % (2 * math.pi) - math.pi
    assert float(gap.abs().max()) < 1e-9
    torch.testing.assert_close(log_det, -coordinates.log_volume(state, system))


def test_volume_is_the_jacobian_of_decoding():
    """By automatic differentiation along the state's own spaces; rotations have the volume 8 pi^2, torsions 2 pi."""
    system, coordinates, space = complex_in(), Bound(), SO3()
    state = states(system, 1, seed=4)
    sizes = {name: x.shape[1] for name, x in state.items()}

    def place(v: torch.Tensor) -> torch.Tensor:
        parts = dict(zip(sizes, v.split(list(sizes.values())), strict=True))
        moved = {name: x + parts[name] for name, x in state.items()}
        moved["turn"] = space.exp(state["turn"], parts["turn"][None])
        return coordinates.ligand(moved, system).flatten()

    jacobian = torch.autograd.functional.jacobian(place, torch.zeros(sum(sizes.values()), dtype=torch.float64))
    units = math.log(8 * math.pi**2) + sizes["torsion"] * math.log(2 * math.pi)
    found = torch.linalg.slogdet(jacobian).logabsdet + units
    torch.testing.assert_close(coordinates.log_volume(state, system)[0], found, atol=1e-6, rtol=0)


def test_pocket_atoms_stay():
    system = complex_in()
    placed = Bound().decode(states(system, 3), system).positions
    torch.testing.assert_close(placed[:, system.n_ligand :], system.pocket_positions.expand(3, -1, -1))


def test_many_ligands_are_placed_together_as_each_alone():
    systems, coordinates = [complex_in(), complex_in(WATER_LIKE, pocket(4, 2.0))], Bound()
    scaffold, which = Scaffold.of(systems), torch.tensor([1, 0, 1])
    alone, rows = [], {name: [] for name in ("place", "turn", "shape", "torsion")}
    sizes = {"shape": scaffold.centre.shape[1], "torsion": scaffold.fold.shape[1]}
    for number, k in enumerate(which.tolist()):
        one = states(systems[k], 1, seed=number)
        alone.append(coordinates.ligand(one, systems[k])[0])
        for name, x in one.items():
            rows[name].append(torch.nn.functional.pad(x, (0, sizes.get(name, x.shape[1]) - x.shape[1])))
    together = scaffold.place({name: torch.cat(x) for name, x in rows.items()}, which, coordinates.width)
    for found, wanted in zip(together, alone, strict=True):
        torch.testing.assert_close(found[: len(wanted)], wanted.float(), atol=2e-5, rtol=0)


def test_turning_a_torsion_moves_the_atoms_it_is_said_to():
    system, coordinates = complex_in(), Bound()
    state = states(system, 1)
    still = coordinates.ligand(state, system)
    for number, moved in enumerate(moved_by(system)):
        turned = {**state, "torsion": state["torsion"].clone()}
        turned["torsion"][:, number] += 0.3
        shift = (coordinates.ligand(turned, system) - still)[0].norm(dim=1)
        assert bool((shift[moved] > 1e-3).all()) and bool((shift[~moved] < 1e-9).all())


def test_a_plain_descriptor_of_the_schema_serves_as_well():
    system = complex_in()
    plain = Descriptor(**{f.name: getattr(system, f.name) for f in dataclasses.fields(Descriptor)})
    state = states(system, 2)
    torch.testing.assert_close(Bound().decode(state, plain).positions, Bound().decode(state, system).positions)
    with pytest.raises(IncompatibleError, match="ligand in a pocket"):
        complex_of(dataclasses.replace(plain, schema="molecule/1"))


def turned(system: Complex, rotation: torch.Tensor, shift: torch.Tensor) -> Complex:
    """The same complex in another frame of the laboratory."""
    centre = system.conditions @ rotation.T + shift
    walls = system.pocket_positions @ rotation.T + shift
    ligand = system.reference.positions[0, : system.n_ligand]
    return dataclasses.replace(system, conditions=centre, reference=Geometry(torch.cat([ligand, walls])[None]))


def test_answers_turn_and_shift_with_the_complex():
    system, network = complex_in(), randomised(small())
    state, t = states(system, 3), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    with torch.no_grad():
        noise, spread = network(state, t, system)
    vector = torch.tensor([0.4, -1.1, 0.7], dtype=torch.float64)
    rotation = rotation_matrix(vector)
    moved = turned(system, rotation, torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64))
    there = {**state, "place": state["place"] @ rotation.T, "turn": SO3().exp(state["turn"], vector.expand(3, 3))}
    with torch.no_grad():
        found, wide = network(there, t, moved)
    for name in ("place", "turn"):
        assert float(noise[name].abs().max()) > 1e-3
        torch.testing.assert_close(found[name], noise[name] @ rotation.T, atol=2e-5, rtol=1e-4)
    for name in ("torsion", "shape"):
        assert float(noise[name].abs().max()) > 1e-3
        torch.testing.assert_close(found[name], noise[name], atol=2e-5, rtol=1e-4)
    for name in spread:
        torch.testing.assert_close(wide[name], spread[name], atol=2e-5, rtol=1e-4)


def test_answers_of_a_padded_batch_are_those_of_each_alone():
    systems, network = [complex_in(), complex_in(WATER_LIKE, pocket(4, 2.0))], randomised(small())
    objective = Poses([(s, Frames({n: x.float() for n, x in states(s, 4).items()})) for s in systems])
    t = torch.tensor([0.4], dtype=torch.float64)
    for k, system in enumerate(systems):
        padded = {name: x[4 * k : 4 * k + 2].double() for name, x in objective.frames.items()}
        own = {name: x[:, : states(system, 1)[name].shape[1]] for name, x in padded.items()}
        alone, _ = network(own, t, system)
        which = torch.full((2,), k)
        ligand = objective.scaffold.place(padded, which, 3.0).double()
        together, _ = network.look(padded, ligand, t, objective.scene.to(t), which)
        for name, x in alone.items():
            torch.testing.assert_close(together[name][:, : x.shape[1]], x, atol=2e-3, rtol=1e-3)


def test_training_finds_the_pose_and_the_model_comes_back_from_its_file(tmp_path):
    system = complex_in(twist=False)
    rng = torch.Generator().manual_seed(0)
    centre = {name: x.float() for name, x in states(system, 1, seed=2).items()}
    width = {"place": 0.05, "turn": 0.1, "shape": 1.0, "torsion": 0.2}
    made = {name: x + width[name] * torch.randn(64, x.shape[1], generator=rng) for name, x in centre.items()}
    objective = Poses([(system, Frames(made))], jitter=0.05)
    network = small()
    model = NoiseScore(network, network.process(system))
    before = objective.evaluate(model, 1)["noise"]
    config = LoopConfig(steps=80, batch=24, rate=4e-3, warmup=5, average=0.9, every=80)
    result = optimise(model, objective, config, validation=objective, progress=False)  # type: ignore[arg-type]
    assert objective.evaluate(result.model, 1)["noise"] < 0.8 * before
    dig = DiG(result.model.requires_grad_(False), network.coordinates, system, Card(steps=6))
    place = tmp_path / "pose.safetensors"
    save(dig, place)
    drawn, again = (d.proposal().draw(6, Streams(3, range(6))) for d in (dig, load(place)))
    torch.testing.assert_close(drawn.geometry.positions, again.geometry.positions)
    assert bool(torch.isfinite(drawn.log_q).all())
    with torch.no_grad():
        far = dig.proposal().draw(40, Streams(4, range(40))).state["place"]
    prior = model.process["place"].prior(far)
    apart = (far - centre["place"].double()).norm(dim=1).median()
    assert float(apart) < 0.5 * float((prior.sample(Streams(5, range(40))) - centre["place"]).norm(dim=1).median())


def test_what_does_not_fit_is_refused():
    with pytest.raises(IncompatibleError, match="no|none|one complex"):
        Poses([])
    other = complex_in(WATER_LIKE)
    ligand = molecule(*ETHANOL[:2], positions=ETHANOL[2])
    with pytest.raises(IncompatibleError, match="internal coordinates"):
        bind(ligand, other.internal, pocket(), torch.zeros(9), torch.zeros(9))
