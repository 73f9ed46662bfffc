"""One call from structures or trajectories to a model of one protein's backbone, or of any protein's."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from dig_core.coordinates import Backbone
from dig_core.dig import Card, DiG
from dig_core.errors import IncompatibleError
from dig_core.files import owned
from dig_core.nn import BackboneGraphormer
from dig_core.progress import Show
from dig_core.random import as_seed
from dig_core.score import NoiseScore
from dig_core.system.descriptor import Descriptor
from dig_core.system.protein import residues
from dig_core.training.fit import Fitted, Progress, Stage, Task
from dig_core.training.fit import fit as run_stages
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Frames
from dig_core.training.stages import Denoise, Physics
from dig_core.training.systems import Systems
from dig_core.types import Geometry

from ..models import load
from .backbones import Backbones
from .observables import pairwise_rmsd, superpose

__all__ = ["fit_backbones", "untrained_backbones"]

_STEPS = 40  # of the sampler
_CLIP = 1e4  # of the gradient, which sums over residues
_PARTING = (0.4, 0.8)  # of time, about 4 to 200 Angstrom
_WAKING = 200  # steps in which a network finds out how much of its answer known structures give
_MANY = 32  # structures in each of them
_COMPARED = 100  # frames among which the most central one is looked for


def untrained_backbones(descriptor: Descriptor, *, any_protein: bool = False, seed: int = 0, **network) -> DiG:
    """A model of ``descriptor``'s backbone that knows nothing yet; of any protein if asked, without features of single residues.

    It reads the descriptor's reference structure and embeddings, if it has them. ``network``: of
    :class:`~dig_core.nn.BackboneGraphormer`, such as ``width`` or ``process``.
    """
    count = len(residues(descriptor).kind)
    single, couple = (0 if given is None else given.shape[-1] for given in (descriptor.single, descriptor.couple))
    made = {"members": None if any_protein else count, "reference": descriptor.reference is not None} | network
    made = {"single": single, "couple": couple, "seed": seed} | made
    fresh = BackboneGraphormer(**made)
    model = NoiseScore(fresh, fresh.process(descriptor)).eval().requires_grad_(False)
    return DiG(model, Backbone(fresh.coordinates.scale), descriptor, Card(name="untrained", steps=_STEPS))


def fit_backbones(
    data: Backbones | tuple[Descriptor, Frames] | Sequence[Backbones | tuple[Descriptor, Frames]],
    model: DiG | str | Path | None = None, *, held_out: Sequence[int] = (), steps: int = 3000, batch: int = 8, rate: float = 1e-3,
    longest: int = 128, apart: int = 0, company: int = 0, physics: int = 0,
    device: str | torch.device = "cpu", out: str | Path | None = None, seed: int | None = None, progress: Show = None,
    **network,
) -> Fitted:  # fmt: skip
    """Train on backbones: a model of that protein if there is one, of any protein if there are several.

    Parameters
    ----------
    data: what :func:`~.backbones.read_backbones` returns, or a descriptor and :class:`~dig_core.training.losses.Frames` in
        :class:`~dig_core.coordinates.Backbone` coordinates, with forces where there are some
        (:func:`dig_plugins.openmm.frame_forces`): they are learned from too. One protein, or a list. Of what was read from files the
        most central structure becomes the reference.
    model: None for an untrained network, a model or its name to go on from; with ``known`` in ``network`` it is given that many of the
        frames that it is trained on, and first of all learns how much of the answer is theirs, from half of them.
    held_out: of one protein, frames that are not trained on but watched.
    steps, batch, rate: of training; batch in structures.
    longest: of several proteins, residues of the parts that are trained on.
    apart: of one protein, further steps with half of the times from those at which its states part, noise of 4 to 200 Angstrom: where
        draws crowd in the middle of what was trained on.
    company: further frames that help each one to its target, see :func:`~dig_core.training.losses.averaged`. It pays for one protein
        in few states, where noise leaves a choice between frames.
    physics: of one protein with forces, further steps on the Fokker-Planck equation and the forces at its edge (PIDP, article eq. 4).
        Forces on frames are the mean force only on average over what the frames forget.
    device: that trains, such as ``"cuda"``; the model comes back on the processor.
    out: directory of checkpoints; an interrupted call goes on from there. seed: give one to repeat a training.

    Raises
    ------
    IncompatibleError: no data; physics without forces. CheckpointError: ``out`` holds another training.
    """
    several = [data] if isinstance(data, Backbones) or _is_pair(data) else list(data)  # type: ignore[arg-type]
    if not several:
        raise IncompatibleError("expected the backbones of one protein or of several, got none.")
    if len(several) > 1 and (physics or apart or company or len(held_out)):
        raise IncompatibleError("apart, company, physics and held_out are for one protein, got several: train on one.")
    began, seed = time.monotonic(), as_seed(seed)
    systems = [one if _is_pair(one) else _read(one) for one in several]  # type: ignore[arg-type, misc]
    aside = torch.zeros(len(systems[0][1]), dtype=torch.bool)
    aside[torch.as_tensor(list(held_out), dtype=torch.long)] = True
    dig = _begun(model, systems, ~aside, seed % 2**31, network)
    dig.model.to(device)  # type: ignore[attr-defined]
    out = owned(out, [descriptor.node.numpy().tobytes() for descriptor, _ in systems], "protein")
    some = max(1, steps // 20)
    config = LoopConfig(steps, batch, rate, warmup=min(100, some), average=0.998, clip=_CLIP, every=some)
    done = (
        _one(dig, systems[0][1], aside, config, apart, company, physics, bool(network.get("known")), out, seed % 2**31, progress)
        if len(systems) == 1 else _several(dig, systems, longest, config, out, seed % 2**31, progress)
    )  # fmt: skip
    done.dig.model.to("cpu")  # type: ignore[attr-defined]
    if done.finished:
        card = dataclasses.replace(done.dig.card, name="backbones", history=done.history, scope=_scope(systems), steps=_STEPS)
        done = dataclasses.replace(done, dig=dataclasses.replace(done.dig, card=card))
        if out is not None:
            done.dig.save(out / "model.safetensors")
    return Fitted(done.dig, math.nan, math.nan, 0, time.monotonic() - began, done.history, done.finished)


def _is_pair(given) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Descriptor)


def _central(backbones: Backbones) -> Descriptor:
    """The descriptor with the frame as its reference whose mean RMSD to the others is least: no state is far from it."""
    positions = backbones.geometry.positions
    some = np.unique(np.linspace(0, len(positions) - 1, _COMPARED).astype(int))
    alpha = positions[torch.from_numpy(some)][:, residues(backbones.descriptor).atoms[:, 1]].numpy()
    central = int(some[pairwise_rmsd(alpha).mean(1).argmin()])
    return dataclasses.replace(backbones.descriptor, reference=Geometry(positions[central : central + 1]))


def _read(backbones: Backbones) -> tuple[Descriptor, Frames]:
    """float32 frames that lie on the reference, as those that help each other must; a lone one counts twice: they are at least two."""
    descriptor, alpha = _central(backbones), residues(backbones.descriptor).atoms[:, 1].numpy()
    laid = superpose(backbones.geometry.positions.numpy(), descriptor.reference.positions[0].numpy(), on=alpha)  # type: ignore[union-attr]
    state, _ = Backbone().encode(Geometry(torch.from_numpy(laid)), descriptor)
    twice = torch.arange(max(2, len(laid))) % len(laid)
    return descriptor, Frames({name: x[twice].float() for name, x in state.items()})


def _begun(
    model: DiG | str | Path | None, systems: list[tuple[Descriptor, Frames]], chosen: torch.Tensor, seed: int, network: dict
) -> DiG:  # fmt: skip
    """What training starts from, on the ``chosen`` frames of the first protein; what is given is left as it is."""
    first, frames = systems[0][0], systems[0][1].take(chosen.nonzero()[:, 0])
    if network.get("known"):
        network = network | {"known": min(len(frames), network["known"])}
    if model is None:
        dig = untrained_backbones(first, any_protein=len(systems) > 1, seed=seed, **network)
    else:
        dig = (model if isinstance(model, DiG) else load(model)).on(first)
        dig = dataclasses.replace(dig, model=_enlarged(dig.model, network) if network else copy.deepcopy(dig.model))
    return dig


def _enlarged(model: NoiseScore, network: dict) -> NoiseScore:
    """The same with what ``network`` adds, which says nothing until it is trained; another size of what is there is refused."""
    fresh = BackboneGraphormer(**{**model.network.config, **network})  # type: ignore[dict-item]
    known, wanted = model.network.state_dict(), fresh.state_dict()
    wrong = sorted(name for name, x in known.items() if name not in wanted or wanted[name].shape != x.shape)
    if wrong:
        raise IncompatibleError(f"expected options that add to the given model, {network} change {wrong[0]}: train one from the start.")
    fresh.load_state_dict(wanted | known)
    return NoiseScore(fresh, model.process).eval().requires_grad_(False)


def _one(
    dig: DiG, frames: Frames, aside: torch.Tensor, config: LoopConfig, apart: int, company: int, physics: int, waking: bool,
    out: Path | None, seed: int, progress: Show,
) -> Progress:  # fmt: skip
    """Trained on one protein, by the stages that any system is trained by."""
    if physics and frames.force is None:
        raise IncompatibleError("physics needs forces: make the frames with dig_plugins.openmm.frame_forces.")
    stages: list[Stage] = []
    if waking:
        many, every = max(_MANY, config.batch), max(1, _WAKING // 5)
        first = dataclasses.replace(config, steps=_WAKING, batch=many, rate=2 * config.rate, clip=100.0, every=every)
        gates = Denoise(first, company=company, between=_PARTING, only="network.known_structures.gates")
        stages += [_Remember(2), gates, _Remember(1)]
    if config.steps:
        stages.append(Denoise(config, company=company))
    if apart:
        later = dataclasses.replace(config, steps=apart, rate=0.6 * config.rate, every=max(1, apart // 10))
        stages.append(Denoise(later, company=company, between=_PARTING))
    if physics:
        later = dataclasses.replace(config, steps=physics, rate=0.1 * config.rate, every=max(1, physics // 10))
        stages.append(Physics(later, trust=None))  # all frames alike: their forces are right on average only
    return run_stages(
        dig, stages, frames=frames.take((~aside).nonzero()[:, 0]), validation=frames.take(aside.nonzero()[:, 0]) if aside.any() else None,
        directory=None if out is None else out / "stages", seed=seed, progress=progress,
    )  # fmt: skip


@dataclass(frozen=True)
class _Remember:
    """Stage: the network is given one of ``every`` frames to know; from those it does not know it learns what knowing others is worth."""

    every: int
    name: str = field(default="remember", init=False)

    def run(self, progress: Progress, task: Task) -> Progress:
        network, frames = progress.dig.model.network, progress.frames  # type: ignore[attr-defined]
        network.look_at(frames.take(slice(None, None, self.every)).state)  # type: ignore[union-attr]
        return progress


def _several(
    dig: DiG, systems: list[tuple[Descriptor, Frames]], longest: int, config: LoopConfig, out: Path | None, seed: int, progress: Show
) -> Progress:  # fmt: skip
    """Trained on parts of several proteins, one a step."""
    model = dig.model.requires_grad_(True)  # type: ignore[attr-defined]
    objective = Systems(systems, together=1, longest=longest)
    found = optimise(model, objective, dataclasses.replace(config, seed=seed), directory=out, progress=progress, label="backbones")
    model.requires_grad_(False)
    return Progress(dig, history=[{"stage": "denoise", "proteins": len(systems), "steps": found.steps}], finished=found.finished)


def _scope(systems: list[tuple[Descriptor, Frames]]) -> dict:
    """What the card says of the data: residues and structures of each protein."""
    return {"residues": [len(residues(d).kind) for d, _ in systems], "structures": [len(f) for _, f in systems]}
