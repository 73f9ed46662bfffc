"""One run from files to files: a slab and an adsorbate become samples, sites, a map and a record of how they were made."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ase import Atoms

from dig_core.files import write_atomically
from dig_core.random import as_seed

from ...record import empty_directory, of_checkpoint, of_software, write_record
from ...report import write_report
from ..calculators import calculator_named
from .data import read_images
from .ensemble import AdsorptionEnsemble
from .report import adsorption_report
from .sample import sample_adsorption
from .sites import SiteSet

__all__ = ["AdsorptionRun", "adsorb", "calculator_named"]


class AdsorptionRun(NamedTuple):
    """``ensemble`` and its ``sites``; ``summary`` is what ``run.json`` holds; ``directory`` where everything is;
    ``report`` the page, if any."""

    ensemble: AdsorptionEnsemble
    sites: SiteSet
    summary: dict
    directory: Path
    report: Path | None = None


def adsorb(
    slab: str | Path, adsorbate: str, out: str | Path, *, model: str = "adsorb-general", temperature: float = 300.0, n: int = 1000,
    calculator: str | None = None, correct: str | None = None, seed: int | None = None, yielding: bool = False, unseen: bool = False,
    report: bool = True,
) -> AdsorptionRun:  # fmt: skip
    """Sample ``adsorbate`` on the slab of a file and write everything to the directory ``out``, which must be new or empty.

    Files: ``samples.extxyz`` (``ase gui`` opens it, :meth:`AdsorptionEnsemble.read` reads it), ``sites.md`` and ``sites.json``,
    ``map.png`` (needs matplotlib), ``run.json`` and, unless ``report`` is False, its ``report.html`` and ``.png``.

    Parameters
    ----------
    slab: a structure file, of which the last image is taken. adsorbate: an element, a g2 name, or a structure file whose first atom binds.
    calculator: see :func:`calculator_named`. The rest is that of :func:`sample_adsorption`, whose errors are raised.
    """
    seed, directory = as_seed(seed), empty_directory(out)
    bare, guest = read_images(slab)[-1], _guest(adsorbate)
    energy = None if calculator is None else calculator_named(calculator)
    ensemble = sample_adsorption(
        bare, guest, model, n=n, temperature=temperature, seed=seed, energy=energy, correct=correct, yielding=yielding, unseen=unseen
    )
    directory.mkdir(parents=True, exist_ok=True)
    ensemble.write(directory / "samples.extxyz")
    sites = ensemble.sites()
    write_atomically(directory / "sites.md", ensemble.summary().encode())
    sites.write(directory / "sites.json")
    write_atomically(directory / "map.png", _picture(ensemble))
    summary = _summary(ensemble, sites, model, seed)
    write_record(directory, summary)
    page = write_report(directory, adsorption_report(ensemble, sites, summary), summary) if report else None
    return AdsorptionRun(ensemble, sites, summary, directory, page)


def _guest(adsorbate: str) -> Atoms | str:
    return read_images(adsorbate)[0] if Path(adsorbate).suffix else adsorbate


def _picture(ensemble: AdsorptionEnsemble) -> bytes:
    from ...panels import new_figure, to_png

    figure = new_figure(6, 4.5)
    ensemble.plot(figure.add_subplot())
    return to_png(figure, dpi=150)


def _summary(ensemble: AdsorptionEnsemble, sites: SiteSet, model: str, seed: int) -> dict:
    return {
        **of_software("ase"), **of_checkpoint(model),
        "system": str(ensemble.template.symbols), "energy": ensemble.energy_name or "none", "temperature_K": ensemble.temperature,
        "seed": seed, "samples": len(ensemble), "used": int(ensemble.used.sum()), "kept_out": ensemble.kept_out(),
        "correction": ensemble.correction or "none", "source": ensemble.source, "effective_sample_size": ensemble.effective_sample_size(),
        "energy_calls": ensemble.n_calls, "sites": len(sites), "site_table": sites.table(),
        "seconds": ensemble.wall_s, "cpu_seconds": ensemble.cpu_s,
        "units": "Angstrom, eV, K; log_q and log_weight in nats",
    }  # fmt: skip
