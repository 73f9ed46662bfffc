"""Whether the ensemble of a model can be trusted: its parts, its energy, its weights, and what is known of its system."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dig_core import testing
from dig_core.dig import DiG
from dig_core.errors import IncompatibleError, StateError
from dig_core.montecarlo.chain import Candidates, Pool
from dig_core.random import Streams, as_seed
from dig_core.testing.structures import same_state
from dig_core.types import Geometry

from .. import models
from ..record import of_checkpoint, of_software
from .references import against_reference, against_structures
from .reports import validation_report
from .result import Run, recorded, writable
from .subjects import Given, Subject, subject
from .verdicts import Check, verdict_of
from .weights import weight_checks

__all__ = ["validate"]

_FEW, _SMALL = 4, 60  # structures that parts are looked at with; atoms up to which a Jacobian is worth its time
_TOLERANCE = 0.05  # kT between two computations of one energy


def validate(
    model: str | Path, out: str | Path = "validation.json", *, given: Given | None = None, n: int = 2000,
    structures: str | Path | None = None, steps: int | None = None, seed: int | None = None, report: bool = True,
) -> Run:  # fmt: skip
    """Check a model on its system and say in words whether its ensemble can be trusted; ``result`` is the :class:`Verdict`.

    Looked at are: the parts of the model (:mod:`dig_core.testing`: noising, scores, coordinates, samples that depend on the seed and their
    number alone); the energy (central differences; against another computation of it); the weights of ``n`` proposals (raw effective
    sample size, heaviest weight, tail, halves, acceptance; against what the registry says); averages, where a long reference run ships;
    and ``structures``, a file of structures from an independent simulation at the same temperature, in the order of time, in which a
    state that the model never proposes shows. A model without an energy cannot be trusted, and the verdict says so.

    Parameters
    ----------
    model, given: as of :func:`.density`. out: the record, ``.json``. steps: of the sampler; the model's own if None.
    report: a page (``.html``) and a picture (``.png``) beside it.

    Raises
    ------
    IncompatibleError: fewer than 100 proposals; a system that is missing or is not the model's.
    """
    if n < 100:
        raise IncompatibleError(f"expected at least 100 proposals to judge by, got n = {n}.")
    out, seed, began = writable(out, (".json",)), as_seed(seed), time.perf_counter()
    asked = subject(model, given)
    checks, figures = _parts(asked.dig, seed, steps), {}
    found, compared = None, False
    if asked.energy is not None:
        found = Pool(asked.dig.proposal(steps=steps), asked.energy, seed=seed, batch=512).take(n)
        checks += _energy(asked, found)
        more, figures = weight_checks(found, models.index().get(str(model), {}) if given is None else {})
        beside = against_reference(str(model), asked, found) if given is None and "raw_ess" in figures else []
        if structures is not None:
            beside += against_structures(asked, asked.read(structures), found, seed, steps)
        checks, compared = checks + more + beside, bool(beside)
    verdict = verdict_of(checks, asked.energy is not None, not compared)
    record = {
        **of_software(*asked.packages), **of_checkpoint(model), "trusted": verdict.trusted, "verdict": verdict.said,
        "checks": [check._asdict() for check in checks], "n": n, "seed": seed, "steps": asked.dig.card.steps if steps is None else steps,
        "kind": asked.kind, "energy": asked.energy_name, "temperature_K": asked.temperature, **figures,
        "structures": None if structures is None else str(structures), "seconds": time.perf_counter() - began, "units": "kT, nats",
    }  # fmt: skip
    page = (lambda: validation_report(asked, found, record)) if report else None
    return recorded(verdict, record, f"{verdict.table()}\n{verdict.said}\nrecord: {out}", out, page)


def _parts(dig: DiG, seed: int, steps: int | None) -> list[Check]:
    """Of the model alone. Scores are looked at in float64, in which they do not depend on how products are batched."""
    precise = dataclasses.replace(dig, model=copy.deepcopy(dig.model).double()) if isinstance(dig.model, torch.nn.Module) else dig
    drawn = dig.proposal(steps=steps).draw(_FEW, Streams(seed, range(_FEW)))
    state, process = {name: x.double() for name, x in drawn.state.items()}, dig.process
    usable = Geometry(*(x[drawn.valid] if x is not None else None for x in drawn.geometry))

    def noising() -> None:
        for part in process.values():
            testing.check_process(part)

    def coordinates() -> None:
        if not len(usable.positions):
            raise AssertionError(f"none of {_FEW} draws has a structure.")
        if usable.cell is None and dig.descriptor.n_atoms <= _SMALL and bool(dig.descriptor.mobile.all()):
            testing.check_coordinates(dig.coordinates, process, usable, dig.descriptor, seed=seed)
            return
        kept = {name: x[drawn.valid] for name, x in state.items()}
        again = dig.coordinates.encode(dig.coordinates.decode(kept, dig.descriptor), dig.descriptor)[0]
        same_state(process, again, kept, 1e-4, "encode(decode(state))")

    def streams() -> None:
        testing.check_streams(lambda rng: precise.proposal(steps=4).draw(len(rng), rng).state, seed=seed)

    made: list[tuple[str, Callable[[], None], str]] = [
        ("noising", noising, "steps compose, and end at the prior"),
        ("scores", lambda: testing.check_score_model(precise.model, state, dig.descriptor), "finite, tangent, independent of the batch"),
        ("coordinates", coordinates, "structures come back from them, and their volume is right"),
        ("samples", streams, "each depends on the seed and its number alone"),
    ]
    checks = [_tried(*one) for one in made]
    return checks + (_whole(usable, dig) if type(dig.coordinates).__name__ == "Backbone" else [])


def _whole(drawn: Geometry, dig: DiG) -> list[Check]:
    from ..mdtraj import check_backbones

    good = int(check_backbones(drawn, dig.descriptor).ok.sum())
    return [Check("backbones", None, f"{good} of {_FEW} draws are whole: no neighbour is broken, none clashes")]


def _tried(name: str, check: Callable[[], None], said: str) -> Check:
    """What a conformance check has to say."""
    try:
        check()
    except AssertionError as error:
        return Check(name, False, str(error))
    except StateError as error:
        return Check(name, None, f"could not be looked at: {error}")
    return Check(name, True, said)


def _energy(asked: Subject, found: Candidates) -> list[Check]:
    """Of the energy, at structures that the model proposes."""
    likely = found.log_weight.argsort()[::-1][:_FEW].copy()
    cell = torch.from_numpy(found.cell[likely]) if asked.kind in ("crystal", "adsorbate") and found.cell.any() else None
    geometry = Geometry(torch.from_numpy(found.positions[likely]), cell)
    free = asked.kind not in ("crystal", "adsorbate")  # of others atoms are held, or moved together with a cell

    def differences() -> None:
        testing.check_energy(asked.energy, geometry, tolerance=1e-2, step=1e-3, translation=free)

    checks = [_tried("gradient of the energy", differences, "that of central differences")] if free else []
    if asked.peer is not None:
        with torch.no_grad():
            apart = float((asked.peer()(geometry) - torch.from_numpy(found.u[likely])).abs().max())
        said = f"two computations differ by at most {apart:.2g} kT in {len(likely)} structures"
        checks.append(Check("energy", apart <= _TOLERANCE, said))
    return checks
