"""Committees: one of like members is the member, a score is the mean of scores, files keep them, what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dig_core.dig import Card, DiG
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.nn import AdsorptionGraphormer, Committee, CrystalGraphormer
from dig_core.score import EnergyScore, NoiseScore
from tests.core.adsorbates import awake, states, system


def model(seed: int, descriptor=None, **options) -> DiG:
    descriptor = system("CO", free=(1,)) if descriptor is None else descriptor
    network = awake(seed, width=8, layers=1, encoder=1, basis=4, **options)
    return DiG(NoiseScore(network, network.process(descriptor)).eval().requires_grad_(False), network.coordinates, descriptor)


def test_a_committee_of_equals_is_its_member():
    one = model(1)
    alone = one.sample(3, seed=2, steps=4, method="path")
    for weights in (None, (3.0, -1.5, -0.5)):
        many = one.with_others(one, one, weights=weights).sample(3, seed=2, steps=4, method="path")
        torch.testing.assert_close(many.geometry.positions, alone.geometry.positions, rtol=0, atol=1e-4)
        torch.testing.assert_close(many.log_q, alone.log_q, rtol=0, atol=1e-3)


@pytest.mark.parametrize("weights", [None, (0.5, 0.2, 0.3), (2.0, 0.5, -1.5)])
def test_its_score_is_the_average_of_scores_on_any_system(weights):
    digs, other = [model(seed) for seed in (1, 2, 3)], system("N2H")
    state, t = states(digs[0].model.network, other), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    scores = [dig.on(other).model(state, t, other) for dig in digs]
    found = digs[0].with_others(*digs[1:], weights=weights).on(other).model(state, t, other)
    for name in state:
        expected = sum(w * score[name] for w, score in zip(weights or (1 / 3,) * 3, scores, strict=True))
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)


def test_a_member_with_a_negative_weight_has_no_say_in_the_spread():
    one, two = model(1), model(2)
    state, t = states(one.model.network, one.descriptor), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    spread = one.with_others(two, weights=(3, -2)).model.moments(state, t, one.descriptor).spread
    for name, expected in one.model.moments(state, t, one.descriptor).spread.items():
        torch.testing.assert_close(spread[name], expected, rtol=1e-5, atol=0)


def test_members_of_another_system_join():
    here, there = model(1), model(2, system("O"))
    assert here.with_others(there).sample(2, seed=1, steps=2).geometry.positions.shape[1] == len(here.descriptor.numbers)


def test_a_file_keeps_all_members(tmp_path):
    dig = model(1).with_others(model(2), weights=(1.5, -0.5))
    dig.save(tmp_path / "m.safetensors")
    read = DiG.load(tmp_path / "m.safetensors")
    assert torch.equal(read.sample(2, seed=1, steps=3).geometry.positions, dig.sample(2, seed=1, steps=3).geometry.positions)


def test_members_come_back_as_they_were():
    one, two = (replace(d, card=Card(name=f"m{k}", history=[{"stage": "denoise", "steps": k}])) for k, d in enumerate((model(1), model(2))))
    assert one.members() == [one]
    both = one.with_others(two, weights=(2, -1))
    assert [stage["member"] for stage in both.card.history] == [1, 2]
    for member, before in zip(both.members(), (one, two), strict=True):
        assert member.card.history == before.card.history
        assert torch.equal(member.sample(2, seed=1, steps=3).geometry.positions, before.sample(2, seed=1, steps=3).geometry.positions)


def test_members_of_committees_join_with_their_weights():
    one, two, three = model(1), model(2), model(3)
    nested = one.with_others(two, weights=(3, -2)).with_others(three, weights=(0.5, 0.5))
    flat = one.with_others(two, three, weights=(1.5, -1, 0.5))
    assert nested.model.network.config == flat.model.network.config
    assert torch.equal(nested.sample(2, seed=1, steps=3).geometry.positions, flat.sample(2, seed=1, steps=3).geometry.positions)


def test_members_are_copies():
    one = model(1)
    both = one.with_others(model(2))
    for parameter in both.model.parameters():
        parameter.data.zero_()
    assert any(parameter.abs().max() > 0 for parameter in one.model.parameters())


def test_what_does_not_fit_is_refused():
    one = model(1)
    with pytest.raises(IncompatibleError, match="differ in coordinates or noise"):
        one.with_others(model(2, coordinates={"height": 1.9}))
    with pytest.raises(IncompatibleError, match="differ in coordinates or noise"):
        one.with_others(model(2, fade=3.0))
    with pytest.raises(UnsupportedError, match="EnergyScore cannot join"):
        one.with_others(replace(one, model=EnergyScore(torch.nn.Identity(), one.process)))
    with pytest.raises(IncompatibleError, match="AdsorptionGraphormer, CrystalGraphormer"):
        Committee([AdsorptionGraphormer(width=8, heads=2), CrystalGraphormer(width=8, heads=2)])
    with pytest.raises(IncompatibleError, match="got none"):
        Committee([])
    for weights in ((1.0,), (1.0, 0.5), (float("nan"), 1.0)):
        with pytest.raises(IncompatibleError, match="a weight for each of 2 m"):
            one.with_others(model(2), weights=weights)
