"""Modes of the density that a score model has learned, by mean shift with its denoiser (Comaniciu and Meer, doi:10.1109/34.1000236), and
which of them last: those that a barrier parts from every denser one (Chazal et al., doi:10.1145/2535927)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..score import ScoreModel
from ..system.descriptor import Descriptor
from ..types import State
from .solvers import denoised

__all__ = ["climb", "heights", "lasting", "profile"]


@torch.no_grad()
def climb(
    model: ScoreModel,
    descriptor: Descriptor,
    state: State,
    t: float | Tensor,
    *,
    iterations: int = 60,
    tolerance: float = 1e-3,
) -> State:
    """States (B, *shape) moved up to the modes of the density, smoothed by the noise of time ``t``; float64.

    A step replaces every state by the clean state expected there, which is mean shift with the noise as its kernel: no step
    size, and modes much narrower than the noise are merged. A state stops once it moves by less than ``tolerance`` of the noise, or
    after ``iterations`` steps. No energy is asked for anything. Raises IncompatibleError for a time outside (0, 1].
    """
    t = torch.as_tensor(t, dtype=torch.float64).reshape(1)
    if not 0 < float(t) <= 1:
        raise IncompatibleError(f"expected a noise time above 0, 1 at most, got {float(t):g}.")
    state = {name: state[name].double().clone() for name in model.process}
    first = next(iter(state.values()))
    moving = torch.arange(len(first), device=first.device)
    for _ in range(iterations):
        here = {name: x[moving] for name, x in state.items()}
        noisy = {name: part.levels(t)[0] * here[name] for name, part in model.process.items()}
        higher = {name: x.double() for name, x in denoised(model, noisy, t, descriptor).items()}
        moved = model.process.log(here, higher)
        shares = [(moved[name] / part.levels(t)[1]).abs().flatten(1).amax(1) for name, part in model.process.items()]
        for name, x in state.items():
            x[moving] = higher[name]
        # Most states arrive early: only those still on their way are asked for again.
        moving = moving[torch.stack(shares).amax(0) >= tolerance]
        if not len(moving):
            break
    return state


@torch.no_grad()
def profile(
    model: ScoreModel, descriptor: Descriptor, start: State, end: State, t: float | Tensor, *, points: int = 10
) -> Tensor:
    """(B, points + 1) float64: log-density along the shortest path from ``start`` to ``end`` (B, *shape), less that at its start.

    The density is the one that :func:`climb` climbs, smoothed by the noise of time ``t``; its score is integrated by the trapezoidal rule
    over ``points`` steps. A straight path may pass over a hill that a bent one goes around: its lowest point is a lower bound of the pass.
    """
    t = torch.as_tensor(t, dtype=torch.float64).reshape(1)
    rows, share = len(next(iter(start.values()))), torch.linspace(0, 1, points + 1, dtype=torch.float64)
    line = model.process.log({n: x.double() for n, x in start.items()}, {n: x.double() for n, x in end.items()})
    steps = {name: torch.einsum("p,b...->bp...", share, v).flatten(0, 1) for name, v in line.items()}
    path = model.process.exp({name: start[name].double().repeat_interleave(points + 1, 0) for name in line}, steps)
    noisy = {name: part.levels(t)[0] * path[name] for name, part in model.process.items()}
    slope = torch.zeros(rows, points + 1, dtype=torch.float64)
    for name, score in model(noisy, t, descriptor).items():
        along = model.process[name].levels(t)[0] * line[name].repeat_interleave(points + 1, 0)
        slope += (score.double() * along).flatten(1).sum(1).view(rows, points + 1)
    return torch.nn.functional.pad(((slope[:, 1:] + slope[:, :-1]) / 2 / points).cumsum(1), (1, 0))


def heights(count: int, pairs: Sequence[tuple[int, int]], profiles: np.ndarray) -> np.ndarray:
    """(count,) log-densities of modes, up to a constant for all that ``pairs`` connect; see :func:`lasting`.

    They agree with all ways as well as they can: a score is no exact gradient, least of all on long ways down and up again.
    """
    ends, rise = np.reshape(np.asarray(pairs, dtype=int), (-1, 2)), np.asarray(profiles, dtype=float)
    if not len(ends):
        return np.zeros(count)
    trust = 1 / (1 + np.abs(rise).max(1))
    table = np.zeros((len(ends), count))
    np.add.at(table, (np.arange(len(ends)), ends[:, 1]), trust)
    np.add.at(table, (np.arange(len(ends)), ends[:, 0]), -trust)
    return np.linalg.lstsq(table, rise[:, -1] * trust, rcond=None)[0]


def lasting(count: int, pairs: Sequence[tuple[int, int]], profiles: np.ndarray, barrier: float) -> np.ndarray:
    """(count,) for each of ``count`` modes the one that it is part of: itself, or a denser one without a barrier between.

    ``pairs`` of modes and the log-density on the way between them (pairs, points + 1), see :func:`profile`. A mode lasts if every way
    to a denser one leads down by ``barrier`` nats, which for an equilibrium density are kT. The order in which modes or pairs are
    listed makes no difference.
    """
    head = np.arange(count)
    if not len(pairs):
        return head
    ends, rise, height = np.asarray(pairs), np.asarray(profiles, dtype=float), heights(count, pairs, profiles)
    level = np.minimum(rise.min(1) + (height[ends].sum(1) - rise[:, -1]) / 2, height[ends].min(1))
    for k in np.argsort(-level, kind="stable"):
        lower, higher = sorted((_head(head, i) for i in ends[k]), key=lambda i: height[i])
        if lower != higher and height[lower] - level[k] < barrier:
            head[lower] = higher
    return np.array([_head(head, i) for i in range(count)])


def _head(head: np.ndarray, i: int) -> int:
    while head[i] != i:
        i = head[i]
    return int(i)
