"""The network over periodic images: what must not matter to it, how it turns with the structure, and that it is smooth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dig_core.diffusion.rotations import rotation_matrix, rotation_vector
from dig_core.dig import DiG
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.nn import ResidualMLP
from dig_core.nn.periodic import Region, images_within, surroundings
from dig_core.score import NoiseScore
from dig_core.system.descriptor import Descriptor, molecule
from dig_core.system.surface import frame_of, guest_of, role_of, surface
from dig_core.testing import check_score_model
from dig_core.types import Geometry, State
from tests.core.adsorbates import ADSORBATES, DOUBLE, awake, slab_of, states, system

TIME = torch.tensor([0.3])
NET = awake().double()
"""Double precision: laws hold to the last digits, and derivatives can be taken by differences."""

REPEATS = {
    "2 x 1": ((2, 0), (0, 1)), "1 x 3": ((1, 0), (0, 3)), "sheared": ((1, 0), (3, 1)), "other vectors": ((2, 1), (1, 1)),
    "4 x 4": ((4, 0), (0, 4)),
}  # fmt: skip


@torch.no_grad()
def look(descriptor: Descriptor, state: State, network=NET) -> State:
    """Noise and log-variances, under one name each."""
    noise, spread = network(state, TIME, descriptor)
    return noise | {f"{name} spread": x for name, x in spread.items()}


def assert_same(found: State, wanted: State, tolerance: float = 1e-9) -> None:
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        assert float(x.abs().max()) > 1e-3, f"{name} is silent: the test would say nothing"
        assert torch.allclose(found[name], x, rtol=tolerance, atol=tolerance), name


def read(descriptor: Descriptor, geometry: Geometry) -> State:
    return NET.coordinates.encode(geometry, descriptor)[0]


@pytest.mark.parametrize("name", ADSORBATES)
@pytest.mark.parametrize("free", [(), (0,)], ids=["rigid", "yielding"])
def test_lattice_translations_do_not_matter(name, free):
    """Of the adsorbate, of the slab as a whole, and of any atom of the slab by itself."""
    descriptor = system(name, free=free, repeat=((2, 0), (0, 1)))
    state, frame = states(NET, descriptor), frame_of(descriptor)
    wanted = look(descriptor, state)
    assert_same(look(descriptor, {**state, "plane": state["plane"] + 3 * frame.vectors[0] - 2 * frame.vectors[1]}), wanted)
    a, b, _ = descriptor.reference.cell[0]
    steps = torch.tensor([[1.0, 2], [0, -1], [-3, 0], [2, 2]] + [[1, -1]] * len(guest_of(descriptor)), dtype=DOUBLE)
    for shift in (a - 2 * b, (steps @ torch.stack([a, b]))):
        moved = descriptor.reference.positions + shift
        assert_same(look(replace(descriptor, reference=descriptor.reference._replace(positions=moved)), state), wanted)


@pytest.mark.parametrize("name", ADSORBATES)
@pytest.mark.parametrize("repeat", REPEATS)
def test_supercells_and_other_vectors_of_the_lattice(name, repeat):
    """The same surface through other cells, one atom of it in a cell or sixteen: the image count follows from the cutoff."""
    small, large = system(name), system(name, repeat=REPEATS[repeat])
    state = states(NET, small)
    wanted = look(small, state)
    found = look(large, read(large, geometry_in(large, small, state)))
    assert_same(rotated(found, large), rotated(wanted, small))


def geometry_in(large: Descriptor, small: Descriptor, state: State) -> Geometry:
    """Structures of the small cell's adsorbate over the large one's slab."""
    decoded = NET.coordinates.decode(state, small).positions
    positions = large.reference.positions.expand(len(decoded), -1, -1).clone()
    positions[:, guest_of(large)] = decoded[:, guest_of(small)]
    return Geometry(positions)


def rotated(found: State, descriptor: Descriptor, matrix: torch.Tensor | None = None) -> State:
    """Tangents as Cartesian vectors, turned by ``matrix``: frames of other cells have other axes."""
    frame, matrix = frame_of(descriptor), torch.eye(3, dtype=DOUBLE) if matrix is None else matrix
    vectors = {"push": found["plane"] @ frame.axes + found["height"] * frame.normal}
    vectors |= {name: found[name].unflatten(1, (-1, 3)) for name in ("turn", "surface") if name in found}
    return {k: x @ matrix.T for k, x in vectors.items()} | {k: x for k, x in found.items() if k.endswith("spread")}


@pytest.mark.parametrize("name", ADSORBATES)
@pytest.mark.parametrize("way", ["turned", "other side", "mirrored"])
def test_the_answer_turns_with_the_structure(name, way):
    """Rotations, a slab upside down, and mirror images (torques are axial): whatever the axes that the frame then has."""
    matrix = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=DOUBLE))[0]
    matrix = matrix * torch.linalg.det(matrix)
    if way != "turned":
        matrix = torch.diag(torch.tensor([1.0, -1, -1] if way == "other side" else [1.0, -1, 1], dtype=DOUBLE))
    plain, moved = system(name, free=(1,)), system(name, free=(1,), moved=lambda x: x @ matrix.T)
    state = states(NET, plain)
    geometry = NET.coordinates.decode(state, plain).positions @ matrix.T
    found = rotated(look(moved, read(moved, Geometry(geometry))), moved)
    wanted = rotated(look(plain, state), plain, matrix)
    if "turn" in wanted:
        wanted["turn"] = wanted["turn"] * torch.linalg.det(matrix)
    assert_same(found, wanted, 1e-8)


@pytest.mark.parametrize("name", ["O", "N2H"])
def test_the_order_of_atoms_does_not_matter(name):
    descriptor = system(name, free=(1, 2), repeat=((2, 0), (0, 1)))
    n = descriptor.n_atoms
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    place = order.argsort()
    free = place[[2, 1]]
    positions, cell = descriptor.reference.positions[0, order], descriptor.reference.cell[0]
    other = surface(descriptor.numbers[order], positions, cell, place[guest_of(descriptor)], free=free)
    state = states(NET, descriptor)
    wanted = look(descriptor, state)
    found = look(other, read(other, Geometry(NET.coordinates.decode(state, descriptor).positions[:, order])))
    # Free atoms stand in the state in the order of their indices.
    for name in ("surface", "surface spread"):
        per_atom = wanted[name].unflatten(1, (2, 3))
        wanted[name] = per_atom[:, free.flip(0).argsort()].flatten(1)
    assert_same(found, wanted)


def test_an_adsorbate_is_told_from_its_mirror_order():
    """The atom that binds is another atom if it is named first: OC is not CO."""
    descriptor = system("CO")
    other = surface(descriptor.numbers[[0, 1, 3, 2]], descriptor.reference.positions[0], descriptor.reference.cell[0], [2, 3])
    state = states(NET, descriptor)
    assert float((look(descriptor, state)["height"] - look(other, state)["height"]).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["CO", "CO2"])
def test_turns_of_a_straight_adsorbate_about_itself_are_not_felt(name):
    descriptor = system(name)
    state, guest = states(NET, descriptor), guest_of(descriptor)
    arm = descriptor.reference.positions[0, guest[1]] - descriptor.reference.positions[0, guest[0]]
    spin = rotation_matrix(1.1 * arm / arm.norm())
    wanted = look(descriptor, state)
    assert_same(look(descriptor, {**state, "turn": rotation_vector(rotation_matrix(state["turn"]) @ spin)}), wanted)
    assert float((wanted["turn"] * (rotation_matrix(state["turn"]) @ arm)).sum(1).abs().max()) < 1e-9


@pytest.mark.parametrize("free", [(), (0, 1)], ids=["rigid", "yielding"])
def test_conformance(free):
    """Scores are finite, tangent, of any time and independent of the batch, in the precision that models have."""
    descriptor, network = system("N2H", free=free, repeat=((2, 0), (0, 1))), awake()
    check_score_model(NoiseScore(network, network.process(descriptor)), states(network, descriptor), descriptor, tolerance=2e-5)
    check_score_model(NoiseScore(NET, NET.process(descriptor)), states(NET, descriptor), descriptor, tolerance=1e-9)


def test_untrained_networks_are_silent():
    descriptor = system("CO", free=(0,))
    network = type(NET)(**NET.config)
    noise, spread = network(states(network, descriptor), TIME, descriptor)
    assert all(not x.any() for x in (*noise.values(), *spread.values()))


def test_frozen_atoms_stay_and_free_ones_move():
    descriptor = system("CO", free=(3,), repeat=((2, 0), (0, 1)))
    dig = DiG(NoiseScore(awake(), NET.process(descriptor)).eval().requires_grad_(False), NET.coordinates, descriptor)
    positions = dig.sample(5, seed=0, steps=4).geometry.positions
    still = descriptor.reference.positions
    assert torch.equal(positions[:, :3], still[:, :3].expand(5, -1, -1))
    assert float((positions[:, 3] - still[:, 3]).abs().min()) > 0


# Images and the cutoff --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectors", [[[2.0, 0, 0], [0, 2, 0]], [[2.0, 0, 0], [5, 1.5, 0]], [[9.0, 0, 0], [0, 1, 3]]])
def test_every_image_within_reach_is_there(vectors):
    """Against a count over many cells, from any point of the region."""
    vectors, rng = torch.tensor(vectors, dtype=DOUBLE), torch.Generator().manual_seed(0)
    positions = 4 * torch.randn(3, 3, generator=rng, dtype=DOUBLE)
    region = Region(torch.tensor([-0.5, 0.1], dtype=DOUBLE), torch.tensor([0.5, 0.4], dtype=DOUBLE))
    images = images_within(positions, vectors, 5.0, region)
    assert torch.equal(images.home, images.shift.norm(dim=1) == 0)
    steps = torch.cartesian_prod(*[torch.arange(-30.0, 31.0, dtype=DOUBLE)] * 2) @ vectors
    count = 0
    for _ in range(20):
        fraction = region.low + (region.high - region.low) * torch.rand(2, generator=rng, dtype=DOUBLE)
        normal = torch.nn.functional.normalize(torch.linalg.cross(vectors[0], vectors[1]), dim=0)
        point = fraction @ vectors + normal * torch.randn(1, generator=rng, dtype=DOUBLE)
        every = (positions[:, None] + steps - point).norm(dim=-1)
        kept = (positions[images.parent] + images.shift - point).norm(dim=-1)
        assert int((kept < 5).sum()) == int((every < 5).sum())
        count += int((kept < 5).sum())
        seen = surroundings(point[None, None], positions[None], images, 5.0, torch.zeros(1, len(images.parent), dtype=torch.bool))
        assert torch.allclose(seen.distance[0, 0], every[every < 5].sort().values, atol=1e-7)
        assert bool((seen.near[0, 0] > 0).all())
    assert count > 100


def test_nothing_jumps_when_an_atom_crosses_the_cutoff():
    """The adsorbate rises until the slab is out of reach: two derivatives by differences on a fine grid are continuous."""
    descriptor = system("O")
    network = awake(cutoff=4.0).double()
    heights = torch.linspace(0.5, 3.5, 3001, dtype=DOUBLE)
    state = {"plane": torch.tensor([[0.3, 0.4]], dtype=DOUBLE).expand(3001, -1), "height": heights[:, None]}
    found = torch.cat(list(look(descriptor, state, network).values()), 1)
    scale = found.std(0)
    h = float(heights[1] - heights[0])
    first = found.diff(dim=0) / h
    second = first.diff(dim=0) / h
    assert float((found.diff(dim=0).abs() / scale).max()) < 0.05
    for x in (first, second):
        # What is smooth changes little from one point to the next, compared with all that it changes.
        assert float((x.diff(dim=0).abs().amax(0) / x.std(0)).max()) < 0.1
    beyond = 4.0 - NET.coordinates.height + 0.01
    assert float(found[heights > beyond].std(0).max()) < 1e-9


def test_displaced_atoms_of_the_slab_are_seen_where_they_are():
    """A free atom pushed across the cell by the noise: the same as the same structure in a supercell's eyes."""
    small, large = system("O", free=(1,)), system("O", free=(1, 3, 5, 7), repeat=((2, 0), (0, 2)))
    state = states(NET, small)
    state["surface"] = 6 * state["surface"]
    every = {**state, "surface": state["surface"].repeat(1, 4)}
    every["plane"] = read(large, geometry_in(large, small, {**state}))["plane"]
    # Its images are the small cell's own: here they are atoms, and the adsorbate has no images near them.
    far = {"height": torch.full_like(state["height"], 8.0)}
    found, wanted = look(large, every | far), look(small, state | far)
    assert torch.allclose(found["surface"].unflatten(1, (4, 3)), wanted["surface"][:, None].expand(-1, 4, -1), atol=1e-9)
    assert float(wanted["surface"].abs().max()) > 1e-3


def test_a_point_on_top_of_an_atom_has_a_finite_answer():
    descriptor = system("O")
    frame, top = frame_of(descriptor), descriptor.reference.positions[0, 1]
    state = {"plane": (top @ frame.axes.T)[None], "height": torch.full((1, 1), -NET.coordinates.height, dtype=DOUBLE, requires_grad=True)}
    noise, _ = NET(state, TIME, descriptor)
    (slope,) = torch.autograd.grad(noise["height"].sum(), state["height"])
    assert bool(noise["height"].isfinite().all()) and bool(slope.isfinite().all())


def test_derivatives_by_the_state_are_those_of_differences():
    descriptor = system("N2H", free=(0,))
    process, state = NET.process(descriptor), states(NET, descriptor, 2)

    def total(tangent: State) -> torch.Tensor:
        noise, spread = NET(process.exp(state, tangent), TIME, descriptor)
        return sum(x.sin().sum() for x in (*noise.values(), *spread.values()))

    still = process.still(state)
    slopes = dict(zip(still, torch.autograd.grad(total(still), list(still.values())), strict=True))
    way = {k: torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE) for k, x in state.items()}
    with torch.no_grad():
        ends = [total({k: s * 1e-6 * x for k, x in way.items()}) for s in (1, -1)]
    wanted = float(sum((slopes[k] * way[k]).sum() for k in way))
    assert float(ends[0] - ends[1]) / 2e-6 == pytest.approx(wanted, rel=1e-6)


# One network, many systems -----------------------------------------------------------------------------------------------


def test_a_model_goes_over_to_another_system():
    """Parameters are shared, the process fits, what it was made for is left alone; a network of one system is refused."""
    descriptor, other = system("CO"), system("N2H", free=(2,), repeat=((2, 0), (0, 1)))
    network = awake().eval().requires_grad_(False)
    dig = DiG(NoiseScore(network, network.process(descriptor)), network.coordinates, descriptor)
    moved = dig.on(other)
    assert moved.model.network is network and moved.descriptor is other
    assert {k: p.space.shape for k, p in moved.process.items()} == {"plane": (2,), "height": (1,), "turn": (3,), "surface": (3,)}
    assert bool(moved.sample(2, seed=0, steps=3).geometry.positions.isfinite().all())
    back = moved.on(descriptor)
    assert torch.equal(back.sample(3, seed=1, steps=3).geometry.positions, dig.sample(3, seed=1, steps=3).geometry.positions)
    mlp = NoiseScore(ResidualMLP({"plane": 2, "height": 1}, ["plane"], width=8, blocks=1), network.process(system("O")))
    with pytest.raises(UnsupportedError, match="ResidualMLP serves the one system.*train a model"):
        mlp.on(descriptor)


def test_density_over_a_supercell_is_that_of_the_cell_shared_out():
    """log q of the same place falls by the logarithm of the number of cells."""
    small, large = system("O"), system("O", repeat=((2, 0), (0, 1)))
    network = awake().eval().requires_grad_(False)
    dig = DiG(NoiseScore(network, network.process(small)), network.coordinates, small)
    state = states(network, small, 4)
    geometry = network.coordinates.decode(state, small)
    one, two = (d.log_prob(g, steps=4).value for d, g in ((dig, geometry), (dig.on(large), geometry_in(large, small, state))))
    assert torch.allclose(one - two, torch.full((4,), 2.0, dtype=DOUBLE).log(), atol=1e-6)


def test_log_prob_runs_in_double_precision_and_sees_no_translation():
    descriptor, network = system("O"), awake().eval().requires_grad_(False)
    dig = DiG(NoiseScore(network, network.process(descriptor)), network.coordinates, descriptor)
    geometry = network.coordinates.decode(states(network, descriptor, 3), descriptor)
    wanted = dig.log_prob(geometry, steps=4).value
    moved = geometry.positions.clone()
    moved[:, -1] += 2 * descriptor.reference.cell[0, 0] - descriptor.reference.cell[0, 1]
    assert bool(wanted.isfinite().all()) and float(wanted.std()) > 0
    assert torch.allclose(dig.log_prob(Geometry(moved), steps=4).value, wanted, atol=1e-8)


@pytest.mark.parametrize(("conditions", "given"), [(0, (0.5,)), (1, ()), (2, (0.1,))])
def test_conditions_must_be_those_of_the_network(conditions, given):
    descriptor = system("O", conditions=given)
    with pytest.raises(IncompatibleError, match=f"conditioned on {conditions} numbers, the descriptor has {len(given)}"):
        awake(conditions=conditions)(states(NET, descriptor), TIME, descriptor)


def test_conditions_are_heard():
    network = awake(conditions=1).double()
    cold, hot = system("O", conditions=[-1.0]), system("O", conditions=[0.5])
    state = states(network, cold)
    assert float((look(cold, state, network)["height"] - look(hot, state, network)["height"]).abs().max()) > 1e-3


def test_elements_beyond_the_table_and_molecules_are_refused():
    numbers, positions, cell = slab_of()
    guest = torch.tensor([[0.0, 0.0, 8.5]], dtype=DOUBLE)
    descriptor = surface([*numbers[:-1], 96, 8], torch.cat([positions, guest]), cell, [len(numbers)])
    with pytest.raises(UnsupportedError, match="0 to 94"):
        look(descriptor, states(NET, descriptor))
    with pytest.raises(UnsupportedError, match="use surface"):
        NET.process(molecule([8, 1, 1], [(0, 1), (0, 2)]))


def test_parameters_keep_their_names():
    """Trained files name them: this list may grow, never change."""
    network = type(NET)(width=8, heads=1, layers=1, encoder=1, basis=4, channels=2, conditions=1)
    shapes = {name: tuple(x.shape) for name, x in network.state_dict().items()}
    assert shapes["place"] == (6, 8) and shapes["element.weight"] == (8, 5) and shapes["given.weight"] == (8, 1)
    assert shapes["head.2.weight"] == (3 * 3 + 4, 8) and shapes["pulls.0.sender.weight"] == (2, 8)
    assert len(shapes) == 44, sorted(shapes)
    assert bool((role_of(system("O")) == torch.tensor([0, 0, 2])).all())
