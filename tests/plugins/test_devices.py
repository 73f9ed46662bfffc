"""Models that were moved to a GPU answer as before: all that a network is asked, it works out where its weights are."""

from __future__ import annotations

import pickle
import queue
from concurrent.futures import Executor, Future

import pytest
import torch

from dig_core.devices import DEVICE, take_device
from dig_core.dig import DiG
from dig_core.errors import UnsupportedError
from dig_core.training.losses import Frames, denoising_loss
from dig_plugins import models
from tests.core.far import Far, FarDevice, carried

# One of each network.
NAMES = ["adenylate-kinase", "adsorb-fcc111", "alanine-dipeptide", "carbon", "conformers", "pockets", "ubiquitin"]


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_the_same_wherever_the_model_is(name: str):
    dig = models.load(name)
    near = dig.sample(2, seed=1, steps=2)
    with FarDevice():
        carried(dig.model)
        far = dig.sample(2, seed=1, steps=2)
    for part, x in near.state.items():
        assert type(far.state[part]) is torch.Tensor
        torch.testing.assert_close(far.state[part], x, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "adenylate-kinase"])
def test_losses_are_the_same_wherever_the_model_is(name: str):
    dig = models.load(name)
    frames, t = Frames({n: x.float() for n, x in dig.sample(3, seed=1, steps=2).state.items()}), torch.tensor([0.1, 0.5, 0.9])
    near = _loss(dig, frames, t)
    with FarDevice():
        carried(dig.model)
        far = {part: x.as_subclass(torch.Tensor) for part, x in _loss(dig, frames, t).items()}
    torch.testing.assert_close(far, near, rtol=0, atol=0)


def _loss(dig: DiG, frames: Frames, t: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return denoising_loss(dig.model, frames, dig.descriptor, t, torch.Generator().manual_seed(1))


class Mailed(Executor):
    """Work goes to itself by mail, as to another process."""

    def submit(self, function, /, *args, **kwargs):
        done = Future()
        done.set_result(pickle.loads(pickle.dumps(function))(*pickle.loads(pickle.dumps(args)), **kwargs))
        return done


def test_workers_put_what_they_are_sent_on_the_device_that_they_took(monkeypatch):
    """Each its own; what comes back is what one processor draws."""
    dig, placed, free = models.load("alanine-dipeptide"), [], queue.Queue()
    near = dig.sample(4, seed=1, steps=2, batch=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, place: placed.append(place) or carried(self))
    monkeypatch.setenv(DEVICE, "")
    for place in ("cuda:1", "cuda:0"):
        free.put(place)
    for _ in range(2):
        take_device(free)
        with FarDevice():
            far = dig.sample(4, seed=1, steps=2, batch=2, executor=Mailed())
        torch.testing.assert_close(far.state, near.state, rtol=0, atol=0)
    assert placed == ["cuda:1"] * 2 + ["cuda:0"] * 2
    monkeypatch.setenv(DEVICE, "cuda:2")
    with pytest.raises(UnsupportedError, match="no device 'cuda:2'"):
        pickle.loads(pickle.dumps(dig))


def test_near_and_far_do_not_mix():
    x = torch.ones(3)
    with FarDevice():
        far = x.to("cuda")
        assert isinstance(far, Far) and not isinstance(far.cpu(), Far) and isinstance(torch.zeros(2, device=far.device), Far)
        assert isinstance((far + 1).to(far), Far) and isinstance(x.to(far), Far) and not isinstance(far.to(x), Far)
        with pytest.raises(RuntimeError, match="far and near"):
            _ = far + x
        assert isinstance(far[torch.tensor([0, 2])], Far)
        for mixed in (lambda: torch.cat([far, x]), lambda: x[far.long()], lambda: far[:, None] @ x[None]):
            with pytest.raises(RuntimeError, match="far and near"):
                mixed()
