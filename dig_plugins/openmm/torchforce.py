"""The learned law as an openmm-torch TorchForce, where a build of openmm-torch works: found by trying it in a child process."""

from __future__ import annotations

import functools
import subprocess
import sys
import warnings
from importlib import import_module
from typing import NamedTuple

import numpy as np
import openmm
import torch
from torch import Tensor, nn

from dig_core.errors import UnsupportedError
from dig_core.types import Geometry

from .convert import NM_PER_ANGSTROM, helix
from .learned import LearnedLaw

__all__ = ["Probe", "make_torch_force", "probe", "scripted"]

_SECONDS = 120
_TRIAL = """
import copy, openmm, openmmtorch, torch
class Sum(torch.nn.Module):
    def forward(self, positions):
        return positions.square().sum()
module = torch.jit.trace(Sum(), torch.ones(1, 3))  # scripting would need this source in a file
system = openmm.System()
system.addParticle(1.0)
system.addForce(openmmtorch.TorchForce(module))
def energy(system):
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions([[1.0, 2.0, 3.0]])
    found = context.getState(energy=True).getPotentialEnergy()._value
    assert abs(found - 14.0) < 1e-6, found
energy(system)
print("works", flush=True)
energy(copy.deepcopy(system))
print("copies", flush=True)
"""


class Probe(NamedTuple):
    """``works``: gives energies. ``copies``: so does a System's copy, which openmmtools and XML need. ``why`` not, if not."""

    works: bool
    copies: bool
    why: str


@functools.cache
def probe() -> Probe:
    """Whether openmm-torch works here. Tried once, in a child process: a build for another torch or OpenMM ends its process."""
    try:
        done = subprocess.run([sys.executable, "-c", _TRIAL], capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Probe(False, False, str(error))
    said, errors = done.stdout.split(), [line for line in done.stderr.splitlines() if line[:1].isalpha() and "Error" in line]
    why = "" if done.returncode == 0 else f"exit status {done.returncode}, {errors[-1] if errors else 'no error message'}"
    return Probe("works" in said, "copies" in said, why)


class _Law(nn.Module):
    """Positions (N, 3) nm -> values and weights (M,): the gradient of log q is that of the values, so weighted.

    TorchForce freezes what it runs, and with it ``detach`` is gone: a score that is no gradient has to stay outside.
    """

    def __init__(self, law: LearnedLaw, t: float, indices: list[int]):
        super().__init__()
        self.law = law
        self.register_buffer("t", torch.tensor([t], dtype=torch.float64))
        self.register_buffer("indices", torch.tensor(indices, dtype=torch.long))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        law, x = self.law, positions.double()[self.indices] / NM_PER_ANGSTROM
        x = (x - x.mean(dim=0))[None]
        if law.conservative:
            value = law.log_density(x, self.t)
            return value, torch.ones_like(value)
        state, log_det = law.coordinates.encode(Geometry(x), law.descriptor)
        score = law.model(state, self.t, law.descriptor)
        return torch.cat([state[name].flatten() for name in state] + [log_det]), torch.cat(
            [score[name].flatten() for name in state] + [torch.ones_like(log_det)]
        )


class _Checked(nn.Module):
    """What TorchForce calls: energy and forces, refused where they are not finite. OpenMM itself would carry a NaN on."""

    def __init__(self, law: nn.Module, kt: float, energy: bool):
        super().__init__()
        self.law, self.kt, self.energy = law, kt, energy

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        x = positions.detach().requires_grad_()
        value, weight = self.law(x)
        weights: list[Tensor | None] | None = [weight]
        gradient = torch.autograd.grad([value], [x], weights)[0]
        if gradient is None or not bool(torch.isfinite(value).all() & torch.isfinite(gradient).all()):
            raise RuntimeError("the learned force or energy is not finite: the dynamics blew up. Shorten the time step or minimise first.")
        energy = -self.kt * value.detach().sum()
        return energy if self.energy else torch.zeros_like(energy), self.kt * gradient


def scripted(law: LearnedLaw, kt: float, t: float, energy: bool, particles: list[int]) -> torch.jit.ScriptModule:
    """Positions (M, 3) nm of a System -> (kJ/mol, (M, 3) kJ/mol/nm), the model at a noise time traced; ``kt`` kJ/mol."""
    positions = np.zeros((1 + max(particles), 3))
    positions[particles] = helix(law.n_atoms)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numbers of atoms are constants here, and TorchScript is deprecated without a successor
        traced = torch.jit.trace(_Law(law, t, particles), torch.from_numpy(positions), check_trace=False)
        return torch.jit.script(_Checked(traced, kt, energy))


def make_torch_force(law: LearnedLaw, kt: float, t: float, energy: bool, indices: list[int]) -> openmm.Force:
    """:func:`scripted` in a TorchForce; ``indices`` of particles, the first ones in order if empty.

    Tried by hand, on Reference and CPU, no GPU: OpenMM 8.6.1 with acellera-openmmtorch-cpu 1.10 and torch 2.12.1 runs, but
    its Systems cannot be copied or stored. openmmtorch 1.5, for torch 2.9, can do that with OpenMM 8.4 alone. Neither works
    with torch 2.13. Their successor ``PythonTorchForce`` is in no release yet.

    Raises UnsupportedError where openmm-torch does not work, or gives other forces than the model.
    """
    found = probe()
    if not found.works:
        raise UnsupportedError(
            f"expected an openmm-torch that works with torch {torch.__version__} and OpenMM {openmm.__version__}, tried a small "
            f"TorchForce: {found.why}. Use backend='python', which needs nothing else, or install a build for these versions."
        )
    particles = indices or list(range(law.n_atoms))
    module = scripted(law, kt, t, energy, particles)
    _check(_force_of(module), law, kt, t, particles)
    return _force_of(module)


def _force_of(module: torch.jit.ScriptModule) -> openmm.Force:
    force = import_module("openmmtorch").TorchForce(module)
    force.setOutputsForces(True)
    force.setName("DiG")
    return force


def _check(force: openmm.Force, law: LearnedLaw, kt: float, t: float, particles: list[int]) -> None:
    """In OpenMM, at a structure other than the one that was traced, the forces must be the model's own."""
    positions = np.zeros((1 + max(particles), 3))
    positions[particles] = helix(law.n_atoms) * [1.1, 0.9, 1.05]
    system = openmm.System()
    for _ in positions:
        system.addParticle(1.0)
    system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    forces = context.getState(forces=True).getForces(asNumpy=True)._value[particles]
    gradient = law.evaluate(torch.from_numpy(positions[particles]) / NM_PER_ANGSTROM, t)[1].numpy()
    wanted = (kt / NM_PER_ANGSTROM) * (gradient - gradient.mean(axis=0))
    if not np.allclose(forces, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max()):
        raise UnsupportedError(f"TorchForce gives other forces than the model {law.card.name!r} itself: use backend='python'.")
