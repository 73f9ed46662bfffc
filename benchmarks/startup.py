"""What it costs to begin: importing dig_core beyond torch, the shipped model's loading time, time and memory of the demonstration."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Figure, Findings, Options, command_line, per_call

ROOT = Path(__file__).parents[1]
_IMPORT = "import time, torch, numpy; w, c = time.perf_counter(), time.process_time(); import {}; " + (
    "print(time.perf_counter() - w, time.process_time() - c)"
)


def measure(options: Options) -> Findings:
    """All of it, each in processes of its own."""
    return Findings([*imports(options), loading(options), *demonstration(options)])


def imports(options: Options) -> list[Figure]:
    """Seconds beyond torch's and numpy's own: of the package, and of everything a chain needs."""
    found = []
    for what, modules, floor in (
        ("import dig_core, beyond torch", "dig_core", 0.3),
        (
            "import every part of dig_core, beyond torch",
            "dig_core.checkpoint, dig_core.training.fit, dig_core.montecarlo.chain",
            None,
        ),
        ("import what the OpenMM chain needs, beyond torch", "dig_plugins.models, dig_plugins.openmm.montecarlo", None),
    ):
        code = _IMPORT.format(modules)
        times = [[float(x) for x in _python("-c", code).split()] for _ in range(options.size(7, 1))]
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        note = f"median of {len(times)} fresh processes; processor time {cpu:.2f} s."
        found.append(
            Figure(what, wall, "s", None, floor, None, False, "a process that has imported torch and numpy", note)
        )
    return found


def loading(options: Options) -> Figure:
    """Seconds to read, check and rebuild the model."""
    return Figure(
        "load the shipped model",
        per_call(options.load, options.size(5, 1)),
        "s",
        note="processor time, checksum and all.",
    )


def demonstration(options: Options) -> list[Figure]:
    """Peak resident memory and wall time of ``dig-plugins demo``, a process of its own."""
    seconds = options.size(20, 1)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "demo"
        arguments = ["demo", "--out", out, "--seconds", seconds, "--seed", options.seed]
        command = [sys.executable, "-m", "dig_plugins.cli", *map(str, arguments)]
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(
                f"the demonstration failed with exit code {process.returncode}: run `dig-plugins demo` to see why."
            )
        summary = json.loads((out / "run.json").read_text())
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    note = f"`dig-plugins demo --seconds {seconds}`: {summary['proposals']} proposals, acceptance {summary['acceptance']:.2f}."
    return [
        Figure("peak memory of the demonstration", peak, "GB", None, 2.0, None, False, "", note),
        Figure("wall time of the demonstration", wall, "s", note=f"two simulations of {seconds} s of wall time, and the report."),
    ]  # fmt: skip


def _python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    command_line(__doc__, "startup", measure)
