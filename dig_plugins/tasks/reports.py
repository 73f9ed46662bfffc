"""What each task has to show: the panels, structures and tables of its report, by the kind of its system."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dig_core.montecarlo.analysis import normalised_weights

from .. import models
from ..panels import along, annealing, histogram, losses, overlay, running
from ..report import Panel, Report, Scene, Table, fact
from ..weighing import acceptance_panels, calibration_panel, energy_panel, weight_panels
from .subjects import Subject
from .thinned import Thinned

__all__ = ["Seen", "chain_report", "density_report", "design_report", "path_report", "sample_report", "seen", "training_report",
           "validation_report"]  # fmt: skip

_FRAMES, _FEWEST = 12, 10  # structures to turn, and those without which there is nothing to bin


class Seen(NamedTuple):
    """What is to be seen of structures: panels and, to turn, some of them."""

    panels: list[Panel]
    scenes: list[Scene]


def seen(
    asked: Subject, model: str, positions: np.ndarray, log_weights: np.ndarray | None = None, *, block: int = 1, every: int = 1
) -> Seen:
    """Of ``positions`` (F, N, 3) Angstrom of molecules, conformers and proteins, weighed by ``log_weights`` (F,), equal if None.

    ``model``: by whose name a reference is looked for. ``block``: structures that errors take together. ``every``: what their numbers
    in the file are multiples of.
    """
    numbers = every * np.arange(len(positions))
    if log_weights is not None:
        finite = np.isfinite(log_weights)
        positions, log_weights, numbers = positions[finite], log_weights[finite], numbers[finite]
    if not len(positions) or asked.kind not in _BY_KIND:
        return Seen([], [])
    weights = None if log_weights is None else normalised_weights(log_weights)
    chosen = _picked(len(positions), weights)
    labels = [f"structure {i}" for i in numbers[chosen]]
    said = "Drawn by their weights." if weights is not None else "Evenly spaced among all of them."
    panels, scene = _BY_KIND[asked.kind](asked, model, positions, weights, block, (chosen, labels, said))
    flat = Panel("Structures", lambda ax: overlay(ax, scene.frames, scene.style == "trace"), f"On each other. {said}", wide=True)
    return Seen([*(panels if len(positions) >= _FEWEST else []), flat], [scene])


def sample_report(asked: Subject, found: Any, some: Thinned | None, record: dict) -> Report:
    """Of independent structures; ``some`` of them are drawn, None for crystals and for what cannot be read."""
    if record["kind"] == "crystal":
        return _crystals(found, f"Crystals of {found.structures[0].composition.reduced_formula}", None)
    log_weights = getattr(found, "log_weights", getattr(found, "log_weight", None))
    panels, scenes, tables, notes = [], [], {}, []
    if some is not None:
        panels, scenes = seen(asked, record["model"], some.positions, some.log_weights, every=some.every)
    else:
        notes.append("Structures are not shown: reading trajectories needs MDTraj, pip install 'dig-plugins[mdtraj]'.")
    if log_weights is not None:
        energies = getattr(found, "energies", getattr(found, "energy", None))
        unit = "kcal/mol" if record["kind"] == "conformers" else "kT"
        panels += _energies(energies, log_weights, unit)
        if unit == "kT":
            panels.append(calibration_panel(energies, np.where(np.isfinite(log_weights), -energies - log_weights, np.nan)))
        panels += weight_panels(log_weights)
    if record.get("populations"):
        tables["Populations"] = _populations(record)
    if record["kind"] == "protein":
        notes.append("The model has no energy: these are draws of the law that it learned, of equal weight.")
    return Report(f"Samples of {record.get('of') or record['model']}", panels, scenes=scenes, tables=tables, notes=notes)


def density_report(asked: Subject, positions: np.ndarray, found: Any, record: dict) -> Report:
    """Of given structures, weighed one by one."""
    panels = []
    if np.isfinite(found.energy).any():
        panels = [
            calibration_panel(found.energy, found.log_q),
            Panel(
                "Log weights", lambda ax: histogram(ax, found.log_weight, "-E/kT - log q", "nats"),
                "Of a perfect model all have one value; those to the right are proposed too rarely.",
            ),
        ]  # fmt: skip
    else:
        said = "How probable the model holds the structures to be; it has no energy to compare with."
        panels = [Panel("Densities", lambda ax: histogram(ax, found.log_q, "log q", "nats"), said)]
    shown = seen(asked, record["model"], positions)
    return Report(f"Densities under {record['model']}", panels + shown.panels, scenes=shown.scenes)


def chain_report(
    asked: Subject, positions: np.ndarray, at: np.ndarray, energies: np.ndarray, columns: dict, log_weights: np.ndarray, record: dict
) -> Report:
    """Of a chain: ``positions`` (F, N, 3) Angstrom after every k-th test, ``energies`` u (K,) after those ``at`` (K,); ``columns`` of all
    proposals as in its table."""
    accepted = columns["accepted"].astype(bool)
    every = -(-len(accepted) // len(positions))
    shown = seen(asked, record["model"], positions, block=max(1, len(positions) // 50), every=every)
    sets: dict[str, tuple[np.ndarray, np.ndarray | None]] = {"chain": (energies, None)}
    if np.isfinite(log_weights).any():
        weights = normalised_weights(log_weights)
        sets |= {"proposals, reweighted": (columns["u"], weights), "proposals": (np.where(weights > 0, columns["u"], np.nan), None)}
    said = "The chain and its proposals, reweighted, are two estimates of one law and should agree; proposals alone are the model's law."
    panels = [
        *shown.panels, *acceptance_panels(accepted), *energy_panel(sets, said),
        Panel("Energy along the chain", lambda ax: running(ax, at, energies, accepted[at]), "A chain that mixes forgets where it began."),
        *weight_panels(log_weights),
    ]  # fmt: skip
    return Report(f"Chain of {record['model']}", panels, scenes=shown.scenes)


def path_report(
    asked: Subject, positions: np.ndarray, record: dict, rmsd: np.ndarray, energies: np.ndarray | None, broken: np.ndarray | None
) -> Report:
    """Of ``positions`` (n, N, 3) Angstrom along a path, with the ``rmsd`` (n, 2) to both ends; frames in ``broken`` are not whole."""
    which = "alpha carbons" if asked.kind == "protein" else "heavy atoms"
    lines = {"from the start": rmsd[:, 0], "from the end": rmsd[:, 1]}
    crossed = " Crosses are frames that are broken or clash." if broken is not None and broken.any() else ""
    said = f"How far each frame is from both given ends, superposed.{crossed}"
    panels = [Panel("Distance from both ends", lambda ax: along(ax, lines, f"RMSD of {which} (Å)", broken), said, wide=energies is None)]
    if energies is not None:
        known, as_is = {"energy": energies - np.nanmin(energies)}, "Of each frame as it is, nothing is relaxed."
        panels.append(Panel("Energy", lambda ax: along(ax, known, "energy above the lowest (kT)"), as_is))
    labels = [f"frame {i}" for i in range(len(positions))]
    caption = "The path from its start to its end."
    if asked.kind == "protein":
        from ..mdtraj.pictures import structures as backbones

        scene = backbones(positions, asked.dig.descriptor, labels, caption, superpose=False)
    else:
        from ..openmm.pictures import structures

        scene = structures(asked.system.topology, positions / 10, labels, caption)
    return Report(f"Path of {record['model']}", panels, scenes=[scene])


def design_report(found: Any, target: float | tuple[float, float] | None, record: dict) -> Report:
    """Of designed crystals."""
    return _crystals(found, f"Designs of {record['composition']}", target)


def training_report(out: Path, record: dict) -> Report:
    """Of a training: losses of its stages, read from their logs, and its annealing."""
    logs = {place.parent.name: log for place in sorted(out.rglob("log.csv")) if (log := _log(place)) is not None}
    panels = []
    if logs:
        said = "Falling and then flat is good; held-out losses that rise are a sign of too few data."
        panels.append(Panel("Losses", lambda ax: losses(ax, logs), said, wide=True))
    for stage in record["history"]:
        if rungs := stage.get("rungs"):
            said = "From the prior to the energy, a rung at a time. An effective size near nothing at the end means that states are lost."
            panels.append(Panel("Annealing", _later(annealing, rungs), said, wide=True))
    verdict = None if record["finished"] else (False, "This training was interrupted: run the same command again to go on.")
    of = next((record[key] for key in ("molecule", "composition", "adsorbate", "structure", "files") if record.get(key)), out.name)
    of = ", ".join(map(str, of)) if isinstance(of, list) else of
    return Report(f"Training on {of}", panels, verdict=verdict, tables={"Stages": _stages(record)} if record["history"] else {})


def validation_report(asked: Subject, found: Any, record: dict) -> Report:
    """Of a validation: the verdict, a line a check, and what it was judged by; ``found``: the candidates, None without an energy."""
    mark = {True: "✓ ok", False: "✗ FAILED", None: "- for information"}
    checks = record["checks"]
    rows = [(check["name"], mark[check["passed"]], fact(record, f"checks.{k}.said")) for k, check in enumerate(checks)]
    panels, scenes = [], []
    if found is not None:
        panels = weight_panels(found.log_weight)
        if panels:
            panels += [*_energies(found.u, found.log_weight, "kT"), calibration_panel(found.u, found.log_q)]
            shown = seen(asked, record["model"], found.positions, found.log_weight)
            panels, scenes = shown.panels + panels, shown.scenes
    return Report(f"Is {record['model']} right?", panels, verdict=(record["trusted"], record["verdict"]), scenes=scenes,
                  tables={"Checks": Table(("check", "passed", "what was found"), rows)})  # fmt: skip


def _molecule(asked: Subject, model: str, positions: np.ndarray, weights: np.ndarray | None, block: int, shown: tuple):
    from ..openmm.pictures import reference_profile, structures, surfaces

    topology, (chosen, labels, said) = asked.system.topology, shown
    ships = " + ".join(models.index().get(model, {}).get("force_field", ())) == asked.energy_name
    panels = surfaces(topology, positions / 10, weights, block=block, reference=reference_profile(model) if ships else None)
    return panels, structures(topology, positions[chosen] / 10, labels, said)


def _conformers(asked: Subject, model: str, positions: np.ndarray, weights: np.ndarray | None, block: int, shown: tuple):
    from ..rdkit.pictures import structures, torsion_panels

    chosen, labels, said = shown
    return torsion_panels(asked.system, positions, weights), structures(asked.system, positions[chosen], labels, said)


def _protein(asked: Subject, model: str, positions: np.ndarray, weights: np.ndarray | None, block: int, shown: tuple):
    from ..mdtraj.pictures import backbone_panels, structures

    descriptor, (chosen, labels, said) = asked.dig.descriptor, shown
    return backbone_panels(positions, descriptor, weights), structures(positions[chosen], descriptor, labels, said)


_BY_KIND = {"molecule": _molecule, "conformers": _conformers, "protein": _protein}


def _crystals(found: Any, title: str, target: float | tuple[float, float] | None) -> Report:
    from ..pymatgen.pictures import crystal_panels, structures

    panels = crystal_panels(found, target)
    if found.log_weight is not None:
        panels += weight_panels(np.where(found.valid, found.log_weight, -np.inf), "the likelihood of the target over how it was steered")
    return Report(title, panels, scenes=[structures(found)], notes=list(found.notes), lead=found.source)


def _energies(energies: np.ndarray, log_weights: np.ndarray, unit: str) -> list[Panel]:
    finite = np.isfinite(log_weights) & np.isfinite(energies)
    if not finite.any():
        return []
    sets = {"equilibrium": (energies[finite], normalised_weights(log_weights[finite])), "as proposed": (energies[finite], None)}
    return energy_panel(sets, "Weighted, which is the equilibrium, beside what the model proposes.", unit)


def _stages(record: dict) -> Table:
    """A row a stage, a column for each number that any of them recorded."""
    history = record["history"]
    numbers = [{key for key, value in stage.items() if isinstance(value, (int, float))} for stage in history]
    keys = [key for key in dict.fromkeys(key for stage in history for key in stage) if any(key in held for held in numbers)]

    def cell(k: int, key: str) -> object:
        whole = isinstance(history[k].get(key), int)
        return fact(record, f"history.{k}.{key}", "{:,}" if whole else "{:.3g}") if key in numbers[k] else ""

    return Table(("stage", *keys), [(stage.get("stage", "all"), *(cell(k, key) for key in keys)) for k, stage in enumerate(history)])


def _populations(record: dict) -> Table:
    rows = [
        (row["state"], fact(record, f"populations.{k}.population", "{:.2%}"), fact(record, f"populations.{k}.stderr", "{:.2%}"))
        for k, row in enumerate(record["populations"])
    ]
    return Table(("torsions", "population", "standard error"), rows)


def _picked(n: int, weights: np.ndarray | None) -> np.ndarray:
    """Up to twelve of ``n`` structures, systematically by their weights."""
    edges = (np.arange(_FRAMES) + 0.5) / _FRAMES
    if weights is None:
        return np.unique((edges * n).astype(int).clip(max=n - 1))
    return np.unique(np.searchsorted(np.cumsum(weights), edges).clip(max=n - 1))


def _later(draw: Callable, *data: Any) -> Callable:
    """``draw`` with these data, whatever the loop that it stands in goes on to."""
    return lambda ax: draw(ax, *data)


def _log(place: Path) -> dict[str, np.ndarray] | None:
    """Columns of a training's log; None for one without rows."""
    with open(place, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    columns = ("step", "training", "validation")
    return {name: np.array([float(row[name]) for row in rows]) for name in columns} if rows else None
