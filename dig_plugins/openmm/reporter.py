"""Writers for a DiG chain: a CSV line a proposal and a trajectory of the states after each test."""

from __future__ import annotations

import csv
from pathlib import Path

import openmm
from openmm import app, unit

from dig_core.errors import IncompatibleError
from dig_core.montecarlo.chain import Reason

from .montecarlo import Block, DiGMonteCarlo

__all__ = ["DiGReporter", "TrajectoryReporter"]

COLUMNS = ("block", "proposal", "u", "log_q", "log_alpha", "accepted", "reason")


class DiGReporter:
    """A CSV line for every proposal: reduced energy, log-density, log acceptance probability, accepted, reason.

    Lines are flushed after each block, so what was written stays readable whatever happens to the process. ``append``
    goes on with an existing file.
    """

    def __init__(self, path: str | Path, append: bool = False):
        path = Path(path)
        fresh = not (append and path.exists())
        self._proposal = 0 if fresh else max(0, len(path.read_text().splitlines()) - 1)
        self._stream = open(path, "w" if fresh else "a", newline="")
        self._writer = csv.writer(self._stream)
        if fresh:
            self._writer.writerow(COLUMNS)

    def __call__(self, chain: DiGMonteCarlo, block: Block) -> None:
        records = block.records
        for u, log_q, log_alpha, accepted, reason in zip(*records, strict=True):
            row = (chain.blocks, self._proposal, f"{u:.6f}", f"{log_q:.6f}", f"{log_alpha:.6f}", int(accepted), Reason(reason).name.lower())
            self._writer.writerow(row)
            self._proposal += 1
        self._stream.flush()

    def close(self) -> None:
        """Close the file; a closed reporter cannot be called."""
        self._stream.close()


class TrajectoryReporter:
    """The states after each test as an XTC trajectory (1e-4 nm precision) beside a PDB file of the topology.

    ``stride`` keeps every stride-th state. Open the pair with MDTraj, MDAnalysis, VMD, PyMOL or ChimeraX.
    """

    def __init__(self, path: str | Path, topology: app.Topology, stride: int = 1):
        path = Path(path)
        if path.suffix != ".xtc":
            raise IncompatibleError(f"expected a file name ending in .xtc, got {path.name!r}.")
        if stride < 1:
            raise IncompatibleError(f"stride must be at least 1, got {stride}.")
        self._path, self._topology, self._stride, self._seen = path, topology, stride, 0
        self._file = None

    def __call__(self, chain: DiGMonteCarlo, block: Block) -> None:
        if self._file is None:
            self._start(block)
        for positions in block.positions:
            if self._seen % self._stride == 0:
                self._file.writeModel([openmm.Vec3(*p) for p in positions] * unit.nanometer)
            self._seen += 1

    def _start(self, block: Block) -> None:
        with open(self._path.with_suffix(".pdb"), "w") as stream:
            app.PDBFile.writeFile(self._topology, block.positions[0] * 10, stream, keepIds=True)
        self._file = app.XTCFile(str(self._path), self._topology, 1.0 * unit.femtosecond, interval=1)
