"""Interpolation: both ends encoded by the probability flow, a path between them in latent space, decoded."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..score import ScoreModel
from ..system.descriptor import Descriptor
from ..types import State
from .flow import Flow, backward_steps, flow_times

__all__ = ["interpolate"]

Distance = Callable[[State, State], Tensor]
_PATHS = ("spherical", "linear")
_ROUNDS, _EVEN = 4, 1.1
"""Of states moved along a path: rounds at most, and how many times an even step the longest may be for no more of them."""


@torch.no_grad()
def interpolate(
    model: ScoreModel,
    descriptor: Descriptor,
    a: State,
    b: State,
    n: int,
    *,
    grid: Tensor,
    path: str = "spherical",
    method: str = "rk4",
    apart: Distance | None = None,
) -> State:
    """``n`` states from each of ``a`` to the same of ``b``, (P, ...) a component, both ends included: (P n, ...), pair after pair.

    ``"spherical"`` turns from one latent to the other and keeps their typical norm, which ``"linear"`` (the article's) halves
    in square midway (Shoemake, doi:10.1145/325165.325242; White, arXiv:1609.04468). Angles on a torus go evenly along the
    shorter arc either way. The discrete flow is inverted step by step, so the ends come back to its round-off.

    Even steps between latents are no even steps between what they decode to: most of a path may lie in one of them. With ``apart``,
    the distances (B,) between B states and B others, the states in between are moved along the latent path until neighbours are
    about equally far apart by it, four times at most, a decoding each; of a path that jumps, the longest step found least is kept.

    Raises
    ------
    IncompatibleError: fewer than 2 states, an unknown path, or not as many starts as ends.
    """
    if n < 2 or path not in _PATHS:
        raise IncompatibleError(f"expected at least 2 states and path in {_PATHS}, got n = {n} and path = {path!r}.")
    counts = {len(x) for end in (a, b) for x in end.values()}
    if len(counts) != 1 or 0 in counts:
        raise IncompatibleError(f"expected as many starts as ends, (P, ...) a component, got {sorted(counts)}.")
    flow, times = Flow(model, descriptor, method), flow_times(grid)
    state = flow.scaled({name: torch.cat([a[name], b[name]]) for name in a}, times[:1], 1)
    for k in range(len(times) - 1):
        state, _ = flow.inverse(state, times[k + 1 : k + 2], times[k : k + 1])
    share = torch.linspace(0, 1, n, dtype=torch.float64).expand(counts.pop(), -1)
    found = _decoded(flow, _between(flow, state, share, path), times)
    return found if apart is None or n < 3 else _evened(flow, state, found, share, path, times, apart)


def _evened(flow: Flow, ends: State, found: State, share: Tensor, path: str, times: Tensor, apart: Distance) -> State:
    """Of every pair the path with the shortest longest step, of ``found`` at ``share`` (P, n) and those respaced from it in turn."""
    length = _lengths(found, apart, share)
    least = length.amax(1)
    for _ in range(_ROUNDS):
        if not bool((least > _EVEN * length.mean(1)).any()):
            break
        share = _respaced(share, length)
        tried = _decoded(flow, _between(flow, ends, share, path), times)
        length = _lengths(tried, apart, share)
        better = length.amax(1) < least
        least = torch.where(better, length.amax(1), least)
        rows = better.repeat_interleave(share.shape[1])
        found = {name: torch.where(rows.reshape(-1, *[1] * (x.dim() - 1)), tried[name], x) for name, x in found.items()}
    return found


def _decoded(flow: Flow, state: State, times: Tensor) -> State:
    for t, s in backward_steps(times):
        state = flow.step(state, t, s)
    return flow.scaled(state, times[:1], -1)


def _lengths(found: State, apart: Distance, share: Tensor) -> Tensor:
    """(P, n - 1) between neighbours of each path; all infinite where states are not finite, of which nothing may be asked."""
    paths = {name: x.unflatten(0, share.shape) for name, x in found.items()}
    if not all(bool(x.isfinite().all()) for x in paths.values()):
        return torch.full_like(share[:, 1:], math.inf)
    one, following = ({name: x[:, part].flatten(0, 1) for name, x in paths.items()} for part in (slice(-1), slice(1, None)))
    return apart(one, following).detach().to(share).reshape(share[:, 1:].shape)


def _respaced(share: Tensor, length: Tensor) -> Tensor:
    """Shares (P, n) at even lengths of the paths whose pieces between ``share`` have ``length`` (P, n - 1), straight inside a piece."""
    gone = torch.cat([torch.zeros_like(length[:, :1]), length.cumsum(1)], 1)
    wanted = torch.linspace(0, 1, share.shape[1], dtype=share.dtype) * gone[:, -1:]
    piece = (torch.searchsorted(gone, wanted.contiguous(), right=True) - 1).clamp(0, length.shape[1] - 1)
    start, step, long = share.gather(1, piece), share.diff(dim=1).gather(1, piece), length.gather(1, piece)
    moved = start + step * ((wanted - gone.gather(1, piece)) / long.clamp_min(1e-300)).clamp(0, 1)
    moved = torch.where(gone[:, -1:] > 0, moved, share)
    return torch.cat([share[:, :1], moved[:, 1:-1], share[:, -1:]], 1)


def _between(flow: Flow, ends: State, share: Tensor, path: str) -> State:
    """(P n, ...) latents at ``share`` (P, n); the angle of the spherical path is that of all non-periodic components together."""
    flat = [name for name, part in flow.process.items() if not part.space.periodic]
    (pairs, n), one = share.shape, torch.ones(1, dtype=torch.float64)
    # In units of the prior, so that components of other widths count alike.
    units = [ends[name] / torch.hypot(*flow.process[name].levels(one)) for name in flat]
    first, last = (torch.cat([u.flatten(1) for u in units], dim=1) if units else one.expand(2 * pairs, 1)).split(pairs)
    cosine = (first * last).sum(1) / (first.norm(dim=1) * last.norm(dim=1))
    angle = torch.arccos(cosine.clamp(-1, 1))[:, None].expand(-1, n).flatten()
    share = share.flatten()
    left, right = 1 - share, share
    if path == "spherical":
        bent = torch.sin(angle) > 1e-6
        left, right = (torch.where(bent, torch.sin(x * angle) / torch.sin(angle), x) for x in (left, right))
    found = {}
    for name, part in flow.process.items():
        shape = (-1,) + (1,) * len(part.space.shape)
        start, end = (x.repeat_interleave(n, 0) for x in ends[name].split(pairs))
        if part.space.periodic:
            found[name] = part.space.exp(start, share.reshape(shape) * part.space.log(start, end))
        else:
            found[name] = left.reshape(shape) * start + right.reshape(shape) * end
    return found
