"""Progress as a function sees it: it rises to its total, says what is going on, and can end a run that goes on later."""

from __future__ import annotations

import numpy as np
import pytest

from dig_core.energy import Springs
from dig_core.progress import bar
from dig_core.training.draws import draw
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Denoising, Frames
from tests.core.test_committee import model


def test_things_are_counted_and_come_unchanged():
    told = []
    found = list(bar(np.arange(3), label="numbers", progress=lambda *seen: told.append(seen)))
    assert found == [0, 1, 2]
    assert told == [("numbers", k, 3, {}) for k in (1, 2, 3)]


def test_without_a_total_it_is_not_made_up():
    told = []
    assert list(bar(iter("ab"), label="letters", progress=lambda *seen: told.append(seen))) == ["a", "b"]
    assert [total for _, _, total, _ in told] == [None, None]


def test_a_bar_by_hand_goes_on_from_where_it_is_and_carries_figures():
    told = []
    with bar(label="steps", progress=lambda *seen: told.append(seen), total=5, initial=3) as shown:
        shown.update()
        shown.set_postfix(loss="0.1")
        shown.update()
    assert told == [("steps", 4, 5, {}), ("steps", 5, 5, {"loss": "0.1"})]


@pytest.mark.parametrize("progress", [True, False, None])
def test_bars_of_all_kinds_let_things_through(progress, capsys):
    assert list(bar([1, 2], label="numbers", progress=progress)) == [1, 2]
    assert ("numbers" in capsys.readouterr().err) == (progress is True)


class Enough(Exception):
    """What a user raises."""


def test_a_function_can_end_a_training_which_goes_on_from_its_checkpoint(tmp_path):
    dig, config = model(1), LoopConfig(steps=6, batch=4, every=2)
    frames = Frames({n: x.float() for n, x in dig.sample(8, seed=1, steps=2).state.items()})

    def train(progress):
        fresh = model(1).model.requires_grad_(True)
        return optimise(fresh, Denoising(frames, dig.descriptor), config, directory=tmp_path, progress=progress)

    def until_four(label, done, total, figures):
        assert (label, total) == ("fit", 6)
        if done == 5:
            raise Enough

    with pytest.raises(Enough):
        train(until_four)
    told = []
    assert train(lambda label, done, total, figures: told.append(done)).finished
    assert told == [5, 6]


def test_draws_tell_every_batch():
    told, dig = [], model(1)
    energy = Springs([(0, 1)], [2.5], [4.0])
    draw(dig, energy, 5, seed=1, batch=2, progress=lambda label, done, total, figures: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
