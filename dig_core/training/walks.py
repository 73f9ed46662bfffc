"""Chains of wells side by side, without end: the equilibrium ensemble of an energy, begun in two ways."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..energy import Energy
from ..montecarlo.wells import Wells
from .wells import Chains

__all__ = ["rounds"]

_PROPOSALS = 3


def rounds(wells: Wells, energy: Energy, rng: torch.Generator, walkers: int) -> Iterator[tuple[Chains, float]]:
    """Where ``walkers`` chains are after each round, and the fraction of its independent proposals that was accepted.

    A round is three proposals of the wells and a Langevin step. Even chains begin at draws of the wells by their weights, odd ones at
    draws of all wells alike: where the averages of the two differ, chains have been too short to forget, and
    ``bootstrap(chains=walkers)`` says so. What they begin with is to be left out, a quarter of the rounds, say.
    """
    odd, alike = torch.arange(walkers) % 2 == 1, torch.full_like(wells.log_weight, 1.0)
    weighed, uniform = (torch.multinomial(law, walkers, True, generator=rng) for law in (wells.log_weight.exp(), alike))
    noise = torch.randn(walkers, wells.mean.shape[1], generator=rng, dtype=torch.float64)
    here = Chains.start(wells, energy, wells.points(torch.where(odd, uniform, weighed), noise)[0])
    while True:
        accepted = 0.0
        for _ in range(_PROPOSALS):
            here, share = here.independent(wells, energy, rng)
            accepted += share / _PROPOSALS
        here, _ = here.local(wells, energy, rng, 0.0)
        yield here, accepted
