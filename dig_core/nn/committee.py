"""Networks that were trained apart and answer together: what one of them makes of systems it has not seen is partly luck."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..diffusion import Joint
from ..errors import IncompatibleError, UnsupportedError
from ..system.descriptor import Descriptor
from ..types import State, Tangent

__all__ = ["Committee"]


class Committee(nn.Module):
    """The means of the members' answers, noise departures and log-variances; samples and densities are exact for that mean.

    Costs as many evaluations as there are members. ``members``: networks of one kind for the same coordinates, or their checkpoint
    entries, ``{"type": ..., "config": ...}``. Raises IncompatibleError for none, and for members of several kinds.
    """

    def __init__(self, members: Sequence[nn.Module | dict]):
        super().__init__()
        from . import NETWORKS  # which lists this one too

        made = [NETWORKS[m["type"]](**m["config"]) if isinstance(m, dict) else m for m in members]
        kinds = sorted({type(member).__name__ for member in made})
        if len(kinds) != 1:
            raise IncompatibleError(f"expected networks of one kind, got {', '.join(kinds) or 'none'}: train them by one recipe.")
        self.members = nn.ModuleList(made)
        self.config = {"members": [{"type": type(member).__name__, "config": member.config} for member in made]}

    def process(self, descriptor: Descriptor) -> Joint:
        """The process that noises this system, the same for all members. Raises UnsupportedError for networks of one system."""
        first = self.members[0]
        if not hasattr(first, "process"):
            raise UnsupportedError(f"a {type(first).__name__} serves the one system it was trained on: train models for this one.")
        return first.process(descriptor)  # type: ignore[operator]

    def forward(self, state: State, t: Tensor, descriptor: Descriptor) -> tuple[Tangent, Tangent]:
        """Noise departures and log-variances, shapes as the members' own."""
        answers = [member(state, t, descriptor) for member in self.members]
        noise, log_spread = ({n: torch.stack([x[n] for x in part]).mean(0) for n in part[0]} for part in zip(*answers, strict=True))
        return noise, log_spread
