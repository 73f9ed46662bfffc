"""The command line: verbs that parse, call and write; no logic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Equilibrium distributions of molecules, exactly weighted.")
models_app = typer.Typer(no_args_is_help=True, help="The models that ship.")
app.add_typer(models_app, name="models")
train_app = typer.Typer(no_args_is_help=True, help="Train a model of a molecule of your own.")
app.add_typer(train_app, name="train")

Seed = Annotated[Optional[int], typer.Option(help="Random seed; drawn and recorded if not given.")]  # noqa: UP045 (typer on 3.10)


Threads = Annotated[int, typer.Option(help="Threads of the network's products; they are small, more than one seldom pays.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory of the run; must be new or empty.")],
    seconds: Annotated[float, typer.Option(help="Wall time of each of the two simulations.")] = 20.0,
    model: Annotated[str, typer.Option(help="A shipped model.")] = "alanine-dipeptide",
    seed: Seed = None,
    threads: Threads = 1,
) -> None:
    """Sample a molecule's equilibrium by MD mixed with DiG proposals, beside plain MD given the same time.

    Example: dig-plugins demo --out runs/demo
    """
    from .openmm import demo as run

    _use_threads(threads)
    found = run(out, model=model, seconds=seconds, seed=seed)
    summary = found.summary
    typer.echo(
        f"acceptance {summary['acceptance']:.2f}, raw ESS {summary['raw_ess']:.2f}, {summary['proposals_per_second']:.0f} proposals/s; "
        f"visits to phi > 0: {summary['visits_to_positive_phi']} against {summary['plain_md']['visits_to_positive_phi']} by MD alone."
    )
    typer.echo(f"report: {found.report}")


@app.command()
def sample(
    model: Annotated[str, typer.Argument(help="A shipped model.")],
    n: Annotated[int, typer.Option("-n", help="Number of structures.")] = 1000,
    out: Annotated[Path, typer.Option(help="File to write: .xtc (with .pdb and .npz beside it), .pdb or .npz.")] = Path("samples.xtc"),
    seed: Seed = None,
    threads: Threads = 1,
) -> None:
    """Draw independent structures with their exact weights.

    Example: dig-plugins sample alanine-dipeptide -n 10000 --out ala.xtc
    """
    from .openmm import sample as draw

    _use_threads(threads)
    ensemble = draw(model, n, seed=seed)
    ensemble.save(out)
    typer.echo(f"{n} structures worth {ensemble.effective_sample_size:.0f} equilibrium samples, seed {ensemble.seed}: {out}")


@app.command()
def adsorb(
    slab: Annotated[Path, typer.Argument(help="Structure file of the bare slab, with vacuum on one side; its last image is taken.")],
    adsorbate: Annotated[str, typer.Option(help="H, O, CO, ...: an element, a g2 molecule, or a structure file.")],
    out: Annotated[Path, typer.Option(help="Directory of the run; must be new or empty.")],
    model: Annotated[str, typer.Option(help="A shipped model, or a checkpoint.")] = "adsorb-general",
    temperature: Annotated[float, typer.Option(help="Kelvin.")] = 300.0,
    n: Annotated[int, typer.Option("-n", help="Number of structures.")] = 1000,
    calculator: Annotated[Optional[str], typer.Option(help="chgnet, sevennet, emt (smoke tests only) or module:Class.")] = None,  # noqa: UP045
    correct: Annotated[Optional[str], typer.Option(help="reweight or mc: exact for the calculator's energy.")] = None,  # noqa: UP045
    yielding: Annotated[bool, typer.Option(help="Let slab atoms move that no FixAtoms holds.")] = False,
    unseen: Annotated[bool, typer.Option(help="Take the model's guess for what it was not trained on.")] = False,
    seed: Seed = None,
    threads: Threads = 1,
) -> None:
    """Sample an adsorbate on a slab: structures, sites, a map of the free energy.

    Example: dig-plugins adsorb slab.traj --adsorbate CO --temperature 300 -n 1000 --out run/
    """
    from .ase.adsorption import adsorb as run

    _use_threads(threads)
    found = run(
        slab, adsorbate, out, model=model, temperature=temperature, n=n, calculator=calculator, correct=correct, seed=seed,
        yielding=yielding, unseen=unseen,
    )  # fmt: skip
    typer.echo(found.ensemble.summary())
    typer.echo(f"samples, sites and map: {found.directory}")


@train_app.command("openmm")
def train_openmm(
    pdb: Annotated[Path, typer.Option(help="Structure with all hydrogens; fixes the handedness of stereocentres.")],
    forcefield: Annotated[list[str], typer.Option(help="Force-field files of OpenMM or of your own; repeat it, or list them.")],
    temperature: Annotated[float, typer.Option(help="Kelvin.")],
    more: Annotated[Optional[list[str]], typer.Argument(help="Further force-field files.", metavar="[FILES]")] = None,  # noqa: UP045
    out: Annotated[Path, typer.Option(help="Directory of the training; run again to go on.")] = Path("training"),
    frames: Annotated[Optional[Path], typer.Option(help="Trajectory at this temperature, if there is one (needs mdtraj).")] = None,  # noqa: UP045
    budget: Annotated[str, typer.Option(help="Wall time on this machine: 30min, 2h.")] = "30min",
    seed: Seed = None,
    threads: Threads = 1,
) -> None:
    """Train on a force field alone, or on a force field and a trajectory.

    Example: dig-plugins train openmm --pdb x.pdb --forcefield amber99sbildn.xml amber99_obc.xml --temperature 300
    """
    from .openmm import fit_files

    _use_threads(threads)
    positions = None
    if frames is not None:
        from .mdtraj import read_positions

        positions = read_positions(frames, pdb)
    found = fit_files(pdb, [*forcefield, *(more or [])], temperature, frames=positions, budget=budget, out=out, seed=seed)
    typer.echo(str(found))
    if not found.finished:
        sys.exit(130)
    typer.echo(f"model: {out / 'model.safetensors'}")


@models_app.command("list")
def models_list() -> None:
    """One line a model."""
    from . import models

    for name, entry in models.index().items():
        temperature = "any T" if entry["temperature"] is None else f"{entry['temperature']:g} K"
        typer.echo(f"{name:24s} {temperature}  {entry['system']}  {entry['licence']}")


@models_app.command("show")
def models_show(name: str) -> None:
    """A model's card as JSON: system, energy function, how it was made, what was measured."""
    from dataclasses import asdict

    from . import models

    typer.echo(json.dumps(asdict(models.load(name).card), indent=2))


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(max(1, threads))


def main() -> None:
    """Entry point: errors made on purpose are one line on stderr and exit code 2; interruption is 130."""
    from dig_core.errors import DiGError

    try:
        app()
    except DiGError as error:
        typer.echo(f"dig-plugins: {error}", err=True)
        sys.exit(2)
    except (ImportError, OSError) as error:
        typer.echo(f"dig-plugins: {type(error).__name__}: {error}", err=True)
        sys.exit(3)
    except SystemExit as stop:
        if stop.code == 130:  # typer's own code for Ctrl-C, which it does not explain
            typer.echo("dig-plugins: interrupted; what was written before stays readable.", err=True)
        raise


if __name__ == "__main__":
    main()
