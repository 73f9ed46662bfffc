"""One network trained on many systems: the loss is Denoising's, runs go on where they stopped, networks of one system are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dig_core.diffusion import Diffusion, Euclidean, Joint, LogSNR
from dig_core.energy import AnalyticScore, GaussianMixture
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.nn import ResidualMLP
from dig_core.score import NoiseScore
from dig_core.system.elements import N_PROPERTIES, properties
from dig_core.system.surface import surface
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Denoising, Frames
from dig_core.training.systems import Systems
from tests.core.adsorbates import DOUBLE, awake, states, system

SMALL = {"width": 8, "heads": 1, "layers": 1, "encoder": 1, "basis": 4, "channels": 3, "cutoff": 4.0}


def model_of() -> NoiseScore:
    network = awake(strength=0.1, **SMALL)
    return NoiseScore(network, network.process(system("O")))


def frames_of(descriptor, n: int = 12, forces: bool = False) -> Frames:
    rng = torch.Generator().manual_seed(3)
    state = {name: x.float() for name, x in states(awake(**SMALL), descriptor, n).items()}
    return Frames(state, {name: torch.randn(x.shape, generator=rng) for name, x in state.items()} if forces else None)


def generators(seed: int) -> tuple[torch.Generator, torch.Generator]:
    return torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)


def test_blurred_elements_are_other_elements_of_the_slab_and_the_same_adsorbate():
    """Of no width they are themselves; a departure that makes one element another has the other's loss; the noise is the generator's."""
    model, descriptor = model_of(), system("CO")
    frames = frames_of(descriptor)
    with torch.no_grad():
        none, blurred, again = (Systems([(descriptor, frames)], blur=blur)(model, 32, *generators(7))["noise"] for blur in (1e-9, 0.5, 0.5))
        order, noise = generators(7)
        torch.randn(47, N_PROPERTIES, generator=noise, dtype=DOUBLE)
        plain = Systems([(descriptor, frames)])(model, 32, order, noise)["noise"]
    assert torch.equal(blurred, again) and float(none) == pytest.approx(float(plain), rel=1e-5)
    assert abs(float(blurred - plain)) > 1e-6
    assert Systems([(descriptor, frames)], blur=0.5).evaluate(model, 4) == Systems([(descriptor, frames)]).evaluate(model, 4)
    gold = torch.where(descriptor.numbers == 29, 79, descriptor.numbers)
    as_gold = replace(descriptor, single=properties(gold) - properties(descriptor.numbers))
    x, t = states(model.network, descriptor), torch.tensor([0.4])
    others = replace(descriptor, numbers=gold, node=torch.cat([gold[:, None], descriptor.node[:, 1:]], 1))
    # Radii are of the element itself, the network's features those that it is told.
    told, real = (model.network._embed(d) for d in (as_gold, others))
    torch.testing.assert_close(told, real)
    assert not torch.allclose(model.network(x, t, as_gold)[0]["plane"], model.network(x, t, descriptor)[0]["plane"])


@pytest.mark.parametrize("forces", [False, True])
def test_one_system_has_the_loss_of_denoising(forces):
    """In evaluation and, after the draw of the system, in training; the forces' Fisher information is the system's own."""
    descriptor, model = system("CO"), model_of()
    frames = frames_of(descriptor, forces=forces)
    one, plain = Systems([(descriptor, frames)]), Denoising(frames, descriptor)
    assert one.evaluate(model, 4) == plain.evaluate(model.on(descriptor), 4)
    found = one(model, 32, *generators(7))
    order, noise = generators(7)
    torch.randperm(1, generator=order)
    torch.randint(1, (32,), generator=order)
    wanted = plain(model.on(descriptor), 32, order, noise)
    assert all(torch.equal(found[name], wanted[name]) for name in ("noise", "spread"))


def test_several_systems_are_averaged():
    """Systems of unlike components side by side; those that a step takes share its batch."""
    model = model_of()
    parts = [(d, frames_of(d)) for d in (system("O"), system("CO"), system("N2H", free=(0,)))]
    every = Systems(parts)
    losses = [Denoising(f, d).evaluate(model.on(d), 2) for d, f in parts]
    assert every.evaluate(model, 2)["noise"] == pytest.approx(sum(x["noise"] for x in losses) / 3)
    order, noise = generators(5)
    found = every(model, 30, order, noise)["noise"]
    order, noise = generators(5)
    wanted = []
    for k in torch.randperm(3, generator=order).tolist():
        torch.randint(1, (10,), generator=order)
        wanted.append(Denoising(parts[k][1], parts[k][0])(model.on(parts[k][0]), 10, order, noise)["noise"])
    assert float(found) == pytest.approx(float(sum(wanted)) / 3, rel=1e-6)


def test_systems_on_one_slab_share_a_pass_of_the_network():
    """Rows of other adsorbate atoms and conditions: each has the answer that it has by itself."""
    network = awake(conditions=1)
    alone = [replaced(system("O", conditions=[c]), number) for c, number in ((-1.0, 8), (0.5, 8), (0.5, 1), (0.2, 7))]
    state, t = states(network, alone[0], 4), torch.tensor([0.1, 0.4, 0.6, 0.9])
    together = replace(alone[0], conditions=torch.stack([d.conditions for d in alone]), numbers=torch.stack([d.numbers for d in alone]))
    found = network(state, t, together)
    for row, descriptor in enumerate(alone):
        wanted = network({name: x[row : row + 1] for name, x in state.items()}, t[row : row + 1], descriptor)
        for part in (0, 1):
            for name, x in wanted[part].items():
                assert torch.allclose(found[part][name][row : row + 1], x, rtol=1e-4, atol=1e-5), name
    two = [system("CO"), replaced(system("CO"), 16)]
    with pytest.raises(IncompatibleError, match="one mobile atom"):
        network(states(network, two[0], 2), t[:2], replace(two[0], numbers=torch.stack([d.numbers for d in two])))


def test_every_system_of_a_slab_is_trained_at_all_times():
    """Which system a row is of says nothing about how noisy it is."""
    parts = [(d, frames_of(d)) for d in (replaced(system("O", conditions=[c]), z) for c in (-1.0, 1.0) for z in (1, 8))]
    network, seen = awake(conditions=1, **SMALL), []

    def listen(module, arguments):
        _, t, descriptor = arguments
        seen.append(torch.stack([t.double(), 2.0 * (descriptor.conditions[:, 0] > 0) + (descriptor.numbers[:, -1] > 1)], 1))

    network.register_forward_pre_hook(listen)
    every, draws = Systems(parts), generators(3)
    for _ in range(4):
        every(NoiseScore(network, network.process(parts[0][0])), 64, *draws)
    times, which = torch.cat(seen).T
    for k in range(4):
        own = times[which == k]
        assert abs(float(own.mean()) - 0.5) < 4 * (12 * len(own)) ** -0.5 and float(own.min()) < 0.2 and float(own.max()) > 0.8


def replaced(descriptor, number: int):
    """With another element as the last atom."""
    numbers = torch.cat([descriptor.numbers[:-1], torch.tensor([number])])
    guest = (descriptor.node[:, 2] > 0).nonzero()[:, 0]
    return surface(numbers, descriptor.reference.positions[0], descriptor.reference.cell[0], guest, conditions=descriptor.conditions)


def test_only_systems_that_differ_in_a_lone_atom_or_in_conditions_are_grouped():
    flipped = torch.tensor([1.0, -1.0, -1.0], dtype=DOUBLE)
    oxygen, upside_down = system("O", conditions=[0.1]), system("O", conditions=[0.1], moved=lambda x: x * flipped)
    # The same slab with the atom under it: heights are measured the other way.
    positions = oxygen.reference.positions[0].clone()
    positions[-1, 2] = 3.8
    below = surface(oxygen.numbers, positions, oxygen.reference.cell[0], [2], conditions=[0.1])
    given = [
        oxygen, replaced(oxygen, 1), system("O", conditions=[0.4]), below, upside_down, system("CO", conditions=[0.1]),
        replaced(system("CO", conditions=[0.1]), 16), system("CO", conditions=[0.2]), system("O", free=(0,), conditions=[0.1]),
    ]  # fmt: skip
    systems = Systems([(d, frames_of(d)) for d in given])
    assert systems.groups == [[0, 1, 2], [3], [4], [5, 7], [6], [8]]
    network = awake(conditions=1, **SMALL)
    loss = systems(NoiseScore(network, network.process(oxygen)), 60, *generators(0))
    assert all(bool(torch.isfinite(x)) for x in loss.values())


def test_systems_of_one_slab_that_are_told_other_d_bands_are_grouped_and_averaged():
    """Each with its own frames, conditions and Fisher information, whatever their numbers: a batch's loss has the mean of theirs."""
    rng, base = torch.Generator().manual_seed(6), system("O", conditions=[0.1])
    told = [torch.randn(base.numbers.shape[0], 3, generator=rng, dtype=DOUBLE) for _ in range(3)]
    parts = [(replace(base, single=x), frames_of(base, n, forces=True)) for x, n in zip(told, (8, 12, 16), strict=True)]
    assert Systems([*parts, (base, frames_of(base, forces=True))]).groups == [[0, 1, 2], [3]]
    network = awake(conditions=1, d_band=True, strength=0.1, **SMALL)
    model, every = NoiseScore(network, network.process(base)), Systems(parts)
    with torch.no_grad():
        apart = [Denoising(f, d)(model.on(d), 20_000, *generators(2))["noise"] for d, f in parts]
        together = every(model, 60_000, *generators(3))["noise"]
    assert float(together) == pytest.approx(float(sum(apart)) / 3, rel=0.03)
    assert max(apart) > 1.1 * min(apart)  # else it would not matter whose frames are whose


@pytest.mark.parametrize("blur", [0.0, 0.4])
def test_a_run_that_was_cut_off_goes_on_with_the_same_numbers(blur, tmp_path):
    parts = [(d, frames_of(d)) for d in (system("O"), system("O", free=(0,)))]
    config = {"batch": 16, "every": 2, "warmup": 1, "decay": 0.1}
    whole = optimise(model_of(), Systems(parts, together=1, blur=blur), LoopConfig(steps=6, **config), progress=False)

    class Stop(Exception):
        pass

    def cut(model, step):
        if step == 4:
            raise Stop

    with pytest.raises(Stop):
        objective = Systems(parts, together=1, blur=blur)
        optimise(model_of(), objective, LoopConfig(steps=6, **config), directory=tmp_path, picture=cut, progress=False)
    rest = optimise(model_of(), Systems(parts, together=1, blur=blur), LoopConfig(steps=6, **config), directory=tmp_path, progress=False)
    assert rest.finished and rest.steps == 6
    for name, value in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[name], value), name


def test_what_serves_one_system_is_refused():
    descriptor = system("O")
    systems = Systems([(descriptor, frames_of(descriptor))])
    process = Joint(x=Diffusion(Euclidean(1), LogSNR()))
    mlp = NoiseScore(ResidualMLP({"x": 1}, [], width=8, blocks=1), process)
    with pytest.raises(UnsupportedError, match="ResidualMLP serves the one system"):
        systems(mlp, 8, *generators(0))
    with pytest.raises(IncompatibleError, match="network serves many systems, got a AnalyticScore"):
        systems(AnalyticScore(process, {"x": GaussianMixture([1.0], [[0.0]], [[1.0]])}), 8, *generators(0))


def test_nothing_to_train_on_is_refused():
    descriptor = system("O")
    frames = frames_of(descriptor)
    with pytest.raises(IncompatibleError, match="one system or more.*got 0"):
        Systems([])
    with pytest.raises(IncompatibleError, match="0 at a time"):
        Systems([(descriptor, frames)], together=0)
    with pytest.raises(IncompatibleError, match="at least 2 frames"):
        Systems([(descriptor, frames.take(torch.tensor([0])))])
    broken = {**frames.state, "height": frames.state["height"] * torch.nan}
    with pytest.raises(IncompatibleError, match="'height' that is not finite"):
        Systems([(descriptor, Frames(broken))])
