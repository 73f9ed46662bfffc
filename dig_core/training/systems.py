"""One network, many systems: denoising over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..score import NoiseScore, ScoreModel
from ..system.descriptor import Descriptor
from .losses import Denoising, Frames

__all__ = ["Systems"]


@dataclass(frozen=True)
class Systems:
    """:class:`Denoising` on several systems as an objective, all of the same weight.

    Each step takes ``together`` systems at random and shares the batch among them. Raises IncompatibleError for no systems, for
    frames that Denoising refuses, and for a score that is not a network's; UnsupportedError for a network of one system only.
    """

    systems: Sequence[tuple[Descriptor, Frames]]
    together: int = 8
    spread_weight: float = 0.1
    parts: list[Denoising] = field(init=False, repr=False)

    def __post_init__(self):
        if not self.systems or self.together < 1:
            raise IncompatibleError(f"expected one system or more to train on, got {len(self.systems)}, {self.together} at a time.")
        object.__setattr__(self, "parts", [Denoising(f, d, spread_weight=self.spread_weight) for d, f in self.systems])

    def __call__(self, model: ScoreModel, batch: int, order: torch.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        chosen = torch.randperm(len(self.parts), generator=order)[: self.together].tolist()
        size = max(2, batch // len(chosen))
        losses = [self.parts[k](_bound(model, self.parts[k].descriptor), size, order, noise) for k in chosen]
        return {name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]}

    def evaluate(self, model: ScoreModel, seed: int) -> dict[str, float]:
        """Mean unweighted losses over the systems, with the same times and noise at every call."""
        losses = [part.evaluate(_bound(model, part.descriptor), seed) for part in self.parts]
        return {name: sum(loss[name] for loss in losses) / len(losses) for name in losses[0]}


def _bound(model: ScoreModel, descriptor: Descriptor) -> NoiseScore:
    if not isinstance(model, NoiseScore):
        raise IncompatibleError(f"expected a NoiseScore whose network serves many systems, got a {type(model).__name__}.")
    return model.on(descriptor)
