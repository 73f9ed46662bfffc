"""An ensemble beside what is known of its system otherwise: a long run that ships, structures of an independent simulation."""

from __future__ import annotations

import math

import numpy as np
import torch

from dig_core.montecarlo.analysis import free_energy_profile, integrated_autocorrelation_time, normalised_weights
from dig_core.montecarlo.chain import Candidates, reduced_energy
from dig_core.random import Streams
from dig_core.types import Geometry

from .subjects import Subject
from .verdicts import Check
from .weights import ERRORS, log_mean

__all__ = ["against_reference", "against_structures"]

_APART = 2**40  # streams of given structures begin here, beyond those of proposals
_SEEN = 0.01  # of probability: bins of less are left out
_EXPECTED = 10.0  # effective samples in a bin: of fewer, none at all may be chance, and errors are no errors of a normal law


def against_reference(name: str, asked: Subject, found: Candidates) -> list[Check]:
    """Populations along phi beside those of the long run that ships with a model, if one does."""
    from ..openmm import backbone_dihedrals
    from ..openmm.pictures import reference_profile

    known = reference_profile(name)
    if known is None:
        return []
    centres, free_energy, stderr = known
    finite = np.isfinite(found.log_weight)
    weights = normalised_weights(found.log_weight[finite])
    phi = backbone_dihedrals(asked.system.topology).measure(found.positions[finite] / 10)[0][:, 0]
    half = (centres[1] - centres[0]) / 2
    edges = np.concatenate([centres - half, centres[-1:] + half])
    ours = free_energy_profile(phi, edges, weights, periodic=True, rng=np.random.default_rng(0))
    mine, theirs = (np.exp(-f) / np.exp(-f[np.isfinite(f)]).sum() for f in (ours.free_energy, free_energy))
    counted = theirs > max(_SEEN, _EXPECTED * float((weights**2).sum()))
    seen = counted & (mine > 0) & np.isfinite(stderr) & np.isfinite(ours.stderr)
    if not counted.any():
        return [Check("reference", None, "too few effective samples for populations beside a long run of parallel tempering")]
    z = np.log(mine[seen] / theirs[seen]) / np.hypot(ours.stderr[seen], stderr[seen])
    missed = int((counted & (mine == 0)).sum())
    worst = float(np.abs(z).max(initial=0.0))
    said = f"of {len(z)} populations along phi, beside a long run of parallel tempering, the worst is {worst:.1f} standard errors off"
    return [Check("reference", worst <= ERRORS and not missed, said + (f", and {missed} are missing" if missed else ""))]


def against_structures(asked: Subject, geometry: Geometry, found: Candidates, seed: int, steps: int | None) -> list[Check]:
    """The mean of Z exp(u + log q) over structures of the ensemble is 1, and less where they have states that the model never proposes.

    Z is that of the proposals. Structures are taken to be in the order of time, so that errors know their correlation.
    """
    count = len(geometry.positions)
    with torch.no_grad():
        log_q = asked.dig.proposal(steps=steps).log_q(geometry, Streams(seed, range(_APART, _APART + count))).numpy()
        u = reduced_energy(asked.energy, geometry).numpy()
    log_z, error = log_mean(found.log_weight)
    usable = np.isfinite(u) & ~np.isnan(log_q)
    if usable.sum() < 10:
        return [Check("independent structures", None, f"{int(usable.sum())} of {count} have an energy, too few to compare")]
    ratio = np.exp(log_z + u[usable] + log_q[usable])
    tau = integrated_autocorrelation_time(ratio)
    stderr = ratio.std(ddof=1) * math.sqrt(max(tau, 1.0) / len(ratio)) if math.isfinite(tau) else 0.0
    mean = float(ratio.mean())
    total = math.hypot(stderr, mean * error)
    z = (mean - 1) / max(total, 1e-12)
    never = float((ratio < 1e-3).mean())
    said = f"the model proposes {mean:.2f} +- {total:.2f} of what {count} structures are; {never:.1%} of them it proposes next to never"
    return [Check("independent structures", abs(z) <= ERRORS and never < 0.05, said)]
