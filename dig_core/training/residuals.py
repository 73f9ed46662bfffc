"""How far a score model is from solving the Fokker-Planck equation of its process, and from the law it should start at.

The density of a :class:`~dig_core.diffusion.processes.Joint` with drifts f_i = d log alpha_i / dt and diffusions g_i^2 obeys

    d_t log q = sum_i [ -f_i (dim_i + x_i . s_i) + (g_i^2 / 2) (div_i s_i + s_i . s_i) ],    s = grad log q,

and the gradient of this is the equation of the score: article, eq. 4, where f = -beta / 2 and g^2 = beta. It holds on R^d, off
the centroid, on tori and lattices and for rotations alike, and each component feels the others through the joint density.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad, jvp

from ..diffusion.processes import Diffusion, Joint
from ..errors import IncompatibleError
from ..score import ScoreModel
from ..system.descriptor import Descriptor
from ..types import State, Tangent

__all__ = ["TRACES", "DensityResidual", "Residual", "density_residual", "fokker_planck_residual", "score_mismatch"]

TRACES = ("exact", "two-probe")

Field = Callable[[State, Tensor], Tangent]
Rates = Callable[[Diffusion, Tensor], tuple[Tensor, Tensor]]


class Residual(NamedTuple):
    """Two estimates of the same vectors with independent errors, and an estimate of the diagonal of the score's Jacobian.

    The mean of ``first * second`` over probes is the squared residual; the square of either alone is larger by the
    variance of the trace, which a network would learn to make small. With exact traces they are one tensor.
    """

    first: Tangent
    second: Tangent
    diagonal: Tangent

    def squared(self, weight: dict[str, Tensor] | None = None) -> Tensor:
        """(B,) unbiased squared length; ``weight`` multiplies the squares of a component's entries."""
        terms = {name: self.first[name] * self.second[name] for name in self.first}
        if weight is not None:
            terms = {name: weight[name] * x for name, x in terms.items()}
        return torch.stack([x.flatten(1).sum(1) for x in terms.values()]).sum(0)


class DensityResidual(NamedTuple):
    """Two estimates (B,) of the same number with independent errors; one tensor if the trace is exact."""

    first: Tensor
    second: Tensor

    def variance(self, run: int, weight: Tensor | None = None) -> Tensor:
        """(B / run,) unbiased variance within consecutive ``run`` of the batch: what is the same for all of them is free.

        ``weight`` (B,) not negative multiplies the squares, and the mean they are taken from is weighted by it.
        """
        weight = (torch.ones_like(self.first) if weight is None else weight).reshape(-1, run)
        share = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
        left, right = (x.reshape(-1, run) - (share * x.reshape(-1, run)).sum(1, keepdim=True) for x in self)
        return (weight * left * right).sum(1) / (run - 1)


def fokker_planck_residual(
    model: ScoreModel,
    state: State,
    t: Tensor,
    descriptor: Descriptor,
    *,
    trace: str = "exact",
    rng: torch.Generator | None = None,
) -> Residual:
    """What eq. 4 leaves over at ``state``, ``t`` (B,) in (0, 1], times (sigma^2 / g^2) sqrt(alpha^2 + sigma^2) of the component.

    Zero for the score of any law pushed forward by the process. The factor makes it a number without units: the error that
    arises per e-fold of the signal-to-noise ratio, in the score of data of unit width. It stays of order one at all times in
    float32. Low-precision networks are read in float32: their rounding is larger than the differences taken here.

    Parameters
    ----------
    trace: ``"exact"`` takes one forward-mode product per dimension; ``"two-probe"`` two random ones (Hutchinson), the two
        estimates that an unbiased square needs. The latter draws from ``rng``.

    Raises
    ------
    IncompatibleError: unknown ``trace``, or no ``rng`` for probes.
    """
    process, field = model.process, _field(model, descriptor)
    rate = jvp(lambda time: field(state, time), (t,), (torch.ones_like(t),))[1]
    slopes, _, diagonal = _slopes(field, process, state, t, _forward, trace, rng)

    def left(slope: Tangent) -> Tangent:
        found = {}
        for name, part in process.items():
            alpha, sigma = part.levels(t)
            factor = _like(1 / part.weight(t), state[name]) * (alpha**2 + sigma**2).sqrt()
            found[name] = factor * (rate[name] - slope[name])
        return found

    first, *others = map(left, slopes)
    return Residual(first, others[0] if others else first, diagonal)


def score_mismatch(
    model: ScoreModel,
    state: State,
    force: Tangent,
    t: Tensor,
    descriptor: Descriptor,
    *,
    trace: str = "exact",
    rng: torch.Generator | None = None,
) -> Residual:
    """The model's score of clean data at ``state`` minus ``force`` = grad log p there: the boundary term of eq. 4.

    ``t`` is small but not zero, where q_t is p with noise left in. One implicit step of the equation from t to clean data,
    alpha (s - grad sum_i (sigma_i^2 / 2) (div_i s_i + s_i . s_i)) at alpha x, takes account of that up to
    (sigma^2 curvature)^2; without it stiff coordinates would be trained towards a law that is too narrow.
    Parameters and errors as in :func:`fokker_planck_residual`.
    """
    process, field = model.process, _field(model, descriptor)
    alpha = {name: part.levels(t)[0] for name, part in process.items()}
    shrunk = {name: process[name].space.exp(torch.zeros_like(x), alpha[name] * x) for name, x in state.items()}
    slopes, score, diagonal = _slopes(field, process, shrunk, t, _blur, trace, rng)

    def gap(slope: Tangent) -> Tangent:
        return {name: alpha[name] * (score[name] - slope[name]) - part.space.project(force[name]) for name, part in process.items()}

    first, *others = map(gap, slopes)
    return Residual(first, others[0] if others else first, diagonal)


def density_residual(
    model, state: State, t: Tensor, descriptor: Descriptor, *, trace: str = "exact", rng: torch.Generator | None = None
) -> DensityResidual:
    """The equation of log q itself, for models with a ``log_density(state, t, descriptor)`` (B,), per e-fold of the noise.

    Zero for a normalised density; otherwise a function of t alone, d log Z / dt, which a variance at equal times removes.
    Two derivatives instead of three, and it sees what the equation of the score cannot: weights of modes that drift apart.
    Parameters and errors as in :func:`fokker_planck_residual`.
    """
    process, field = model.process, _field(model, descriptor)
    model = full_precision(model)
    growth = jvp(lambda time: model.log_density(state, time, descriptor), (t,), (torch.ones_like(t),))[1]
    volume = torch.stack([part.space.dim * part.schedule.drift(t) for part in process.values()]).sum(0)
    # The pace of the joint process: the mean over dimensions of that of its components.
    pace = torch.stack([part.space.dim * part.weight(t) for part in process.values()]).sum(0) / process.dim
    rows, times, probes = _probed(process, state, t, trace, rng)
    found = _generator(field, process, rows, times, _forward, probes)[0].reshape(-1, len(growth))
    first, *others = [(growth + volume - value) / pace for value in found]
    return DensityResidual(first, others[0] if others else first)


def full_precision(model):
    """``model``, or a twin of it with the same parameters whose products are in the format of its weights."""
    if not isinstance(model, nn.Module):
        return model
    low = (torch.bfloat16, torch.float16)
    if not any(value in low for part in model.modules() for value in vars(part).values() if isinstance(value, torch.dtype)):
        return model
    shared = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(x): x for x in shared})
    for part in twin.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, torch.dtype) and value in low:
                setattr(part, name, torch.float32)
    return twin


def _field(model, descriptor: Descriptor) -> Field:
    """The score as a function that torch.func can differentiate."""
    model, process = full_precision(model), model.process
    if not hasattr(model, "log_density"):
        return lambda state, t: model(state, t, descriptor)

    def field(state: State, t: Tensor) -> Tangent:
        slope = grad(lambda v: model.log_density(process.exp(state, v), t, descriptor).sum())(_still(process, state))
        return {name: part.space.project(slope[name]) for name, part in process.items()}

    return field


def _forward(part: Diffusion, t: Tensor) -> tuple[Tensor, Tensor]:
    """Drift and diffusion of the process: d_t log q = its generator on log q."""
    return part.schedule.drift(t), part.schedule.diffusion(t)


def _blur(part: Diffusion, t: Tensor) -> tuple[Tensor, Tensor]:
    """Those of the whole way from clean data to ``t`` in one step, the pull of alpha left out."""
    return torch.zeros_like(t), part.schedule.sigma(t) ** 2


def _probed(process: Joint, state: State, t: Tensor, trace: str, rng: torch.Generator | None) -> tuple[State, Tensor, State]:
    """Rows to look at, (C B, *shape), their times, and directions (K, C B, *shape).

    The sum over K of v . J v is the trace of the Jacobian J (all basis vectors, C = 1), or its unbiased estimate (one random
    direction for each of C = 2 copies).
    """
    if trace not in TRACES:
        raise IncompatibleError(f"expected trace in {TRACES}, got {trace!r}.")
    if trace == "two-probe" and rng is None:
        raise IncompatibleError("two-probe traces need rng, a torch.Generator.")
    copies = 1 if trace == "exact" else 2
    rows = {name: x.repeat(copies, *[1] * (x.dim() - 1)) for name, x in state.items()}
    times = t.expand(len(next(iter(state.values())))).repeat(copies)
    if copies == 1:
        return rows, times, _basis(process, rows)
    return rows, times, {name: part.space.project(_signs(rows[name], rng))[None] for name, part in process.items()}


def _signs(x: Tensor, rng: torch.Generator | None) -> Tensor:
    return (2 * torch.randint(2, x.shape, generator=rng) - 1).to(x)


def _basis(process: Joint, state: State) -> State:
    """Every direction of the joint space: each basis vector of a component with zeros in the others."""
    first, found = 0, {}
    for name, part in process.items():
        x = state[name]
        whole = x.new_zeros(process.dim, *x.shape)
        whole[first : first + part.space.dim] = part.space.basis().to(x)[:, None]
        first, found[name] = first + part.space.dim, whole
    return found


def _slopes(
    field: Field, process: Joint, state: State, t: Tensor, rates: Rates, trace: str, rng: torch.Generator | None
) -> tuple[list[Tangent], Tangent, Tangent]:
    """Gradients of the generator, one a copy; the score; the diagonal of its Jacobian, a mean over the copies."""
    rows, times, probes = _probed(process, state, t, trace, rng)

    def total(v: Tangent) -> tuple[Tensor, tuple[Tangent, Tangent]]:
        value, score, diagonal = _generator(field, process, process.exp(rows, v), times, rates, probes)
        return value.sum(), (score, diagonal)

    slope, (score, diagonal) = grad(total, has_aux=True)(_still(process, rows))
    copies = len(times) // len(next(iter(state.values())))
    split, mean = {}, {}
    for name, part in process.items():
        x = state[name]
        split[name] = part.space.project(slope[name]).reshape(copies, *x.shape)
        # Probes off the centroid are a little shorter than their number of entries.
        mean[name] = diagonal[name].reshape(copies, *x.shape).mean(0) * math.prod(part.space.shape) / max(1, part.space.dim)
    slopes = [{name: x[k] for name, x in split.items()} for k in range(copies)]
    return slopes, {name: s[: len(state[name])] for name, s in score.items()}, mean


def _generator(field: Field, process: Joint, state: State, t: Tensor, rates: Rates, probe: State) -> tuple[Tensor, Tangent, Tangent]:
    """(B,) sum_i [-f_i x_i . s_i + (g_i^2 / 2) (div_i s_i + s_i . s_i)], the score, and sum of v * (J v) over the probes."""
    count = len(next(iter(probe.values())))

    def rows(x: State) -> State:
        return {name: v.repeat(count, *[1] * (v.dim() - 1)) for name, v in x.items()}

    times = t.repeat(count)
    along, seen = {name: probe[name].flatten(0, 1) for name in process}, rows(state)
    found, bent = jvp(lambda v: field(process.exp(seen, v), times), (_still(process, seen),), (along,))[:2]
    score = {name: s[: len(t)] for name, s in found.items()}
    diagonal = {name: (bent[name].reshape(v.shape) * v).sum(0) for name, v in probe.items()}
    total = torch.zeros_like(t)
    for name, part in process.items():
        drift, diffusion = (_like(rate, state[name]) for rate in rates(part, t))
        inside = 0.5 * diffusion * (diagonal[name] + score[name] ** 2) - drift * state[name] * score[name]
        total = total + inside.flatten(1).sum(1)
    return total, score, diagonal


def _still(process: Joint, state: State) -> Tangent:
    """Zero tangents: functions of ``process.exp(state, .)`` are differentiated here, so that derivatives are those along the spaces."""
    return {name: torch.zeros_like(state[name]) for name in process}


def _like(value: Tensor, x: Tensor) -> Tensor:
    """(B,) or (1,) shaped to multiply ``x``."""
    return value.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)
