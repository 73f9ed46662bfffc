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
    """The members' answers, noise departures and log-variances, averaged; samples and densities are exact for that average.

    Costs as many evaluations as there are members. Weights add up to 1. A negative one leads away from what a worse member gets wrong,
    a network less trained or smaller: where members agree nothing changes, where they differ the better ones' answers are carried on
    (autoguidance, Karras et al., arXiv:2406.02507). Log-variances are those of members with positive weights.

    ``members``: networks of one kind for the same coordinates, or their checkpoint entries, ``{"type": ..., "config": ...}``.
    ``weights``: one a member, equal if None. Raises IncompatibleError for no members, for members of several kinds, and for weights that
    are not one a member or do not add up to 1.
    """

    def __init__(self, members: Sequence[nn.Module | dict], weights: Sequence[float] | None = None):
        super().__init__()
        from . import NETWORKS  # which lists this one too

        made = [NETWORKS[m["type"]](**m["config"]) if isinstance(m, dict) else m for m in members]
        kinds = sorted({type(member).__name__ for member in made})
        if len(kinds) != 1:
            raise IncompatibleError(f"expected networks of one kind, got {', '.join(kinds) or 'none'}: train them by one recipe.")
        self.members = nn.ModuleList(made)
        self.weights = (1 / len(made),) * len(made) if weights is None else tuple(float(w) for w in weights)
        if len(self.weights) != len(made) or not abs(sum(self.weights) - 1) < 1e-6:
            raise IncompatibleError(f"expected a weight for each of {len(made)} members, together 1, got {self.weights}.")
        self.config = {
            "members": [{"type": type(member).__name__, "config": member.config} for member in made], "weights": self.weights
        }

    def process(self, descriptor: Descriptor) -> Joint:
        """The process that noises this system, the same for all members. Raises UnsupportedError for networks of one system."""
        first = self.members[0]
        if not hasattr(first, "process"):
            raise UnsupportedError(f"a {type(first).__name__} serves the one system it was trained on: train models for this one.")
        return first.process(descriptor)  # type: ignore[operator]

    def forward(self, state: State, t: Tensor, descriptor: Descriptor) -> tuple[Tangent, Tangent]:
        """Noise departures and log-variances, shapes as the members' own."""
        noise, log_spread = zip(*(member(state, t, descriptor) for member in self.members), strict=True)
        likely = [max(weight, 0.0) for weight in self.weights]
        return _sum(noise, self.weights), _sum(log_spread, [weight / sum(likely) for weight in likely])


def _sum(parts: Sequence[Tangent], weights: Sequence[float]) -> Tangent:
    """Tangents times weights, added up component by component."""
    return {name: torch.stack([w * part[name] for w, part in zip(weights, parts, strict=True)]).sum(0) for name in parts[0]}
