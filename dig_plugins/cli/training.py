"""Verbs that train: train openmm, protein, molecule, adsorption, crystal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .options import Calculator, MaybeFile, MaybeText, Pages, Seed, Threads, use_threads

if TYPE_CHECKING:
    from ..tasks import Run

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Train a model of a system of your own; the same command goes on where it was cut off.")

Out = Annotated[Path, typer.Option(help="Directory of the training; run again to go on.")]
Start = Annotated[MaybeText, typer.Option(help="A model to go on from.")]
Evaluations = Annotated[int, typer.Option(help="Of the calculator, at most about.")]
TrainingSteps = Annotated[int, typer.Option(help="Steps of training.")]


@app.command("openmm")
def openmm(
    pdb: Annotated[Path, typer.Option(help="Structure with all hydrogens; fixes the handedness of stereocentres.")],
    forcefield: Annotated[list[str], typer.Option(help="Force-field files of OpenMM or of your own; repeat it, or list them.")],
    temperature: Annotated[float, typer.Option(help="Kelvin.")],
    more: Annotated[Optional[list[str]], typer.Argument(help="Further force-field files.", metavar="[FILES]")] = None,  # noqa: UP045
    out: Out = Path("training"),
    frames: Annotated[MaybeFile, typer.Option(help="Trajectory at this temperature, if there is one (needs mdtraj).")] = None,
    budget: Annotated[str, typer.Option(help="Wall time on this machine: 30min, 2h.")] = "30min",
    seed: Seed = None,
    report: Pages = True,
    threads: Threads = 1,
) -> None:
    """Train on a force field alone, or on a force field and a trajectory.

    Example: dig-plugins train openmm --pdb x.pdb --forcefield amber99sbildn.xml amber99_obc.xml --temperature 300
    """
    from ..tasks import train_openmm as run

    use_threads(threads)
    _tell(run(pdb, [*forcefield, *(more or [])], temperature, frames=frames, budget=budget, out=out, seed=seed, report=report))


@app.command("protein")
def protein(
    files: Annotated[list[Path], typer.Argument(help="PDB, mmCIF or trajectories, of one protein or of several.")],
    structure: Annotated[MaybeFile, typer.Option(help="What the atoms of trajectories are.")] = None,
    chain: Annotated[MaybeText, typer.Option(help="Letter of the chain to read; all if not given.")] = None,
    model: Start = None,
    steps: TrainingSteps = 3000,
    batch: Annotated[int, typer.Option(help="Structures a step.")] = 8,
    apart: Annotated[int, typer.Option(help="Further steps where the states of the protein part.")] = 0,
    out: Out = Path("training"),
    seed: Seed = None,
    report: Pages = True,
    threads: Threads = 1,
) -> None:
    """Train on backbones: structures and trajectories of a protein, or of several.

    Example: dig-plugins train protein md.xtc --structure protein.pdb --steps 4000 --out mine
    """
    from ..tasks import train_protein as run

    use_threads(threads)
    options = {"model": model, "steps": steps, "batch": batch, "apart": apart, "out": out, "seed": seed, "report": report}
    _tell(run(files, structure=structure, chain=chain, **options))


@app.command("molecule")
def molecule(
    molecule: Annotated[str, typer.Argument(help="SMILES, or an SDF or MOL file.")],
    temperature: Annotated[float, typer.Option(help="Kelvin.")] = 300.0,
    variant: Annotated[str, typer.Option(help="MMFF94s, or MMFF94.")] = "MMFF94s",
    budget: Annotated[str, typer.Option(help="Wall time on this machine: 5min, 2h.")] = "5min",
    out: Out = Path("training"),
    seed: Seed = None,
    report: Pages = True,
    threads: Threads = 1,
) -> None:
    """Train on the conformers of a molecule, by MMFF94 alone.

    Example: dig-plugins train molecule CC1CCCCC1 --budget 5min --out mine
    """
    from ..tasks import train_molecule as run

    use_threads(threads)
    _tell(run(molecule, temperature, variant=variant, budget=budget, out=out, seed=seed, report=report))


@app.command("adsorption")
def adsorption(
    slab: Annotated[Path, typer.Argument(help="Structure file of the bare slab; its last image is taken.")],
    adsorbate: Annotated[str, typer.Option(help="H, O, CO, ...: an element, a g2 molecule, or a structure file.")],
    calculator: Calculator = None,
    frames: Annotated[MaybeFile, typer.Option(help="Structures of the ensemble, such as MD.")] = None,
    model: Start = None,
    temperature: Annotated[float, typer.Option(help="Kelvin.")] = 300.0,
    evaluations: Evaluations = 100_000,
    steps: TrainingSteps = 1500,
    yielding: Annotated[bool, typer.Option(help="Let slab atoms move that no FixAtoms holds.")] = False,
    out: Out = Path("training"),
    seed: Seed = None,
    report: Pages = True,
    threads: Threads = 1,
) -> None:
    """Train on an adsorbate on a slab, by a calculator, by structures, or by both.

    Example: dig-plugins train adsorption slab.traj --adsorbate H --calculator chgnet --out mine
    """
    from ..tasks import train_adsorption as run

    use_threads(threads)
    options = {"temperature": temperature, "evaluations": evaluations, "steps": steps, "yielding": yielding, "out": out, "seed": seed}
    _tell(run(slab, adsorbate, calculator=calculator, frames=frames, model=model, report=report, **options))


@app.command("crystal")
def crystal(
    composition: Annotated[str, typer.Argument(help="Atoms in the cell, such as C8.")],
    calculator: Annotated[str, typer.Option(help="Energy and stress: chgnet, sevennet, emt (smoke tests only) or module:Class.")],
    temperature: Annotated[float, typer.Option(help="Kelvin; thousands find many minima, little the lowest.")],
    pressure: Annotated[float, typer.Option(help="GPa.")] = 0.0,
    evaluations: Evaluations = 100_000,
    steps: TrainingSteps = 1500,
    out: Out = Path("training"),
    seed: Seed = None,
    report: Pages = True,
    threads: Threads = 1,
) -> None:
    """Train on the crystals of a composition, by a calculator alone.

    Example: dig-plugins train crystal C6 --calculator chgnet --temperature 3000 --out mine
    """
    from ..tasks import train_crystal as run

    use_threads(threads)
    options = {"pressure": pressure, "evaluations": evaluations, "steps": steps, "out": out, "seed": seed, "report": report}
    _tell(run(composition, calculator, temperature, **options))


def _tell(found: Run) -> None:
    """What came of it; a training that was interrupted exits as such."""
    typer.echo(found.said)
    if not found.result.finished:
        sys.exit(130)
