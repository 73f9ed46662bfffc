"""Crystals of a composition with wanted properties, in a directory."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

from dig_core.errors import IncompatibleError
from dig_core.random import as_seed

from ..record import empty_directory, of_checkpoint, of_software
from .reports import design_report
from .result import Run, recorded

__all__ = ["design", "target_of"]


def design(
    composition: str, out: str | Path = "designs", *, n: int = 50, target: str | float | tuple[float, float] | None = None,
    model: str | Path = "carbon",
    by: str = "rejection", strength: float = 1.0, width: float = 0.25, steps: int | None = None, most: int | None = None,
    seed: int | None = None, report: bool = True,
) -> Run:  # fmt: skip
    """:func:`dig_plugins.pymatgen.design` into a new directory: CIF, extended XYZ, a table (``designs.md``), ``run.json`` and,
    unless ``report`` is False, its ``report.html`` and ``.png``.

    ``target``: of the band gap in eV, a number, a range (low, high) or "low:high"; None draws from the model as it is. The rest, and
    errors, as there; IncompatibleError besides for a directory that is not empty, or a target that is no number and no range.
    """
    from ..pymatgen import design as draw

    directory, seed, began = empty_directory(out), as_seed(seed), time.perf_counter()
    wanted = target_of(target) if isinstance(target, str) else target
    options = {"by": by, "strength": strength, "width": width, "steps": steps, "most": most, "seed": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what they say is in the summary
        found = draw(composition, n, model=model, target=wanted, **options)
    if not len(found):
        raise IncompatibleError(f"no crystal of {composition} meets the target {target}: widen it, or allow more draws.")
    found.write(directory)
    record = {
        **of_software("pymatgen"), **of_checkpoint(model), "composition": composition, "designs": len(found), "targets": found.targets,
        "source": found.source, "effective_sample_size": found.effective_sample_size(), "failed": found.failed, "notes": found.notes,
        **options, "seconds": time.perf_counter() - began, "units": "Angstrom, eV, log q in nats",
    }  # fmt: skip
    page = (lambda: design_report(found, wanted, record)) if report else None
    return recorded(found, record, f"{found.summary()}\ndesigns: {directory}", directory, page)


def target_of(words: str) -> float | tuple[float, float]:
    """A number from "4.0", a range from "2:3", either end of which may be left out. IncompatibleError for other words."""
    try:
        if ":" not in words:
            return float(words)
        low, high = words.split(":")
        return float(low or "-inf"), float(high or "inf")
    except ValueError as error:
        raise IncompatibleError(f"expected a target as a number or a range low:high, got {words!r}.") from error
