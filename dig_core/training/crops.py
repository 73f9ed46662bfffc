"""Parts of proteins to train on: runs of residues, and what stands near them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..system.descriptor import Descriptor
from ..system.protein import crop, residues
from ..types import Tangent
from .losses import Frames

__all__ = ["cropped"]


def cropped(
    descriptor: Descriptor, frames: Frames, fisher: Tangent | None, longest: int, order: torch.Generator
) -> tuple[Descriptor, Frames, Tangent | None]:
    """At most ``longest`` residues of a protein, the same ones of its frames and of their forces' information (B, N, 3), chosen anew
    at every call.

    Half the time a run along the sequence; otherwise the residues nearest in the first frame to one of them. The law of a
    part is the whole's with the rest integrated out, and so is the mean of its forces: both stay what is learned from.
    """
    known, pos = residues(descriptor), frames.state["pos"]
    n = len(known.kind)
    if n <= longest:
        return descriptor, frames, fisher
    start = int(torch.randint(n, (1,), generator=order))
    if float(torch.rand(1, generator=order)) < 0.5:
        first = min(start, n - longest)
        chosen = torch.arange(first, first + longest)
    else:
        chosen = (pos[0] - pos[0, start]).norm(dim=-1).argsort()[:longest].sort().values
    fisher = None if fisher is None else {name: x[..., chosen, :] for name, x in fisher.items()}
    force = None if frames.force is None else _part(frames.force, chosen)
    return crop(descriptor, chosen), Frames(_part(frames.state, chosen), force, frames.weight), fisher


def _part(tangent: Tangent, chosen: Tensor) -> Tangent:
    """Positions about the centroid of what is left, and forces without the one on it."""
    pos = tangent["pos"][:, chosen]
    return {"pos": pos - pos.mean(1, keepdim=True), "rot": tangent["rot"][:, chosen]}
