"""Models that were moved to a GPU answer as before: all that a network is asked, it works out where its weights are."""

from __future__ import annotations

import pytest
import torch

from dig_core.dig import DiG
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
