"""One network, many molecules: denoising over padded batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..coordinates.internal import SIBLING, Internal
from ..diffusion import Diffusion, Euclidean, Joint, Karras, LogSNR, Torus
from ..errors import IncompatibleError
from ..nn.conformer import ConformerGraphormer
from ..nn.rows import Rows, stacked
from ..score import NoiseScore, ScoreModel
from ..system.descriptor import Descriptor
from ..types import State
from .losses import Denoising, Frames, denoising_loss, stratified_times

__all__ = ["Molecules", "handed", "internal_process"]

_ALIKE = 64  # molecules of nearly one size that a batch is drawn from


def internal_process(shape: int, torsion: int) -> Joint:
    """How internal coordinates are noised: shape coordinates fade into their standard normal law, torsions turn on the torus."""
    return Joint(shape=Diffusion(Euclidean(shape), LogSNR(4.5, -4.0)), torsion=Diffusion(Torus(torsion), Karras(0.05, 2.5)))


@dataclass(frozen=True)
class Molecules:
    """:class:`Denoising` of many molecules by one :class:`ConformerGraphormer`, all of the same weight.

    ``systems``: coordinates, descriptor and frames of each; frames are drawn by their weights where they have them. A batch mixes
    molecules of nearly one size and shows half of its frames in a mirror: the law of a mirror image is the mirrored law. Padding adds a
    constant to the loss that no parameter changes. ``device``: where the molecules are kept, the model's.

    Raises IncompatibleError for no systems and for frames that Denoising refuses.
    """

    systems: Sequence[tuple[Internal, Descriptor, Frames]]
    spread_weight: float = 0.1
    device: str = "cpu"
    rows: Rows = field(init=False, repr=False)
    odd: Tensor = field(init=False, repr=False)
    state: State = field(init=False, repr=False)
    share: Tensor = field(init=False, repr=False)

    def __post_init__(self):
        if not self.systems:
            raise IncompatibleError("expected one molecule or more to train on, got none.")
        for _, descriptor, frames in self.systems:
            Denoising(frames, descriptor)
        systems = sorted(self.systems, key=lambda one: one[1].n_atoms)
        rows = stacked([(coordinates, descriptor) for coordinates, descriptor, _ in systems])
        most = max(len(frames) for _, _, frames in systems)
        sizes = {"shape": rows.centre.shape[1], "torsion": rows.torsion.shape[1]}
        state = {name: torch.zeros(len(systems), most, size) for name, size in sizes.items()}
        share, odd = torch.zeros(len(systems), most), torch.zeros(len(systems), sizes["shape"], dtype=torch.bool)
        for number, (coordinates, _, frames) in enumerate(systems):
            for name, x in frames.state.items():
                state[name][number, : len(x), : x.shape[1]] = x
            share[number, : len(frames)] = 1.0 if frames.weight is None else frames.weight
            odd[number, : len(coordinates.centre)] = handed(coordinates)
        rows, odd = Rows(*(x.to(self.device) for x in rows)), odd.to(self.device)
        state = {name: x.to(self.device) for name, x in state.items()}
        for name, value in (("rows", rows), ("odd", odd), ("state", state), ("share", share)):
            object.__setattr__(self, name, value)

    def __call__(self, model: ScoreModel, batch: int, order: torch.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        alike = min(_ALIKE, len(self.share))
        first = int(torch.randint(len(self.share) - alike + 1, (1,), generator=order))
        which = torch.randint(first, first + alike, (batch,), generator=order)
        loss = self._loss(model, which, order, noise)
        return {"noise": loss["noise"], "spread": self.spread_weight * loss["spread"]}

    @torch.no_grad()
    def evaluate(self, model: ScoreModel, seed: int, each: int = 16) -> dict[str, float]:
        """Mean losses of ``each`` frames a molecule, with the same frames, times and noise at every call."""
        order, noise = (torch.Generator().manual_seed(seed + k) for k in (0, 1))
        losses = []
        for low in range(0, len(self.share), 8):
            which = torch.arange(low, min(low + 8, len(self.share))).repeat_interleave(each)
            losses.append({name: float(x) * len(which) for name, x in self._loss(model, which, order, noise).items()})
        return {name: sum(loss[name] for loss in losses) / (each * len(self.share)) for name in losses[0]}

    def _loss(self, model: ScoreModel, which: Tensor, order: torch.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        if not isinstance(model, NoiseScore) or not isinstance(model.network, ConformerGraphormer):
            raise IncompatibleError(f"expected a NoiseScore of a ConformerGraphormer, got a {type(model).__name__}.")
        frame = torch.multinomial(self.share[which], 1, generator=order)[:, 0]
        mirror = torch.where(torch.rand(len(which), 1, generator=order) < 0.5, -1.0, 1.0).to(self.device)
        times = stratified_times(len(which), order)[torch.randperm(len(which), generator=order)]
        which, frame = which.to(self.device), frame.to(self.device)
        rows = self.rows.take(which)
        sign = torch.where(self.odd[which], mirror, 1.0)[:, : rows.centre.shape[1]]
        state = {
            "shape": sign * self.state["shape"][which, frame][:, : rows.centre.shape[1]],
            "torsion": mirror * self.state["torsion"][which, frame][:, : rows.torsion.shape[1]],
        }
        rows = rows._replace(centre=sign * rows.centre)
        bound = NoiseScore(model.network.bound(rows), internal_process(rows.centre.shape[1], rows.torsion.shape[1]))
        return denoising_loss(bound, Frames(state), self.systems[0][1], times, noise)


def handed(coordinates: Internal) -> Tensor:
    """(D,) bool, shape columns that change their sign in a mirror, torsions and what stands across a plane."""
    kinds, last = coordinates.kind_index, torch.zeros(len(coordinates.centre), dtype=torch.bool)
    for atom in coordinates.zmatrix.straight:
        last[max(c for c, atoms in enumerate(coordinates.shape_atoms) if atoms[0] == atom)] = True
    return (kinds == SIBLING) | last
