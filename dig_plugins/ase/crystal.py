"""One call from a composition and a calculator to a model of its crystals: their law at a temperature and a pressure, without data."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers
from ase.formula import Formula
from torch import Tensor

from dig_core.dig import Card, DiG
from dig_core.errors import IncompatibleError
from dig_core.files import owned
from dig_core.montecarlo.analysis import effective_sample_size, metropolis_acceptance
from dig_core.montecarlo.chain import Pool
from dig_core.nn import CrystalGraphormer
from dig_core.progress import Show
from dig_core.random import as_seed
from dig_core.score import NoiseScore
from dig_core.system.crystal import compact, contact_volume, crystal
from dig_core.training.fit import Fitted, Stage
from dig_core.training.fit import fit as run_stages
from dig_core.training.loop import LoopConfig
from dig_core.training.population import Population
from dig_core.training.stages import Denoise, Reweight
from dig_core.types import Geometry

from .energy import ASEEnergy

__all__ = ["CrystalEnergy", "fit_crystal"]

_MOVES, _HARVEST, _RUNGS = 4, 20, 14  # of a population: what its walkers do, and how many rungs a crystal takes or so
_EVERY = 20  # evaluations a frame, where few are spread
_MANY = 10_000  # atoms: nobody means a cell of more
_WIDTH = 0.2  # of the logarithm of the volume at first: nothing is known of it but the size of atoms


class CrystalEnergy(ASEEnergy):
    """u = (E + pV) / kT of crystals of ``numbers`` (N,), from any ASE calculator; with stress, if gradients are asked for.

    A lattice has infinitely many bases, over which exp(-u) has no integral. Here it counts in its compact ones alone
    (:func:`~dig_core.system.crystal.compact`): in others u = +inf, and the calculator is not asked. Axes are still named in
    any order and direction. The law is then that of crystals at constant pressure and temperature; averages of what does not
    depend on the basis are those over crystals.

    ``temperature`` K, ``pressure`` GPa; the rest, and errors, as of :class:`ASEEnergy`.
    """

    def __init__(
        self, calculator: Any, numbers, temperature: float, *, pressure: float = 0.0, executor: Executor | None = None, chunk: int = 8
    ):
        template = Atoms(numbers=np.asarray(numbers), pbc=True)
        super().__init__(calculator, template, temperature, pressure=pressure, executor=executor, chunk=chunk)

    def _evaluate(self, geometry: Geometry, *, gradient: bool = False, strain: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        positions, cell = geometry
        if cell is None:
            raise IncompatibleError("a crystal needs a cell, (B, 3, 3) Angstrom with lattice vectors as rows; got a geometry without one.")
        asked = _is_compact(cell.detach().double()).nonzero()[:, 0]
        found = super()._evaluate(Geometry(positions[asked], cell[asked]), gradient=gradient, strain=strain)
        everywhere = torch.full((len(cell),), math.inf).double(), torch.zeros(positions.shape).double(), torch.zeros(cell.shape).double()
        for whole, part in zip(everywhere, found, strict=True):
            whole[asked.cpu()] = part
        return everywhere


def _is_compact(cell: Tensor) -> Tensor:
    """(B,) bool; cells that are not finite or flat are left to the calculator's own check."""
    odd = ~(cell.isfinite().flatten(1).all(1) & (torch.linalg.det(cell).abs() > 1e-6))
    safe = torch.where(odd[:, None, None], torch.eye(3).to(cell), cell)
    return (compact(safe) == torch.eye(3, dtype=torch.long)).all(2).all(1) | odd


def fit_crystal(
    composition: str | Mapping[str, int], calculator: Any, *, temperature: float, pressure: float = 0.0, evaluations: int = 100_000,
    steps: int = 1500, volume: float | None = None, out: str | Path | None = None, seed: int | None = None,
    executor: Executor | None = None, progress: Show = None, **network,
) -> Fitted:  # fmt: skip
    """Train a model of the crystals of ``composition`` from a calculator alone: exp(-(E + pV) / kT) over atoms and cells.

    A population is annealed from the prior (uniform places in cells of the usual volume) to that law
    (:class:`~dig_core.training.population.Population`), the model is trained on it, and then on its own samples, reweighted
    exactly; ``Fitted.raw_ess`` says what such weights are worth. The temperature decides what is found: when it is low the lowest
    minimum, at thousands of K many minima, as often as their free energies say.

    Parameters
    ----------
    composition: atoms in the cell, ``"C8"`` or ``{"C": 8}``. calculator: ASE's, or a function that makes one, with stress.
    temperature: K. pressure: GPa. evaluations: of the calculator, at most about. steps: of training, shared among the stages.
    volume: Angstrom^3 an atom where the population begins; by default 1.85 cubes two covalent radii wide (6.5 for carbon).
    out: directory of checkpoints; an interrupted call goes on from there. seed: give one to repeat a training.
    network: of :class:`~dig_core.nn.CrystalGraphormer`, such as ``width``.

    Raises
    ------
    IncompatibleError: a composition without whole numbers of atoms. UnsupportedError: a calculator without stress.
    CheckpointError: ``out`` holds another training.
    """
    began, seed = time.monotonic(), as_seed(seed)
    numbers = _numbers(composition)
    energy = CrystalEnergy(calculator, numbers, temperature, pressure=pressure, executor=executor)
    about = {"numbers": numbers, "temperature": temperature, "pressure": pressure, "volume": volume, **network}
    out = owned(out, [json.dumps(about, sort_keys=True).encode()], "composition, temperature, pressure or network")
    dig = _untrained(numbers, volume, seed % 2**31, network)
    done = run_stages(
        dig, _stages(evaluations, steps), energy=energy, directory=None if out is None else out / "stages",
        seed=seed % 2**31, progress=progress,
    )  # fmt: skip
    if not done.finished:
        return Fitted(done.dig, math.nan, math.nan, done.evaluations, time.monotonic() - began, done.history, False)
    count = max(64, min(1024, evaluations // 20))
    log_weight = Pool(done.dig.proposal(), energy, seed=seed + 1, batch=count).take(count).log_weight
    ess, acceptance = effective_sample_size(log_weight), metropolis_acceptance(log_weight)
    measured = {"raw_ess": round(ess, 4), "acceptance": round(acceptance, 4), "proposals": count}
    card = dataclasses.replace(
        done.dig.card, name=energy.template.get_chemical_formula(), temperature=temperature, history=done.history, measured=measured,
        energy=f"{type(energy.calculator).__name__}, {pressure:g} GPa",
        scope={"element": sorted(set(energy.template.get_chemical_symbols())), "atoms": [len(numbers), len(numbers)]},
    )  # fmt: skip
    finished = dataclasses.replace(done.dig, card=card)
    if out is not None:
        finished.save(out / "model.safetensors")
    return Fitted(finished, ess, acceptance, done.evaluations + count, time.monotonic() - began, done.history, True)


def _numbers(composition: str | Mapping[str, int]) -> list[int]:
    """Sorted atomic numbers."""
    try:
        counts = Formula(composition).count() if isinstance(composition, str) else dict(composition)
    except Exception as error:  # formulas are taken apart without regard for what is none
        raise IncompatibleError(f"expected a composition such as 'C8', got {composition!r}: {error}") from error
    odd = [symbol for symbol, count in counts.items() if symbol not in atomic_numbers or count != int(count) or count < 1]
    if odd or not counts or sum(counts.values()) > _MANY:
        raise IncompatibleError(
            f"expected elements and whole numbers of atoms, such as 'C8' or {{'C': 8}}, at most {_MANY}, got {composition!r}."
        )
    return sorted(atomic_numbers[symbol] for symbol, count in counts.items() for _ in range(int(count)))


def _untrained(numbers: list[int], volume: float | None, seed: int, network: dict) -> DiG:
    descriptor = crystal(numbers)
    usual = {} if volume is None else {"volume": volume * len(numbers) / contact_volume(descriptor)}
    made = CrystalGraphormer(**network, coordinates={"width": _WIDTH, **usual}, seed=seed)
    model = NoiseScore(made, made.process(descriptor)).eval().requires_grad_(False)
    return DiG(model, made.coordinates, descriptor, Card(name="untrained", steps=60))


def _stages(evaluations: int, steps: int) -> list[Stage]:
    def loop(share: float) -> LoopConfig:
        count = max(20, int(share * steps))
        some = max(10, count // 4)
        return LoopConfig(steps=count, batch=64, rate=2e-3, warmup=min(100, some), average=0.995, every=some)

    walkers = max(32, int(0.65 * evaluations / (_RUNGS * _MOVES + _HARVEST)))
    return [
        Population(walkers, moves=_MOVES, harvest=_HARVEST, stride=_HARVEST // 2), Denoise(loop(0.6)),
        Reweight(max(64, evaluations // 5), 1, loop(0.4), least=max(8, evaluations // (10 * _EVERY))),
    ]  # fmt: skip
