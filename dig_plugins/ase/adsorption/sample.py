"""Independent samples of an adsorbate on a slab, with log-probabilities, and exact ones where an energy is given."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError, StateError
from dig_core.montecarlo.analysis import normalised_weights
from dig_core.montecarlo.chain import MonteCarlo, Statistics
from dig_core.random import Streams, as_seed
from dig_core.system.surface import guest_of
from dig_core.types import Geometry, Samples

from ... import models
from ..energy import ASEEnergy
from .describe import check_scope, place_and_describe
from .ensemble import CORRECTIONS, AdsorptionEnsemble

__all__ = ["on_slab", "sample_adsorption"]

_BLOCK = 64


def on_slab(
    slab: Atoms, adsorbate, model: DiG | str | Path = "adsorb-general", *, temperature: float = 300.0, normal=None,
    anchor: int | None = None, yielding: bool = False, unseen: bool = False,
) -> tuple[DiG, Atoms]:  # fmt: skip
    """``model`` bound to ``adsorbate`` on ``slab``, and the structure that it describes, adsorbate last.

    Arguments and errors are those of :func:`sample_adsorption`.
    """
    dig = model if isinstance(model, DiG) else models.load(model)
    descriptor, placed = place_and_describe(
        slab, adsorbate, temperature=temperature, normal=normal, anchor=anchor, yielding=yielding
    )
    if not unseen:
        check_scope(dig, slab, placed[len(slab) :], temperature)
    return dig.on(descriptor), placed


def sample_adsorption(
    slab: Atoms, adsorbate, model: DiG | str | Path = "adsorb-general", *, n: int = 1000, temperature: float = 300.0,
    seed: int | None = None, energy=None, correct: str | None = None, normal=None,
    anchor: int | None = None, yielding: bool = False, unseen: bool = False, steps: int | None = None, batch: int = 512,
) -> AdsorptionEnsemble:  # fmt: skip
    """``n`` structures of ``adsorbate`` on ``slab`` from the equilibrium distribution that ``model`` has learned.

    Parameters
    ----------
    slab: Atoms with vacuum on the side in question (``normal`` chooses it), relaxed as you want it: it stays as given unless
        ``yielding``, when atoms that no FixAtoms holds move too.
    adsorbate: Atoms, an element or a g2 name; it moves as a rigid body. ``anchor``: the index of its atom that binds.
    model: a DiG, the name of a shipped model or a checkpoint's path; it must serve many slabs, or this one.
    temperature: K. seed: recorded in ``source``.
    energy: any ASE calculator, or None. With it every structure is evaluated once, and carries its exact weight.
    correct: None, ``"reweight"`` or ``"mc"``, a chain of independence Metropolis steps; both make the ensemble that of
        ``energy``, whatever the model's quality. A calculator that fails on a structure excludes that structure, counted.
    unseen: take the model's guess for elements, adsorbates and temperatures that it was not trained on.
    steps: of the path; the model's own if None.

    Raises
    ------
    IncompatibleError: a slab without vacuum, with the wrong axis periodic or too small; an unknown adsorbate; a correction
    without an energy. UnsupportedError: what the model has not seen, unless ``unseen``. StateError: no structure is possible.
    """
    if correct not in CORRECTIONS:
        raise IncompatibleError(f"expected correct to be one of {CORRECTIONS}, got {correct!r}.")
    if correct is not None and energy is None:
        raise IncompatibleError(f"correct={correct!r} needs energy=, an ASE calculator: it says what to correct to.")
    if n < 1:
        raise IncompatibleError(f"expected at least 1 sample, got n = {n}.")
    wall, cpu, seed = time.monotonic(), time.process_time(), as_seed(seed)
    dig, placed = on_slab(
        slab, adsorbate, model, temperature=temperature, normal=normal, anchor=anchor, yielding=yielding, unseen=unseen
    )
    reduced = None if energy is None else ASEEnergy(energy, placed, temperature)
    source = f"{dig.card.name}, seed {seed}"
    if correct == "mc" and reduced is not None:
        made, counts = _chain(dig, reduced, n, seed, steps, batch)
        source += f", acceptance {counts.acceptance:.3f}, longest run of rejections {counts.longest_rejection_run}"
    else:
        made = _independent(dig, reduced, n, seed, steps, batch)
    ensemble = AdsorptionEnsemble(
        template=placed, adsorbate=tuple(guest_of(dig.descriptor).tolist()), temperature=temperature, correction=correct,
        energy_name="" if reduced is None else f"{_name(energy)}, total energy of slab and adsorbate",
        source=source, n_calls=0 if reduced is None else reduced.n_evaluations, **made,
    )  # fmt: skip
    return replace(ensemble.labelled(), wall_s=time.monotonic() - wall, cpu_s=time.process_time() - cpu)


def _independent(dig: DiG, energy: ASEEnergy | None, n: int, seed: int, steps: int | None, batch: int) -> dict:
    parts = [_weighed(samples, energy) for samples in dig.stream(n, seed=seed, steps=steps, method="path", batch=batch)]
    if energy is not None and energy.first_traceback and not any(np.isfinite(part["log_weight"]).any() for part in parts):
        raise StateError(f"none of {n} structures has an energy ({dict(energy.failures)}). The first failure:\n{energy.first_traceback}")
    return {key: None if parts[0][key] is None else np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _weighed(samples: Samples, energy: ASEEnergy | None) -> dict:
    log_q, valid = samples.known_log_q().numpy(), samples.valid.numpy()
    found = {
        "positions": samples.geometry.positions.numpy(),
        "log_q": log_q,
        "valid": valid,
        "log_weight": None,
        "energies": None,
    }
    if energy is not None:
        with torch.no_grad():
            u = energy(samples.geometry).numpy()
        good = valid & np.isfinite(u)
        weight = np.where(good, -np.where(good, u, 0.0) - log_q, -np.inf)
        found |= {"energies": np.where(good, u * energy.kt, np.nan), "log_weight": weight, "valid": good}
    return found


def _chain(dig: DiG, energy: ASEEnergy, n: int, seed: int, steps: int | None, batch: int) -> tuple[dict, Statistics]:
    """``n`` states of a Metropolis chain, and its counts; it starts from a structure drawn by its weight among the first proposals."""
    proposal = dig.proposal(steps=steps)
    size = min(batch, max(_BLOCK, n))
    first = _weighed(proposal.draw(_BLOCK, Streams(seed + 1, range(_BLOCK))), energy)
    if not np.isfinite(first["log_weight"]).any():
        raise StateError(
            f"none of {_BLOCK} proposals has an energy ({dict(energy.failures)}): check the calculator's elements. "
            f"The first failure:\n{energy.first_traceback or 'no exception'}"
        )
    shares = normalised_weights(first["log_weight"])
    start = int(np.searchsorted(np.cumsum(shares), float(Streams(seed + 1, [_BLOCK]).uniform(1)) * (1 - 1e-12)))
    chain = MonteCarlo(
        proposal, energy, Geometry(torch.as_tensor(first["positions"][start])[None]), seed=seed, batch=size
    )
    here, left, statistics = float(first["energies"][start]), n, Statistics()
    positions, energies = [], []
    while left > 0:
        visited, records = chain.block(min(_BLOCK, left))
        positions.append(visited)
        for u, accepted in zip(records.u, records.accepted, strict=True):
            here = float(u) * energy.kt if accepted else here
            energies.append(here)
        left, statistics = left - len(visited), statistics.after(records)
    made = {"positions": np.concatenate(positions), "log_q": None, "log_weight": None, "energies": np.array(energies)}
    return {**made, "valid": np.ones(n, dtype=bool)}, statistics


def _name(calculator) -> str:
    """As its authors spell it: ASE's own ``name`` is in lower case."""
    kind = type(calculator).__name__
    return kind.removesuffix("Calculator") or kind
