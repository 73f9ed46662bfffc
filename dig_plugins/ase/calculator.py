"""A DiG as an ASE calculator: forces of the law it has learned, and its energy where there is one."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError
from torch import nn

from dig_core.dig import DiG
from dig_core.types import Geometry

from .. import models
from .convert import check_atoms, kT, model_temperature, to_geometry

__all__ = ["DiGCalculator"]


class DiGCalculator(BaseCalculator):
    """Forces = kT grad log q_t, eV/Angstrom; energy = -kT log q_t, eV up to a constant, if the score is a gradient.

    The energy is a potential of mean force of the model, not of a Hamiltonian. For models whose score is no gradient field
    there is none, and MD on the forces alone heats a little (use friction).

    Parameters
    ----------
    model: a DiG, a shipped model's name, or a checkpoint's path; of the Atoms' elements in their order.
    temperature: K; the model's if None. Another one only rescales; refused unless ``allow_temperature_mismatch``.
    t: noise time of the score; smaller is sharper, and worse known to the network.
    nan_energy: report NaN where there is no energy, for optimisers, which write it in their log. They then follow the
        forces; do not choose one with a line search.

    Raises
    ------
    IncompatibleError: other elements, number or order of atoms, another temperature. StateError: positions not finite, or a
    bond torn. PropertyNotImplementedError: an energy that is not there.
    """

    implemented_properties = ["energy", "free_energy", "forces"]
    name = "dig"

    def __init__(
        self,
        model: DiG | str | Path,
        temperature: float | None = None,
        *,
        t: float = 0.01,
        nan_energy: bool = False,
        allow_temperature_mismatch: bool = False,
    ):
        super().__init__(parameters={"t": float(t)})
        dig = model if isinstance(model, DiG) else models.load(model)
        self.temperature = model_temperature(dig, temperature, allow_temperature_mismatch)
        self.dig, self.t, self.nan_energy = _precise(dig), float(t), bool(nan_energy)
        self.conservative = bool(dig.model.conservative) and hasattr(dig.model, "log_density")

    def calculate(self, atoms: Atoms, properties, system_changes) -> None:
        """Fill ``results``; see the class for what is raised."""
        check_atoms(atoms, self.dig)
        kt, geometry = kT(self.temperature), to_geometry(atoms)
        if self.conservative:
            value, slope = self._log_density(geometry)
            energy = -kt * value
        else:
            slope, energy = self.dig.reduced_force(geometry, t=self.t)[0], np.nan
        forces = kt * slope.numpy()
        if "translation" in self.dig.coordinates.gauge:
            forces -= forces.mean(axis=0)
        self.results = {"forces": forces}
        if self.conservative or self.nan_energy:
            self.results |= {"energy": float(energy), "free_energy": float(energy)}

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True):
        """As BaseCalculator's; says why there is no energy."""
        if name in ("energy", "free_energy") and not (self.conservative or self.nan_energy):
            raise PropertyNotImplementedError(
                f"the score of the model {self.dig.card.name!r} ({type(self.dig.model).__name__}) is not a gradient field, so that it "
                "has forces and no energy. Take a model trained with EnergyScore; for densities ask DiGSampler.log_prob; run MD "
                "without an energy in its log; or pass nan_energy=True to let an optimiser follow the forces."
            )
        return super().get_property(name, atoms, allow_calculation)

    def todict(self) -> dict:
        """What a trajectory says of it; strings and numbers."""
        return {"model": self.dig.card.name, "temperature": self.temperature, "t": self.t}

    def _log_density(self, geometry: Geometry) -> tuple[float, torch.Tensor]:
        """log q_t of one structure in 1/Angstrom^3N-3, up to a constant, and its gradient (N, 3)."""
        with torch.inference_mode(False), torch.enable_grad():
            positions = geometry.positions.clone().requires_grad_()
            state, log_det = self.dig.coordinates.encode(Geometry(positions, geometry.cell), self.dig.descriptor)
            time = torch.tensor([self.t], dtype=torch.float64)
            value = self.dig.model.log_density(state, time, self.dig.descriptor) + log_det
            slope = torch.autograd.grad(value.sum(), positions)[0]
        return float(value.detach()), slope[0]


def _precise(dig: DiG) -> DiG:
    """In float64: one structure at a time costs the same, and errors of 1e-3 in the force heat."""
    if not isinstance(dig.model, nn.Module):
        return dig
    model = copy.deepcopy(dig.model).double().eval().requires_grad_(False)
    return DiG(model, dig.coordinates, dig.descriptor, dig.card)
