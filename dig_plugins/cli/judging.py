"""Verbs that judge: validate an ensemble, doctor a machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    Adsorbate,
    Calculator,
    ForceField,
    MaybeFile,
    Model,
    Of,
    Pages,
    Seed,
    Steps,
    Temperature,
    Threads,
    given,
    use_threads,
)

__all__ = ["doctor", "validate"]

NOT_TRUSTED, ENVIRONMENT = 4, 3


def validate(
    model: Model,
    out: Annotated[Path, typer.Option(help="Record of the checks, .json.")] = Path("validation.json"),
    n: Annotated[int, typer.Option("-n", help="Proposals to judge by.")] = 2000,
    structures: Annotated[MaybeFile, typer.Option(help="Structures of an independent simulation, in the order of time.")] = None,
    of: Of = None,
    force_field: ForceField = None,
    temperature: Temperature = None,
    adsorbate: Adsorbate = None,
    calculator: Calculator = None,
    steps: Steps = None,
    seed: Seed = None,
    report: Pages = True,
    threads: Threads = 1,
) -> None:
    """Say whether the ensemble of a model can be trusted, and why; exit code 4 if it cannot.

    Example: dig-plugins validate alanine-dipeptide
    """
    from ..tasks import validate as run

    use_threads(threads)
    about = given(of, force_field, temperature, adsorbate, calculator)
    found = run(model, out, given=about, n=n, structures=structures, steps=steps, seed=seed, report=report)
    typer.echo(found.said)
    if not found.result.trusted:
        sys.exit(NOT_TRUSTED)


def doctor(
    out: Annotated[MaybeFile, typer.Option(help="Record, .json, if wanted.")] = None,
    timing: Annotated[bool, typer.Option(help="Draw and weigh some structures.")] = True,
    threads: Threads = 1,
) -> None:
    """Say what this machine has: versions, devices, engines, precision, speed; exit code 3 if something does not work.

    Example: dig-plugins doctor
    """
    from ..tasks import doctor as run

    use_threads(threads)
    found = run(out, timing=timing)
    typer.echo(found.said)
    if found.result.problems:
        sys.exit(ENVIRONMENT)
