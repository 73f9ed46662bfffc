"""Modes of the density that a score model has learned, by mean shift with its denoiser (Comaniciu and Meer, doi:10.1109/34.1000236)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..score import ScoreModel
from ..system.descriptor import Descriptor
from ..types import State
from .solvers import denoised

__all__ = ["climb"]


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
