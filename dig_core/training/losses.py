"""Denoising score matching (article, eq. 5), with targets blended from forces where they are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..diffusion.processes import Noised
from ..errors import IncompatibleError
from ..score import ScoreModel
from ..system.descriptor import Descriptor
from ..types import State, Tangent
from .team import own_rows

__all__ = ["Denoising", "Frames", "Objective", "averaged", "blend", "denoising_loss", "fisher_information", "stratified_times"]


@dataclass(frozen=True)
class Frames:
    """Training data in a model's coordinates.

    ``state`` F points; ``force`` grad log p at them in the same coordinates (Jacobian included) or None; ``weight`` (F,)
    non-negative importance weights or None.
    """

    state: State
    force: Tangent | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(next(iter(self.state.values())))

    def take(self, index: Tensor | slice) -> Frames:
        """The frames at ``index`` (M,)."""
        pick = {name: x[index] for name, x in self.state.items()}
        force = None if self.force is None else {name: f[index] for name, f in self.force.items()}
        return Frames(pick, force, None if self.weight is None else self.weight[index])

    def to(self, device: torch.device) -> Frames:
        """The same on another device."""
        state, force = (None if part is None else {n: x.to(device) for n, x in part.items()} for part in (self.state, self.force))
        return Frames(state, force, None if self.weight is None else self.weight.to(device))  # type: ignore[arg-type]


class Objective(Protocol):
    """What a training step makes small: the sum of the scalars returned for a batch.

    ``order`` picks frames and times, ``noise`` draws the noise: two generators, so that both orders can be kept apart.
    """

    def __call__(self, model: ScoreModel, batch: int, order: torch.Generator, noise: torch.Generator) -> dict[str, Tensor]: ...


def fisher_information(force: Tangent) -> Tangent:
    """E[force^2] of each coordinate, (*shape) a component."""
    return {name: (f.double() ** 2).mean(0).to(f.dtype) for name, f in force.items()}


def blend(model: ScoreModel, frames: Frames, noised: Noised, t: Tensor, fisher: Tangent | None) -> Tangent:
    """Regression targets of the noise: denoising noise mixed with -sigma force / alpha (target score matching, arXiv:2402.08667).

    Both have the posterior mean of the noise as their conditional mean, so has any blend. The weight of the force,
    a / (a + I) with a = alpha^2 / sigma^2 and I the Fisher information of the coordinate, cancels the variance for normal
    data altogether. The force is carried along from the clean to the noised point: it turns with a body.
    """
    if frames.force is None or fisher is None:
        return noised.noise
    targets = {}
    for name, process in model.process.items():
        alpha, sigma = process.levels(t)
        weight = alpha**2 / (alpha**2 + sigma**2 * fisher[name])
        force = process.space.transport(frames.state[name], noised.state[name], frames.force[name])
        targets[name] = (1 - weight) * noised.noise[name] - weight * sigma / alpha * force
    return targets


def averaged(model: ScoreModel, frames: Frames, company: Frames, noised: Noised, t: Tensor, fisher: Tangent | None) -> Tangent:
    """:func:`blend`, averaged over all frames that a noised state may have come from: the one it did and R more of its system.

    ``company`` holds (B, R, *shape) a component. Given the R + 1 frames, of which the true one is any, the average with their
    posterior weights is the mean of the target: the same regression with less noise (cf. arXiv:2302.00670, there with a bias).
    """
    count = 1 + next(iter(company.state.values())).shape[1]

    def together(own: Tangent, others: Tangent) -> Tangent:
        return {name: torch.cat([x[:, None], others[name]], 1).flatten(0, 1) for name, x in own.items()}

    def repeated(x: Tensor) -> Tensor:
        return x.repeat_interleave(count, 0)

    force = None if frames.force is None or company.force is None else together(frames.force, company.force)
    candidates, state = Frames(together(frames.state, company.state), force), {n: repeated(x) for n, x in noised.state.items()}
    times, log_weight, noise = repeated(t), t.new_zeros(count * len(t)).double(), {}
    for name, process in model.process.items():
        alpha, sigma = process.levels(times)
        gap = process.space.log(alpha * candidates.state[name], state[name])
        log_weight = log_weight + process.space.log_heat(gap, sigma**2)
        noise[name] = -sigma * process.space.heat_score(gap, sigma**2)
    if frames.weight is not None and company.weight is not None:
        log_weight = log_weight + torch.cat([frames.weight[:, None], company.weight], 1).flatten().log()
    if fisher is not None:
        fisher = {n: repeated(f) if f.dim() == state[n].dim() else f for n, f in fisher.items()}
    targets = blend(model, candidates, Noised(state, noise, noise), times, fisher)
    share = torch.softmax(log_weight.view(-1, count), 1).flatten()
    return {n: (share.to(x).view(-1, *(1,) * (x.dim() - 1)) * x).unflatten(0, (-1, count)).sum(1) for n, x in targets.items()}


def denoising_loss(
    model: ScoreModel, frames: Frames, descriptor: Descriptor, t: Tensor, rng: torch.Generator, *,
    fisher: Tangent | None = None, company: Frames | None = None, shared: bool = False, real: dict[str, Tensor] | None = None,
    emphasis: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Likelihood-weighted squared error of the noise, and the misfit of its predicted variance, per frame.

    ``t`` (B,) in (0, 1]. ``company``: more frames for the targets, see :func:`averaged`. Returns scalars ``noise`` (its
    integral over uniform t is the Kullback-Leibler divergence of the paths up to a constant, in nats) and ``spread`` (normal
    negative log-likelihood of the remaining noise; the mean is held fixed in it, so it trains the variance only).
    All is computed where the model is. ``shared``: only this process's rows of what is drawn, where several train together (:mod:`.team`).
    ``real`` (B, *shape) False where a component is padded, which counts for nothing; ``emphasis`` multiplies a component's squared error.
    What either leaves out is real, and has the emphasis 1.
    """
    device = (next(model.parameters(), t) if isinstance(model, torch.nn.Module) else t).device
    frames, t, company = frames.to(device), t.to(device), None if company is None else company.to(device)
    fisher = None if fisher is None else {name: x.to(device) for name, x in fisher.items()}
    real, emphasis = {name: x.to(device) for name, x in (real or {}).items()}, emphasis or {}
    noised = model.process.noise(frames.state, t, rng)
    own, factor = own_rows(len(t)) if shared else (slice(0, len(t)), 1.0)
    if own != slice(0, len(t)):
        descriptor, frames, noised, t = _rows(descriptor, own), frames.take(own), _taken(noised, own), t[own]
        real = {name: x[own] for name, x in real.items()}
        company = None if company is None else company.take(own)
        fisher = None if fisher is None else {n: x[own] if x.dim() == noised.state[n].dim() else x for n, x in fisher.items()}
    target = blend(model, frames, noised, t, fisher) if company is None else averaged(model, frames, company, noised, t, fisher)
    moments = model.moments(noised.state, t, descriptor)
    error, misfit = torch.zeros_like(t), torch.zeros_like(t)
    for name, process in model.process.items():
        mask, half = real.get(name, 1.0), 0.5 * emphasis.get(name, 1.0)
        error = error + half * process.weight(t) * ((moments.noise[name] - target[name]) ** 2 * mask).flatten(1).sum(1)
        # The noise as drawn, whole turns included: its variance is the one that reverse kernels on a torus have.
        left = (noised.drawn[name] - moments.noise[name].detach()) ** 2
        spread = moments.spread[name] + 1e-6
        misfit = misfit + 0.5 * ((left / spread + spread.log()) * mask).flatten(1).sum(1)
    if frames.weight is not None:
        error, misfit = error * frames.weight, misfit * frames.weight
    return {"noise": factor * error.mean(), "spread": factor * misfit.mean()}


def _taken(noised: Noised, own: slice) -> Noised:
    return Noised(*({name: x[own] for name, x in part.items()} for part in noised))


def _rows(descriptor: Descriptor, own: slice) -> Descriptor:
    """Of the rows that a process takes, where elements, conditions or d bands differ from row to row."""
    numbers, conditions = (x[own] if x.dim() == 2 else x for x in (descriptor.numbers, descriptor.conditions))
    single = descriptor.single
    return replace(descriptor, numbers=numbers, conditions=conditions, single=single if single is None or single.dim() < 3 else single[own])


@dataclass(frozen=True)
class Denoising:
    """Denoising score matching on ``frames`` as an :class:`Objective`.

    ``blended`` uses forces where the frames have them; ``spread_weight`` multiplies the variance loss; ``company`` further frames
    help every frame to its target (:func:`averaged`), which pays where states have few dimensions. ``between``: times that half of
    the batch is drawn from on top, those at which states part, for example. Raises IncompatibleError for fewer than 2 frames, for
    frames that are not finite and for negative weights.
    """

    frames: Frames
    descriptor: Descriptor
    blended: bool = True
    spread_weight: float = 0.1
    company: int = 0
    between: tuple[float, float] | None = None

    def __post_init__(self):
        if len(self.frames) < 2:
            raise IncompatibleError(f"expected at least 2 frames to train on, got {len(self.frames)}.")
        _check(self.frames)

    @cached_property
    def fisher(self) -> Tangent | None:
        return fisher_information(self.frames.force) if self.blended and self.frames.force is not None else None

    def __call__(self, model: ScoreModel, batch: int, order: torch.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        index = torch.randint(len(self.frames), (batch,), generator=order)
        times = self._times(batch, order)
        others = torch.randint(len(self.frames), (batch, self.company), generator=order) if self.company else None
        company = None if others is None else self.frames.take(others)
        loss = denoising_loss(
            model, self.frames.take(index), self.descriptor, times, noise, fisher=self.fisher, company=company, shared=True
        )
        return {"noise": loss["noise"], "spread": self.spread_weight * loss["spread"]}

    def _times(self, batch: int, order: torch.Generator) -> Tensor:
        if self.between is None:
            return stratified_times(batch, order)
        low, high = self.between
        half = batch // 2
        return torch.cat([stratified_times(batch - half, order), low + (high - low) * stratified_times(half, order)])

    def evaluate(self, model: ScoreModel, seed: int) -> dict[str, float]:
        """Unweighted losses over all frames, with the same times and noise at every call."""
        rng = torch.Generator().manual_seed(seed)
        times = stratified_times(len(self.frames), rng)
        loss = denoising_loss(model, self.frames, self.descriptor, times, rng, fisher=self.fisher)
        return {name: float(value.detach()) for name, value in loss.items()}


def stratified_times(n: int, rng: torch.Generator) -> Tensor:
    """(n,) times in (0, 1], one in each of n equal strata."""
    return (torch.arange(1, n + 1) - torch.rand(n, generator=rng)) / n


def _check(frames: Frames) -> None:
    """Raise IncompatibleError for a number that is not finite or a negative weight: it would spoil a long run in its midst."""
    for kind, part in (("state", frames.state), ("force", frames.force or {})):
        for name, x in part.items():
            bad = ~torch.isfinite(x).flatten(1).all(1)
            if bad.any():
                first = int(bad.nonzero()[0])
                raise IncompatibleError(f"the frames hold a {kind} {name!r} that is not finite, first in frame {first}.")
    if frames.weight is not None:
        bad = ~(torch.isfinite(frames.weight) & (frames.weight >= 0))
        if bad.any():
            first = int(bad.nonzero()[0])
            raise IncompatibleError(f"the frames hold a weight of {float(frames.weight[first])} in frame {first}: expected 0 or more.")
