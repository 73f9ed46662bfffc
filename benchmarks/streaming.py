"""Samples written as they come: how much memory grows, and what our code costs beyond the network and the energies."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

from common import MODEL, Figure, Findings, Options, Table, command_line
from torch import nn

from dig_plugins.openmm import OpenMMEnergy, write_samples

BATCH = 1024


def peak() -> float:
    """Largest resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock:
    """Processor seconds spent inside what it wraps."""

    def __init__(self):
        self.seconds = 0.0

    def around(self, function):
        def timed(*arguments, **options):
            began = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.process_time() - began

        return timed


def measure(options: Options) -> Findings:
    """One run, after a short one that loads what is loaded once and reaches the memory of a batch."""
    dig, n, clock = options.load(), options.size(100_000, 2 * BATCH), Clock()
    network: nn.Module = dig.model.network
    network.forward = clock.around(network.forward)
    evaluate, OpenMMEnergy.__call__ = OpenMMEnergy.__call__, clock.around(OpenMMEnergy.__call__)
    from dig_plugins.openmm import model_system

    simulation = model_system(MODEL).simulation()
    try:
        with tempfile.TemporaryDirectory() as place:
            given = {"simulation": simulation, "seed": options.seed, "batch": BATCH, "progress": False}
            write_samples(dig, 4 * BATCH, Path(place) / "first.xtc", **given)
            before, clock.seconds, began = peak(), 0.0, time.process_time()
            found = write_samples(dig, n, Path(place) / "all.xtc", **given)
            whole, grown = time.process_time() - began, peak() - before
            size = (Path(place) / "all.xtc").stat().st_size / 2**20
    finally:
        OpenMMEnergy.__call__ = evaluate
    figures = [
        Figure("growth of peak memory while samples are written", grown, "MB", None, 200, None, False, f"the first {4 * BATCH:,}"),
        Figure("overhead over network and energy calls", whole / clock.seconds - 1, "", None, 0.10, None, False, "both, timed in the run"),
    ]
    rows = [[f"{n:,}", round(1e3 * whole / n, 3), round(1e3 * clock.seconds / n, 3), round(size), round(found.effective_sample_size)]]
    header = ["samples", "CPU-ms each", "of which network and energy", "XTC, MB", "effective samples"]
    notes = [f"Alanine dipeptide, `write_samples` in batches of {BATCH:,}, one core. Weights and energies stay in memory, 16 bytes each."]
    return Findings(figures, [Table("Samples written as they come", header, rows)], notes)


if __name__ == "__main__":
    command_line(__doc__, "streaming", measure)
