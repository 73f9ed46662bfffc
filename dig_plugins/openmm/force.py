"""MD on a learned potential: an OpenMM Force of a model, -kT log q at a small noise level."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import openmm
import torch

from dig_core.errors import DiGError, IncompatibleError, StateError, UnsupportedError

from .convert import NM_PER_ANGSTROM, kelvin, reduced_unit, to_geometry
from .learned import LearnedLaw, identify, load

__all__ = ["LearnedForce", "make_force"]

_log = logging.getLogger(__name__)
_EVERY = 100  # steps between two looks at whether the model knows such structures: they cost as much as a tenth of a force
_BACKENDS = ("python", "torch", "auto")


def make_force(
    model: str | Path, temperature=None, *, backend: str = "python", particles=None, t: float = 0.01, energy: bool | None = None
) -> openmm.Force:
    """The Force under which MD at ``temperature`` samples the model's law: kT times the score, pulled back to the atoms.

    ::

        system.addForce(make_force("alanine-dipeptide"))
        integrator = openmm.LangevinMiddleIntegrator(300, 10 / unit.picosecond, 1 * unit.femtosecond)

    The law is that of the noisy state at time ``t``, read as a structure: standardised coordinates keep their means and
    variances under the usual schedules, detail finer than the noise (sigma(t), a tenth of a width and a twentieth of a radian
    in the shipped model) is blurred. The potential is smooth at that scale and as stiff as the molecule's own bonds: 1 fs
    where hydrogens have their own mass. Labels of equivalent end atoms are followed, see :class:`.learned.LearnedLaw`.

    A score that is not a gradient field (``NoiseScore``) drives the atoms round in circles a little: run it with a
    thermostat of 5 to 20 / ps, never at constant energy, and look at the temperature. Such a force has no energy and reports
    0.0: minimisers, replica exchange, barostats, reweighting and anything else that reads energies is meaningless on it.
    For an ``EnergyScore`` the energy is -kT log q, up to a constant.

    Parameters
    ----------
    model: a shipped model's name or a checkpoint's path; a model in memory has to be saved first.
    temperature: K or a Quantity; the model's own if None. Another one is refused, the law belongs to its temperature.
    backend: ``"python"``, an ``openmm.PythonForce``, needs nothing else and travels as file name and sha256. ``"torch"``, a
        ``TorchForce``, needs a build of openmm-torch that works here and travels with the whole model inside.
        ``"auto"`` is the second where it works in every respect, and the first elsewhere.
    particles: indices of the model's atoms, in its order, if the System has others; every particle of the System if None.
    t: noise time in (0, 1]. Larger is smoother and blurs more.
    energy: True insists on energies, False reports 0.0, None gives them where the model has them.

    Raises
    ------
    IncompatibleError: no or another temperature, bad ``t`` or ``particles``, a model in memory. UnsupportedError: energies of
    a model that has none, or no working openmm-torch. CheckpointError: no such model.
    """
    if backend not in _BACKENDS:
        raise IncompatibleError(f"backend must be one of {', '.join(_BACKENDS)}, got {backend!r}.")
    if not 0 < t <= 1:
        raise IncompatibleError(f"expected a noise time t in (0, 1], got {t}: at t = 0 the score of a diffusion model diverges.")
    source, sha256 = identify(model)
    law = load(source, sha256)
    if energy and not law.conservative:
        raise UnsupportedError(
            f"the score of {law.card.name!r} is not the gradient of a density: there is no energy to report. Use energy=None for a "
            "force that reports 0.0, or a model with an EnergyScore."
        )
    kt = reduced_unit(_temperature(law, temperature))
    indices = _particles(law, particles)
    wanted = law.conservative if energy is None else energy
    if backend != "python":
        from .torchforce import make_torch_force, probe

        if backend == "torch" or probe().copies:
            return make_torch_force(law, kt, float(t), wanted, indices)
    force = openmm.PythonForce(LearnedForce(source, sha256, kt, float(t), wanted))
    force.setName("DiG")
    force.setParticles(indices)
    return force


@dataclass(frozen=True)
class LearnedForce:
    """What ``openmm.PythonForce`` calls: energy and forces of a checkpoint, itself a few strings and numbers.

    ``source`` and ``sha256`` as in :func:`.learned.identify`; ``kt`` kJ/mol; ``t`` noise time; ``energy`` whether to report it.
    OpenMM keeps an exception's text alone: the last one raised in this process, traceback and all, is
    ``LearnedForce.last_exception``, and is logged.
    """

    source: str
    sha256: str
    kt: float
    t: float
    energy: bool
    last_exception: ClassVar[Exception | None] = None

    def __call__(self, state: openmm.State) -> tuple[float, np.ndarray]:
        """kJ/mol, and (N, 3) kJ/mol/nm without a net force. Raises StateError naming step and time."""
        try:
            return self._evaluate(state)
        except Exception as error:
            LearnedForce.last_exception = error
            _log.exception("the learned force failed %s", _moment(state))
            if isinstance(error, DiGError):
                raise
            raise StateError(
                f"the learned force failed {_moment(state)}: {type(error).__name__}: {error}. The traceback is in the log and in "
                "dig_plugins.openmm.LearnedForce.last_exception."
            ) from error

    def _evaluate(self, state: openmm.State) -> tuple[float, np.ndarray]:
        law = load(self.source, self.sha256)
        geometry = to_geometry(state.getPositions(asNumpy=True)._value)  # plain nm: building units takes as long as small forces
        positions = geometry.positions[0]
        if len(positions) != law.n_atoms:
            raise IncompatibleError(
                f"expected the {law.n_atoms} atoms of {law.card.name!r}, the force acts on {len(positions)} particles: pass particles=."
            )
        if not bool(torch.isfinite(positions).all()):
            raise StateError(f"positions are not finite {_moment(state)}: the dynamics blew up. Shorten the time step or minimise first.")
        if state.getStepCount() > 0 and state.getStepCount() % _EVERY == 0:  # minimisers come from afar
            law.check_near(positions)
        log_q, gradient = law.evaluate(positions, self.t)
        if not (np.isfinite(log_q) and bool(torch.isfinite(gradient).all())):
            raise StateError(
                f"the model {law.card.name!r} gives a force or energy that is not finite {_moment(state)}: atoms on top of each other, "
                "in a straight line, or a damaged model."
            )
        forces = (gradient - gradient.mean(dim=0)).numpy() * (self.kt / NM_PER_ANGSTROM)
        return -self.kt * log_q if self.energy else 0.0, np.ascontiguousarray(forces)


def _moment(state: openmm.State) -> str:
    return f"at step {state.getStepCount()}, {state.getTime()._value:g} ps"


def _temperature(law: LearnedLaw, given) -> float:
    own = law.card.temperature
    if given is None and own is None:
        raise IncompatibleError(f"the model {law.card.name!r} names no temperature: pass temperature= in K.")
    temperature = kelvin(own if given is None else given)
    if own is not None and abs(temperature - own) > 0.1:
        raise IncompatibleError(
            f"expected the temperature of the model {law.card.name!r}, {own:g} K, got {temperature:g} K: its law holds at its own "
            "temperature only. Leave temperature out, and run MD at the model's."
        )
    return temperature


def _particles(law: LearnedLaw, particles) -> list[int]:
    if particles is None:
        return []
    indices = [int(i) for i in particles]
    if len(indices) != law.n_atoms or len(set(indices)) != len(indices) or min(indices) < 0:
        raise IncompatibleError(
            f"expected the indices of {law.n_atoms} different particles in the order of {law.card.name!r}, got {len(indices)}, "
            f"{len(set(indices))} of them different."
        )
    return indices
