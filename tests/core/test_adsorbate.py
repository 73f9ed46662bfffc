"""Adsorbates as coordinates: round trips on any slab, the measure, what is refused; the slab's frame; properties of elements."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dig_core.coordinates import Adsorbate
from dig_core.diffusion.rotations import rotation_matrix
from dig_core.dig import DiG
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.random import Streams
from dig_core.score import NoiseScore
from dig_core.system.descriptor import molecule
from dig_core.system.elements import covalent_radii, d_band, properties
from dig_core.system.surface import frame_of, guest_of, role_of, surface
from dig_core.training.frames import frames_of
from dig_core.types import Geometry
from tests.core.adsorbates import ADSORBATES, DOUBLE, awake, slab_of, states, system

FREE = {"rigid": (), "yielding": (3, 1)}
ROUND = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(4), dtype=DOUBLE))[0]
ROUND = ROUND * torch.linalg.det(ROUND)
"""A rotation that is along no axis."""


def shuffled(descriptor, order):
    """The same system with its atoms in another order; new atom i is old atom order[i]."""
    order = torch.as_tensor(order)
    place = order.argsort()
    role = role_of(descriptor)
    free = place[(role == 1).nonzero()[:, 0]]
    return surface(
        descriptor.numbers[order], descriptor.reference.positions[0, order], descriptor.reference.cell[0],
        place[guest_of(descriptor)], free=free,
    )  # fmt: skip


def systems() -> dict:
    flipped = torch.tensor([1.0, -1.0, -1.0], dtype=DOUBLE)
    found = {f"{name}-{kind}": system(name, free=free, repeat=((2, 0), (0, 1))) for name in ADSORBATES for kind, free in FREE.items()}
    found["other side"] = system("N2H", moved=lambda x: x * flipped)
    found["turned"] = system("N2H", free=(0, 1), moved=lambda x: x @ ROUND.T)
    found["skew"] = system("N2H", free=(2,), repeat=((2, 1), (1, 3)))
    found["left-handed"] = system("N2H", repeat=((1, 3), (2, 1)))
    for axis in (0, 1):
        order = [2, 0, 1] if axis == 0 else [0, 2, 1]
        base = system("N2H", free=(1,), repeat=((2, 0), (0, 1)))
        found[f"vacuum along {axis}"] = surface(
            base.numbers, base.reference.positions[0], base.reference.cell[0][order], guest_of(base), free=(1,), vacuum=axis
        )
    base = system("N2H", free=(3, 0), repeat=((2, 0), (0, 1)))
    found["anywhere in the order"] = shuffled(base, [5, 0, 6, 1, 2, 4, 3])
    return found


SYSTEMS = systems()


def drawn(descriptor, n: int = 6):
    network = awake()
    return network.coordinates, network.process(descriptor), states(network, descriptor, n)


@pytest.mark.parametrize("name", SYSTEMS)
def test_round_trip(name):
    descriptor = SYSTEMS[name]
    coordinates, process, state = drawn(descriptor)
    geometry = coordinates.decode(state, descriptor)
    again, log_det = coordinates.encode(geometry, descriptor)
    assert {k: x.shape for k, x in again.items()} == {k: x.shape for k, x in state.items()}
    assert torch.allclose(coordinates.decode(again, descriptor).positions, geometry.positions, atol=1e-9)
    assert torch.equal(log_det, -coordinates.log_volume(state, descriptor))
    assert bool(coordinates.valid(state, descriptor).all())
    for part, x in state.items():
        if part != "turn" or not name.startswith("CO"):
            gap = process[part].space.log(x, again[part])
            assert torch.allclose(gap, torch.zeros_like(gap), atol=1e-7), part
    frozen = ~descriptor.mobile
    assert torch.equal(geometry.positions[:, frozen], descriptor.reference.positions[:, frozen].expand(len(geometry.positions), -1, -1))
    assert torch.equal(geometry.cell[0], descriptor.reference.cell[0])


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_frame_stands_on_the_slab(name):
    """Orthonormal, right-handed, in the plane; the adsorbate is above the slab, and decoded heights count from its top atom."""
    descriptor = SYSTEMS[name]
    frame = frame_of(descriptor)
    axes = torch.cat([frame.axes, frame.normal[None]])
    assert torch.allclose(axes @ axes.T, torch.eye(3, dtype=DOUBLE), atol=1e-12)
    assert float(torch.linalg.det(axes)) == pytest.approx(1)
    periodic = descriptor.reference.cell[0][descriptor.pbc]
    assert torch.allclose(frame.vectors @ frame.axes, periodic, atol=1e-9)
    slab = descriptor.reference.positions[0][role_of(descriptor) != 2] @ frame.normal
    assert frame.top == pytest.approx(float(slab.max()))
    state = {k: torch.zeros_like(x) for k, x in drawn(descriptor, 1)[2].items()}
    first = Adsorbate(height=1.7).decode(state, descriptor).positions[0, guest_of(descriptor)[0]]
    assert float(first @ frame.normal) - frame.top == pytest.approx(1.7)


def test_the_binding_atom_need_not_be_the_first():
    base = system("N2H")
    turned = surface(base.numbers, base.reference.positions[0], base.reference.cell[0], [3, 4, 2])
    assert guest_of(turned).tolist() == [3, 4, 2]
    coordinates = Adsorbate()
    state, _ = coordinates.encode(base.reference, turned)
    wanted = base.reference.positions[0, 3] @ frame_of(turned).axes.T
    gap = (state["plane"][0] - wanted) @ torch.linalg.inv(frame_of(turned).vectors)
    assert torch.allclose(gap, gap.round(), atol=1e-9)
    assert torch.allclose(state["turn"], torch.zeros(1, 3, dtype=DOUBLE), atol=1e-6)


def test_wrapped_atoms_are_the_same_structure():
    """Every atom of the adsorbate moved by lattice vectors of its own, in structures and in the reference."""
    descriptor = system("N2H", repeat=((3, 0), (0, 3)))
    coordinates, _, state = drawn(descriptor)
    geometry = coordinates.decode(state, descriptor)
    a, b, _ = descriptor.reference.cell[0]
    shift = torch.zeros(descriptor.n_atoms, 3, dtype=DOUBLE)
    shift[-3], shift[-2], shift[-1] = a - 2 * b, -a, b
    again, _ = coordinates.encode(Geometry(geometry.positions + shift), descriptor)
    for part in state:
        assert torch.allclose(again[part], coordinates.encode(geometry, descriptor)[0][part], atol=1e-9), part
    split = surface(descriptor.numbers, descriptor.reference.positions[0] + shift, descriptor.reference.cell[0], guest_of(descriptor))
    assert torch.allclose(coordinates.decode(state, split).positions, geometry.positions, atol=1e-9)


def test_numbers_of_a_chain_stay_in_the_home_cell():
    frame = frame_of(system("O", repeat=((2, 1), (1, 3))))
    place = 50 * torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    home = frame.home(place)
    fraction, gone = home @ torch.linalg.inv(frame.vectors), (home - place) @ torch.linalg.inv(frame.vectors)
    assert bool(((fraction >= -0.5 - 1e-9) & (fraction < 0.5 + 1e-9)).all())
    assert torch.allclose(gone, gone.round(), atol=1e-9)
    assert torch.allclose(frame.home(home), home, atol=1e-9)


# The measure -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
def test_log_det_is_that_of_the_autodiff_jacobian(name):
    """Lebesgue for the atom that binds and for free atoms; 8 pi^2 for all rotations of a body, 4 pi for those of an axis."""
    descriptor = SYSTEMS[name]
    coordinates, process, state = drawn(descriptor, 1)
    still = process.still(state)
    positions = coordinates.decode(process.exp(state, still), descriptor).positions[0]
    guest, free = guest_of(descriptor), (role_of(descriptor) == 1).nonzero()[:, 0]
    straight = len(guest) == 2 or name.startswith("CO2")
    moved = [positions[guest[0]], positions[free].flatten()]
    if len(guest) > 1:
        # A rotation vector of the body: the axis from the first atom to the second, and the third one's turn about it.
        arms = positions[guest[1:]] - positions[guest[0]]
        axis = arms[0].detach() / arms[0].detach().norm()
        side = torch.linalg.cross(axis, ROUND[0])
        side = side / side.norm()
        other = torch.linalg.cross(axis, side)
        moved.append(torch.stack([arms[0] @ side, arms[0] @ other]) / arms[0].detach().norm())
        if not straight:
            out = arms[1].detach() - (arms[1].detach() @ axis) * axis
            about = torch.linalg.cross(axis, out) / out.square().sum()
            moved.append((arms[1] @ about)[None])
    flat = torch.cat(moved)
    tangents = list(still.values())
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(y, tangents, retain_graph=True, materialize_grads=True)]) for y in flat]
    jacobian = torch.stack(rows)
    volume = 0.5 * torch.linalg.slogdet(jacobian @ jacobian.T).logabsdet
    # Closed spaces have unit volume; the turns of a straight adsorbate about itself are integrated out.
    volume = volume + sum(part.space.log_volume for part in process.values() if part.space.periodic)
    volume = volume - (math.log(2 * math.pi) if straight else 0.0)
    assert float(coordinates.log_volume(state, descriptor)) == pytest.approx(float(volume), abs=1e-7)


@pytest.mark.parametrize("name", ["O-yielding", "CO-yielding", "CO2-rigid", "N2H-yielding", "turned", "other side"])
def test_encode_and_decode_have_inverse_derivatives(name):
    """d encode(decode(state)) is the identity along the spaces; about its own axis a straight adsorbate does not turn."""
    descriptor = SYSTEMS[name]
    coordinates, process, state = drawn(descriptor, 1)
    positions = coordinates.decode(state, descriptor).positions.requires_grad_()
    found, _ = coordinates.encode(Geometry(positions), descriptor)
    start = {k: x.detach() for k, x in found.items()}
    flat = torch.cat([process[k].space.log(start[k], found[k]).flatten() for k in start])
    up = torch.stack([torch.autograd.grad(y, positions, retain_graph=True)[0].flatten() for y in flat])
    still = process.still(start)
    down = torch.autograd.functional.jacobian(
        lambda *v: coordinates.decode(process.exp(start, dict(zip(still, v, strict=True))), descriptor).positions.flatten(),
        tuple(still.values()),
    )
    product = up @ torch.cat([x.flatten(1) for x in down], 1)
    wanted = torch.eye(len(product), dtype=DOUBLE)
    if name.startswith("CO"):
        arm = (positions[0, guest_of(descriptor)[1]] - positions[0, guest_of(descriptor)[0]]).detach()
        axis, first = arm / arm.norm(), 3
        wanted[first : first + 3, first : first + 3] -= axis[:, None] * axis
    assert torch.allclose(product, wanted, atol=1e-7)


@pytest.mark.parametrize("name", ["O", "CO", "N2H"])
def test_forces_of_a_model_are_its_scores(name):
    """DiG.reduced_force: the sum over the adsorbate is the score of its place, the torque that of its orientation."""
    descriptor, network = system(name, free=(0,)), awake()
    dig = DiG(NoiseScore(network, network.process(descriptor)).eval(), network.coordinates, descriptor)
    state = states(network, descriptor, 3)
    geometry = dig.coordinates.decode(state, descriptor)
    with torch.no_grad():
        score = dig.model(dig.coordinates.encode(geometry, descriptor)[0], torch.tensor([0.05], dtype=DOUBLE), descriptor)
    force = dig.reduced_force(geometry, t=0.05)
    frame, guest = frame_of(descriptor), guest_of(descriptor)
    total = force[:, guest].sum(1)
    assert torch.allclose(total @ frame.axes.T, score["plane"].double(), rtol=1e-4, atol=1e-4)
    assert torch.allclose(total @ frame.normal, score["height"][:, 0].double() / dig.coordinates.width, rtol=1e-4, atol=1e-4)
    assert torch.allclose(force[:, 0], score["surface"].double() / dig.coordinates.relaxation, rtol=1e-4, atol=1e-4)
    if "turn" in score:
        arms = geometry.positions[:, guest] - geometry.positions[:, guest[:1]]
        assert torch.allclose(torch.linalg.cross(arms, force[:, guest]).sum(1), score["turn"].double(), rtol=1e-3, atol=1e-3)


# What is refused ----------------------------------------------------------------------------------------------------------


def test_another_shape_is_refused_by_name():
    descriptor = system("N2H")
    coordinates, _, state = drawn(descriptor, 4)
    positions = coordinates.decode(state, descriptor).positions
    positions[2, -1] += torch.tensor([0.0, 0.0, 1.0])
    with pytest.raises(IncompatibleError, match="structure 2.*rigid.*dissociated"):
        coordinates.encode(Geometry(positions), descriptor)


def test_a_mirror_image_is_another_shape():
    """A tetrahedral adsorbate, whose mirror image no rotation makes."""
    numbers, positions, cell = slab_of()
    guest = torch.tensor([[0.0, 0.0, 9], [1.0, 0.0, 9.5], [-0.5, 1.2, 9.5], [-0.4, -0.8, 9.6]], dtype=DOUBLE)
    descriptor = surface([*numbers, 6, 9, 17, 1], torch.cat([positions, guest]), cell, range(2, 6))
    mirrored = descriptor.reference.positions * torch.tensor([1.0, -1.0, 1.0], dtype=DOUBLE)
    with pytest.raises(IncompatibleError, match="structure 0"):
        Adsorbate().encode(Geometry(mirrored), descriptor)


def test_a_thermal_shape_is_read_as_the_rigid_one():
    descriptor = system("N2H")
    coordinates, _, state = drawn(descriptor)
    positions = coordinates.decode(state, descriptor).positions
    shaken = positions + 0.03 * torch.randn(positions.shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    back = coordinates.decode(coordinates.encode(Geometry(shaken), descriptor)[0], descriptor).positions
    assert float((back - positions)[:, -3:].abs().max()) < 0.2


def surface_with(**changes):
    numbers, positions, cell = slab_of()
    given = {
        "numbers": [*numbers, 8], "positions": torch.cat([positions, torch.tensor([[0.0, 0.0, 8.5]], dtype=DOUBLE)]), "cell": cell,
        "adsorbate": [2],
    } | changes  # fmt: skip
    return surface(**given)


def with_oxygen_at(height: float):
    return torch.cat([slab_of()[1], torch.tensor([[0.0, 0.0, height]], dtype=DOUBLE)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positions": with_oxygen_at(5.9)}, "inside the slab.*place it on one side"),
        ({"adsorbate": [3]}, "adsorbate must name atoms 0..2"),
        ({"adsorbate": [-1]}, "adsorbate must name atoms 0..2"),
        ({"free": [0, 7]}, "free must name atoms 0..2"),
        ({"free": [2]}, "both as free and as adsorbate.*2"),
        ({"adsorbate": [2, 2]}, "twice"),
        ({"free": [1, 1]}, "twice"),
        ({"adsorbate": []}, "expected an adsorbate and a slab, got 0"),
        ({"adsorbate": [0, 1, 2]}, "expected an adsorbate and a slab, got 3"),
        ({"numbers": [46, 29]}, r"expected positions \(2, 3\)"),
        ({"cell": torch.eye(2)}, r"cell \(3, 3\)"),
        ({"vacuum": 3}, "vacuum must name a cell vector"),
        ({"cell": torch.tensor([[2.8, 0, 0], [5.6, 0, 0], [0, 0, 9]])}, "do not span a plane"),
    ],
)
def test_systems_that_make_no_sense_are_refused(changes, words):
    surface_with()
    with pytest.raises(IncompatibleError, match=words):
        surface_with(**changes)


def test_molecules_are_no_surfaces():
    with pytest.raises(UnsupportedError, match="surface/1.*molecule/1.*use surface"):
        frame_of(molecule([8, 1, 1], [(0, 1), (0, 2)]))


def test_the_slab_fixes_the_pose():
    descriptor = SYSTEMS["CO-rigid"]
    coordinates, _, state = drawn(descriptor)
    geometry = coordinates.decode(state, descriptor)
    assert torch.equal(coordinates.pose(geometry, Streams(0, range(6))).positions, geometry.positions)
    assert coordinates.gauge == frozenset()


def test_turns_are_from_the_reference_orientation():
    descriptor = SYSTEMS["N2H-rigid"]
    coordinates, _, state = drawn(descriptor)
    positions, guest = coordinates.decode(state, descriptor).positions, guest_of(descriptor)
    reference = descriptor.reference.positions[0, guest]
    wanted = (reference - reference[0]) @ rotation_matrix(state["turn"]).transpose(1, 2)
    assert torch.allclose(positions[:, guest] - positions[:, guest[:1]], wanted)


# Elements -----------------------------------------------------------------------------------------------------------------


def test_properties_of_elements():
    """Known places in the table (IUPAC), radii (Cordero et al.) and electronegativities (Pauling)."""
    known = {
        1: (1, 1, 0.31, 2.20), 2: (18, 1, 0.28, 0.0), 6: (14, 2, 0.76, 2.55), 8: (16, 2, 0.66, 3.44), 13: (13, 3, 1.21, 1.61),
        29: (11, 4, 1.32, 1.90), 64: (3, 6, 1.96, 1.20), 72: (4, 6, 1.75, 1.30), 78: (10, 6, 1.36, 2.28), 92: (3, 7, 1.96, 1.38),
    }  # fmt: skip
    numbers = torch.tensor(list(known))
    found = properties(numbers)
    group, period, electronegativity = (8.5 * found[:, 0] + 9.5, 3 * found[:, 1] + 4, 2 * found[:, 2] + 2)
    wanted = torch.tensor(list(known.values()), dtype=DOUBLE)
    assert torch.allclose(torch.stack([group, period, covalent_radii(numbers), electronegativity], 1), wanted)
    assert found.shape == (len(known), 5) and float(properties(torch.arange(1, 95)).abs().max()) <= 1.4
    assert len(properties(torch.arange(95)).unique(dim=0)) == 95


def test_padding_has_no_properties_and_unknown_elements_are_refused():
    assert not properties(torch.tensor([0])).any() and float(covalent_radii(torch.tensor(0))) == 0
    for numbers in ([95, 1], [-1]):
        for function in (properties, covalent_radii):
            with pytest.raises(UnsupportedError, match="0 to 94"):
                function(torch.tensor(numbers))


def test_a_network_of_d_bands_reads_nothing_else_of_a_metal():
    """What is no element but has an element's d band is that element to it; elements without a known d band are refused by name."""
    network, descriptor = awake(d_band=True), system("O")
    told = torch.cat([d_band(descriptor.numbers[:-1]), torch.zeros(1, 3, dtype=DOUBLE)])
    state, t = states(network, descriptor), torch.full((6,), 0.4)
    every = (descriptor, *(replace(descriptor, single=x) for x in (told, told + 0.5)))
    plain, same, other = (network(state, t, d)[0]["plane"] for d in every)
    assert torch.equal(plain, same) and not torch.allclose(plain, other, atol=1e-3)
    with pytest.raises(UnsupportedError, match=r"\[13\]"):
        d_band(torch.tensor([78, 13]))


def test_what_shares_a_slab_is_answered_as_it_would_be_alone():
    """Rows of one batch may differ in the lone atom, in conditions and in the d band that the slab's atoms are told."""
    rng, network, descriptor = torch.Generator().manual_seed(5), awake(d_band=True, conditions=1), system("O")
    state, t = states(network, descriptor), torch.linspace(0.1, 0.9, 6)
    numbers = torch.cat([descriptor.numbers[:-1].expand(6, -1), torch.tensor([[1], [8], [6], [8], [7], [1]])], 1)
    told, conditions = (torch.randn(6, *shape, generator=rng, dtype=DOUBLE) for shape in ((len(descriptor.numbers), 3), (1,)))
    together = network(state, t, replace(descriptor, numbers=numbers, conditions=conditions, single=told))
    for k in range(6):
        node = torch.cat([numbers[k][:, None], descriptor.node[:, 1:]], 1)
        own = replace(descriptor, numbers=numbers[k], node=node, conditions=conditions[k], single=told[k])
        alone = network({name: x[k : k + 1] for name, x in state.items()}, t[k : k + 1], own)
        for one, all_ in zip(alone, together, strict=True):
            assert all(torch.allclose(one[name], all_[name][k : k + 1], atol=1e-5) for name in one)


def test_forces_along_rotations_need_the_process():
    descriptor = system("CO")
    with pytest.raises(IncompatibleError, match="turn need process="):
        frames_of(Adsorbate(), descriptor, descriptor.reference, lambda geometry: geometry.positions.square().sum((1, 2)))
