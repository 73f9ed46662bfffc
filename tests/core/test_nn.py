"""The network: symmetries, padding, derivatives, configuration."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from dig_core.errors import IncompatibleError
from dig_core.nn.geometry import RadialBasis, distances, pair_list
from dig_core.nn.graphormer import Graphormer
from dig_core.nn.heads import CoordinateHead, VectorHead
from dig_core.system.descriptor import Descriptor, molecule
from dig_core.types import Geometry

torch.set_num_threads(1)
WIDTH, HEADS = 16, 4
# CHFClBr with a CH3 for the bromine: chiral, eight atoms.
NUMBERS = [6, 1, 9, 17, 6, 1, 1, 1]
BONDS = [(0, 1), (0, 2), (0, 3), (0, 4), (4, 5), (4, 6), (4, 7)]
N = len(NUMBERS)
ATOMS = torch.tensor([[0, 1, -1, -1], [1, 0, 2, -1], [5, 4, 0, 1], [6, 4, 0, 2]])
KIND = torch.tensor([0, 1, 2, 2])


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def awake(module: nn.Module, seed: int = 1) -> nn.Module:
    """The module with every parameter moved, so that nothing is zero because it is untrained."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    return module


def encoder(**changes) -> Graphormer:
    return awake(Graphormer(**{"width": WIDTH, "layers": 2, "heads": HEADS, "basis": 8} | changes))


def vectors(net, head, x, t, descriptor) -> torch.Tensor:
    return head(net(x, t, descriptor), x, descriptor)


def rotation(seed: int = 3) -> torch.Tensor:
    q, _ = torch.linalg.qr(noise(3, 3, seed=seed))
    return q * torch.linalg.det(q)


@pytest.fixture(scope="module")
def descriptor() -> Descriptor:
    return molecule(NUMBERS, BONDS, positions=2 * noise(N, 3, seed=9))


@pytest.fixture(scope="module")
def parts():
    return encoder(), awake(VectorHead(WIDTH, HEADS)), awake(CoordinateHead(WIDTH, features=2))


X, T = 2 * noise(3, N, 3), torch.tensor([0.013, 0.4, 1.0])
VALUES = noise(3, len(ATOMS), 2, seed=2)


def permuted(descriptor: Descriptor, order: torch.Tensor) -> Descriptor:
    return dataclasses.replace(
        descriptor,
        numbers=descriptor.numbers[order],
        node=descriptor.node[order],
        pair=descriptor.pair[order][:, order],
        mobile=descriptor.mobile[order],
        reference=Geometry(descriptor.reference.positions[:, order]),
    )


def padded(descriptor: Descriptor, n: int) -> Descriptor:
    extra = n - len(descriptor.numbers)
    return dataclasses.replace(
        descriptor,
        numbers=nn.functional.pad(descriptor.numbers, (0, extra)),
        node=nn.functional.pad(descriptor.node, (0, 0, 0, extra)),
        pair=nn.functional.pad(descriptor.pair, (0, 0, 0, extra, 0, extra)),
        mobile=nn.functional.pad(descriptor.mobile, (0, extra), value=True),
        reference=Geometry(nn.functional.pad(descriptor.reference.positions, (0, 0, 0, extra), value=float("nan"))),
    )


def stacked(*descriptors: Descriptor) -> Descriptor:
    names = ("numbers", "node", "pair", "mobile")
    fields = {name: torch.stack([getattr(d, name) for d in descriptors]) for name in names}
    reference = Geometry(torch.cat([d.reference.positions for d in descriptors]))
    return dataclasses.replace(descriptors[0], **fields, reference=reference)


@pytest.mark.parametrize("reference", [False, True])
def test_permuting_atoms_permutes_the_outputs(descriptor, parts, reference):
    net, head = encoder(reference=reference), parts[1]
    order = torch.tensor([3, 1, 7, 0, 2, 6, 4, 5])
    other, x = permuted(descriptor, order), X[:, order]
    first, second = net(X, T, descriptor), net(x, T, other)
    torch.testing.assert_close(second.node, first.node[:, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second.pair, first.pair[:, :, order][..., order], atol=1e-5, rtol=1e-5)
    expected = vectors(net, head, X, T, descriptor)[:, order]
    torch.testing.assert_close(vectors(net, head, x, T, other), expected, atol=1e-5, rtol=1e-5)
    inverse = torch.cat([order.argsort(), torch.tensor([-1])])
    torch.testing.assert_close(
        parts[2](second, inverse[ATOMS], KIND, VALUES), parts[2](first, ATOMS, KIND, VALUES), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("chiral", [True, False])
def test_vectors_turn_with_the_molecule_and_ignore_translation(descriptor, parts, chiral):
    net, head = parts[0], awake(VectorHead(WIDTH, HEADS, chiral=chiral))
    turn = rotation()
    expected = vectors(net, head, X, T, descriptor) @ turn.T
    assert expected.abs().max() > 0.01
    moved = X @ turn.T + torch.tensor([3.0, -2.0, 5.0])
    torch.testing.assert_close(vectors(net, head, moved, T, descriptor), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net(moved, T, descriptor).node, net(X, T, descriptor).node, atol=1e-5, rtol=1e-5)


def test_reflection_changes_a_chiral_head_only(descriptor, parts):
    mirror = torch.tensor([1.0, 1.0, -1.0])
    for chiral in (True, False):
        head = awake(VectorHead(WIDTH, HEADS, chiral=chiral))
        first = vectors(parts[0], head, X, T, descriptor) * mirror
        difference = (vectors(parts[0], head, X * mirror, T, descriptor) - first).abs().max() / first.abs().max()
        assert difference > 0.01 if chiral else difference < 1e-4


def test_padding_neither_sends_nor_receives(descriptor):
    net, head, read = encoder(reference=True), awake(VectorHead(WIDTH, HEADS)), awake(CoordinateHead(WIDTH, 2))
    longer = padded(descriptor, N + 3)
    x = torch.cat([X, torch.full((3, 3, 3), float("nan"))], dim=1)
    short, long = net(X, T, descriptor), net(x, T, longer)
    torch.testing.assert_close(long.node[:, :N], short.node, atol=1e-5, rtol=1e-5)
    assert (long.node[:, N:] == 0).all()
    assert torch.isfinite(long.pair).all()
    found = head(long, x, longer)
    torch.testing.assert_close(found[:, :N], head(short, X, descriptor), atol=1e-5, rtol=1e-5)
    assert (found[:, N:] == 0).all()
    torch.testing.assert_close(read(long, ATOMS, KIND, VALUES), read(short, ATOMS, KIND, VALUES), atol=1e-5, rtol=1e-5)


def test_gradients_survive_padding(descriptor, parts):
    x = torch.cat([X, torch.full((3, 2, 3), float("nan"))], dim=1).requires_grad_()
    vectors(*parts[:2], x, T, padded(descriptor, N + 2)).square().sum().backward()
    assert torch.isfinite(x.grad).all() and (x.grad[:, N:] == 0).all() and (x.grad[:, :N] != 0).any()


def test_different_molecules_in_one_batch(descriptor):
    net, head = encoder(reference=True), awake(VectorHead(WIDTH, HEADS))
    water = molecule([8, 1, 1], [(0, 1), (0, 2)], positions=noise(3, 3, seed=5))
    small = X[:1, :3]
    together = stacked(descriptor, padded(water, N))
    x = torch.cat([X[:1], nn.functional.pad(small, (0, 0, 0, N - 3), value=7.0)])
    found = vectors(net, head, x, T[:2], together)
    torch.testing.assert_close(found[:1], vectors(net, head, X[:1], T[:1], descriptor), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1:, :3], vectors(net, head, small, T[1:2], water), atol=1e-5, rtol=1e-5)


def test_samples_do_not_see_their_batch(descriptor, parts):
    net, head, read = parts
    for i in range(3):
        one = net(X[i : i + 1], T[i : i + 1], descriptor)
        torch.testing.assert_close(one.node, net(X, T, descriptor).node[i : i + 1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            head(one, X[i : i + 1], descriptor), vectors(net, head, X, T, descriptor)[i : i + 1], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            read(one, ATOMS, KIND, VALUES[i : i + 1]),
            read(net(X, T, descriptor), ATOMS, KIND, VALUES)[i : i + 1],
            atol=1e-5, rtol=1e-5,
        )  # fmt: skip


def test_one_time_for_all_is_that_time_for_each(descriptor, parts):
    for t in (torch.tensor(0.37193), torch.tensor([0.0]), torch.tensor([1e-4], dtype=torch.float64)):
        each = t.reshape(1).expand(3)
        first, second = (parts[0](X, time, descriptor).node for time in (t, each))
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
    apart = parts[0](X, torch.tensor([0.5]), descriptor).node - parts[0](X, torch.tensor([0.51]), descriptor).node
    assert 1e-4 < apart.abs().max() < 1


def test_the_reference_structure_is_read(descriptor):
    net = encoder(reference=True)
    other = dataclasses.replace(descriptor, reference=Geometry(descriptor.reference.positions * 1.1))
    assert (net(X, T, descriptor).node - net(X, T, other).node).abs().max() > 1e-3
    with pytest.raises(IncompatibleError, match="reference"):
        net(X, T, dataclasses.replace(descriptor, reference=None))


def test_frozen_atoms_get_no_vector(descriptor, parts):
    mobile = torch.tensor([True] * 5 + [False] * 3)
    found = vectors(*parts[:2], X, T, dataclasses.replace(descriptor, mobile=mobile))
    assert (found[:, ~mobile] == 0).all() and (found[:, mobile] != 0).any()


def test_inputs_are_untouched(descriptor, parts):
    x, t, values = X.clone(), T.clone(), VALUES.clone()
    kept = [descriptor.numbers.clone(), descriptor.node.clone(), descriptor.pair.clone(), descriptor.mobile.clone()]
    encoded = parts[0](x, t, descriptor)
    before = [encoded.node.clone(), encoded.pair.clone()]
    parts[1](encoded, x, descriptor)
    parts[2](encoded, ATOMS, KIND, values)
    assert torch.equal(x, X) and torch.equal(t, T) and torch.equal(values, VALUES)
    assert all(map(torch.equal, before, encoded[:2]))
    now = [descriptor.numbers, descriptor.node, descriptor.pair, descriptor.mobile]
    assert all(map(torch.equal, kept, now))


def test_config_rebuilds_the_same_object_and_leaves_the_global_generator():
    state = torch.get_rng_state()
    models = [
        Graphormer(width=16, layers=1, heads=2, basis=8, ffn=1, reference=True, precision="bfloat16", seed=4),
        VectorHead(16, 2, channels=3, seed=1),
        CoordinateHead(16, features=3, n_coordinates=5, channels=1, seed=2),
    ]
    for model in models:
        again = type(model)(**json.loads(json.dumps(model.config)))
        assert again.config == model.config
        assert model.state_dict().keys() == again.state_dict().keys()
        assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
    assert torch.equal(state, torch.get_rng_state())


def test_untrained_output_is_zero(descriptor):
    net = Graphormer(WIDTH, 2, HEADS, 8)
    assert (vectors(net, VectorHead(WIDTH, HEADS), X, T, descriptor) == 0).all()
    assert (CoordinateHead(WIDTH, 2)(net(X, T, descriptor), ATOMS, KIND, VALUES) == 0).all()


def test_forward_mode_and_double_backward_agree(descriptor, parts):
    net, head, read = (
        part.double() for part in (encoder(), awake(VectorHead(WIDTH, HEADS)), awake(CoordinateHead(WIDTH)))
    )
    x, t, v = X[:1].double(), T[:1].double(), noise(1, N, 3, seed=8).double()

    def field(x, t):
        encoded = net(x, t, descriptor)
        return head(encoded, x, descriptor), read(encoded, ATOMS, KIND)

    _, (forward, forward_read) = torch.func.jvp(field, (x, t), (v, torch.ones_like(t)))
    step = 1e-5
    up, down = field(x + step * v, t + step), field(x - step * v, t - step)
    torch.testing.assert_close(forward, (up[0] - down[0]) / (2 * step), atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(forward_read, (up[1] - down[1]) / (2 * step), atol=1e-7, rtol=1e-5)
    # The PIDP pattern: a gradient with respect to parameters of derivatives of the field.
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad((field(x, t)[0] * v).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    assert net.distance.radial.affine.grad.abs().max() > 0


def test_parameter_gradient_through_jvp_and_vmap(descriptor, parts):
    net, head, _ = parts
    flow = torch.func.jvp(lambda t: vectors(net, head, X, t, descriptor), (T,), (torch.ones(3),))[1]
    (gradient,) = torch.autograd.grad(flow.square().sum(), [net.time.hidden.weight])
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
    tangents = noise(4, *X.shape, seed=6)
    pushed = torch.func.vmap(
        lambda v: torch.func.jvp(lambda x: vectors(net, head, x, T, descriptor), (X,), (v,))[1]
    )(tangents)  # fmt: skip
    one = torch.func.jvp(lambda x: vectors(net, head, x, T, descriptor), (X,), (tangents[2],))[1]
    torch.testing.assert_close(pushed[2], one, atol=1e-5, rtol=1e-4)


def test_a_far_origin_in_float64_costs_no_digits(descriptor, parts):
    far = X.double() + 1e6
    torch.testing.assert_close(parts[0](far, T, descriptor).node, parts[0](X, T, descriptor).node, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        vectors(*parts[:2], far, T, descriptor), vectors(*parts[:2], X, T, descriptor), atol=1e-5, rtol=1e-5
    )


def test_everything_is_smooth_where_atoms_coincide(descriptor, parts):
    x = X[:1].clone()
    x[:, 1] = x[:, 0]
    x.requires_grad_()
    out = vectors(*parts[:2], x, T[:1], descriptor)
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    (curve,) = torch.autograd.grad(slope.square().sum(), x)
    assert torch.isfinite(out).all() and torch.isfinite(slope).all() and torch.isfinite(curve).all()


def test_radial_basis_has_no_subnormal_numbers():
    pairs = pair_list(2, torch.device("cpu"))
    x = torch.tensor([[[0.0, 0, 0], [30.0, 0, 0]], [[0.0, 0, 0], [1.1, 0, 0]]])
    found = RadialBasis(16, 12.0, 3)(distances(x, pairs), torch.zeros(1, 3, dtype=torch.long))
    assert found.min() >= torch.finfo(torch.float32).tiny and found.max() <= 1
    torch.testing.assert_close(distances(x, pairs)[:, 1], torch.tensor([30.0, 1.1]))


def test_bfloat16_is_close_and_hands_out_float32(descriptor, parts):
    net = encoder(precision="bfloat16")
    net.load_state_dict(parts[0].state_dict())
    read = CoordinateHead(WIDTH, 2, precision="bfloat16")
    read.load_state_dict(parts[2].state_dict())
    found, expected = net(X, T, descriptor), parts[0](X, T, descriptor)
    assert found.node.dtype == torch.float32
    assert (found.node - expected.node).abs().max() < 0.1
    out = read(found, ATOMS, KIND, VALUES)
    assert out.dtype == torch.float32
    assert (out - parts[2](expected, ATOMS, KIND, VALUES)).abs().max() < 0.1
    out.square().sum().backward()


def test_coordinates_have_their_own_embedding(descriptor, parts):
    head = awake(CoordinateHead(WIDTH, n_coordinates=4))
    same = ATOMS[:1].expand(4, 4)
    out = head(parts[0](X, T, descriptor), same, torch.zeros(4, dtype=torch.long))
    assert out.shape == (3, 4, 2) and not torch.equal(out[:, 0], out[:, 1])
    plain = awake(CoordinateHead(WIDTH))(parts[0](X, T, descriptor), same, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(plain[:, 0], plain[:, 1])


def test_a_single_atom_has_features_and_no_vector(parts):
    argon = molecule([18], [])
    encoded = parts[0](X[:, :1], T, argon)
    assert torch.isfinite(encoded.node).all()
    assert (parts[1](encoded, X[:, :1], argon) == 0).all()


def test_mismatches_are_errors_that_say_so(descriptor, parts):
    net, _, read = parts
    encoded = net(X, T, descriptor)
    wrong = [
        lambda: net(X[:, :5], T, descriptor),
        lambda: net(X, T[:2], descriptor),
        lambda: net(X, T, dataclasses.replace(descriptor, node=descriptor.node[:, :2])),
        lambda: net(X, T, dataclasses.replace(descriptor, node=descriptor.node + 100)),
        lambda: read(encoded, ATOMS, KIND),
        lambda: read(encoded, ATOMS + 5, KIND, VALUES),
        lambda: read(encoded, ATOMS[:, :3], KIND, VALUES),
        lambda: read(encoded, ATOMS, KIND + 1, VALUES),
        lambda: CoordinateHead(WIDTH, n_coordinates=3)(encoded, ATOMS, KIND),
        lambda: Graphormer(width=30, heads=4),
        lambda: Graphormer(precision="float16"),
        lambda: VectorHead(16, 4, channels=2),
    ]
    for call in wrong:
        with pytest.raises(IncompatibleError, match="expected|must|was made|reads"):
            call()
