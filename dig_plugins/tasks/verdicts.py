"""What was checked of an ensemble, and in words whether it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Check", "Verdict", "verdict_of"]


class Check(NamedTuple):
    """``passed``: False speaks against trust; None says that it could not be told, or that it is for information."""

    name: str
    passed: bool | None
    said: str


class Verdict(NamedTuple):
    """``trusted`` if there are weights and no check failed; ``checks`` all of them; ``said``: the verdict and its reasons in words."""

    trusted: bool
    checks: tuple[Check, ...]
    said: str

    def table(self) -> str:
        """A line a check."""
        mark = {True: "ok", False: "FAILED", None: "-"}
        return "\n".join(f"{mark[check.passed]:6s}  {check.name}: {check.said}" for check in self.checks)


def verdict_of(checks: Sequence[Check], weighed: bool, unseen: bool) -> Verdict:
    """``weighed``: whether there is an energy, so that structures have weights; ``unseen``: whether nothing independent was compared."""
    failed = [check for check in checks if check.passed is False]
    reasons = "; ".join(f"{check.name} ({check.said.rstrip('.')})" for check in failed)
    if failed:
        said = f"Cannot be trusted, because of {reasons}."
    elif not weighed:
        said = (
            "Cannot be trusted as an equilibrium ensemble: the model was given no energy, so that its structures have no weights. They are "
            "draws of the law that it learned, whatever that is worth."
        )
    else:
        said = "Can be trusted: averages under the weights are those of exp(-E/kT) within their errors."
        if unseen:
            said += " A state that the model never proposes would go unseen: give structures of an independent simulation to look for one."
    return Verdict(weighed and not failed, tuple(checks), said)
