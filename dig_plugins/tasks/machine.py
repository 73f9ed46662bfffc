"""What this machine has: versions, devices, engines and their platforms, how precise and how fast they are here."""

from __future__ import annotations

import contextlib
import copy
import importlib
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import models
from ..record import of_software, write_record
from .result import Run, writable

__all__ = ["ENGINES", "Machine", "doctor"]

ENGINES = {
    "openmm": ("openmm", "openmm"),
    "openmmtools": ("openmmtools", "openmmtools"),
    "ase": ("ase", "ase"),
    "pymatgen": ("pymatgen", "pymatgen.core"),
    "mdtraj": ("mdtraj", "mdtraj"),
    "rdkit": ("rdkit", "rdkit"),
    "viz": ("matplotlib", "matplotlib"),
    "analysis": ("pymbar", "pymbar"),
    "dask": ("distributed", "distributed"),
}
"""Extra -> the package that it brings and the module of it."""


class Machine(NamedTuple):
    """``engines``: extra -> version, "not installed" or what is wrong; ``devices``, ``platforms`` of OpenMM; ``timing``; ``problems``."""

    engines: dict[str, str]
    devices: dict[str, Any]
    platforms: dict[str, dict[str, float]]
    timing: dict[str, float]
    problems: tuple[str, ...]


def doctor(out: str | Path | None = None, *, timing: bool = True) -> Run:
    """Look at this machine; ``result`` is the :class:`Machine`, whose ``problems`` say what does not work.

    ``out``: a record, ``.json``, if wanted. ``timing``: draw and weigh a few hundred structures, some seconds.
    """
    out = None if out is None else writable(out, (".json",))
    problems: list[str] = []
    engines = {extra: _engine(package, module, problems) for extra, (package, module) in ENGINES.items()}
    platforms = _tried("OpenMM's platforms", _platforms, problems) or {} if _works(engines["openmm"]) else {}
    problems += _models()
    times = _tried("drawing from alanine-dipeptide", lambda: _times(bool(platforms)), problems) or {} if timing else {}
    found = Machine(engines, _devices(), platforms, times, tuple(problems))
    record = {**of_software(*(package for package, _ in ENGINES.values())), "system": platform.platform(), **found._asdict()}
    if out is not None:
        write_record(out, record)
    return Run(found, record, _said(found, record), Path(".") if out is None else out)


def _engine(package: str, module: str, problems: list[str]) -> str:
    """Its version, if it imports."""
    try:
        found = version(package)
    except PackageNotFoundError:
        return "not installed"
    try:
        with _silence():
            importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 (whatever a broken installation raises is what is asked for)
        problems.append(f"{package} {found} does not import: {type(error).__name__}: {error}")
        return f"broken: {error}"
    return found


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without the banners that some packages greet with."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(before)


def _works(found: str) -> bool:
    return found != "not installed" and not found.startswith("broken")


def _tried(what: str, call: Callable[[], Any], problems: list[str]) -> Any:
    try:
        return call()
    except Exception as error:  # noqa: BLE001 (as above)
        problems.append(f"{what} failed: {type(error).__name__}: {error}")
        return None


def _devices() -> dict[str, Any]:
    cuda = {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())} if torch.cuda.is_available() else {}
    metal = {"mps": "Apple GPU"} if torch.backends.mps.is_available() else {}
    here = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch threads": torch.get_num_threads()}
    return {**here, **cuda, **metal}


def _platforms() -> dict[str, dict[str, float]]:
    """Of each platform that can evaluate a peptide here: ms an energy takes, and how far it is from the exact one, kJ/mol."""
    import openmm
    from openmm import unit

    from ..openmm import model_system
    from ..openmm.platforms import ACCELERATORS, present

    system, energies, found = model_system("alanine-dipeptide"), {}, {}
    for name in sorted(present(), key=lambda p: p != "Reference"):
        properties = {"Threads": "1"} if name == "CPU" else ACCELERATORS.get(name, {})
        integrator = openmm.VerletIntegrator(0.001)
        try:
            context = openmm.Context(system.system, integrator, openmm.Platform.getPlatformByName(name), properties)
            context.setPositions(system.positions)
            began = time.perf_counter()
            for _ in range(20):
                energy = context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        except openmm.OpenMMException:  # installed without its device
            continue
        energies[name] = energy
        found[name] = {"ms_per_energy": 50 * (time.perf_counter() - began), "error_kJ_per_mol": abs(energy - energies["Reference"])}
    return found


def _models() -> list[str]:
    """What is wrong with the models that ship and those in the cache."""
    found = []
    for name in {**models.index(), **models.cached()}:
        try:
            models.path(name)
        except models.CheckpointError as error:
            found.append(str(error))
    return found


def _times(weighed: bool) -> dict[str, float]:
    """Structures a second, and how far a float32 network is from the same in float64."""
    from dig_core.random import Streams

    dig = models.load("alanine-dipeptide")
    dig.proposal().draw(8, Streams(0, range(8)))
    began = time.perf_counter()
    drawn = dig.proposal().draw(256, Streams(0, range(256)))
    times = {"structures_per_second": 256 / (time.perf_counter() - began)}
    if weighed:
        from ..openmm import OpenMMEnergy, model_system

        system = model_system("alanine-dipeptide")
        energy = OpenMMEnergy(system.system, system.temperature)
        began = time.perf_counter()
        energy(drawn.geometry)
        times["energies_per_second"] = 256 / (time.perf_counter() - began)
    t = torch.tensor([0.3], dtype=torch.float64)
    single = dig.model.moments(drawn.state, t, dig.descriptor).noise
    double = copy.deepcopy(dig.model).double().moments({name: x.double() for name, x in drawn.state.items()}, t, dig.descriptor).noise
    times["network_error"] = float(np.max([float((single[name] - double[name]).abs().max()) for name in double]))
    return times


def _said(found: Machine, record: dict) -> str:
    known = record["versions"]
    lines = [f"dig-plugins {known['dig-plugins']}, Python {known['python']}, torch {known['torch']}, {record['system']}"]
    devices = ", ".join(f"{name}: {value}" for name, value in found.devices.items())
    lines += [f"devices: {devices}", f"cache of models: {models.cache_directory()}", "engines:"]
    hint = "not installed; pip install 'dig-plugins[{}]'"
    lines += [f"  {extra:12s} {hint.format(extra) if text == 'not installed' else text}" for extra, text in found.engines.items()]
    for name, numbers in found.platforms.items():
        lines.append(f"  OpenMM {name}: {numbers['ms_per_energy']:.3f} ms an energy, {numbers['error_kJ_per_mol']:.1g} kJ/mol off")
    if found.timing:
        numbers = found.timing
        weighed = f", {numbers['energies_per_second']:.0f} energies a second" if "energies_per_second" in numbers else ""
        rate, error = numbers["structures_per_second"], numbers["network_error"]
        lines.append(f"alanine dipeptide: {rate:.0f} structures a second{weighed}; in float32 the network's noise is {error:.1g} off")
    lines += [f"PROBLEM: {problem}" for problem in found.problems] or ["no problem was found"]
    return "\n".join(lines)
