"""A Monte Carlo chain of a molecule in a directory: MD and DiG proposals, saved as it goes, gone on with by the same call."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dig_core.errors import CheckpointError, IncompatibleError
from dig_core.files import finished, read_arrays, understood, write_atomically
from dig_core.montecarlo.analysis import effective_sample_size
from dig_core.montecarlo.chain import Reason, reduced_energy
from dig_core.progress import Show, bar
from dig_core.random import as_seed
from dig_core.types import Geometry

from .. import models
from ..claim import claimed
from ..record import of_checkpoint, of_software
from ..report import Report
from .reports import chain_report
from .result import Run, recorded
from .subjects import Given, Subject, subject
from .thinned import MOST

__all__ = ["mc"]

_EVALUATED = 2000  # structures of a chain whose energies a report shows
_COLUMNS = ("u", "log_q", "log_alpha", "accepted", "reason")


def mc(
    model: str | Path, out: str | Path = "chain", *, blocks: int = 100, given: Given | None = None,
    md_steps: int = 500, proposals: int = 32,
    timestep: float = 1.0, scheme: str = "metropolis", save: int = 50, seed: int | None = None, progress: Show = None,
    report: bool = True,
) -> Run:  # fmt: skip
    """A chain of ``blocks`` in the directory ``out``: MD and independent proposals in turn, exact whatever the model is worth.

    The same call goes on with a chain that was cut off, or that had fewer blocks, as if it had never stopped. Files: ``trajectory.xtc``
    and ``.pdb``, a frame after every test; ``proposals.csv``; ``samples.npz``, the same numbers; ``run.json``; and in ``segments`` and
    ``state.npz`` what it goes on from, which a killed process leaves whole.

    Parameters
    ----------
    model, given: of a molecule in OpenMM. The given structure is minimised first. md_steps, proposals: of a block, ``timestep`` fs.
    scheme: "metropolis" or "isir", see :class:`dig_plugins.openmm.DiGMonteCarlo`. save: after so many blocks.
    seed: drawn and kept if None.

    Raises
    ------
    IncompatibleError: a directory of something else or that another process works on, a model of something else, no blocks.
    CheckpointError: the directory holds a chain of another system, model or settings, or was written on another machine.
    """
    if blocks < 1 or save < 1:
        raise IncompatibleError(f"expected at least 1 block, and to save after at least 1, got blocks = {blocks} and save = {save}.")
    directory = Path(out)
    if directory.exists() and (not directory.is_dir() or (any(directory.iterdir()) and not (directory / "settings.json").is_file())):
        raise IncompatibleError(f"{directory} holds something else than a chain: choose a new directory, so that nothing is overwritten.")
    state = _state(directory)
    seed = as_seed(seed) if seed is not None or state is None else int(state["seed"])
    chain, about = _chain(model, given, state, seed, md_steps, proposals, timestep, scheme)
    with claimed(directory, about, "chain"):
        state = _state(directory)
        done = 0 if state is None else int(state["segments"])
        if state is not None:
            _restore(chain, state)
        _run(chain, directory, blocks, save, done, progress)
        return _finish(chain, directory, model, about, given, report)


def _chain(model, given: Given | None, state: dict | None, seed: int, md_steps: int, proposals: int, timestep: float, scheme: str):
    """A chain at its start, and what decides its numbers."""
    import openmm

    from ..openmm import DiGMonteCarlo, OpenMMEnergy

    asked = subject(model, given)
    if asked.kind != "molecule":
        raise IncompatibleError(f"{model} is a model of {asked.kind}s: chains with MD are for molecules in OpenMM.")
    platform = asked.energy.platform_name if state is None else str(state["platform"])
    simulation = asked.system.simulation(seed=seed, platform=platform, timestep=timestep)
    if state is None:
        simulation.minimizeEnergy()
        simulation.context.setVelocitiesToTemperature(asked.temperature, 1 + seed % (2**31 - 2))
    energy = OpenMMEnergy(asked.system.system, asked.temperature, platform=platform)
    settings = {"seed": seed, "md_steps": md_steps, "proposals": proposals, "scheme": scheme}
    chain = DiGMonteCarlo(simulation, asked.dig, energy=energy, **settings)
    system = hashlib.sha256(openmm.XmlSerializer.serialize(asked.system.system).encode()).hexdigest()
    return chain, {"model_sha256": models.sha256(model), "system_sha256": system, "timestep_fs": timestep, **settings}


def _run(chain, directory: Path, blocks: int, save: int, done: int, progress: Show) -> None:
    """Segments to files, each complete before the state says that it is there."""
    segments = directory / "segments"
    segments.mkdir(parents=True, exist_ok=True)
    with bar(label="blocks", progress=progress, total=blocks, initial=chain.blocks) as shown:
        while chain.blocks < blocks:
            made = []
            for _ in range(min(save, blocks - chain.blocks)):
                made.append(chain.step())
                shown.update()
                shown.set_postfix(acceptance=f"{chain.statistics.acceptance:.2f}", refresh=False)
            columns = {name: np.concatenate([getattr(block.records, name) for block in made]) for name in _COLUMNS}
            positions = np.concatenate([block.positions for block in made]).astype(np.float32)
            _save(segments / f"{done:06d}.npz", positions=positions, **columns)
            done += 1
            _save(directory / "state.npz", **_flat(chain), segments=done)


def _flat(chain) -> dict[str, Any]:
    """The chain's state as arrays that are read without unpickling."""
    state = chain.state_dict()
    held = {f"chain_{name}": value for name, value in state["chain"].items()}
    context = np.frombuffer(state["context"], dtype=np.uint8)
    return {**held, "statistics": json.dumps(state["statistics"]), "context": context, "seed": np.uint64(chain.seed),
            "platform": chain.energy.platform_name}  # fmt: skip


def _state(directory: Path) -> dict | None:
    """What ``state.npz`` holds, None where no chain was begun."""
    place = directory / "state.npz"
    if not place.is_file():
        return None
    state = read_arrays(place)
    with understood(place, "is not the state of a chain", "begin in another directory"):
        int(state["seed"]), int(state["segments"]), str(state["platform"])
    return state


def _restore(chain, state: dict) -> None:
    import openmm

    head = "chain_"
    held = {name.removeprefix(head): value for name, value in state.items() if name.startswith(head)}
    try:
        with understood("the chain's state", "cannot be read", "begin in another directory"):
            statistics, context = json.loads(str(state["statistics"])), state["context"].tobytes()
        chain.load_state_dict({"chain": held, "statistics": statistics, "context": context})
    except openmm.OpenMMException as error:
        raise CheckpointError(f"the simulation cannot go on here ({error}): use the machine and the OpenMM that began it.") from error


def _save(place: Path, **arrays: Any) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(place, buffer.getvalue())


def _segments(directory: Path) -> Iterator[dict[str, np.ndarray]]:
    count = int(_state(directory)["segments"])  # type: ignore[index]
    for number in range(count):
        yield read_arrays(directory / "segments" / f"{number:06d}.npz")


def _finish(chain, directory: Path, model: str | Path, about: dict, given: Given | None, pages: bool) -> Run:
    """Everything that people look at, from the segments."""
    from ..openmm.files import Trajectory

    parts, frames, count = [], [], 0
    every = max(1, -(-chain.statistics.proposed // MOST))
    with Trajectory(directory / "trajectory.xtc", chain.simulation.topology) as trajectory:
        for segment in _segments(directory):
            positions = segment.pop("positions")
            trajectory.write(positions)
            frames.append(positions[-count % every :: every])
            count += len(positions)
            parts.append(segment)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in _COLUMNS}
    log_weights = np.where(columns["reason"] == Reason.NONE, -columns["u"] - columns["log_q"], -np.inf)
    _save(directory / "samples.npz", **columns, log_weights=log_weights, seed=np.uint64(chain.seed))
    _table(directory / "proposals.csv", columns, chain.proposals)
    found = chain.statistics
    ess = effective_sample_size(log_weights) if np.isfinite(log_weights).any() else math.nan
    record = {
        **of_software("openmm"), **of_checkpoint(model), **about,
        "system": chain.dig.card.system, "energy": chain.dig.card.energy, "temperature_K": chain.temperature, "blocks": chain.blocks,
        "acceptance": found.acceptance, "raw_ess": ess, "proposals_made": found.proposed, "failed": found.failed,
        "longest_rejection_run": found.longest_rejection_run, "energy_platform": chain.energy.platform_name,
        "md_ps": chain.blocks * chain.md_steps * about["timestep_fs"] / 1000, "units": "trajectory nm, energies kT",
    }  # fmt: skip
    said = (
        f"{chain.blocks} blocks: {found.proposed} proposals, acceptance {found.acceptance:.2f}, raw ESS {ess:.2f}, longest run of "
        f"rejections {found.longest_rejection_run}, {record['md_ps']:g} ps of MD; seed {chain.seed}.\nchain: {directory}"
    )
    page = (lambda: _report(subject(model, given), np.concatenate(frames), every, columns, log_weights, record)) if pages else None
    return recorded(chain, record, said, directory, page)


def _report(asked: Subject, frames: np.ndarray, every: int, columns: dict, log_weights: np.ndarray, record: dict) -> Report:
    """``frames`` (F, N, 3) nm, every k-th; energies of some of them are computed again, for the proposals' alone are kept."""
    step = max(1, -(-len(frames) // _EVALUATED))
    with torch.no_grad():
        u = reduced_energy(asked.energy, Geometry(10 * torch.from_numpy(frames[::step].astype(np.float64)))).numpy()
    at = np.arange(0, len(columns["accepted"]), every)[: len(frames)]
    return chain_report(asked, 10 * frames.astype(np.float64), at[::step], u, columns, log_weights, record)


def _table(place: Path, columns: dict[str, np.ndarray], proposals: int) -> None:
    with finished(place) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("block", "proposal", *_COLUMNS))
        for i, (u, log_q, log_alpha, accepted, reason) in enumerate(zip(*columns.values(), strict=True)):
            named = Reason(int(reason)).name.lower()
            writer.writerow((1 + i // proposals, i, f"{u:.6f}", f"{log_q:.6f}", f"{log_alpha:.6f}", int(accepted), named))
