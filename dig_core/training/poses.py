"""Many ligands in many pockets: denoising over all of them, every frame of a batch another complex."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..coordinates.complex import Complex
from ..coordinates.scaffold import Scaffold
from ..coordinates.scene import Scene
from ..errors import IncompatibleError
from ..nn.pose import PoseGraphormer
from ..score import NoiseScore, ScoreModel
from ..system.descriptor import Descriptor
from ..types import State, Tangent
from .losses import Frames, denoising_loss, stratified_times

__all__ = ["Poses"]

_EMPHASIS = {"place": 1.0, "turn": 1.0, "torsion": 0.5, "shape": 0.05}
"""Weight of each component's squared error: six numbers place a ligand, over a hundred are its bonds and angles."""


@dataclass(frozen=True)
class Poses:
    """Denoising score matching on poses of several complexes as an objective; also what validates it.

    ``systems`` with frames of each in the coordinates of :class:`~dig_core.coordinates.bound.Bound`; ``weight`` (M,) how often each is
    drawn, alike if None; ``jitter`` Angstrom by which pocket atoms are shaken at every training step, so that a pocket
    is known by more than its exact distances. States are padded to one size, so that a batch holds any mixture. All is computed where
    the network's weights are. Raises IncompatibleError for no systems, and for a score that is not a :class:`PoseGraphormer`'s.
    """

    systems: Sequence[tuple[Complex, Frames]]
    spread_weight: float = 0.1
    weight: Tensor | None = None
    jitter: float = 0.0
    scene: Scene = field(init=False, repr=False)
    scaffold: Scaffold = field(init=False, repr=False)
    frames: State = field(init=False, repr=False)
    sizes: Tensor = field(init=False, repr=False)
    first: Tensor = field(init=False, repr=False)

    def __post_init__(self):
        if not self.systems:
            raise IncompatibleError("expected poses of one complex or more to train on, got none.")
        complexes = [system for system, _ in self.systems]
        object.__setattr__(self, "scene", Scene.of(complexes))
        object.__setattr__(self, "scaffold", Scaffold.of(complexes))
        shapes, torsions = self.scaffold.centre.shape[1], self.scaffold.fold.shape[1]
        padded = [_padded(frames.state, shapes, torsions) for _, frames in self.systems]
        object.__setattr__(self, "frames", {name: torch.cat([one[name] for one in padded]) for name in padded[0]})
        object.__setattr__(self, "sizes", torch.tensor([len(frames) for _, frames in self.systems]))
        object.__setattr__(self, "first", self.sizes.cumsum(0) - self.sizes)

    def __call__(self, model: ScoreModel, batch: int, order: torch.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        share = torch.ones(len(self.systems)) if self.weight is None else self.weight
        which = torch.multinomial(share, batch, replacement=True, generator=order)
        pick = (torch.rand(batch, generator=order) * self.sizes[which]).long()
        loss = self._loss(model, which, pick, stratified_times(batch, order), noise, self.jitter)
        return {"noise": loss["noise"], "spread": self.spread_weight * loss["spread"]}

    def evaluate(self, model: ScoreModel, seed: int) -> dict[str, float]:
        """Mean losses over some frames of every system, with the same times and noise at every call."""
        rng = torch.Generator().manual_seed(seed)
        which = torch.arange(len(self.systems)).repeat(4)
        pick = (torch.rand(len(which), generator=rng) * self.sizes[which]).long()
        times = stratified_times(len(which), rng)[torch.randperm(len(which), generator=rng)]
        parts = [self._loss(model, w, p, t, rng) for w, p, t in zip(which.split(64), pick.split(64), times.split(64), strict=True)]
        return {name: sum(float(part[name].detach()) for part in parts) / len(parts) for name in parts[0]}

    def _loss(
        self, model: ScoreModel, which: Tensor, pick: Tensor, t: Tensor, rng: torch.Generator, jitter: float = 0.0
    ) -> dict[str, Tensor]:
        if not isinstance(model, NoiseScore) or not isinstance(model.network, PoseGraphormer):
            raise IncompatibleError(f"expected a NoiseScore of a PoseGraphormer, got a {type(model).__name__}.")
        network, like = model.network, model.network.kind.weight
        state = {name: x[self.first[which] + pick] for name, x in self.frames.items()}
        scene, scaffold, which = self._held("scene", like), self._held("scaffold", like), which.to(like.device)
        process = network.joint(state["shape"].shape[1], state["torsion"].shape[1])
        seen = NoiseScore(_Seen(network, scene, scaffold, which, jitter, rng), process)
        real = {"torsion": scene.turns_real[which], "shape": scene.shapes_real[which]}
        return denoising_loss(seen, Frames(state), self.systems[0][0], t, rng, real=real, emphasis=_EMPHASIS)

    def _held(self, name: str, like: Tensor):
        """Moved once: to where the network is."""
        key, wanted = f"_{name}_there", (like.device, like.dtype)
        if key not in self.__dict__ or self.__dict__[key][0] != wanted:
            found = getattr(self, name)
            self.__dict__[key] = (wanted, found.to(like) if name == "scene" else found.to(like.device))
        return self.__dict__[key][1]


class _Seen(nn.Module):
    """The network of a batch of padded states, row b of system ``which[b]``; their pockets' atoms are shaken at every look."""

    def __init__(
        self, network: PoseGraphormer, scene: Scene, scaffold: Scaffold, which: Tensor, jitter: float, rng: torch.Generator
    ) -> None:
        super().__init__()
        self.network, self.scene, self.scaffold, self.which, self.jitter, self.rng = network, scene, scaffold, which, jitter, rng

    def forward(self, state: State, t: Tensor, descriptor: Descriptor) -> tuple[Tangent, Tangent]:
        scene, state = self.scene, {"torsion": state["shape"].new_zeros(len(t), 0), **state}  # no ligand may have any
        if self.jitter:
            noise = torch.randn(scene.wall_at.shape, generator=self.rng).to(scene.wall_at)
            scene = replace(scene, wall_at=scene.wall_at + self.jitter * noise)
        with torch.no_grad():
            ligand = self.scaffold.place(state, self.which, self.network.coordinates.width)
        return self.network.look(state, ligand, t, scene, self.which)


def _padded(state: State, shapes: int, torsions: int) -> State:
    pad = torch.nn.functional.pad
    torsion = state.get("torsion", state["shape"].new_zeros(len(state["shape"]), 0))
    return {
        "place": state["place"].float(), "turn": state["turn"].float(),
        "shape": pad(state["shape"].float(), (0, shapes - state["shape"].shape[1])),
        "torsion": pad(torsion.float(), (0, torsions - torsion.shape[1])),
    }  # fmt: skip
