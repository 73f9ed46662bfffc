"""Crystals: the state and its measure, every image in cells of any shape, what must not matter to the network, a fit of a known law."""

from __future__ import annotations

import math

import pytest
import torch

from dig_core.coordinates import Crystal
from dig_core.coordinates.crystal import _half_log
from dig_core.dig import DiG
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.nn import CrystalGraphormer
from dig_core.nn.cells import pair_images
from dig_core.nn.geometry import pair_list
from dig_core.random import Streams
from dig_core.score import NoiseScore
from dig_core.system.crystal import compact, crystal
from dig_core.system.descriptor import Descriptor, molecule
from dig_core.testing import check_score_model
from dig_core.training.frames import frames_of
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Denoising, Frames
from dig_core.types import Geometry, State

DOUBLE = torch.float64
TIME = torch.tensor([0.3], dtype=DOUBLE)
SALT = crystal([6, 14, 6, 8, 6])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def awake(seed: int = 1, **options) -> CrystalGraphormer:
    """A small network with every weight moved: what is zero before training is not."""
    network = CrystalGraphormer(**{"width": 16, "heads": 2, "layers": 2, "basis": 8, "channels": 4, "seed": seed} | options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(seed)))
    return network


NET = awake().double()


def states(descriptor: Descriptor = SALT, n: int = 5, seed: int = 0) -> State:
    process = NET.process(descriptor)
    return process.prior(process.empty(n, DOUBLE)).sample(Streams(seed, range(n)))


@torch.no_grad()
def look(state: State, descriptor: Descriptor = SALT, network: CrystalGraphormer = NET) -> State:
    """Noise, of the order of one, and log-variances, under one name each."""
    model = NoiseScore(network, network.process(descriptor))
    noise = model.moments(state, TIME, descriptor).noise
    return noise | {f"{name} spread": x for name, x in network(state, TIME, descriptor)[1].items()}


def assert_same(found: State, wanted: State, tolerance: float = 1e-9) -> None:
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        assert float(x.abs().max()) > 1e-2, f"{name} is silent: the test would say nothing"
        assert torch.allclose(found[name], x, rtol=tolerance, atol=tolerance), name


def structures(n: int = 6) -> Geometry:
    """Any atoms in any cells: a cube, a left-handed one and a sheared one among them."""
    rng = generator(3)
    cell = 3 * torch.eye(3, dtype=DOUBLE) + 0.8 * torch.randn(n, 3, 3, generator=rng, dtype=DOUBLE)
    cell[0], cell[1] = 2.2 * torch.eye(3), cell[1] * -torch.linalg.det(cell[1]).sign()
    cell[2] = torch.tensor([[2.0, 0, 0], [7, 1.5, 0], [3, -9, 6]])
    return Geometry(4 * torch.randn(n, SALT.n_atoms, 3, generator=rng, dtype=DOUBLE), cell)


# The state -----------------------------------------------------------------------------------------------------------------


def test_round_trip_up_to_rotation():
    geometry, coordinates, process = structures(), Crystal(), NET.process(SALT)
    state, log_det = coordinates.encode(geometry, SALT)
    decoded = coordinates.decode(state, SALT)
    assert bool(coordinates.valid(state, SALT).all()) and torch.equal(log_det, -coordinates.log_volume(state, SALT))
    assert torch.allclose(decoded.cell, decoded.cell.transpose(1, 2)) and bool((torch.linalg.eigvalsh(decoded.cell) > 0).all())
    hand = torch.linalg.det(geometry.cell).sign()[:, None, None]
    # A rotation takes the one to the other, whole lattice vectors aside.
    turn = torch.linalg.solve(decoded.cell, hand * geometry.cell)
    assert torch.allclose(turn @ turn.transpose(1, 2), torch.eye(3, dtype=DOUBLE).expand_as(turn), atol=1e-9)
    assert torch.allclose(torch.linalg.det(turn), torch.ones(6, dtype=DOUBLE))
    steps = torch.linalg.solve(geometry.cell.transpose(1, 2), (geometry.positions - decoded.positions @ turn).transpose(1, 2))
    assert torch.allclose(steps, steps.round(), atol=1e-9)
    for other in (decoded, coordinates.pose(geometry, Streams(1, range(6))), wrapped(geometry)):
        again, other_det = coordinates.encode(other, SALT)
        gap = process.log(state, again)
        assert all(torch.allclose(x, torch.zeros_like(x), atol=1e-9) for x in gap.values())
        assert torch.allclose(other_det, log_det, atol=1e-8)


def wrapped(geometry: Geometry) -> Geometry:
    """The same crystal, with other images of its atoms named."""
    steps = torch.randint(-3, 4, geometry.positions.shape, generator=generator()).double()
    return Geometry(geometry.positions + steps @ geometry.cell, geometry.cell)


def test_the_measure_is_that_of_the_jacobian():
    """Of atoms and cell together, the orbit of rotations aside; equal eigenvalues of the metric do no harm."""
    geometry, coordinates = structures(), Crystal()
    flat = torch.cat([geometry.positions.flatten(1), geometry.cell.flatten(1)], 1).requires_grad_()
    state, log_det = coordinates.encode(Geometry(flat[:, :-9].unflatten(1, (-1, 3)), flat[:, -9:].unflatten(1, (3, 3))), SALT)
    rows = [torch.autograd.grad(x.sum(), flat, retain_graph=True)[0] for part in state.values() for x in part.T]
    jacobian = torch.stack(rows, 1)
    points = torch.cat([geometry.positions, geometry.cell], 1)
    square = points.transpose(1, 2) @ points
    inertia = square.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] * torch.eye(3, dtype=DOUBLE) - square
    orbit = math.log(8 * math.pi**2) + 0.5 * torch.linalg.slogdet(inertia).logabsdet
    wanted = 0.5 * torch.linalg.slogdet(jacobian @ jacobian.transpose(1, 2)).logabsdet - orbit
    assert torch.allclose(log_det, wanted - 3 * SALT.n_atoms * math.log(2 * math.pi), atol=1e-8)


def test_logarithm_of_the_metric_has_a_safe_slope():
    """Against differences, at equal, nearly equal and unequal eigenvalues."""
    base = torch.tensor([[2.0, 2, 2], [2, 2, 5], [2, 2 + 1e-9, 5], [1, 3, 7]], dtype=DOUBLE)
    metric = torch.diag_embed(base).requires_grad_()
    way = torch.randn(4, 3, 3, generator=generator(), dtype=DOUBLE)
    way = way + way.transpose(1, 2)
    weight = torch.randn(3, 3, generator=generator(1), dtype=DOUBLE)
    (slope,) = torch.autograd.grad((_half_log(metric) * weight).sum(), metric)
    with torch.no_grad():
        ends = [(_half_log(metric + sign * 1e-5 * way) * weight).sum((1, 2)) for sign in (1, -1)]
    assert torch.allclose((slope * way).sum((1, 2)), (ends[0] - ends[1]) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize("numbers", [[6], [6, 6, 14]])
def test_decode_has_derivatives_to_atoms_and_cell(numbers):
    descriptor, coordinates = crystal(numbers), Crystal()
    state = {k: x.requires_grad_() for k, x in states(descriptor, 2).items()}

    def decoded(frac: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(coordinates.decode({"frac": frac, "cell": cell}, descriptor))

    assert torch.autograd.gradcheck(decoded, (state["frac"], state["cell"]), fast_mode=True)


def test_compact_bases():
    """The same lattice, nearer to a cube than the given basis, whatever that was."""
    rng = generator(1)
    cell = 3 * torch.eye(3, dtype=DOUBLE) + torch.randn(20, 3, 3, generator=rng, dtype=DOUBLE)
    chosen = compact(cell)
    assert torch.equal(torch.linalg.det(chosen.double()).round(), torch.ones(20, dtype=DOUBLE))
    shear = torch.tensor([[1.0, 2, -1], [0, 1, 3], [0, 0, 1]], dtype=DOUBLE)
    best, other = (_departure(compact(c).double() @ c) for c in (cell, shear @ cell))
    assert bool((best <= _departure(cell) + 1e-9).all()) and bool((_departure(shear @ cell) > best).all())
    assert float((best - other).abs().max()) < 1e-6
    assert torch.equal(compact(cell[0]), chosen[0])


def _departure(cell: torch.Tensor) -> torch.Tensor:
    return torch.linalg.eigvalsh(cell @ cell.transpose(1, 2)).log().std(1)


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (Geometry(torch.zeros(1, 5, 3)), "needs a cell"),
        (Geometry(torch.zeros(1, 4, 3), torch.eye(3)[None]), r"expected positions \(B, 5, 3\)"),
        (Geometry(torch.zeros(2, 5, 3), torch.stack([torch.eye(3), torch.ones(3, 3)])), "structure 1 .*without volume"),
        (Geometry(torch.full((1, 5, 3), math.nan), torch.eye(3)[None]), "not finite"),
    ],
)
def test_what_is_no_crystal_is_refused(geometry, message):
    with pytest.raises(IncompatibleError, match=message):
        Crystal().encode(geometry, SALT)


def test_what_has_no_composition_is_refused():
    for numbers, error in (([], IncompatibleError), ([0, 6], UnsupportedError), ([6, 120], UnsupportedError)):
        with pytest.raises(error):
            crystal(numbers)
    with pytest.raises(UnsupportedError, match="use crystal"):
        NET.process(molecule([8, 1, 1], [(0, 1), (0, 2)]))


def test_states_that_are_no_cells_are_marked():
    state = states()
    state["cell"][0, 2], state["frac"][1, 0], state["cell"][2, 0] = 1e4, math.nan, math.inf
    assert Crystal().valid(state, SALT).tolist() == [False, False, False, True, True]


# Images -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cutoff", [2.5, 5.0])
def test_every_image_is_there(cutoff):
    """Against all within many cells, for cells of unlike shapes in one batch."""
    geometry = structures()
    cell = torch.cat([geometry.cell, torch.diag_embed(torch.tensor([[1.1, 9.0, 3.0]], dtype=DOUBLE))])
    fractions = torch.rand(7, 3, 3, generator=generator(), dtype=DOUBLE) * 4 - 2
    pairs = pair_list(3, cell.device)
    seen = pair_images(fractions, cell, pairs, cutoff)
    # Enough cells for a sphere of the cutoff: as many as lattice planes that cut it.
    most = (cutoff * torch.linalg.inv(cell).norm(dim=1) + 1).ceil().tolist()
    for b in range(7):
        steps = torch.cartesian_prod(*(torch.arange(-n, n + 1.0, dtype=DOUBLE) for n in most[b]))
        gaps = (fractions[b, pairs.second] - fractions[b, pairs.first]).remainder(1)
        for p, gap in enumerate(gaps):
            distance = ((steps + gap) @ cell[b]).norm(dim=1)
            wanted = distance[(distance < cutoff) & (distance > 1e-9)].sort().values
            # The envelope is lost in rounding just inside the cutoff.
            there = seen.near[b, p] > 0
            assert torch.allclose(seen.distance[b, p][there], wanted[: int(there.sum())], atol=1e-6)
            assert bool((wanted[int(there.sum()) :] > cutoff - 1e-4).all())


def test_cells_without_room_are_refused():
    """A cell that has collapsed would ask for more images than there is memory."""
    cell = torch.diag(torch.tensor([1e-4, 1e-4, 1.0], dtype=DOUBLE))[None]
    with pytest.raises(IncompatibleError, match="so thin that"):
        pair_images(torch.zeros(1, 1, 3, dtype=DOUBLE), cell, pair_list(1, cell.device), 5.0)


# What must not matter to the network ----------------------------------------------------------------------------------------


def test_images_origin_and_order_do_not_matter():
    state = states()
    wanted = look(state)
    steps = 2 * math.pi * torch.randint(-3, 4, state["frac"].shape, generator=generator()).double()
    assert_same(look({**state, "frac": state["frac"] + steps}), wanted)
    assert_same(look({**state, "frac": state["frac"] + torch.tensor([0.3, 1.0, -2.0], dtype=DOUBLE).repeat(5)}), wanted)
    order = torch.tensor([3, 1, 4, 0, 2])

    def shuffled(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(1, (5, 3))[:, order].flatten(1)

    found = look({**state, "frac": shuffled(state["frac"])}, crystal(SALT.numbers[order]))
    assert_same(found, {name: shuffled(x) if name.startswith("frac") else x for name, x in wanted.items()})


@pytest.mark.parametrize("improper", [False, True], ids=["turned", "mirrored"])
def test_the_cell_turns_with_its_axes(improper):
    """Other names and signs of the lattice vectors turn the symmetric cell: so does the answer, a vector each atom and a tensor."""
    matrix = torch.tensor([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]], dtype=DOUBLE) * (-1 if improper else 1)
    assert float(torch.linalg.det(matrix)) == (-1 if improper else 1)
    assert_same(look(turned(states(), matrix)), turned(look(states()), matrix))


def turned(state: State, matrix: torch.Tensor) -> State:
    """State or tangent with its vectors and its tensor turned."""
    basis = NET.coordinates.tensor(torch.eye(5, dtype=DOUBLE)) / NET.coordinates.shape
    tensor = matrix @ NET.coordinates.tensor(state["cell"][:, 1:]) @ matrix.T / NET.coordinates.shape
    shape = torch.einsum("bij,kij->bk", tensor, basis)
    frac = (state["frac"].unflatten(1, (-1, 3)) @ matrix.T).flatten(1)
    return {**state, "frac": frac, "cell": torch.cat([state["cell"][:, :1], shape], 1)}


OTHERS = {
    "2 x 1 x 1": ((2, 0, 0), (0, 1, 0), (0, 0, 1)), "sheared": ((1, 0, 0), (2, 1, 0), (0, 1, 1)),
    "both": ((1, 1, 0), (-1, 1, 0), (0, 3, 1)),
}  # fmt: skip


@pytest.mark.parametrize("vectors", OTHERS.values(), ids=OTHERS)
def test_features_see_the_crystal_and_not_its_cell(vectors):
    """Supercells and other bases: atoms feel the same, if they are told of the same unevenness of the noise."""
    small = crystal([6, 8])
    geometry = NET.coordinates.decode(states(small, 3), small)
    change = torch.tensor(vectors, dtype=DOUBLE)
    count = round(abs(float(torch.linalg.det(change))))
    steps = torch.cartesian_prod(*[torch.arange(-6.0, 7.0, dtype=DOUBLE)] * 3)
    inside = ((steps @ torch.linalg.inv(change) + 1e-6) // 1 == 0).all(1)
    assert int(inside.sum()) == count
    positions = (geometry.positions[:, None] + (steps[inside] @ geometry.cell)[:, :, None]).flatten(1, 2)
    large = crystal([6, 8] * count)
    found, wanted = (features(d, g, geometry.cell) for d, g in ((large, Geometry(positions, change @ geometry.cell)), (small, geometry)))
    assert torch.allclose(found, wanted.repeat(1, count, 1), atol=1e-8) and float(wanted.std()) > 0.1


@torch.no_grad()
def features(descriptor: Descriptor, geometry: Geometry, cell: torch.Tensor) -> torch.Tensor:
    """(B, N, ...) of atoms and the invariants of their vectors, in the frame that ``cell``, symmetric, gives."""
    state, _ = NET.coordinates.encode(geometry, descriptor)
    own = NET.coordinates.decode(state, descriptor).cell
    turn = torch.linalg.solve(own, geometry.cell)
    reference = Geometry(torch.zeros(len(cell), 1, 3, dtype=DOUBLE), cell)
    shape = NET.coordinates.tensor(NET.coordinates.encode(reference, crystal([6]))[0]["cell"][:, 1:])
    x = NET.element.weight[None, :, :2].mean(2)[:, None].expand(len(cell), descriptor.n_atoms, -1)
    # The symmetric frame of another cell is turned.
    x, arms = NET._look(x, torch.zeros(1, 16, dtype=DOUBLE), turn @ shape @ turn.transpose(1, 2), state, descriptor)
    return torch.cat([x, arms[:, :, :3].square().sum(2).permute(1, 2, 0)], 2)


def test_conformance():
    """Scores are finite, tangent, of any time and independent of the batch; whole crystals are not pushed."""
    check_score_model(NoiseScore(NET, NET.process(SALT)), states(), SALT, tolerance=1e-9)
    check_score_model(NoiseScore(awake(), NET.process(SALT)), states(), SALT, tolerance=2e-4)
    assert float(look(states())["frac"].unflatten(1, (5, 3)).sum(1).abs().max()) < 1e-12


def test_untrained_networks_are_silent():
    noise, spread = type(NET)(**NET.config)(states(), TIME, SALT)
    assert all(not x.any() for x in (*noise.values(), *spread.values()))


def test_derivatives_by_the_state_are_those_of_differences():
    process, state = NET.process(SALT), states(n=2)

    def total(tangent: State) -> torch.Tensor:
        model = NoiseScore(NET, process)
        return sum(x.sin().sum() for x in model.moments(process.exp(state, tangent), TIME, SALT).noise.values())

    still = process.still(state)
    slopes = dict(zip(still, torch.autograd.grad(total(still), list(still.values())), strict=True))
    way = {k: torch.randn(x.shape, generator=generator(1), dtype=DOUBLE) for k, x in state.items()}
    with torch.no_grad():
        ends = [total({k: s * 1e-6 * x for k, x in way.items()}) for s in (1, -1)]
    wanted = float(sum((slopes[k] * way[k]).sum() for k in way))
    assert float(ends[0] - ends[1]) / 2e-6 == pytest.approx(wanted, rel=1e-5)


def test_conditions_are_heard_and_must_be_those_of_the_network():
    network, state = awake(conditions=1).double(), states()
    low, high = (look(state, crystal(SALT.numbers, conditions=[p]), network)["cell"] for p in (0.0, 1.0))
    assert float((low - high).abs().max()) > 1e-3
    with pytest.raises(IncompatibleError, match="conditioned on 1 numbers, the descriptor has 0"):
        look(state, SALT, network)


# The model ------------------------------------------------------------------------------------------------------------------


def model(descriptor: Descriptor = SALT, network: CrystalGraphormer | None = None) -> DiG:
    network = network or awake()
    return DiG(NoiseScore(network, network.process(descriptor)).eval().requires_grad_(False), network.coordinates, descriptor)


def test_one_model_for_all_crystals_saved_and_loaded(tmp_path):
    dig = model()
    dig.save(tmp_path / "crystal.safetensors")
    again = DiG.load(tmp_path / "crystal.safetensors")
    for descriptor in (SALT, crystal([6] * 3)):
        one, two = (d.on(descriptor).sample(3, seed=0, steps=4) for d in (dig, again))
        assert torch.equal(one.geometry.positions, two.geometry.positions) and torch.equal(one.geometry.cell, two.geometry.cell)
        assert bool(one.valid.all()) and bool((torch.linalg.det(one.geometry.cell) > 0).all())


def test_density_does_not_see_the_choice_of_origin_images_or_pose():
    dig = model()
    geometry = dig.sample(3, seed=1, steps=4).geometry
    wanted = dig.log_prob(geometry, steps=3).value
    moved = Geometry(geometry.positions + torch.tensor([0.3, -1.0, 2.0]), geometry.cell)
    for other in (moved, wrapped(geometry), dig.coordinates.pose(geometry, Streams(5, range(3)))):
        assert torch.allclose(dig.log_prob(other, steps=3).value, wanted, atol=1e-6)
    assert float(wanted.std()) > 0


def test_frames_hold_forces_on_atoms_and_strains_of_the_cell():
    """Of an energy of positions and cell: against differences of log volume less energy, along both components."""

    def energy(geometry: Geometry) -> torch.Tensor:
        springs = geometry.cell.square().sum((1, 2)) + torch.linalg.solve(geometry.cell.mT, geometry.positions.mT).sin().sum((1, 2))
        return springs + 0.1 * (geometry.positions[:, 1:] - geometry.positions[:, :1]).square().sum((1, 2))

    coordinates, state = Crystal(), states(n=4)
    frames = frames_of(coordinates, SALT, coordinates.decode(state, SALT), energy, batch=3)
    way = {k: torch.randn(x.shape, generator=generator(2), dtype=DOUBLE) for k, x in state.items()}
    ends = []
    for sign in (1, -1):
        moved = {k: x + sign * 1e-5 * way[k] for k, x in state.items()}
        ends.append(coordinates.log_volume(moved, SALT) - energy(coordinates.decode(moved, SALT)))
    slope = sum((frames.force[k].double() * way[k]).sum(1) for k in way)
    assert torch.allclose(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-3)


KAPPA = 4.0
PAIR = crystal([6, 6])


def known(n: int, rng: torch.Generator) -> State:
    """A law of two atoms with the symmetries that all crystals have: apart by about half the diagonal, volumes and shapes normal."""
    first = 2 * math.pi * torch.rand(n, 3, generator=rng) - math.pi
    # exp(-KAPPA cos x) by rejection.
    apart = torch.zeros(n, 3)
    left = torch.ones(n, 3, dtype=torch.bool)
    while bool(left.any()):
        trial = 2 * math.pi * torch.rand(n, 3, generator=rng) - math.pi
        kept = left & (torch.rand(n, 3, generator=rng) < torch.exp(-KAPPA * (1 + trial.cos())))
        apart, left = torch.where(kept, trial, apart), left & ~kept
    cell = torch.cat([0.4 + 0.3 * torch.randn(n, 1, generator=rng), 0.5 * torch.randn(n, 5, generator=rng)], 1)
    second = torch.remainder(first + apart + math.pi, 2 * math.pi) - math.pi
    return {"frac": torch.cat([first, second], 1), "cell": cell}


def log_known(state: State) -> torch.Tensor:
    """(B,) log-density in the state's measure."""
    apart = (state["frac"][:, 3:] - state["frac"][:, :3]).double()
    angles = (-KAPPA * apart.cos() - torch.special.i0(torch.tensor(KAPPA, dtype=DOUBLE)).log()).sum(1)
    size, shape = state["cell"][:, 0].double(), state["cell"][:, 1:].double()
    normal = -0.5 * ((size - 0.4) / 0.3) ** 2 - 0.5 * (shape / 0.5).square().sum(1)
    return angles + normal - 3 * math.log(2 * math.pi) - math.log(0.3) - 5 * math.log(0.5)


def observed(state: State) -> torch.Tensor:
    """(B, 4): the cosine of the gap, the volume's mean and square, the shape's square."""
    apart, cell = state["frac"][:, 3:] - state["frac"][:, :3], state["cell"]
    return torch.stack([apart.cos().mean(1), cell[:, 0], (cell[:, 0] - 0.4) ** 2, cell[:, 1:].square().mean(1)], 1).double()


def ratio() -> float:
    a, b = (f(torch.tensor(KAPPA, dtype=DOUBLE)) for f in (torch.special.i1, torch.special.i0))
    return -float(a / b)


@pytest.mark.slow
def test_a_known_law_is_learned_and_weighed_exactly():
    """A small fit comes near the statistics of the law it was shown; with the weights of its paths they are exact."""
    network = CrystalGraphormer(width=16, heads=2, layers=2, basis=16, channels=4, cutoff=4.0)
    frames = Frames(known(2000, generator()))
    score = NoiseScore(network, network.process(PAIR))
    config = LoopConfig(steps=400, batch=96, rate=1e-2, warmup=20, average=0.98, every=400)
    fitted = optimise(score, Denoising(frames, PAIR), config, progress=False)
    samples = model(PAIR, fitted.model.network).proposal(steps=50).draw(400, Streams(3, range(400)))
    wanted = torch.tensor([ratio(), 0.4, 0.09, 0.25], dtype=DOUBLE)
    plain = observed(samples.state)
    # Without the fit the first would be 0 instead of -0.86.
    assert float((plain.mean(0) - wanted).abs().max()) < 0.2
    log_weight = log_known(samples.state) - Crystal().log_volume(samples.state, PAIR) - samples.known_log_q()
    weight = log_weight.exp()
    effective = float(weight.sum() ** 2 / weight.square().sum())
    assert effective > 50
    assert float(weight.mean()) == pytest.approx(1.0, abs=4 * float(weight.std()) / 20)
    share = weight / weight.sum()
    mean = (share[:, None] * plain).sum(0)
    error = (share[:, None].square() * (plain - mean).square()).sum(0).sqrt()
    assert float(((mean - wanted) / error).abs().max()) < 4
