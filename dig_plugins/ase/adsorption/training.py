"""One call from a slab, an adsorbate and a calculator to a model of their equilibrium distribution; from frames where there are some."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path

from ase import Atoms

from dig_core.dig import Card, DiG
from dig_core.errors import IncompatibleError
from dig_core.files import owned
from dig_core.montecarlo.analysis import effective_sample_size, metropolis_acceptance
from dig_core.montecarlo.chain import Pool
from dig_core.nn import AdsorptionGraphormer
from dig_core.progress import Show
from dig_core.random import as_seed
from dig_core.score import NoiseScore
from dig_core.system.descriptor import Descriptor
from dig_core.training.fit import Fitted, Stage
from dig_core.training.fit import fit as run_stages
from dig_core.training.frames import frames_of
from dig_core.training.loop import LoopConfig
from dig_core.training.losses import Frames
from dig_core.training.population import Population
from dig_core.training.stages import Denoise, Reweight

from ... import models
from ..convert import to_geometry
from ..energy import ASEEnergy
from .describe import place_and_describe

__all__ = ["fit_adsorption", "fresh", "untrained"]

_COMPANY = 16  # frames that help another to its target: an adsorbate has few dimensions
_STEPS = 96  # of the finished sampler, twice as many as while it learns: a calculator takes longer than they do
_VISITS = 130  # evaluations a walker of a population: about ten rungs of six moves, and the harvest


def untrained(
    slab: Atoms, adsorbate, *, temperature: float = 300.0, normal=None, anchor: int | None = None, yielding: bool = False, seed: int = 0
) -> DiG:
    """A model of ``adsorbate`` on ``slab`` that knows nothing yet; arguments as of :func:`~.sample.sample_adsorption`."""
    place = {"temperature": temperature, "normal": normal, "anchor": anchor, "yielding": yielding}
    return fresh(place_and_describe(slab, adsorbate, **place)[0], seed=seed)


def fresh(descriptor: Descriptor, *, width: int = 48, seed: int = 0, d_band: bool = False) -> DiG:
    """The same for a descriptor; ``width`` and ``d_band`` of the network."""
    network = AdsorptionGraphormer(width=width, conditions=1, seed=seed, d_band=d_band)
    model = NoiseScore(network, network.process(descriptor)).eval().requires_grad_(False)
    return DiG(model, network.coordinates, descriptor, Card(name="untrained", steps=48))


def fit_adsorption(
    slab: Atoms, adsorbate, energy=None, model: DiG | str | Path | None = None, *, temperature: float = 300.0,
    frames: Sequence[Atoms] | None = None, evaluations: int = 100_000, steps: int = 1500, out: str | Path | None = None,
    seed: int | None = None, progress: Show = None, normal=None, anchor: int | None = None, yielding: bool = False,
) -> Fitted:  # fmt: skip
    """Train a model of one adsorbate on one slab from a calculator, from frames, or from both; ``model`` says what to start from.

    From the energy alone an untrained model begins with a population that is annealed from its prior to exp(-E/kT)
    (:class:`~dig_core.training.population.Population`); one that is already good for this slab begins with its own weighed
    samples. Both end with training on the model's own samples, reweighted exactly, so that populations of sites come right.

    Parameters
    ----------
    slab, adsorbate, normal, anchor, yielding: as of :func:`~.sample.sample_adsorption`.
    energy: an ASE calculator, or None for frames alone. model: None for an untrained network, or what :func:`sample_adsorption` takes.
    frames: structures of this slab and adsorbate (adsorbate last) from the ensemble at ``temperature``, such as MD.
    evaluations: of the calculator, at most about. steps: of training, shared among the stages.
    out: directory of checkpoints; an interrupted call goes on from there. seed: give one to repeat a training.

    Raises
    ------
    IncompatibleError: neither energy nor frames, frames of another system; UnsupportedError: a model that serves another slab only.
    CheckpointError: ``out`` holds another training.
    """
    if energy is None and frames is None:
        raise IncompatibleError("expected an energy (an ASE calculator), frames, or both: there is nothing to learn from.")
    began, seed = time.monotonic(), as_seed(seed)
    descriptor, template = place_and_describe(
        slab, adsorbate, temperature=temperature, normal=normal, anchor=anchor, yielding=yielding
    )
    if model is None:
        dig = fresh(descriptor, seed=seed % 2**31)
    else:
        dig = (model if isinstance(model, DiG) else models.load(model)).on(descriptor)
        dig = dataclasses.replace(dig, model=copy.deepcopy(dig.model))
    out = owned(out, _mark(descriptor), "slab, adsorbate or temperature")
    reduced = None if energy is None else ASEEnergy(energy, template, temperature)
    data = None if frames is None else _data(dig, list(frames), template)
    done = run_stages(
        dig, _stages(model is None, data is not None, reduced is not None, evaluations, steps), energy=reduced, frames=data,
        directory=None if out is None else out / "stages", seed=seed % 2**31, progress=progress,
    )  # fmt: skip
    if not done.finished:
        return Fitted(done.dig, math.nan, math.nan, done.evaluations, time.monotonic() - began, done.history, False)
    ess, acceptance, measured, count, taken = math.nan, math.nan, {}, 0, done.dig.card.steps
    if reduced is not None:
        count, taken = max(64, min(1024, evaluations // 10)), max(_STEPS, taken)
        log_weight = Pool(done.dig.proposal(steps=taken), reduced, seed=seed + 1, batch=count).take(count).log_weight
        ess, acceptance = effective_sample_size(log_weight), metropolis_acceptance(log_weight)
        measured = {"raw_ess": round(ess, 4), "acceptance": round(acceptance, 4), "proposals": count}
    card = dataclasses.replace(
        done.dig.card, name=f"{template.get_chemical_formula()}", steps=taken, temperature=temperature, history=done.history,
        measured=measured, scope={},
    )  # fmt: skip
    finished = dataclasses.replace(done.dig, card=card)
    if out is not None:
        finished.save(out / "model.safetensors")
    return Fitted(finished, ess, acceptance, done.evaluations + count, time.monotonic() - began, done.history, True)


def _mark(descriptor: Descriptor) -> list[bytes]:
    """What tells this system from others."""
    reference = descriptor.reference
    parts = [descriptor.numbers, descriptor.node, descriptor.conditions, reference.positions, reference.cell]  # type: ignore[union-attr]
    return [part.numpy().tobytes() for part in parts]


def _stages(fresh: bool, data: bool, energy: bool, evaluations: int, steps: int) -> list[Stage]:
    def loop(share: float) -> LoopConfig:
        count = max(20, int(share * steps))
        rate, some = 2e-3 if fresh else 5e-4, max(10, count // 4)
        return LoopConfig(steps=count, batch=256, rate=rate, warmup=min(100, some), average=0.995, every=some)

    if not energy:
        return [Denoise(loop(1.0), company=_COMPANY)]
    if data:
        return [Denoise(loop(0.4), company=_COMPANY), Reweight(evaluations // 2, 1, loop(0.6), company=_COMPANY)]
    if fresh:
        walkers = max(64, int(0.6 * evaluations / _VISITS))
        population = Population(walkers, moves=6, harvest=40, stride=20)
        return [population, Denoise(loop(0.5), company=_COMPANY), Reweight(int(0.35 * evaluations), 1, loop(0.5), company=_COMPANY)]
    return [Reweight(int(share * evaluations), 1, loop(part), company=_COMPANY) for share, part in ((0.3, 0.4), (0.6, 0.6))]


def _data(dig: DiG, images: list[Atoms], template: Atoms) -> Frames:
    for number, image in enumerate(images):
        if len(image) != len(template) or (image.numbers != template.numbers).any():
            raise IncompatibleError(
                f"frame {number} is {image.get_chemical_formula()}, expected {template.get_chemical_formula()} with atoms in that order: "
                "give slab atoms in the slab's order and the adsorbate last."
            )
    if len(images) < 2:
        raise IncompatibleError(f"expected at least 2 frames, got {len(images)}.")
    return frames_of(dig.coordinates, dig.descriptor, to_geometry(images))
