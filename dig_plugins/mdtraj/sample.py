"""Backbones of a protein from a model: as many whole ones as were asked for, what was left out, and what each weighs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError, StateError
from dig_core.progress import Show, bar
from dig_core.random import as_seed
from dig_core.sampling.guidance import Guidance, Guided
from dig_core.system.descriptor import Descriptor
from dig_core.system.protein import residues
from dig_core.types import Geometry, Samples

from .checks import Validity, check_backbones
from .ensemble import BackboneEnsemble, Counts
from .record import of_model

__all__ = ["BackboneEnsemble", "Counts", "sample_backbones"]

Check = Callable[[Geometry, Descriptor], Validity]

_LEAST = 1 / 8
"""Share of whole draws that the size of the next batch counts on at least."""


def sample_backbones(
    dig: DiG, n: int, *, seed: int | None = None, steps: int | None = None, method: str | None = None, batch: int = 32,
    guidance: Guidance | Sequence[Guidance] = (), valid_only: bool = True, check: Check = check_backbones, most: int | None = None,
    progress: Show = None,
) -> BackboneEnsemble:  # fmt: skip
    """``n`` independent backbones of the protein that ``dig`` is for: draws 0, 1, 2, ... of the seed, but for those that are not whole.

    Draw i depends on (seed, i) alone, so the same seed gives the same ensemble in batches of any size. Leaving out draws conditions
    the law on being whole, guided or not: weights stay exact for what is kept. Nothing is relaxed.

    Parameters
    ----------
    seed: recorded; a fresh one if None. steps: of the sampler; the model's own if None.
    method: "path" or a solver of :mod:`dig_core.sampling.solvers`; if None ddpm, of a guided model paths, which carry weights.
    guidance: conditions, such as :class:`~dig_core.sampling.guidance.PropertyGuidance` on variables of :mod:`.collective`. With paths
        ``log_weight`` makes the ensemble exact for the model's law times their likelihood, at any strength: 0 weighs draws of the model
        as it is, for conditions that are not rare. Other methods follow the condition roughly.
    valid_only: False keeps all draws whose atoms are finite, and says in ``valid`` which are whole.
    check: what is whole; :func:`~.checks.check_backbones`, with other bounds if wanted, by ``functools.partial``.
    most: draws after which to give up, 100 + 10 n if None.
    progress: a bar; None shows it on terminals only.

    Raises
    ------
    StateError: fewer than ``n`` are whole after ``most`` draws, with the counts. UnsupportedError: the model of something else.
    IncompatibleError: ``n`` below 1, ``most`` below ``n``, an unknown method.
    """
    seed, wanted = as_seed(seed), tuple(guidance) if isinstance(guidance, Sequence) else (guidance,)
    method = method or ("path" if wanted or isinstance(dig.model, Guided) else "ddpm")
    most = 100 + 10 * int(n) if most is None else int(most)
    if n < 1 or most < n:
        raise IncompatibleError(f"expected at least one backbone, and to draw at most as many or more, got n = {n} and most = {most}.")
    size = len(residues(dig.descriptor).kind)
    parts, found, drawn = [], 0, 0
    with bar(label=f"backbones of {size} residues", progress=progress, total=n) as shown:
        while found < n and drawn < most:
            count = min(batch, most - drawn, _needed(n - found, found, drawn))
            for samples in dig.stream(count, seed=seed, steps=steps, method=method, batch=batch, guidance=wanted, start=drawn):
                parts.append(_judged(samples, dig.descriptor, check, drawn, valid_only))
                drawn += len(samples.valid)
                fresh = len(parts[-1].index)
                shown.update(min(fresh, n - found))
                found += fresh
                shown.set_postfix(kept=f"{found / drawn:.0%}")
    made = of_model(dig) | {
        "method": method, "steps": dig.card.steps if steps is None else int(steps),
        "pace": dig.card.pace if steps is None else [], "guidance": [type(g).__name__ for g in wanted],
        "conditions": [p.name for g in wanted for p in getattr(g, "properties", ())],
    }  # fmt: skip
    return _joined(parts, n, drawn, dig.descriptor, seed, made)


class _Part(NamedTuple):
    """Of one batch: what is kept, and of every draw whether its atoms are finite, and if so its breaks and clashes."""

    geometry: torch.Tensor
    index: np.ndarray
    valid: np.ndarray
    log_weight: np.ndarray | None
    properties: dict[str, np.ndarray]
    finite: np.ndarray
    breaks: np.ndarray
    clashes: np.ndarray


def _judged(samples: Samples, descriptor: Descriptor, check: Check, start: int, valid_only: bool) -> _Part:
    found = check(samples.geometry, descriptor)
    positions = samples.geometry.positions
    finite = samples.valid & positions.isfinite().flatten(1).all(1)
    whole = finite & found.ok
    kept = whole if valid_only else finite
    weight, properties = samples.log_weight, samples.properties or {}
    return _Part(
        positions[kept].detach().cpu(), start + kept.nonzero()[:, 0].cpu().numpy(), whole[kept].cpu().numpy(),
        None if weight is None else weight[kept].double().cpu().numpy(),
        {name: x[kept].double().cpu().numpy() for name, x in properties.items()},
        *(x.cpu().numpy() for x in (finite, finite & (found.breaks > 0), finite & (found.clashes > 0))),
    )  # fmt: skip


def _joined(parts: list[_Part], n: int, drawn: int, descriptor: Descriptor, seed: int, made: dict) -> BackboneEnsemble:
    """The first ``n`` kept, and the counts of the draws up to the last of them."""
    index = np.concatenate([part.index for part in parts])
    last = int(index[n - 1]) + 1 if len(index) >= n else drawn
    finite, breaks, clashes = (np.concatenate([part[k] for part in parts])[:last] for k in (5, 6, 7))
    whole = int((finite & ~breaks & ~clashes).sum())
    counts = Counts(last, whole, int(breaks.sum()), int(clashes.sum()), int((~finite).sum()))
    if len(index) < n:
        raise StateError(
            f"{n} backbones were asked for, {len(index)} were found: {counts}. Draw more with most=, look at the others with "
            "valid_only=False, or train the model further."
        )
    positions = torch.cat([part.geometry for part in parts])[:n]
    weights = [part.log_weight for part in parts if part.log_weight is not None]
    return BackboneEnsemble(
        Geometry(positions), descriptor, index[:n], np.concatenate([part.valid for part in parts])[:n], counts, seed,
        np.concatenate(weights)[:n] if weights else None,
        {name: np.concatenate([part.properties[name] for part in parts])[:n] for name in parts[0].properties}, made,
    )  # fmt: skip


def _needed(missing: int, found: int, drawn: int) -> int:
    """Draws that should hold ``missing`` whole ones, by the share so far."""
    share = max(found / drawn, _LEAST) if drawn else 1.0
    return max(1, int(np.ceil(missing / share)))
