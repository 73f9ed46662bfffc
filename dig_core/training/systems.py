"""One network, many systems: denoising over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..score import NoiseScore, ScoreModel
from ..system.descriptor import Descriptor
from ..system.elements import N_PROPERTIES
from ..system.protein import PROTEIN_SCHEMA
from ..system.surface import ADSORBATE, SURFACE_SCHEMA, frame_of, role_of
from ..types import Tangent
from .crops import cropped
from .frames import join_frames
from .losses import Denoising, Frames, denoising_loss, stratified_times

__all__ = ["Systems", "score_on"]


@dataclass(frozen=True)
class Systems:
    """:class:`Denoising` on several systems as an objective, all of the same weight.

    Systems on one slab, which differ in their lone adsorbate atom, in their conditions or in the d band that they are told alone, are
    trained on together. Each step takes ``together`` such groups at random and shares the batch among them; ``company`` further frames
    of its system help every frame to its target (:func:`.losses.averaged`), which pays where states have few dimensions. ``longest``: of
    proteins with more residues parts are trained on (:func:`.crops.cropped`), without company. ``blur``: width of the noise, anew in
    every step, that the elements of a slab are read with, so that what is learned of them carries over to others.

    Raises IncompatibleError for no systems, for frames that Denoising refuses, and for a score that is not a network's; UnsupportedError
    for a network of one system only.
    """

    systems: Sequence[tuple[Descriptor, Frames]]
    together: int = 8
    spread_weight: float = 0.1
    company: int = 0
    longest: int | None = None
    blur: float = 0.0
    parts: list[Denoising] = field(init=False, repr=False)
    groups: list[list[int]] = field(init=False, repr=False)
    _tables: list[_Group] = field(init=False, repr=False)

    def __post_init__(self):
        if not self.systems or self.together < 1:
            raise IncompatibleError(f"expected one system or more to train on, got {len(self.systems)}, {self.together} at a time.")
        object.__setattr__(self, "parts", [Denoising(f, d, spread_weight=self.spread_weight) for d, f in self.systems])
        groups: dict[tuple, list[int]] = {}
        for number, (descriptor, frames) in enumerate(self.systems):
            groups.setdefault((*_slab(descriptor), frames.force is None, frames.weight is None), []).append(number)
        object.__setattr__(self, "groups", list(groups.values()))
        object.__setattr__(self, "_tables", [_Group.of([self.parts[k] for k in group]) for group in self.groups])

    def __call__(self, model: ScoreModel, batch: int, order: torch.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        chosen = torch.randperm(len(self.groups), generator=order)[: self.together].tolist()
        size = max(2, batch // len(chosen))
        losses = [self._loss(model, self._tables[k], size, order, noise) for k in chosen]
        loss = {name: torch.stack([one[name] for one in losses]).mean() for name in losses[0]}
        return {"noise": loss["noise"], "spread": self.spread_weight * loss["spread"]}

    def _loss(self, model: ScoreModel, group: _Group, size: int, order: torch.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        """Of ``size`` frames, each of a system of the group drawn at random."""
        which = torch.randint(len(group.count), (size,), generator=order)
        frames, company = group.drawn(which, (), order), group.drawn(which, (self.company,), order) if self.company else None
        descriptor, fisher, times = group.descriptor(which), group.fisher_of(which), stratified_times(size, order)
        if self.longest is not None and descriptor.schema == PROTEIN_SCHEMA:
            descriptor, frames, fisher = cropped(descriptor, frames, fisher, self.longest, order)
            company = None
        if self.blur and descriptor.schema == SURFACE_SCHEMA:
            descriptor = _blurred(descriptor, self.blur, noise)
        return denoising_loss(score_on(model, descriptor), frames, descriptor, times, noise, fisher=fisher, company=company, shared=True)

    def evaluate(self, model: ScoreModel, seed: int) -> dict[str, float]:
        """Mean unweighted losses over the systems, with the same times and noise at every call."""
        losses = [part.evaluate(score_on(model, part.descriptor), seed) for part in self.parts]
        return {name: sum(loss[name] for loss in losses) / len(losses) for name in losses[0]}


def _blurred(descriptor: Descriptor, width: float, noise: torch.Generator) -> Descriptor:
    """With the same departure from an element's properties for all atoms of it; the adsorbate is what it is."""
    numbers, slab = descriptor.numbers.reshape(-1, descriptor.numbers.shape[-1])[0], role_of(descriptor) != ADSORBATE
    table = width * torch.randn(int(numbers.max()) + 1, N_PROPERTIES, generator=noise, dtype=torch.float64)
    return replace(descriptor, single=table[numbers] * slab[:, None])


@dataclass(frozen=True)
class _Group:
    """G systems on one slab: the first one's descriptor, tables of what differs between them, and their frames, one after the other."""

    first: Descriptor
    different: dict[str, Tensor]
    frames: Frames
    start: Tensor
    count: Tensor
    fisher: Tangent | None

    @staticmethod
    def of(parts: list[Denoising]) -> _Group:
        descriptors, fisher = [part.descriptor for part in parts], [part.fisher for part in parts]
        first, different, frames = descriptors[0], {}, parts[0].frames
        if len(parts) > 1:
            frames = join_frames([part.frames for part in parts])
            different["conditions"] = torch.stack([d.conditions for d in descriptors])
            if any(not torch.equal(d.numbers, first.numbers) for d in descriptors):
                different["numbers"] = torch.stack([d.numbers for d in descriptors])
            told = [d.single for d in descriptors if d.single is not None]
            if any(not torch.equal(single, told[0]) for single in told):
                different["single"] = torch.stack(told)
        count = torch.tensor([len(part.frames) for part in parts])
        held = [f for f in fisher if f is not None]
        stacked = {name: torch.stack([f[name] for f in held]) for name in held[0]} if held else None
        return _Group(first, different, frames, count.cumsum(0) - count, count, stacked)

    def drawn(self, which: Tensor, more: tuple[int, ...], order: torch.Generator) -> Frames:
        """(B, *more) frames at random of the systems ``which`` (B,)."""
        size, most = (len(which), *more), int(self.count.max())
        start, count = (x[which].view(-1, *(1 for _ in more)) for x in (self.start, self.count))
        if bool((self.count == most).all()):
            return self.frames.take(start + torch.randint(most, size, generator=order))
        return self.frames.take(start + (torch.rand(size, generator=order, dtype=torch.float64) * count).long())

    def descriptor(self, which: Tensor) -> Descriptor:
        """Of a batch whose row b is of the system ``which[b]``."""
        rows: dict[str, Any] = {name: table[which] for name, table in self.different.items()}
        return replace(self.first, **rows)

    def fisher_of(self, which: Tensor) -> Tangent | None:
        return None if self.fisher is None else {name: table[which] for name, table in self.fisher.items()}


def _slab(descriptor: Descriptor) -> tuple:
    """What systems of a group have in common: all but conditions, told d bands, and the element and place of a lone adsorbate atom."""
    reference = descriptor.reference
    if reference is None:
        return (id(descriptor),)
    lone = int(descriptor.mobile.sum()) == 1 and descriptor.schema == SURFACE_SCHEMA
    same = ~descriptor.mobile if lone else torch.ones_like(descriptor.mobile)
    side = tuple(frame_of(descriptor).normal.tolist()) if lone else ()
    # A slab's atoms may be told one by one what they are; what a protein is told is read of the first system alone.
    told = descriptor.single is None if descriptor.schema == SURFACE_SCHEMA else id(descriptor.single)
    cell = () if reference.cell is None else tuple(reference.cell.flatten().tolist())
    tables = (descriptor.node[same], descriptor.pair, descriptor.bonds, descriptor.mobile, descriptor.pbc, reference.positions[0, same])
    return descriptor.schema, len(descriptor.conditions), side, told, cell, *(tuple(x.flatten().tolist()) for x in tables)


def score_on(model: ScoreModel, descriptor: Descriptor) -> NoiseScore:
    """:meth:`NoiseScore.on`, for whatever model. Raises IncompatibleError for another, UnsupportedError for a network of one system."""
    if not isinstance(model, NoiseScore):
        raise IncompatibleError(f"expected a NoiseScore whose network serves many systems, got a {type(model).__name__}.")
    return model.on(descriptor)
