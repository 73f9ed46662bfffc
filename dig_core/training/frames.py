"""Training frames in a model's coordinates: from structures, with forces from an energy, and from the model's own weighted samples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..dig import DiG
from ..energy import Energy
from ..errors import IncompatibleError
from ..montecarlo.analysis import effective_sample_size, normalised_weights
from ..random import Streams
from ..system.descriptor import Descriptor
from ..types import Geometry
from .losses import Frames

__all__ = ["Reweighted", "frames_of", "reweighted_frames"]


class Reweighted(NamedTuple):
    """``frames`` drawn from exp(-u) by the model's own exact weights; ``ess`` the raw effective fraction they rest on."""

    frames: Frames
    ess: float
    evaluations: int


def frames_of(
    coordinates: nn.Module, descriptor: Descriptor, geometry: Geometry, energy: Energy | None = None, *, batch: int = 4096
) -> Frames:
    """Structures (F, N, 3) Angstrom as float32 Frames; with ``energy``, with the forces grad(-u + log volume) of the state's density.

    Frames whose energy is not finite are refused by number: training on them would be silently wrong.
    """
    parts = []
    for low in range(0, len(geometry.positions), batch):
        state, _ = coordinates.encode(Geometry(geometry.positions[low : low + batch].double()), descriptor)
        if energy is None:
            parts.append((state, None))
            continue
        state = {name: x.detach().requires_grad_() for name, x in state.items()}
        u = energy(coordinates.decode(state, descriptor))
        if not bool(torch.isfinite(u).all()):
            bad = low + int((~torch.isfinite(u)).nonzero()[0])
            raise IncompatibleError(f"frame {bad} has no finite energy: remove or minimise it before training.")
        total = (coordinates.log_volume(state, descriptor) - u).sum()
        force = dict(zip(state, torch.autograd.grad(total, list(state.values())), strict=True))
        parts.append((state, force))
    return Frames(_join([state for state, _ in parts]), None if energy is None else _join([force for _, force in parts]))


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
            log_weights.append(-energy(samples.geometry).double() - samples.log_q)
        geometries.append(samples.geometry.positions)
    log_weight = torch.nan_to_num(torch.cat(log_weights), nan=-torch.inf)
    share = torch.from_numpy(np.asarray(normalised_weights(log_weight)))
    ess = effective_sample_size(log_weight)
    wanted = max(2, int(ess * n))
    edges = (torch.arange(wanted) + float(Streams(seed, [n]).uniform(1))) / wanted
    chosen = torch.searchsorted(share.cumsum(0).clamp(max=1.0), edges.double()).clamp(max=n - 1)
    geometry = Geometry(torch.cat(geometries)[chosen])
    return Reweighted(frames_of(dig.coordinates, dig.descriptor, geometry, energy), ess, n + wanted)


def _join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name].detach() for part in parts]).float() for name in parts[0]}
