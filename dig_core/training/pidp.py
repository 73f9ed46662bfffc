"""Physics-informed diffusion pre-training (article, eq. 4): a score learned from forces alone, by the Fokker-Planck equation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..diffusion.processes import Joint
from ..errors import IncompatibleError
from ..sampling.flow import T_MIN
from ..score import ScoreModel
from ..system.descriptor import Descriptor
from ..types import Tangent
from .losses import Frames, _check, stratified_times
from .residuals import TRACES, Residual, density_residual, fokker_planck_residual, score_mismatch

__all__ = ["PIDP", "TRUST", "noise_times", "pidp_loss", "stiffness"]

_SOFTEST = 0.1
"""No coordinate counts as wider than 1 / sqrt of this, whatever its forces: a free rotor has none."""

TRUST = 10.0
"""Frames whose squared force is this many times the usual one weigh half: of overlapping atoms no network needs to be right."""

_HUGE = 1e4
"""Usual forces beyond which a force is cut, where frames are weighed by their forces."""

_FEW = 4
"""Dimensions up to which an exact trace costs no more than twice two probes."""

_RUN = 16
"""Frames seen at one time, where log q is trained up to its normalisation."""


def stiffness(force: Tangent) -> Tangent:
    """Typical force^2 of each coordinate, (*shape) a component: (median |force| / 0.6745)^2, E[force^2] of normal forces.

    The Fisher information of thermal frames; unlike a mean, not ruled by the few frames that overlap.
    """
    return {name: (f.abs().median(0).values / 0.6745).square().clamp_min(_SOFTEST) for name, f in force.items()}


def noise_times(process: Joint, n: int, rng: torch.Generator, t_min: float = T_MIN) -> Tensor:
    """(n,) times in [t_min, 1], rising, uniform in the mean log(sigma^2 / alpha^2) of the dimensions.

    Every e-fold of noise is seen alike: uniform times with LogSNR, density 1 / t near 0 with schedules linear there.
    """
    share = stratified_times(n, rng).double()
    low, high = torch.full_like(share, t_min), torch.ones_like(share)

    def clock(t: Tensor) -> Tensor:
        parts = [p.space.dim * 2 * (p.schedule.sigma(t) / p.schedule.alpha(t)).log() for p in process.values()]
        return torch.stack(parts).sum(0)

    wanted = torch.lerp(clock(low), clock(high), share)
    for _ in range(30):
        middle = 0.5 * (low + high)
        early = clock(middle) < wanted
        low, high = torch.where(early, middle, low), torch.where(early, high, middle)
    return high.float()


def pidp_loss(
    model: ScoreModel,
    frames: Frames,
    descriptor: Descriptor,
    t: Tensor,
    rng: torch.Generator,
    *,
    hardness: Tangent | None = None,
    t_min: float = T_MIN,
    trace: str | None = None,
    run: int = 1,
    trust: float | None = TRUST,
) -> dict[str, Tensor]:
    """Squared residual of the Fokker-Planck equation on noised frames, and squared misfit of the clean score to the forces.

    ``frames`` need not be of the ensemble: they say where to look. ``t`` (B,) in [t_min, 1], see :func:`noise_times`.
    Returns scalars, means over frames and sums over coordinates:
    ``residual``: of :func:`fokker_planck_residual`, each coordinate in units of its width at that time; with ``run`` > 1 and a
    model that has a ``log_density``, of :func:`density_residual`, whose gradient that is: times come in runs of equal ones;
    ``boundary``: of :func:`score_mismatch` at ``t_min``, magnitude and temperature included, over ``hardness``;
    ``spread``: misfit of the model's noise variance to 1 + sigma^2 times the diagonal of its score's Jacobian (Tweedie), which
    reverse kernels need.

    Parameters
    ----------
    hardness: (*shape) a component, typical force^2; by default of these frames.
    trace: see :data:`TRACES`; exact for up to 4 dimensions if None.
    trust: see :data:`TRUST`. None, for coarse frames, counts all alike and takes forces as they are: they are the mean force only on
        average over what the frames forget, and a weight that looks at them moves that average.
    """
    force, process = _forces(frames), model.process
    hardness = stiffness(force) if hardness is None else hardness
    trace = ("exact" if process.dim <= _FEW else "two-probe") if trace is None else trace
    weight = torch.ones_like(t) if frames.weight is None else frames.weight
    if trust is not None:
        force, trusted = _trusted(force, hardness, trust)
        weight = trusted * weight
    noised = process.noise(frames.state, t, rng).state
    start = torch.full((1,), t_min, dtype=t.dtype, device=t.device)
    edge = score_mismatch(model, frames.state, force, start, descriptor, trace=trace, rng=rng)
    found = {"boundary": 0.5 * (weight * edge.squared({name: 1 / x for name, x in hardness.items()})).mean()}
    if run > 1 and hasattr(model, "log_density"):
        rate = density_residual(model, noised, t, descriptor, trace=trace, rng=rng)
        return {"residual": 0.5 * rate.variance(run, weight).mean(), **found}
    inside = fokker_planck_residual(model, noised, t, descriptor, trace=trace, rng=rng)
    width = {}
    for name, part in process.items():
        alpha, sigma = part.levels(t)
        width[name] = (alpha**2 / hardness[name] + sigma**2) / (alpha**2 + sigma**2)
    spread = _spread_misfit(model, noised, t, descriptor, inside)
    return {"residual": 0.5 * (weight * inside.squared(width)).mean(), **found, "spread": (weight * spread).mean()}


@dataclass(frozen=True)
class PIDP:
    """:func:`pidp_loss` on ``frames`` with forces as an :class:`Objective`: no data of the ensemble, structures to look at.

    ``residual_weight``, ``boundary_weight`` and ``spread_weight`` multiply the three losses; ``trust`` None for coarse frames. Raises
    IncompatibleError for frames that are not finite or without forces, for an unknown ``trace``, and for a ``trust`` that is not positive.
    """

    frames: Frames
    descriptor: Descriptor
    residual_weight: float = 1.0
    boundary_weight: float = 1.0
    spread_weight: float = 0.1
    trace: str | None = None
    t_min: float = T_MIN
    trust: float | None = TRUST

    def __post_init__(self):
        _forces(self.frames)
        if self.trace not in (None, *TRACES):
            raise IncompatibleError(f"expected trace in {TRACES} or None, got {self.trace!r}.")
        if self.trust is not None and not self.trust > 0:
            raise IncompatibleError(f"expected trust as a positive number of usual squared forces, or None, got {self.trust!r}.")
        _check(self.frames)

    @cached_property
    def hardness(self) -> Tangent:
        """Of all frames: what sets each coordinate's unit."""
        return stiffness(_forces(self.frames))

    def __call__(self, model: ScoreModel, batch: int, order: torch.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        run = _RUN if hasattr(model, "log_density") else 1
        times = noise_times(model.process, max(1, batch // run), order, self.t_min).repeat_interleave(run)
        frames = self.frames.take(torch.randint(len(self.frames), (len(times),), generator=order))
        loss = pidp_loss(
            model, frames, self.descriptor, times, noise, hardness=self.hardness, t_min=self.t_min, trace=self.trace, run=run,
            trust=self.trust,
        )  # fmt: skip
        return {name: getattr(self, f"{name}_weight") * value for name, value in loss.items()}


def _forces(frames: Frames) -> Tangent:
    if frames.force is None:
        raise IncompatibleError("physics-informed training needs the forces of its frames: make them with an energy.")
    return frames.force


def _trusted(force: Tangent, hardness: Tangent, trust: float) -> tuple[Tangent, Tensor]:
    """Forces, those beyond all measure cut, and (B,) weights between 0 and 1."""
    # Where atoms overlap, squares of forces leave float32; such frames hardly count, but infinity times nothing is no number.
    most = {name: _HUGE * h.sqrt() for name, h in hardness.items()}
    force = {name: f.clamp(-most[name], most[name]) for name, f in force.items()}
    parts = [(force[name] ** 2 / hardness[name]).flatten(1) for name in force]
    return force, 1 / (1 + torch.cat(parts, dim=1).mean(1) / trust)


def _spread_misfit(model: ScoreModel, noised, t: Tensor, descriptor: Descriptor, found: Residual) -> Tensor:
    """(B,) normal negative log-likelihood of what the score says of the variance: never below zero, however wrong the score."""
    spread, misfit = model.moments(noised, t, descriptor).spread, torch.zeros_like(t)
    for name, part in model.process.items():
        wanted = (1 + part.levels(t)[1] ** 2 * found.diagonal[name].detach()).clamp_min(0)
        guess = spread[name] + 1e-6
        misfit = misfit + 0.5 * (wanted / guess + guess.log()).flatten(1).sum(1)
    return misfit
