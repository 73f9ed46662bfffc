"""The band gap of a carbon crystal by plane-wave DFT: one run of Quantum ESPRESSO's pw.x a structure, a judge of what other gaps guide."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dig_core.errors import IncompatibleError
from dig_core.types import Geometry

from .dftb import check_carbon
from .kpoints import counts, grid
from .neighbours import pairs, sound

__all__ = ["PlaneWaveGap"]

_HARTREE = 27.211386  # eV
_PSEUDO = "C.pbe-rrkjus.UPF"  # of QE's own collection; cutoffs of 22 and 180 Ry change diamond's gap by 0.01 eV from those of 40
_PLACES = ("/usr/share/espresso/pseudo", "/usr/local/share/espresso/pseudo")
_CLOSEST = 0.5  # Angstrom, below which cores overlap and a run would never end


@dataclass(frozen=True)
class PlaneWaveGap:
    """Signed PBE gap, eV: the lowest empty level less the highest filled one over a grid of points, negative where bands overlap.

    Called with a Geometry like the other gaps, but not differentiable: a judge, and no guide. A structure of 6 to 16 atoms takes 2 to
    8 seconds of a core. Values of semimetals are as good as the grid: hexagonal cells get the point K.

    Parameters
    ----------
    command: pw.x, or another start of it such as "mpirun -n 4 pw.x". pseudopotential: file for carbon; C.pbe-rrkjus.UPF, where
    ESPRESSO_PSEUDO or Debian's quantum-espresso-data has it, if None. spacing: 1/Angstrom between points, 2 pi included.
    cutoff, density: Ry. limit: seconds, after which a structure is given up. workers: runs at a time.

    Raises IncompatibleError where the program or the pseudopotential is not found. What does not converge, and atoms closer than
    0.5 Angstrom, are NaN, with a warning that says how many and why.
    """

    command: str | Sequence[str] = "pw.x"
    pseudopotential: str | Path | None = None
    spacing: float = 0.45
    cutoff: float = 22.0
    density: float = 180.0
    limit: float = 900.0
    workers: int = 1

    def __call__(self, geometry: Geometry, numbers: Tensor | None = None) -> Tensor:
        """(B,) eV, float64, of crystals (B, N, 3), (B, 3, 3) Angstrom."""
        check_carbon(geometry, numbers)
        command, pseudo = self._command(), self._pseudopotential()
        positions, cell = (x.detach().double().cpu() for x in (geometry.positions, geometry.cell))  # type: ignore[union-attr]
        gaps, failures = torch.full((len(positions),), torch.nan, dtype=torch.float64), list[str]()
        good = _apart(positions, cell)
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            for row, found in zip(good, pool.map(lambda k: self._run(command, pseudo, positions[k], cell[k]), good), strict=True):
                if isinstance(found, str):
                    failures.append(found)
                else:
                    gaps[row] = found
        failures += ["its atoms overlap or its cell is none"] * (len(positions) - len(good))
        if failures:
            warnings.warn(f"{len(failures)} of {len(positions)} structures have no gap; the first: {failures[0]}", stacklevel=2)
        return gaps

    def _command(self) -> list[str]:
        command = self.command.split() if isinstance(self.command, str) else list(self.command)
        if not command or shutil.which(command[0]) is None:
            raise IncompatibleError(
                f"expected Quantum ESPRESSO's pw.x as {self.command!r}, which is not found: install it (Debian: quantum-espresso), or "
                'name it, PlaneWaveGap(command="/path/to/pw.x").'
            )
        return command

    def _pseudopotential(self) -> Path:
        places = [os.environ.get("ESPRESSO_PSEUDO", ""), *_PLACES]
        tried = [Path(p) / _PSEUDO for p in places if p] if self.pseudopotential is None else [Path(self.pseudopotential)]
        for place in tried:
            if place.is_file():
                return place.resolve()
        raise IncompatibleError(
            f"expected a pseudopotential of carbon at {' or '.join(map(str, tried))}: install quantum-espresso-data, or name a file by "
            "pseudopotential=."
        )

    def _run(self, command: list[str], pseudo: Path, positions: Tensor, cell: Tensor) -> float | str:
        """The gap, or why there is none."""
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            (place / "pw.in").write_text(self._input(pseudo, positions, cell), encoding="utf-8")
            try:
                done = subprocess.run(
                    [*command, "-in", "pw.in"], cwd=place, timeout=self.limit, capture_output=True, text=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                return f"pw.x took more than {self.limit:g} s"
            try:
                return _gap(place / "gap.xml", len(positions))
            except (OSError, ET.ParseError, ValueError) as error:
                last = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
                return f"pw.x ended with {done.returncode}, {error}; it said {' '.join(last[-4:])[:300]!r}"

    def _input(self, pseudo: Path, positions: Tensor, cell: Tensor) -> str:
        n, (points, weights) = len(positions), grid(counts(cell, self.spacing))
        fractions = torch.linalg.solve(cell.T, positions.T).T
        lines = [
            f"&CONTROL calculation='scf', prefix='gap', outdir='.', pseudo_dir='{pseudo.parent}', disk_io='low' /",
            f"&SYSTEM ibrav=0, nat={n}, ntyp=1, ecutwfc={self.cutoff}, ecutrho={self.density}, nbnd={2 * n + 4}, nosym=.true.,",
            "  occupations='smearing', smearing='mv', degauss=0.005 /",
            f"&ELECTRONS conv_thr={5e-5 * n:.2e}, electron_maxstep=200 /",
            "ATOMIC_SPECIES", f"C 12.011 {pseudo.name}", "CELL_PARAMETERS angstrom", *map(_numbers, cell.tolist()),
            "ATOMIC_POSITIONS crystal", *(f"C {_numbers(row)}" for row in fractions.tolist()), "K_POINTS crystal", str(len(points)),
            *(_numbers([*point, weight]) for point, weight in zip(points.tolist(), weights.tolist(), strict=True)),
        ]  # fmt: skip
        return "\n".join(lines) + "\n"


def _apart(positions: Tensor, cell: Tensor) -> list[int]:
    """Structures whose atoms are far enough apart for a run."""
    rows = sound(positions, cell, _CLOSEST).nonzero()[:, 0]
    close = rows[pairs(positions[rows], cell[rows], _CLOSEST).structure].tolist()
    return [k for k in rows.tolist() if k not in close]


def _numbers(row: Sequence[float]) -> str:
    return " ".join(f"{x:.10f}" for x in row)


def _gap(place: Path, atoms: int) -> float:
    """Of what pw.x wrote. ValueError if it did not converge, or holds too few levels."""
    root = ET.parse(place).getroot()
    if root.findtext(".//scf_conv/convergence_achieved", "").strip() != "true":
        raise ValueError("it did not converge")
    levels = [[float(x) for x in (found.text or "").split()] for found in root.iterfind(".//ks_energies/eigenvalues")]
    filled = 2 * atoms
    if not levels or min(map(len, levels)) <= filled:
        raise ValueError("its file holds no empty levels")
    return _HARTREE * (min(row[filled] for row in levels) - max(row[filled - 1] for row in levels))
