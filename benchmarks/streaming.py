"""Samples written as they come: how much memory grows, and what our code costs beyond the network and the energies."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

from common import MODEL, Figure, Findings, Options, Table, command_line

from dig_core.dig import DiG
from dig_core.random import Streams
from dig_plugins.openmm import OpenMMEnergy, model_system, stream, write_samples

BATCH = 1024


def peak() -> float:
    """Largest resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clocks(dict[str, float]):
    """Processor seconds spent inside what is wrapped, by name, without those of what is wrapped within."""

    def __init__(self):
        super().__init__()
        self._within, self._wrapped = 0.0, []

    def around(self, name: str, holder: object, attribute: str) -> None:
        """Time ``holder.attribute`` until :meth:`stop`."""
        function = getattr(holder, attribute)

        def timed(*arguments, **options):
            began, outside, self._within = time.process_time(), self._within, 0.0
            try:
                return function(*arguments, **options)
            finally:
                spent = time.process_time() - began
                self[name] = self.get(name, 0.0) + spent - self._within
                self._within = outside + spent

        self._wrapped.append((holder, attribute, function))
        setattr(holder, attribute, timed)

    def stop(self) -> None:
        for holder, attribute, function in self._wrapped:
            setattr(holder, attribute, function)


def measure(options: Options) -> Findings:
    """One run, after a short one that loads what is loaded once and reaches the memory of a batch."""
    dig, n, clocks = options.load(), options.size(1_000_000, 2 * BATCH), Clocks()
    clocks.around("network", dig.model.network, "forward")
    clocks.around("energy", OpenMMEnergy, "__call__")
    clocks.around("noise", Streams, "reserve")
    clocks.around("noise", Streams, "normal")
    clocks.around("coordinates, their volume and poses", DiG, "to_samples")
    clocks.around("batches kept on disk", stream, "write_atomically")
    clocks.around("the files from them", stream._Run, "finish")
    simulation = model_system(MODEL).simulation()
    try:
        with tempfile.TemporaryDirectory() as place:
            given = {"simulation": simulation, "seed": options.seed, "batch": BATCH, "progress": False}
            write_samples(dig, 4 * BATCH, Path(place) / "first.xtc", **given)
            clocks.clear()
            before, began = peak(), time.process_time()
            found = write_samples(dig, n, Path(place) / "all.xtc", **given)
            whole, grown = time.process_time() - began, peak() - before
            size = (Path(place) / "all.xtc").stat().st_size / 2**20
    finally:
        clocks.stop()
    needed = clocks["network"] + clocks["energy"]
    figures = [
        Figure("growth of peak memory while samples are written", grown, "MB", None, 200, None, False, f"the first {4 * BATCH:,}"),
        Figure("overhead over network and energy calls", whole / needed - 1, "", None, 0.10, None, False, "both, timed in the run"),
    ]
    clocks["steps: kernels, their densities, the network's scaling"] = whole - sum(clocks.values())
    rows = [[name, round(1e6 * seconds / n, 1)] for name, seconds in clocks.items()]
    rows.append([f"all, of {n:,} samples", round(1e6 * whole / n, 1)])
    notes = [
        f"Alanine dipeptide, `write_samples` in batches of {BATCH:,}, one core. Weights and energies stay in memory, 16 bytes each.",
        f"{size:.0f} MB of XTC, {found.effective_sample_size:,.0f} effective samples. All but the network and the energy is overhead.",
    ]
    return Findings(figures, [Table("Samples written as they come", ["part", "CPU-us a sample"], rows)], notes)


if __name__ == "__main__":
    command_line(__doc__, "streaming", measure)
