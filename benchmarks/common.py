"""What every benchmark shares: options, one thread, processor time, the machine, figures with their targets, JSON results."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Thread pools are sized when the libraries load: every figure is that of one core.
for _library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
os.environ.setdefault("OPENMM_CPU_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # what is measured is this checkout, installed or not

import numpy as np  # noqa: E402
import torch  # noqa: E402

import dig_core  # noqa: E402
from dig_core.dig import DiG  # noqa: E402
from dig_core.files import write_atomically  # noqa: E402
from dig_plugins import models  # noqa: E402

torch.set_num_threads(1)

RESULTS = HERE / "results"
MODEL = "alanine-dipeptide"
REFERENCE = Path(models.__file__).with_name(f"{MODEL}-reference.npz")
"""Averages of the long parallel-tempering run; see benchmarks/reference.py."""


@dataclasses.dataclass(frozen=True)
class Options:
    """``quick`` asks for smoke sizes, whose figures mean nothing; ``model`` is a shipped name or a checkpoint file."""

    quick: bool = False
    seed: int = 1
    model: str = MODEL
    out: Path = RESULTS

    def size(self, full: int, quick: int) -> int:
        """How many: ``full``, or ``quick`` in smoke mode."""
        return quick if self.quick else full

    def load(self) -> DiG:
        """The model to measure."""
        return models.load(self.model)


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured number: its target (``floor``, at least or at most) and ``aim`` if it has them, and what it is compared with."""

    what: str
    value: float
    unit: str = ""
    stderr: float | None = None
    floor: float | None = None
    aim: float | None = None
    higher: bool = True
    compared: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """How the value stands to its targets: aim met, met, or short."""
        if self.floor is None:
            return ""
        reached = [
            t is not None and (self.value >= t if self.higher else self.value <= t) for t in (self.floor, self.aim)
        ]
        return "aim met" if reached[1] else "met" if reached[0] else "**short**"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of numbers or words under ``header``."""

    title: str
    header: list[str]
    rows: list[list]


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a script measured; ``notes`` say how, a sentence or two each."""

    figures: list[Figure]
    tables: list[Table] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def command_line(doc: str, script: str, measure: Callable[[Options], Findings], model: str = MODEL) -> None:
    """Parse the options, measure, write ``results/<script>.json`` and print the figures; ``model`` unless the options name another."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="smoke sizes: checks that the script runs, measures nothing"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default=model, help="a shipped model or a checkpoint for the same systems")
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the results")
    options = Options(**vars(parser.parse_args()))
    if options.quick and options.out == RESULTS:
        parser.error("--quick needs --out: smoke sizes must not overwrite the measured results.")
    load, wall, began = os.getloadavg()[0], time.perf_counter(), time.process_time()
    findings = measure(options)
    record = {
        "script": f"benchmarks/{script}.py",
        "purpose": doc.splitlines()[0],
        "command": f"python benchmarks/{script}.py" + (f" --seed {options.seed}" if options.seed != 1 else ""),
        "quick": options.quick,
        "seed": options.seed,
        "model": _model_name(options.model),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {**machine(), "load at the start": round(load, 1)},
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - began + _children(), 1),
        "figures": [{**dataclasses.asdict(f), "verdict": f.verdict} for f in findings.figures],
        "tables": [dataclasses.asdict(t) for t in findings.tables],
        "notes": findings.notes,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / f"{script}.json", (json.dumps(_plain(record), indent=1) + "\n").encode())
    for figure in findings.figures:
        print(f"{figure.what}: {number(figure.value)} {figure.unit} {figure.verdict.strip('*')}")


def interval(values: list[float]) -> tuple[float, float]:
    """The middle 95 % of bootstrapped means, over systems."""
    means = np.random.default_rng(0).choice(values, (2000, len(values))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def machine() -> dict[str, str]:
    """The processor, its cores, what it can do with bfloat16, memory, and versions."""
    described: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        flags = sorted({"avx2", "avx512f", "avx512_bf16", "amx_bf16"} & set(fields.get("flags", "").split()))
        described["processor"] = f"{fields.get('model name', platform.machine())} ({', '.join(flags)})"
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        described["memory"] = f"{memory:.0f} GiB"
    else:
        described["processor"] = platform.processor() or platform.machine()
    described["cores"] = f"{os.cpu_count()}, one used"
    described["system"] = f"{platform.system()}, Python {platform.python_version()}"
    described["dig-plugins"] = dig_core.__version__
    for package in ("torch", "openmm", "numpy"):
        try:
            described[package] = version(package)
        except PackageNotFoundError:
            described[package] = "not installed"
    return described


def per_call(function: Callable[[], object], repeats: int) -> float:
    """Processor seconds of a call: the median of ``repeats``, after one that is not counted."""
    function()
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        function()
        seconds.append(time.process_time() - began)
    return float(np.median(seconds))


def poisson_upper(events: int, level: float = 0.95) -> float:
    """The mean below which ``events`` or fewer are seen with probability 1 - ``level``: 3.0 for none at 95 %."""
    low, high = float(events), 10.0 + 3 * events
    terms = [math.lgamma(k + 1) for k in range(events + 1)]
    for _ in range(100):
        mean = 0.5 * (low + high)
        seen = sum(math.exp(k * math.log(mean) - mean - term) for k, term in enumerate(terms)) if mean > 0 else 1.0
        low, high = (mean, high) if seen > 1 - level else (low, mean)
    return high


def number(value: float) -> str:
    """Three significant figures, thousands with separators."""
    if value is None or not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}" if 100 <= abs(value) < 1e9 else f"{value:.1e}"


def _model_name(given: str) -> str:
    """A shipped model with the start of its checkpoint's hash; of another file its name alone."""
    entry = models.index().get(given)
    return Path(given).name if entry is None else f"{given} {entry['sha256'][:12]}"


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _plain(value):
    """Numpy numbers and infinities as JSON has them."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit("common.py is imported by the benchmarks; run benchmarks/run.py.")
