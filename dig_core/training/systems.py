"""One network, many systems: denoising over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..score import NoiseScore, ScoreModel
from ..system.descriptor import Descriptor
from ..system.protein import PROTEIN_SCHEMA
from ..system.surface import SURFACE_SCHEMA, frame_of
from ..types import Tangent
from .crops import cropped
from .frames import join_frames
from .losses import Denoising, Frames, denoising_loss, stratified_times

__all__ = ["Systems", "score_on"]


@dataclass(frozen=True)
class Systems:
    """:class:`Denoising` on several systems as an objective, all of the same weight.

    Systems on one slab, which differ in their lone adsorbate atom or in their conditions alone, are trained on together. Each
    step takes ``together`` such groups at random and shares the batch among them; ``company`` further frames of its system help
    every frame to its target (:func:`.losses.averaged`), which pays where states have few dimensions. ``longest``: of proteins
    with more residues parts are trained on (:func:`.crops.cropped`), without company. Raises IncompatibleError for no systems, for
    frames that Denoising refuses, and for a score that is not a network's; UnsupportedError for a network of one system only.
    """

    systems: Sequence[tuple[Descriptor, Frames]]
    together: int = 8
    spread_weight: float = 0.1
    company: int = 0
    longest: int | None = None
    parts: list[Denoising] = field(init=False, repr=False)
    groups: list[list[int]] = field(init=False, repr=False)

    def __post_init__(self):
        if not self.systems or self.together < 1:
            raise IncompatibleError(f"expected one system or more to train on, got {len(self.systems)}, {self.together} at a time.")
        object.__setattr__(self, "parts", [Denoising(f, d, spread_weight=self.spread_weight) for d, f in self.systems])
        groups: dict[tuple, list[int]] = {}
        for number, (descriptor, frames) in enumerate(self.systems):
            groups.setdefault((*_slab(descriptor), frames.force is None, frames.weight is None), []).append(number)
        object.__setattr__(self, "groups", list(groups.values()))

    def __call__(self, model: ScoreModel, batch: int, order: torch.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        chosen = torch.randperm(len(self.groups), generator=order)[: self.together].tolist()
        size = max(2, batch // len(chosen))
        losses = [self._loss(model, self.groups[k], size, order, noise) for k in chosen]
        loss = {name: torch.stack([one[name] for one in losses]).mean() for name in losses[0]}
        return {"noise": loss["noise"], "spread": self.spread_weight * loss["spread"]}

    def _loss(self, model: ScoreModel, group: list[int], size: int, order: torch.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        """Of ``size`` frames, each of a system of the group drawn at random."""
        which = torch.randint(len(group), (size,), generator=order).sort().values
        counts = torch.bincount(which, minlength=len(group)).tolist()
        drawn = [(self.parts[k].frames, count) for k, count in zip(group, counts, strict=True)]
        frames, company = _drawn(drawn, (), order), _drawn(drawn, (self.company,), order) if self.company else None
        descriptor, fisher, times = self._descriptor(group, which), self._fisher(group, which), stratified_times(size, order)
        if len(group) > 1:
            # Both rise with the row: unmixed, each system would see one stretch of the noise and never the rest.
            times = times[torch.randperm(size, generator=order)]
        if self.longest is not None and descriptor.schema == PROTEIN_SCHEMA:
            descriptor, frames, fisher = cropped(descriptor, frames, fisher, self.longest, order)
            company = None
        return denoising_loss(score_on(model, descriptor), frames, descriptor, times, noise, fisher=fisher, company=company, shared=True)

    def _descriptor(self, group: list[int], which: Tensor) -> Descriptor:
        """Of a batch whose row b is of system ``group[which[b]]``."""
        descriptors = [self.systems[k][0] for k in group]
        first = descriptors[0]
        if len(group) == 1:
            return first
        conditions = torch.stack([d.conditions for d in descriptors])[which]
        if all(torch.equal(d.numbers, first.numbers) for d in descriptors):
            return replace(first, conditions=conditions)
        return replace(first, conditions=conditions, numbers=torch.stack([d.numbers for d in descriptors])[which])

    def _fisher(self, group: list[int], which: Tensor) -> Tangent | None:
        informations = [self.parts[k].fisher for k in group]
        if any(one is None for one in informations):
            return None
        return {name: torch.stack([one[name] for one in informations if one is not None])[which] for name in informations[0] or {}}

    def evaluate(self, model: ScoreModel, seed: int) -> dict[str, float]:
        """Mean unweighted losses over the systems, with the same times and noise at every call."""
        losses = [part.evaluate(score_on(model, part.descriptor), seed) for part in self.parts]
        return {name: sum(loss[name] for loss in losses) / len(losses) for name in losses[0]}


def _slab(descriptor: Descriptor) -> tuple:
    """What systems of a group have in common: all but the conditions, and but the element and place of a lone adsorbate atom."""
    reference = descriptor.reference
    if reference is None:
        return (id(descriptor),)
    lone, side = int(descriptor.mobile.sum()) == 1 and descriptor.schema == SURFACE_SCHEMA, ()
    same = ~descriptor.mobile if lone else torch.ones_like(descriptor.mobile)
    if lone:
        side = tuple(frame_of(descriptor).normal.tolist())
        side += () if descriptor.single is None else tuple(descriptor.single[same].flatten().tolist())
    cell = () if reference.cell is None else tuple(reference.cell.flatten().tolist())
    tables = (descriptor.node[same], descriptor.pair, descriptor.bonds, descriptor.mobile, descriptor.pbc, reference.positions[0, same])
    return descriptor.schema, len(descriptor.conditions), side, cell, *(tuple(x.flatten().tolist()) for x in tables)


def _drawn(counts: list[tuple[Frames, int]], more: tuple[int, ...], order: torch.Generator) -> Frames:
    """(count, *more) frames at random of each, one after the other."""
    return join_frames([frames.take(torch.randint(len(frames), (count, *more), generator=order)) for frames, count in counts])


def score_on(model: ScoreModel, descriptor: Descriptor) -> NoiseScore:
    """:meth:`NoiseScore.on`, for whatever model. Raises IncompatibleError for another, UnsupportedError for a network of one system."""
    if not isinstance(model, NoiseScore):
        raise IncompatibleError(f"expected a NoiseScore whose network serves many systems, got a {type(model).__name__}.")
    return model.on(descriptor)
