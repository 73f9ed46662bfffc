"""DiG for the engines people use: one sub-package an engine, imported when it is asked for."""

from dig_core import __version__

__all__ = ["__version__", "load_model"]


def load_model(name_or_path):
    """A shipped model by name, or any checkpoint by path, as a :class:`dig_core.DiG`."""
    from .models import load

    return load(name_or_path)
