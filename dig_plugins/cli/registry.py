"""Verbs of the registry: models list, show, pull."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .options import MaybeText, Model

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Models that ship, were pulled into the cache, or come with other packages.")


@app.command("list")
def listed() -> None:
    """One line a model: name, temperature, raw effective sample size of its proposals where it has one, system, licence.

    Example: dig-plugins models list
    """
    from .. import models

    for name, entry in models.index().items():
        temperature = "any T" if entry["temperature"] is None else f"{entry['temperature']:g} K"
        worth = f"ESS {entry['raw_ess']:.0%}" if "raw_ess" in entry else ""
        typer.echo(f"{name:24s} {temperature:6s} {worth:8s} {entry['size'] / 1e6:5.1f} MB  {entry['system']}  {entry['licence']}")
    for name, record in models.cached().items():
        typer.echo(f"{name:24s} {'pulled':15s} {record['size'] / 1e6:5.1f} MB  {record['url']}")
    for name, package in models.offered().items():
        typer.echo(f"{name:24s} {'installed':25s}  {package}")


@app.command("show")
def show(name: Model) -> None:
    """A model's card as JSON: system, energy function, how it was made, what was measured; and its entry of the registry.

    Example: dig-plugins models show alanine-dipeptide
    """
    from dataclasses import asdict

    from .. import models

    entry = models.index().get(name) or models.cached().get(name)
    typer.echo(json.dumps({**asdict(models.load(name).card), "registry": entry}, indent=2))


@app.command("pull")
def pull(
    source: Annotated[str, typer.Argument(help="A name of the registry, or an address: https://, hf://OWNER/REPOSITORY/FILE, file://.")],
    name: Annotated[MaybeText, typer.Option(help="What to call it; the file's own name if not given.")] = None,
    sha256: Annotated[MaybeText, typer.Option(help="What the file must have; recorded if not given.")] = None,
) -> None:
    """Fetch a model into the cache (DIG_PLUGINS_CACHE). No other verb touches the network.

    Example: dig-plugins models pull https://example.org/mine.safetensors --name mine
    """
    from .. import models

    file = models.pull(source, name=name, sha256=sha256)
    typer.echo(f"{file.stem}: {file}, sha256 {models.sha256(file)}")
