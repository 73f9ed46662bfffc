"""A DiG as a sampler of Atoms: independent structures, their log-probabilities, exact weights and free energies."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from torch import nn

from dig_core.dig import DiG
from dig_core.energy import Energy
from dig_core.errors import IncompatibleError, StateError
from dig_core.montecarlo.analysis import Estimate
from dig_core.montecarlo.chain import reduced_energy
from dig_core.random import as_seed
from dig_core.types import LogProb

from .. import models
from .convert import check_atoms, check_held, kT, model_temperature, to_atoms, to_geometry
from .energy import ASEEnergy

__all__ = ["DiGSampler"]


class DiGSampler:
    """Attach it to Atoms and ask for samples, log-probabilities, weights and free energies::

        sampler = DiGSampler("model.safetensors", atoms)
        images = sampler.sample(1000, seed=1)
        sampler.reweight(EMT())                          # exact averages of exp(-E/kT) from here on
        free_energy, error = sampler.free_energy(EMT())  # eV

    Every image carries numbers and strings in ``info``, which extended XYZ, .traj and ASE databases keep
    (:func:`~dig_plugins.ase.convert.write`): ``dig_log_q``, nats, the log-density (over a path, see
    :class:`~dig_core.montecarlo.proposals.PathProposal`) in 1/Angstrom^(3N - 3) or that of the model's coordinates;
    ``dig_valid``, 0 where a state has no structure; ``dig_index`` and ``dig_seed``, which alone decide the structure;
    ``dig_model``, name and sha256; and, once weighed, ``dig_log_weight`` = -E/kT - log q, -inf for what cannot be.

    Parameters
    ----------
    model: a DiG, a shipped model's name, or a checkpoint's path.
    atoms: what samples are copies of (cell, constraints, tags, arrays, info), and where they are put; the model's reference in
        vacuum if None.
    steps, batch: of the sampling; the model's own steps if None.
    """

    def __init__(self, model: DiG | str | Path, atoms: Atoms | None = None, *, steps: int | None = None, batch: int = 256):
        self.dig = model if isinstance(model, DiG) else models.load(model)
        self.name = f"{self.dig.card.name} sha256:{_digest(model)[:16]}"
        self.steps, self.batch = steps, int(batch)
        self.images: list[Atoms] = []
        self.attach(_reference(self.dig) if atoms is None else atoms)

    def attach(self, atoms: Atoms) -> DiGSampler:
        """Draw copies of these Atoms from now on. Raises IncompatibleError, StateError if they are not the model's."""
        check_atoms(atoms, self.dig)
        check_held(atoms, self.dig)
        self.atoms = atoms.copy()
        return self

    def sample(self, n: int, seed: int | None = None, *, start: int = 0) -> list[Atoms]:
        """``n`` independent structures, number ``start`` and those after it of ``seed`` (fresh, and recorded, if None).

        They are kept as ``images``, which :meth:`reweight` and :meth:`free_energy` take if given no others.
        """
        seed, images = as_seed(seed), []
        for drawn in self.dig.stream(n, seed=seed, steps=self.steps, method="path", batch=self.batch, start=start):
            log_q, valid = drawn.known_log_q().tolist(), drawn.valid.tolist()
            for image, value, possible in zip(to_atoms(drawn.geometry, self.atoms), log_q, valid, strict=True):
                if "translation" in self.dig.coordinates.gauge:
                    image.positions += self.atoms.positions.mean(axis=0)
                about = {"log_q": value, "valid": int(possible), "index": start + len(images), "seed": seed, "model": self.name}
                image.info.update({f"dig_{key}": found for key, found in about.items()})
                images.append(image)
        self.images = images
        return images

    def log_prob(self, images: Atoms | Sequence[Atoms], *, kind: str = "trace", seed: int = 0) -> LogProb:
        """Log-density of any structures of these atoms by the probability flow; see :meth:`dig_core.dig.DiG.log_prob`."""
        images = [images] if isinstance(images, Atoms) else list(images)
        for image in images:
            check_atoms(image, self.dig)
        return self.dig.log_prob(to_geometry(images), steps=self.steps, kind=kind, seed=seed)

    def reweight(self, energy: Any, images: Sequence[Atoms] | None = None) -> np.ndarray:
        """(n,) log weights -E/kT - log q, raw, under which averages over the images are those of exp(-E/kT).

        ``energy``: an ASE calculator, taken at the model's temperature, or any Energy (an ASEEnergy has a temperature of its
        own). Images get ``dig_log_weight``, and their energy as a SinglePointCalculator where it is known in eV. -inf marks
        invalid samples and failed energies.
        """
        images, energy = self._drawn(images), self._as_energy(energy)
        log_weights = np.full(len(images), -math.inf)
        log_q = np.array([image.info["dig_log_q"] for image in images], dtype=np.float64)
        usable = np.flatnonzero([bool(image.info["dig_valid"]) and math.isfinite(image.info["dig_log_q"]) for image in images])
        for low in range(0, len(usable), self.batch):
            chosen = usable[low : low + self.batch]
            with torch.no_grad():
                u = reduced_energy(energy, to_geometry([images[i] for i in chosen])).cpu().numpy()
            log_weights[chosen] = -u - log_q[chosen]
            for i, value in zip(chosen, u, strict=True):
                if isinstance(energy, ASEEnergy) and math.isfinite(value):
                    images[i].calc = SinglePointCalculator(images[i], energy=float(value * energy.kt))
        for image, value in zip(images, log_weights.tolist(), strict=True):
            image.info["dig_log_weight"] = value
        return log_weights

    def free_energy(self, energy: Any, images: Sequence[Atoms] | None = None) -> Estimate:
        """-kT ln of the configuration integral in eV and its standard error, from raw weights.

        The integral of exp(-E/kT) over the model's coordinates in Angstrom, for molecules over shapes and orientations about a
        fixed centroid. The mean of the weights is unbiased, its logarithm to first order in the error. StateError if no
        sample has any weight.
        """
        energy = self._as_energy(energy)
        kt = energy.kt if isinstance(energy, ASEEnergy) else kT(model_temperature(self.dig, None))
        log_weights = self.reweight(energy, images)
        top = log_weights.max()
        if not math.isfinite(top):
            raise StateError(f"no sample of {len(log_weights)} has a finite weight: check the energy. {_why(energy)}")
        weights = np.exp(log_weights - top)
        stderr = weights.std(ddof=1) / weights.mean() / math.sqrt(len(weights)) if len(weights) > 1 else math.nan
        return Estimate(-kt * float(top + math.log(weights.mean())), kt * float(stderr))

    def _drawn(self, images: Sequence[Atoms] | None) -> list[Atoms]:
        images = self.images if images is None else list(images)
        if not images:
            raise StateError("there are no samples to weigh: call sample(n, seed) first, or pass images.")
        for number, image in enumerate(images):
            missing = [key for key in ("dig_log_q", "dig_valid") if key not in image.info]
            if missing or image.info.get("dig_model", self.name) != self.name:
                found = f"no {missing[0]}" if missing else f"dig_model = {image.info['dig_model']!r}"
                raise IncompatibleError(f"image {number} has {found}: expected samples of {self.name!r}, with their info.")
        return images

    def _as_energy(self, energy: Any) -> Energy:
        if not hasattr(energy, "get_potential_energy") and callable(energy):
            return energy
        return ASEEnergy(energy, self.atoms, model_temperature(self.dig, None))


def _why(energy: Energy) -> str:
    trace = getattr(energy, "first_traceback", None)
    return f"The first failure:\n{trace}" if trace else ""


def _reference(dig: DiG) -> Atoms:
    descriptor = dig.descriptor
    if descriptor.reference is None:
        raise IncompatibleError(f"the model {dig.card.name!r} has no reference structure: pass atoms=.")
    cell = descriptor.reference.cell
    atoms = Atoms(descriptor.numbers.numpy(), positions=descriptor.reference.positions[0].numpy(), pbc=descriptor.pbc.numpy())
    if cell is not None:
        atoms.set_cell(cell[0].numpy())
    fixed = np.flatnonzero(~descriptor.mobile.numpy())
    if len(fixed):
        atoms.set_constraint(FixAtoms(indices=fixed))
    return atoms


def _digest(model: DiG | str | Path) -> str:
    """sha256 of the checkpoint, or of the parameters of a model that is none."""
    if not isinstance(model, DiG):
        given = Path(model)
        file = given if given.suffix or len(given.parts) > 1 else models.path(str(model))
        return hashlib.sha256(file.read_bytes()).hexdigest()
    digest = hashlib.sha256(model.descriptor.numbers.numpy().tobytes())
    for part in (model.model, model.coordinates):
        if isinstance(part, nn.Module):
            for name, value in part.state_dict().items():
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
