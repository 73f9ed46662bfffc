"""What a task returns: the thing itself, what is recorded of it, what is said of it, and where it is."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dig_core.errors import IncompatibleError

from ..lazy import check_hdf5
from ..record import write_record
from ..report import Report, page_of, write_report

__all__ = ["Run", "recorded", "writable"]


class Run(NamedTuple):
    """``result``: what was made, an ensemble or a model; ``record``: what ``run.json`` holds; ``said``: in words; ``out``: where it is;
    ``report``: the page, None without one. A notebook shows the page."""

    result: Any
    record: dict
    said: str
    out: Path
    report: Path | None = None

    def _repr_html_(self) -> str:
        """For notebooks: the page in a frame of its own, what is said without one."""
        if self.report is None:
            return f"<pre>{html.escape(self.said)}</pre>"
        page = html.escape(self.report.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" style="width:100%;height:48rem;border:0" title="report"></iframe>'


def recorded(result: Any, record: dict, said: str, out: Path, report: Callable[[], Report] | None, *, write: bool = True) -> Run:
    """The run, its record written, unless something else has, then the ``report`` of it, if one is wanted."""
    if write:
        write_record(out, record)
    page = None
    if report is not None:
        page = write_report(out, report(), record)
        said += f"\nreport: {page_of(out)}"
    return Run(result, record, said, out, page)


def writable(out: str | Path, suffixes: tuple[str, ...]) -> Path:
    """``out`` if a file of that name can be written: ask before the work. Raises IncompatibleError, and ImportError where HDF5 lacks its
    packages."""
    out = Path(out)
    if out.suffix not in suffixes:
        raise IncompatibleError(f"expected a file name ending in {', '.join(suffixes)}, got {out.name!r}.")
    if not out.parent.is_dir():
        raise IncompatibleError(f"there is no directory {out.parent} to write {out.name} in: make it, or choose another.")
    if out.suffix == ".h5":
        check_hdf5()
    return out
