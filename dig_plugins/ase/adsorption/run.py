"""One run from files to files: a slab and an adsorbate become samples, sites, a map and a record of how they were made."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import NamedTuple

from ase import Atoms

from dig_core.errors import IncompatibleError
from dig_core.files import write_atomically
from dig_core.random import as_seed

from ...record import empty_directory, of_checkpoint, of_software, write_record
from ...report import write_report
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


def calculator_named(name: str):
    """An ASE calculator: ``"chgnet"`` (r2SCAN) or ``"sevennet"`` (SevenNet-0), both with the weights that their wheels ship, ``"emt"``
    (smoke tests only), or ``"module:Class"``.

    ``Class`` is anything in that module (which Python must find: see PYTHONPATH) that makes a calculator when it is called
    without arguments.

    Raises
    ------
    IncompatibleError: another name, or a class that needs arguments. ImportError: what is to be installed.
    """
    if name in _NAMED:
        make, package = _NAMED[name]
        try:
            return make()
        except ModuleNotFoundError as error:
            raise ImportError(f"the calculator {name} needs {error.name}: pip install {package}.") from error
    module, colon, kind = name.partition(":")
    if not (module and colon and kind):
        raise IncompatibleError(f"expected a calculator as {', '.join(_NAMED)} or module:Class, got {name!r}.")
    make = getattr(importlib.import_module(module), kind, None)
    if not callable(make):
        raise IncompatibleError(f"the module {module} has no class or function {kind}: expected one that makes a calculator.")
    try:
        return make()
    except TypeError as error:
        raise IncompatibleError(f"{name} cannot be called without arguments ({error}): name a function that makes it.") from error


def _emt():
    from ase.calculators.emt import EMT

    return EMT()


def _chgnet():
    from chgnet.model import CHGNet
    from chgnet.model.dynamics import CHGNetCalculator

    return CHGNetCalculator(CHGNet.load(model_name="r2scan", use_device="cpu", verbose=False), use_device="cpu")


def _sevennet():
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator("7net-0", device="cpu")


_NAMED = {"emt": (_emt, "ase"), "chgnet": (_chgnet, "chgnet"), "sevennet": (_sevennet, "sevenn")}
"""Name -> what makes the calculator, and the package that it comes with."""


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
