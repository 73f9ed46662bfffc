"""Verbs that draw from models: demo, sample, density, mc, interpolate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    Adsorbate,
    Calculator,
    ForceField,
    MaybeFile,
    Model,
    N,
    Of,
    Pages,
    Seed,
    Steps,
    Temperature,
    Threads,
    given,
    use_threads,
)

__all__ = ["demo", "density", "interpolate", "mc", "sample"]


def demo(
    out: Annotated[Path, typer.Option(help="Directory of the run; must be new or empty.")],
    seconds: Annotated[float, typer.Option(help="Wall time of each of the two simulations.")] = 20.0,
    model: Annotated[str, typer.Option(help="A shipped model.")] = "alanine-dipeptide",
    seed: Seed = None,
    report: Pages = True,
    threads: Threads = 1,
) -> None:
    """Sample a molecule's equilibrium by MD mixed with DiG proposals, beside plain MD given the same time.

    Example: dig-plugins demo --out runs/demo
    """
    from ..openmm import demo as run

    use_threads(threads)
    found = run(out, model=model, seconds=seconds, seed=seed, report=report)
    summary = found.summary
    typer.echo(
        f"acceptance {summary['acceptance']:.2f}, raw ESS {summary['raw_ess']:.2f}, {summary['proposals_per_second']:.0f} proposals/s; "
        f"visits to phi > 0: {summary['visits_to_positive_phi']} against {summary['plain_md']['visits_to_positive_phi']} by MD alone."
    )
    typer.echo(f"report: {found.report}" if found.report else f"run: {found.directory}")


def sample(
    model: Model,
    n: N = 1000,
    out: Annotated[
        MaybeFile,
        typer.Option(help="File to write: .xtc or .dcd (.pdb and .npz beside them), .h5, .pdb, .npz, .sdf, .extxyz or .cif, by the model."),
    ] = None,
    of: Of = None,
    force_field: ForceField = None,
    temperature: Temperature = None,
    steps: Steps = None,
    seed: Seed = None,
    report: Pages = True,
    threads: Threads = 1,
) -> None:
    """Draw independent structures, with their exact weights where the model has an energy.

    Molecules are written as they come; the same command goes on with a run that was cut off.

    Example: dig-plugins sample alanine-dipeptide -n 10000 --out ala.xtc
    """
    from ..tasks import sample as run

    use_threads(threads)
    typer.echo(run(model, n, out, given=given(of, force_field, temperature), steps=steps, seed=seed, report=report).said)


def density(
    model: Model,
    structures: Annotated[Path, typer.Argument(help="Structures: PDB, mmCIF, .npz, trajectory, SDF, CIF, extended XYZ, by the model.")],
    out: Annotated[Path, typer.Option(help="Table to write: .npz or .csv, with a record (.json) beside it.")] = Path("density.npz"),
    kind: Annotated[str, typer.Option(help="path (as samples are weighed), trace, map or hutchinson (probability flow).")] = "path",
    paths: Annotated[int | None, typer.Option(help="Noising paths a structure; the model's own if not given.")] = None,
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
    """Log-density, energy and log weight of given structures.

    Example: dig-plugins density alanine-dipeptide md.xtc --paths 8 --out density.csv
    """
    from ..tasks import density as run

    use_threads(threads)
    about = given(of, force_field, temperature, adsorbate, calculator)
    typer.echo(run(model, structures, out, given=about, kind=kind, steps=steps, paths=paths, seed=seed, report=report).said)


def mc(
    model: Model,
    out: Annotated[Path, typer.Option(help="Directory of the chain; run again to go on.")] = Path("chain"),
    blocks: Annotated[int, typer.Option(help="Blocks of MD and proposals, those done before included.")] = 100,
    md_steps: Annotated[int, typer.Option(help="Time steps of MD a block.")] = 500,
    proposals: Annotated[int, typer.Option(help="Proposals a block.")] = 32,
    timestep: Annotated[float, typer.Option(help="Femtoseconds.")] = 1.0,
    scheme: Annotated[str, typer.Option(help="metropolis, or isir: pick among all proposals of a block.")] = "metropolis",
    save: Annotated[int, typer.Option(help="Blocks between two saves.")] = 50,
    of: Of = None,
    force_field: ForceField = None,
    temperature: Temperature = None,
    seed: Seed = None,
    report: Pages = True,
    threads: Threads = 1,
) -> None:
    """Run an exact Monte Carlo chain of MD and DiG proposals; the same command goes on with it.

    Example: dig-plugins mc alanine-dipeptide --blocks 1000 --out chain
    """
    from ..tasks import mc as run

    use_threads(threads)
    options = {"md_steps": md_steps, "proposals": proposals, "timestep": timestep, "scheme": scheme, "save": save, "seed": seed}
    typer.echo(run(model, out, blocks=blocks, given=given(of, force_field, temperature), report=report, **options).said)


def interpolate(
    model: Model,
    start: Annotated[Path, typer.Argument(help="Structure to begin at; the first in the file.")],
    end: Annotated[Path, typer.Argument(help="Structure to end at.")],
    out: Annotated[Path, typer.Option(help="Directory of the path; must be new or empty.")] = Path("path"),
    n: Annotated[int, typer.Option("-n", help="Structures, ends included.")] = 20,
    path: Annotated[str, typer.Option(help="spherical, or linear as in the article.")] = "spherical",
    of: Of = None,
    force_field: ForceField = None,
    temperature: Temperature = None,
    steps: Steps = None,
    report: Pages = True,
    threads: Threads = 1,
) -> None:
    """Go from one structure to another through the model's latent space.

    Example: dig-plugins interpolate adenylate-kinase closed.pdb open.pdb -n 20 --out path
    """
    from ..tasks import interpolate as run

    use_threads(threads)
    typer.echo(run(model, start, end, out, n=n, given=given(of, force_field, temperature), steps=steps, path=path, report=report).said)
