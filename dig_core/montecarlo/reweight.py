"""Frames of the exact ensemble from a model's own weighted samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..energy import Energy
from ..random import Streams
from ..training.frames import frames_of
from ..training.losses import Frames
from ..types import Geometry
from .analysis import effective_sample_size, normalised_weights

if TYPE_CHECKING:
    from ..dig import DiG

__all__ = ["Reweighted", "reweighted_frames"]


class Reweighted(NamedTuple):
    """``frames`` drawn from exp(-u) by the model's own exact weights; ``ess`` the raw effective fraction they rest on."""

    frames: Frames
    ess: float
    evaluations: int


def reweighted_frames(dig: DiG, energy: Energy, n: int, *, seed: int, batch: int = 512, progress: bool | None = None) -> Reweighted:
    """Draw ``n`` proposals and resample them (systematically, a frame as often as its weight says) to the law exp(-u).

    A model that is roughly right thus makes independent frames of the exact ensemble for one energy each (self-normalised
    importance sampling). Weights are raw.
    """
    proposal, geometries, log_weights = dig.proposal(), [], []
    for low in tqdm(range(0, n, batch), desc="reweighted frames", disable=None if progress is None else not progress):
        rng = Streams(seed, range(low, min(low + batch, n)))
        samples = proposal.draw(len(rng), rng)
        with torch.no_grad():
            log_weights.append(-energy(samples.geometry).double() - samples.known_log_q())
        geometries.append(samples.geometry.positions)
    log_weight = torch.cat(log_weights)
    log_weight = torch.where(log_weight.isnan(), -torch.inf, log_weight)
    share = torch.from_numpy(np.asarray(normalised_weights(log_weight)))
    ess = effective_sample_size(log_weight)
    wanted = max(2, int(ess * n))
    edges = (torch.arange(wanted) + float(Streams(seed, [n]).uniform(1))) / wanted
    chosen = torch.searchsorted(share.cumsum(0).clamp(max=1.0), edges.double()).clamp(max=n - 1)
    geometry = Geometry(torch.cat(geometries)[chosen])
    return Reweighted(frames_of(dig.coordinates, dig.descriptor, geometry, energy), ess, n + wanted)
