"""The Graphormer over residues: how its answers move with the protein, and that proteins train."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dig_core.coordinates import Backbone
from dig_core.diffusion.rotations import rotation_matrix
from dig_core.dig import DiG
from dig_core.errors import IncompatibleError
from dig_core.nn import BackboneGraphormer
from dig_core.nn.known import KnownStructures, concentration, mean_rotation
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
    layers = [network.head[2]]
    if network.known_structures is not None:
        layers.append(network.known_structures.gates[2])
        rng = torch.Generator().manual_seed(2)
        count = network.config["known"]
        found = {name: torch.randn(count, len(SEQUENCE), 3, generator=rng).double() for name in ("pos", "rot")}
        network.look_at(found)
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


@pytest.mark.parametrize("count", [0, 5])
@pytest.mark.parametrize("t", [0.02, 0.5, 1.0])
def test_score_turns_with_the_protein_and_tells_mirror_images_apart(t, count):
    descriptor = protein(SEQUENCE)
    model = awake(descriptor, **({"members": len(SEQUENCE), "known": count} if count else {}))
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


def uniform_rotations(n: int, seed: int) -> torch.Tensor:
    """(n, 3, 3), of unit quaternions."""
    q = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)).double()
    q = q / q.norm(dim=1, keepdim=True)
    half = torch.atan2(q[:, 1:].norm(dim=1, keepdim=True), q[:, :1])
    return rotation_matrix(2 * half * torch.nn.functional.normalize(q[:, 1:], dim=1))


@pytest.mark.parametrize("size", [0.01, 1.0, 3.0])
def test_mean_rotation_is_that_of_the_law(size):
    turns = uniform_rotations(300_000, 3)
    overlap = size * torch.randn(3, 3, generator=torch.Generator().manual_seed(4)).double()
    weight = (overlap * turns).sum((1, 2)).exp()
    log_norm, mean = mean_rotation(overlap)
    assert abs(float(log_norm - weight.mean().log())) < 0.02
    torch.testing.assert_close(mean, (weight[:, None, None] * turns).sum(0) / weight.sum(), rtol=0, atol=0.01)
    # The mean is the slope of the norm, and a sharp law has its mean where the overlap is largest.
    overlap.requires_grad_(True)
    torch.testing.assert_close(torch.autograd.grad(mean_rotation(overlap)[0], overlap)[0], mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mean_rotation(1e6 * turns[:5])[1], turns[:5], rtol=0, atol=1e-5)


@pytest.mark.parametrize("angle", [0.05, 0.5, 1.0, 1.7])
def test_concentration_is_that_of_brownian_motion(angle):
    square = torch.tensor(angle**2).double()
    _, mean = mean_rotation(concentration(square) * torch.eye(3).double())
    assert abs(float(mean[0, 0] / torch.exp(-square)) - 1) < 0.12


def test_what_known_structures_expect_is_the_posterior_mean_over_them_and_all_rotations():
    """By hand: importance weights of many rotations of each structure; orientations so noisy that they say nothing."""
    part, rng = KnownStructures(6, 8, 3, 0.1).double().requires_grad_(False), torch.Generator().manual_seed(7)
    held = torch.randn(3, 6, 3, generator=rng).double()
    part.pos.copy_(held - held.mean(1, keepdim=True))
    signal, noise = (torch.tensor(x).double().view(1, 1, 1) for x in (0.8, 0.7))
    turns = uniform_rotations(100_000, 8)
    clean = torch.einsum("rij,fnj->frni", turns, part.pos).flatten(0, 1)
    for row in (0, 70_000, 250_000):
        seen = signal * clean[row] + noise * torch.randn(6, 3, generator=rng).double()
        weight = torch.softmax(-0.5 * ((seen - signal * clean) ** 2 / noise**2).sum((1, 2)), 0)
        found = part(seen, torch.eye(3).expand(1, 6, 3, 3).double(), signal, noise, 9 * noise, torch.zeros(1, 8).double())
        torch.testing.assert_close(found.due[0], torch.einsum("s,sni->ni", weight, clean), rtol=0, atol=0.03)


def test_known_structures_are_even_and_as_wide_as_they_are_apart():
    line = torch.linspace(0, 1, 9).double()[:, None, None] * torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double()
    shape = torch.randn(5, 3, generator=torch.Generator().manual_seed(2)).double()
    frames = 5 * (shape - shape.mean(0)) + line - line.mean(1, keepdim=True)
    turns = uniform_rotations(9, 5)
    part = KnownStructures(5, 8, 5, 0.1).double()
    part.start(frames @ turns.transpose(1, 2), turns[:, None].expand(9, 5, 3, 3))
    torch.testing.assert_close(part.pos, (frames @ turns.transpose(1, 2))[::2])
    apart = float((frames[2] - frames[0]).square().mean().sqrt())
    assert 0.4 * apart < float(part.width[0]) <= 0.5 * apart * 1.001  # less, where laying one on the other takes a part of it away
    assert float(part.width[1]) < 0.3 * apart


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
    with pytest.raises(IncompatibleError, match="known structures"):
        BackboneGraphormer(known=3)
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
