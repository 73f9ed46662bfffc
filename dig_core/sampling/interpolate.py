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
    """``n`` states from ``a`` to ``b`` (one sample each), both ends included.

    ``"spherical"`` turns from one latent to the other and keeps their typical norm, which ``"linear"`` (the article's) halves
    in square midway (Shoemake, doi:10.1145/325165.325242; White, arXiv:1609.04468). Angles on a torus go evenly along the
    shorter arc either way. The discrete flow is inverted step by step, so the ends come back to its round-off.

    Raises
    ------
    IncompatibleError: fewer than 2 states, an unknown path, or ends that are not one sample each.
    """
    if n < 2 or path not in _PATHS:
        raise IncompatibleError(f"expected at least 2 states and path in {_PATHS}, got n = {n} and path = {path!r}.")
    if {len(x) for end in (a, b) for x in end.values()} != {1}:
        raise IncompatibleError("expected ends of one sample each, (1, ...) a component.")
    flow, times = Flow(model, descriptor, method), flow_times(grid)
    state = flow.scaled({name: torch.cat([a[name], b[name]]) for name in a}, times[:1], 1)
    for k in range(len(times) - 1):
        state, _ = flow.inverse(state, times[k + 1 : k + 2], times[k : k + 1])
    state = _between(flow, state, torch.linspace(0, 1, n, dtype=torch.float64), path)
    for t, s in backward_steps(times):
        state = flow.step(state, t, s)
    return flow.scaled(state, times[:1], -1)


def _between(flow: Flow, ends: State, share: Tensor, path: str) -> State:
    """(n, ...) latents; the angle of the spherical path is that of all non-periodic components together."""
    flat = [name for name, part in flow.process.items() if not part.space.periodic]
    one = torch.ones(1, dtype=torch.float64)
    # In units of the prior, so that components of other widths count alike.
    units = [ends[name] / torch.hypot(*flow.process[name].levels(one)) for name in flat]
    first, last = torch.cat([u.flatten(1) for u in units], dim=1) if units else torch.ones(2, 1, dtype=torch.float64)
    angle = torch.arccos((torch.dot(first, last) / (first.norm() * last.norm())).clamp(-1, 1))
    left, right = 1 - share, share
    if path == "spherical" and float(torch.sin(angle)) > 1e-6:
        left, right = torch.sin(left * angle) / torch.sin(angle), torch.sin(right * angle) / torch.sin(angle)
    found = {}
    for name, part in flow.process.items():
        shape = (-1,) + (1,) * len(part.space.shape)
        start, end = ends[name][:1], ends[name][1:]
        if part.space.periodic:
            found[name] = part.space.exp(start, share.reshape(shape) * part.space.log(start, end))
        else:
            found[name] = left.reshape(shape) * start + right.reshape(shape) * end
    return found
