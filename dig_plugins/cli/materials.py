"""Verbs of surfaces and crystals: adsorb, design."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Calculator, MaybeText, N, Pages, Seed, Steps, Threads, use_threads

__all__ = ["adsorb", "design"]


def adsorb(
    slab: Annotated[Path, typer.Argument(help="Structure file of the bare slab, with vacuum on one side; its last image is taken.")],
    adsorbate: Annotated[str, typer.Option(help="H, O, CO, ...: an element, a g2 molecule, or a structure file.")],
    out: Annotated[Path, typer.Option(help="Directory of the run; must be new or empty.")],
    model: Annotated[str, typer.Option(help="A model's name, or a checkpoint.")] = "adsorb-general",
    temperature: Annotated[float, typer.Option(help="Kelvin.")] = 300.0,
    n: N = 1000,
    calculator: Calculator = None,
    correct: Annotated[MaybeText, typer.Option(help="reweight or mc: exact for the calculator's energy.")] = None,
    yielding: Annotated[bool, typer.Option(help="Let slab atoms move that no FixAtoms holds.")] = False,
    unseen: Annotated[bool, typer.Option(help="Take the model's guess for what it was not trained on.")] = False,
    seed: Seed = None,
    report: Pages = True,
    threads: Threads = 1,
) -> None:
    """Sample an adsorbate on a slab: structures, sites, a map of the free energy.

    Example: dig-plugins adsorb slab.traj --adsorbate CO --temperature 300 -n 1000 --out run/
    """
    from ..ase.adsorption import adsorb as run

    use_threads(threads)
    found = run(
        slab, adsorbate, out, model=model, temperature=temperature, n=n, calculator=calculator, correct=correct, seed=seed,
        yielding=yielding, unseen=unseen, report=report,
    )  # fmt: skip
    typer.echo(found.ensemble.summary())
    typer.echo(f"samples, sites and map: {found.directory}" + (f"\nreport: {found.report}" if found.report else ""))


def design(
    composition: Annotated[str, typer.Argument(help="Atoms in the cell, such as C8; C leaves their number to the model.")],
    out: Annotated[Path, typer.Option(help="Directory of the run; must be new or empty.")] = Path("designs"),
    n: N = 50,
    target: Annotated[MaybeText, typer.Option(help="Band gap in eV, 4.0, or a range, 2:3; none draws from the model as it is.")] = None,
    model: Annotated[str, typer.Option(help="A model's name, or a checkpoint.")] = "carbon",
    by: Annotated[str, typer.Option(help="rejection: exact draws; guidance: for targets that are rare.")] = "rejection",
    strength: Annotated[float, typer.Option(help="Of the target; 1 is Bayes' rule.")] = 1.0,
    width: Annotated[float, typer.Option(help="Of the target, eV.")] = 0.25,
    most: Annotated[int | None, typer.Option(help="Draws after which rejection gives up.")] = None,
    steps: Steps = None,
    seed: Seed = None,
    report: Pages = True,
    threads: Threads = 1,
) -> None:
    """Design crystals of a composition with a wanted band gap.

    Example: dig-plugins design C8 --target 4.0 -n 50 --out designs
    """
    from ..tasks import design as run

    use_threads(threads)
    options = {"by": by, "strength": strength, "width": width, "steps": steps, "most": most, "seed": seed, "report": report}
    typer.echo(run(composition, out, n=n, target=target, model=model, **options).said)
