"""What extended XYZ files are checked for before ASE reads them."""

from __future__ import annotations

import re

__all__ = ["check_counts"]

_COLUMNS = re.compile(rb'properties="?([^\s"]+)', re.IGNORECASE)


def check_counts(content: bytes) -> None:
    """Raise ValueError for an image that says it has more atoms than lines follow, or more columns than its first atom has: if such a
    number is damaged, ASE would read on for days."""
    lines, at = content.split(b"\n"), 0
    while at < len(lines) and (number := lines[at].strip()).isdigit():
        start, at = at, at + int(number) + 2
        if at > len(lines):
            raise ValueError(f"an image of {int(number)} atoms does not fit into {len(lines)} lines")
        told = _COLUMNS.search(lines[start + 1]) if int(number) else None
        if told is not None:
            columns = sum(int(word) for word in told[1].split(b":")[2::3] if word.isdigit())
            if columns > (found := len(lines[start + 2].split())):
                raise ValueError(f"an image says that its atoms have {columns} columns, the first has {found}")
