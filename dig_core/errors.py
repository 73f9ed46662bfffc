"""Typed errors: every message says what was expected, what came and what to do."""

__all__ = ["CheckpointError", "DiGError", "IncompatibleError", "StateError", "UnsupportedError"]


class DiGError(Exception):
    """Base class of every error raised on purpose."""


class IncompatibleError(DiGError, ValueError):
    """Two parts do not fit: model and system, process and coordinates, temperatures."""


class UnsupportedError(DiGError, ValueError):
    """The system holds something that is not covered; the message names it and says what to do instead."""


class CheckpointError(DiGError, ValueError):
    """A checkpoint is missing, damaged, or of another schema."""


class StateError(DiGError, RuntimeError):
    """A structure that cannot be used: NaN positions, or a current state of zero probability."""
