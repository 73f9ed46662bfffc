"""Interpolation: both ends encoded by the probability flow, a path between them in latent space, decoded."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..score import ScoreModel
from ..system.descriptor import Descriptor
from ..types import State
from .flow import Flow, backward_steps, flow_times

__all__ = ["interpolate"]

_PATHS = ("spherical", "linear")


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
) -> State:
    """``n`` states from each of ``a`` to the same of ``b``, (P, ...) a component, both ends included: (P n, ...), pair after pair.

    ``"spherical"`` turns from one latent to the other and keeps their typical norm, which ``"linear"`` (the article's) halves
    in square midway (Shoemake, doi:10.1145/325165.325242; White, arXiv:1609.04468). Angles on a torus go evenly along the
    shorter arc either way. The discrete flow is inverted step by step, so the ends come back to its round-off.

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
    state = _between(flow, state, torch.linspace(0, 1, n, dtype=torch.float64), path)
    for t, s in backward_steps(times):
        state = flow.step(state, t, s)
    return flow.scaled(state, times[:1], -1)


def _between(flow: Flow, ends: State, share: Tensor, path: str) -> State:
    """(P n, ...) latents; the angle of the spherical path is that of all non-periodic components together."""
    flat = [name for name, part in flow.process.items() if not part.space.periodic]
    pairs, one = len(next(iter(ends.values()))) // 2, torch.ones(1, dtype=torch.float64)
    # In units of the prior, so that components of other widths count alike.
    units = [ends[name] / torch.hypot(*flow.process[name].levels(one)) for name in flat]
    first, last = (torch.cat([u.flatten(1) for u in units], dim=1) if units else one.expand(2 * pairs, 1)).split(pairs)
    cosine = (first * last).sum(1) / (first.norm(dim=1) * last.norm(dim=1))
    angle = torch.arccos(cosine.clamp(-1, 1))[:, None].expand(-1, len(share)).flatten()
    share = share.repeat(pairs)
    left, right = 1 - share, share
    if path == "spherical":
        bent = torch.sin(angle) > 1e-6
        left, right = (torch.where(bent, torch.sin(x * angle) / torch.sin(angle), x) for x in (left, right))
    found = {}
    for name, part in flow.process.items():
        shape = (-1,) + (1,) * len(part.space.shape)
        start, end = (x.repeat_interleave(len(share) // pairs, 0) for x in ends[name].split(pairs))
        if part.space.periodic:
            found[name] = part.space.exp(start, share.reshape(shape) * part.space.log(start, end))
        else:
            found[name] = left.reshape(shape) * start + right.reshape(shape) * end
    return found
