"""One network, many systems: denoising over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..score import NoiseScore, ScoreModel
from ..system.descriptor import Descriptor
from ..types import Tangent
from .losses import Frames, denoising_loss, fisher_information, stratified_times

__all__ = ["Systems"]


@dataclass(frozen=True)
class Systems:
    """Denoising score matching on several systems as an objective.

    Each step takes ``together`` systems at random, by ``weight`` (one number a system, even if None), and shares the batch
    among them. Forces of the frames blend the targets, a Fisher information a system. Raises IncompatibleError for no systems,
    or a model whose network serves one system only.
    """

    systems: Sequence[tuple[Descriptor, Frames]]
    together: int = 8
    weight: Sequence[float] | None = None
    spread_weight: float = 0.1
    fisher: list[Tangent | None] = field(init=False, repr=False)

    def __post_init__(self):
        if not self.systems:
            raise IncompatibleError("expected at least one system to train on, got none.")
        object.__setattr__(self, "fisher", [None if f.force is None else fisher_information(f.force) for _, f in self.systems])

    def __call__(self, model: ScoreModel, batch: int, order: torch.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        share = torch.ones(len(self.systems)) if self.weight is None else torch.as_tensor(self.weight, dtype=torch.float32)
        chosen = torch.multinomial(share, min(self.together, len(self.systems)), generator=order)
        size = max(2, batch // len(chosen))
        total = {"noise": torch.zeros(()), "spread": torch.zeros(())}
        for number in chosen.tolist():
            descriptor, frames = self.systems[number]
            part = frames.take(torch.randint(len(frames), (size,), generator=order))
            loss = denoising_loss(
                _bound(model, descriptor), part, descriptor, stratified_times(size, order), noise, fisher=self.fisher[number]
            )
            total = {"noise": total["noise"] + loss["noise"] / len(chosen), "spread": total["spread"] + loss["spread"] / len(chosen)}
        return {"noise": total["noise"], "spread": self.spread_weight * total["spread"]}

    def evaluate(self, model: ScoreModel, seed: int) -> dict[str, float]:
        """Mean losses over the systems, with the same times and noise at every call."""
        rng = torch.Generator().manual_seed(seed)
        sums = {"noise": 0.0, "spread": 0.0}
        for number, (descriptor, frames) in enumerate(self.systems):
            times = stratified_times(len(frames), rng)
            loss = denoising_loss(_bound(model, descriptor), frames, descriptor, times, rng, fisher=self.fisher[number])
            sums = {name: value + float(loss[name]) / len(self.systems) for name, value in sums.items()}
        return sums


def _bound(model: ScoreModel, descriptor: Descriptor) -> NoiseScore:
    if not isinstance(model, NoiseScore):
        raise IncompatibleError(f"expected a NoiseScore whose network serves many systems, got a {type(model).__name__}.")
    return model.on(descriptor)
