"""What extended XYZ files are checked for before ASE reads them."""

from __future__ import annotations

__all__ = ["check_counts"]


def check_counts(content: bytes) -> None:
    """Raise ValueError for an image that says it has more atoms than lines follow: ASE would read on, for days if the number is damaged."""
    lines, at = content.split(b"\n"), 0
    while at < len(lines) and (number := lines[at].strip()).isdigit():
        at += int(number) + 2
        if at > len(lines):
            raise ValueError(f"an image of {int(number)} atoms does not fit into {len(lines)} lines")
