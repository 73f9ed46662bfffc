"""Options that several verbs have, and what they share: threads, and the system that a model is asked about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from ..tasks import Given

__all__ = [
    "Adsorbate", "Calculator", "ForceField", "Maybe", "MaybeFile", "MaybeText", "Model", "N", "Of", "Pages", "Seed", "Steps",
    "Temperature", "Threads", "given", "use_threads",
]  # fmt: skip

Maybe, MaybeText, MaybeFile = Optional[float], Optional[str], Optional[Path]  # noqa: UP045 (typer on 3.10)


def _names() -> list[str]:
    from .. import models

    return [*models.index(), *models.cached()]


Model = Annotated[str, typer.Argument(help="A model's name, or a checkpoint.", autocompletion=_names)]
N = Annotated[int, typer.Option("-n", help="Number of structures.")]
Seed = Annotated[Optional[int], typer.Option(help="Random seed; drawn and recorded if not given.")]  # noqa: UP045
Steps = Annotated[Optional[int], typer.Option(help="Steps of the sampler; the model's own if not given.")]  # noqa: UP045
Pages = Annotated[bool, typer.Option("--report/--no-report", help="Write a page (.html) and a picture (.png) beside the record.")]
Threads = Annotated[int, typer.Option(help="Threads of the network's products; they are small, more than one seldom pays.")]
Of = Annotated[
    MaybeText,
    typer.Option(help="The system, where the model does not bring it: PDB file, SMILES, SDF, protein structure, composition or slab."),
]
ForceField = Annotated[Optional[list[str]], typer.Option("--forcefield", help="Force-field file for a PDB; repeat it.")]  # noqa: UP045
Temperature = Annotated[Maybe, typer.Option(help="Kelvin, for models that have none of their own.")]
Adsorbate = Annotated[MaybeText, typer.Option(help="Of a slab: an element, a g2 molecule, or a structure file.")]
Calculator = Annotated[MaybeText, typer.Option(help="Energy: chgnet, sevennet, emt (smoke tests only) or module:Class.")]


def given(of, force_field=None, temperature=None, adsorbate=None, calculator=None) -> Given | None:
    """What was said of the system; None if nothing was."""
    from ..tasks import Given

    found = Given(of, tuple(force_field or ()), temperature, adsorbate, calculator)
    return None if found == Given() else found


def use_threads(threads: int) -> None:
    """Threads of torch."""
    import torch

    torch.set_num_threads(min(max(1, threads), 1024))
