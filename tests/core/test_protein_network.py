"""The Graphormer over residues: how its answers move with the protein, and that proteins train."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from dig_core.coordinates import Backbone
from dig_core.diffusion import SO3
from dig_core.diffusion.rotations import rotation_matrix
from dig_core.dig import DiG
from dig_core.errors import IncompatibleError
from dig_core.nn import BackboneGraphormer
from dig_core.nn.collective import Collective, attitude, departures, twist_variance
from dig_core.nn.residues import ALONG, along
from dig_core.random import Streams
from dig_core.score import NoiseScore
from dig_core.system.protein import protein, residues
from dig_core.testing import check_score_model
from dig_core.training.crops import cropped
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Denoising, Frames
from dig_core.training.systems import Systems
from dig_core.types import Geometry

SMALL = {"width": 16, "heads": 2, "layers": 2, "pair": 8, "heard": 4, "basis": 6}
SEQUENCE = "MKGAVLPD"


def awake(descriptor, **options) -> NoiseScore:
    """A float64 network whose head answers."""
    network = BackboneGraphormer(**SMALL, **options).double()
    layers = [network.head[2]] if network.collective is None else [network.head[2], network.collective.told, network.collective.gates[2]]
    if network.collective is not None:
        for part in (network.collective.along, network.collective.known):
            torch.nn.init.normal_(part, std=0.3, generator=torch.Generator().manual_seed(2))
    for layer in layers:
        torch.nn.init.normal_(layer.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    return NoiseScore(network, network.process(descriptor)).requires_grad_(False)


def known(sequence: str):
    """A descriptor with a reference structure."""
    blank = protein(sequence)
    positions = 3.0 * torch.randn(1, blank.n_atoms, 3, generator=torch.Generator().manual_seed(5)).double()
    return dataclasses.replace(blank, reference=Geometry(positions))


def states(model: NoiseScore, n: int = 3):
    return model.process.prior(model.process.empty(n, torch.float64)).sample(Streams(4, range(n)))


@pytest.mark.parametrize("process", ["ou", "brownian"])
def test_score_is_tangent_and_independent_of_its_batch(process):
    descriptor = protein(SEQUENCE)
    model = awake(descriptor, process=process)
    check_score_model(model, states(model), descriptor)


@pytest.mark.parametrize("modes", [0, 3])
@pytest.mark.parametrize("t", [0.02, 0.5, 1.0])
def test_score_turns_with_the_protein_and_tells_mirror_images_apart(t, modes):
    descriptor = known(SEQUENCE) if modes else protein(SEQUENCE)
    model = awake(descriptor, **({"members": len(SEQUENCE), "reference": True, "modes": modes, "known": 5} if modes else {}))
    state, t = states(model), torch.tensor([t], dtype=torch.float64)
    turn = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
    matrix = rotation_matrix(turn)
    turned = {"pos": state["pos"] @ matrix.T, "rot": model.process["rot"].space.exp(state["rot"], turn.expand_as(state["rot"]))}
    found, wanted = model.moments(turned, t, descriptor), model.moments(state, t, descriptor)
    for name in found.noise:
        torch.testing.assert_close(found.noise[name], wanted.noise[name] @ matrix.T, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.spread[name], wanted.spread[name], rtol=1e-8, atol=1e-8)
    # A point reflection keeps rotation vectors, which are axial.
    mirrored = model.moments({"pos": -state["pos"], "rot": state["rot"]}, t, descriptor)
    assert (mirrored.noise["pos"] + wanted.noise["pos"]).abs().max() > 1e-3


def test_attitude_is_the_rotation_of_what_was_turned_and_smooth_where_there_is_none():
    rng = torch.Generator().manual_seed(3)
    fixed, fixed_turn = (torch.randn(9, 3, generator=rng).double() for _ in range(2))
    fixed_turn, turn = rotation_matrix(fixed_turn), rotation_matrix(torch.randn(4, 3, generator=rng).double())
    noise = torch.full((1, 1, 1), 0.5, dtype=torch.float64)
    found = attitude(fixed @ turn.transpose(1, 2), turn[:, None] @ fixed_turn, fixed, fixed_turn, noise, noise)
    torch.testing.assert_close(found, turn, rtol=0, atol=0.02)
    # Where the overlap is nothing the polar factor of rotations has no limit, this one fades.
    nothing = torch.zeros(1, 9, 3, dtype=torch.float64, requires_grad=True)
    blind = attitude(nothing, torch.zeros(1, 9, 3, 3).double(), fixed, fixed_turn, noise, noise)
    assert not blind.any()
    assert torch.autograd.grad(blind[0, 0, 0], nothing)[0].isfinite().all()


def test_modes_begin_with_the_principal_motions_of_structures():
    rng = torch.Generator().manual_seed(6)
    fixed, axis = torch.randn(2, 9, 3, generator=rng).double()
    fixed_turn = rotation_matrix(torch.randn(9, 3, generator=rng).double())
    axis = axis - axis.mean(0)
    # Shifts that turn nothing: laying structures back must not take a part of them away.
    spin = torch.stack([torch.linalg.cross(e.expand(9, 3), fixed).flatten() for e in torch.eye(3).double()])
    axis = (axis.flatten() - torch.linalg.pinv(spin) @ (spin @ axis.flatten())).view(9, 3)
    gone = torch.linspace(-0.05, 0.05, 12, dtype=torch.float64)[:, None, None] * axis
    part = Collective(9, 8, 2, 5).double().requires_grad_(False)
    part.start(fixed + gone, fixed_turn.expand(12, 9, 3, 3), fixed, fixed_turn)
    assert abs(float(part.along[0, :27] @ axis.flatten() / axis.norm())) > 0.99
    assert not part.along[0, 27:].any()
    wanted = torch.linspace(-0.05, 0.05, 12).double()[[0, 3, 6, 8, 11]] * axis.norm()
    torch.testing.assert_close(part.known[:, 0].abs(), wanted.abs(), rtol=0.05, atol=0.002)


def test_what_is_expected_of_motions_is_the_posterior_mean_of_their_mixture():
    rng = torch.Generator().manual_seed(7)
    part = Collective(4, 8, 2, 6).double().requires_grad_(False)
    part.known.copy_(torch.randn(6, 2, generator=rng))
    part.widths.fill_(math.log(0.4))
    left, variance = torch.tensor([[0.7, 0.5]]).double(), torch.tensor([[0.3, 0.2]]).double()
    clean = part.known[torch.randint(6, (400_000,), generator=rng)] + 0.4 * torch.randn(400_000, 2, generator=rng)
    for gone in torch.tensor([[0.3, -0.4], [-1.5, 0.2]]).double():
        weight = torch.exp(-0.5 * ((gone - left * clean) ** 2 / variance).sum(1))
        wanted = (weight[:, None] * clean).sum(0) / weight.sum()
        torch.testing.assert_close(part._due(gone[None], left, variance)[0], wanted, rtol=0, atol=0.01)


@pytest.mark.parametrize("angle", [0.1, 0.6, 1.5])
def test_twists_spread_as_brownian_turns_do(angle):
    n = 20_000
    raw = torch.randn(1, n, 3, generator=torch.Generator().manual_seed(8)).double()
    turn = rotation_matrix(SO3(n).heat_step(raw, torch.tensor(angle).double()))
    eye, none = torch.eye(3).double(), torch.zeros(n, 3).double()
    _, twist = departures(eye[None], none[None], turn, none, eye.expand(n, 3, 3))
    wanted = float(twist_variance(torch.tensor(angle).double()))
    assert abs(float(twist.square().mean()) / wanted - 1) < 0.03


def test_neighbours_along_the_chain_are_seen_where_they_are():
    chain = residues(protein(SEQUENCE, numbers=[1, 2, 3, 7, 8, 9, 10, 11]))
    rng = torch.Generator().manual_seed(2)
    pos, turn = torch.randn(2, 8, 3, generator=rng).double(), rotation_matrix(torch.randn(2, 8, 3, generator=rng).double())
    gap, features = along(pos, turn, chain.follows(), 0.1)
    assert features.shape == (2, 8, ALONG)
    for here, side, there in ((1, 0, 0), (1, 1, 2), (5, 0, 4), (5, 1, 6)):
        seen = (turn[:, here] @ gap[:, here, side, :, None])[..., 0]
        torch.testing.assert_close(seen, pos[:, there] - pos[:, here])
    for here, side in ((0, 0), (2, 1), (3, 0), (7, 1)):  # ends of chains, and a gap between residues 3 and 7
        assert not gap[:, here, side].any()
        assert not features[:, here, 3 * side : 3 * side + 3].any() and not features[:, here, 6 + 9 * side : 15 + 9 * side].any()


def test_all_that_a_network_computes_with_is_where_its_weights_are():
    # The meta device holds no numbers, and refuses to mix with what is elsewhere.
    x = torch.randn(1, protein(SEQUENCE).n_atoms, 3, generator=torch.Generator().manual_seed(3)).double()
    descriptor = protein(SEQUENCE, positions=10 * x)
    model = awake(descriptor, reference=True)
    state = {name: x.to("meta") for name, x in states(model).items()}
    found = model.network.to("meta")(state, torch.ones(1, dtype=torch.float64, device="meta"), descriptor)
    assert {x.device.type for part in found for x in part.values()} == {"meta"}


@pytest.mark.gpu
def test_a_model_on_a_gpu_draws_the_same():
    descriptor = protein(SEQUENCE)
    dig = DiG(awake(descriptor), Backbone(), descriptor)
    here = dig.sample(4, seed=1, steps=5)
    dig.model.to("cuda")
    torch.testing.assert_close(dig.sample(4, seed=1, steps=5).geometry.positions, here.geometry.positions, rtol=1e-6, atol=1e-6)


def test_chains_numbers_and_embeddings_are_seen():
    one, gap = protein(SEQUENCE), protein(SEQUENCE, numbers=[1, 2, 3, 4, 9, 10, 11, 12])
    two = protein(SEQUENCE, numbers=[1, 2, 3, 4, 1, 2, 3, 4], chains=[0] * 4 + [1] * 4)
    model = awake(one)
    t, state = torch.tensor([0.3], dtype=torch.float64), states(model)
    answers = [model.moments(state, t, d).noise["pos"] for d in (one, gap, two)]
    assert all((a - b).abs().max() > 1e-6 for a, b in zip(answers, answers[1:] + answers[:1], strict=True))
    rng = torch.Generator().manual_seed(0)
    single, couple = torch.randn(8, 5, generator=rng), torch.randn(8, 8, 3, generator=rng)
    given = protein(SEQUENCE, single=single, couple=couple)
    reader = awake(given, single=5, couple=3)
    base = reader.moments(state, t, given).noise["pos"]
    for change in ({"single": 2 * single}, {"couple": 2 * couple}):
        assert (reader.moments(state, t, dataclasses.replace(given, **change)).noise["pos"] - base).abs().max() > 1e-6
    with pytest.raises(IncompatibleError, match="single embeddings of 5 channels, got none"):
        reader.moments(state, t, one)
    with pytest.raises(IncompatibleError, match="couple embeddings of 3 channels, got 2"):
        reader.moments(state, t, protein(SEQUENCE, single=single, couple=couple[..., :2]))


def test_models_of_one_protein_and_reference_are_refused_elsewhere():
    model = awake(protein(SEQUENCE), members=8)
    other = protein(SEQUENCE + "G")
    with pytest.raises(IncompatibleError, match="one protein of 8 residues, got 9"):
        model.on(other).moments(states(model.on(other)), torch.tensor([0.5]), other)
    reader = awake(protein(SEQUENCE), reference=True)
    with pytest.raises(IncompatibleError, match="reference structure"):
        reader.moments(states(reader), torch.tensor([0.5]), protein(SEQUENCE))
    with pytest.raises(IncompatibleError, match="reference"):
        BackboneGraphormer(modes=4, members=8, known=3)
    with pytest.raises(IncompatibleError, match="process"):
        BackboneGraphormer(process="poisson")


def test_checkpoint_keeps_embeddings_and_answers(tmp_path):
    rng = torch.Generator().manual_seed(0)
    descriptor = protein(SEQUENCE, single=torch.randn(8, 5, generator=rng), couple=torch.randn(8, 8, 3, generator=rng))
    model = awake(descriptor, single=5, couple=3).float()
    DiG(model, Backbone(), descriptor).save(tmp_path / "model.safetensors")
    back = DiG.load(tmp_path / "model.safetensors")
    state, t = states(model), torch.tensor([0.4])
    found, wanted = (m.moments(state, t, d).noise["rot"] for m, d in ((back.model, back.descriptor), (model, descriptor)))
    assert torch.equal(found, wanted)


def test_parts_are_residues_of_the_whole():
    descriptor = protein(SEQUENCE * 3)
    model = awake(descriptor)
    frames = Frames(states(model, 5), states(model, 5))
    order, seen = torch.Generator().manual_seed(0), set()
    for _ in range(20):
        part, few, fisher = cropped(descriptor, frames, frames.force, 7, order)
        known, whole = residues(part), residues(descriptor)
        chosen = known.number - 1
        seen.add(tuple(chosen.tolist()))
        assert len(chosen) == 7 and torch.equal(known.kind, whole.kind[chosen])
        assert torch.equal(few.state["rot"], frames.state["rot"][:, chosen]) and torch.equal(fisher["rot"], frames.force["rot"][:, chosen])
        assert few.state["pos"].mean(1).abs().max() < 1e-12
        gaps = few.state["pos"][:, 1:] - few.state["pos"][:, :-1]
        torch.testing.assert_close(gaps, frames.state["pos"][:, chosen[1:]] - frames.state["pos"][:, chosen[:-1]])
    assert len(seen) > 10
    same, all_of_it, _ = cropped(descriptor, frames, None, 24, order)
    assert same is descriptor and all_of_it is frames


def test_half_of_the_times_on_top_lie_between():
    descriptor = protein(SEQUENCE)
    model = awake(descriptor)
    seen = []

    class Watched:
        process = model.process

        def moments(self, state, t, descriptor):
            seen.append(t)
            return model.moments(state, t, descriptor)

    frames = Frames(states(model, 4))
    rng = torch.Generator().manual_seed(0)
    Denoising(frames, descriptor, between=(0.4, 0.5))(Watched(), 64, rng, rng)
    inside = (seen[0] >= 0.4) & (seen[0] <= 0.5)
    assert inside[32:].all() and 2 <= int(inside[:32].sum()) <= 4  # the other half is even over [0, 1]


def test_training_lowers_the_loss():
    rng = torch.Generator().manual_seed(0)
    descriptors = [protein(SEQUENCE), protein("GG" + SEQUENCE)]
    network = BackboneGraphormer(**SMALL)
    systems = []
    for descriptor in descriptors:
        process = network.process(descriptor)
        centre = process.prior(process.empty(1)).sample(Streams(7, range(1)))
        still = {name: x.expand(16, *x.shape[1:]) for name, x in centre.items()}
        moved = process.noise(still, torch.full((16,), 0.2), rng).state
        systems.append((descriptor, Frames({name: x.float() for name, x in moved.items()})))
    model = NoiseScore(network, network.process(descriptors[0]))
    objective = Systems(systems, together=2, longest=9)
    before = objective.evaluate(model, 3)["noise"]
    optimise(model, objective, LoopConfig(steps=150, batch=16, rate=1e-2, warmup=5, average=0.9, clip=1e4), progress=False)
    assert objective.evaluate(model, 3)["noise"] < 0.95 * before
