"""The command line: verbs that parse, call and write; no logic. Each has its function in Python, with the same defaults.

Exit codes: 0 done; 2 bad input, one line on stderr; 3 the environment, such as a package that is missing, a full disk or no connection;
4 an ensemble that cannot be trusted (``validate``); 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from . import judging, materials, registry, sampling, training
from .config import read_options

__all__ = ["main"]

BAD_INPUT, ENVIRONMENT, INTERRUPTED = 2, 3, 130

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Equilibrium distributions of molecules, exactly weighted.")
for _verb in (
    sampling.demo, sampling.sample, sampling.density, sampling.mc, sampling.interpolate, materials.design, materials.adsorb,
    judging.validate, judging.doctor,
):  # fmt: skip
    app.command()(_verb)
app.add_typer(training.app, name="train")
app.add_typer(registry.app, name="models")


def _version(asked: bool) -> None:
    if asked:
        from dig_core import __version__

        typer.echo(f"dig-plugins {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")] = False,
    config: Annotated[
        Optional[Path],  # noqa: UP045 (as the options of the verbs)
        typer.Option("--config", callback=read_options, help="A TOML file of options: a table for each verb, such as [train.openmm]."),
    ] = None,
) -> None:
    pass


def main() -> None:
    """Entry point: errors made on purpose are one line on stderr, and an exit code that says whose they are."""
    from dig_core.errors import DiGError

    try:
        app()
    except (DiGError, FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        _fail(str(error), BAD_INPUT)
    except (ImportError, OSError) as error:
        _fail(f"{type(error).__name__}: {error}", ENVIRONMENT)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer's own code for Ctrl-C, which it does not explain
            typer.echo("dig-plugins: interrupted; what was written before stays readable.", err=True)
        raise


def _fail(said: str, code: int) -> None:
    typer.echo(f"dig-plugins: {' '.join(said.split())}", err=True)
    sys.exit(code)
