"""Rejection: of a model's own samples those that a condition accepts, independent and exact whatever the condition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..types import Geometry, Samples
from .guided import Guidance, Guided

if TYPE_CHECKING:
    from ..dig import DiG

__all__ = ["accepted"]

_ROUNDING = 1e-9


def accepted(
    dig: DiG, samples: Samples, *guidance: Guidance, rng: np.random.Generator, strength: float = 1.0
) -> tuple[Samples, int]:  # fmt: skip
    """Of unguided ``samples`` of ``dig`` each with probability exp(strength * log-likelihood): draws of the law times the likelihood.

    Costs one draw over the probability of the condition, which gradients do not have to know (von Neumann, Appl. Math. Ser. 12, 1951).
    Samples without a structure, or of which a property cannot be told, are not accepted; their number comes second. ``rng`` gives one
    number a sample. The accepted have ``log_likelihood`` and ``properties``; ``log_q``, with their acceptance in it, lacks the constant
    log P(accepted); ``log_weight`` makes them exact for strength 1, at which it is zero.

    Raises IncompatibleError for a log-likelihood above zero, which is no probability of acceptance.
    """
    fit = Guided(dig.model, *guidance, coordinates=dig.coordinates).likelihood(samples.state, dig.descriptor)
    if bool((fit.log_likelihood > _ROUNDING).any()):
        raise IncompatibleError(
            f"expected log-likelihoods of at most 0, got {float(fit.log_likelihood.max()):.3g}: measure them from their highest value."
        )
    chance = torch.from_numpy(np.log(rng.random(len(samples.valid))))
    known = torch.stack([samples.valid, *(x.isfinite() for x in fit.properties.values())]).all(0).cpu()
    kept = (chance < strength * fit.log_likelihood.cpu()) & known
    likelihood = fit.log_likelihood[kept]

    def some(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[kept]

    found = Samples(
        Geometry(samples.geometry.positions[kept], some(samples.geometry.cell)), {name: x[kept] for name, x in samples.state.items()},
        None if samples.log_q is None else samples.log_q[kept] + strength * likelihood, samples.valid[kept], samples.kind, likelihood,
        {name: x[kept] for name, x in fit.properties.items()}, (1 - strength) * likelihood,
    )  # fmt: skip
    return found, int((~known).sum())
