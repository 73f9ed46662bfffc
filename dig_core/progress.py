"""How far a run is, as its user wants to see it: a bar on terminals, a bar, nothing, or a function of their own that is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["Show", "bar"]

Show = bool | None | Callable[[str, float, float | None, dict], Any]
"""``progress`` of everything that takes long: True or False, None for a bar if standard error is a terminal, or a function
``(label, done, total, figures)``, called after every step: ``total`` None where nobody knows, ``figures`` such as the loss. An
exception that it raises ends the run; runs with a directory go on from their last checkpoint."""


def bar(things: Iterable | None = None, *, label: str, progress: Show, total: float | None = None, initial: float = 0, **looks) -> Any:
    """A bar as tqdm has them, over ``things`` or updated by hand; ``looks``: further options of tqdm."""
    if total is None and hasattr(things, "__len__"):
        total = len(things)  # type: ignore[arg-type]
    if callable(progress):
        return _Told(things, label, progress, total, initial)
    from tqdm.auto import tqdm

    return tqdm(things, desc=label, total=total, initial=initial, disable=None if progress is None else not progress, **looks)


class _Told:
    """A bar that nobody sees and a function is told of."""

    def __init__(self, things: Iterable | None, label: str, tell: Callable, total: float | None, initial: float):
        self._things, self._label, self._tell, self._total, self.n = things, label, tell, total, initial
        self._figures: dict = {}

    def __iter__(self):
        for thing in () if self._things is None else self._things:
            yield thing
            self.update()

    def __enter__(self) -> _Told:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def update(self, n: float = 1) -> None:
        self.n += n
        self._tell(self._label, self.n, self._total, self._figures)

    def set_postfix(self, figures: dict | None = None, refresh: bool = True, **more) -> None:
        self._figures = {**(figures or {}), **more}

    def close(self) -> None:
        """Nothing is open."""
